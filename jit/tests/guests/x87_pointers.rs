//! What an x87 unit tells of its last instruction and operand.

use cpu::engine::{Vcpu, VmExit};
use cpu::testing::{Bench, CODE, DATA, PD, noted_operand};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::{all_ways, run, translator, with_program};

/// Runs until the host has not lost its unit's pointers by a switch of threads between the
/// instruction and who asks.
const TRIES: usize = 20;
/// What guests store.
const ENVIRONMENT: u64 = DATA + 0x800;
/// A page of data that is used by no other address.
const OTHER: u64 = DATA + 0x5000;
/// Where [`OTHER`] is once more, by the same page table and in the same place of a TLB.
const TWIN: i32 = 128 << 20;

/// Words of a stored environment, as FNSTENV has them in protected mode.
type Environment = [u32; 7];

/// The environment that a guest has stored, and the state's own pointers.
type Seen = (Environment, (u64, u16, u16), (u64, u16));

fn seen(bench: &Bench, cpu: &dyn Vcpu) -> Seen {
    let bytes = bench.peek::<28>(ENVIRONMENT);
    let word = |n: usize| std::array::from_fn(|byte| bytes[4 * n + byte]);
    let environment = std::array::from_fn(|n| u32::from_le_bytes(word(n)));
    let fpu = &cpu.state().fpu;
    (environment, fpu.instruction_pointer(), fpu.data_pointer())
}

/// Runs `program`, which finds [`DATA`] in RBX, by both engines, with several options. Gives what
/// both say.
fn pointers(program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Seen {
    let make = || {
        let bench = with_program(|a| {
            a.mov(rbx, DATA)?;
            a.fninit()?;
            program(a)?;
            a.hlt()
        });
        bench.poke(DATA, &1.5f64.to_le_bytes());
        bench.poke(OTHER, &2.5f64.to_le_bytes());
        let entry = |address: u64| PD + (address >> 21) * 8;
        bench.poke(entry(OTHER + TWIN as u64), &bench.peek::<8>(entry(OTHER)));
        // Zero divides are unmasked.
        bench.poke(DATA + 0x10, &0x37bu16.to_le_bytes());
        bench
    };
    let mut bench = make();
    let exit = bench.cpu.run(10_000);
    assert!(matches!(exit, VmExit::Halt { .. }), "the interpreter: {exit:?}");
    let expected = seen(&bench, &bench.cpu);
    for options in all_ways() {
        let mut last = None;
        let is_seen = (0..TRIES).any(|_| {
            let bench = make();
            let mut jit = translator(&bench, &options);
            run(&mut jit);
            let now = seen(&bench, &jit);
            last = Some(now);
            now == expected
        });
        assert!(is_seen, "{last:x?}, expected {expected:x?}, {options:?}");
    }
    expected
}

fn store(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.fnstenv(ptr(ENVIRONMENT))
}

/// The idiom by which code that does not know where it is finds out.
#[test]
fn an_environment_has_the_address_of_the_last_instruction() {
    let (environment, instruction, _) = pointers(|a| {
        a.nop()?;
        a.fldz()?;
        store(a)
    });
    // Behind MOV, FNINIT and NOP.
    let address = CODE + 10 + 2 + 1;
    assert_eq!(u64::from(environment[3]), address);
    assert_eq!((instruction.0, instruction.2), (address, 0x1ee));
}

#[test]
fn an_environment_has_the_address_of_the_last_operand() {
    let (environment, ..) = pointers(|a| {
        a.fld(qword_ptr(rbx))?;
        a.fadd_2(st0, st0)?;
        store(a)
    });
    assert_eq!(u64::from(environment[5]), noted_operand(DATA));
}

/// Such an operand is copied to be together before it is read, and so is that of MOVUPS.
#[test]
fn an_operand_over_two_pages_has_its_address() {
    let (environment, ..) = pointers(|a| {
        a.fld(qword_ptr(rbx + 0xffc))?;
        a.movups(xmm0, xmmword_ptr(rbx + 0x1ff8))?;
        store(a)
    });
    assert_eq!(u64::from(environment[5]), noted_operand(DATA + 0xffc));
}

/// Here processors save the pointers everywhere: for handlers of #MF.
#[test]
fn a_pending_exception_has_its_instruction_and_operand() {
    let divide = |a: &mut CodeAssembler| {
        a.fldcw(word_ptr(rbx + 0x10))?;
        a.fld1()?;
        a.fdiv(qword_ptr(rbx + 8))
    };
    let (environment, instruction, data) = pointers(|a| {
        divide(a)?;
        store(a)
    });
    // Behind MOV, FNINIT, FLDCW and FLD1.
    let address = CODE + 10 + 2 + 3 + 2;
    assert_eq!(instruction.0, address);
    // DC /6 with a base of RBX and a byte of displacement.
    assert_eq!(instruction.2, 0x473);
    assert_eq!(data.0, DATA + 8);
    assert_eq!((u64::from(environment[3]), u64::from(environment[5])), (address, DATA + 8));
    let (_, at_fault, operand) = pointers(|a| {
        divide(a)?;
        a.fld1()
    });
    assert_eq!((at_fault, operand), (instruction, data));
}

#[test]
fn pointers_outlive_their_registers_mappings_and_code() {
    type Rest = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let rests: [Rest; 7] = [
        |_| Ok(()),
        // Neither registers nor pages tell the operand's address.
        |a| a.add(rbx, 0x1000),
        |a| {
            a.mov(rax, cr3)?;
            a.mov(cr3, rax)
        },
        // The block dies.
        |a| a.mov(byte_ptr(CODE + 0x800), 1),
        // Control instructions leave them, those of old that do nothing, and those of MMX.
        |a| {
            a.fldcw(word_ptr(DATA + 0x10))?;
            a.fnstsw(ax)?;
            a.fneni()?;
            a.fndisi()?;
            a.fnsetpm()?;
            a.emms()
        },
        // A prefix of a segment with no operand to it: FS FNOP.
        |a| {
            a.mov(eax, 0x23)?;
            a.mov(fs, eax)?;
            a.db(&[0x64, 0xd9, 0xd0])
        },
        // The place of the operand's page in the TLB is another's, which is the same memory.
        |a| a.mov(rax, ptr(rbx + TWIN)),
    ];
    for rest in rests {
        let (_, _, data) = pointers(|a| {
            a.add(rbx, (OTHER - DATA) as i32)?;
            a.fld(qword_ptr(rbx))?;
            rest(a)?;
            store(a)
        });
        assert_eq!(data.0, noted_operand(OTHER));
    }
}

/// The last one counts, whoever has executed it.
#[test]
fn pointers_that_were_loaded_last_until_the_next_instruction() {
    let load = |a: &mut CodeAssembler| {
        a.fld(qword_ptr(rbx))?;
        a.fnstenv(ptr(rbx + 0x100))?;
        a.mov(dword_ptr(rbx + 0x10c), 0x1234)?;
        a.fldenv(ptr(rbx + 0x100))
    };
    let (environment, ..) = pointers(|a| {
        load(a)?;
        a.fnstcw(word_ptr(rbx + 0x200))?;
        store(a)
    });
    assert_eq!(environment[3], 0x1234);
    let (environment, ..) = pointers(|a| {
        load(a)?;
        a.fld1()?;
        store(a)
    });
    assert_ne!(environment[3], 0x1234);
}

/// The two instructions are in blocks of their own, and only the first one has an operand.
#[test]
fn an_operand_by_fs_has_its_offset() {
    const IA32_FS_BASE: u32 = 0xc000_0100;
    let (environment, ..) = pointers(|a| {
        let mut next = a.create_label();
        a.mov(ecx, IA32_FS_BASE)?;
        a.mov(eax, 0x1000)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.fld(qword_ptr(rbx).fs())?;
        a.jmp(next)?;
        a.set_label(&mut next)?;
        a.fldz()?;
        store(a)
    });
    assert_eq!(u64::from(environment[5]), noted_operand(DATA));
}

#[test]
fn fninit_clears_pointers_that_the_host_has_forgotten() {
    let (environment, ..) = pointers(|a| {
        a.fld(qword_ptr(rbx))?;
        // The block dies.
        a.mov(byte_ptr(CODE + 0x800), 1)?;
        a.fninit()?;
        store(a)
    });
    assert_eq!((environment[3], environment[5]), (0, 0));
}
