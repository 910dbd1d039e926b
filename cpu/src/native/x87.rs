//! x87 and MMX: the image around the instruction, pending exceptions, and the pointers.
//!
//! An unmasked x87 exception is recorded by the instruction that meets it (FSW.ES) and raised by
//! the next waiting one (SDM Vol. 1, "x87 FPU Exception Synchronization"). The host never gets to
//! raise it: pending ones are looked for before a waiting instruction runs.

use decoder::{MemoryShape, Row, Unit};
use iced_x86::{Instruction, Mnemonic};

use super::code_memory::{HOST_MXCSR, Outputs};
use super::operand::Operand;
use super::thunk::Thunk;
use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::fpu::{FSW_B, FSW_ES, FSW_TOP, FpuState, X87_EXCEPTIONS, fxsave, put};
use crate::interp::insn::{Insn, has_memory_operand};
use crate::mmu::Access;
use crate::state::{Activity, cr0, seg};

/// Two fillings of the operand that cannot both equal what an instruction stores.
const FILLINGS: [u8; 2] = [0xa5, 0x5a];

/// FOP of an x87 instruction: the low three bits of the first opcode byte, and ModRM.
pub(super) fn opcode(bytes: &[u8]) -> u16 {
    // No prefix looks like an escape byte.
    let escape = bytes.iter().position(|byte| byte & 0xf8 == 0xd8).unwrap_or(0);
    match bytes.get(escape..) {
        Some(&[first, modrm, ..]) => u16::from(first & 7) << 8 | u16::from(modrm),
        _ => 0,
    }
}

/// FOP behind `iced`, whose encoding `bytes` starts with; `None` if it leaves the pointers as they
/// are.
pub fn x87_opcode(iced: &Instruction, bytes: &[u8]) -> Option<u16> {
    let is_noted = decoder::row(iced.code()).unit == Unit::X87 && !is_control(iced.mnemonic());
    is_noted.then(|| opcode(bytes))
}

/// Executes an x87 or MMX instruction.
pub(super) fn execute(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let row = decoder::row(insn.iced.code());
    let waits = row.waits_for_x87 && !(row.loads_past_x87 && has_memory_operand(&insn.iced));
    if waits && !cpu.x87_may_proceed()? {
        return Ok(());
    }
    let operand = cpu.x87_operand(insn, row)?;
    let target = operand.filter(|_| is_store(row));
    cpu.execute_x87(insn, row, target)?;
    if row.unit == Unit::X87 && !is_control(insn.iced.mnemonic()) {
        cpu.note_pointers(insn, operand);
    }
    Ok(())
}

/// FNINIT.
pub(super) fn initialize(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.change_x87(FpuState::initialize_x87);
    Ok(())
}

fn is_store(row: &Row) -> bool {
    matches!(row.memory.shape, MemoryShape::Write | MemoryShape::ReadWrite)
}

/// Control instructions keep the pointers (SDM Vol. 1, "x87 FPU Instruction and Data (Operand)
/// Pointers"), and so do those that the 8087 and the 287 had and that do nothing since.
fn is_control(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Fnclex | M::Fldcw | M::Fnstcw | M::Fnstsw | M::Fninit)
        || matches!(mnemonic, M::Fneni | M::Fndisi | M::Fnsetpm)
}

impl Cpu {
    /// Before a waiting instruction: raises a pending exception as #MF, or (CR0.NE = 0) asserts
    /// FERR# and stops until an interrupt, unless IGNNE# says to go on. False if the CPU stopped;
    /// the instruction is then to do nothing, and comes again.
    pub(crate) fn x87_may_proceed(&mut self) -> Exec<bool> {
        if self.state.fpu.fsw & FSW_ES == 0 {
            return Ok(true);
        }
        if self.state.cr0 & cr0::NE != 0 {
            return Err(Exception::MF);
        }
        self.env.platform.ferr(true);
        if self.env.platform.ignne() {
            return Ok(true);
        }
        self.next_rip = self.state.rip;
        self.state.activity = Activity::Halted;
        self.break_block = true;
        Ok(false)
    }

    /// Changes the x87 state by `change`, and lowers FERR# if that ended a pending exception.
    pub(crate) fn change_x87(&mut self, change: impl FnOnce(&mut FpuState)) {
        let was_pending = self.state.fpu.fsw & FSW_ES != 0;
        change(&mut self.state.fpu);
        self.state.fpu.summarize_exceptions();
        let is_pending = self.state.fpu.fsw & FSW_ES != 0;
        if was_pending && !is_pending && self.state.cr0 & cr0::NE == 0 {
            self.env.platform.ferr(false);
        }
    }

    /// What an MMX instruction does to the x87 state: TOP is 0 and no register empty.
    pub(super) fn enter_mmx(&mut self) {
        self.state.fpu.fsw &= !FSW_TOP;
        self.state.fpu.ftw = 0xff;
    }

    /// Checks the memory operand, and reads it if it is read.
    fn x87_operand(&mut self, insn: &Insn, row: &Row) -> Exec<Option<Operand>> {
        if !has_memory_operand(&insn.iced) {
            return Ok(None);
        }
        if is_store(row) {
            let operand = self.operand(insn, Access::Write)?;
            self.check_writable(insn, operand)?;
            return Ok(Some(operand));
        }
        let operand = self.operand(insn, Access::Read)?;
        self.load_scratch(operand.linear, operand.bytes)?;
        Ok(Some(operand))
    }

    /// Runs the thunk and takes over its results; memory first, so that a fault of the store leaves
    /// the registers alone.
    fn execute_x87(&mut self, insn: &Insn, row: &Row, target: Option<Operand>) -> Exec {
        let thunk = self.native.thunk(insn)?;
        let hidden = self.hidden_exceptions(row);
        let outputs = match target {
            None => self.run_x87(&thunk, hidden),
            Some(target) => self.run_x87_store(&thunk, hidden, target)?,
        };
        // Whether a SIMD exception comes before or behind the change to MMX, the host decides.
        if !outputs.has_faulted || row.unit == Unit::SseMmx {
            let image = self.native.scratch.image;
            self.change_x87(|fpu| {
                fpu.read_x87(&image);
                fpu.fsw |= hidden & X87_EXCEPTIONS;
            });
        }
        self.finish_thunk(&thunk, &outputs)
    }

    /// An unmasked exception keeps some stores from being made. What was stored shows through a
    /// filling of the operand; if nothing shows, the value may be the filling itself, and a second
    /// run with another one decides.
    fn run_x87_store(&mut self, thunk: &Thunk, hidden: u16, target: Operand) -> Exec<Outputs> {
        for filling in FILLINGS {
            self.native.scratch.memory.fill(filling);
            let outputs = self.run_x87(thunk, hidden);
            let stored = &self.native.scratch.memory[..target.bytes.min(64)];
            if !outputs.has_faulted && stored.iter().any(|&byte| byte != filling) {
                self.store_scratch(target.linear, target.bytes)?;
                return Ok(outputs);
            }
        }
        Ok(self.run_x87(thunk, hidden))
    }

    fn run_x87(&mut self, thunk: &Thunk, hidden: u16) -> Outputs {
        let image = &mut self.native.scratch.image;
        self.state.fpu.write_x87(image);
        put(image, fxsave::FSW, (self.state.fpu.fsw & !hidden).to_le_bytes());
        put(image, fxsave::MXCSR, HOST_MXCSR.to_le_bytes());
        self.run_thunk(thunk)
    }

    /// The bits of FSW that a waiting instruction must not meet: it only gets here with an
    /// exception pending if IGNNE# hides it, and the host knows no IGNNE#.
    fn hidden_exceptions(&self, row: &Row) -> u16 {
        let fsw = self.state.fpu.fsw;
        if row.waits_for_x87 && fsw & FSW_ES != 0 {
            fsw & (FSW_ES | FSW_B | X87_EXCEPTIONS)
        } else {
            0
        }
    }

    /// FIP, FCS, FDP, FDS and FOP after a non-control instruction.
    fn note_pointers(&mut self, insn: &Insn, operand: Option<Operand>) {
        let notes_operands = self.native.pointers.have_operands;
        let state = &mut self.state;
        state.fpu.fop = insn.imm as u16;
        state.fpu.fip = state.rip;
        state.fpu.fcs = state.segments[seg::CS].selector;
        let is_noted = notes_operands || state.fpu.fsw & FSW_ES != 0;
        if let Some(operand) = operand.filter(|_| is_noted) {
            state.fpu.fdp = operand.offset;
            state.fpu.fds = state.segments[usize::from(insn.mem.segment) % 6].selector;
        }
    }
}
