//! What the CPUs ask of the machine, answered by its chips: `cpu` and `machine` do not know each
//! other, and meet here.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cpu::events::Events;
use cpu::platform::{Lapic, LapicImage, LapicLending, LinearTime, Platform};
use kvm::KvmVm;
use machine::clock::Clock;
use machine::coprocessor_error::CoprocessorError;
use machine::host_time::Scale;
use machine::lapic::{
    ApicBorrower, ApicImage, Destination, LocalApic, Message, ResetKind, TriggerMode, WatchedEvent,
};
use memory::Width;

use super::entropy::Entropy;
use super::mailboxes::Mailboxes;

/// The x2APIC's interrupt command register.
const X2APIC_ICR: u32 = 0x830;
/// The xAPIC's interrupt command register, by its two offsets.
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;

/// Guest time for CPUs while time is a function of retired instructions: the clock shows the start
/// of the running slice, and the CPU's own count says how far into it it is.
#[derive(Default)]
pub(crate) struct Slice {
    /// The running CPU's retired count at the start of its slice.
    pub(crate) retired_at_start: AtomicU64,
    /// Nanoseconds an instruction takes; 0 where the host's clock is used.
    pub(crate) ns_per_instruction: AtomicU64,
}

/// The platform of all CPUs of a machine.
pub(crate) struct MachinePlatform {
    pub(crate) clock: Arc<Clock>,
    pub(crate) slice: Arc<Slice>,
    /// See [`Platform::host_tsc_base`].
    pub(crate) host_tsc_base: Option<u64>,
    pub(crate) entropy: Entropy,
    pub(crate) mailboxes: Arc<Mailboxes>,
    pub(crate) coprocessor: Arc<CoprocessorError>,
}

impl Platform for MachinePlatform {
    fn now_ns(&self, retired: u64) -> u64 {
        let now = self.clock.now_ns();
        match self.slice.ns_per_instruction.load(Ordering::Relaxed) {
            0 => now,
            ns => {
                let start = self.slice.retired_at_start.load(Ordering::Relaxed);
                now.wrapping_add(retired.wrapping_sub(start).wrapping_mul(ns))
            }
        }
    }

    fn linear_time(&self) -> Option<LinearTime> {
        if self.slice.ns_per_instruction.load(Ordering::Relaxed) != 0 {
            return None;
        }
        let Scale { start_ticks, multiplier, start_ns } = self.clock.scale()?;
        Some(LinearTime { start_ticks, multiplier, start_ns })
    }

    fn host_tsc_base(&self) -> Option<u64> {
        self.host_tsc_base
    }

    fn epoch_unix_ns(&self) -> i64 {
        self.clock.unix_ns().saturating_sub_unsigned(self.clock.now_ns())
    }

    fn entropy(&self) -> u64 {
        self.entropy.next()
    }

    /// What the host's scheduler says of the calling thread, which serves CPU `cpu`.
    fn steal_ns(&self, _cpu: u32) -> u64 {
        if self.clock.is_counted() { 0 } else { run_delay_ns().unwrap_or(0) }
    }

    fn kick(&self, cpu: u32) {
        self.mailboxes.post(cpu, Events::KICK);
    }

    fn ferr(&self, level: bool) {
        self.coprocessor.set_ferr(level);
    }

    fn ignne(&self) -> bool {
        self.coprocessor.is_ignored()
    }
}

/// The second number of /proc/thread-self/schedstat: nanoseconds spent waiting for a host CPU.
fn run_delay_ns() -> Option<u64> {
    let mut text = [0; 96];
    let length = File::open("/proc/thread-self/schedstat").ok()?.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(text.get(..length)?).ok()?.split_whitespace().nth(1)?.parse().ok()
}

/// A local APIC chip as its CPU sees it.
pub(crate) struct ChipLapic(pub(crate) Arc<LocalApic>);

impl Lapic for ChipLapic {
    fn mmio_read(&self, offset: u64, width: Width) -> u64 {
        self.0.mmio_read(offset, width)
    }
    fn mmio_write(&self, offset: u64, width: Width, value: u64) {
        self.0.mmio_write(offset, width, value);
    }
    fn msr_read(&self, msr: u32) -> Option<u64> {
        self.0.msr_read(msr)
    }
    fn msr_write(&self, msr: u32, value: u64) -> bool {
        self.0.msr_write(msr, value).is_ok()
    }
    fn base(&self) -> u64 {
        self.0.apic_base()
    }
    fn set_base(&self, value: u64) -> bool {
        self.0.set_apic_base(value).is_ok()
    }
    fn cr8(&self) -> u8 {
        self.0.tpr() >> 4
    }
    fn set_cr8(&self, value: u8) {
        self.0.set_tpr(value << 4);
    }
    fn has_interrupt(&self) -> bool {
        self.0.has_interrupt()
    }
    fn acknowledge(&self) -> Option<u8> {
        self.0.acknowledge()
    }
    fn eoi(&self) {
        self.0.eoi();
    }
    fn silent_eoi_vector(&self) -> Option<u8> {
        self.0.skippable_eoi()
    }
    fn set_pv_eoi_armed(&self, is_armed: bool) {
        self.0.set_pv_eoi_armed(is_armed);
    }
    fn tsc_deadline(&self) -> u64 {
        self.0.tsc_deadline()
    }
    fn set_tsc_deadline(&self, value: u64) {
        self.0.set_tsc_deadline(value);
    }
    fn set_tsc_offset(&self, offset: u64) {
        self.0.set_tsc_offset(offset);
    }
    fn init(&self) {
        self.0.reset(ResetKind::Init);
    }
    fn send_icr(&self, icr: u64) {
        if self.0.msr_write(X2APIC_ICR, icr).is_err() {
            self.0.mmio_write(ICR_HIGH, Width::Dword, icr >> 32 << 24);
            self.0.mmio_write(ICR_LOW, Width::Dword, icr & 0xffff_ffff);
        }
    }
    fn lending(&self) -> Option<&dyn LapicLending> {
        Some(self)
    }
}

impl LapicLending for ChipLapic {
    fn lend(&self) -> LapicImage {
        let ApicImage { base, registers, tsc_deadline } = self.0.lend();
        LapicImage { base, registers, tsc_deadline }
    }
    fn take_back(&self, image: &LapicImage) {
        let LapicImage { base, registers, tsc_deadline } = *image;
        self.0.take_back(&ApicImage { base, registers, tsc_deadline });
    }
    fn hold_messages(&self) {
        self.0.hold_messages();
    }
    fn release_messages(&self) {
        self.0.release_messages();
    }
    fn has_extint(&self) -> bool {
        self.0.has_extint()
    }
    fn acknowledge_extint(&self) -> Option<u8> {
        self.0.acknowledge_extint()
    }
    fn broadcast_eoi(&self, vector: u8) {
        self.0.broadcast_eoi(vector);
    }
}

/// The host kernel's local APICs, for the machine's bus.
pub(crate) struct KernelApics(pub(crate) Arc<KvmVm>);

impl ApicBorrower for KernelApics {
    fn deliver(&self, message: Message) -> bool {
        self.0.send(&for_kernel(message))
    }
    fn await_ends(&self, messages: &[Message]) {
        self.0.await_ends(&messages.iter().copied().map(for_kernel).collect::<Vec<_>>());
    }
    fn watch(&self, events: &[WatchedEvent]) -> Vec<bool> {
        let events = events.iter().cloned();
        let events = events.map(|WatchedEvent { event, message }| (event, for_kernel(message)));
        self.0.watch(&events.collect::<Vec<_>>())
    }
}

/// A message as the kernel takes it. It knows 0xff as everybody, as an MSI does.
fn for_kernel(message: Message) -> kvm::Message {
    let (destination, is_logical) = match message.destination {
        Destination::Physical(id) => (id, false),
        Destination::Logical8(mda) => (mda.into(), true),
        Destination::Logical32(mda) => (mda, true),
        // The bus names no sender here.
        Destination::All | Destination::AllBut { .. } | Destination::Only { .. } => (0xff, false),
    };
    kvm::Message {
        destination,
        is_logical,
        delivery: message.delivery as u8,
        vector: message.vector,
        is_level: message.trigger == TriggerMode::Level,
    }
}
