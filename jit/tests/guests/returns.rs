//! Returns whose prediction must not be believed.

use cpu::engine::Vcpu;
use cpu::state::State;
use cpu::testing::{Bench, CODE, DATA, PT, STACK, page, selector};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use jit::Options;

use crate::{HANDLERS, assemble, bench, compare, run, translator, with_program};

const RAX: usize = 0;
const RBX: usize = 3;
/// Code of CPL 3.
const USER: u64 = CODE + 0x4000;

/// A kernel that calls a function which goes to CPL 3, where `user` is executed.
fn kernel_and_user(user: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Bench {
    let bench = with_program(|a| {
        let mut function = a.create_label();
        a.call(function)?;
        // Live when the user returns to it.
        a.mov(eax, 0x5ec)?;
        a.hlt()?;
        a.set_label(&mut function)?;
        a.push(u64::from(selector::USER_DATA) as i32)?;
        a.push((STACK - 0x800) as i32)?;
        a.push(0x202)?;
        a.push(u64::from(selector::USER_CODE64) as i32)?;
        a.push(USER as i32)?;
        a.iretq()
    });
    bench.poke(USER, &assemble(USER, user));
    bench
}

/// The return address of the kernel's call: a call of five bytes.
const LIVE: u64 = CODE + 5;

#[test]
fn a_user_cannot_return_to_a_live_address_of_the_kernel() {
    let state = compare(|| {
        let mut bench = kernel_and_user(|a| {
            a.mov(rbx, LIVE)?;
            a.push(rbx)?;
            a.ret()
        });
        bench.protect(CODE, page::PRESENT | page::WRITABLE);
        bench
    });
    const PAGE_FAULT: u64 = HANDLERS + 16 * 14 + 1;
    assert_eq!((state.rip, state.cr2, state.gpr[RAX]), (PAGE_FAULT, LIVE, 0));
}

/// Where the page is the user's too, the kernel's code is the user's code: HLT is no instruction of
/// it.
#[test]
fn a_user_that_returns_to_a_live_address_stays_a_user() {
    let state = compare(|| {
        kernel_and_user(|a| {
            a.mov(rbx, LIVE)?;
            a.push(rbx)?;
            a.ret()
        })
    });
    const PROTECTION: u64 = HANDLERS + 16 * 13 + 1;
    assert_eq!((state.rip, state.gpr[RAX]), (PROTECTION, 0x5ec));
}

/// The other way round: a kernel that returns to an address whose call the user made.
#[test]
fn a_kernel_that_returns_to_a_live_address_of_the_user_stays_a_kernel() {
    let state = compare(|| {
        let bench = kernel_and_user(|a| {
            let mut function = a.create_label();
            a.call(function)?;
            // Here: allowed to kernels alone.
            a.mov(rax, cr0)?;
            a.hlt()?;
            a.set_label(&mut function)?;
            a.int3()
        });
        let handler = assemble(HANDLERS + 16 * 3, |a| {
            a.mov(rbx, USER + 5)?;
            a.push(rbx)?;
            a.ret()
        });
        bench.poke(HANDLERS + 16 * 3, &handler);
        bench
    });
    assert_eq!(state.cpl, 0);
    assert_ne!(state.gpr[RAX], 0);
    assert!(state.rip < HANDLERS, "{:#x}", state.rip);
}

/// The address that empty slots of jump caches hold is none that a guest gets to.
#[test]
fn a_jump_to_the_middle_of_nowhere_faults() {
    const NOWHERE: u64 = 1 << 63;
    type Transfer = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let transfers: [Transfer; 4] = [
        |a| a.jmp(rbx),
        |a| a.call(rbx),
        |a| {
            a.push(rbx)?;
            a.ret()
        },
        |a| {
            a.push(rbx)?;
            a.jmp(qword_ptr(rsp))
        },
    ];
    for transfer in transfers {
        for address in [NOWHERE, NOWHERE + 1, NOWHERE + 0x1000] {
            let state = compare(|| {
                with_program(|a| {
                    a.mov(rbx, address)?;
                    transfer(a)
                })
            });
            const PROTECTION: u64 = HANDLERS + 16 * 13 + 1;
            assert_eq!(state.rip, PROTECTION, "{address:#x}");
        }
    }
}

/// Two pages with a call at the same place and something else behind it; the callee puts one where
/// the other was.
fn remapping(forget: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Bench {
    const CALLER: u64 = CODE + 0x2000;
    const OTHER: u64 = CODE + 0x3000;
    const FUNCTION: u64 = CODE + 0x1000;
    let mut bench = with_program(|a| {
        // Once without, so that everything is translated and linked.
        a.mov(ebx, 2)?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(rax, CALLER)?;
        a.call(rax)?;
        a.dec(ebx)?;
        a.jne(top)?;
        a.hlt()
    });
    for (place, value) in [(CALLER, 1u32), (OTHER, 2)] {
        // As if it were where it will be seen.
        let code = assemble(CALLER, |a| {
            a.mov(rcx, FUNCTION)?;
            a.call(rcx)?;
            a.mov(edx, value)?;
            a.ret()
        });
        bench.poke(place, &code);
    }
    let function = assemble(FUNCTION, |a| {
        let mut end = a.create_label();
        a.cmp(ebx, 2)?;
        a.je(end)?;
        a.mov(rdi, PT + 8 * (CALLER >> 12))?;
        a.mov(rsi, OTHER | 7)?;
        a.mov(qword_ptr(rdi), rsi)?;
        forget(a)?;
        a.set_label(&mut end)?;
        a.ret()
    });
    bench.poke(FUNCTION, &function);
    bench.control_changed();
    bench
}

#[test]
fn a_return_goes_to_what_is_mapped_now() {
    const RDX: usize = 2;
    let by_page: State = compare(|| {
        remapping(|a| {
            a.mov(rdi, CODE + 0x2000)?;
            a.invlpg(byte_ptr(rdi))
        })
    });
    assert_eq!(by_page.gpr[RDX], 2);
    let by_table = compare(|| {
        remapping(|a| {
            a.mov(rsi, cr3)?;
            a.mov(cr3, rsi)
        })
    });
    assert_eq!(by_table.gpr[RDX], 2);
}

#[test]
fn ten_million_calls_without_a_return() {
    const COUNT: u64 = 10_000_000;
    let bench = with_program(|a| {
        let (mut top, mut next) = (a.create_label(), a.create_label());
        a.mov(rcx, COUNT)?;
        a.set_label(&mut top)?;
        a.call(next)?;
        a.set_label(&mut next)?;
        a.pop(rdx)?;
        a.add(rax, 1)?;
        a.dec(rcx)?;
        a.jne(top)?;
        a.hlt()
    });
    let mut jit = translator(&bench, &Options::default());
    run(&mut jit);
    assert_eq!(jit.state().gpr[RAX], COUNT);
    assert_eq!(jit.state().gpr[4], bench.cpu.state.gpr[4]);
}

#[test]
fn ten_million_returns_without_a_call() {
    const COUNT: u64 = 10_000_000;
    let bench = with_program(|a| {
        let (mut top, mut next) = (a.create_label(), a.create_label());
        a.mov(rcx, COUNT)?;
        a.lea(rdx, ptr(next))?;
        a.set_label(&mut top)?;
        a.push(rdx)?;
        a.ret()?;
        a.set_label(&mut next)?;
        a.add(rax, 1)?;
        a.dec(rcx)?;
        a.jne(top)?;
        a.hlt()
    });
    let mut jit = translator(&bench, &Options::default());
    run(&mut jit);
    assert_eq!(jit.state().gpr[RAX], COUNT);
}

/// A recursion deeper than the stack of predictions, whose returns all come back.
#[test]
fn a_recursion_deeper_than_the_stack_of_predictions() {
    let state = compare(|| {
        let mut bench = with_program(|a| {
            let (mut function, mut end) = (a.create_label(), a.create_label());
            a.mov(ecx, 30_000)?;
            a.call(function)?;
            a.hlt()?;
            a.set_label(&mut function)?;
            a.dec(ecx)?;
            a.je(end)?;
            a.call(function)?;
            a.add(rax, 3)?;
            a.set_label(&mut end)?;
            a.ret()
        });
        bench.cpu.state.gpr[4] = 0x80_0000;
        bench
    });
    assert_eq!(state.gpr[RAX], 3 * 29_999);
}

/// Many functions that call each other in a circle, and a cache that holds few of them: what is
/// returned to has been dropped meanwhile.
#[test]
fn the_cache_is_emptied_inside_a_recursion() {
    const FUNCTIONS: u64 = 400;
    const FIRST: u64 = 0x40_0000;
    const DISTANCE: u64 = 0x140;
    const DEPTH: u64 = 2000;
    let make = || {
        let mut bench = bench();
        for number in 0..FUNCTIONS {
            let at = FIRST + DISTANCE * number;
            let next = FIRST + DISTANCE * ((number + 1) % FUNCTIONS);
            let code = assemble(at, |a| {
                let mut end = a.create_label();
                a.dec(ecx)?;
                a.je(end)?;
                a.push(rcx)?;
                a.call(next)?;
                a.pop(rdx)?;
                a.add(rax, rdx)?;
                for filler in 0..8 {
                    a.mov(rsi, DATA + 8 * filler)?;
                    a.add(qword_ptr(rsi), number as i32)?;
                    a.add(rbx, qword_ptr(rsi))?;
                }
                a.set_label(&mut end)?;
                a.ret()
            });
            bench.poke(at, &code);
        }
        let code = assemble(CODE, |a| {
            a.mov(rcx, DEPTH)?;
            a.call(FIRST)?;
            a.hlt()
        });
        bench.put_code_at(CODE, &code);
        bench
    };
    let state = compare(make);
    assert_eq!(state.gpr[RAX], (1..DEPTH).sum::<u64>());
    let bench = make();
    let tiny = Options { cache_bytes: 64 << 10, ..Options::default() };
    let mut jit = translator(&bench, &tiny);
    run(&mut jit);
    assert_eq!((jit.state().gpr[RAX], jit.state().gpr[RBX]), (state.gpr[RAX], state.gpr[RBX]));
    let text = jit.statistics().to_string();
    assert!(!text.contains("evictions 0"), "nothing was dropped: {text}");
}
