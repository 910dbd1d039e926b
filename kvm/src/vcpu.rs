//! One CPU on KVM, behind the trait that all engines have.
//!
//! The state is at one of two places: with the kernel while the guest runs, and in the [`Cpu`]
//! beside it while something happens that is no instruction (INIT, NMI, a request to leave, an
//! instruction that KVM cannot execute). Maskable interrupts, HLT and accesses to chips need no
//! move.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use cpu::engine::{Vcpu, VmExit};
use cpu::events::Events;
use cpu::exception::{Exception, Vector};
use cpu::state::{Activity, State, cr0};
use cpu::{Cpu, Environment, Handover};
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR,
    KVM_EXIT_IO, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR,
};
use kvm_ioctls::VcpuFd;
use memory::Width;

use crate::debugging::Placed;
use crate::kick::Kick;
use crate::lapic::Kept;
use crate::msrs::Shared;
use crate::registers::{self, Undelivered};
use crate::run_page::RunPage;
use crate::statistics::Statistics;
use crate::xsave::Layout;
use crate::{Clocks, KvmError, KvmVm, calls, cpuid, debugging, exits, standstill};

/// What is to be looked at whatever state the guest is in.
const WAKE_ALWAYS: u32 = Events::INIT | Events::SIPI | Events::NMI | Events::KICK | Events::EXIT;
/// Instructions that are interpreted at a time while an interrupt is held back.
const HELD_BACK_STEPS: u64 = 64;
/// Between two looks for what wakes a CPU that is stepped.
const STEP_PAUSE: Duration = Duration::from_millis(1);
/// Offset of the first word of a local APIC's interrupt request register.
const IRR: u64 = 0x200;
/// Bytes of code that are shown: of one instruction at least.
const SHOWN_BYTES: usize = 15;
/// Failures of KVM in a row that are said.
const REPORTS_MAX: u64 = 8;

/// One CPU.
pub struct KvmCpu {
    pub(crate) cpu: Box<Cpu>,
    pub(crate) fd: VcpuFd,
    page: RunPage,
    pub(crate) vm: Arc<KvmVm>,
    kick: Arc<Kick>,
    layout: Layout,
    msrs: Shared,
    /// The kernel has the state; else [`KvmCpu::cpu`] has.
    pub(crate) is_inside: bool,
    /// The kernel's local APIC has the registers of the machine's.
    pub(crate) has_apic: bool,
    /// What it cannot hold of them.
    pub(crate) kept: Kept,
    /// NMIs that wait in the kernel, whose local APICs may have added to them.
    kernel_nmis: Option<u8>,
    /// NMIs that wait in a kernel that has not run the guest since it was told of them.
    untouched_nmis: u8,
    /// The last exit is finished by the next KVM_RUN.
    is_unfinished: bool,
    /// The guest, whose state the kernel has, is in HLT, and the kernel does not know.
    is_halted: bool,
    /// The processor may have translations by page tables that another engine has changed.
    has_old_translations: bool,
    /// The generations of space and ports at which the kernel was last told of them.
    memory_generation: Option<(u64, u64)>,
    /// The registers by which KVM stops the guest for a debugger.
    debug_registers: Option<Placed>,
    statistics: Statistics,
}

impl KvmCpu {
    /// A CPU after RESET.
    pub fn new(vm: &Arc<KvmVm>, env: Environment) -> Result<Self, KvmError> {
        let mut fd = vm.create_vcpu(env.index, &env.space, &env.ports)?;
        let entries = cpuid::entries(&env.cpuid, env.index, vm.supported(), vm.offer())?;
        fd.set_cpuid2(&entries).map_err(KvmError::of("KVM_SET_CPUID2"))?;
        if vm.clocks() == Clocks::Machine && !calls::has_tsc_offset(&fd) {
            return Err(KvmError::Lacks("a time-stamp counter that follows the machine's"));
        }
        let kick = Arc::new(Kick::default());
        env.events.add_doorbell(Arc::clone(&kick) as _);
        vm.traffic().add(&kick);
        let mut cpu = Box::new(Cpu::new(env));
        vm.limit_msrs(|number| cpu.has_msr(number))?;
        Ok(Self {
            page: RunPage::of(&mut fd),
            layout: Layout::of_host(),
            msrs: Shared::of(&mut cpu.state, vm),
            cpu,
            fd,
            vm: Arc::clone(vm),
            kick,
            is_inside: false,
            has_apic: false,
            kept: Kept::default(),
            kernel_nmis: None,
            untouched_nmis: 0,
            is_unfinished: false,
            is_halted: false,
            has_old_translations: false,
            memory_generation: None,
            debug_registers: None,
            statistics: Statistics::default(),
        })
    }

    /// The CPU, which has the state while the engine does not run.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// The same, to be changed.
    pub fn cpu_mut(&mut self) -> &mut Cpu {
        &mut self.cpu
    }

    /// Goes on as the CPU that was handed over.
    pub fn take_over(&mut self, handover: Handover) {
        self.vm.forget_page_tables();
        self.memory_generation = None;
        self.has_old_translations = true;
        (self.is_inside, self.is_unfinished, self.is_halted) = (false, false, false);
        self.cpu.take_over(handover);
    }

    /// What was counted so far.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// One entry of the guest, with what comes before and behind it.
    fn round(&mut self) -> Result<Option<VmExit>, KvmError> {
        self.update_memory();
        let pending = self.cpu.env.events.peek();
        if !self.is_inside || pending & !Events::INTERRUPT != 0 {
            self.fetch()?;
            if let Some(exit) = self.leave_or_interpret()? {
                return Ok(exit);
            }
            self.put()?;
            debugging::put(&self.fd, &self.cpu, &mut self.debug_registers)?;
        } else {
            debugging::follow(&self.fd, &self.cpu, &mut self.debug_registers)?;
        }
        // The kernel's local APICs end HLT by themselves, and know what the task priority lets
        // through.
        if !self.has_apic {
            if self.is_halted && !self.wakes() {
                let interrupt = if self.page.takes_interrupts() { Events::INTERRUPT } else { 0 };
                return Ok(Some(VmExit::Halt { wake: WAKE_ALWAYS | interrupt }));
            }
            if self.is_held_back() {
                self.fetch()?;
                self.cpu.interpret(HELD_BACK_STEPS);
                return Ok(None);
            }
        }
        let is_window = self.offer_interrupt();
        self.enter(if is_window { Events::INTERRUPT } else { 0 })?;
        Ok(None)
    }

    /// Tells the kernel of memory and doorbells, if they have changed.
    fn update_memory(&mut self) {
        let env = &self.cpu.env;
        let generation = (env.space.generation(), env.ports.generation());
        if self.memory_generation != Some(generation) {
            self.vm.update_memory();
            self.memory_generation = Some(generation);
        }
    }

    /// What comes at a boundary before the guest is entered, if something does: a reason to leave,
    /// or an instruction that has been interpreted.
    fn leave_or_interpret(&mut self) -> Result<Option<Option<VmExit>>, KvmError> {
        if self.has_apic {
            self.filter_lint1()?;
        }
        match self.cpu.at_boundary() {
            Some(VmExit::Halt { .. }) if self.has_apic && self.cpu.is_single_stepped() => {
                self.await_step().map(Some)
            }
            // The kernel's local APICs know what wakes a CPU, and it sleeps there.
            Some(VmExit::Halt { .. } | VmExit::WaitForSipi) if self.has_apic => Ok(None),
            Some(exit) => Ok(Some(Some(exit))),
            // KVM has no place for a trap that waits behind a MOV SS.
            None if self.cpu.pending_dr6 != 0 || self.cpu.is_single_stepped() => {
                self.alone(|cpu| cpu.interpret(1))?;
                Ok(Some(None))
            }
            None => Ok(None),
        }
    }

    /// A CPU in HLT that is stepped: the kernel would go on behind the interrupt that wakes it.
    fn await_step(&mut self) -> Result<Option<VmExit>, KvmError> {
        match self.alone(Cpu::at_boundary)? {
            Some(VmExit::Halt { .. }) => {
                std::thread::sleep(STEP_PAUSE);
                Ok(None)
            }
            exit => Ok(exit),
        }
    }

    /// Ends HLT if an interrupt does. Other events take the state out of KVM first.
    fn wakes(&mut self) -> bool {
        let Self { cpu, page, .. } = self;
        // The mark goes first: an interrupt that comes after the look sets it again.
        cpu.env.events.take(Events::INTERRUPT);
        self.is_halted = !(page.takes_interrupts() && cpu.env.lapic.has_interrupt());
        !self.is_halted
    }

    /// True if the task priority holds an interrupt back. Not every KVM leaves the guest when
    /// MOV CR8 lowers it, so the interpreter goes on until it is lowered.
    fn is_held_back(&self) -> bool {
        let lapic = &self.cpu.env.lapic;
        let priority = u64::from(lapic.cr8());
        // No interrupt has a vector below 32: Linux runs at priority 1 all the time.
        if priority < 2 || lapic.has_interrupt() {
            return false;
        }
        // A word has the vectors of two priorities.
        (0..=priority / 2).any(|word| {
            let requested = lapic.mmio_read(IRR + 16 * word, Width::Dword);
            let is_whole = word != priority / 2 || priority % 2 == 1;
            requested & if is_whole { 0xffff_ffff } else { 0xffff } != 0
        })
    }

    /// Gives the guest an interrupt, if it takes one: the local APIC's, or where the kernel has its
    /// registers the PIC's, if LVT LINT0 lets it through, which the kernel knows. True if the guest
    /// will be left when it takes one.
    fn offer_interrupt(&mut self) -> bool {
        let Self { cpu, fd, page, statistics, has_apic, .. } = self;
        // The mark goes first: an interrupt that comes after the look sets it again.
        cpu.env.events.take(Events::INTERRUPT);
        let lapic = &cpu.env.lapic;
        let pic = lapic.lending().filter(|_| *has_apic);
        let is_waiting = || pic.map_or_else(|| lapic.has_interrupt(), |pic| pic.has_extint());
        let acknowledge =
            || pic.map_or_else(|| lapic.acknowledge(), |pic| pic.acknowledge_extint());
        if page.takes_interrupts()
            && is_waiting()
            && let Some(vector) = acknowledge()
        {
            statistics.interrupts += 1;
            // KVM has room for one until it has entered the guest.
            page.forget_interruptibility();
            if !calls::inject(fd, vector) {
                log::error!(target: "kvm::exit", "vector {vector:#x} is lost");
            }
        }
        let is_waiting = is_waiting();
        page.request_interrupt_window(is_waiting);
        is_waiting
    }

    /// Enters the guest, unless something but `expected` waits, and does what it leaves for.
    fn enter(&mut self, expected: u32) -> Result<(), KvmError> {
        self.page.set_cr8(self.cpu.env.lapic.cr8());
        let inside = self.vm.traffic().enter();
        self.kick.enter();
        fence(Ordering::SeqCst);
        let is_stopped =
            self.cpu.env.events.peek() & !expected != 0 || self.vm.traffic().is_stopped();
        let outcome = if is_stopped { Ok(()) } else { self.fd.run().map(drop) };
        self.kick.leave();
        drop(inside);
        self.page.set_immediate_exit(false);
        if is_stopped {
            return Ok(());
        }
        self.is_unfinished = false;
        self.untouched_nmis = 0;
        self.statistics.entries += 1;
        self.take_apic();
        match outcome.map_err(|error| error.errno()) {
            Ok(()) => self.serve(),
            Err(libc::EINTR | libc::EAGAIN) => {
                self.statistics.kicks += 1;
                Ok(())
            }
            Err(errno) => Err(KvmError::of("KVM_RUN")(kvm_ioctls::Error::new(errno))),
        }
    }

    /// Tells the local APIC what the guest did to it without an exit of its own.
    fn take_apic(&mut self) {
        let (cr8, base) = self.page.apic();
        let lapic = &self.cpu.env.lapic;
        if cr8 != lapic.cr8() {
            lapic.set_cr8(cr8);
        }
        if base != lapic.base() && !self.cpu.set_apic_base(base) {
            log::warn!(target: "guest_error", "IA32_APIC_BASE cannot be {base:#x}");
        }
    }

    /// Does what the guest left for.
    fn serve(&mut self) -> Result<(), KvmError> {
        match self.page.reason() {
            KVM_EXIT_IO | KVM_EXIT_MMIO | KVM_EXIT_X86_RDMSR => self.serve_access(),
            KVM_EXIT_X86_WRMSR => {
                self.serve_access();
                self.put_tsc()?;
            }
            KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_INTR | KVM_EXIT_SET_TPR => {
                self.statistics.windows += 1;
            }
            KVM_EXIT_IOAPIC_EOI => self.serve_end(),
            KVM_EXIT_HLT => {
                self.statistics.halts += 1;
                // The trap of a single step ends HLT, and KVM takes no interrupt before it.
                let is_stepped =
                    !self.page.takes_interrupts() && registers::has_exception(&self.fd)?;
                self.is_halted = !is_stepped;
            }
            KVM_EXIT_SHUTDOWN => {
                self.fetch()?;
                log::debug!(target: "kvm::exit", "CPU {}: triple fault", self.cpu.env.index);
                self.report_registers();
                self.cpu.state.activity = Activity::Shutdown;
            }
            KVM_EXIT_DEBUG => self.serve_debug()?,
            reason => self.interpret(reason)?,
        }
        Ok(())
    }

    /// The guest has met a debug register: its own, the debugger's, or both.
    fn serve_debug(&mut self) -> Result<(), KvmError> {
        let Some(placed) = self.debug_registers.clone() else { return Ok(()) };
        let dr6 = self.page.debug_status();
        let hits = placed.guests_hits(dr6);
        if hits != 0 {
            registers::queue_debug(&self.fd, hits)?;
        }
        if placed.debuggers_hits(dr6) != 0 {
            self.fetch()?;
            debugging::note(&mut self.cpu, &placed, dr6);
        } else if hits == 0 {
            // INT1, which some processors tell of before it is done.
            self.fetch()?;
            self.alone(|cpu| cpu.interpret(1))?;
        }
        Ok(())
    }

    /// A level-triggered interrupt has ended.
    fn serve_end(&mut self) {
        self.statistics.ends += 1;
        if let Some(lapic) = self.cpu.env.lapic.lending() {
            lapic.broadcast_eoi(self.page.ended_vector());
        }
    }

    fn serve_access(&mut self) {
        self.is_unfinished = true;
        let Self { cpu, page, msrs, statistics, .. } = self;
        match page.reason() {
            KVM_EXIT_IO => {
                statistics.ports += 1;
                exits::port(cpu, page);
            }
            KVM_EXIT_MMIO => {
                statistics.devices += 1;
                exits::mmio(cpu, page);
            }
            KVM_EXIT_X86_RDMSR => {
                statistics.msrs += 1;
                let msr = page.msr();
                match cpu.read_msr(msr.number) {
                    Ok(value) => (*msr.value, *msr.error) = (value, 0),
                    Err(_) => *msr.error = 1,
                }
            }
            _ => {
                statistics.msrs += 1;
                let msr = page.msr();
                // A value that KVM refuses for an MSR of its own is #GP.
                let is_written =
                    !msrs.contains(msr.number) && cpu.write_msr(msr.number, *msr.value).is_ok();
                *msr.error = u8::from(!is_written);
            }
        }
    }

    /// Has the guest's time-stamp counter show what the machine says, where that makes it.
    pub(crate) fn put_tsc(&self) -> Result<(), KvmError> {
        let platform = &self.cpu.env.platform;
        match platform.host_tsc_base().filter(|_| self.vm.clocks() == Clocks::Machine) {
            Some(base) => {
                calls::set_tsc_offset(&self.fd, base.wrapping_add(self.cpu.state.msrs.tsc_offset))
            }
            None => Ok(()),
        }
    }

    /// The interpreter executes what KVM cannot.
    fn interpret(&mut self, reason: u32) -> Result<(), KvmError> {
        let failure = match reason {
            KVM_EXIT_INTERNAL_ERROR | KVM_EXIT_FAIL_ENTRY => self.page.failure(),
            _ => 0,
        };
        self.fetch()?;
        self.statistics.refused += 1;
        if self.statistics.refused <= REPORTS_MAX {
            self.report_refusal(reason, failure);
        }
        self.alone(|cpu| cpu.interpret(1))
    }

    fn report_refusal(&mut self, reason: u32, failure: u64) {
        let rip = self.cpu.state.rip;
        let bytes = self.cpu.peek_code(self.cpu.linear_ip(), SHOWN_BYTES);
        log::warn!(
            target: "kvm::exit",
            "KVM gives up at RIP {rip:#x}, bytes {bytes:02x?} (exit {reason}, {failure:#x}); the \
             interpreter goes on"
        );
        self.report_registers();
        if self.statistics.refused == REPORTS_MAX {
            log::warn!(target: "kvm::exit", "further ones are not told, only counted (--stats)");
        }
    }

    fn report_registers(&self) {
        let State { gpr, rip, rflags, cr0, cr2, cr3, cr4, .. } = &self.cpu.state;
        log::debug!(
            target: "kvm::exit",
            "RIP {rip:#x}, RFLAGS {rflags:#x}, CR0 {cr0:#x}, CR2 {cr2:#x}, CR3 {cr3:#x}, \
             CR4 {cr4:#x}, RAX to R15 {gpr:x?}"
        );
    }

    /// Has KVM finish the last exit, so that its state is at an instruction's boundary, and what it
    /// has begun with the local APIC.
    pub(crate) fn finish(&mut self) -> Result<(), KvmError> {
        if self.has_apic {
            return self.finish_with_apic();
        }
        while std::mem::take(&mut self.is_unfinished) {
            self.page.set_immediate_exit(true);
            let outcome = self.fd.run().map(drop);
            self.page.set_immediate_exit(false);
            match (outcome.map_err(|error| error.errno()), self.page.reason()) {
                // The second half of an access over two pages, say.
                (Ok(()), KVM_EXIT_IO | KVM_EXIT_MMIO) => self.serve_access(),
                (Ok(()) | Err(libc::EINTR), _) => {}
                (Err(errno), _) => {
                    return Err(KvmError::of("KVM_RUN")(kvm_ioctls::Error::new(errno)));
                }
            }
        }
        Ok(())
    }

    /// The same where the kernel has interrupts, its timer's or the PIC's, that are in no register
    /// until it is about to enter the guest.
    fn finish_with_apic(&mut self) -> Result<(), KvmError> {
        self.page.request_interrupt_window(false);
        loop {
            self.page.set_immediate_exit(false);
            let outcome = standstill::run(&mut self.fd);
            match (outcome.map_err(|error| error.errno()), self.page.reason()) {
                // The second half of an access over two pages, say.
                (Ok(()), KVM_EXIT_IO | KVM_EXIT_MMIO) => self.serve_access(),
                (Ok(()), KVM_EXIT_IOAPIC_EOI) => self.serve_end(),
                // A late signal to leave came before KVM had begun.
                (Err(libc::EINTR), _) if self.page.is_immediate_exit() => {}
                (Ok(()) | Err(libc::EINTR | libc::EAGAIN), _) => break,
                (Err(errno), _) => {
                    return Err(KvmError::of("KVM_RUN")(kvm_ioctls::Error::new(errno)));
                }
            }
        }
        self.page.set_immediate_exit(false);
        self.is_unfinished = false;
        Ok(())
    }

    /// Takes the state from the kernel, if it has it.
    pub(crate) fn fetch(&mut self) -> Result<(), KvmError> {
        if !self.is_inside {
            return Ok(());
        }
        self.finish()?;
        self.statistics.moves += 1;
        let mut state = self.cpu.state.clone();
        if self.has_apic {
            registers::fetch_activity(&self.fd, &mut state)?;
        } else {
            let is_halted = std::mem::take(&mut self.is_halted);
            state.activity = if is_halted { Activity::Halted } else { Activity::Active };
        }
        registers::fetch_general(&self.fd, &mut state)?;
        registers::fetch_system(&self.fd, &mut state)?;
        self.layout.fetch(&self.fd, &mut state)?;
        self.msrs.fetch(&self.fd, &mut state)?;
        let (undelivered, nmis) = registers::fetch_events(&self.fd, &mut state)?;
        // What #DB has to say gets there with the events.
        registers::fetch_debug(&self.fd, &mut state)?;
        self.kernel_nmis = self.has_apic.then_some(nmis);
        // Old kernels say that some wait, and not how many.
        state.nmis_pending = state.nmis_pending.max(std::mem::take(&mut self.untouched_nmis));
        self.is_inside = false;
        self.take_apic();
        self.cpu.set_state(state);
        self.cpu.reload_pdptes();
        if self.cpu.env.lapic.has_interrupt() {
            // The mark was taken when KVM was asked for a window, which has not come.
            self.cpu.env.events.post(Events::INTERRUPT);
        }
        match undelivered {
            Some(Undelivered::Interrupt(vector)) => self.cpu.take_interrupt(vector),
            Some(Undelivered::Exception(vector, code)) => {
                if let Some(exception) = Exception::from_parts(vector, code) {
                    if exception.vector == Vector::Debug {
                        self.cpu.pending_dr6 |= self.cpu.state.dr[6] & registers::DR6_HITS;
                    }
                    self.cpu.raise(exception);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Gives the kernel the state.
    pub(crate) fn put(&mut self) -> Result<(), KvmError> {
        self.update_memory();
        if std::mem::take(&mut self.has_old_translations) {
            registers::put_system(&self.fd, &self.cpu, cr0::WP)?;
        }
        registers::put_system(&self.fd, &self.cpu, 0)?;
        registers::put_general(&self.fd, &self.cpu.state)?;
        registers::put_debug(&self.fd, &self.cpu.state)?;
        self.layout.put(&self.fd, &self.cpu.state)?;
        let now = self.cpu.tsc();
        self.msrs.put(&self.fd, &mut self.cpu.state, now)?;
        self.put_tsc()?;
        registers::put_events(&self.fd, &self.cpu.state, self.kernel_nmis)?;
        self.untouched_nmis = self.cpu.state.nmis_pending;
        if self.has_apic {
            registers::put_activity(&self.fd, self.cpu.state.activity)?;
        }
        self.is_inside = true;
        // What the page says of the guest is of before.
        self.page.forget_interruptibility();
        Ok(())
    }
}

impl Vcpu for KvmCpu {
    /// Runs until something needs the owner. KVM counts no instructions: there is no budget.
    fn run(&mut self, _: u64) -> VmExit {
        self.kick.begin(self.page.immediate_exit());
        let is_steal_ours = self.vm.clocks() == Clocks::Machine;
        if is_steal_ours {
            self.cpu.start_guest();
        }
        let exit = loop {
            match self.round() {
                Ok(None) => {}
                Ok(Some(exit)) => break exit,
                Err(error) => {
                    let cause = error.source().map(|cause| format!(": {cause}"));
                    let (cause, index) = (cause.unwrap_or_default(), self.cpu.env.index);
                    log::error!(target: "kvm::exit", "CPU {index}: {error}{cause}");
                    break VmExit::Failed;
                }
            }
        };
        if is_steal_ours {
            self.cpu.stop_guest();
        }
        self.kick.end();
        exit
    }

    fn retired(&self) -> u64 {
        self.cpu.retired()
    }

    fn state(&self) -> &State {
        &self.cpu.state
    }

    fn set_state(&mut self, state: State) {
        self.cpu.set_state(state);
    }

    fn events(&self) -> &Arc<Events> {
        &self.cpu.env.events
    }
}
