//! On a host with /dev/kvm: state that goes in comes out again, and small guests that do on KVM
//! what they do on the interpreter. A host without it says that it skips.

use std::io::Write;
use std::sync::Arc;

use cpu::engine::{Vcpu, VmExit};
use cpu::state::{InterruptShadow, State, rflags, seg};
use cpu::testing::random::Random;
use cpu::testing::{Bench, CODE, DATA};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::{Clocks, KvmCpu, KvmVm};

/// The model of the CPUs: what every KVM can give.
const MODEL: &str = "x86-64-v2";
const CASES: u64 = 200;

/// A machine with the bench's memory and CPU on KVM; `None` where there is none.
fn on_kvm(bench: &Bench) -> Option<KvmCpu> {
    let vm = match KvmVm::new(Clocks::Kernel) {
        Ok(vm) => vm,
        Err(error) => {
            // Past the harness, which shows what a test prints only if it fails.
            let _ = writeln!(std::io::stderr(), "\nskipped: no KVM on this host: {error}");
            return None;
        }
    };
    let mut cpu = KvmCpu::new(&vm, bench.cpu.env.clone()).expect("a CPU");
    cpu.set_state(bench.cpu.state.clone());
    Some(cpu)
}

fn bench() -> Bench {
    let mut bench = Bench::with_cpu(MODEL).expect("a model").in_long64();
    // What the model has of it.
    bench.cpu.state.xcr0 = bench.cpu.env.cpuid.xcr0_supported().max(1);
    if bench.cpu.env.cpuid.xcr0_supported() == 0 {
        bench.cpu.state.cr4 &= !cpu::state::cr4::OSXSAVE;
    }
    bench.control_changed();
    bench
}

fn canonical(random: &mut Random) -> u64 {
    (random.bits() as i64 >> 17) as u64
}

/// `state` with everything changed that may be anything.
fn shaken(mut state: State, random: &mut Random) -> State {
    state.gpr = std::array::from_fn(|_| random.operand());
    state.rip = canonical(random);
    let free = rflags::STATUS | rflags::DF | rflags::IF | rflags::AC | rflags::ID | rflags::NT;
    state.rflags = random.bits() & free | rflags::FIXED;
    for segment in [seg::FS, seg::GS] {
        state.segments[segment].base = canonical(random);
    }
    (state.gdtr.base, state.gdtr.limit) = (canonical(random), random.bits() as u16);
    (state.idtr.base, state.idtr.limit) = (canonical(random), random.bits() as u16);
    state.cr2 = random.bits();
    for breakpoint in &mut state.dr[..4] {
        *breakpoint = canonical(random);
    }
    state.dr[6] = 0xffff_0ff0 | random.bits() & 0xf;
    let msrs = &mut state.msrs;
    (msrs.lstar, msrs.cstar, msrs.kernel_gs_base) =
        (canonical(random), canonical(random), canonical(random));
    (msrs.star, msrs.sfmask) = (random.bits(), random.bits() & 0xffff_ffff);
    (msrs.sysenter_cs, msrs.sysenter_esp) = (random.bits() & 0xffff, canonical(random));
    msrs.pat = 0x0001_0406_0007_0406;
    let fpu = &mut state.fpu;
    for register in &mut fpu.zmm[..16] {
        register[..16].copy_from_slice(&random.bits().to_le_bytes().repeat(2));
    }
    for register in &mut fpu.x87 {
        register[..8].copy_from_slice(&random.bits().to_le_bytes());
        register[8..10].copy_from_slice(&(random.bits() as u16).to_le_bytes());
    }
    (fpu.fcw, fpu.fsw, fpu.ftw) = (0x37f, (random.below(8) as u16) << 11, random.bits() as u8);
    fpu.mxcsr = 0x1f80 | random.bits() as u32 & 0x603f;
    state.shadow =
        random.pick(&[InterruptShadow::None, InterruptShadow::Sti, InterruptShadow::MovSs]);
    state.nmi_blocked = random.chance(30);
    state.nmis_pending = u8::from(random.chance(30));
    state
}

/// The state without what goes on by itself, or is nobody's outside of the kernel.
fn comparable(state: &State) -> String {
    let mut state = state.clone();
    (state.fpu.fcs, state.fpu.fds) = (0, 0);
    // Which of the two shadows it is, AMD's processors do not say.
    if state.shadow != InterruptShadow::None {
        state.shadow = InterruptShadow::Sti;
    }
    format!("{state:#x?}")
}

#[test]
fn state_that_goes_in_comes_out() {
    let bench = bench();
    let Some(mut cpu) = on_kvm(&bench) else { return };
    let mut random = Random::new(0x6b76_6d00);
    for case in 0..CASES {
        let state = shaken(bench.cpu.state.clone(), &mut random);
        cpu.set_state(state.clone());
        cpu.put().expect("the kernel takes the state");
        cpu.cpu_mut().state = bench.cpu.state.clone();
        cpu.fetch().expect("the kernel gives the state");
        let (expected, found) = (comparable(&state), comparable(cpu.state()));
        let differing: Vec<_> =
            expected.lines().zip(found.lines()).filter(|(one, other)| one != other).collect();
        assert!(differing.is_empty(), "case {case}: in and out {differing:#?}");
    }
}

/// Runs `program`, which ends with HLT, on the interpreter and on KVM.
fn compare(program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) {
    let make = || {
        let mut bench = bench();
        let mut assembler = CodeAssembler::new(64).expect("an assembler");
        program(&mut assembler).and_then(|()| assembler.hlt()).expect("a program");
        let code = assembler.assemble(CODE).expect("a program");
        bench.put_code_at(CODE, &code);
        bench
    };
    let mut interpreted = make();
    let exit = interpreted.cpu.run(1_000_000);
    assert!(matches!(exit, VmExit::Halt { .. }), "the interpreter: {exit:?}");
    let bench = make();
    let Some(mut cpu) = on_kvm(&bench) else { return };
    let exit = cpu.run(u64::MAX);
    assert!(matches!(exit, VmExit::Halt { .. }), "KVM: {exit:?}");
    cpu.events().request_exit();
    assert_eq!(cpu.run(u64::MAX), VmExit::Requested);
    let (state, expected) = (cpu.state(), &interpreted.cpu.state);
    assert_eq!(state.gpr, expected.gpr);
    assert_eq!((state.rip, state.rflags), (expected.rip, expected.rflags));
    assert_eq!(state.fpu.zmm[..16], expected.fpu.zmm[..16]);
    assert_eq!(bench.peek::<64>(DATA), interpreted.peek::<64>(DATA));
}

#[test]
fn arithmetic_and_memory() {
    compare(|a| {
        let mut again = a.create_label();
        a.mov(rbx, DATA)?;
        a.mov(ecx, 100)?;
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.add(rax, rcx)?;
        a.mov(ptr(rbx), rax)?;
        a.dec(ecx)?;
        a.jne(again)
    });
}

#[test]
fn vectors_and_msrs() {
    compare(|a| {
        a.mov(rax, 0x0123_4567_89ab_cdef_u64)?;
        a.movq(xmm3, rax)?;
        a.paddd(xmm3, xmm3)?;
        a.mov(rbx, DATA)?;
        a.movups(xmmword_ptr(rbx), xmm3)?;
        a.mov(ecx, 0xc000_0102u32)?;
        a.mov(eax, 0x1234)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.xor(eax, eax)?;
        a.rdmsr()
    });
}

/// A thread that posts gets the CPU out of a loop that never ends by itself.
#[test]
fn a_request_ends_an_endless_loop() {
    let mut bench = bench();
    bench.put_code_at(CODE, &[0xeb, 0xfe]);
    let Some(mut cpu) = on_kvm(&bench) else { return };
    let events = Arc::clone(cpu.events());
    let poster = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        events.request_exit();
    });
    assert_eq!(cpu.run(u64::MAX), VmExit::Requested);
    assert_eq!(cpu.state().rip, CODE);
    poster.join().expect("the poster");
}

/// Ends in time whatever the host's KVM is, and says what it is.
#[test]
fn the_probe_ends() {
    let start = std::time::Instant::now();
    let verdict = match crate::probe() {
        Ok(()) => "the probe guest passes".to_owned(),
        Err(weakness) => weakness.to_string(),
    };
    assert!(start.elapsed() < std::time::Duration::from_secs(10), "{verdict}");
    let _ = writeln!(std::io::stderr(), "\nKVM on this host: {verdict}");
}
