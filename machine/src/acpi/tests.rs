//! The tables as an operating system walks them, and through `iasl` where that is installed.

use super::*;

fn config(form: Form, cpu_count: u32) -> AcpiConfig {
    let plan = RamPlan { memory_bytes: 256 << 20, rom_bytes: 0 };
    AcpiConfig { form, plan, cpu_count, serial_ports: 2, has_fw_cfg: true }
}

struct Tables(Vec<PlacedTable>);

impl Tables {
    fn at(&self, address: u64) -> &[u8] {
        &self.0.iter().find(|table| table.address == address).expect("a table").bytes
    }

    fn signed(&self, signature: &[u8; 4]) -> Option<&[u8]> {
        let mut all = self.0.iter().map(|table| table.bytes.as_slice());
        all.find(|bytes| bytes.starts_with(signature))
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn every_table_is_reached_and_sums_to_zero() {
    for (form, count) in [(Form::Q35, 4), (Form::Pc, 3)] {
        let tables = Tables(build(&config(form, 4)).unwrap());
        let rsdp = tables.at(layout::RSDP_BASE);
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(rsdp)), (&b"RSD PTR "[..], 0, 0));
        let (rsdt, xsdt) = (u32_at(rsdp, 16), u64_at(rsdp, 24));
        let (rsdt, xsdt) = (tables.at(rsdt.into()), tables.at(xsdt));
        assert_eq!((&rsdt[..4], &xsdt[..4]), (&b"RSDT"[..], &b"XSDT"[..]));
        assert_eq!((rsdt.len(), xsdt.len()), (36 + 4 * count, 36 + 8 * count));
        for index in 0..count {
            let address = u64_at(xsdt, 36 + 8 * index);
            assert_eq!(u64::from(u32_at(rsdt, 36 + 4 * index)), address);
            tables.at(address);
        }
        for table in tables.0.iter().filter(|t| t.address != layout::RSDP_BASE) {
            assert_eq!(u32_at(&table.bytes, 4) as usize, table.bytes.len());
            if !table.bytes.starts_with(b"FACS") {
                assert_eq!(sum(&table.bytes), 0, "{:?}", &table.bytes[..4]);
            }
        }
    }
}

#[test]
fn fadt_says_where_the_power_management_block_is() {
    let tables = Tables(build(&config(Form::Q35, 1)).unwrap());
    let fadt = tables.signed(b"FACP").unwrap();
    assert_eq!(fadt.len(), 276);
    assert!(tables.at(u32_at(fadt, 36).into()).starts_with(b"FACS"));
    assert!(tables.at(u32_at(fadt, 40).into()).starts_with(b"DSDT"));
    assert_eq!(u64_at(fadt, 140), u64::from(u32_at(fadt, 40)));
    assert_eq!(fadt[46], 9);
    assert_eq!((u32_at(fadt, 56), u32_at(fadt, 64), u32_at(fadt, 76)), (0x600, 0x604, 0x608));
    // Reset register: I/O, 8 bits, port CF9h; value.
    assert_eq!((&fadt[116..118], u64_at(fadt, 120), fadt[128]), (&[1, 8][..], 0xcf9, 6));
    assert_eq!((&fadt[148..150], u64_at(fadt, 152)), (&[1, 32][..], 0x600));
}

/// Type and bytes of every structure of a MADT.
fn madt_entries(madt: &[u8]) -> Vec<(u8, &[u8])> {
    let mut entries = Vec::new();
    let mut rest = &madt[44..];
    while let [kind, length, ..] = rest {
        let (entry, next) = rest.split_at(usize::from(*length));
        entries.push((*kind, entry));
        rest = next;
    }
    entries
}

#[test]
fn madt_lists_processors_of_both_kinds_and_the_overrides() {
    let tables = Tables(build(&config(Form::Q35, 300)).unwrap());
    let entries = madt_entries(tables.signed(b"APIC").unwrap());
    let of_kind = |kind: u8| entries.iter().filter(move |entry| entry.0 == kind).map(|e| e.1);
    assert_eq!((of_kind(0).count(), of_kind(9).count()), (255, 45));
    let last = of_kind(9).next_back().unwrap();
    assert_eq!((u32_at(last, 4), u32_at(last, 8), u32_at(last, 12)), (299, 1, 299));
    let overrides: Vec<_> = of_kind(2).map(|e| (e[3], u32_at(e, 4), e[8])).collect();
    assert_eq!(overrides, [(0, 2, 0), (5, 5, 0xd), (9, 9, 0xd), (10, 10, 0xd), (11, 11, 0xd)]);
    let io_apic = of_kind(1).next().unwrap();
    assert_eq!(u32_at(io_apic, 4), 0xfec0_0000);
    assert_eq!((of_kind(4).next().unwrap()[5], of_kind(10).next().unwrap()[8]), (1, 1));
    let few = Tables(build(&config(Form::Q35, 2)).unwrap());
    assert_eq!(madt_entries(few.signed(b"APIC").unwrap()).len(), 2 + 1 + 5 + 1);
}

#[test]
fn only_q35_has_ecam() {
    let q35 = Tables(build(&config(Form::Q35, 1)).unwrap());
    let mcfg = q35.signed(b"MCFG").unwrap();
    assert_eq!((u64_at(mcfg, 44), mcfg[54], mcfg[55]), (layout::ECAM_BASE, 0, 255));
    assert!(Tables(build(&config(Form::Pc, 1)).unwrap()).signed(b"MCFG").is_none());
}

#[test]
fn tables_that_outgrow_their_range_are_refused() {
    let error = build(&config(Form::Q35, 4_000)).unwrap_err();
    assert!(error.needed > error.room, "{error}");
}

/// Runs `iasl` over every table; it must find no error and no warning. Skipped where it is not
/// installed: the tests above do not need it.
#[test]
fn iasl_disassembles_and_recompiles_without_remarks() {
    use std::process::Command;
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("skipped: iasl is not installed");
        return;
    }
    for (form, label) in [(Form::Q35, "q35"), (Form::Pc, "pc")] {
        let name = format!("volvelle-acpi-{}-{label}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for signature in [b"DSDT", b"FACP", b"APIC", b"HPET", b"MCFG", b"FACS"] {
            let tables = Tables(build(&config(form, 2)).unwrap());
            let Some(bytes) = tables.signed(signature) else { continue };
            let file = String::from_utf8_lossy(signature).to_lowercase();
            std::fs::write(folder.join(format!("{file}.dat")), bytes).unwrap();
            let iasl = |arguments: &[&str]| {
                let run = Command::new("iasl").args(arguments).current_dir(&folder).output();
                let run = run.unwrap();
                let text = [run.stdout, run.stderr].concat();
                (run.status.success(), String::from_utf8_lossy(&text).into_owned())
            };
            let (is_done, text) = iasl(&["-d", &format!("{file}.dat")]);
            assert!(is_done && !text.contains("rror"), "{file}: {text}");
            if signature == b"DSDT" {
                let (is_done, text) = iasl(&["-we", "dsdt.dsl"]);
                assert!(is_done && text.contains(" 0 Errors, 0 Warnings"), "{text}");
            }
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
