//! Descriptor-table registers, LDTR and TR, and the instructions that inspect descriptors.
//!
//! Source: SDM Vol. 2, "LGDT/LIDT", "LLDT", "LTR", "SGDT", "LAR", "LSL", "VERR/VERW", "ARPL".

use iced_x86::Code;

use crate::Cpu;
use crate::descriptor::{Descriptor, Selector, SystemType};
use crate::exception::{Exception, Exec};
use crate::flags::Word;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::state::{Segment, TableRegister, rflags};

/// A 16-bit operand size leaves the base 24 bits.
const BASE_OF_16: u64 = 0xff_ffff;
/// TSS descriptors: bit 1 of the type.
const BUSY: u16 = 2;

/// Reads limit and base, of which `mask` counts.
fn read_table_register<T: Word>(cpu: &mut Cpu, insn: &Insn, mask: u64) -> Exec<TableRegister> {
    let at = cpu.effective_address(&insn.mem);
    let segment = usize::from(insn.mem.segment);
    let limit = cpu.read(segment, at)?;
    let base = cpu.read::<T>(segment, at.wrapping_add(2))?.to_u64() & mask;
    if cpu.mode.is_64() && !cpu.is_canonical_base(base) {
        return Err(Exception::GP0);
    }
    Ok(TableRegister { base, limit })
}

fn lgdt<T: Word, const MASK: u64>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.state.gdtr = read_table_register::<T>(cpu, insn, MASK)?;
    cpu.break_block = true;
    Ok(())
}

fn lidt<T: Word, const MASK: u64>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.state.idtr = read_table_register::<T>(cpu, insn, MASK)?;
    cpu.break_block = true;
    Ok(())
}

/// Stores limit and base, all or nothing. The 16-bit form stores the base in full too.
fn write_table_register(cpu: &mut Cpu, insn: &Insn, value: TableRegister) -> Exec {
    let at = cpu.effective_address(&insn.mem);
    let mut image = [0; 10];
    image[..2].copy_from_slice(&value.limit.to_le_bytes());
    image[2..].copy_from_slice(&value.base.to_le_bytes());
    let length = if cpu.mode.is_64() { 10 } else { 6 };
    cpu.write_bytes(usize::from(insn.mem.segment), at, &image[..length])
}

fn sgdt(cpu: &mut Cpu, insn: &Insn) -> Exec {
    write_table_register(cpu, insn, cpu.state.gdtr)
}

fn sidt(cpu: &mut Cpu, insn: &Insn) -> Exec {
    write_table_register(cpu, insn, cpu.state.idtr)
}

/// The 16-bit operand of LLDT, LTR, VERR and VERW.
fn selector_register(cpu: &mut Cpu, insn: &Insn) -> Exec<Selector> {
    Ok(Selector(cpu.reg(insn.dst)))
}

fn selector_memory(cpu: &mut Cpu, insn: &Insn) -> Exec<Selector> {
    cpu.load(&insn.mem).map(Selector)
}

impl Cpu {
    fn load_ldtr(&mut self, selector: Selector) -> Exec {
        self.state.ldtr = self.ldt_segment(selector, Exception::gp, Exception::np)?;
        self.break_block = true;
        Ok(())
    }

    fn load_tr(&mut self, selector: Selector) -> Exec {
        let fault = Err(Exception::gp(selector.code()));
        if selector.is_null() || selector.is_local() {
            return fault;
        }
        let entry = self.descriptor(selector, Exception::gp)?;
        let is_tss = match entry.descriptor.system_type() {
            Some(SystemType::Tss32Available) => true,
            Some(SystemType::Tss16Available) => !self.mode.is_long(),
            _ => false,
        };
        if !is_tss {
            return fault;
        }
        if !entry.descriptor.is_present() {
            return Err(Exception::np(selector.code()));
        }
        let base = entry.descriptor.base | self.high_base(&entry, Exception::gp)?;
        if !self.is_canonical_base(base) {
            return fault;
        }
        self.mark_busy(entry.address)?;
        // Nothing faults from here on.
        let segment = entry.descriptor.segment(selector);
        self.state.tr = Segment { base, attributes: segment.attributes | BUSY, ..segment };
        self.break_block = true;
        Ok(())
    }

    /// The descriptor of `selector` if LAR and its like may see it: in its table, and of a
    /// privilege that CPL and RPL reach unless it is conforming code.
    fn visible_descriptor(&mut self, selector: Selector) -> Exec<Option<Descriptor>> {
        if selector.is_null() {
            return Ok(None);
        }
        let Some(entry) = self.find_descriptor(selector)? else { return Ok(None) };
        let descriptor = entry.descriptor;
        let level = self.state.cpl.max(selector.rpl());
        let is_visible = descriptor.is_conforming() || descriptor.dpl() >= level;
        Ok(is_visible.then_some(descriptor))
    }

    fn set_zero_flag(&mut self, is_set: bool) {
        self.set_flags(rflags::ZF, if is_set { rflags::ZF } else { 0 });
    }
}

/// The system descriptors that LAR reads, and (`has_limit`) those that LSL does.
fn has_attribute(descriptor: &Descriptor, is_long: bool, has_limit: bool) -> bool {
    use SystemType::*;
    let Some(kind) = descriptor.system_type() else {
        return descriptor.attributes & crate::state::attr::S != 0;
    };
    match kind {
        Ldt | Tss32Available | Tss32Busy => true,
        CallGate32 => !has_limit,
        Tss16Available | Tss16Busy => !is_long,
        CallGate16 | TaskGate => !is_long && !has_limit,
        InterruptGate16 | TrapGate16 | InterruptGate32 | TrapGate32 => false,
    }
}

/// LAR (`LIMIT` false) or LSL (true) of `selector` into the destination.
fn inspect<T: Word, const LIMIT: bool>(cpu: &mut Cpu, insn: &Insn, selector: Selector) -> Exec {
    let is_long = cpu.mode.is_long();
    let descriptor = cpu
        .visible_descriptor(selector)?
        .filter(|descriptor| has_attribute(descriptor, is_long, LIMIT));
    cpu.set_zero_flag(descriptor.is_some());
    if let Some(descriptor) = descriptor {
        let value = if LIMIT { descriptor.limit } else { descriptor.access_rights() };
        cpu.set_reg(insn.dst, T::from_u64(u64::from(value)));
    }
    Ok(())
}

fn inspect_register<T: Word, const LIMIT: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let selector = Selector(cpu.reg(insn.src));
    inspect::<T, LIMIT>(cpu, insn, selector)
}

fn inspect_memory<T: Word, const LIMIT: bool>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let selector = Selector(cpu.load(&insn.mem)?);
    inspect::<T, LIMIT>(cpu, insn, selector)
}

fn verify_read(cpu: &mut Cpu, selector: Selector) -> Exec {
    let descriptor = cpu.visible_descriptor(selector)?;
    cpu.set_zero_flag(descriptor.is_some_and(|descriptor| descriptor.is_readable()));
    Ok(())
}

fn verify_write(cpu: &mut Cpu, selector: Selector) -> Exec {
    let descriptor = cpu.visible_descriptor(selector)?;
    cpu.set_zero_flag(descriptor.is_some_and(|descriptor| descriptor.is_writable_data()));
    Ok(())
}

/// Gives a handler for an instruction with one selector operand, in a register and in memory.
macro_rules! selector_forms {
    ($table:ident, [$($code:ident),*], $action:expr) => {
        for code in [$(Code::$code),*] {
            $table.forms(
                code,
                |cpu, insn| {
                    let selector = selector_register(cpu, insn)?;
                    $action(cpu, selector)
                },
                |cpu, insn| {
                    let selector = selector_memory(cpu, insn)?;
                    $action(cpu, selector)
                },
            );
        }
    };
}

fn store_ldtr<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.set_reg(insn.dst, T::from_u64(u64::from(cpu.state.ldtr.selector)));
    Ok(())
}

fn store_tr<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.set_reg(insn.dst, T::from_u64(u64::from(cpu.state.tr.selector)));
    Ok(())
}

fn store_ldtr_memory(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.store(&insn.mem, cpu.state.ldtr.selector)
}

fn store_tr_memory(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.store(&insn.mem, cpu.state.tr.selector)
}

/// The new destination of ARPL, and whether it is one: its RPL raised to the source's.
fn adjust_rpl(destination: u16, source: u16) -> (u16, bool) {
    if destination & 3 < source & 3 {
        (destination & !3 | source & 3, true)
    } else {
        (destination, false)
    }
}

fn arpl(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (value, is_changed) = adjust_rpl(cpu.reg(insn.dst), cpu.reg(insn.src));
    cpu.set_reg(insn.dst, value);
    cpu.set_zero_flag(is_changed);
    Ok(())
}

/// The source is the only register operand: `src`.
fn arpl_memory(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let source = cpu.reg(insn.src);
    let at = cpu.effective_address(&insn.mem);
    let segment = usize::from(insn.mem.segment);
    let is_changed = cpu.modify(segment, at, false, |old| adjust_rpl(old, source))?;
    cpu.set_zero_flag(is_changed);
    Ok(())
}

#[rustfmt::skip]
pub(crate) fn register(table: &mut Table) {
    use Code::*;
    table.both(Lgdt_m1632_16, lgdt::<u32, BASE_OF_16>);
    table.both(Lgdt_m1632,    lgdt::<u32, { u64::MAX }>);
    table.both(Lgdt_m1664,    lgdt::<u64, { u64::MAX }>);
    table.both(Lidt_m1632_16, lidt::<u32, BASE_OF_16>);
    table.both(Lidt_m1632,    lidt::<u32, { u64::MAX }>);
    table.both(Lidt_m1664,    lidt::<u64, { u64::MAX }>);
    for code in [Sgdt_m1632_16, Sgdt_m1632, Sgdt_m1664] {
        table.both(code, sgdt);
    }
    for code in [Sidt_m1632_16, Sidt_m1632, Sidt_m1664] {
        table.both(code, sidt);
    }
    selector_forms!(table, [Lldt_rm16, Lldt_r32m16, Lldt_r64m16], Cpu::load_ldtr);
    selector_forms!(table, [Ltr_rm16, Ltr_r32m16, Ltr_r64m16], Cpu::load_tr);
    selector_forms!(table, [Verr_rm16, Verr_r32m16, Verr_r64m16], verify_read);
    selector_forms!(table, [Verw_rm16, Verw_r32m16, Verw_r64m16], verify_write);
    table.forms(Sldt_rm16,   store_ldtr::<u16>, store_ldtr_memory);
    table.forms(Sldt_r32m16, store_ldtr::<u32>, store_ldtr_memory);
    table.forms(Sldt_r64m16, store_ldtr::<u64>, store_ldtr_memory);
    table.forms(Str_rm16,    store_tr::<u16>, store_tr_memory);
    table.forms(Str_r32m16,  store_tr::<u32>, store_tr_memory);
    table.forms(Str_r64m16,  store_tr::<u64>, store_tr_memory);
    table.forms(Lar_r16_rm16,   inspect_register::<u16, false>, inspect_memory::<u16, false>);
    table.forms(Lar_r32_r32m16, inspect_register::<u32, false>, inspect_memory::<u32, false>);
    table.forms(Lar_r64_r64m16, inspect_register::<u64, false>, inspect_memory::<u64, false>);
    table.forms(Lsl_r16_rm16,   inspect_register::<u16, true>, inspect_memory::<u16, true>);
    table.forms(Lsl_r32_r32m16, inspect_register::<u32, true>, inspect_memory::<u32, true>);
    table.forms(Lsl_r64_r64m16, inspect_register::<u64, true>, inspect_memory::<u64, true>);
    table.forms(Arpl_rm16_r16,   arpl, arpl_memory);
    table.forms(Arpl_r32m16_r32, arpl, arpl_memory);
}
