//! Conditions: Jcc, SETcc, CMOVcc, JrCXZ and LOOP.

use iced_x86::{Code, ConditionCode, Mnemonic, OpCodeOperandKind};

use crate::Cpu;
use crate::exception::Exec;
use crate::flags::Word;
use crate::interp::dispatch::Table;
use crate::interp::insn::{Handler, Insn};
use crate::interp::shape::{by_width, for_each_form};
use crate::state::gpr::RCX;
use crate::state::rflags::{CF, OF, PF, SF, ZF};

/// A condition of the `cc` field (SDM Vol. 1, "EFLAGS Condition Codes").
trait Condition {
    fn holds(flags: u64) -> bool;
}

macro_rules! conditions {
    ($($name:ident |$flags:ident| $body:expr;)*) => {$(
        struct $name;
        impl Condition for $name {
            #[inline(always)]
            fn holds($flags: u64) -> bool {
                $body
            }
        }
    )*};
}

fn is_less(flags: u64) -> bool {
    (flags & SF != 0) != (flags & OF != 0)
}

conditions! {
    O |flags| flags & OF != 0;
    No |flags| flags & OF == 0;
    B |flags| flags & CF != 0;
    Ae |flags| flags & CF == 0;
    E |flags| flags & ZF != 0;
    Ne |flags| flags & ZF == 0;
    Be |flags| flags & (CF | ZF) != 0;
    A |flags| flags & (CF | ZF) == 0;
    S |flags| flags & SF != 0;
    Ns |flags| flags & SF == 0;
    P |flags| flags & PF != 0;
    Np |flags| flags & PF == 0;
    L |flags| is_less(flags);
    Ge |flags| !is_less(flags);
    Le |flags| flags & ZF != 0 || is_less(flags);
    G |flags| flags & ZF == 0 && !is_less(flags);
}

/// The instance of a function generic over condition, and over width behind it, for a condition
/// code; `None` for codes without one.
macro_rules! by_condition {
    ($condition:expr, $function:ident $(, $width:ty)?) => {
        Some(match $condition {
            ConditionCode::o => $function::<O $(, $width)?> as Handler,
            ConditionCode::no => $function::<No $(, $width)?>,
            ConditionCode::b => $function::<B $(, $width)?>,
            ConditionCode::ae => $function::<Ae $(, $width)?>,
            ConditionCode::e => $function::<E $(, $width)?>,
            ConditionCode::ne => $function::<Ne $(, $width)?>,
            ConditionCode::be => $function::<Be $(, $width)?>,
            ConditionCode::a => $function::<A $(, $width)?>,
            ConditionCode::s => $function::<S $(, $width)?>,
            ConditionCode::ns => $function::<Ns $(, $width)?>,
            ConditionCode::p => $function::<P $(, $width)?>,
            ConditionCode::np => $function::<Np $(, $width)?>,
            ConditionCode::l => $function::<L $(, $width)?>,
            ConditionCode::ge => $function::<Ge $(, $width)?>,
            ConditionCode::le => $function::<Le $(, $width)?>,
            ConditionCode::g => $function::<G $(, $width)?>,
            ConditionCode::None => return None,
        })
    };
}

fn jump<C: Condition>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if C::holds(cpu.state.rflags) { cpu.branch_to(insn.imm) } else { Ok(()) }
}

fn set_register<C: Condition>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = u8::from(C::holds(cpu.state.rflags));
    cpu.set_reg(insn.dst, value);
    Ok(())
}

fn set_memory<C: Condition>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = u8::from(C::holds(cpu.state.rflags));
    cpu.store(&insn.mem, value)
}

/// CMOVcc of a 32-bit register clears the upper half even where the condition fails.
fn move_register<C: Condition, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let source = if C::holds(cpu.state.rflags) { insn.src } else { insn.dst };
    cpu.set_reg(insn.dst, cpu.reg::<T>(source));
    Ok(())
}

/// The memory operand is read, and faults, even where the condition fails.
fn move_memory<C: Condition, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.load::<T>(&insn.mem)?;
    let value = if C::holds(cpu.state.rflags) { value } else { cpu.reg::<T>(insn.dst) };
    cpu.set_reg(insn.dst, value);
    Ok(())
}

fn jump_handler(code: Code) -> Option<Handler> {
    by_condition!(code.condition_code(), jump)
}

fn set_handlers(code: Code) -> Option<(Handler, Handler)> {
    let register = by_condition!(code.condition_code(), set_register);
    let memory = by_condition!(code.condition_code(), set_memory);
    register.zip(memory)
}

fn move_handlers(code: Code, width: u64) -> Option<(Handler, Handler)> {
    let condition = code.condition_code();
    let pair = match width {
        2 => (
            by_condition!(condition, move_register, u16),
            by_condition!(condition, move_memory, u16),
        ),
        4 => (
            by_condition!(condition, move_register, u32),
            by_condition!(condition, move_memory, u32),
        ),
        _ => (
            by_condition!(condition, move_register, u64),
            by_condition!(condition, move_memory, u64),
        ),
    };
    pair.0.zip(pair.1)
}

/// JCXZ, JECXZ, JRCXZ; `T` is the address size.
fn jump_if_zero<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if cpu.reg::<T>(RCX as u8) == T::default() { cpu.branch_to(insn.imm) } else { Ok(()) }
}

/// LOOP and its kin: counts rCX down in the address size, then branches if it is not zero and
/// ZF is as `wanted` says. Nothing is written if the branch faults.
fn count_and_jump<T: Word>(cpu: &mut Cpu, insn: &Insn, wanted: Option<bool>) -> Exec {
    let count = T::from_u64(cpu.reg::<T>(RCX as u8).to_u64().wrapping_sub(1));
    let is_zero = cpu.flag(ZF);
    if count != T::default() && wanted.is_none_or(|wanted| wanted == is_zero) {
        cpu.branch_to(insn.imm)?;
    }
    cpu.set_reg(RCX as u8, count);
    Ok(())
}

fn loop_always<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    count_and_jump::<T>(cpu, insn, None)
}
fn loop_equal<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    count_and_jump::<T>(cpu, insn, Some(true))
}
fn loop_not_equal<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    count_and_jump::<T>(cpu, insn, Some(false))
}

/// Bytes of the address size, which is the counter's, of LOOP and JrCXZ.
fn counter_width(code: Code) -> u64 {
    // Operand 0 is the branch target; the counter's width is the opcode's address size.
    u64::from(code.op_code().address_size()) / 8
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    for_each_form(table, |table, form| {
        let code = form.code;
        if code.is_jcc_short_or_near() {
            if let Some(handler) = jump_handler(code) {
                table.both(code, handler);
            }
            return;
        }
        let is_general =
            code.op_code().op_count() > 0 && code.op_code().op_kind(0) != OpCodeOperandKind::None;
        let width = counter_width(code);
        let handler: Handler = match form.mnemonic {
            Mnemonic::Jcxz => jump_if_zero::<u16>,
            Mnemonic::Jecxz => jump_if_zero::<u32>,
            Mnemonic::Jrcxz => jump_if_zero::<u64>,
            Mnemonic::Loop => by_width!(width, loop_always),
            Mnemonic::Loope => by_width!(width, loop_equal),
            Mnemonic::Loopne => by_width!(width, loop_not_equal),
            _ if !is_general || code.condition_code() == ConditionCode::None => return,
            _ => {
                let handlers = match (form.width, form.operand_count) {
                    (1, 1) => set_handlers(code),
                    (2 | 4 | 8, 2) => move_handlers(code, form.width),
                    _ => None,
                };
                if let Some((register, memory)) = handlers {
                    table.forms(code, register, memory);
                }
                return;
            }
        };
        table.both(code, handler);
    });
}
