//! Random states of all modes go into KVM and come out again.

use cpu::engine::Vcpu;
use cpu::state::{InterruptShadow, Segment, State, attr, cr0, cr4, efer, rflags, seg};
use cpu::testing::random::Random;
use cpu::testing::{DATA, GDT};
use cpu::xstate::xcr0;

use super::{MODEL, bench_of, on_kvm, say};
use crate::{Apics, Clocks, KvmCpu, KvmError, KvmVm};

/// States of each mode.
const CASES: u64 = 100;
/// A page of zeros: a page directory, or an empty table of PDPTEs.
const EMPTY_TABLE: u64 = DATA;

/// A mode of the processor, and what makes a state of long mode one of it.
struct Mode {
    name: &'static str,
    /// Also on KVMs without hardware under them.
    is_everywhere: bool,
    enter: fn(&mut State, &mut Random),
}

#[rustfmt::skip]
const MODES: [Mode; 9] = [
    Mode { name: "real", is_everywhere: true, enter: real },
    Mode { name: "virtual-8086", is_everywhere: false, enter: virtual_8086 },
    Mode { name: "16-bit protected", is_everywhere: true, enter: protected_16 },
    Mode { name: "32-bit protected", is_everywhere: true, enter: protected_32 },
    Mode { name: "32-bit paging", is_everywhere: false, enter: paging_32 },
    Mode { name: "PAE paging", is_everywhere: false, enter: pae },
    Mode { name: "16-bit compatibility", is_everywhere: true, enter: compatible_16 },
    Mode { name: "32-bit compatibility", is_everywhere: true, enter: compatible_32 },
    Mode { name: "64-bit", is_everywhere: true, enter: privileged },
];

fn real(state: &mut State, random: &mut Random) {
    without_long_mode(state);
    state.cr0 &= !cr0::PE;
    state.segments = std::array::from_fn(|_| Segment::real(random.bits() as u16));
    state.segments[seg::CS].attributes |= attr::CODE;
    (state.cpl, state.rip) = (0, state.rip & 0xffff);
}

fn virtual_8086(state: &mut State, random: &mut Random) {
    paging_32(state, random);
    state.rflags |= rflags::VM;
    let user = attr::P | attr::S | attr::DPL | attr::RW | attr::ACCESSED;
    state.segments = std::array::from_fn(|_| Segment {
        attributes: user,
        ..Segment::real(random.bits() as u16)
    });
    (state.cpl, state.rip) = (3, state.rip & 0xffff);
}

fn protected_16(state: &mut State, random: &mut Random) {
    protected_32(state, random);
    for segment in &mut state.segments {
        segment.attributes &= !(attr::DB | attr::G);
        segment.limit = u32::from(random.bits() as u16);
        segment.base = u64::from(random.bits() as u32);
    }
}

fn protected_32(state: &mut State, random: &mut Random) {
    without_long_mode(state);
    let cs = &mut state.segments[seg::CS].attributes;
    *cs = *cs & !attr::L | attr::DB;
    privileged(state, random);
    data_segments(state, random);
}

fn paging_32(state: &mut State, random: &mut Random) {
    protected_32(state, random);
    state.cr0 |= cr0::PG;
    state.cr3 = EMPTY_TABLE;
}

fn pae(state: &mut State, random: &mut Random) {
    paging_32(state, random);
    state.cr4 |= cr4::PAE;
}

fn compatible_16(state: &mut State, random: &mut Random) {
    compatible_32(state, random);
    state.segments[seg::CS].attributes &= !attr::DB;
}

fn compatible_32(state: &mut State, random: &mut Random) {
    let cs = &mut state.segments[seg::CS].attributes;
    *cs = *cs & !attr::L | attr::DB;
    state.rip &= 0xffff_ffff;
    privileged(state, random);
    data_segments(state, random);
}

fn without_long_mode(state: &mut State) {
    state.msrs.efer &= !(efer::LME | efer::LMA);
    state.cr0 &= !cr0::PG;
    state.cr4 &= !cr4::PAE;
    state.rip &= 0xffff_ffff;
    for segment in &mut state.segments {
        segment.base &= 0xffff_ffff;
    }
}

/// CPL 0 or 3.
fn privileged(state: &mut State, random: &mut Random) {
    state.cpl = random.pick(&[0, 3]);
    for segment in &mut state.segments {
        let level = u16::from(state.cpl);
        segment.attributes = segment.attributes & !attr::DPL | level << attr::DPL_SHIFT;
        segment.selector = segment.selector & !3 | level;
    }
}

/// Kinds of data segments that there are outside of 64-bit mode; the processor has no use for the
/// granularity of one that is short.
fn data_segments(state: &mut State, random: &mut Random) {
    for number in [seg::ES, seg::DS, seg::FS, seg::GS] {
        let segment = &mut state.segments[number];
        let kind = random.pick(&[
            attr::ACCESSED,
            attr::ACCESSED | attr::RW,
            attr::ACCESSED | attr::DC,
            attr::ACCESSED | attr::DC | attr::RW,
        ]);
        segment.attributes = segment.attributes & !attr::TYPE | kind;
        segment.base = u64::from(random.bits() as u32);
        if random.chance(50) {
            segment.limit = random.bits() as u32 & 0xf_ffff;
            segment.attributes &= !attr::G;
        }
        if random.chance(20) {
            segment.attributes ^= attr::AVL;
        }
        if random.chance(20) {
            *segment = Segment { attributes: attr::UNUSABLE, ..Segment::default() };
        }
    }
}

fn canonical(random: &mut Random) -> u64 {
    (random.bits() as i64 >> 17) as u64
}

/// `state`, of long mode, with everything changed that may be anything in each mode.
pub(super) fn shaken(mut state: State, features: u64, random: &mut Random) -> State {
    state.gpr = std::array::from_fn(|_| random.operand());
    state.rip = canonical(random);
    let fixed = rflags::FIXED | rflags::VM | rflags::TF;
    state.rflags = random.bits() & rflags::ALL & !fixed | rflags::FIXED;
    for segment in [seg::FS, seg::GS] {
        state.segments[segment].base = canonical(random);
    }
    (state.gdtr.base, state.gdtr.limit) = (canonical(random), random.bits() as u16);
    (state.idtr.base, state.idtr.limit) = (canonical(random), random.bits() as u16);
    let ldt = Segment { selector: 0x28, base: GDT, limit: 0x2f, attributes: attr::P | 2 };
    let none = Segment { attributes: attr::UNUSABLE, ..Segment::default() };
    state.ldtr = random.pick(&[ldt, none]);
    state.tr =
        Segment { selector: 0x30, base: canonical(random), limit: 0x67, attributes: attr::P | 0xb };
    control(&mut state, random);
    debug(&mut state, random);
    msrs(&mut state, random);
    vectors(&mut state, features, random);
    state.shadow =
        random.pick(&[InterruptShadow::None, InterruptShadow::Sti, InterruptShadow::MovSs]);
    state.nmi_blocked = random.chance(30);
    // Two may wait where none is blocked.
    state.nmis_pending = random.pick(&[0, 0, 1, if state.nmi_blocked { 1 } else { 2 }]);
    state
}

fn control(state: &mut State, random: &mut Random) {
    let free = cr0::MP | cr0::EM | cr0::TS | cr0::NE | cr0::WP | cr0::AM | cr0::CD;
    state.cr0 = state.cr0 & !free | random.bits() & free;
    if state.cr0 & cr0::CD != 0 && random.chance(50) {
        state.cr0 |= cr0::NW;
    }
    let free = cr4::VME
        | cr4::PVI
        | cr4::TSD
        | cr4::DE
        | cr4::PSE
        | cr4::MCE
        | cr4::PGE
        | cr4::PCE
        | cr4::OSFXSR
        | cr4::OSXMMEXCPT;
    state.cr4 = state.cr4 & !free | random.bits() & free;
    state.cr2 = random.bits();
    state.msrs.efer ^= random.bits() & (efer::SCE | efer::NXE);
}

fn debug(state: &mut State, random: &mut Random) {
    for breakpoint in &mut state.dr[..4] {
        *breakpoint = canonical(random);
    }
    // BS, BT, BD and the four breakpoints; all else of DR6 is fixed.
    state.dr[6] = 0xffff_0ff0 | random.bits() & 0xe00f;
    // The fields of the breakpoints, enabled or not, GD, LE and GE; bit 10 is fixed.
    state.dr[7] = 0x400 | random.bits() & 0xffff_23ff;
}

fn msrs(state: &mut State, random: &mut Random) {
    let msrs = &mut state.msrs;
    (msrs.lstar, msrs.cstar, msrs.kernel_gs_base) =
        (canonical(random), canonical(random), canonical(random));
    (msrs.star, msrs.sfmask) = (random.bits(), random.bits() & 0xffff_ffff);
    // AMD's processors have 32 bits of the last two, and KVM keeps no more for their guests.
    let mut low = || random.bits() & 0xffff_ffff;
    (msrs.sysenter_cs, msrs.sysenter_esp, msrs.sysenter_eip) = (low() & 0xffff, low(), low());
    let memory_types = [0, 1, 4, 5, 6, 7];
    msrs.pat = u64::from_le_bytes(std::array::from_fn(|_| random.pick(&memory_types)));
}

/// x87 to AVX, as far as `features` of XCR0 are there.
fn vectors(state: &mut State, features: u64, random: &mut Random) {
    let fpu = &mut state.fpu;
    let bytes = if features & xcr0::AVX != 0 { 32 } else { 16 };
    for register in &mut fpu.zmm[..16] {
        register[..bytes].fill_with(|| random.byte());
    }
    for register in &mut fpu.x87 {
        register[..10].fill_with(|| random.byte());
    }
    (fpu.fcw, fpu.fsw, fpu.ftw) = (0x37f, (random.below(8) as u16) << 11, random.byte());
    fpu.mxcsr = 0x1f80 | random.bits() as u32 & 0x603f;
    if features != 0 {
        let all = [xcr0::X87, xcr0::X87 | xcr0::SSE, xcr0::X87 | xcr0::SSE | xcr0::AVX];
        state.xcr0 = random.pick(&all) & features;
    }
    if features & xcr0::PKRU != 0 {
        state.pkru = random.bits() as u32;
    }
}

/// The state without what goes on by itself, or is nobody's outside of the kernel.
pub(super) fn comparable(state: &State) -> String {
    let mut state = state.clone();
    (state.fpu.fcs, state.fpu.fds) = (0, 0);
    // Which of the two shadows it is, AMD's processors do not say.
    if state.shadow != InterruptShadow::None {
        state.shadow = InterruptShadow::Sti;
    }
    // Of a register without a segment only that counts, and the selector.
    for segment in state.segments.iter_mut().chain([&mut state.ldtr]) {
        if segment.attributes & attr::UNUSABLE != 0 {
            *segment = Segment {
                selector: segment.selector,
                attributes: attr::UNUSABLE,
                ..Segment::default()
            };
        }
    }
    format!("{state:#x?}")
}

/// The model of the tests with what of vector registers this host's KVM gives.
fn widest_model() -> String {
    let Ok(vm) = KvmVm::new(Clocks::Kernel, Apics::Machine) else { return MODEL.to_owned() };
    // CPUID.1:ECX and CPUID.7:ECX.
    let all = [("xsave", 1, 26), ("avx", 1, 28), ("pku", 7, 3)];
    let given = all.into_iter().filter(|&(_, leaf, bit)| vm.gives(leaf, 0, 2, bit));
    given.fold(MODEL.to_owned(), |model, (name, ..)| format!("{model},+{name}"))
}

/// What of `state` does not come out of the kernel as it went in.
fn lost(cpu: &mut KvmCpu, state: &State, before: &State) -> Result<Vec<String>, KvmError> {
    cpu.set_state(state.clone());
    cpu.put()?;
    cpu.cpu_mut().state = before.clone();
    cpu.fetch()?;
    Ok(differences(state, cpu.state()))
}

/// What of `state` is something else in `found`.
pub(super) fn differences(state: &State, found: &State) -> Vec<String> {
    let (expected, found) = (comparable(state), comparable(found));
    let pairs = expected.lines().zip(found.lines()).filter(|(one, other)| one != other);
    pairs.map(|(one, other)| format!("in {}, out {}", one.trim(), other.trim())).collect()
}

#[test]
fn states_of_all_modes_come_out_as_they_went_in() {
    let bench = bench_of(&widest_model());
    let features = bench.cpu.env.cpuid.xcr0_supported();
    let Some(mut cpu) = on_kvm(&bench) else { return };
    // A KVM without hardware under it need not know modes that kernels have left behind.
    let is_good = crate::probe().is_ok();
    let mut random = Random::new(0x6b76_6d00);
    for mode in &MODES {
        for case in 0..CASES {
            let mut state = shaken(bench.cpu.state.clone(), features, &mut random);
            (mode.enter)(&mut state, &mut random);
            match lost(&mut cpu, &state, &bench.cpu.state) {
                Ok(lost) if lost.is_empty() => {}
                outcome if is_good || mode.is_everywhere => {
                    panic!("{}, case {case}: {outcome:#?}", mode.name)
                }
                outcome => {
                    say(&format!("skipped: {} on this KVM: {outcome:?}", mode.name));
                    break;
                }
            }
        }
    }
}
