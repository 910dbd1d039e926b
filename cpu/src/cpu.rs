//! One virtual CPU: state, memory, platform, and what is derived from them.

use std::sync::Arc;

use decoder::BlockScanner;
use memory::{PhysicalSpace, PortSpace, Ram};

use crate::cpuid::CpuidPolicy;
use crate::debugger::Debugger;
use crate::events::Events;
use crate::exception::{Exception, Exec};
use crate::flags::Word;
use crate::interp::block::BlockCache;
use crate::interp::insn::{Mem, NO_REGISTER};
use crate::mmu::{Mmu, MmuLimits};
use crate::mode::Mode;
use crate::platform::{Lapic, Platform};
use crate::recording::Recording;
use crate::state::{State, gpr, rflags, seg};

/// What a CPU is connected to; the same for every engine.
#[derive(Clone)]
pub struct Environment {
    /// This CPU's number; also its APIC ID.
    pub index: u32,
    /// How many CPUs the machine has.
    pub cpu_count: u32,
    /// Guest-physical memory.
    pub space: Arc<PhysicalSpace>,
    /// I/O ports.
    pub ports: Arc<PortSpace>,
    /// Time, entropy and the rest.
    pub platform: Arc<dyn Platform>,
    /// This CPU's local APIC.
    pub lapic: Arc<dyn Lapic>,
    /// This CPU's mailbox.
    pub events: Arc<Events>,
    /// What CPUID says, and with it which instructions exist.
    pub cpuid: Arc<CpuidPolicy>,
    /// The mailboxes of all CPUs, for PV TLB flush and kicks.
    pub all_events: Arc<[Arc<Events>]>,
}

/// One virtual CPU.
///
/// Contract for those who change control state: after writing CR0, CR4, EFER, XCR0, CS, SS,
/// `state.cpl`, RFLAGS.VM/IOPL/AC or DR7, call [`Cpu::mode_changed`]; after anything that
/// changes a translation, the flush of [`crate::mmu`] that the architecture asks for.
pub struct Cpu {
    /// The architectural state. `state.rip` is the current instruction's while it executes.
    pub state: State,
    /// Where execution goes on after the current instruction; branches write it.
    pub next_rip: u64,
    /// Derived from the control registers.
    pub mode: Mode,
    /// What the CPU is connected to.
    pub env: Environment,
    /// Translations.
    pub(crate) mmu: Mmu,
    /// What the walk needs to know of the physical space and of CPUID.
    pub(crate) mmu_limits: MmuLimits,
    /// RAM, as `env.space` has it.
    pub(crate) ram: Arc<Ram>,
    /// Decoded code.
    pub(crate) blocks: BlockCache,
    /// Finds basic blocks as the guest's processor decodes them.
    pub(crate) scanner: BlockScanner,
    /// Where every block began, folded into a number.
    pub(crate) trace_digest: u64,
    /// Instructions retired.
    pub(crate) retired: u64,
    /// Set by a handler: leave the block after this instruction (mode change, code written, event).
    pub(crate) break_block: bool,
    /// Set by OUT and stores to devices: one may have reset the machine, moved A20, raised an
    /// interrupt, or done DMA over the code that follows. An engine that sees all of these by
    /// itself may go on.
    pub(crate) device_written: bool,
    /// Set by SYSCALL, INT n and their like: no single-step trap behind this instruction.
    pub(crate) suppress_step: bool,
    /// DR6 bits of debug conditions that the current instruction met; a trap is taken behind it.
    pub pending_dr6: u64,
    /// What a debugger outside of the guest wants.
    pub(crate) debugger: Debugger,
    /// What a trace is told.
    pub(crate) recording: Option<Box<Recording>>,
    /// See [`Cpu::take_new_recording`].
    pub(crate) has_new_recording: bool,
    /// Each block is logged (`--log exec`), so the interpreter executes them all.
    pub(crate) logs_blocks: bool,
    /// SIMD and x87 on the host's units.
    pub(crate) native: crate::native::Native,
    /// Paravirtual features' state.
    pub(crate) pv: crate::pv::Paravirtual,
}

impl Cpu {
    /// Rederives [`Cpu::mode`] and what hangs on it, and ends the current block.
    pub fn mode_changed(&mut self) {
        self.mode = Mode::of(&self.state);
        self.mmu.select_view(&self.state);
        self.break_block = true;
    }

    /// A number made of where every block since the CPU was made began: two runs with the same
    /// instruction trace have the same one.
    pub fn trace_digest(&self) -> u64 {
        self.trace_digest
    }

    /// Reads general-purpose register `number` (0 to 15; 16 to 19 are AH to BH when `T` is `u8`).
    #[inline(always)]
    pub fn reg<T: Word>(&self, number: u8) -> T {
        let value = self.state.gpr[usize::from(number & 15)];
        if T::BYTES == 1 && number >= 16 {
            return T::from_u64(self.state.gpr[usize::from(number & 3)] >> 8 & 0xff);
        }
        T::from_u64(value)
    }

    /// Writes general-purpose register `number`; 32-bit writes clear the upper half.
    #[inline(always)]
    pub fn set_reg<T: Word>(&mut self, number: u8, value: T) {
        let slot = &mut self.state.gpr[usize::from(number & 15)];
        match T::BYTES {
            8 | 4 => *slot = value.to_u64(),
            2 => *slot = *slot & !0xffff | value.to_u64(),
            _ if number >= 16 => {
                let slot = &mut self.state.gpr[usize::from(number & 3)];
                *slot = *slot & !0xff00 | value.to_u64() << 8;
            }
            _ => *slot = *slot & !0xff | value.to_u64(),
        }
    }

    /// Replaces the six status flags.
    #[inline(always)]
    pub fn set_status_flags(&mut self, flags: u64) {
        self.state.rflags = self.state.rflags & !rflags::STATUS | flags;
    }

    /// Replaces the flags in `mask`.
    #[inline(always)]
    pub fn set_flags(&mut self, mask: u64, flags: u64) {
        self.state.rflags = self.state.rflags & !mask | flags & mask;
    }

    /// True if flag `flag` is set.
    #[inline(always)]
    pub fn flag(&self, flag: u64) -> bool {
        self.state.rflags & flag != 0
    }

    /// The offset in its segment of a memory operand, wrapped to the address size.
    #[inline(always)]
    pub fn effective_address(&self, mem: &Mem) -> u64 {
        let mut address = mem.displacement;
        if mem.base != NO_REGISTER {
            address = address.wrapping_add(self.state.gpr[usize::from(mem.base & 15)]);
        }
        if mem.index != NO_REGISTER {
            let index = self.state.gpr[usize::from(mem.index & 15)];
            address = address.wrapping_add(index << mem.scale);
        }
        match mem.address_size {
            8 => address,
            4 => address & 0xffff_ffff,
            _ => address & 0xffff,
        }
    }

    /// Reads the memory operand.
    #[inline(always)]
    pub fn load<T: Word>(&mut self, mem: &Mem) -> Exec<T> {
        let offset = self.effective_address(mem);
        self.read(usize::from(mem.segment), offset)
    }

    /// Writes the memory operand.
    #[inline(always)]
    pub fn store<T: Word>(&mut self, mem: &Mem, value: T) -> Exec {
        let offset = self.effective_address(mem);
        self.write(usize::from(mem.segment), offset, value)
    }

    /// The stack pointer, in the width of the stack segment.
    #[inline(always)]
    pub fn stack_pointer(&self) -> u64 {
        self.state.gpr[gpr::RSP] & self.stack_mask()
    }

    /// Ones for the bits of the stack pointer that count.
    #[inline(always)]
    pub fn stack_mask(&self) -> u64 {
        u64::MAX >> (64 - self.mode.stack_bits)
    }

    /// Writes the stack pointer in the width of the stack segment; other bits keep their value
    /// with a 16-bit stack and are cleared with a 32-bit one.
    #[inline(always)]
    pub fn set_stack_pointer(&mut self, value: u64) {
        match self.mode.stack_bits {
            16 => self.set_reg(gpr::RSP as u8, value as u16),
            32 => self.set_reg(gpr::RSP as u8, value as u32),
            _ => self.state.gpr[gpr::RSP] = value,
        }
    }

    /// Pushes a value of width `T`. RSP moves only if the store succeeds.
    #[inline(always)]
    pub fn push<T: Word>(&mut self, value: T) -> Exec {
        let pointer = self.stack_pointer().wrapping_sub(T::BYTES) & self.stack_mask();
        self.write(seg::SS, pointer, value)?;
        self.set_stack_pointer(pointer);
        Ok(())
    }

    /// Pops a value of width `T`.
    #[inline(always)]
    pub fn pop<T: Word>(&mut self) -> Exec<T> {
        let pointer = self.stack_pointer();
        let value = self.read(seg::SS, pointer)?;
        self.set_stack_pointer(pointer.wrapping_add(T::BYTES));
        Ok(value)
    }

    /// True if `base` may be loaded into a register that holds a linear address across changes of
    /// paging (MSRs, descriptor tables, TR and LDTR; INVPCID's address too): canonical with all the
    /// bits this processor has, whatever CR4.LA57 says (SDM Vol. 3A, "Canonicality Checking").
    pub(crate) fn is_canonical_base(&self, base: u64) -> bool {
        let high = (base as i64) >> (self.env.cpuid.linear_bits() - 1);
        high == 0 || high == -1
    }

    /// Makes `offset` the next instruction's, after the checks of a near branch: canonical in
    /// 64-bit mode, inside CS's limit elsewhere.
    #[inline(always)]
    pub fn branch_to(&mut self, offset: u64) -> Exec {
        if self.mode.is_64() {
            if !self.mode.is_canonical(offset) {
                return Err(Exception::GP0);
            }
        } else if offset > u64::from(self.state.segments[seg::CS].limit) {
            return Err(Exception::GP0);
        }
        self.next_rip = offset;
        Ok(())
    }
}
