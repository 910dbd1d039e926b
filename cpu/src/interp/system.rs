//! HLT, MONITOR and MWAIT, invalidation of caches and translations, hypercalls, and what is left.
//!
//! Sources: SDM Vol. 2, "HLT", "INVLPG", "INVPCID", "MONITOR", "MWAIT", "RDPMC"; APM Vol. 3,
//! "MONITORX", "MWAITX".

use iced_x86::{Code, Register};

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::interp::dispatch::Table;
use crate::interp::insn::{Insn, register_number};
use crate::mmu::{Access, Flush};
use crate::state::{Activity, cr4, gpr, seg};

/// MWAIT's ECX: an interrupt ends the wait even if it is masked.
const MWAIT_BREAK_ON_INTERRUPT: u64 = 1;
/// MWAITX's ECX: a timer ends the wait.
const MWAITX_TIMER: u64 = 1 << 1;

fn hlt(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.state.activity = Activity::Halted;
    cpu.break_block = true;
    Ok(())
}

/// Memory is coherent: nothing to write back or to lose.
fn no_operation(_: &mut Cpu, _: &Insn) -> Exec {
    Ok(())
}

/// In 64-bit mode an address that is not canonical has no translation to drop.
fn invlpg(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let offset = cpu.effective_address(&insn.mem);
    let segment = usize::from(insn.mem.segment) % 6;
    let is_64 = cpu.mode.is_64();
    let base = if is_64 && segment < seg::FS { 0 } else { cpu.state.segments[segment].base };
    let linear = base.wrapping_add(offset);
    let linear = if is_64 { linear } else { linear & 0xffff_ffff };
    if cpu.mode.is_canonical(linear) {
        cpu.flush(Flush::Page(linear));
    }
    Ok(())
}

fn invpcid(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let kind = cpu.reg::<u64>(insn.dst) & if cpu.mode.is_64() { u64::MAX } else { 0xffff_ffff };
    let mut descriptor = [0; 16];
    let offset = cpu.effective_address(&insn.mem);
    cpu.read_bytes(usize::from(insn.mem.segment), offset, &mut descriptor)?;
    let value = u128::from_le_bytes(descriptor);
    let (pcid, linear) = (value as u64, (value >> 64) as u64);
    let names_pcid = kind <= 1;
    let is_valid = kind <= 3
        && pcid >> 12 == 0
        && (!names_pcid || pcid == 0 || cpu.state.cr4 & cr4::PCIDE != 0)
        && (kind != 0 || cpu.is_canonical_base(linear));
    if !is_valid {
        return Err(Exception::GP0);
    }
    cpu.flush(match kind {
        0 => Flush::Page(linear),
        1 => Flush::Pcid(pcid as u16),
        2 => Flush::Everything,
        _ => Flush::NonGlobal,
    });
    Ok(())
}

/// The address that MONITOR watches is checked as a byte read of it.
fn monitor(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if cpu.reg::<u32>(gpr::RCX as u8) != 0 {
        return Err(Exception::GP0);
    }
    let width = match insn.iced.code() {
        Code::Monitorw | Code::Monitorxw => 0xffff,
        Code::Monitord | Code::Monitorxd => 0xffff_ffff,
        _ => u64::MAX,
    };
    let segment = match insn.iced.segment_prefix() {
        Register::None => seg::DS,
        register => usize::from(register_number(register)),
    };
    cpu.check_access(segment, cpu.state.gpr[gpr::RAX] & width, 1, Access::Read)
}

/// A wait that ends at once, which the architecture allows for any reason of the processor's: a
/// store by another CPU must end it, and stores are not watched.
fn wait(cpu: &mut Cpu, extensions: u64) -> Exec {
    if cpu.state.gpr[gpr::RCX] & 0xffff_ffff & !extensions != 0 {
        return Err(Exception::GP0);
    }
    cpu.break_block = true;
    Ok(())
}

fn mwait(cpu: &mut Cpu, _: &Insn) -> Exec {
    wait(cpu, MWAIT_BREAK_ON_INTERRUPT)
}

fn mwaitx(cpu: &mut Cpu, _: &Insn) -> Exec {
    wait(cpu, MWAIT_BREAK_ON_INTERRUPT | MWAITX_TIMER)
}

fn hypercall(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.hypercall()
}

/// No performance counter exists.
fn rdpmc(_: &mut Cpu, _: &Insn) -> Exec {
    Err(Exception::GP0)
}

fn serialize(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.break_block = true;
    Ok(())
}

pub(crate) fn register(table: &mut Table) {
    use Code::*;
    table.both(Hlt, hlt);
    for code in [Invd, Wbinvd, Wbnoinvd] {
        table.both(code, no_operation);
    }
    table.both(Invlpg_m, invlpg);
    table.both(Invpcid_r32_m128, invpcid);
    table.both(Invpcid_r64_m128, invpcid);
    for code in [Monitorw, Monitord, Monitorq, Monitorxw, Monitorxd, Monitorxq] {
        table.both(code, monitor);
    }
    table.both(Mwait, mwait);
    table.both(Mwaitx, mwaitx);
    table.both(Vmcall, hypercall);
    table.both(Vmmcall, hypercall);
    table.both(Rdpmc, rdpmc);
    table.both(Serialize, serialize);
}
