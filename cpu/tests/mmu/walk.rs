//! The shape of the walk: reserved bits, page sizes, absent entries, accessed and dirty bits.
//!
//! Source: SDM Vol. 3A, "32-Bit Paging", "PAE Paging", "4-Level Paging and 5-Level Paging",
//! "Page-Fault Exceptions", "Accessed and Dirty Flags".

use cpu::exception::Exception;
use cpu::state::{Segment, TableRegister, attr, cr4, efer, gpr, rflags, seg};
use cpu::testing::DATA;
use memory::{GuestPhysical, RegionKind};

use crate::paged::{A, D, Format, Kind, OPEN, P, PS, Paged, RW, US, code};

/// Whether bit `bit` of an entry at level `shift` must be zero, as the manual's tables of entry
/// formats say.
fn is_reserved(paged: &Paged, format: Format, shift: u32, maps: bool, bit: u32) -> bool {
    let physical_bits = paged.bench.cpu.env.cpuid.physical_bits();
    let nxe = paged.bench.cpu.state.msrs.efer & efer::NXE != 0;
    if format == Format::Legacy {
        // Bits 20 to 13 of a 4-MByte page's entry are bits 39 to 32 of its address.
        let is_high_address = (13..=20).contains(&bit) && bit - 13 + 32 >= physical_bits;
        return maps && shift == 22 && (bit == 21 || is_high_address);
    }
    match bit {
        63 => !nxe,
        52..=62 => format == Format::Pae,
        _ if bit >= physical_bits => true,
        7 => shift >= 39,
        _ => maps && shift > 12 && (13..shift).contains(&bit),
    }
}

/// The bits of an entry that can be set without leading the walk elsewhere.
fn candidates(paged: &Paged, format: Format, shift: u32, maps: bool) -> Vec<u32> {
    if maps {
        let last = if format == Format::Legacy { 31 } else { 63 };
        return (3..=last).collect();
    }
    let physical_bits = paged.bench.cpu.env.cpuid.physical_bits();
    match format {
        Format::Legacy => vec![3, 4, 6, 8, 9, 10, 11],
        // Bit 7 says that the entry maps a page where it is not reserved.
        _ if shift >= 39 => [3, 4, 7, 9, 10, 11].into_iter().chain(physical_bits..64).collect(),
        _ => [3, 4, 9, 10, 11].into_iter().chain(physical_bits..64).collect(),
    }
}

fn check_reserved(paged: &mut Paged, format: Format, leaf_shift: u32, shift: u32) {
    let linear = format.test_address();
    let maps = shift == leaf_shift;
    let good = paged.entry(linear, shift);
    for bit in candidates(paged, format, shift, maps) {
        let is_reserved = is_reserved(paged, format, shift, maps, bit);
        paged.map(linear, shift, good | 1 << bit);
        paged.changed();
        let outcome = paged.access(Kind::Read, linear);
        let expected = is_reserved.then_some(Exception::pf(code::P | code::RSVD));
        assert_eq!(outcome.err(), expected, "{format:?}, level {shift}, bit {bit}");
    }
    paged.map(linear, shift, good);
}

#[test]
fn reserved_bits_of_every_level_fault() {
    for format in Format::ALL {
        for nxe in [efer::NXE, 0] {
            for &leaf_shift in format.shifts().iter().filter(|&&shift| shift <= 30) {
                if format == Format::Pae && leaf_shift == 30 {
                    continue;
                }
                let mut paged = Paged::new(format);
                paged.bench.cpu.state.msrs.efer =
                    paged.bench.cpu.state.msrs.efer & !efer::NXE | nxe;
                let size = if leaf_shift == 12 { 0 } else { PS };
                paged.map(format.test_address(), leaf_shift, OPEN | size);
                for shift in format.uppers(leaf_shift).chain([leaf_shift]) {
                    check_reserved(&mut paged, format, leaf_shift, shift);
                }
            }
        }
    }
}

#[test]
fn a_pdpte_with_reserved_bits_is_refused_when_cr3_is_loaded() {
    const MOV_CR3_EAX: [u8; 3] = [0x0f, 0x22, 0xd8];
    let table = 0x90_0000;
    for bit in 0..64 {
        let mut paged = Paged::new(Format::Pae);
        let before = paged.bench.cpu.state.pdpte;
        for n in 0..4 {
            paged.bench.poke(table + 8 * n, &before[n as usize].to_le_bytes());
        }
        paged.bench.poke(table + 8, &(P | 1 << bit).to_le_bytes());
        paged.bench.cpu.state.gpr[gpr::RAX] = table;
        let outcome = paged.execute(&MOV_CR3_EAX);
        let physical_bits = paged.bench.cpu.env.cpuid.physical_bits();
        let is_reserved = matches!(bit, 1 | 2 | 5..=8) || bit >= physical_bits;
        assert_eq!(outcome.err(), is_reserved.then_some(Exception::GP0), "bit {bit}");
        let changed = paged.bench.cpu.state.pdpte != before;
        assert_eq!(changed, !is_reserved, "bit {bit}");
        assert_eq!(paged.bench.cpu.state.cr3 == table, !is_reserved, "bit {bit}");
    }
}

/// The error code tells the access also where nothing is present, and nothing is marked.
#[test]
fn absent_entries_fault_at_every_level() {
    let kinds = [(Kind::Read, 0), (Kind::Write, code::W), (Kind::Fetch, code::I)];
    for format in Format::ALL {
        let linear = format.test_address();
        for shift in format.uppers(12).chain([12]) {
            let mut paged = Paged::new(format);
            paged.map(linear, 12, DATA | OPEN);
            let absent = paged.entry(linear, shift) & !P;
            paged.map(linear, shift, absent);
            paged.changed();
            for ((kind, bit), cpl) in kinds.into_iter().flat_map(|row| [(row, 0), (row, 3)]) {
                paged.bench.set_cpl(cpl);
                let bit = if format == Format::Legacy && kind == Kind::Fetch { 0 } else { bit };
                let user = if cpl == 3 { code::U } else { 0 };
                let outcome = paged.access(kind, linear + 7);
                assert_eq!(outcome, Err(Exception::pf(bit | user)), "{format:?}, level {shift}");
                assert_eq!(paged.bench.cpu.state.cr2, linear + 7);
                assert_eq!(paged.entry(linear, shift), absent, "{format:?}, level {shift}");
            }
        }
    }
}

#[test]
fn pages_of_every_size_lead_where_they_say() {
    // format, leaf level, entry, offset in the page, physical address
    let rows = [
        (Format::Legacy, 22, 0x40_0000, 0x21_2345, 0x61_2345),
        (Format::Pae, 21, 0x20_0000, 0x1_2345, 0x21_2345),
        (Format::Level4, 21, 0x20_0000, 0x1f_ffff, 0x3f_ffff),
        (Format::Level4, 30, 0, 0x54_3210, 0x54_3210),
        (Format::Level5, 21, 0x20_0000, 0x1_2345, 0x21_2345),
        (Format::Level5, 30, 0, 0x54_3210, 0x54_3210),
        (Format::Level4, 12, 0x5f_f000, 0xfff, 0x5f_ffff),
        (Format::Legacy, 12, 0x5f_f000, 0xfff, 0x5f_ffff),
    ];
    for (format, shift, entry, offset, physical) in rows {
        let mut paged = Paged::new(format);
        let linear = format.test_address() & !((1 << shift) - 1);
        let size = if shift == 12 { 0 } else { PS };
        paged.map(linear, shift, entry | OPEN | size);
        paged.changed();
        paged.bench.poke(physical, &[0xa5]);
        assert_eq!(paged.read(linear + offset), 0xa5, "{format:?}, level {shift}");
        assert_eq!(paged.entry(linear, shift), entry | OPEN | size | A);
        paged.access(Kind::Write, linear + offset).unwrap();
        assert_eq!(paged.entry(linear, shift), entry | OPEN | size | A | D);
    }
}

#[test]
fn without_pse_bit_7_of_a_directory_entry_is_ignored() {
    let mut paged = Paged::new(Format::Legacy);
    let linear = Format::Legacy.test_address();
    paged.map(linear, 12, DATA | OPEN);
    let table = paged.entry(linear, 22);
    paged.map(linear, 22, table | PS);
    paged.bench.poke(DATA, &[0x77]);
    paged.bench.cpu.state.cr4 &= !cr4::PSE;
    paged.changed();
    assert_eq!(paged.read(linear), 0x77);
}

#[test]
fn pse_36_reaches_above_4_gigabytes() {
    let mut paged = Paged::new(Format::Legacy);
    let linear = Format::Legacy.test_address() & !0x3f_ffff;
    let space = paged.bench.cpu.env.space.clone();
    // An alias of the first 4 MiB; bits 39 to 32 of the address are 5.
    space.map(GuestPhysical(5 << 32), 4 << 20, RegionKind::Ram(0)).unwrap();
    paged.map(linear, 22, 5 << 13 | OPEN | PS);
    paged.bench.poke(DATA, &[0x36]);
    paged.changed();
    assert_eq!(paged.read(linear + DATA), 0x36);
}

#[test]
fn without_paging_linear_addresses_are_physical() {
    let mut paged = Paged::new(Format::Legacy);
    paged.bench.cpu.state.cr0 &= !cpu::state::cr0::PG;
    paged.changed();
    paged.bench.poke(DATA + 5, &[0x42]);
    assert_eq!(paged.read(DATA + 5), 0x42);
}

#[test]
fn a_read_marks_accessed_in_every_entry_and_a_write_dirty_in_the_last() {
    for format in Format::ALL {
        let mut paged = Paged::new(format);
        let linear = format.test_address();
        paged.map(linear, 12, DATA | OPEN);
        paged.changed();
        for (kind, leaf_bits) in [(Kind::Read, A), (Kind::Write, A | D), (Kind::Read, A | D)] {
            paged.access(kind, linear).unwrap();
            assert_eq!(paged.entry(linear, 12) & (A | D), leaf_bits, "{format:?} {kind:?}");
            for shift in format.uppers(12) {
                assert_eq!(paged.entry(linear, shift) & (A | D), A, "{format:?} level {shift}");
            }
        }
    }
}

/// A cached translation of a read must not let a write pass without the dirty bit.
#[test]
fn a_write_behind_a_read_marks_dirty_though_the_page_is_cached() {
    let mut paged = Paged::new(Format::Level4);
    let linear = Format::Level4.test_address();
    paged.map(linear, 12, DATA | OPEN);
    paged.changed();
    paged.access(Kind::Read, linear).unwrap();
    paged.access(Kind::Write, linear + 8).unwrap();
    assert_eq!(paged.entry(linear, 12) & (A | D), A | D);
}

/// Tables in ROM can be walked; their bits stay.
#[test]
fn tables_in_rom_are_walked_and_not_marked() {
    let mut paged = Paged::new(Format::Level4);
    let linear = Format::Level4.test_address();
    paged.map(linear, 12, DATA | OPEN);
    let space = paged.bench.cpu.env.space.clone();
    // The last table, seen through an alias that is ROM.
    let table = paged.entry(linear, 21) & !0xfff;
    space.map(GuestPhysical(1 << 32), 0x1000, RegionKind::Rom(table)).unwrap();
    paged.map(linear, 21, 1 << 32 | OPEN);
    paged.bench.poke(DATA, &[0x5a]);
    paged.changed();
    assert_eq!(paged.read(linear), 0x5a);
    paged.access(Kind::Write, linear).unwrap();
    let entry = u64::from_le_bytes(paged.bench.peek(table + 8 * ((linear >> 12) & 0x1ff)));
    assert_eq!(entry, DATA | OPEN);
}

/// MOV DS, AX with a GDT in the page under test: an implicit supervisor access.
fn load_ds(paged: &mut Paged, table: u64) -> Result<(), Exception> {
    paged.bench.cpu.state.gdtr = TableRegister { base: table, limit: 0xff };
    let rpl = u64::from(paged.bench.cpu.state.cpl);
    paged.bench.cpu.state.gpr[gpr::RAX] = 0x8 | rpl;
    paged.execute(&[0x8e, 0xd8])
}

#[test]
fn descriptors_are_read_with_supervisor_rights_and_marked_accessed() {
    let linear = Format::Level4.test_address();
    // DPL-3 writable data, not yet accessed.
    let descriptor = 0x00cf_f200_0000_ffff_u64;
    // rights of the page, CR4.SMAP, EFLAGS.AC, CPL, page fault
    let rows = [
        (P | RW, 0, 0, 3, None),
        (OPEN, 0, 0, 3, None),
        (P | RW, cr4::SMAP, 0, 3, None),
        (OPEN, cr4::SMAP, 0, 3, Some(code::P)),
        (OPEN, cr4::SMAP, rflags::AC, 0, Some(code::P)),
        (0, 0, 0, 3, Some(0)),
    ];
    for (rights, smap, ac, cpl, fault) in rows {
        let mut paged = Paged::new(Format::Level4);
        paged.bench.poke(DATA + 8, &descriptor.to_le_bytes());
        paged.map(linear, 12, DATA | rights);
        paged.bench.cpu.state.cr4 |= smap;
        paged.bench.cpu.state.rflags |= ac;
        paged.bench.set_cpl(cpl);
        paged.changed();
        let outcome = load_ds(&mut paged, linear);
        assert_eq!(outcome.err(), fault.map(Exception::pf), "{rights:#x} {smap:#x} {ac:#x} {cpl}");
        if fault.is_none() {
            let marked = descriptor | 1 << 40;
            assert_eq!(u64::from_le_bytes(paged.bench.peek(DATA + 8)), marked);
            assert_eq!(paged.entry(linear, 12) & (A | D), A | D);
            assert!(paged.bench.cpu.state.segments[seg::DS].has(attr::P));
        }
    }
}

#[test]
fn a_segment_base_shifts_the_address_that_pages_translate() {
    let mut paged = Paged::new(Format::Pae);
    let linear = Format::Pae.test_address();
    paged.map(linear, 12, DATA | P | US);
    paged.bench.poke(DATA + 0x10, &[0x99]);
    let ds = &mut paged.bench.cpu.state.segments[seg::DS];
    *ds = Segment { base: linear - 0x1000, ..*ds };
    paged.changed();
    assert_eq!(paged.read(0x1010), 0x99);
    let outcome = paged.access(Kind::Read, 0x2010);
    assert_eq!(outcome, Err(Exception::pf(0)));
    assert_eq!(paged.bench.cpu.state.cr2, linear + 0x1010);
}
