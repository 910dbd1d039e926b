//! FLDENV, FNSTENV, FNSAVE and FRSTOR: the x87 environment in its 14- and 28-byte formats.
//!
//! Source: SDM Vol. 1, "Saving the x87 FPU's State with FSTENV/FNSTENV and FSAVE/FNSAVE": the
//! format goes by operand size and by protected or real-address mode (virtual-8086 mode included).

use iced_x86::Code;

use super::dispatch::Table;
use super::insn::Insn;
use crate::Cpu;
use crate::exception::Exec;
use crate::fpu::{FpuState, X87_EXCEPTIONS, get, put};
use crate::mmu::Access;

/// The environment's words, before and after they have a format.
struct Environment {
    fcw: u16,
    fsw: u16,
    /// Two bits for each physical register.
    tag: u16,
    /// FIP, or in real mode the linear address of the instruction.
    fip: u32,
    fcs: u16,
    fop: u16,
    fdp: u32,
    fds: u16,
}

/// How the environment lies in memory.
#[derive(Clone, Copy)]
struct Format {
    /// Bytes of a field: 2 or 4.
    field: usize,
    is_real: bool,
}

#[rustfmt::skip]
pub(super) fn register(table: &mut Table) {
    table.both(Code::Fldenv_m14byte,  |cpu, insn| load_environment(cpu, insn, 2));
    table.both(Code::Fldenv_m28byte,  |cpu, insn| load_environment(cpu, insn, 4));
    table.both(Code::Fnstenv_m14byte, |cpu, insn| store_environment(cpu, insn, 2));
    table.both(Code::Fnstenv_m28byte, |cpu, insn| store_environment(cpu, insn, 4));
    table.both(Code::Frstor_m94byte,  |cpu, insn| restore(cpu, insn, 2));
    table.both(Code::Frstor_m108byte, |cpu, insn| restore(cpu, insn, 4));
    table.both(Code::Fnsave_m94byte,  |cpu, insn| save(cpu, insn, 2));
    table.both(Code::Fnsave_m108byte, |cpu, insn| save(cpu, insn, 4));
}

/// Bytes of the largest image: environment and eight registers.
const IMAGE_BYTES: usize = 108;

fn load_environment(cpu: &mut Cpu, insn: &Insn, field: usize) -> Exec {
    let Some((format, image)) = cpu.read_environment(insn, field, 0)? else { return Ok(()) };
    let environment = format.decode(&image);
    cpu.change_x87(|fpu| environment.load(fpu));
    Ok(())
}

fn store_environment(cpu: &mut Cpu, insn: &Insn, field: usize) -> Exec {
    let format = cpu.environment_format(field);
    let mut image = [0; IMAGE_BYTES];
    format.encode(&cpu.environment(), &mut image);
    cpu.write_environment(insn, &image[..7 * field])?;
    // All exceptions are masked then (SDM Vol. 2, "FSTENV/FNSTENV").
    cpu.change_x87(|fpu| fpu.fcw |= X87_EXCEPTIONS);
    Ok(())
}

fn restore(cpu: &mut Cpu, insn: &Insn, field: usize) -> Exec {
    let Some((format, image)) = cpu.read_environment(insn, field, 80)? else { return Ok(()) };
    let environment = format.decode(&image);
    cpu.change_x87(|fpu| {
        environment.load(fpu);
        for stack in 0..8 {
            let value: [u8; 10] = get(&image, 7 * field + 10 * stack);
            let register = (fpu.top() + stack) & 7;
            fpu.x87[register] = [0; 16];
            put(&mut fpu.x87[register], 0, value);
        }
    });
    Ok(())
}

fn save(cpu: &mut Cpu, insn: &Insn, field: usize) -> Exec {
    let format = cpu.environment_format(field);
    let mut image = [0; IMAGE_BYTES];
    format.encode(&cpu.environment(), &mut image);
    let fpu = &cpu.state.fpu;
    for stack in 0..8 {
        let value: [u8; 10] = get(&fpu.x87[(fpu.top() + stack) & 7], 0);
        put(&mut image, 7 * field + 10 * stack, value);
    }
    cpu.write_environment(insn, &image[..7 * field + 80])?;
    cpu.change_x87(FpuState::initialize_x87);
    Ok(())
}

impl Cpu {
    fn environment_format(&self, field: usize) -> Format {
        Format { field, is_real: self.mode.is_real_or_v86() }
    }

    /// Reads the environment and `more` bytes behind it; `None` if the CPU waits for FERR#'s
    /// handler first.
    fn read_environment(
        &mut self,
        insn: &Insn,
        field: usize,
        more: usize,
    ) -> Exec<Option<(Format, [u8; IMAGE_BYTES])>> {
        if !self.x87_may_proceed()? {
            return Ok(None);
        }
        let mut image = [0; IMAGE_BYTES];
        let offset = self.effective_address(&insn.mem);
        let bytes = &mut image[..7 * field + more];
        self.read_bytes(usize::from(insn.mem.segment), offset, bytes)?;
        Ok(Some((self.environment_format(field), image)))
    }

    fn write_environment(&mut self, insn: &Insn, image: &[u8]) -> Exec {
        let offset = self.effective_address(&insn.mem);
        let segment = usize::from(insn.mem.segment);
        self.check_access(segment, offset, image.len() as u64, Access::Write)?;
        self.write_bytes(segment, offset, image)
    }

    fn environment(&self) -> Environment {
        let fpu = &self.state.fpu;
        let has_selectors = self.native.pointers().have_selectors;
        let selector = |value: u16| if has_selectors { value } else { 0 };
        Environment {
            fcw: fpu.fcw,
            fsw: fpu.fsw,
            tag: fpu.full_tag(),
            fip: fpu.fip as u32,
            fcs: selector(fpu.fcs),
            fop: fpu.fop,
            fdp: fpu.fdp as u32,
            fds: selector(fpu.fds),
        }
    }
}

impl Environment {
    fn load(&self, fpu: &mut FpuState) {
        fpu.fcw = self.fcw & 0x1f3f | 0x40;
        fpu.fsw = self.fsw;
        fpu.ftw = (0..8).filter(|n| self.tag >> (2 * n) & 3 != 3).fold(0, |tags, n| tags | 1 << n);
        fpu.fop = self.fop & 0x7ff;
        (fpu.fip, fpu.fcs) = (u64::from(self.fip), self.fcs);
        (fpu.fdp, fpu.fds) = (u64::from(self.fdp), self.fds);
    }
}

impl Format {
    /// Writes `value` to field `index`; what is not used of a 32-bit field reads as ones where it
    /// holds a word (SDM Vol. 1, figure "Protected Mode x87 FPU State Image in Memory, 32-Bit
    /// Format").
    fn put_word(self, image: &mut [u8], index: usize, value: u16) {
        match self.field {
            2 => put(image, 2 * index, value.to_le_bytes()),
            _ => put(image, 4 * index, (0xffff_0000 | u32::from(value)).to_le_bytes()),
        };
    }

    fn put_field(self, image: &mut [u8], index: usize, value: u32) {
        match self.field {
            2 => put(image, 2 * index, (value as u16).to_le_bytes()),
            _ => put(image, 4 * index, value.to_le_bytes()),
        };
    }

    fn field(self, image: &[u8], index: usize) -> u32 {
        match self.field {
            2 => u32::from(u16::from_le_bytes(get(image, 2 * index))),
            _ => u32::from_le_bytes(get(image, 4 * index)),
        }
    }

    fn encode(self, from: &Environment, image: &mut [u8]) {
        self.put_word(image, 0, from.fcw);
        self.put_word(image, 1, from.fsw);
        self.put_word(image, 2, from.tag);
        let fop = u32::from(from.fop & 0x7ff);
        if !self.is_real {
            self.put_field(image, 3, from.fip);
            let fop = if self.field == 4 { fop << 16 } else { 0 };
            self.put_field(image, 4, u32::from(from.fcs) | fop);
            self.put_field(image, 5, from.fdp);
            return match self.field {
                2 => self.put_field(image, 6, u32::from(from.fds)),
                _ => self.put_word(image, 6, from.fds),
            };
        }
        let linear = |offset: u32, selector: u16| (u32::from(selector) << 4).wrapping_add(offset);
        let (ip, dp) = (linear(from.fip, from.fcs), linear(from.fdp, from.fds));
        if self.field == 2 {
            self.put_field(image, 3, ip);
            self.put_field(image, 4, ip >> 4 & 0xf000 | fop);
            self.put_field(image, 5, dp);
            self.put_field(image, 6, dp >> 4 & 0xf000);
        } else {
            self.put_word(image, 3, ip as u16);
            self.put_field(image, 4, ip >> 4 & 0x0fff_f000 | fop);
            self.put_word(image, 5, dp as u16);
            self.put_field(image, 6, dp >> 4 & 0x0fff_f000);
        }
    }

    fn decode(self, image: &[u8]) -> Environment {
        let word = |index| self.field(image, index) as u16;
        let mut environment = Environment {
            fcw: word(0),
            fsw: word(1),
            tag: word(2),
            fip: self.field(image, 3),
            fcs: word(4),
            fop: 0,
            fdp: self.field(image, 5),
            fds: word(6),
        };
        if self.is_real {
            let high = |index| (self.field(image, index) & 0x0fff_f000) << 4;
            environment.fip = self.field(image, 3) & 0xffff | high(4);
            environment.fdp = self.field(image, 5) & 0xffff | high(6);
            (environment.fcs, environment.fds) = (0, 0);
            environment.fop = word(4) & 0x7ff;
        } else if self.field == 4 {
            environment.fop = (self.field(image, 4) >> 16) as u16;
        }
        environment
    }
}
