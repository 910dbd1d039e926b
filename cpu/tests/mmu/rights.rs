//! Every combination of permission bits, controls and accesses, against SDM Vol. 3A, "Determination
//! of Access Rights", "Protection Keys" and "Page-Fault Exceptions", in the order of their text.

use cpu::exception::Exception;
use cpu::state::{cr0, cr4, efer, rflags};
use cpu::testing::DATA;

use crate::paged::{A, D, Format, Kind, OPEN, P, Paged, RW, US, XD, code};

/// The protection key of the page under test.
const KEY: u64 = 5;
/// Access-disable and write-disable.
const AD: u64 = 1;
const WD: u64 = 2;

/// The controls of protection keys.
#[derive(Clone, Copy, Debug)]
struct Keys {
    pke: bool,
    pks: bool,
    /// The two bits of [`KEY`] in PKRU and in IA32_PKRS.
    pkru: u64,
    pkrs: u64,
}

const KEYS: [Keys; 7] = [
    Keys { pke: false, pks: false, pkru: AD, pkrs: AD },
    Keys { pke: true, pks: true, pkru: 0, pkrs: 0 },
    Keys { pke: true, pks: false, pkru: AD, pkrs: AD },
    Keys { pke: true, pks: true, pkru: WD, pkrs: 0 },
    Keys { pke: false, pks: true, pkru: AD, pkrs: AD },
    Keys { pke: true, pks: true, pkru: 0, pkrs: WD },
    Keys { pke: true, pks: true, pkru: AD | WD, pkrs: WD },
];

#[derive(Clone, Copy, Debug)]
struct Case {
    format: Format,
    /// The rights in one entry above the page's.
    upper: u64,
    /// The rights in the page's own entry.
    leaf: u64,
    kind: Kind,
    cpl: u8,
    /// CR0.WP, CR4.SMEP, CR4.SMAP, EFLAGS.AC, EFER.NXE.
    wp: bool,
    smep: bool,
    smap: bool,
    ac: bool,
    nxe: bool,
    keys: Keys,
}

impl Case {
    /// The error code of the page fault, if there is one.
    fn expected(&self) -> Option<u16> {
        let has_xd = (self.upper | self.leaf) & XD != 0;
        let cause = if has_xd && !self.nxe {
            code::P | code::RSVD
        } else {
            let key = if self.key_denies() { code::PK } else { 0 };
            if self.is_permitted(has_xd) && key == 0 {
                return None;
            }
            code::P | key
        };
        let fetch_is_told = self.smep || self.nxe && self.format != Format::Legacy;
        let kind = match self.kind {
            Kind::Read => 0,
            Kind::Write => code::W,
            Kind::Fetch if fetch_is_told => code::I,
            Kind::Fetch => 0,
        };
        Some(cause | kind | if self.cpl == 3 { code::U } else { 0 })
    }

    /// "Determination of Access Rights", without keys.
    fn is_permitted(&self, has_xd: bool) -> bool {
        let is_user_address = self.upper & self.leaf & US != 0;
        let is_writable = self.upper & self.leaf & RW != 0;
        match (self.cpl, is_user_address, self.kind) {
            // Supervisor-mode accesses.
            (0, false, Kind::Read) => true,
            (0, true, Kind::Read) => !self.smap || self.ac,
            (0, false, Kind::Write) => !self.wp || is_writable,
            (0, true, Kind::Write) => (!self.smap || self.ac) && (!self.wp || is_writable),
            (0, false, Kind::Fetch) => !has_xd,
            (0, true, Kind::Fetch) => !self.smep && !has_xd,
            // User-mode accesses.
            (_, false, _) => false,
            (_, true, Kind::Read) => true,
            (_, true, Kind::Write) => is_writable,
            (_, true, Kind::Fetch) => !has_xd,
        }
    }

    /// "Protection Keys".
    fn key_denies(&self) -> bool {
        if !self.format.is_long() || self.kind == Kind::Fetch {
            return false;
        }
        let is_user_address = self.upper & self.leaf & US != 0;
        let (is_on, bits) = match is_user_address {
            true => (self.keys.pke, self.keys.pkru),
            false => (self.keys.pks, self.keys.pkrs),
        };
        let write_is_disabled =
            bits & WD != 0 && self.kind == Kind::Write && (self.cpl == 3 || self.wp);
        is_on && (bits & AD != 0 || write_is_disabled)
    }

    fn apply(&self, paged: &mut Paged) {
        let set = |register: &mut u64, bit: u64, on: bool| {
            *register = *register & !bit | if on { bit } else { 0 };
        };
        let state = &mut paged.bench.cpu.state;
        set(&mut state.cr0, cr0::WP, self.wp);
        set(&mut state.cr4, cr4::SMEP, self.smep);
        set(&mut state.cr4, cr4::SMAP, self.smap);
        set(&mut state.rflags, rflags::AC, self.ac);
        set(&mut state.msrs.efer, efer::NXE, self.nxe);
        set(&mut state.cr4, cr4::PKE, self.keys.pke);
        set(&mut state.cr4, cr4::PKS, self.keys.pks);
        // Every other key denies everything: they must not be looked at.
        let others = !(3 << (2 * KEY)) & 0xffff_ffff;
        state.pkru = (others | self.keys.pkru << (2 * KEY)) as u32;
        state.msrs.pkrs = others | self.keys.pkrs << (2 * KEY);
        paged.bench.set_cpl(self.cpl);
        paged.changed();
    }
}

/// Runs `case` with its rights for upper entries at level `upper_shift`.
fn check(paged: &mut Paged, case: &Case, upper_shift: u32) {
    let linear = case.format.test_address();
    let key = if case.format.is_long() { KEY << 59 } else { 0 };
    let leaf = DATA | P | case.leaf | key;
    let open = paged.entry(linear, upper_shift) & 0x000f_ffff_ffff_f000 | OPEN;
    paged.map(linear, upper_shift, open & !(RW | US) | case.upper);
    paged.map(linear, 12, leaf);
    case.apply(paged);
    paged.bench.cpu.state.cr2 = 0;

    let expected = case.expected();
    let outcome = paged.access(case.kind, linear + 0x123);
    assert_eq!(outcome.err(), expected.map(Exception::pf), "{case:x?} level {upper_shift}");
    let cr2 = if expected.is_some() { linear + 0x123 } else { 0 };
    assert_eq!(paged.bench.cpu.state.cr2, cr2, "{case:x?}");
    let accessed = if case.kind == Kind::Write { A | D } else { A };
    let bits = if expected.is_some() { 0 } else { accessed };
    assert_eq!(paged.entry(linear, 12), leaf | bits, "{case:x?} level {upper_shift}");
    paged.map(linear, upper_shift, open);
}

fn rights(format: Format) -> Vec<u64> {
    let base = [0, RW, US, RW | US];
    match format {
        Format::Legacy => base.to_vec(),
        _ => base.iter().flat_map(|&bits| [bits, bits | XD]).collect(),
    }
}

/// All settings of the five controls.
fn controls() -> impl Iterator<Item = [bool; 5]> {
    (0..32).map(|n| std::array::from_fn(|bit| n >> bit & 1 != 0))
}

fn check_all(format: Format) {
    let mut paged = Paged::new(format);
    let linear = format.test_address();
    paged.map(linear, 12, DATA | OPEN);
    // A NOP at the address and its page for fetches.
    paged.bench.poke(DATA, &[0x90; 0x1000]);
    paged.bench.cpu.state.gpr[cpu::state::gpr::RAX] = 0x90;
    let uppers: Vec<u32> = format.uppers(12).collect();
    let keys = if format.is_long() { &KEYS[..] } else { &KEYS[..1] };
    let rights = rights(format);
    let mut count = 0;
    for [wp, smep, smap, ac, nxe] in controls() {
        for (&upper, &leaf) in rights.iter().flat_map(|u| rights.iter().map(move |l| (u, l))) {
            for (kind, cpl) in Kind::ALL.into_iter().flat_map(|kind| [(kind, 0), (kind, 3)]) {
                for &keys in keys {
                    let case =
                        Case { format, upper, leaf, kind, cpl, wp, smep, smap, ac, nxe, keys };
                    // Each level has its turn.
                    check(&mut paged, &case, uppers[count % uppers.len()]);
                    count += 1;
                }
            }
        }
    }
    assert!(count >= 32 * 16 * 6, "{count} cases");
}

#[test]
fn legacy_paging() {
    check_all(Format::Legacy);
}

#[test]
fn pae_paging() {
    check_all(Format::Pae);
}

#[test]
fn four_level_paging() {
    check_all(Format::Level4);
}

#[test]
fn five_level_paging() {
    check_all(Format::Level5);
}
