//! MUL, IMUL, DIV, IDIV, MULX, and the decimal AAM, AAD, AAA, AAS, DAA, DAS.

use decoder::Vendor;
use iced_x86::{Code, Mnemonic};

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::flags::{self, Word, sign_zero_parity};
use crate::interp::dispatch::{Forms, Table};
use crate::interp::insn::{Insn, register_number};
use crate::interp::shape::{Form, by_width, for_each_form};
use crate::native::integer::{self, Outcome};
use crate::state::gpr::{RAX, RDX};
use crate::state::rflags::{AF, CF, OF};

const A: u8 = RAX as u8;
const D: u8 = RDX as u8;
const AH: u8 = 16;

/// The operand behind the opcode: register or memory.
#[inline(always)]
fn operand<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec<T> {
    if insn.dst == super::insn::NO_REGISTER { cpu.load(&insn.mem) } else { Ok(cpu.reg(insn.dst)) }
}

/// Writes a double-width product, or quotient and remainder, with the flags behind it: AX for
/// bytes, rDX:rAX otherwise.
fn set_pair<T: Word>(cpu: &mut Cpu, outcome: Outcome<(T, T)>) {
    let ((low, high), status) = outcome;
    if T::BYTES == 1 {
        cpu.set_reg(A, (high.to_u64() << 8 | low.to_u64()) as u16);
    } else {
        cpu.set_reg(A, low);
        cpu.set_reg(D, high);
    }
    cpu.set_status_flags(status);
}

/// AX for bytes, rDX:rAX otherwise, the low half first.
fn pair<T: Word>(cpu: &Cpu) -> (T, T) {
    (cpu.reg(A), cpu.reg(if T::BYTES == 1 { AH } else { D }))
}

fn mul<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = operand::<T>(cpu, insn)?;
    set_pair(cpu, integer::mul(pair(cpu), b, cpu.state.rflags));
    Ok(())
}

fn imul_pair<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = operand::<T>(cpu, insn)?;
    set_pair(cpu, integer::imul_pair(pair(cpu), b, cpu.state.rflags));
    Ok(())
}

fn imul_into<T: Word>(cpu: &mut Cpu, insn: &Insn, a: T, b: T) {
    let (product, status) = integer::imul(a, b, cpu.state.rflags);
    cpu.set_reg(insn.dst, product);
    cpu.set_status_flags(status);
}

/// Operand 1: register or memory.
#[inline(always)]
fn source<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec<T> {
    if insn.src == super::insn::NO_REGISTER { cpu.load(&insn.mem) } else { Ok(cpu.reg(insn.src)) }
}

fn imul_two<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = source::<T>(cpu, insn)?;
    let a = cpu.reg::<T>(insn.dst);
    imul_into(cpu, insn, a, b);
    Ok(())
}

fn imul_three<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let a = source::<T>(cpu, insn)?;
    imul_into(cpu, insn, a, T::from_u64(insn.imm));
    Ok(())
}

fn div<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let divisor = operand::<T>(cpu, insn)?;
    let dividend = pair::<T>(cpu);
    // So the quotient does not fit, or there is none.
    if dividend.1 >= divisor {
        return Err(Exception::DE);
    }
    set_pair(cpu, integer::div(dividend, divisor, cpu.state.rflags));
    Ok(())
}

/// True if the quotient of `dividend` by `divisor`, both signed, fits in `T`.
fn has_quotient<T: Word>(dividend: (T, T), divisor: T) -> bool {
    let (low, high) = (dividend.0.to_u64(), dividend.1.sign_extend() as i64);
    let dividend = i128::from(high) << T::BITS | i128::from(low);
    let divisor = divisor.sign_extend() as i64;
    // Almost every dividend fits 64 bits, for which the host has an instruction. Of those only a
    // divisor of zero and -2^63 / -1 have no quotient: #DE in every width.
    let quotient = match i64::try_from(dividend) {
        Ok(dividend) => dividend.checked_div(divisor).map(i128::from),
        Err(_) => dividend.checked_div(i128::from(divisor)),
    };
    quotient.is_some_and(|quotient| {
        quotient == i128::from(T::from_u64(quotient as u64).sign_extend() as i64)
    })
}

fn idiv<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let divisor = operand::<T>(cpu, insn)?;
    let dividend = pair::<T>(cpu);
    if !has_quotient(dividend, divisor) {
        return Err(Exception::DE);
    }
    set_pair(cpu, integer::idiv(dividend, divisor, cpu.state.rflags));
    Ok(())
}

/// MULX: operand 0 gets the high half (and wins if both are the same), operand 1 the low.
fn mulx<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = match insn.iced.op2_register() {
        iced_x86::Register::None => cpu.load::<T>(&insn.mem)?,
        register => cpu.reg(register_number(register)),
    };
    let product = u128::from(cpu.reg::<T>(D).to_u64()) * u128::from(b.to_u64());
    cpu.set_reg(insn.src, T::from_u64(product as u64));
    cpu.set_reg(insn.dst, T::from_u64((product >> T::BITS) as u64));
    Ok(())
}

/// Writes AL and AH.
fn set_ax(cpu: &mut Cpu, al: u8, ah: u8) {
    cpu.set_reg(A, u16::from_le_bytes([al, ah]));
}

fn aam(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let base = insn.imm as u8;
    let al = cpu.reg::<u8>(A);
    let quotient = al.checked_div(base).ok_or(Exception::DE)?;
    let remainder = al % base;
    set_ax(cpu, remainder, quotient);
    cpu.set_status_flags(sign_zero_parity(remainder));
    Ok(())
}

/// AAD. The flags, those that are undefined included, are of the addition that it does.
fn aad(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (al, ah) = (cpu.reg::<u8>(A), cpu.reg::<u8>(AH));
    let (result, status) = flags::add(al, ah.wrapping_mul(insn.imm as u8), 0);
    set_ax(cpu, result, 0);
    cpu.set_status_flags(status);
    Ok(())
}

/// An addition or a subtraction with its flags.
type Adjust<T> = fn(T, T, u64) -> (T, u64);

/// AAA and AAS: `adjust` adds or subtracts 106h to AX. The undefined flags are that addition's, of
/// 16 bits, on AMD's processors, and those of AL on Intel's.
fn ascii_adjust(cpu: &mut Cpu, adjust: Adjust<u16>) {
    let ax = cpu.reg::<u16>(A);
    let is_adjusted = ax & 0xf > 9 || cpu.flag(AF);
    let (ax, status) = adjust(ax, if is_adjusted { 0x106 } else { 0 }, 0);
    let ax = ax & 0xff0f;
    cpu.set_reg(A, ax);
    let carry = if is_adjusted { AF | CF } else { 0 };
    let open = match cpu.env.cpuid.vendor() {
        Vendor::Amd => status & !(AF | CF),
        Vendor::Intel => sign_zero_parity(ax as u8),
    };
    cpu.set_status_flags(carry | open);
}

fn aaa(cpu: &mut Cpu, _: &Insn) -> Exec {
    ascii_adjust(cpu, flags::add);
    Ok(())
}

fn aas(cpu: &mut Cpu, _: &Insn) -> Exec {
    ascii_adjust(cpu, flags::sub);
    Ok(())
}

/// DAA and DAS: `adjust` adds or subtracts 6 and 60h. OF, which is undefined, is that of both
/// steps as one on AMD's processors, and clear on Intel's.
fn decimal_adjust(cpu: &mut Cpu, adjust: Adjust<u8>, borrows: bool) {
    let old = cpu.reg::<u8>(A);
    let old_carry = cpu.flag(CF);
    let (mut change, mut carries) = (0, 0);
    if old & 0xf > 9 || cpu.flag(AF) {
        change += 6;
        carries |= AF;
        if borrows && (old_carry || old < 6) {
            carries |= CF;
        }
    }
    if old > 0x99 || old_carry {
        change += 0x60;
        carries |= CF;
    }
    let (al, status) = adjust(old, change, 0);
    cpu.set_reg(A, al);
    let others = match cpu.env.cpuid.vendor() {
        Vendor::Amd => AF | CF,
        Vendor::Intel => AF | CF | OF,
    };
    cpu.set_status_flags(carries | status & !others);
}

fn daa(cpu: &mut Cpu, _: &Insn) -> Exec {
    decimal_adjust(cpu, flags::add, false);
    Ok(())
}

fn das(cpu: &mut Cpu, _: &Insn) -> Exec {
    decimal_adjust(cpu, flags::sub, true);
    Ok(())
}

fn imul_forms(form: &Form) -> Forms {
    let handler = match form.operand_count {
        1 => by_width!(form.width, imul_pair),
        2 => by_width!(form.width, imul_two),
        _ => by_width!(form.width, imul_three),
    };
    Forms { register: handler, memory: handler }
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    for_each_form(table, |table, form| {
        let handler = match form.mnemonic {
            Mnemonic::Mul => by_width!(form.width, mul),
            Mnemonic::Div => by_width!(form.width, div),
            Mnemonic::Idiv => by_width!(form.width, idiv),
            Mnemonic::Mulx => by_width!(form.width, mulx),
            Mnemonic::Imul => imul_forms(form).register,
            _ => return,
        };
        table.both(form.code, handler);
    });
    table.both(Code::Aam_imm8, aam);
    table.both(Code::Aad_imm8, aad);
    table.both(Code::Aaa, aaa);
    table.both(Code::Aas, aas);
    table.both(Code::Daa, daa);
    table.both(Code::Das, das);
}
