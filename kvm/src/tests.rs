//! On a host with /dev/kvm: state that goes in comes out again, and small guests that do on KVM
//! what they do on the interpreter. A host without it says that it skips.

mod apics;
mod debugging;
mod doorbells;
mod irqfds;
mod states;

use std::io::Write;
use std::sync::Arc;

use cpu::engine::{Vcpu, VmExit};
use cpu::testing::{Bench, CODE, DATA, IDT};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::{Apics, Clocks, KvmCpu, KvmVm};

/// The model of the CPUs: what every KVM can give.
const MODEL: &str = "x86-64-v2";

/// A machine with the bench's memory and CPU on KVM; `None` where there is none.
fn on_kvm(bench: &Bench) -> Option<KvmCpu> {
    let vm = match KvmVm::new(Clocks::Kernel, Apics::Machine) {
        Ok(vm) => vm,
        Err(error) => {
            say(&format!("skipped: no KVM on this host: {error}"));
            return None;
        }
    };
    let mut cpu = KvmCpu::new(&vm, bench.cpu.env.clone()).expect("a CPU");
    cpu.set_state(bench.cpu.state.clone());
    Some(cpu)
}

/// Says something past the harness, which shows what a test prints only if it fails.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n{text}");
}

fn bench() -> Bench {
    bench_of(MODEL)
}

/// A CPU of `model` in long mode.
fn bench_of(model: &str) -> Bench {
    let mut bench = Bench::with_cpu(model).expect("a model").in_long64();
    // What the model has of it.
    bench.cpu.state.xcr0 = bench.cpu.env.cpuid.xcr0_supported().max(1);
    if bench.cpu.env.cpuid.xcr0_supported() == 0 {
        bench.cpu.state.cr4 &= !cpu::state::cr4::OSXSAVE;
    }
    bench.control_changed();
    bench
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

/// The trap behind HLT ends it, without any interrupt.
#[test]
fn a_single_step_ends_hlt() {
    const TF: i32 = 1 << 8;
    compare(|a| {
        let (mut handler, mut start) = (a.create_label(), a.create_label());
        a.jmp(start)?;
        a.set_label(&mut handler)?;
        a.inc(rbx)?;
        a.and(qword_ptr(rsp + 16), !TF)?;
        a.iretq()?;
        a.set_label(&mut start)?;
        a.xor(ebx, ebx)?;
        // The gate of #DB.
        a.lea(rax, ptr(handler))?;
        a.mov(word_ptr(IDT + 16), ax)?;
        a.mov(dword_ptr(IDT + 18), 0x8e00_0008_u32 as i32)?;
        a.shr(rax, 16)?;
        a.mov(dword_ptr(IDT + 22), eax)?;
        a.pushfq()?;
        a.or(qword_ptr(rsp), TF)?;
        a.popfq()?;
        a.hlt()?;
        a.add(rbx, 16)
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

/// One CPU more than the host's KVM makes is refused by a sentence, and not by an errno.
#[test]
fn too_many_cpus_are_refused_with_their_number() {
    let mut bench = bench();
    let Some(_) = on_kvm(&bench) else { return };
    bench.cpu.env.index = 1 << 20;
    let vm = KvmVm::new(Clocks::Kernel, Apics::Machine).expect("a machine");
    let error = KvmCpu::new(&vm, bench.cpu.env.clone()).err().map(|error| error.to_string());
    assert!(error.as_ref().is_some_and(|text| text.ends_with(" CPUs at most")), "{error:?}");
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
    say(&format!("KVM on this host: {verdict}"));
}
