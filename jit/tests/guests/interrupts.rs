//! Interrupts, NMIs and requests to stop at any point of translated code: what was interrupted must
//! come to the same result as without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cpu::engine::{Vcpu, VmExit};
use cpu::events::Events;
use cpu::state::{State, rflags};
use cpu::testing::{Bench, CODE, DATA, IDT, selector};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use jit::Options;

use crate::{LIMIT, all_ways, assemble, bench, translator};

/// The vector of interrupts.
const VECTOR: u8 = 0x40;
const NMI: u8 = 2;
/// Where their handlers are.
const INTERRUPT_HANDLER: u64 = 0x13_0000;
const NMI_HANDLER: u64 = 0x13_1000;
/// Where they count.
const COUNTS: u64 = DATA + 0x3000;
const TURNS: u32 = 600_000;

/// A handler that counts at `count`, and changes what it saves before.
fn handler(address: u64, count: u64) -> Vec<u8> {
    assemble(address, |a| {
        a.push(rax)?;
        a.push(rbx)?;
        a.sub(rsp, 0x20)?;
        a.movups(xmmword_ptr(rsp), xmm1)?;
        a.mov(rbx, count)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.add(rax, 1)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.pcmpeqd(xmm1, xmm1)?;
        a.cmp(rax, rax)?;
        a.movups(xmm1, xmmword_ptr(rsp))?;
        a.add(rsp, 0x20)?;
        a.pop(rbx)?;
        a.pop(rax)?;
        a.iretq()
    })
}

/// A loop in which flags, vector and x87 registers and the stack always hold something.
fn work(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut top, mut function, mut end) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rsi, DATA)?;
    a.mov(rdi, DATA + 0x1000)?;
    a.mov(r13d, TURNS)?;
    a.fld1()?;
    a.set_label(&mut top)?;
    a.add(rax, qword_ptr(rsi + 8))?;
    a.adc(rbx, r13)?;
    a.rcl(rdx, 3)?;
    a.adc(qword_ptr(rsi + 16), rdx)?;
    a.setc(r8b)?;
    a.call(function)?;
    a.adc(r14, rbx)?;
    a.paddd(xmm1, xmmword_ptr(rsi))?;
    a.cvtsi2sd(xmm2, eax)?;
    a.fadd(qword_ptr(rsi + 32))?;
    a.mov(ecx, 24)?;
    a.push(rsi)?;
    a.rep().movsb()?;
    a.pop(rsi)?;
    a.sub(rdi, 24)?;
    a.push(rax)?;
    a.pushfq()?;
    a.pop(r9)?;
    a.and(r9d, 0x8d5)?;
    a.xor(r15, r9)?;
    a.pop(r10)?;
    a.dec(r13)?;
    a.jne(top)?;
    a.jmp(end)?;
    a.set_label(&mut function)?;
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    a.add(r11, qword_ptr(rbp + 8))?;
    a.cmp(rax, rbx)?;
    a.leave()?;
    a.ret()?;
    a.set_label(&mut end)?;
    a.fstp(qword_ptr(rsi + 40))?;
    // An exception ends it, of whichever CPL.
    a.int3()
}

fn guest(is_user: bool) -> Bench {
    let mut bench = bench();
    for (vector, place) in [(VECTOR, INTERRUPT_HANDLER), (NMI, NMI_HANDLER)] {
        let low =
            place & 0xffff | u64::from(selector::CODE64) << 16 | 0x8e << 40 | (place >> 16) << 48;
        bench.poke(IDT + 16 * u64::from(vector), &low.to_le_bytes());
    }
    bench.poke(INTERRUPT_HANDLER, &handler(INTERRUPT_HANDLER, COUNTS));
    bench.poke(NMI_HANDLER, &handler(NMI_HANDLER, COUNTS + 8));
    let values: Vec<u8> = (0..0x40u64).flat_map(|n| (n * 0x0123_4567_89ab).to_le_bytes()).collect();
    bench.poke(DATA, &values);
    bench.put_code_at(CODE, &assemble(CODE, work));
    if is_user {
        bench.set_cpl(3);
        bench.cpu.state.segments[1].selector = selector::USER_CODE64;
        for segment in [0, 2, 3, 4, 5] {
            bench.cpu.state.segments[segment].selector = selector::USER_DATA;
        }
    }
    bench.cpu.state.rflags |= rflags::IF;
    bench
}

/// What the work comes to.
fn result(bench: &Bench, state: &State) -> (Vec<String>, [u8; 64], [u8; 64], String) {
    let gpr = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 13, 14, 15].map(|n| format!("{:#x}", state.gpr[n]));
    let vectors = format!("{:x?} {:x?}", &state.fpu.zmm[1][..16], &state.fpu.zmm[2][..16]);
    (gpr.to_vec(), bench.peek(DATA), bench.peek(DATA + 0x1000), vectors)
}

/// What comes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nuisance {
    Interrupts,
    NonMaskable,
    Stops,
}

/// Runs the work with `nuisance` all the time; how often it came through, as far as it is counted.
fn disturbed(is_user: bool, nuisance: Nuisance, options: &Options) -> u64 {
    let quiet = {
        let bench = guest(is_user);
        let mut jit = translator(&bench, options);
        crate::run(&mut jit);
        result(&bench, jit.state())
    };
    let bench = guest(is_user);
    let mut jit = translator(&bench, options);
    let events = Arc::clone(jit.events());
    let is_done = AtomicBool::new(false);
    let mut stops = 0;
    std::thread::scope(|scope| {
        let (lapic, is_done) = (&bench.lapic, &is_done);
        scope.spawn(move || {
            let mut pause = 0u64;
            while !is_done.load(Ordering::SeqCst) {
                match nuisance {
                    Nuisance::Interrupts => {
                        lapic.vector.store(VECTOR, Ordering::SeqCst);
                        events.post(Events::INTERRUPT);
                    }
                    Nuisance::NonMaskable => events.post_nmi(),
                    Nuisance::Stops => events.request_exit(),
                }
                pause = (pause * 7 + 3) % 64;
                std::thread::sleep(Duration::from_micros(pause));
            }
        });
        let started = Instant::now();
        loop {
            match jit.run(u64::MAX) {
                VmExit::Requested => stops += 1,
                VmExit::Halt { .. } => break,
                exit => panic!("{exit:?}"),
            }
            if started.elapsed() > LIMIT {
                is_done.store(true, Ordering::SeqCst);
                panic!("it does not end: {:#x}", jit.state().rip);
            }
        }
        is_done.store(true, Ordering::SeqCst);
    });
    assert_eq!(result(&bench, jit.state()), quiet, "{nuisance:?} {options:?}");
    let counts =
        u64::from_le_bytes(bench.peek(COUNTS)) + u64::from_le_bytes(bench.peek(COUNTS + 8));
    counts + stops
}

fn check(nuisance: Nuisance) {
    let mut count = 0;
    for options in all_ways() {
        for is_user in [false, true] {
            count += disturbed(is_user, nuisance, &options);
        }
    }
    println!("{nuisance:?}: {count}");
    assert!(count > 100, "only {count} {nuisance:?}");
}

#[test]
fn interrupts_change_nothing() {
    check(Nuisance::Interrupts);
}

#[test]
fn non_maskable_interrupts_change_nothing() {
    check(Nuisance::NonMaskable);
}

#[test]
fn stops_change_nothing() {
    check(Nuisance::Stops);
}
