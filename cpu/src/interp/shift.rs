//! Shifts and rotates: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD; SHLX, SHRX, SARX, RORX.

use iced_x86::{Mnemonic, Register};

use crate::Cpu;
use crate::exception::Exec;
use crate::flags::{Word, masked_count};
use crate::interp::dispatch::{Forms, Table};
use crate::interp::insn::{Insn, register_number};
use crate::interp::shape::{Form, by_width, for_each_form};
use crate::native::integer::{self, Outcome};
use crate::state::gpr::RCX;
use crate::state::rflags::STATUS;

/// A shift of one operand. A count of zero changes neither operand nor flags.
trait Shift {
    fn apply<T: Word>(a: T, count: u32, flags: u64) -> Outcome<T>;
}

macro_rules! shifts {
    ($($name:ident $function:ident)*) => {$(
        struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<T: Word>(a: T, count: u32, flags: u64) -> Outcome<T> {
                integer::$function(a, count, flags)
            }
        }
    )*};
}

shifts! {
    Shl shl
    Shr shr
    Sar sar
    Rol rol
    Ror ror
    RolImmediate rol_immediate
    RorImmediate ror_immediate
    Rcl rcl
    Rcr rcr
}

/// Where the count comes from.
trait Count {
    fn count(cpu: &Cpu, insn: &Insn) -> u8;
}
struct Immediate;
impl Count for Immediate {
    #[inline(always)]
    fn count(_: &Cpu, insn: &Insn) -> u8 {
        insn.imm as u8
    }
}
struct Cl;
impl Count for Cl {
    #[inline(always)]
    fn count(cpu: &Cpu, _: &Insn) -> u8 {
        cpu.state.gpr[RCX] as u8
    }
}

fn register_form<S: Shift, C: Count, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let count = masked_count::<T>(C::count(cpu, insn));
    let value = cpu.reg::<T>(insn.dst);
    if count == 0 {
        // A 32-bit destination is written, and so zero-extended, all the same.
        cpu.set_reg(insn.dst, value);
        return Ok(());
    }
    let (result, status) = S::apply(value, count, cpu.state.rflags);
    cpu.set_reg(insn.dst, result);
    cpu.set_status_flags(status);
    Ok(())
}

fn memory_form<S: Shift, C: Count, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let count = masked_count::<T>(C::count(cpu, insn));
    let flags = cpu.state.rflags;
    let offset = cpu.effective_address(&insn.mem);
    let status = cpu.modify(usize::from(insn.mem.segment), offset, false, |a: T| {
        if count == 0 { (a, flags & STATUS) } else { S::apply(a, count, flags) }
    })?;
    cpu.set_status_flags(status);
    Ok(())
}

fn forms<S: Shift>(form: &Form) -> Forms {
    if form.has_immediate {
        Forms {
            register: by_width!(form.width, register_form, S, Immediate),
            memory: by_width!(form.width, memory_form, S, Immediate),
        }
    } else {
        Forms {
            register: by_width!(form.width, register_form, S, Cl),
            memory: by_width!(form.width, memory_form, S, Cl),
        }
    }
}

/// ROL and ROR, which are `S` where a register is rotated by an immediate, and `M` elsewhere.
fn rotations<S: Shift, M: Shift>(form: &Form) -> Forms {
    let others = forms::<M>(form);
    match form.has_immediate {
        true => Forms { register: by_width!(form.width, register_form, S, Immediate), ..others },
        false => others,
    }
}

/// SHLD and SHRD.
trait DoubleShift {
    fn apply<T: Word>(a: T, fill: T, count: u32, flags: u64) -> Outcome<T>;
}
struct Shld;
impl DoubleShift for Shld {
    fn apply<T: Word>(a: T, fill: T, count: u32, flags: u64) -> Outcome<T> {
        integer::shld(a, fill, count, flags)
    }
}
struct Shrd;
impl DoubleShift for Shrd {
    fn apply<T: Word>(a: T, fill: T, count: u32, flags: u64) -> Outcome<T> {
        integer::shrd(a, fill, count, flags)
    }
}

/// The count of SHLD and SHRD: CL where operand 2 is a register.
fn double_count(cpu: &Cpu, insn: &Insn) -> u8 {
    let is_cl = insn.iced.op2_kind() == iced_x86::OpKind::Register;
    if is_cl { cpu.state.gpr[RCX] as u8 } else { insn.imm as u8 }
}

fn double_register<S: DoubleShift, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let count = masked_count::<T>(double_count(cpu, insn));
    let value = cpu.reg::<T>(insn.dst);
    if count == 0 {
        cpu.set_reg(insn.dst, value);
        return Ok(());
    }
    let (result, status) = S::apply(value, cpu.reg(insn.src), count, cpu.state.rflags);
    cpu.set_reg(insn.dst, result);
    cpu.set_status_flags(status);
    Ok(())
}

fn double_memory<S: DoubleShift, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let count = masked_count::<T>(double_count(cpu, insn));
    let (fill, flags) = (cpu.reg::<T>(insn.src), cpu.state.rflags);
    let offset = cpu.effective_address(&insn.mem);
    let status = cpu.modify(usize::from(insn.mem.segment), offset, false, |a: T| {
        if count == 0 { (a, flags & STATUS) } else { S::apply(a, fill, count, flags) }
    })?;
    cpu.set_status_flags(status);
    Ok(())
}

fn double_forms<S: DoubleShift>(form: &Form) -> Forms {
    Forms {
        register: by_width!(form.width, double_register, S),
        memory: by_width!(form.width, double_memory, S),
    }
}

/// SHLX, SHRX, SARX and RORX: no flags; the count is a register's, or an immediate.
trait FlaglessShift {
    fn apply<T: Word>(a: T, count: u32) -> T;
}
struct Shlx;
impl FlaglessShift for Shlx {
    fn apply<T: Word>(a: T, count: u32) -> T {
        T::from_u64(a.to_u64() << count)
    }
}
struct Shrx;
impl FlaglessShift for Shrx {
    fn apply<T: Word>(a: T, count: u32) -> T {
        T::from_u64(a.to_u64() >> count)
    }
}
struct Sarx;
impl FlaglessShift for Sarx {
    fn apply<T: Word>(a: T, count: u32) -> T {
        T::from_u64((a.sign_extend() as i64 >> count) as u64)
    }
}
struct Rorx;
impl FlaglessShift for Rorx {
    fn apply<T: Word>(a: T, count: u32) -> T {
        integer::ror(a, count, 0).0
    }
}

fn flagless_count<T: Word>(cpu: &Cpu, insn: &Insn) -> u32 {
    match insn.iced.op2_register() {
        Register::None => masked_count::<T>(insn.imm as u8),
        register => masked_count::<T>(cpu.reg::<u8>(register_number(register))),
    }
}

fn flagless_register<S: FlaglessShift, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let count = flagless_count::<T>(cpu, insn);
    cpu.set_reg(insn.dst, S::apply(cpu.reg::<T>(insn.src), count));
    Ok(())
}

fn flagless_memory<S: FlaglessShift, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.load::<T>(&insn.mem)?;
    let count = flagless_count::<T>(cpu, insn);
    cpu.set_reg(insn.dst, S::apply(value, count));
    Ok(())
}

fn flagless_forms<S: FlaglessShift>(form: &Form) -> Forms {
    Forms {
        register: by_width!(form.width, flagless_register, S),
        memory: by_width!(form.width, flagless_memory, S),
    }
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    for_each_form(table, |table, form| {
        let forms = match form.mnemonic {
            Mnemonic::Shl | Mnemonic::Sal => forms::<Shl>(form),
            Mnemonic::Shr => forms::<Shr>(form),
            Mnemonic::Sar => forms::<Sar>(form),
            Mnemonic::Rol => rotations::<RolImmediate, Rol>(form),
            Mnemonic::Ror => rotations::<RorImmediate, Ror>(form),
            Mnemonic::Rcl => forms::<Rcl>(form),
            Mnemonic::Rcr => forms::<Rcr>(form),
            Mnemonic::Shld => double_forms::<Shld>(form),
            Mnemonic::Shrd => double_forms::<Shrd>(form),
            Mnemonic::Shlx => flagless_forms::<Shlx>(form),
            Mnemonic::Shrx => flagless_forms::<Shrx>(form),
            Mnemonic::Sarx => flagless_forms::<Sarx>(form),
            Mnemonic::Rorx => flagless_forms::<Rorx>(form),
            _ => return,
        };
        table.forms(form.code, forms.register, forms.memory);
    });
}
