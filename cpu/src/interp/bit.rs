//! Bits: BT, BTS, BTR, BTC, BSF, BSR, TZCNT, LZCNT, POPCNT, CRC32, and BMI's ANDN, BEXTR, BLSI,
//! BLSMSK, BLSR, BZHI, PDEP, PEXT.

use iced_x86::{Code, Mnemonic, Register};

use crate::Cpu;
use crate::exception::Exec;
use crate::flags::Word;
use crate::interp::dispatch::{Forms, Table};
use crate::interp::insn::{Insn, NO_REGISTER, register_number};
use crate::interp::shape::{Form, by_width, for_each_form};
use crate::native::integer::{self, Outcome};
use crate::state::rflags::{CF, ZF};

/// What happens to the bit that CF gets.
trait BitChange {
    const WRITES: bool = true;
    fn change(value: u64, bit: u64) -> u64;
}
struct Bt;
impl BitChange for Bt {
    const WRITES: bool = false;
    fn change(value: u64, _: u64) -> u64 {
        value
    }
}
struct Bts;
impl BitChange for Bts {
    fn change(value: u64, bit: u64) -> u64 {
        value | bit
    }
}
struct Btr;
impl BitChange for Btr {
    fn change(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}
struct Btc;
impl BitChange for Btc {
    fn change(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

/// The bit offset: a register's or an immediate.
#[inline(always)]
fn bit_offset<T: Word>(cpu: &Cpu, insn: &Insn) -> u64 {
    if insn.src == NO_REGISTER { insn.imm & 0xff } else { cpu.reg::<T>(insn.src).sign_extend() }
}

fn bit_register<B: BitChange, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let bit = 1 << (bit_offset::<T>(cpu, insn) % u64::from(T::BITS));
    let value = cpu.reg::<T>(insn.dst).to_u64();
    if B::WRITES {
        cpu.set_reg(insn.dst, T::from_u64(B::change(value, bit)));
    }
    cpu.set_flags(CF, u64::from(value & bit != 0));
    Ok(())
}

/// With a register offset the operand is a bit string: the signed offset also moves the address.
/// (Operand 1's register is `src`; operand 0 is the memory.)
fn bit_memory<B: BitChange, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let offset = bit_offset::<T>(cpu, insn);
    let bit = 1 << (offset % u64::from(T::BITS));
    let mut address = cpu.effective_address(&insn.mem);
    if insn.src != NO_REGISTER {
        let units = offset as i64 >> T::BITS.trailing_zeros();
        address = address.wrapping_add((units as u64).wrapping_mul(T::BYTES));
        address &= u64::MAX >> (64 - 8 * u32::from(insn.mem.address_size));
    }
    let segment = usize::from(insn.mem.segment);
    let value = if B::WRITES {
        cpu.modify(segment, address, insn.is_locked(), |value: T| {
            (T::from_u64(B::change(value.to_u64(), bit)), value)
        })?
    } else {
        cpu.read::<T>(segment, address)?
    };
    cpu.set_flags(CF, u64::from(value.to_u64() & bit != 0));
    Ok(())
}

fn bit_forms<B: BitChange>(form: &Form) -> Forms {
    Forms {
        register: by_width!(form.width, bit_register, B),
        memory: by_width!(form.width, bit_memory, B),
    }
}

/// Operand 1: register or memory.
#[inline(always)]
fn source<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec<T> {
    if insn.src == NO_REGISTER { cpu.load(&insn.mem) } else { Ok(cpu.reg(insn.src)) }
}

/// An instruction of the host on a destination and a source.
type Two<T> = fn(T, T, u64) -> Outcome<T>;

/// Writes what an instruction of the host has come to.
fn finish<T: Word>(cpu: &mut Cpu, insn: &Insn, outcome: Outcome<T>) -> Exec {
    let (result, status) = outcome;
    cpu.set_reg(insn.dst, result);
    cpu.set_status_flags(status);
    Ok(())
}

/// BSF and BSR of zero: ZF is set and the destination keeps its value, on both vendors' CPUs (a
/// 32-bit destination keeps its upper half too).
fn scan<T: Word>(cpu: &mut Cpu, insn: &Insn, find: Two<T>) -> Exec {
    let value = source::<T>(cpu, insn)?;
    let (result, status) = find(T::default(), value, cpu.state.rflags);
    if value != T::default() {
        cpu.set_reg(insn.dst, result);
    }
    cpu.set_status_flags(status);
    Ok(())
}

fn bsf<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    scan::<T>(cpu, insn, integer::bsf)
}

fn bsr<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    scan::<T>(cpu, insn, integer::bsr)
}

/// TZCNT, LZCNT, BLSI, BLSMSK and BLSR: functions of the source alone.
fn of_source<T: Word>(cpu: &mut Cpu, insn: &Insn, run: Two<T>) -> Exec {
    let value = source::<T>(cpu, insn)?;
    let outcome = run(T::default(), value, cpu.state.rflags);
    finish(cpu, insn, outcome)
}

fn tzcnt<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    of_source::<T>(cpu, insn, integer::tzcnt)
}

fn lzcnt<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    of_source::<T>(cpu, insn, integer::lzcnt)
}

fn blsi<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    of_source::<T>(cpu, insn, integer::blsi)
}

fn blsmsk<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    of_source::<T>(cpu, insn, integer::blsmsk)
}

fn blsr<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    of_source::<T>(cpu, insn, integer::blsr)
}

fn popcnt<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = source::<T>(cpu, insn)?;
    cpu.set_reg(insn.dst, T::from_u64(u64::from(value.to_u64().count_ones())));
    cpu.set_status_flags(if value == T::default() { ZF } else { 0 });
    Ok(())
}

/// CRC32 with the Castagnoli polynomial, bit-reflected; `T` is the source.
fn crc32<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let value = source::<T>(cpu, insn)?;
    let mut crc = cpu.reg::<u32>(insn.dst);
    for byte in &value.to_u64().to_le_bytes()[..T::BYTES as usize % 9] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
        }
    }
    cpu.set_reg(insn.dst, crc);
    Ok(())
}

/// Operand 2: register or memory.
#[inline(always)]
fn third<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec<T> {
    match insn.iced.op2_register() {
        Register::None => cpu.load(&insn.mem),
        register => Ok(cpu.reg(register_number(register))),
    }
}

fn andn<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = third::<T>(cpu, insn)?;
    let outcome = integer::andn(cpu.reg(insn.src), b, cpu.state.rflags);
    finish(cpu, insn, outcome)
}

fn bextr<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = source::<T>(cpu, insn)?;
    let control = cpu.reg(register_number(insn.iced.op2_register()));
    let outcome = integer::bextr(value, control, cpu.state.rflags);
    finish(cpu, insn, outcome)
}

fn bzhi<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = source::<T>(cpu, insn)?;
    let index = cpu.reg(register_number(insn.iced.op2_register()));
    let outcome = integer::bzhi(value, index, cpu.state.rflags);
    finish(cpu, insn, outcome)
}

/// PDEP: the low bits of operand 1 go where the mask has ones.
fn pdep<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let mut mask = third::<T>(cpu, insn)?.to_u64();
    let mut source = cpu.reg::<T>(insn.src).to_u64();
    let mut result = 0;
    while mask != 0 {
        let bit = mask & mask.wrapping_neg();
        if source & 1 != 0 {
            result |= bit;
        }
        source >>= 1;
        mask ^= bit;
    }
    cpu.set_reg(insn.dst, T::from_u64(result));
    Ok(())
}

/// PEXT: the bits of operand 1 where the mask has ones, packed low.
fn pext<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let mut mask = third::<T>(cpu, insn)?.to_u64();
    let source = cpu.reg::<T>(insn.src).to_u64();
    let (mut result, mut position) = (0, 0);
    while mask != 0 {
        let bit = mask & mask.wrapping_neg();
        result |= u64::from(source & bit != 0) << position;
        position += 1;
        mask ^= bit;
    }
    cpu.set_reg(insn.dst, T::from_u64(result));
    Ok(())
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    for_each_form(table, |table, form| {
        let width = form.width;
        let handler = match form.mnemonic {
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => {
                let forms = match form.mnemonic {
                    Mnemonic::Bt => bit_forms::<Bt>(form),
                    Mnemonic::Bts => bit_forms::<Bts>(form),
                    Mnemonic::Btr => bit_forms::<Btr>(form),
                    _ => bit_forms::<Btc>(form),
                };
                return table.forms(form.code, forms.register, forms.memory);
            }
            Mnemonic::Bsf => by_width!(width, bsf),
            Mnemonic::Bsr => by_width!(width, bsr),
            Mnemonic::Tzcnt => by_width!(width, tzcnt),
            Mnemonic::Lzcnt => by_width!(width, lzcnt),
            Mnemonic::Popcnt => by_width!(width, popcnt),
            Mnemonic::Crc32 => by_width!(form.source_width, crc32),
            Mnemonic::Andn => by_width!(width, andn),
            Mnemonic::Bextr if !is_tbm(form.code) => by_width!(width, bextr),
            Mnemonic::Bzhi => by_width!(width, bzhi),
            Mnemonic::Blsi => by_width!(width, blsi),
            Mnemonic::Blsmsk => by_width!(width, blsmsk),
            Mnemonic::Blsr => by_width!(width, blsr),
            Mnemonic::Pdep => by_width!(width, pdep),
            Mnemonic::Pext => by_width!(width, pext),
            _ => return,
        };
        table.both(form.code, handler);
    });
}

/// AMD's TBM has a BEXTR with an immediate, which is not offered.
fn is_tbm(code: Code) -> bool {
    matches!(code, Code::XOP_Bextr_r32_rm32_imm32 | Code::XOP_Bextr_r64_rm64_imm32)
}
