//! Bits: BT, BTS, BTR, BTC, BSF, BSR, TZCNT, LZCNT, POPCNT, CRC32, and BMI's ANDN, BEXTR, BLSI,
//! BLSMSK, BLSR, BZHI, PDEP, PEXT.

use iced_x86::{Code, Mnemonic, Register};

use crate::Cpu;
use crate::exception::Exec;
use crate::flags::{Word, sign_zero_parity};
use crate::interp::dispatch::{Forms, Table};
use crate::interp::insn::{Insn, NO_REGISTER, register_number};
use crate::interp::shape::{Form, by_width, for_each_form};
use crate::state::rflags::{AF, CF, OF, SF, STATUS, ZF};

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

fn zeros_below<T: Word>(value: T) -> u32 {
    value.to_u64().trailing_zeros().min(T::BITS)
}

fn zeros_above<T: Word>(value: T) -> u32 {
    value.to_u64().leading_zeros() - (64 - T::BITS)
}

/// BSF and BSR of zero: ZF is set and the destination keeps its value, on both vendors' CPUs (a
/// 32-bit destination keeps its upper half too). Other flags are undefined and stay.
fn scan<T: Word>(cpu: &mut Cpu, insn: &Insn, find: fn(T) -> u32) -> Exec {
    let value = source::<T>(cpu, insn)?;
    if value == T::default() {
        cpu.set_flags(ZF, ZF);
    } else {
        cpu.set_reg(insn.dst, T::from_u64(u64::from(find(value))));
        cpu.set_flags(ZF, 0);
    }
    Ok(())
}

fn bsf<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    scan::<T>(cpu, insn, zeros_below)
}

fn bsr<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    scan::<T>(cpu, insn, |value| T::BITS - 1 - zeros_above(value))
}

/// TZCNT and LZCNT: CF for a zero source, ZF for a zero result. OF, undefined like the others,
/// stays.
fn count_zeros<T: Word>(cpu: &mut Cpu, insn: &Insn, count: fn(T) -> u32) -> Exec {
    let value = source::<T>(cpu, insn)?;
    let result = count(value);
    cpu.set_reg(insn.dst, T::from_u64(u64::from(result)));
    let carry = if value == T::default() { CF } else { 0 };
    cpu.set_flags(STATUS & !OF, carry | if result == 0 { ZF } else { 0 });
    Ok(())
}

fn tzcnt<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    count_zeros::<T>(cpu, insn, zeros_below)
}

fn lzcnt<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    count_zeros::<T>(cpu, insn, zeros_above)
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
    let result = T::from_u64(!cpu.reg::<T>(insn.src).to_u64() & b.to_u64());
    cpu.set_reg(insn.dst, result);
    cpu.set_status_flags(sign_zero_parity(result));
    Ok(())
}

fn bextr<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = source::<T>(cpu, insn)?.to_u64();
    let control = cpu.reg::<T>(register_number(insn.iced.op2_register())).to_u64();
    let (start, length) = (control as u8, (control >> 8) as u8);
    let shifted = if start < 64 { value >> start } else { 0 };
    let mask = if length < 64 { (1u64 << length) - 1 } else { u64::MAX };
    let result = T::from_u64(shifted & mask);
    cpu.set_reg(insn.dst, result);
    // SF, PF and AF are undefined: Zen 3 has these.
    cpu.set_status_flags(AF | sign_zero_parity(result) & !SF);
    Ok(())
}

fn bzhi<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = source::<T>(cpu, insn)?.to_u64();
    let index = u32::from(cpu.reg::<u8>(register_number(insn.iced.op2_register())));
    let is_all = index >= T::BITS;
    let result = T::from_u64(if is_all { value } else { value & ((1 << index) - 1) });
    cpu.set_reg(insn.dst, result);
    cpu.set_status_flags(sign_zero_parity(result) | if is_all { CF } else { 0 });
    Ok(())
}

/// BLSI, BLSMSK and BLSR: the lowest set bit, with CF about the source being zero.
fn lowest_bit<T: Word>(
    cpu: &mut Cpu,
    insn: &Insn,
    apply: fn(u64) -> u64,
    carry_if_zero: bool,
) -> Exec {
    // VEX.vvvv is operand 0, the source operand 1.
    let value = source::<T>(cpu, insn)?;
    let result = T::from_u64(apply(value.to_u64()));
    cpu.set_reg(insn.dst, result);
    let carry = if (value == T::default()) == carry_if_zero { CF } else { 0 };
    cpu.set_status_flags(sign_zero_parity(result) | carry);
    Ok(())
}

fn blsi<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    lowest_bit::<T>(cpu, insn, |value| value & value.wrapping_neg(), false)
}

fn blsmsk<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    lowest_bit::<T>(cpu, insn, |value| value ^ value.wrapping_sub(1), true)
}

fn blsr<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    lowest_bit::<T>(cpu, insn, |value| value & value.wrapping_sub(1), true)
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
