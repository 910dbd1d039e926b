//! One vCPU on the translator: its state and the loop around translated code.
//!
//! The interpreter's [`Cpu`] holds the state whenever translated code does not run, and executes
//! whatever the translator leaves out: modes without translation, single steps, accesses to devices
//! and to pages with code. The x87 unit alone may stay in the host's registers outside
//! (`is_x87_live`), until somebody needs its contents.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cpu::debugger::ChangedCode;
use cpu::engine::{Vcpu, VmExit};
use cpu::events::Events;
use cpu::exception::Exception;
use cpu::mmu::View;
use cpu::state::{State, cr4, seg};
use cpu::{Cpu, Environment, Handover};
use memory::CodeWatcher;

use crate::cache::{Cache, ModeKey, Place};
use crate::code_memory::{CodeMemory, Contexts, Notes, Stacks};
use crate::context::{Context, VIEWS};
use crate::cross_check::KeptPage;
use crate::exit::Exit;
use crate::flow::Recipe;
use crate::handlers::Handlers;
use crate::plan::is_valid_target;
use crate::remote::Remote;
use crate::runtime::{self, Resumed};
use crate::slots::{SLOTS, Slots};
use crate::statistics::{SlowReasons, Statistics};
use crate::thunks::{self, VectorUnit};
use crate::translate::Scratch;
use crate::{JitError, Options};

/// Exceptions in a row, with nothing retired between them, after which a guest that does nothing
/// else gives its thread back.
const STORM: u32 = 1024;

/// A vCPU whose guest code is translated.
pub struct JitCpu {
    inner: Box<Inner>,
}

/// What translated code knows the address of.
pub(crate) struct Inner {
    pub(crate) cpu: Cpu,
    pub(crate) cache: Cache,
    pub(crate) handlers: Handlers,
    pub(crate) slots: Slots,
    pub(crate) options: Options,
    pub(crate) remote: Arc<Remote>,
    pub(crate) stacks: Stacks,
    pub(crate) contexts: Arc<Contexts>,
    pub(crate) has_fsgsbase: bool,
    /// The guest's x87 state is in the host's unit.
    pub(crate) is_x87_live: bool,
    /// The linear address of the last x87 operand that was over two pages.
    pub(crate) x87_bounced: u64,
    /// Raised by a helper, to be delivered.
    pub(crate) exception: Option<Exception>,
    /// The page fault of the last translation for data, and its address.
    pub(crate) fault: Option<(Exception, u64)>,
    /// The mode that the state is in, if it was looked up since it last changed.
    pub(crate) mode: Option<(ModeKey, u16)>,
    /// By view: the number of the mode that it has while no control register changes.
    pub(crate) family: [Option<u16>; 3],
    /// Budget when translated code was entered, where instructions are counted.
    pub(crate) entered_budget: u64,
    /// Pages as they were before a block that is checked.
    pub(crate) journal: Option<Vec<KeptPage>>,
    pub(crate) slow: SlowReasons,
    pub(crate) translation_ns: u64,
    pub(crate) scratch: Scratch,
    /// What translated code notes for a trace; made when there is one.
    pub(crate) notes: Option<Notes>,
}

/// A link to be made once its target is known.
#[derive(Clone, Copy)]
struct PendingLink {
    number: u32,
    target: u64,
    mode: ModeKey,
    generation: u64,
}

/// What the dispatcher knows of how it got where it is.
#[derive(Default)]
struct Arrival {
    link: Option<PendingLink>,
    is_ungrouped: bool,
    /// The jump cache has failed: the page must be looked at.
    must_look: bool,
}

impl JitCpu {
    /// A vCPU after RESET.
    pub fn new(environment: Environment, options: &Options) -> Result<Self, JitError> {
        crate::supported().map_err(JitError::Host)?;
        runtime::install_signal_handlers();
        let contexts = Arc::new(Contexts::new(SLOTS)?);
        let mut stacks = Stacks::new()?;
        let mut code = CodeMemory::new(options.cache_bytes as usize)?;
        let (bytes, thunks) = thunks::emit(VectorUnit::of_host(), runtime::helpers());
        if !code.write(0, &bytes) || bytes.is_empty() {
            return Err(JitError::Size { bytes: options.cache_bytes });
        }
        stacks.set_sentinel((code.base() + thunks.sentinel) as u64);
        let remote = Arc::new(Remote::new(Arc::clone(&contexts), stacks.trap()));
        environment.events.add_doorbell(Arc::clone(&remote) as _);
        let watcher = Arc::downgrade(&(Arc::clone(&remote) as Arc<dyn CodeWatcher>));
        environment.space.ram().flags().add_watcher(watcher);
        let ram_pages = environment.space.ram().flags().page_count();
        let inner = Inner {
            cpu: Cpu::new(environment),
            cache: Cache::new(code, thunks),
            handlers: Handlers::default(),
            slots: Slots::new(Arc::clone(&contexts), ram_pages, options.superblock_after),
            // A block that is checked must say how many instructions it has executed.
            options: Options {
                counting: options.counting || options.cross_check,
                ..options.clone()
            },
            remote,
            stacks,
            contexts,
            has_fsgsbase: crate::host::has_fsgsbase(),
            is_x87_live: false,
            x87_bounced: 0,
            exception: None,
            fault: None,
            mode: None,
            family: [None; 3],
            entered_budget: 0,
            journal: None,
            slow: SlowReasons::default(),
            translation_ns: 0,
            scratch: Scratch::default(),
            notes: None,
        };
        Ok(Self { inner: Box::new(inner) })
    }

    /// The interpreter's CPU, which has the state.
    pub fn cpu(&self) -> &Cpu {
        &self.inner.cpu
    }

    /// The interpreter's CPU. Whatever is changed while the vCPU does not run is seen when it runs
    /// again.
    pub fn cpu_mut(&mut self) -> &mut Cpu {
        self.inner.mode = None;
        &mut self.inner.cpu
    }

    /// Goes on as the CPU that was handed over. Other engines write to code without a word.
    pub fn take_over(&mut self, handover: Handover) {
        self.inner.cpu.take_over(handover);
        self.inner.clear_cache();
    }

    /// Translated code.
    #[cfg(feature = "testing")]
    pub fn translated(&self) -> Vec<crate::Translated> {
        self.inner.cache.translated()
    }

    /// What makes the vCPU drop all code, as when more code changed than it keeps in mind; for
    /// another thread.
    #[cfg(feature = "testing")]
    pub fn dropper(&self) -> impl Fn() + Send + use<> {
        let remote = Arc::clone(&self.inner.remote);
        move || remote.drop_all_code()
    }

    /// Figures so far.
    pub fn statistics(&self) -> Statistics {
        self.inner.statistics()
    }
}

impl Vcpu for JitCpu {
    fn run(&mut self, budget: u64) -> VmExit {
        self.inner.run(budget)
    }

    fn retired(&self) -> u64 {
        self.inner.cpu.retired()
    }

    fn state(&self) -> &State {
        &self.inner.cpu.state
    }

    fn set_state(&mut self, state: State) {
        self.inner.mode = None;
        self.inner.cpu.set_state(state);
    }

    fn events(&self) -> &Arc<Events> {
        self.inner.cpu.events()
    }
}

impl Inner {
    /// Host address of the enter thunk.
    pub(crate) fn enter_address(&self) -> usize {
        self.cache.code.base() + self.cache.thunks.enter
    }

    /// The current context.
    pub(crate) fn context_address(&mut self) -> *mut Context {
        self.contexts.address(self.slots.current())
    }

    pub(crate) fn has_fsgsbase(&self) -> bool {
        self.has_fsgsbase
    }

    /// True if host address `pc` is in translated code or its thunks.
    pub(crate) fn is_code(&self, pc: usize) -> bool {
        pc.wrapping_sub(self.cache.code.base()) < self.cache.code.size()
    }

    pub(crate) fn run(&mut self, budget: u64) -> VmExit {
        runtime::ensure_signal_stack();
        let end = self.cpu.retired().saturating_add(budget);
        let mut barren = 0u32;
        let mut arrival = Arrival::default();
        self.mode = None;
        self.forget_changed_code();
        self.cpu.start_guest();
        let exit = loop {
            self.remote.quiet_if_ringing();
            if let Some(exit) = self.cpu.at_boundary() {
                break exit;
            }
            let before = self.cpu.retired();
            if before >= end || barren == STORM {
                break VmExit::Budget;
            }
            arrival = self.step(end - before, arrival);
            let is_barren = self.options.counting && self.cpu.retired() == before;
            barren = if is_barren { barren + 1 } else { 0 };
        };
        self.settle_x87();
        self.cpu.pause_recording(exit != VmExit::Budget);
        self.cpu.stop_guest();
        exit
    }

    /// Runs translated code from where the state is, or the interpreter, until something else is to
    /// be done.
    fn step(&mut self, budget: u64, arrival: Arrival) -> Arrival {
        self.serve();
        let budget = self.follow_recording(budget);
        let is_plain = self.cpu.is_unwatched() && self.cpu.is_flat();
        if !is_plain || self.cpu.records_details() {
            self.interpret(budget);
            return Arrival::default();
        }
        let Some((key, mode)) = self.mode() else {
            self.clear_cache();
            return Arrival::default();
        };
        let code = match self.find_code(key, mode, &arrival) {
            Ok(Some((_, steps))) if self.options.counting && steps as u64 > budget => {
                self.interpret(budget);
                return Arrival::default();
            }
            Ok(Some((code, _))) => code,
            Ok(None) => {
                let budget = if self.options.counting { 1 } else { budget.min(64) };
                self.interpret(budget);
                return Arrival::default();
            }
            Err(exception) => {
                self.cpu.raise(exception);
                self.mode = None;
                return Arrival::default();
            }
        };
        if self.cpu.has_flushes() {
            // The walk of a fetch changes nothing, but its page may be a device's that does.
            return Arrival { must_look: true, ..Arrival::default() };
        }
        self.execute(code, budget)
    }

    /// Does what waits: flushes, requests of other threads.
    pub(crate) fn serve(&mut self) {
        if self.cpu.has_flushes() {
            self.note_x87_before_switch();
            for flush in self.cpu.take_flushes().iter() {
                self.slots.flush(flush, &self.cache);
            }
            self.mode = None;
        }
        if self.remote.has_requests() {
            self.serve_requests();
        }
    }

    /// Does what other threads want. True if all code was dropped.
    pub(crate) fn serve_requests(&mut self) -> bool {
        let requests = self.remote.take();
        if requests.noted.is_all || requests.written.is_all {
            self.slots.flush(cpu::mmu::Flush::Everything, &self.cache);
            self.clear_cache();
            return true;
        }
        for page in requests.noted.pages {
            if let Some(host) = self.cpu.ram().host_address(page << 12) {
                self.slots.drop_write_tags(page, host.0);
            }
        }
        for page in requests.written.pages {
            self.cache.kill_page(page << 12);
        }
        false
    }

    /// Makes code anew in which breakpoints came or went: a block never has an instruction with
    /// one, so the interpreter gets there, which stops.
    fn forget_changed_code(&mut self) {
        match self.cpu.take_changed_code() {
            ChangedCode::All => self.clear_cache(),
            ChangedCode::Pages(pages) => {
                pages.into_iter().for_each(|linear| self.cache.kill_linear_page(linear));
            }
        }
    }

    /// Drops everything translated.
    pub(crate) fn clear_cache(&mut self) {
        // The instructions that the x87 unit points to go with it.
        self.settle_x87();
        self.cache.clear();
        self.handlers.clear();
        self.cpu.forget_recorded();
        self.slots.forget_code();
        self.mode = None;
    }

    /// The current mode and its number; `None` if there are too many.
    pub(crate) fn mode(&mut self) -> Option<(ModeKey, u16)> {
        if self.mode.is_none() {
            let is_64 = self.cpu.mode.is_64();
            let key = ModeKey {
                key: self.cpu.mode.key,
                view: self.cpu.view(),
                whole: [seg::FS, seg::GS].map(|s| is_64 || self.cpu.is_whole_segment(s)),
            };
            self.mode = self.cache.mode(key).map(|number| (key, number));
            self.family = VIEWS.map(|view| self.mode_of(key, view));
            let pcid = if self.cpu.state.cr4 & cr4::PCIDE != 0 {
                self.cpu.state.cr3 as u16 & 0xfff
            } else {
                0
            };
            if !self.slots.is_selected(pcid) {
                self.note_x87_before_switch();
                self.slots.select(pcid);
            }
        }
        self.mode
    }

    /// The number of the mode in which `view` executes, if translated code can get there from mode
    /// `key` by itself.
    pub(crate) fn mode_of(&mut self, key: ModeKey, view: View) -> Option<u16> {
        let is_same_level = (view == View::User) == (key.view == View::User);
        if is_same_level {
            return self.cache.mode(ModeKey { view, ..key });
        }
        self.cpu.fast_system_calls()?;
        let cpl = if view == View::User { 3 } else { 0 };
        self.cache.mode(ModeKey { view, key: self.cpu.mode.key_at(cpl), ..key })
    }

    /// Interprets, at most `count` instructions.
    pub(crate) fn interpret(&mut self, count: u64) {
        self.slow.interpreted += 1;
        self.settle_x87();
        self.cpu.interpret(count);
        self.mode = None;
    }

    /// Position of code for where the state is, and the steps of its block (where they are
    /// counted); `None` if it is to be interpreted.
    fn find_code(
        &mut self,
        key: ModeKey,
        mode: u16,
        arrival: &Arrival,
    ) -> Result<Option<(usize, usize)>, Exception> {
        let rip = self.cpu.state.rip;
        for (view, mode) in VIEWS.into_iter().zip(self.family) {
            if let Some(mode) = mode {
                self.slots.prepare_jumps(view, mode);
            }
        }
        let is_plain = !arrival.must_look && !arrival.is_ungrouped && arrival.link.is_none();
        if is_plain && !self.options.counting {
            let known = self.slots.current_context().jumps(key.view).entry(rip);
            if known.rip == rip {
                return Ok(Some((known.code as usize - self.cache.code.base(), 0)));
            }
        }
        let Some(number) = self.find_block(rip, key, mode, arrival.is_ungrouped)? else {
            return Ok(None);
        };
        let Some(block) = self.cache.block(number) else { return Ok(None) };
        let (guarded, steps) = (block.guarded(), block.step_count());
        if let Some(link) = arrival.link
            && link.generation == self.cache.generation
            && link.target == rip
            && link.mode == key
        {
            if !self.options.cross_check {
                self.cache.make_link(link.number, number);
            }
        } else if !arrival.is_ungrouped && !self.options.cross_check {
            let code = (self.cache.code.base() + guarded) as u64;
            self.slots.set_jump(key.view, rip, code);
        }
        Ok(Some((guarded, steps)))
    }

    /// Enters code at position `code` and does what its exit asks for.
    fn execute(&mut self, code: usize, budget: u64) -> Arrival {
        let is_checked = self.options.cross_check && self.is_mapped();
        let before = is_checked.then(|| (self.begin_check(), self.cpu.retired()));
        self.revive_x87();
        self.load_context(budget);
        if !self.remote.enter_code() {
            return Arrival::default();
        }
        runtime::enter(self, self.cache.code.base() + code);
        self.remote.leave_code();
        if self.options.trash_helpers {
            runtime::trash();
        }
        self.tell_notes();
        let context = self.slots.current_context();
        let exit = Exit::of(context.exit_kind);
        self.slow.accesses += std::mem::take(&mut context.accesses);
        self.slow.exits[exit as usize % Exit::COUNT] += 1;
        if matches!(exit, Exit::Link | Exit::Indirect | Exit::Signal) {
            self.save_context();
        }
        if let Some((before, retired)) = before {
            let undone = self.locate_exit(exit);
            let executed = self.cpu.retired().wrapping_sub(retired).wrapping_sub(undone);
            self.end_check(before, executed, exit);
            if exit == Exit::Indirect && undone != 0 {
                return self.interpret_counted();
            }
        }
        self.after(exit)
    }

    /// Puts RIP where translated code has left it, for exits that leave that to [`Inner::after`];
    /// how many instructions were counted that are to be executed yet.
    pub(crate) fn locate_exit(&mut self, exit: Exit) -> u64 {
        let context = self.slots.current_context();
        let (number, target) = (context.exit_link, context.rip);
        match exit {
            Exit::Link => {
                if let Some(owned) = self.cache.link(number) {
                    self.cpu.state.rip = owned.target;
                    return u64::from(owned.is_interpreted);
                }
            }
            Exit::Indirect => {
                self.cpu.state.rip = target;
                return u64::from(self.take_back_wild_transfer(number));
            }
            Exit::Signal => self.arrive_by_signal(),
            _ => {}
        }
        0
    }

    /// Puts RIP and the flags where a host signal has stopped translated code.
    fn arrive_by_signal(&mut self) {
        let context = self.slots.current_context();
        let from = context.spare[2] as usize;
        self.cpu.state.rip = context.rip;
        let recipe = self.place(from).and_then(|place| place.recipe);
        self.follow(recipe);
    }

    /// The state's mode must be looked up again.
    pub(crate) fn mode_is_stale(&mut self) {
        self.mode = None;
    }

    fn after(&mut self, exit: Exit) -> Arrival {
        let context = self.slots.current_context();
        let (number, target) = (context.exit_link, context.rip);
        let signal = context.spare[1];
        match exit {
            Exit::Link => self.after_link(number),
            Exit::Indirect => {
                self.cpu.state.rip = target;
                if self.take_back_wild_transfer(number) {
                    self.tell_cut(1);
                    return self.interpret_counted();
                }
                Arrival { must_look: true, ..Arrival::default() }
            }
            Exit::Signal => {
                self.arrive_by_signal();
                if signal & SIGNAL_NOTES != 0 {
                    return Arrival::default();
                }
                let from = self.slots.current_context().spare[2] as usize;
                let left = self.place(from).map_or(0, |place| place.left);
                self.tell_cut(left);
                if signal & SIGNAL_SAFEPOINT != 0 {
                    self.remote.quiet();
                } else {
                    self.slow.signals += 1;
                    self.interpret(1);
                }
                Arrival::default()
            }
            Exit::Interpret => {
                self.interpret(1);
                Arrival::default()
            }
            Exit::Ungrouped => Arrival { is_ungrouped: true, ..Arrival::default() },
            Exit::Exception => {
                if let Some(exception) = self.exception.take() {
                    self.cpu.raise(exception);
                    self.mode = None;
                }
                Arrival::default()
            }
            Exit::State => {
                // What a handler has left to be taken behind it: SYSRET that sets TF, say.
                self.cpu.take_debug_trap();
                Arrival::default()
            }
        }
    }

    fn after_link(&mut self, number: u32) -> Arrival {
        let Some(owned) = self.cache.link(number) else { return Arrival::default() };
        self.cpu.state.rip = owned.target;
        if owned.is_hot {
            self.promote(number);
            return Arrival::default();
        }
        if owned.is_interpreted {
            self.tell_cut(1);
            return self.interpret_counted();
        }
        let generation = self.cache.generation;
        let link = match self.mode() {
            Some((mode, _)) if owned.at != 0 => {
                Some(PendingLink { number, target: owned.target, mode, generation })
            }
            _ => None,
        };
        Arrival { link, must_look: true, is_ungrouped: owned.is_ungrouped }
    }

    /// A transfer to an address that is no address faults at the instruction that made it: its
    /// effect on RSP is taken back, and the interpreter raises what is to be raised. True if there
    /// was such a transfer, by the link `number`.
    fn take_back_wild_transfer(&mut self, number: u32) -> bool {
        if is_valid_target(&self.cpu.mode, self.cpu.state.rip) {
            return false;
        }
        let Some((from, moved)) = self.cache.link(number).and_then(|link| link.undo) else {
            return false;
        };
        let rsp = &mut self.cpu.state.gpr[cpu::state::gpr::RSP];
        *rsp = rsp.wrapping_sub_signed(moved);
        self.cpu.state.rip = from;
        true
    }

    /// Interprets an instruction that was counted when its block was entered.
    fn interpret_counted(&mut self) -> Arrival {
        if self.options.counting {
            self.cpu.add_retired(u64::MAX);
        }
        self.interpret(1);
        Arrival::default()
    }

    /// The place of a call's return address.
    pub(crate) fn place(&self, from: usize) -> Option<Place> {
        self.cache.locate(from.wrapping_sub(self.cache.code.base()))
    }

    /// Makes the state that of the instruction at `place`, for a helper that will not return.
    pub(crate) fn stop_at(&mut self, place: Option<Place>, exit: Exit) -> u64 {
        if let Some(place) = place {
            self.tell_cut(place.left);
            if self.options.counting {
                let context = self.slots.current_context();
                context.budget = context.budget.wrapping_add(place.left);
            }
            self.save_context();
            self.cpu.state.rip = place.rip;
            self.follow(place.recipe);
        }
        self.slots.current_context().exit_kind = exit as u32;
        0
    }

    /// Computes the flags that were nowhere.
    pub(crate) fn follow(&mut self, recipe: Option<Recipe>) {
        if let Some(recipe) = recipe {
            let flags = recipe.flags(&self.cpu.state.gpr);
            self.cpu.replace_status_flags(flags);
        }
    }

    // Signals.

    /// What to do about a fault of translated code at host address `pc` that touched `address`.
    /// Called by the signal handler.
    pub(crate) fn on_fault(&mut self, pc: usize, address: usize) -> Resumed {
        if let Some(rsp) = self.stacks.after_overflow(address) {
            return Resumed { rip: pc, rsp: Some(rsp) };
        }
        let is_safepoint = address.wrapping_sub(self.stacks.trap()) < 4096;
        let base = self.cache.code.base();
        let Some(place) = self.cache.locate(pc - base) else {
            // A fault in a thunk is ours: nothing sensible can be gone on with.
            std::process::abort();
        };
        let context = self.slots.current_context();
        context.rip = place.rip;
        context.spare[1] = match is_safepoint {
            true => SIGNAL_SAFEPOINT,
            false if self.notes.as_ref().is_some_and(|notes| notes.is_end(address)) => SIGNAL_NOTES,
            false => 0,
        };
        context.spare[2] = pc as u64;
        context.budget = context.budget.wrapping_add(place.left);
        let thunks = &self.cache.thunks;
        let thunk =
            if place.is_live { thunks.leave_signal_live } else { thunks.leave_signal_spilled };
        Resumed { rip: base + thunk, rsp: None }
    }
}

/// The signal was a safe point's.
const SIGNAL_SAFEPOINT: u64 = 1;
/// The notes for a trace are full.
const SIGNAL_NOTES: u64 = 2;

/// Orders a store before loads behind it, for readers of the rules above.
const _: Ordering = Ordering::SeqCst;
