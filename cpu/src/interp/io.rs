//! IN and OUT, and the permission check they share with INS and OUTS.

use iced_x86::Code;

use memory::Width;

use crate::Cpu;
use crate::debugger::Caught;
use crate::exception::{Exception, Exec};
use crate::flags::Word;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::mmu::Access;
use crate::state::gpr::{RAX, RDX};
use crate::state::{attr, rflags};

/// Offset of the I/O map base in a 32- and 64-bit TSS.
const IO_MAP_BASE: u64 = 0x66;
/// The type of a 32-bit (or 64-bit) TSS without its busy bit.
const TSS32: u16 = 0x9;

impl Cpu {
    /// SDM Vol. 1, "I/O Permission Bit Map": CPL at most IOPL, or every bit of the access clear.
    pub(crate) fn check_io_permission(&mut self, port: u16, bytes: u64) -> Exec {
        let iopl = (self.state.rflags & rflags::IOPL) >> 12;
        let is_v86 = self.flag(rflags::VM);
        if !is_v86 && u64::from(self.state.cpl) <= iopl {
            return Ok(());
        }
        let tr = self.state.tr;
        if tr.attributes & 0xd != TSS32 || !tr.has(attr::P) || u64::from(tr.limit) < IO_MAP_BASE + 1
        {
            return Err(Exception::GP0);
        }
        let map = u64::from(self.read_system::<u16>(tr.base.wrapping_add(IO_MAP_BASE))?);
        let offset = map + u64::from(port) / 8;
        // Two bytes are always read, so the last one must be inside the limit too.
        if offset + 1 > u64::from(tr.limit) {
            return Err(Exception::GP0);
        }
        let bits = self.read_system::<u16>(tr.base.wrapping_add(offset))?;
        let mask = (1u16 << bytes) - 1;
        if bits >> (port % 8) & mask != 0 { Err(Exception::GP0) } else { Ok(()) }
    }

    /// Reads a port, permission checked.
    pub(crate) fn port_read<T: Word>(&mut self, port: u16) -> T {
        self.check_io_breakpoints(port, T::BYTES);
        let value = u64::from(self.env.ports.read(port, width::<T>()));
        self.note_port(Access::Read, port, value, T::BYTES);
        T::from_u64(value)
    }

    /// Writes a port, permission checked.
    pub(crate) fn port_write<T: Word>(&mut self, port: u16, value: T) {
        self.check_io_breakpoints(port, T::BYTES);
        self.note_port(Access::Write, port, value.to_u64(), T::BYTES);
        self.env.ports.write(port, width::<T>(), value.to_u64() as u32);
    }

    /// Tells a trace and a debugger of an access; a write's effects come behind it.
    fn note_port(&mut self, access: Access, port: u16, value: u64, bytes: u64) {
        self.record_port(access, port, value, bytes);
        let is_write = access == Access::Write;
        self.catch(|| Caught::Port { port, bytes: bytes as u8, value, is_write });
    }
}

fn width<T: Word>() -> Width {
    match T::BYTES {
        1 => Width::Byte,
        2 => Width::Word,
        _ => Width::Dword,
    }
}

/// A place for the port number.
trait Port {
    fn port(cpu: &Cpu, insn: &Insn) -> u16;
}
struct Immediate;
impl Port for Immediate {
    fn port(_: &Cpu, insn: &Insn) -> u16 {
        insn.imm as u8 as u16
    }
}
struct Dx;
impl Port for Dx {
    fn port(cpu: &Cpu, _: &Insn) -> u16 {
        cpu.state.gpr[RDX] as u16
    }
}

fn input<P: Port, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let port = P::port(cpu, insn);
    cpu.check_io_permission(port, T::BYTES)?;
    let value = cpu.port_read::<T>(port);
    cpu.set_reg(RAX as u8, value);
    Ok(())
}

fn output<P: Port, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let port = P::port(cpu, insn);
    cpu.check_io_permission(port, T::BYTES)?;
    let value = cpu.reg::<T>(RAX as u8);
    cpu.port_write(port, value);
    cpu.device_written = true;
    Ok(())
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    use Code::*;
    table.both(In_AL_imm8, input::<Immediate, u8>);
    table.both(In_AX_imm8, input::<Immediate, u16>);
    table.both(In_EAX_imm8, input::<Immediate, u32>);
    table.both(In_AL_DX, input::<Dx, u8>);
    table.both(In_AX_DX, input::<Dx, u16>);
    table.both(In_EAX_DX, input::<Dx, u32>);
    table.both(Out_imm8_AL, output::<Immediate, u8>);
    table.both(Out_imm8_AX, output::<Immediate, u16>);
    table.both(Out_imm8_EAX, output::<Immediate, u32>);
    table.both(Out_DX_AL, output::<Dx, u8>);
    table.both(Out_DX_AX, output::<Dx, u16>);
    table.both(Out_DX_EAX, output::<Dx, u32>);
}
