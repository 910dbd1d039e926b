//! A guest that uses the debug registers itself, with a debugger that uses them too.

use cpu::debugger::{DebugStop, Resume, WatchKind, Watchpoint};
use cpu::engine::{Vcpu, VmExit};
use cpu::testing::{Bench, CODE, DATA, IDT};
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

use super::{bench, on_kvm, say};
use crate::{check_debug_points, debug_registers};

const ROUNDS: i32 = 50;
/// What the guest watches, and what the debugger does.
const GUESTS: u64 = DATA + 0x100;
const DEBUGGERS: u64 = DATA + 0x200;
/// DR7: register 0 before an instruction, register 1 on writes of four bytes.
const DR7: u64 = 0x400 | 2 | 8 | 0b1101 << 20;
const TF: i32 = 1 << 8;
const RF: i32 = 1 << 16;

/// A guest, and the addresses in it of the instruction at which it has a breakpoint itself and of
/// the next one.
struct Program {
    code: Vec<u8>,
    own: u64,
    next: u64,
}

/// Counts debug exceptions in RBX and collects DR6 in R8: two a round for its registers, then some
/// single steps.
fn program() -> Result<Program, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let [mut handler, mut start, mut own, mut next] = [(); 4].map(|()| a.create_label());
    a.jmp(start)?;
    a.set_label(&mut handler)?;
    a.inc(rbx)?;
    a.mov(r9, dr6)?;
    a.or(r8, r9)?;
    a.or(dword_ptr(rsp + 16), RF)?;
    a.iretq()?;
    a.set_label(&mut start)?;
    a.lea(rax, ptr(handler))?;
    a.mov(word_ptr(IDT + 16), ax)?;
    a.mov(dword_ptr(IDT + 18), 0x8e00_0008_u32 as i32)?;
    a.shr(rax, 16)?;
    a.mov(dword_ptr(IDT + 22), eax)?;
    a.xor(ebx, ebx)?;
    a.xor(r8d, r8d)?;
    a.lea(rax, ptr(own))?;
    a.mov(dr0, rax)?;
    a.mov(rax, GUESTS)?;
    a.mov(dr1, rax)?;
    a.mov(rax, DR7)?;
    a.mov(dr7, rax)?;
    // An exit, behind which the engine knows.
    a.out(0x80, al)?;
    a.mov(ecx, ROUNDS)?;
    a.set_label(&mut own)?;
    a.nop()?;
    a.set_label(&mut next)?;
    a.nop()?;
    a.mov(dword_ptr(GUESTS), ecx)?;
    a.mov(dword_ptr(DEBUGGERS), ecx)?;
    a.dec(ecx)?;
    a.jne(own)?;
    a.pushfq()?;
    a.or(dword_ptr(rsp), TF)?;
    a.popfq()?;
    a.nop()?;
    a.nop()?;
    a.pushfq()?;
    a.and(dword_ptr(rsp), !TF)?;
    a.popfq()?;
    a.mov(r10, dr0)?;
    a.mov(r11, dr1)?;
    a.mov(r12, dr7)?;
    a.hlt()?;
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let assembled = a.assemble_options(CODE, options)?;
    Ok(Program {
        own: assembled.label_ip(&own)?,
        next: assembled.label_ip(&next)?,
        code: assembled.inner.code_buffer,
    })
}

fn bench_with(program: &Program) -> Bench {
    let mut bench = bench();
    bench.put_code_at(CODE, &program.code);
    bench
}

fn has_registers() -> bool {
    let found = debug_registers();
    let has = found.stop_at_code && found.stop_at_data;
    if !has {
        say("skipped: KVM without hardware under it does not stop at code and data");
    }
    has
}

/// The debugger's breakpoint is at the instruction of the guest's own, or at the next one.
fn check(is_shared: bool) {
    let program = program().expect("a program");
    let mut interpreted = bench_with(&program);
    let exit = interpreted.cpu.run(1_000_000);
    assert!(matches!(exit, VmExit::Halt { .. }), "the interpreter: {exit:?}");

    let bench = bench_with(&program);
    let Some(mut cpu) = on_kvm(&bench) else { return };
    let at = if is_shared { program.own } else { program.next };
    let watchpoint = Watchpoint { start: DEBUGGERS, length: 4, kind: WatchKind::Write };
    assert!(cpu.cpu_mut().add_breakpoint(at) && cpu.cpu_mut().add_watchpoint(watchpoint));
    assert_eq!(check_debug_points(cpu.cpu()), Ok(()));
    let mut stops = (0, 0);
    let exit = loop {
        let exit = cpu.run(u64::MAX);
        if exit != VmExit::Debug {
            break exit;
        }
        match cpu.cpu_mut().take_debug_stop() {
            Some(DebugStop::Breakpoint(linear)) if linear == at => stops.0 += 1,
            Some(DebugStop::Watchpoint(hit)) if hit.watchpoint == watchpoint => stops.1 += 1,
            stop => panic!("{stop:?}"),
        }
        cpu.cpu_mut().resume_debugged(Resume::Continue, true);
    };
    assert!(matches!(exit, VmExit::Halt { .. }), "KVM: {exit:?}");
    cpu.events().request_exit();
    assert_eq!(cpu.run(u64::MAX), VmExit::Requested);
    // Behind the handler of its own the guest comes to the instruction with RF set, which hides it.
    assert_eq!(stops, (ROUNDS, ROUNDS));
    assert_eq!(cpu.state().gpr, interpreted.cpu.state.gpr);
    assert_eq!(cpu.state().dr, interpreted.cpu.state.dr);
    // Two registers are left.
    assert!(cpu.cpu_mut().add_breakpoint(1));
    assert!(check_debug_points(cpu.cpu()).is_err_and(|reason| reason.contains("the guest uses")));
}

#[test]
fn the_guests_debug_registers_are_its_own_beside_a_debuggers() {
    if has_registers() {
        check(false);
    }
}

#[test]
fn the_guest_and_the_debugger_stop_at_the_same_instruction() {
    if has_registers() {
        check(true);
    }
}
