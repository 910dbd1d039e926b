//! SIMD and x87 executed by the host's own instruction on the guest's state.
//!
//! Problem: a thousand instruction forms with exact rounding, exceptions and undefined corners.
//! Strategy: the host has them all. [`thunk`] generates, for each instruction with its registers, a
//! few host instructions that load the guest's registers, run the instruction and store what it
//! left; [`code_memory`] keeps and calls them. The memory operand never is the guest's: [`operand`]
//! brings it through the guest's MMU into a scratch buffer and back, [`masked`] does so element by
//! element where a mask suppresses faults, [`gather`] executes indexed forms in Rust altogether.
//! [`x87`] adds the x87 image, pending exceptions and pointers; [`signal`] makes the host's
//! exception the guest's. [`integer`] runs what the manuals leave open of integer instructions.
//!
//! Invariants: registers are stored only when the instruction completed and its memory operand can
//! be written; MXCSR, x87 unit and flags of the host are Rust's again behind every thunk; no host
//! address reaches guest state. Thunks are bounded: when their memory is full, all are dropped and
//! instructions that were decoded before find theirs again by their encoding.

mod code_memory;
mod gather;
pub(crate) mod integer;
mod masked;
mod operand;
#[cfg(any(test, feature = "testing"))]
pub mod reference;
mod signal;
mod thunk;
pub mod ticks;
mod x87;

use std::collections::HashMap;

use decoder::{Class, MemoryShape, Row, Unit};
use iced_x86::{Instruction, Mnemonic};

use crate::Cpu;
use crate::cpuid::host;
use crate::exception::{Exception, Exec};
use crate::interp::dispatch::undefined;
use crate::interp::insn::{Handler, Insn, has_memory_operand};
use crate::state::{cr4, rflags};
use code_memory::{CodeMemory, Inputs, Outputs, Scratch};
use thunk::{Key, Plan, Renamed, Thunk};
pub use x87::x87_opcode;

/// Which thunk executes a decoded instruction.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThunkRef {
    index: u32,
    /// The generation of thunks that `index` belongs to; 0 is none.
    generation: u32,
}

/// What the host's registers can hold, and what its units refuse.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostUnits {
    has_zmm: bool,
    /// KMOVQ exists.
    has_wide_opmasks: bool,
    /// A misaligned operand of SHA is #GP, as the SDM has it; AMD's processors take it.
    aligns_sha: bool,
}

impl HostUnits {
    fn detect() -> Self {
        Self {
            has_zmm: std::arch::is_x86_feature_detected!("avx512f"),
            has_wide_opmasks: std::arch::is_x86_feature_detected!("avx512bw"),
            aligns_sha: host::vendor() != decoder::Vendor::Amd,
        }
    }
}

/// What the host's vendor and model do with FIP, FDP, FOP, FCS and FDS in state images; the guest's
/// do the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PointerRules {
    /// False on AMD before RstrFpErrPtrs: only while an unmasked exception waits (APM Vol. 2,
    /// "FXSAVE and FXRSTOR Instructions").
    pub(crate) are_always_saved: bool,
    /// False if CPUID says that FCS and FDS are deprecated: they are stored as zero.
    pub(crate) have_selectors: bool,
    /// False if CPUID says that FDP is noted at unmasked exceptions only.
    have_operands: bool,
}

impl PointerRules {
    fn detect() -> Self {
        let leaf = |leaf, subleaf| std::arch::x86_64::__cpuid_count(leaf, subleaf);
        let is_intel = leaf(0, 0).ebx == u32::from_le_bytes(*b"Genu");
        let has_extended = leaf(0x8000_0000, 0).eax >= 0x8000_0008;
        let restores_pointers = has_extended && leaf(0x8000_0008, 0).ebx & 1 << 2 != 0;
        let omissions = host::x87_omissions();
        Self {
            are_always_saved: is_intel || restores_pointers,
            have_selectors: omissions & host::ZERO_FCS_FDS == 0,
            have_operands: omissions & host::FDP_EXCPTN_ONLY == 0,
        }
    }
}

/// The thunks made so far.
pub(crate) struct Native {
    /// Mapped when the first thunk is made.
    code: Option<CodeMemory>,
    /// The host gave no executable memory; it is not asked again.
    is_refused: bool,
    thunks: Vec<Thunk>,
    by_key: HashMap<Key, u32>,
    generation: u32,
    scratch: Box<Scratch>,
    host: HostUnits,
    mxcsr_mask: u32,
    pointers: PointerRules,
}

impl Native {
    pub(crate) fn new() -> Self {
        Self {
            code: None,
            is_refused: false,
            thunks: Vec::new(),
            by_key: HashMap::new(),
            generation: 1,
            scratch: Box::new(Scratch { memory: [0; 64], image: [0; 512] }),
            host: HostUnits::detect(),
            mxcsr_mask: code_memory::host_mxcsr_mask(),
            pointers: PointerRules::detect(),
        }
    }

    /// The MXCSR bits that may be written: what FXSAVE reports as MXCSR_MASK.
    pub(crate) fn mxcsr_mask(&self) -> u32 {
        self.mxcsr_mask
    }

    /// How the x87 pointers are saved and restored.
    pub(crate) fn pointers(&self) -> PointerRules {
        self.pointers
    }

    /// Chooses handler and thunk of an instruction, once when it is decoded. `bytes` starts with
    /// its encoding.
    pub(crate) fn prepare(&mut self, insn: &mut Insn, row: &Row, bytes: &[u8]) {
        if let Some(handler) = handler_without_thunk(row) {
            insn.handler = handler;
            return;
        }
        let is_x87 = uses_x87(row);
        if is_x87 {
            insn.imm = u64::from(x87::opcode(bytes));
        }
        insn.handler = if is_x87 { x87::execute } else { handler(insn, row) };
        match self.find_or_make(&insn.iced) {
            Some(thunk) => insn.thunk = thunk,
            None => insn.handler = undefined,
        }
    }

    /// The thunk of `insn`, also if it was decoded before thunks were last dropped.
    #[inline]
    fn thunk(&mut self, insn: &Insn) -> Exec<Thunk> {
        let mut reference = insn.thunk;
        if reference.generation != self.generation {
            reference = self.find_or_make(&insn.iced).ok_or(Exception::UD)?;
        }
        self.thunks.get(reference.index as usize).copied().ok_or(Exception::UD)
    }

    /// `None` if the host cannot be made to run the instruction.
    fn find_or_make(&mut self, iced: &Instruction) -> Option<ThunkRef> {
        let renamed = Renamed::new(iced);
        let key = renamed.key()?;
        if let Some(&index) = self.by_key.get(&key) {
            return Some(ThunkRef { index, generation: self.generation });
        }
        let plan = plan(decoder::row(iced.code()));
        let code = match thunk::generate(&renamed, plan, self.host) {
            Ok(code) => code,
            Err(error) => {
                log::warn!("no thunk for {iced}: {error}");
                return None;
            }
        };
        let thunk = match self.memory()?.add(&code) {
            Some(thunk) => thunk,
            None => {
                self.drop_all();
                self.memory()?.add(&code)?
            }
        };
        let index = self.thunks.len() as u32;
        self.thunks.push(thunk);
        self.by_key.insert(key, index);
        Some(ThunkRef { index, generation: self.generation })
    }

    fn memory(&mut self) -> Option<&mut CodeMemory> {
        if self.code.is_none() && !self.is_refused {
            match CodeMemory::new() {
                Ok(code) => self.code = Some(code),
                Err(error) => {
                    self.is_refused = true;
                    log::warn!("no executable memory, SIMD and x87 raise #UD: {error}");
                }
            }
        }
        self.code.as_mut()
    }

    /// Starts a new generation. The mapping goes too: fresh addresses need no synchronisation with
    /// what processors have fetched.
    fn drop_all(&mut self) {
        self.code = None;
        self.thunks.clear();
        self.by_key.clear();
        self.generation = self.generation.wrapping_add(1).max(1);
    }
}

fn uses_x87(row: &Row) -> bool {
    matches!(row.unit, Unit::X87 | Unit::Mmx | Unit::SseMmx)
}

fn plan(row: &Row) -> Plan {
    Plan {
        uses_x87: uses_x87(row),
        uses_mxcsr: row.class == Class::SimdFloat && !is_data_movement(row.code.mnemonic()),
        reads_flags: row.flags_read != 0,
        writes_flags: row.flags_written != 0,
    }
}

/// Floating-point forms that never look at MXCSR. (Only speed depends on the list.)
fn is_data_movement(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Movaps
            | M::Movups
            | M::Movapd
            | M::Movupd
            | M::Movss
            | M::Movsd
            | M::Movhps
            | M::Movlps
            | M::Movhpd
            | M::Movlpd
            | M::Movhlps
            | M::Movlhps
            | M::Movmskps
            | M::Movmskpd
            | M::Shufps
            | M::Shufpd
            | M::Unpcklps
            | M::Unpckhps
            | M::Unpcklpd
            | M::Unpckhpd
            | M::Andps
            | M::Andpd
            | M::Andnps
            | M::Andnpd
            | M::Orps
            | M::Orpd
            | M::Xorps
            | M::Xorpd
            | M::Movntps
            | M::Movntpd
            | M::Vmovaps
            | M::Vmovups
            | M::Vmovapd
            | M::Vmovupd
            | M::Vmovss
            | M::Vmovsd
            | M::Vmovhps
            | M::Vmovlps
            | M::Vmovhpd
            | M::Vmovlpd
            | M::Vmovhlps
            | M::Vmovlhps
            | M::Vshufps
            | M::Vshufpd
            | M::Vunpcklps
            | M::Vunpckhps
            | M::Vunpcklpd
            | M::Vunpckhpd
            | M::Vandps
            | M::Vandpd
            | M::Vandnps
            | M::Vandnpd
            | M::Vorps
            | M::Vorpd
            | M::Vxorps
            | M::Vxorpd
            | M::Vinsertf128
            | M::Vextractf128
            | M::Vbroadcastss
            | M::Vbroadcastsd
    )
}

fn handler_without_thunk(row: &Row) -> Option<Handler> {
    match (row.code.mnemonic(), row.memory.shape) {
        (Mnemonic::Vzeroupper, _) => Some(zero_upper_halves),
        (Mnemonic::Vzeroall, _) => Some(zero_all),
        (_, MemoryShape::Gather) => Some(gather::gather),
        (_, MemoryShape::Scatter) => Some(gather::scatter),
        (_, MemoryShape::MaskMove) => Some(masked::mask_move),
        (Mnemonic::Fninit, _) => Some(x87::initialize),
        _ => None,
    }
}

fn handler(insn: &Insn, row: &Row) -> Handler {
    if !has_memory_operand(&insn.iced) {
        return execute;
    }
    let has_mask = insn.iced.has_op_mask() || insn.iced.op_count() == 3 && !is_evex(insn);
    match row.memory.shape {
        MemoryShape::MaskedRead if has_mask => masked::execute_read,
        MemoryShape::MaskedWrite if has_mask => masked::execute_write,
        MemoryShape::ExpandRead if has_mask => masked::execute_expand,
        MemoryShape::CompressWrite if has_mask => masked::execute_compress,
        MemoryShape::Read | MemoryShape::MaskedRead | MemoryShape::ExpandRead => {
            operand::execute_read
        }
        MemoryShape::Write | MemoryShape::MaskedWrite | MemoryShape::CompressWrite => {
            operand::execute_write
        }
        MemoryShape::ReadWrite => operand::execute_read_write,
        _ => undefined,
    }
}

fn is_evex(insn: &Insn) -> bool {
    insn.iced.code().op_code().encoding() == iced_x86::EncodingKind::EVEX
}

/// Executes an instruction on registers.
pub(crate) fn execute(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let thunk = cpu.native.thunk(insn)?;
    let outputs = cpu.run_thunk(&thunk);
    cpu.finish_thunk(&thunk, &outputs)
}

impl Cpu {
    /// Runs `thunk` on the guest's registers and the scratch buffer.
    #[inline]
    fn run_thunk(&mut self, thunk: &Thunk) -> Outputs {
        let Self { native, state, .. } = self;
        let mxcsr = state.fpu.mxcsr & native.mxcsr_mask;
        let Some(code) = &native.code else {
            // A thunk exists only together with its memory.
            return Outputs { rflags: 0, mxcsr, has_faulted: true };
        };
        let inputs = Inputs {
            status_flags: state.rflags & rflags::STATUS | rflags::FIXED,
            fpu: &mut state.fpu,
            gpr: &mut state.gpr,
            scratch: &mut native.scratch,
            mxcsr,
        };
        code.run(thunk, inputs)
    }

    /// Takes over MXCSR and flags, or raises what the instruction raised.
    #[inline]
    fn finish_thunk(&mut self, thunk: &Thunk, outputs: &Outputs) -> Exec {
        if thunk.plan.uses_mxcsr {
            self.state.fpu.mxcsr = outputs.mxcsr;
        }
        if outputs.has_faulted {
            return Err(self.simd_exception());
        }
        if thunk.plan.writes_flags {
            self.set_status_flags(outputs.rflags & rflags::STATUS);
        }
        Ok(())
    }

    /// SDM Vol. 1, "SIMD Floating-Point Exceptions": #UD where the system does not expect #XM.
    fn simd_exception(&self) -> Exception {
        if self.state.cr4 & cr4::OSXMMEXCPT != 0 { Exception::XM } else { Exception::UD }
    }

    /// How many vector registers the mode can name by VEX.
    fn vex_register_count(&self) -> usize {
        if self.mode.is_64() { 16 } else { 8 }
    }
}

/// VZEROUPPER.
fn zero_upper_halves(cpu: &mut Cpu, _: &Insn) -> Exec {
    let count = cpu.vex_register_count();
    for register in cpu.state.fpu.zmm.iter_mut().take(count) {
        register[16..].fill(0);
    }
    Ok(())
}

/// VZEROALL.
fn zero_all(cpu: &mut Cpu, _: &Insn) -> Exec {
    let count = cpu.vex_register_count();
    cpu.state.fpu.zmm.iter_mut().take(count).for_each(|register| register.fill(0));
    Ok(())
}
