//! What a translator needs of a CPU beyond what the engine's owner sees: single steps of the
//! interpreter's loop, translations of pages, and instructions prepared to be executed one by one.
//!
//! The interpreter stays the truth: a translator that meets anything unusual hands the instruction
//! over by these doors.

use decoder::{Row, Vendor};
use iced_x86::Instruction;

use crate::Cpu;
use crate::engine::VmExit;
use crate::exception::{Exception, Exec};
use crate::interp::insn::Insn;
use crate::mmu::walk::Translation;
use crate::mmu::{Access, FlushLog, View};
use crate::state::{InterruptShadow, attr, cr0, rflags, seg};

/// A data page that host code may reach directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataPage {
    /// Offset of the page in [`memory::Ram`].
    pub ram_page: u64,
    /// The translation outlives loads of CR3.
    pub is_global: bool,
    /// log2 of the bytes of the page that it is part of.
    pub shift: u32,
    /// A debugger watches some of it: each access asks [`Cpu::unwatched_around`] first.
    pub is_watched: bool,
}

/// A page that code may be fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePage {
    /// Offset of the page in [`memory::Ram`].
    pub ram_page: u64,
    /// The translation outlives loads of CR3.
    pub is_global: bool,
    /// log2 of the bytes of the page that it is part of.
    pub shift: u32,
}

/// See [`Cpu::fast_system_calls`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastSystemCalls {
    /// Where SYSCALL goes.
    pub entry: u64,
    /// The flags that it clears.
    pub mask: u64,
}

impl Cpu {
    /// Takes what waits between two instructions; `Some` is why the owner must look.
    pub fn at_boundary(&mut self) -> Option<VmExit> {
        self.boundary()
    }

    /// The vCPU's thread starts to run the guest.
    pub fn start_guest(&mut self) {
        self.enter_guest();
    }

    /// The vCPU's thread stops running the guest.
    pub fn stop_guest(&mut self) {
        self.leave_guest();
    }

    /// Interprets at most `count` instructions, a block's at most, with the events of their
    /// boundaries.
    pub fn interpret(&mut self, count: u64) {
        self.run_block(count);
    }

    /// Delivers `exception`, raised by the instruction at `state.rip`.
    pub fn raise(&mut self, exception: Exception) {
        self.deliver_exception(exception);
    }

    /// Delivers what data breakpoints and the like have left to be taken behind an instruction.
    pub fn take_debug_trap(&mut self) {
        if self.pending_dr6 != 0 && self.state.shadow != InterruptShadow::MovSs {
            self.deliver_exception(Exception::DB);
        }
    }

    /// The processor whose encodings are decoded.
    pub fn vendor(&self) -> Vendor {
        self.env.cpuid.vendor()
    }

    /// What `iced-x86` must be told to decode as this processor does.
    pub fn decoder_options(&self) -> u32 {
        decoder::decoder_options(self.env.cpuid.vendor(), self.env.cpuid.features())
    }

    /// True if the instruction raises #UD, #NM or #GP in the current mode instead of executing.
    pub fn is_gated(&self, row: &Row, iced: &Instruction) -> bool {
        self.gate(row, iced).is_some()
    }

    /// The instruction ready to be executed by [`Cpu::execute_prepared`] in the current mode.
    pub fn prepare_instruction(&mut self, iced: Instruction, bytes: &[u8]) -> Insn {
        self.prepare(iced, bytes).0
    }

    /// Executes one instruction at `state.rip`, which must have been prepared in the current mode.
    /// True if the next instruction may follow: no mode or mapping changed, nor did the CPU write
    /// code. Whether an event waits, or DMA was done over code, is the engine's to look at.
    pub fn execute_prepared(&mut self, insn: &Insn) -> Exec<bool> {
        self.begin_block();
        self.next_rip = insn.next_ip;
        (insn.handler)(self, insn)?;
        self.state.rip = self.next_rip;
        self.retired += 1;
        let is_moved = self.device_written && self.has_new_space();
        Ok(!self.break_block && !is_moved && self.state.shadow == InterruptShadow::None)
    }

    /// Counts instructions that another engine has executed.
    pub fn add_retired(&mut self, count: u64) {
        self.retired = self.retired.wrapping_add(count);
    }

    /// Translates one page for data, setting accessed and dirty bits as the access asks. `None` if
    /// the page is no RAM (or read-only memory and the access a write): each access must then go by
    /// the interpreter.
    pub fn data_page(&mut self, linear: u64, access: Access) -> Exec<Option<DataPage>> {
        let translation = self.translate(linear, access, self.mmu.view())?;
        let physical = translation.physical.page();
        if physical.0 == self.mmu.lapic_page {
            return Ok(None);
        }
        let ram_page = match self.ram_page(physical.0) {
            Some(page) => Some(page),
            None => match self.env.space.page(physical) {
                memory::PageKind::Ram(page) => Some(page),
                memory::PageKind::Rom(page) if access == Access::Read => Some(page),
                memory::PageKind::Rom(_) | memory::PageKind::Io => None,
            },
        };
        let Translation { is_global, shift, .. } = translation;
        let is_watched = self.is_watched_page(linear);
        Ok(ram_page.map(|ram_page| DataPage { ram_page, is_global, shift, is_watched }))
    }

    /// True if the page of `linear` may be written and its dirty bit is set. Changes nothing.
    pub fn is_dirty_page(&mut self, linear: u64) -> bool {
        self.has_dirty_bit(linear) && self.may_write(linear)
    }

    /// Translates one page for fetches. `None` if the page is no RAM or ROM.
    pub fn code_page(&mut self, linear: u64) -> Exec<Option<CodePage>> {
        let view = match self.mmu.view() {
            View::SupervisorAc => View::Supervisor,
            view => view,
        };
        let translation = self.translate(linear, Access::Execute, view)?;
        let physical = translation.physical.page();
        let ram_page = match self.ram_page(physical.0) {
            Some(page) => Some(page),
            None => match self.env.space.page(physical) {
                memory::PageKind::Ram(page) | memory::PageKind::Rom(page) => Some(page),
                memory::PageKind::Io => None,
            },
        };
        let Translation { is_global, shift, .. } = translation;
        Ok(ram_page.map(|ram_page| CodePage { ram_page, is_global, shift }))
    }

    /// Who makes the accesses of instructions now.
    pub fn view(&self) -> View {
        self.mmu.view()
    }

    /// Takes the flushes since the last call.
    pub fn take_flushes(&mut self) -> FlushLog {
        std::mem::take(&mut self.mmu.flushes)
    }

    /// True if a flush waits to be taken.
    #[inline]
    pub fn has_flushes(&self) -> bool {
        !self.mmu.flushes.is_empty()
    }

    /// True if instruction boundaries need no look but at the mailbox: no single step, no
    /// breakpoints of the guest's, no alignment checks, no shadow.
    pub fn is_unwatched(&self) -> bool {
        let breakpoints = self.mmu.breakpoints();
        let is_checked = self.state.cpl == 3
            && self.state.cr0 & cr0::AM != 0
            && self.state.rflags & rflags::AC != 0;
        self.state.rflags & (rflags::TF | rflags::RF | rflags::VM) == 0
            && self.state.shadow == InterruptShadow::None
            && !breakpoints.has_instruction
            && !breakpoints.has_data
            && self.pending_dr6 == 0
            && !is_checked
            && !self.is_single_stepped()
    }

    /// True if code runs in 64-bit mode, or in 32-bit segments that begin at 0 and end at 4 GiB
    /// (FS and GS may begin anywhere).
    pub fn is_flat(&self) -> bool {
        if self.mode.is_64() {
            return true;
        }
        let segments = &self.state.segments;
        let is_whole = |number: usize| {
            let segment = &segments[number];
            let is_up = segment.attributes & (attr::CODE | attr::DC) != attr::DC;
            segment.limit == u32::MAX && is_up && segment.attributes & attr::UNUSABLE == 0
        };
        self.mode.code_bits == 32
            && self.mode.stack_bits == 32
            && !self.mode.is_real_or_v86()
            && [seg::ES, seg::CS, seg::SS, seg::DS]
                .iter()
                .all(|&number| is_whole(number) && segments[number].base == 0)
            && [seg::ES, seg::SS, seg::DS].iter().all(|&number| segments[number].has(attr::RW))
            && !segments[seg::DS].has(attr::CODE)
            && !segments[seg::ES].has(attr::CODE)
    }

    /// Whether `segment` (FS or GS) can be added to an address without a check of limit or type.
    pub fn is_whole_segment(&self, segment: usize) -> bool {
        let Some(segment) = self.state.segments.get(segment) else { return false };
        segment.limit == u32::MAX
            && segment.attributes & (attr::CODE | attr::DC | attr::UNUSABLE) == 0
            && segment.has(attr::RW | attr::P)
    }

    /// The RAM of the machine.
    pub fn ram(&self) -> &memory::Ram {
        &self.ram
    }

    /// Rederives the mode from the state, after the status flags alone were written.
    #[inline]
    pub fn replace_status_flags(&mut self, flags: u64) {
        self.set_status_flags(flags);
    }
}
