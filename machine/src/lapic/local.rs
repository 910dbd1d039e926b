//! One local APIC with its lock, its clock and its wires.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use memory::{GuestPhysical, Width};

use super::access::{Context, is_timer_register};
use super::address::{Address, ApicMode};
use super::bus::ApicBus;
use super::image::ApicImage;
use super::lvt::LvtEntry;
use super::message::{DeliveryMode, Message, MessageSink};
use super::state::{Acknowledged, ApicState, Effects, SVR_ENABLE, mode_of};
use super::{GeneralProtection, LapicSnapshot, LocalApicKind};
use crate::chip::{Chip, RestoreError, decode, encode};
use crate::deadline::Deadline;
use crate::guard::lock;
use crate::signals::CpuSignals;
use crate::timers::{TimerTarget, Timers};

const STATE_VERSION: u16 = 2;

/// The first MSR of x2APIC.
const X2APIC_FIRST_MSR: u32 = 0x800;

/// How a local APIC is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// Power-up or RESET#: everything.
    PowerUp,
    /// INIT: IA32_APIC_BASE and the APIC ID stay.
    Init,
}

/// The local APIC of one CPU.
///
/// Methods for the CPU are called from its thread; messages and pins come from any thread. None is
/// called with a chip's lock held.
pub struct LocalApic {
    kind: LocalApicKind,
    name: String,
    state: Mutex<ApicState>,
    /// `state.is_deliverable()`, for the CPU's frequent question.
    is_deliverable: AtomicBool,
    /// `state.address()`, for senders.
    address: AtomicU64,
    /// The CPU left the EOI to the guest's memory and wants to know of every request.
    is_pv_eoi_armed: AtomicBool,
    /// An engine has the registers. Changes under the lock of `state`.
    is_lent: AtomicBool,
    timer: Deadline,
    bus: Weak<ApicBus>,
    signals: Arc<dyn CpuSignals>,
}

impl LocalApic {
    pub(super) fn new(
        kind: LocalApicKind,
        bus: Weak<ApicBus>,
        timers: &Arc<Timers>,
        signals: Arc<dyn CpuSignals>,
    ) -> Arc<Self> {
        let state = ApicState::power_up(&kind);
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            kind,
            name: format!("lapic{}", kind.cpu),
            is_deliverable: AtomicBool::new(false),
            address: AtomicU64::new(state.address().pack()),
            state: Mutex::new(state),
            is_pv_eoi_armed: AtomicBool::new(false),
            is_lent: AtomicBool::new(false),
            timer: Deadline::new(timers.register(this.clone())),
            bus,
            signals,
        })
    }

    fn lock(&self) -> MutexGuard<'_, ApicState> {
        lock(&self.state)
    }

    /// Runs `change` under the lock, then does what it asked for without it.
    fn update<R>(&self, change: impl FnOnce(&mut ApicState, &mut Effects) -> R) -> R {
        let mut effects = Effects::default();
        let mut state = self.lock();
        let result = change(&mut state, &mut effects);
        let is_deliverable = !self.is_lent() && state.is_deliverable();
        let was_deliverable = self.is_deliverable.swap(is_deliverable, Ordering::SeqCst);
        self.address.store(state.address().pack(), Ordering::Release);
        drop(state);
        let is_watched = effects.requested && self.is_pv_eoi_armed.load(Ordering::SeqCst);
        if is_deliverable && !was_deliverable || is_watched {
            self.signals.interrupt(self.kind.cpu);
        }
        self.perform(&effects);
        result
    }

    /// As [`Self::update`], for what reads or changes the timer.
    fn update_timed<R>(
        &self,
        change: impl FnOnce(&mut ApicState, Context<'_>, &mut Effects) -> R,
    ) -> R {
        let mut is_rearmed = false;
        let result = self.update(|state, effects| {
            let context = Context { kind: &self.kind, now_ns: self.timer.clock().now_ns() };
            state.advance_timer(context.now_ns, self.kind.rates, effects);
            let result = change(state, context, effects);
            is_rearmed = self.stage_deadline(state, context.now_ns);
            result
        });
        if is_rearmed {
            self.timer.flush();
        }
        result
    }

    fn stage_deadline(&self, state: &ApicState, now_ns: u64) -> bool {
        let lvt = state.lvt(LvtEntry::Timer);
        self.timer.stage(state.timer.deadline_ns(lvt, now_ns, self.kind.rates))
    }

    fn perform(&self, effects: &Effects) {
        let cpu = self.kind.cpu;
        if effects.init {
            self.signals.init(cpu);
        }
        if let Some(vector) = effects.startup {
            self.signals.startup(cpu, vector);
        }
        if effects.nmi {
            self.signals.nmi(cpu);
        }
        if effects.message.is_none() && effects.end_of_interrupt.is_none() {
            return;
        }
        let Some(bus) = self.bus.upgrade() else { return };
        if let Some(vector) = effects.end_of_interrupt {
            bus.broadcast_eoi(vector);
        }
        if let Some(message) = effects.message {
            bus.deliver(message);
        }
    }

    /// The registers, and when the timer interrupts next.
    pub fn snapshot(&self) -> LapicSnapshot {
        let now_ns = self.timer.clock().now_ns();
        self.lock().snapshot(now_ns, self.kind.rates)
    }

    /// The index of the CPU.
    pub fn cpu(&self) -> u32 {
        self.kind.cpu
    }

    /// The APIC ID in the current mode.
    pub fn id(&self) -> u32 {
        self.address().id
    }

    pub(super) fn address(&self) -> Address {
        Address::unpack(self.address.load(Ordering::Acquire))
    }

    /// Where the CPU finds the memory-mapped registers; `None` if it does not, because the APIC is
    /// globally disabled or in x2APIC mode.
    pub fn mmio_base(&self) -> Option<GuestPhysical> {
        let state = self.lock();
        (state.mode() == ApicMode::XApic).then_some(GuestPhysical(state.base & !0xFFF))
    }

    /// Reads the register at `offset` of the page. Only within an aligned dword is there anything;
    /// other reads give all ones, and so does an APIC that is not in xAPIC mode.
    pub fn mmio_read(&self, offset: u64, width: Width) -> u64 {
        let within = offset & 0xF;
        let Ok(number) = u32::try_from(offset >> 4) else { return width.mask() };
        if within.saturating_add(width.bytes()) > 4 || self.address().mode != ApicMode::XApic {
            return width.mask();
        }
        let value = if is_timer_register(number) {
            self.update_timed(|state, context, effects| state.read_xapic(number, context, effects))
        } else {
            let context = Context { kind: &self.kind, now_ns: 0 };
            self.update(|state, effects| state.read_xapic(number, context, effects))
        };
        u64::from(value) >> (8 * within) & width.mask()
    }

    /// Writes the register at `offset` of the page. Only aligned dwords are taken, and only in
    /// xAPIC mode.
    pub fn mmio_write(&self, offset: u64, width: Width, value: u64) {
        let Ok(number) = u32::try_from(offset >> 4) else { return };
        if width != Width::Dword || offset & 0xF != 0 || self.address().mode != ApicMode::XApic {
            return;
        }
        let value = value as u32;
        if is_timer_register(number) {
            self.update_timed(|state, context, effects| {
                state.write_xapic(number, value, context, effects);
            });
        } else {
            let context = Context { kind: &self.kind, now_ns: 0 };
            self.update(|state, effects| state.write_xapic(number, value, context, effects));
        }
    }

    /// Reads x2APIC register `msr` (800H to 8FFH); `None` is #GP.
    pub fn msr_read(&self, msr: u32) -> Option<u64> {
        let number = self.x2apic_register(msr)?;
        if is_timer_register(number) {
            return self.update_timed(|state, context, _| state.read_x2apic(number, context));
        }
        self.lock().read_x2apic(number, Context { kind: &self.kind, now_ns: 0 })
    }

    /// Writes x2APIC register `msr` (800H to 8FFH).
    pub fn msr_write(&self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        let number = self.x2apic_register(msr).ok_or(GeneralProtection)?;
        if is_timer_register(number) {
            return self.update_timed(|state, context, effects| {
                state.write_x2apic(number, value, context, effects)
            });
        }
        let context = Context { kind: &self.kind, now_ns: 0 };
        self.update(|state, effects| state.write_x2apic(number, value, context, effects))
    }

    fn x2apic_register(&self, msr: u32) -> Option<u32> {
        let number = msr.checked_sub(X2APIC_FIRST_MSR)?;
        (self.address().mode == ApicMode::X2Apic).then_some(number)
    }

    /// IA32_APIC_BASE.
    pub fn apic_base(&self) -> u64 {
        self.lock().base
    }

    /// Writes IA32_APIC_BASE. CPUID.01H:EDX.APIC follows its EN bit.
    pub fn set_apic_base(&self, value: u64) -> Result<(), GeneralProtection> {
        self.update_timed(|state, _, _| match mode_of(value) {
            // The engine that has the registers allowed it, and did not show all steps.
            Some(_) if self.is_lent() => {
                state.base = value;
                Ok(())
            }
            _ => state.set_base(value, &self.kind),
        })
    }

    /// The task priority; CR8 is its bits 7:4.
    pub fn tpr(&self) -> u8 {
        self.lock().tpr
    }

    /// Sets the task priority. Works with the APIC disabled too, as CR8 does.
    pub fn set_tpr(&self, tpr: u8) {
        self.update(|state, _| state.tpr = tpr);
    }

    /// True if [`Self::acknowledge`] has something for a CPU that takes interrupts. One load.
    #[inline]
    pub fn has_interrupt(&self) -> bool {
        self.is_deliverable.load(Ordering::Acquire)
    }

    /// Takes the interrupt of the highest priority: its vector goes from IRR to ISR, or the 8259A
    /// pair says which it is.
    pub fn acknowledge(&self) -> Option<u8> {
        if !self.has_interrupt() {
            return None;
        }
        match self.update(|state, _| state.acknowledge()) {
            Acknowledged::Nothing => None,
            Acknowledged::Vector(vector) => Some(vector),
            Acknowledged::ExtInt => self.bus.upgrade()?.acknowledge_extint(),
        }
    }

    /// Ends the interrupt of the highest priority in service; the EOI register's write.
    pub fn eoi(&self) {
        self.update(|state, effects| state.end_of_interrupt(effects));
    }

    /// The vector in service of the highest priority.
    pub fn in_service(&self) -> Option<u8> {
        self.lock().isr.highest()
    }

    /// The vector in service, if its EOI may be left to the guest's memory (PV EOI): nothing else
    /// is in service or requested, and it is edge-triggered.
    pub fn skippable_eoi(&self) -> Option<u8> {
        self.lock().skippable_eoi()
    }

    /// While armed, every request signals the CPU, deliverable or not: the CPU then looks whether
    /// the guest has ended its interrupt, and if so calls [`Self::eoi`].
    pub fn set_pv_eoi_armed(&self, is_armed: bool) {
        self.is_pv_eoi_armed.store(is_armed, Ordering::SeqCst);
    }

    /// IA32_TSC_DEADLINE; zero when disarmed or in another timer mode.
    pub fn tsc_deadline(&self) -> u64 {
        self.update_timed(|state, _, _| state.timer.tsc_deadline())
    }

    /// Writes IA32_TSC_DEADLINE, in ticks of the guest's TSC; a deadline that has passed expires
    /// now. Ignored in other timer modes.
    pub fn set_tsc_deadline(&self, deadline: u64) {
        self.update_timed(|state, context, effects| {
            let lvt = state.lvt(LvtEntry::Timer);
            state.timer.set_tsc_deadline(deadline, lvt);
            state.advance_timer(context.now_ns, self.kind.rates, effects);
        });
    }

    /// The CPU's TSC now.
    pub fn tsc(&self) -> u64 {
        let now_ns = self.timer.clock().now_ns();
        self.lock().timer.tsc(now_ns, self.kind.rates)
    }

    /// What the CPU's TSC is ahead of the machine's (`ns_to_ticks(now)`), modulo 2^64.
    pub fn tsc_offset(&self) -> u64 {
        self.lock().timer.tsc_offset()
    }

    /// Moves the CPU's TSC (writes of IA32_TIME_STAMP_COUNTER and IA32_TSC_ADJUST); an armed
    /// deadline stays at its TSC value.
    pub fn set_tsc_offset(&self, offset: u64) {
        self.update_timed(|state, context, effects| {
            state.timer.set_tsc_offset(offset);
            state.advance_timer(context.now_ns, self.kind.rates, effects);
        });
    }

    /// A source inside the CPU (thermal, performance counters, machine check) raises its interrupt.
    pub fn raise(&self, entry: LvtEntry) {
        self.update(|state, effects| state.raise(entry, effects));
    }

    /// Drives LINT0 or LINT1. While an engine has the registers the CPU looks what they make of it.
    pub(super) fn set_lint(&self, pin: LvtEntry, level: bool) {
        let is_lent = self.update(|state, effects| {
            let is_lent = self.is_lent();
            if is_lent {
                state.note_lint(pin, level);
            } else {
                state.set_lint(pin, level, effects);
            }
            is_lent
        });
        match pin {
            _ if !is_lent || !level => {}
            LvtEntry::Lint1 => self.signals.nmi(self.kind.cpu),
            _ => self.signals.interrupt(self.kind.cpu),
        }
    }

    fn is_lent(&self) -> bool {
        self.is_lent.load(Ordering::SeqCst)
    }

    /// Gives the registers to the CPU's engine, until [`Self::take_back`]. Called while the bus
    /// holds its messages ([`ApicBus::hold`]).
    pub fn lend(&self) -> ApicImage {
        self.update_timed(|state, context, _| {
            let image = state.image(context);
            state.leave();
            self.is_lent.store(true, Ordering::SeqCst);
            image
        })
    }

    /// Takes the registers back. Called while the bus holds its messages.
    pub fn take_back(&self, image: &ApicImage) {
        self.update_timed(|state, context, _| {
            state.take_image(image, context);
            self.is_lent.store(false, Ordering::SeqCst);
        });
    }

    /// True if the 8259A pair has an interrupt for the CPU, should LINT0 let it through. For
    /// engines that have the registers.
    pub fn has_extint(&self) -> bool {
        self.lock().has_extint()
    }

    /// Takes the pair's vector, for the same engines.
    pub fn acknowledge_extint(&self) -> Option<u8> {
        self.update(|state, _| state.take_extint());
        self.bus.upgrade()?.acknowledge_extint()
    }

    /// Tells the I/O APICs that a level-triggered interrupt has ended, for the same engines.
    pub fn broadcast_eoi(&self, vector: u8) {
        if let Some(bus) = self.bus.upgrade() {
            bus.broadcast_eoi(vector);
        }
    }

    /// Has the messages to all local APICs wait while the registers of some are moved.
    pub fn hold_messages(&self) {
        if let Some(bus) = self.bus.upgrade() {
            bus.hold();
        }
    }

    /// Delivers them.
    pub fn release_messages(&self) {
        if let Some(bus) = self.bus.upgrade() {
            bus.release();
        }
    }

    /// A message on the bus is for this APIC; false if it is not taken. An engine that has the
    /// registers leaves ExtINTs here, and its CPU looks for them.
    pub(super) fn accept(&self, message: Message) -> bool {
        let was_taken = self.update(|state, effects| {
            state.accept(message.delivery, message.vector, message.trigger, effects)
        });
        if message.delivery == DeliveryMode::ExtInt && self.is_lent() {
            self.signals.interrupt(self.kind.cpu);
        }
        was_taken
    }

    /// Puts the registers to their values after `reset`.
    pub fn reset(&self, reset: ResetKind) {
        self.update_timed(|state, _, _| match reset {
            ResetKind::PowerUp => state.reset_all(&self.kind),
            ResetKind::Init => state.reset_registers(&self.kind, true),
        });
    }

    /// Leaves the APIC as firmware does before it starts a system: software-enabled, LINT1 an NMI,
    /// and on CPU 0 LINT0 an ExtINT ("virtual wire"). For guests that are started without firmware.
    pub fn set_virtual_wire(&self) {
        const UNMASKED_NMI: u32 = 4 << 8;
        const UNMASKED_EXTINT: u32 = 7 << 8;
        self.update(|state, effects| {
            state.set_svr(SVR_ENABLE | 0xFF);
            state.set_lvt(LvtEntry::Lint1, UNMASKED_NMI, effects);
            if self.kind.cpu == 0 {
                state.set_lvt(LvtEntry::Lint0, UNMASKED_EXTINT, effects);
            }
        });
    }
}

impl TimerTarget for LocalApic {
    fn expire(&self, _now_ns: u64) {
        self.timer.fired();
        self.update_timed(|_, _, _| ());
    }
}

impl Chip for LocalApic {
    fn name(&self) -> &str {
        &self.name
    }

    fn reset(&self) {
        Self::reset(self, ResetKind::PowerUp);
    }

    fn save(&self) -> Vec<u8> {
        encode(STATE_VERSION, &*self.lock())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let chip = "lapic";
        let restored: ApicState = decode(chip, STATE_VERSION, saved)?;
        if let Some(field) = restored.impossible_field(&self.kind) {
            return Err(RestoreError::Value { chip, field });
        }
        // The deadline in the queue belongs to the old state.
        self.timer.fired();
        self.update_timed(|state, _, _| *state = restored);
        self.timer.flush();
        Ok(())
    }
}
