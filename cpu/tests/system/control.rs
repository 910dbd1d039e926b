//! MOV CRn: every #GP rule, and what a change entails (SDM Vol. 2B, "MOV to/from Control
//! Registers").

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cpu::exception::{Exception, Exec};
use cpu::mode::OperatingMode;
use cpu::state::{attr, cr0, cr4, efer, gpr, seg};
use cpu::testing::{Bench, DATA, policy};

use crate::bench::Make;

const MOV_CR0_RAX: [u8; 3] = [0x0f, 0x22, 0xc0];
const MOV_CR3_RAX: [u8; 3] = [0x0f, 0x22, 0xd8];
const MOV_CR4_RAX: [u8; 3] = [0x0f, 0x22, 0xe0];
const MOV_CR8_RAX: [u8; 4] = [0x44, 0x0f, 0x22, 0xc0];

fn write(bench: &mut Bench, code: &[u8], value: u64) -> Exec {
    bench.cpu.state.gpr[gpr::RAX] = value;
    bench.execute(code)
}

#[test]
fn cr0_refuses_what_the_manual_forbids() {
    const GP: Exec = Err(Exception::GP0);
    let kept = cr0::PE | cr0::ET | cr0::NE | cr0::MP;
    let rows: [(Make, u64, Exec); 8] = [
        (Bench::protected32, kept | cr0::WP, Ok(())),
        (Bench::protected32, cr0::PG | cr0::ET, GP),
        (Bench::protected32, kept | cr0::NW, GP),
        (Bench::protected32, kept | cr0::NW | cr0::CD, Ok(())),
        (Bench::protected32, kept | 1 << 7, Ok(())),
        (Bench::long64, kept, GP),
        (Bench::long64, kept | cr0::PG | 1 << 32, GP),
        (Bench::compatibility32, kept, Ok(())),
    ];
    for (index, (make, value, outcome)) in rows.into_iter().enumerate() {
        let mut bench = make();
        let before = bench.cpu.state.cr0;
        assert_eq!(write(&mut bench, &MOV_CR0_RAX, value), outcome, "row {index}");
        let expected = if outcome.is_ok() { value & !(1 << 7) } else { before };
        assert_eq!(bench.cpu.state.cr0, expected, "row {index}");
    }
}

#[test]
fn paging_switches_long_mode_on_and_off() {
    let mut bench = Bench::compatibility32();
    let on = bench.cpu.state.cr0;
    write(&mut bench, &MOV_CR0_RAX, on & !cr0::PG).unwrap();
    assert_eq!(bench.cpu.state.msrs.efer & (efer::LMA | efer::LME), efer::LME);
    assert_eq!(bench.cpu.mode.operating, OperatingMode::Protected);
    write(&mut bench, &MOV_CR0_RAX, on).unwrap();
    assert_ne!(bench.cpu.state.msrs.efer & efer::LMA, 0);
    assert_eq!(bench.cpu.mode.operating, OperatingMode::Compatibility);
}

#[test]
fn long_mode_does_not_start_without_pae_or_from_a_long_segment_or_with_a_narrow_tss() {
    let prepare = |change: fn(&mut Bench)| {
        let mut bench = Bench::compatibility32();
        let on = bench.cpu.state.cr0;
        write(&mut bench, &MOV_CR0_RAX, on & !cr0::PG).unwrap();
        change(&mut bench);
        bench.cpu.mode_changed();
        write(&mut bench, &MOV_CR0_RAX, on)
    };
    assert_eq!(prepare(|_| ()), Ok(()));
    assert_eq!(prepare(|bench| bench.cpu.state.cr4 &= !cr4::PAE), Err(Exception::GP0));
    let long_cs = |bench: &mut Bench| bench.cpu.state.segments[seg::CS].attributes |= attr::L;
    assert_eq!(prepare(long_cs), Err(Exception::GP0));
    let narrow_tss = |bench: &mut Bench| bench.cpu.state.tr.attributes = attr::P | 3;
    assert_eq!(prepare(narrow_tss), Err(Exception::GP0));
}

#[test]
fn cr4_refuses_what_the_manual_forbids() {
    const GP: Exec = Err(Exception::GP0);
    let rows: [(Make, u64, u64, Exec); 8] = [
        // CR4 value to toggle from the bench's, CR3 before
        (Bench::long64, cr4::PGE, 0x1000, Ok(())),
        (Bench::long64, cr4::PAE, 0x1000, GP),
        (Bench::long64, cr4::LA57, 0x1000, GP),
        (Bench::long64, cr4::PCIDE, 0x1000, Ok(())),
        (Bench::long64, cr4::PCIDE, 0x1018, GP),
        (Bench::protected32, cr4::PCIDE, 0, GP),
        (Bench::protected32, cr4::LA57, 0, Ok(())),
        (Bench::long64, 1 << 15, 0x1000, GP),
    ];
    for (index, (make, toggled, cr3, outcome)) in rows.into_iter().enumerate() {
        let mut bench = make();
        bench.cpu.env.cpuid = Arc::new(policy("max,+la57").unwrap());
        bench.cpu.state.cr3 = cr3;
        let value = bench.cpu.state.cr4 ^ toggled;
        assert_eq!(write(&mut bench, &MOV_CR4_RAX, value), outcome, "row {index}");
    }
}

#[test]
fn cr3_has_reserved_bits_and_a_bit_that_is_not_stored() {
    let mut bench = Bench::long64();
    assert_eq!(write(&mut bench, &MOV_CR3_RAX, 0x1000 | 1 << 52), Err(Exception::GP0));
    assert_eq!(write(&mut bench, &MOV_CR3_RAX, 0x1000 | 1 << 63), Err(Exception::GP0));
    bench.cpu.state.cr4 |= cr4::PCIDE;
    assert_eq!(write(&mut bench, &MOV_CR3_RAX, 0x1001 | 1 << 63), Ok(()));
    assert_eq!(bench.cpu.state.cr3, 0x1001);
}

#[test]
fn pae_paging_loads_pdptes_and_refuses_reserved_bits() {
    let mut bench = Bench::protected32();
    bench.cpu.state.cr4 |= cr4::PAE;
    let on = bench.cpu.state.cr0 | cr0::PG;
    bench.poke(0x5_0000, &(0x3000u64 | 1 | 1 << 1).to_le_bytes());
    bench.cpu.state.cr3 = 0x5_0000;
    assert_eq!(write(&mut bench, &MOV_CR0_RAX, on), Err(Exception::GP0));
    assert_eq!(bench.cpu.state.cr0 & cr0::PG, 0);
    bench.poke(0x5_0000, &(0x3000u64 | 1).to_le_bytes());
    assert_eq!(write(&mut bench, &MOV_CR0_RAX, on), Ok(()));
    assert_eq!(bench.cpu.state.pdpte[0], 0x3001);
}

#[test]
fn cr8_is_the_task_priority() {
    let mut bench = Bench::long64();
    assert_eq!(write(&mut bench, &MOV_CR8_RAX, 16), Err(Exception::GP0));
    assert_eq!(write(&mut bench, &MOV_CR8_RAX, 9), Ok(()));
    assert_eq!(bench.lapic.cr8.load(Ordering::SeqCst), 9);
}

#[test]
fn lmsw_cannot_leave_protected_mode() {
    let mut bench = Bench::protected32();
    let before = bench.cpu.state.cr0;
    bench.cpu.state.gpr[gpr::RAX] = 0x8;
    // lmsw ax
    bench.execute(&[0x0f, 0x01, 0xf0]).unwrap();
    assert_eq!(bench.cpu.state.cr0, before & !cr0::MP | cr0::TS);
    // clts
    bench.execute(&[0x0f, 0x06]).unwrap();
    assert_eq!(bench.cpu.state.cr0 & cr0::TS, 0);
}

/// Every operation that must forget a translation does: a page is read, taken away behind the
/// CPU's back, and must fault after the operation.
#[test]
fn operations_that_invalidate_do() {
    let invlpg_rbx: &[u8] = &[0x0f, 0x01, 0x3b];
    let invpcid_rcx_rsi: &[u8] = &[0x66, 0x0f, 0x38, 0x82, 0x0e];
    // code, RAX, RCX
    let cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::MP | cr0::PG;
    let cr4 = Bench::long64().cpu.state.cr4;
    let rows: [(&str, &[u8], u64, u64); 11] = [
        ("INVLPG", invlpg_rbx, 0, 0),
        ("INVPCID address", invpcid_rcx_rsi, 0, 0),
        ("INVPCID context", invpcid_rcx_rsi, 0, 1),
        ("INVPCID all with global", invpcid_rcx_rsi, 0, 2),
        ("INVPCID all", invpcid_rcx_rsi, 0, 3),
        ("MOV CR3", &MOV_CR3_RAX, 0x1000, 0),
        ("CR0.WP", &MOV_CR0_RAX, cr0 | cr0::WP, 0),
        ("CR4.PGE", &MOV_CR4_RAX, cr4 | cr4::PGE, 0),
        ("CR4.PSE", &MOV_CR4_RAX, cr4 | cr4::PSE, 0),
        ("CR4.PCIDE", &MOV_CR4_RAX, cr4 | cr4::PCIDE, 0),
        ("CR4.PKE", &MOV_CR4_RAX, cr4 | cr4::PKE, 0),
    ];
    let mov_dl_rbx = [0x8a, 0x13];
    for (name, code, rax, rcx) in rows {
        let mut bench = Bench::long64();
        let registers = &mut bench.cpu.state.gpr;
        registers[gpr::RBX] = DATA;
        registers[gpr::RSI] = 0x30_0800;
        registers[gpr::RAX] = rax;
        registers[gpr::RCX] = rcx;
        bench.poke(0x30_0808, &DATA.to_le_bytes());
        bench.execute(&mov_dl_rbx).unwrap();
        // The bench's page table: entry of DATA, not present. No flush.
        bench.poke(0x4000 + 8 * (DATA >> 12), &[0; 8]);
        assert_eq!(bench.execute(&mov_dl_rbx), Ok(()), "{name}: cached");
        bench.execute(code).unwrap_or_else(|fault| panic!("{name}: {fault:?}"));
        assert_eq!(bench.execute(&mov_dl_rbx), Err(Exception::pf(0)), "{name}");
    }
}

#[test]
fn invpcid_refuses_bad_types_and_descriptors() {
    // type, PCID quadword, address, CR4.PCIDE
    let rows = [
        (4, 0, 0, true, false),
        (1 << 32, 0, 0, true, false),
        (0, 1 << 12, 0, true, false),
        (0, 5, 1 << 56, true, false),
        (1, 5, 1 << 56, true, true),
        (1, 5, 0, false, false),
        (2, 5, 0, false, true),
        (0, 0, DATA, false, true),
    ];
    for (kind, pcid, address, has_pcids, is_fine) in rows {
        let mut bench = Bench::long64();
        if has_pcids {
            bench.cpu.state.cr4 |= cr4::PCIDE;
        }
        bench.cpu.state.gpr[gpr::RCX] = kind;
        bench.cpu.state.gpr[gpr::RSI] = 0x30_0800;
        bench.poke(0x30_0800, &u64::to_le_bytes(pcid));
        bench.poke(0x30_0808, &u64::to_le_bytes(address));
        let outcome = bench.execute(&[0x66, 0x0f, 0x38, 0x82, 0x0e]);
        let expected = if is_fine { Ok(()) } else { Err(Exception::GP0) };
        assert_eq!(outcome, expected, "type {kind:#x}, PCID {pcid:#x}, {address:#x}");
    }
}
