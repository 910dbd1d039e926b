//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT, ADCX, ADOX, ANDN.

use iced_x86::Mnemonic;

use crate::Cpu;
use crate::exception::Exec;
use crate::flags::{self, Word};
use crate::interp::dispatch::{Forms, Table};
use crate::interp::insn::{Handler, Insn};
use crate::interp::shape::{Form, by_width, for_each_form};
use crate::state::rflags::{CF, OF, STATUS};

/// A two-operand operation: result and status flags.
pub(crate) trait Binary {
    /// False for CMP and TEST.
    const WRITES: bool = true;
    /// `carry` is CF as 0 or 1.
    fn apply<T: Word>(a: T, b: T, carry: u64) -> (T, u64);
}

macro_rules! binary {
    ($($name:ident $writes:literal |$a:ident, $b:ident, $carry:ident| $body:expr;)*) => {$(
        struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<T: Word>($a: T, $b: T, $carry: u64) -> (T, u64) {
                $body
            }
        }
    )*};
}

fn with_logic_flags<T: Word>(value: u64) -> (T, u64) {
    let result = T::from_u64(value);
    (result, flags::logic(result))
}

binary! {
    Add true |a, b, _carry| flags::add(a, b, 0);
    Adc true |a, b, carry| flags::add(a, b, carry);
    Sub true |a, b, _carry| flags::sub(a, b, 0);
    Sbb true |a, b, carry| flags::sub(a, b, carry);
    Cmp false |a, b, _carry| flags::sub(a, b, 0);
    And true |a, b, _carry| with_logic_flags(a.to_u64() & b.to_u64());
    Or true |a, b, _carry| with_logic_flags(a.to_u64() | b.to_u64());
    Xor true |a, b, _carry| with_logic_flags(a.to_u64() ^ b.to_u64());
    Test false |a, b, _carry| with_logic_flags(a.to_u64() & b.to_u64());
}

#[inline(always)]
fn carry(cpu: &Cpu) -> u64 {
    cpu.state.rflags & CF
}

fn register_register<O: Binary, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (result, status) = O::apply(cpu.reg::<T>(insn.dst), cpu.reg::<T>(insn.src), carry(cpu));
    if O::WRITES {
        cpu.set_reg(insn.dst, result);
    }
    cpu.set_status_flags(status);
    Ok(())
}

fn register_immediate<O: Binary, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (result, status) = O::apply(cpu.reg::<T>(insn.dst), T::from_u64(insn.imm), carry(cpu));
    if O::WRITES {
        cpu.set_reg(insn.dst, result);
    }
    cpu.set_status_flags(status);
    Ok(())
}

fn register_memory<O: Binary, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = cpu.load::<T>(&insn.mem)?;
    let (result, status) = O::apply(cpu.reg::<T>(insn.dst), b, carry(cpu));
    if O::WRITES {
        cpu.set_reg(insn.dst, result);
    }
    cpu.set_status_flags(status);
    Ok(())
}

fn memory_register<O: Binary, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = cpu.reg::<T>(insn.src);
    memory_value::<O, T>(cpu, insn, b)
}

fn memory_immediate<O: Binary, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    memory_value::<O, T>(cpu, insn, T::from_u64(insn.imm))
}

#[inline(always)]
fn memory_value<O: Binary, T: Word>(cpu: &mut Cpu, insn: &Insn, b: T) -> Exec {
    let carry = carry(cpu);
    let status = if O::WRITES {
        let offset = cpu.effective_address(&insn.mem);
        let segment = usize::from(insn.mem.segment);
        cpu.modify(segment, offset, insn.is_locked(), |a: T| O::apply(a, b, carry))?
    } else {
        O::apply(cpu.load::<T>(&insn.mem)?, b, carry).1
    };
    cpu.set_status_flags(status);
    Ok(())
}

fn binary_forms<O: Binary>(form: &Form) -> Forms {
    let register: Handler = if form.has_immediate {
        by_width!(form.width, register_immediate, O)
    } else {
        by_width!(form.width, register_register, O)
    };
    let memory: Handler = match (form.is_rm_first, form.has_immediate) {
        (true, true) => by_width!(form.width, memory_immediate, O),
        (true, false) => by_width!(form.width, memory_register, O),
        (false, _) => by_width!(form.width, register_memory, O),
    };
    Forms { register, memory }
}

/// A one-operand operation: result, the status flags it writes, and their values.
pub(crate) trait Unary {
    /// The status flags that are written.
    const MASK: u64;
    /// The result and the flags.
    fn apply<T: Word>(a: T) -> (T, u64);
}

struct Inc;
impl Unary for Inc {
    const MASK: u64 = STATUS & !CF;
    #[inline(always)]
    fn apply<T: Word>(a: T) -> (T, u64) {
        flags::add(a, T::from_u64(1), 0)
    }
}
struct Dec;
impl Unary for Dec {
    const MASK: u64 = STATUS & !CF;
    #[inline(always)]
    fn apply<T: Word>(a: T) -> (T, u64) {
        flags::sub(a, T::from_u64(1), 0)
    }
}
struct Neg;
impl Unary for Neg {
    const MASK: u64 = STATUS;
    #[inline(always)]
    fn apply<T: Word>(a: T) -> (T, u64) {
        flags::sub(T::default(), a, 0)
    }
}
struct Not;
impl Unary for Not {
    const MASK: u64 = 0;
    #[inline(always)]
    fn apply<T: Word>(a: T) -> (T, u64) {
        (T::from_u64(!a.to_u64()), 0)
    }
}

fn unary_register<O: Unary, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (result, status) = O::apply(cpu.reg::<T>(insn.dst));
    cpu.set_reg(insn.dst, result);
    cpu.set_flags(O::MASK, status);
    Ok(())
}

fn unary_memory<O: Unary, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let offset = cpu.effective_address(&insn.mem);
    let segment = usize::from(insn.mem.segment);
    let status = cpu.modify(segment, offset, insn.is_locked(), |a: T| O::apply(a))?;
    cpu.set_flags(O::MASK, status);
    Ok(())
}

fn unary_forms<O: Unary>(form: &Form) -> Forms {
    Forms {
        register: by_width!(form.width, unary_register, O),
        memory: by_width!(form.width, unary_memory, O),
    }
}

/// ADCX and ADOX: an addition that carries through one flag and leaves the others.
fn add_with_flag<const FLAG: u64, T: Word>(cpu: &mut Cpu, insn: &Insn, b: T) {
    let carry = u64::from(cpu.flag(FLAG));
    let (result, status) = flags::add(cpu.reg::<T>(insn.dst), b, carry);
    cpu.set_reg(insn.dst, result);
    cpu.set_flags(FLAG, if status & CF != 0 { FLAG } else { 0 });
}

struct Adcx;
struct Adox;
trait CarryFlag {
    const FLAG: u64;
}
impl CarryFlag for Adcx {
    const FLAG: u64 = CF;
}
impl CarryFlag for Adox {
    const FLAG: u64 = OF;
}

fn adx_register<F: CarryFlag, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = cpu.reg::<T>(insn.src);
    adx::<F, T>(cpu, insn, b);
    Ok(())
}

fn adx_memory<F: CarryFlag, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = cpu.load::<T>(&insn.mem)?;
    adx::<F, T>(cpu, insn, b);
    Ok(())
}

fn adx<F: CarryFlag, T: Word>(cpu: &mut Cpu, insn: &Insn, b: T) {
    if F::FLAG == CF {
        add_with_flag::<CF, T>(cpu, insn, b);
    } else {
        add_with_flag::<OF, T>(cpu, insn, b);
    }
}

fn adx_forms<F: CarryFlag>(form: &Form) -> Forms {
    Forms {
        register: by_width!(form.width, adx_register, F),
        memory: by_width!(form.width, adx_memory, F),
    }
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    for_each_form(table, |table, form| {
        let forms = match form.mnemonic {
            Mnemonic::Add => binary_forms::<Add>(form),
            Mnemonic::Or => binary_forms::<Or>(form),
            Mnemonic::Adc => binary_forms::<Adc>(form),
            Mnemonic::Sbb => binary_forms::<Sbb>(form),
            Mnemonic::And => binary_forms::<And>(form),
            Mnemonic::Sub => binary_forms::<Sub>(form),
            Mnemonic::Xor => binary_forms::<Xor>(form),
            Mnemonic::Cmp => binary_forms::<Cmp>(form),
            Mnemonic::Test => binary_forms::<Test>(form),
            Mnemonic::Inc => unary_forms::<Inc>(form),
            Mnemonic::Dec => unary_forms::<Dec>(form),
            Mnemonic::Neg => unary_forms::<Neg>(form),
            Mnemonic::Not => unary_forms::<Not>(form),
            Mnemonic::Adcx => adx_forms::<Adcx>(form),
            Mnemonic::Adox => adx_forms::<Adox>(form),
            _ => return,
        };
        table.forms(form.code, forms.register, forms.memory);
    });
}
