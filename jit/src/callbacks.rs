//! What translated code calls: slow paths of memory accesses, and handlers.
//!
//! A callback counts as outside of translated code (see [`crate::remote`]): it declares the vCPU in
//! code again as its last act, and looks at what other threads have asked for meanwhile.

use cpu::debugger::Watchpoint;
use cpu::engine::Vcpu;
use cpu::events::Events;
use cpu::mmu::Access;
use cpu::state::{gpr, rflags};

use crate::context::{entry_index, no_page};
use crate::exit::Exit;
use crate::gaps::{Gap, Met};
use crate::handlers::Handler;
use crate::runtime;
use crate::vcpu::Inner;
use crate::wanted::Wanted;

impl Inner {
    /// The host address of `size` bytes at linear address `address`; 0 to leave.
    pub(crate) fn access(&mut self, address: u64, what: Wanted, from: usize) -> u64 {
        self.begin_miss();
        loop {
            let Some(host) = self.host_address(address, what) else {
                return self.stop_or_raise(Exit::Interpret, from);
            };
            if self.enter_code() {
                return host;
            }
            if self.serve_inside(from) {
                return 0;
            }
        }
    }

    /// Does what other threads want while a step waits, to which the call returns by `from`. True
    /// if the step's code is gone with it: then the step was left.
    fn serve_inside(&mut self, from: usize) -> bool {
        let place = self.place(from);
        let is_gone = self.serve_requests();
        if is_gone {
            self.stop_at(place, Exit::Interpret);
        }
        is_gone
    }

    /// What every helper begins with.
    fn leave_code(&mut self) {
        self.remote.leave_code();
        if self.options.trash_helpers {
            runtime::trash();
        }
    }

    /// What every helper that goes back to the code ends with. False if it must wait.
    fn enter_code(&mut self) -> bool {
        self.revive_x87();
        self.remote.enter_code()
    }

    /// What the helpers for accesses that miss their TLB begin with.
    fn begin_miss(&mut self) {
        self.leave_code();
        self.settle();
        self.slow.tlb_misses += 1;
    }

    fn host_address(&mut self, address: u64, what: Wanted) -> Option<u64> {
        let Wanted { size, is_write, is_aligned, .. } = what;
        let run = if what.is_run { self.slots.current_context().gpr[gpr::RCX] } else { 1 };
        if is_aligned && address & u64::from(size - 1) != 0 {
            // The fault comes before anything that a translation would leave.
            return None;
        }
        if (address & 0xfff) + u64::from(size) > 4096 {
            self.slow.page_crossings += 1;
            let bounced = if is_write { None } else { self.bounce(address, size) };
            if what.is_x87 && bounced.is_some() {
                self.x87_bounced = address;
            }
            return bounced;
        }
        let Some(page) = self.keeping_cr2(|inner| inner.fill(address, size, run, is_write)) else {
            // Else the interpreter raises what is to be raised.
            self.fault = self.fault.filter(|_| what.raises).map(|fault| (fault.0, address));
            return None;
        };
        Some(page + (address & 0xfff))
    }

    /// The bytes of a read over two pages, copied together.
    fn bounce(&mut self, address: u64, size: u32) -> Option<u64> {
        let second = (address & !0xfff).wrapping_add(4096);
        if size > 64 || !self.cpu.mode.is_64() && second >> 32 != 0 {
            return None;
        }
        let first_bytes = (4096 - (address & 0xfff)) as usize;
        let second_bytes = u64::from(size) - first_bytes as u64;
        let pages =
            [self.readable(address, first_bytes as u64)?, self.readable(second, second_bytes)?];
        let mut bytes = [0; 64];
        let (low, high) = bytes[..size as usize].split_at_mut(first_bytes.min(size as usize));
        self.cpu.ram().read_bytes(pages[0] | address & 0xfff, low);
        self.cpu.ram().read_bytes(pages[1], high);
        let context = self.slots.current_context();
        context.bounce = bytes;
        Some(context.bounce.as_ptr() as u64)
    }

    /// Does `walk`, which may find a page fault that nobody is to see.
    pub(crate) fn keeping_cr2<T>(&mut self, walk: impl FnOnce(&mut Self) -> T) -> T {
        let cr2 = self.cpu.state.cr2;
        let result = walk(self);
        self.cpu.state.cr2 = cr2;
        result
    }

    /// Offset in RAM of the page at `address`, if `bytes` bytes there may be read without a look.
    fn readable(&mut self, address: u64, bytes: u64) -> Option<u64> {
        if self.cpu.mode.is_64() && !self.cpu.mode.is_canonical(address) {
            return None;
        }
        let page = self.keeping_cr2(|inner| inner.cpu.data_page(address, Access::Read));
        let page = page.ok()??;
        if page.is_watched {
            self.unwatched(address, bytes, Access::Read)?;
        }
        Some(page.ram_page)
    }

    /// What no watchpoint meets around an access to a watched page; `None` if one meets it.
    fn unwatched(&mut self, address: u64, bytes: u64, access: Access) -> Option<(u64, u64)> {
        self.cpu
            .unwatched_around(address, bytes, access)
            .inspect_err(|watchpoint| {
                self.slow.watched += 1;
                let Watchpoint { start, length, .. } = *watchpoint;
                self.slots.current_context().gaps.note_met(Met { start, length });
            })
            .ok()
    }

    /// Puts the page of `run` accesses into the TLB, or what is not watched of it among the gaps;
    /// its host address. `None` if the interpreter must do the access.
    fn fill(&mut self, address: u64, size: u32, run: u64, is_write: bool) -> Option<u64> {
        self.fault = None;
        if self.cpu.mode.is_64() && !self.cpu.mode.is_canonical(address) {
            return None;
        }
        let access = if is_write { Access::Write } else { Access::Read };
        let page = match self.cpu.data_page(address, access) {
            Ok(Some(page)) => page,
            Ok(None) => {
                self.slow.devices += 1;
                return None;
            }
            Err(fault) => {
                self.slow.faults += 1;
                self.fault = Some((fault, address));
                return None;
            }
        };
        let gap = if page.is_watched {
            Some(self.unwatched(address, run.saturating_mul(u64::from(size)), access)?)
        } else {
            None
        };
        let number = page.ram_page >> 12;
        if is_write && !self.may_write(number, address & 0xfff, size) {
            self.slow.code_pages += 1;
            return None;
        }
        let host = self.cpu.ram().host_address(page.ram_page)?.0;
        if is_write {
            self.keep_page(page.ram_page);
        }
        let view = self.cpu.view();
        self.slots.note(address, view, page.is_global, page.shift);
        let linear = address & !0xfff;
        if is_write {
            self.slots.note_writer(number, linear);
        }
        if let Some((start, length)) = gap {
            // A gap may go, and the operand that the x87 unit points to with it.
            self.note_x87_before_switch();
            let gap = Gap { start, length, delta: host.wrapping_sub(linear) };
            self.slots.current_context().gaps.keep(view, is_write, gap);
            return Some(host);
        }
        let entry = self.slots.current_context().entry_to_fill(view, address)?;
        if entry.read_tag != linear || entry.host != host {
            entry.write_tag = no_page(entry_index(address));
        }
        entry.read_tag = linear;
        if is_write {
            entry.write_tag = linear;
        }
        entry.host = host;
        entry.delta = host.wrapping_sub(linear);
        Some(host)
    }

    /// Makes the page dirty; false if its stores must be noted one by one.
    fn may_write(&mut self, number: u64, first_byte: u64, size: u32) -> bool {
        let flags = self.cpu.ram().flags();
        if !flags.is_plain(number) && flags.get(number) & memory::PageFlags::CODE == 0 {
            flags.note_store(number, first_byte, u64::from(size));
        }
        flags.is_plain(number)
    }

    /// What to add to linear addresses for the `span` bytes from `address`; 0 to leave.
    pub(crate) fn group(&mut self, address: u64, what: Wanted, from: usize) -> u64 {
        let Wanted { size: span, is_write, .. } = what;
        self.begin_miss();
        loop {
            let is_inside = (address & 0xfff) + u64::from(span) <= 4096;
            // A group may be left before its store is reached: the page must be dirty already, or
            // the store be the first access.
            let is_certain =
                is_inside && (!is_write || what.own_writes || self.cpu.is_dirty_page(address));
            let fill = |inner: &mut Self| inner.fill(address, span, 1, is_write);
            let host = if is_certain { self.keeping_cr2(fill) } else { None };
            let Some(host) = host else {
                self.find_fault(address, what, is_certain);
                self.slow.ungrouped += u64::from(self.fault.is_none());
                return self.stop_or_raise(Exit::Ungrouped, from);
            };
            if self.enter_code() {
                return host.wrapping_sub(address & !0xfff);
            }
            if self.serve_inside(from) {
                return 0;
            }
        }
    }

    /// Finds what the first access of a group raises, if the group could not be filled.
    fn find_fault(&mut self, address: u64, what: Wanted, was_filled: bool) {
        let own = address.wrapping_add(u64::from(what.own_offset));
        let fault = self.fault.take();
        if !what.raises || was_filled && fault.is_none() || !self.cpu.mode.is_canonical(own) {
            return;
        }
        let fault = match fault {
            Some((fault, _)) if what.is_write == what.own_writes => Some(fault),
            _ => {
                let access = if what.own_writes { Access::Write } else { Access::Read };
                self.keeping_cr2(|inner| inner.cpu.data_page(own, access)).err()
            }
        };
        self.fault = fault.map(|fault| (fault, own));
    }

    /// Leaves the step of the call that returns to `from`: by the page fault that it raises, if it
    /// is known, else by `exit`.
    fn stop_or_raise(&mut self, exit: Exit, from: usize) -> u64 {
        let place = self.place(from);
        match self.fault.take() {
            Some((fault, address)) if place.is_some() && self.journal.is_none() => {
                self.stop_at(place, Exit::Exception);
                self.cpu.state.cr2 = address;
                self.exception = Some(fault);
                0
            }
            _ => self.stop_at(place, exit),
        }
    }

    /// Executes handler `number`. True if the block may go on.
    pub(crate) fn run_handler(&mut self, number: usize, from: usize) -> bool {
        self.leave_code();
        self.slow.handlers += 1;
        self.tell_notes();
        let Some(&Handler { left, needs_x87, loads_segment, .. }) = self.handlers.call(number)
        else {
            let place = self.place(from);
            self.stop_at(place, Exit::Interpret);
            return false;
        };
        let context = self.slots.current_context();
        context.budget = context.budget.wrapping_add(left);
        let rest = context.budget;
        self.save_context();
        if needs_x87 {
            self.settle_x87();
        }
        let Some(Handler { insn, .. }) = self.handlers.get(number) else { return false };
        self.cpu.state.rip = insn.iced.ip();
        let next_ip = insn.next_ip;
        self.cpu.set_recorded_left(left);
        let result = self.cpu.execute_prepared(insn);
        self.cpu.set_recorded_left(0);
        let may_go_on = match result {
            Err(exception) => {
                self.tell_cut(left);
                self.exception = Some(exception);
                self.slots.current_context().exit_kind = Exit::Exception as u32;
                return false;
            }
            Ok(may_go_on) => may_go_on,
        };
        self.slots.current_context().exit_kind = Exit::State as u32;
        let is_next = self.cpu.state.rip == next_ip;
        // Outside 64-bit mode a segment register decides what may be translated.
        let is_resegmented = loads_segment && !self.cpu.mode.is_64();
        if !may_go_on || !is_next || is_resegmented || self.must_stop() {
            self.mode = None;
            self.tell_cut(left - 1);
            return false;
        }
        self.reload_context(rest.wrapping_sub(left));
        self.entered_budget = rest.wrapping_sub(1);
        self.enter_code()
    }

    /// Something waits that translated code does not see.
    fn must_stop(&self) -> bool {
        let pending = self.cpu.events().peek();
        let is_open = self.cpu.state.rflags & rflags::IF != 0;
        pending != 0 && (pending != Events::INTERRUPT || is_open)
            || self.cpu.has_flushes()
            || self.remote.has_requests()
            || !self.cpu.is_unwatched()
    }
}
