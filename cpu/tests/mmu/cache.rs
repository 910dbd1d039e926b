//! Translations that are remembered: never after the guest asked to forget them, and never for
//! another's rights.
//!
//! Source: SDM Vol. 3A, "Invalidation of TLBs and Paging-Structure Caches".

use cpu::exception::{Exception, Exec};
use cpu::state::{cr0, cr4, gpr};
use cpu::testing::DATA;
use memory::{GuestPhysical, RegionKind};

use crate::paged::{Format, Kind, OPEN, P, PS, Paged, RW, code};

const LINEAR: u64 = 0x7f00_4060_3000;
const OTHER: u64 = DATA + 0x1000;
/// Where INVPCID's descriptor is, in the page of the code.
const DESCRIPTOR: u64 = cpu::testing::CODE + 0x800;

/// A four-level CPU with [`LINEAR`] mapped to [`DATA`], where 1 is; 2 is at [`OTHER`].
fn paged() -> Paged {
    let mut paged = Paged::new(Format::Level4);
    paged.map(LINEAR, 12, DATA | OPEN);
    paged.bench.poke(DATA, &[1; 0x1000]);
    paged.bench.poke(OTHER, &[2; 0x1000]);
    paged.changed();
    paged
}

fn invpcid(paged: &mut Paged, kind: u64, pcid: u64) -> Exec {
    paged.bench.poke(DESCRIPTOR, &pcid.to_le_bytes());
    paged.bench.poke(DESCRIPTOR + 8, &LINEAR.to_le_bytes());
    paged.bench.cpu.state.gpr[gpr::RAX] = kind;
    paged.bench.cpu.state.gpr[gpr::RBX] = DESCRIPTOR;
    // invpcid rax, [rbx]
    paged.execute(&[0x66, 0x0f, 0x38, 0x82, 0x03])
}

fn with_rax(paged: &mut Paged, value: u64, code: &[u8]) -> Exec {
    paged.bench.cpu.state.gpr[gpr::RAX] = value;
    paged.execute(code)
}

type Forget = fn(&mut Paged) -> Exec;
/// Everything that must drop the translation of a page that is not global.
const FORGETTERS: [(&str, Forget); 9] = [
    ("INVLPG", |paged| {
        paged.bench.cpu.state.gpr[gpr::RBX] = LINEAR + 0x321;
        paged.execute(&[0x0f, 0x01, 0x3b])
    }),
    ("MOV CR3", |paged| {
        let cr3 = paged.bench.cpu.state.cr3;
        with_rax(paged, cr3, &[0x0f, 0x22, 0xd8])
    }),
    ("MOV CR4, PGE", |paged| {
        let cr4 = paged.bench.cpu.state.cr4 ^ cr4::PGE;
        with_rax(paged, cr4, &[0x0f, 0x22, 0xe0])
    }),
    ("MOV CR3 with a PCID", |paged| {
        let (cr3, cr4) = (paged.bench.cpu.state.cr3, paged.bench.cpu.state.cr4);
        with_rax(paged, cr4 | cr4::PCIDE, &[0x0f, 0x22, 0xe0])?;
        with_rax(paged, cr3 | 1, &[0x0f, 0x22, 0xd8])
    }),
    ("INVPCID, address", |paged| invpcid(paged, 0, 0)),
    ("INVPCID, context", |paged| invpcid(paged, 1, 0)),
    ("INVPCID, all and global ones", |paged| invpcid(paged, 2, 0)),
    ("INVPCID, all but global ones", |paged| invpcid(paged, 3, 0)),
    ("MOV CR0, PG kept, WP changed", |paged| {
        // SDM: a change of CR0.WP takes effect at once for rights; INVLPG does the rest.
        let cr0 = paged.bench.cpu.state.cr0 ^ cr0::WP;
        with_rax(paged, cr0, &[0x0f, 0x22, 0xc0])?;
        paged.bench.cpu.state.gpr[gpr::RBX] = LINEAR;
        paged.execute(&[0x0f, 0x01, 0x3b])
    }),
];

#[test]
fn an_old_frame_is_never_seen_after_an_invalidation() {
    for (name, forget) in FORGETTERS {
        let mut paged = paged();
        assert_eq!(paged.read(LINEAR), 1);
        paged.access(Kind::Write, LINEAR).unwrap();
        paged.map(LINEAR, 12, OTHER | OPEN);
        forget(&mut paged).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!(paged.read(LINEAR + 1), 2, "{name}");
        paged.bench.cpu.state.gpr[gpr::RAX] = 7;
        paged.access(Kind::Write, LINEAR + 2).unwrap();
        assert_eq!(paged.bench.peek(OTHER), [2, 2, 7], "{name}");
        assert_eq!(paged.bench.peek(DATA + 2), [1], "{name}");
    }
}

#[test]
fn old_rights_are_never_used_after_an_invalidation() {
    for (name, forget) in FORGETTERS {
        let mut paged = paged();
        paged.bench.poke(DATA, &[0x90; 16]);
        for kind in Kind::ALL {
            paged.access(kind, LINEAR).unwrap();
        }
        paged.map(LINEAR, 12, DATA | RW);
        forget(&mut paged).unwrap();
        for (kind, bit) in [(Kind::Read, 0), (Kind::Write, code::W), (Kind::Fetch, code::I)] {
            assert_eq!(paged.access(kind, LINEAR), Err(Exception::pf(bit)), "{name} {kind:?}");
        }
    }
}

#[test]
fn an_absent_page_is_seen_as_soon_as_it_is_mapped() {
    let mut paged = paged();
    paged.map(LINEAR, 12, 0);
    paged.changed();
    assert_eq!(paged.access(Kind::Read, LINEAR), Err(Exception::pf(0)));
    paged.map(LINEAR, 12, OTHER | OPEN);
    assert_eq!(paged.read(LINEAR), 2);
}

#[test]
fn an_upper_entry_that_changes_is_seen_after_invlpg() {
    for shift in Format::Level4.uppers(12) {
        let mut paged = paged();
        assert_eq!(paged.read(LINEAR), 1);
        let entry = paged.entry(LINEAR, shift);
        paged.map(LINEAR, shift, entry & !P);
        FORGETTERS[0].1(&mut paged).unwrap();
        assert_eq!(paged.access(Kind::Read, LINEAR), Err(Exception::pf(0)), "level {shift}");
    }
}

/// INVLPG of any address in a large page drops all of it.
#[test]
fn invlpg_drops_large_pages_whole() {
    let rows = [
        (Format::Level4, 30, 0x3fff_f000),
        (Format::Level4, 21, 0x1f_f000),
        (Format::Pae, 21, 0x1f_f000),
        (Format::Legacy, 22, 0x3f_f000),
    ];
    for (format, shift, elsewhere) in rows {
        let mut paged = Paged::new(format);
        let linear = format.test_address() & !((1 << shift) - 1);
        paged.map(linear, shift, OPEN | PS);
        paged.changed();
        let at = linear + 0x1f_8000;
        paged.bench.poke(0x1f_8000, &[0x11]);
        assert_eq!(paged.read(at), 0x11);
        paged.map(linear, shift, 0);
        paged.bench.cpu.state.gpr[gpr::RBX] = linear + elsewhere;
        paged.execute(&[0x0f, 0x01, 0x3b]).unwrap();
        assert_eq!(paged.access(Kind::Read, at), Err(Exception::pf(0)), "{format:?} {shift}");
    }
}

/// What supervisor code has cached must not serve user code, nor the other way round.
#[test]
fn cached_translations_belong_to_who_made_them() {
    let mut paged = paged();
    paged.map(LINEAR, 12, DATA | P | RW);
    paged.changed();
    paged.access(Kind::Write, LINEAR).unwrap();
    paged.bench.set_cpl(3);
    let denied = Err(Exception::pf(code::P | code::U));
    assert_eq!(paged.access(Kind::Read, LINEAR), denied);
    paged.bench.set_cpl(0);
    assert_eq!(paged.access(Kind::Read, LINEAR), Ok(()));

    // A user page under SMAP: open to user code, and to the supervisor while AC is set.
    paged.map(LINEAR, 12, DATA | OPEN);
    paged.bench.cpu.state.cr4 |= cr4::SMAP;
    paged.changed();
    let (stac, clac) = ([0x0f, 0x01, 0xcb], [0x0f, 0x01, 0xca]);
    for _ in 0..2 {
        paged.bench.set_cpl(3);
        assert_eq!(paged.access(Kind::Write, LINEAR), Ok(()));
        paged.bench.set_cpl(0);
        assert_eq!(paged.access(Kind::Read, LINEAR), Err(Exception::pf(code::P)));
        paged.execute(&stac).unwrap();
        assert_eq!(paged.access(Kind::Read, LINEAR), Ok(()));
        paged.execute(&clac).unwrap();
        assert_eq!(paged.access(Kind::Write, LINEAR), Err(Exception::pf(code::P | code::W)));
    }
}

#[test]
fn a_change_of_write_protect_or_of_the_key_counts_at_once() {
    let mut paged = paged();
    paged.map(LINEAR, 12, DATA | P | 3 << 59);
    paged.changed();
    paged.access(Kind::Write, LINEAR).unwrap();
    let cr0 = paged.bench.cpu.state.cr0 | cr0::WP;
    with_rax(&mut paged, cr0, &[0x0f, 0x22, 0xc0]).unwrap();
    let denied = Err(Exception::pf(code::P | code::W));
    assert_eq!(paged.access(Kind::Write, LINEAR), denied);

    paged.map(LINEAR, 12, DATA | OPEN | 3 << 59);
    paged.bench.cpu.state.cr4 |= cr4::PKE;
    paged.changed();
    assert_eq!(paged.access(Kind::Read, LINEAR), Ok(()));
    let state = &mut paged.bench.cpu.state;
    (state.gpr[gpr::RCX], state.gpr[gpr::RDX]) = (0, 0);
    // wrpkru
    with_rax(&mut paged, 1 << 6, &[0x0f, 0x01, 0xef]).unwrap();
    let denied = Err(Exception::pf(code::P | code::PK));
    assert_eq!(paged.access(Kind::Read, LINEAR), denied);
    with_rax(&mut paged, 2 << 6, &[0x0f, 0x01, 0xef]).unwrap();
    assert_eq!(paged.access(Kind::Read, LINEAR), Ok(()));
    let denied = Err(Exception::pf(code::P | code::W | code::PK));
    assert_eq!(paged.access(Kind::Write, LINEAR), denied);
}

/// More flushes than a tag has epochs: an old translation must not come back.
#[test]
fn translations_do_not_return_when_the_epoch_wraps() {
    let mut paged = paged();
    assert_eq!(paged.read(LINEAR), 1);
    paged.map(LINEAR, 12, 0);
    for _ in 0..3 * 4096 {
        paged.changed();
        assert_eq!(paged.access(Kind::Read, LINEAR), Err(Exception::pf(0)));
    }
}

#[test]
fn a_page_that_becomes_something_else_is_looked_up_again() {
    use cpu::engine::Vcpu;
    let mut paged = paged();
    assert_eq!(paged.read(LINEAR), 1);
    let space = paged.bench.cpu.env.space.clone();
    assert!(space.unmap(GuestPhysical(0)));
    space.map(GuestPhysical(0), DATA, RegionKind::Ram(0)).unwrap();
    // The frame is now the one behind it; the code and the tables stay.
    space.map(GuestPhysical(DATA), 0x1000, RegionKind::Ram(OTHER)).unwrap();
    let rest = DATA + 0x1000;
    let size = cpu::testing::RAM_BYTES - rest;
    space.map(GuestPhysical(rest), size, RegionKind::Ram(rest)).unwrap();
    // A boundary looks at the map.
    paged.bench.cpu.run(0);
    assert_eq!(paged.read(LINEAR), 2);
}
