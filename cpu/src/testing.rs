//! A CPU on a bench: RAM, a page table, and a world that does nothing, for tests of instructions.
//!
//! RAM is [`RAM_BYTES`] from physical 0. In the paged modes linear addresses equal physical ones,
//! by 4 KiB pages that are present, writable and open to CPL 3; [`Bench::protect`] changes one.

pub mod forms;
pub mod fuzz;
pub mod random;
pub mod special;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memory::{GuestPhysical, PhysicalSpace, PortSpace, Ram, RegionKind, Width};

use crate::cpu::{Cpu, Environment};
use crate::cpuid::{CpuModelError, CpuidMachine, CpuidPolicy, host};
use crate::events::Events;
use crate::exception::Exec;
use crate::fpu::FpuState;
use crate::interp::insn::Insn;
use crate::platform::{Lapic, LinearTime, Platform};
use crate::state::{Segment, TableRegister, attr, cr0, cr4, efer, gpr, rflags, seg};

/// What FDP is behind the first x87 operand, which is at `address` and met no exception: 0 on
/// hosts, and so for guests, whose unit notes operands at unmasked exceptions only.
pub fn noted_operand(address: u64) -> u64 {
    if host::x87_omissions() & host::FDP_EXCPTN_ONLY == 0 { address } else { 0 }
}

/// Bytes of RAM.
pub const RAM_BYTES: u64 = 16 << 20;
/// Where [`Bench::step`] puts code.
pub const CODE: u64 = 0x10_0000;
/// A page for data with pages of RAM on both sides.
pub const DATA: u64 = 0x20_0000;
/// The initial stack pointer.
pub const STACK: u64 = 0x30_0000;
/// Where the GDT is: null, 64-bit code, data, 32-bit code, CPL 3 data, CPL 3 64-bit code, CPL 3
/// 32-bit code; see [`selector`].
pub const GDT: u64 = 0x1_0000;
/// Where the (empty) IDT is.
pub const IDT: u64 = 0x1_1000;

/// Where the page tables are in modes with paging.
pub const PML4: u64 = 0x1000;
/// See [`PML4`].
pub const PDPT: u64 = 0x2000;
/// See [`PML4`].
pub const PD: u64 = 0x3000;
/// See [`PML4`].
pub const PT: u64 = 0x4000;
const PAGE_OPEN: u64 = 0b111;

/// Selectors in the bench's GDT.
#[expect(missing_docs, reason = "the names say it")]
pub mod selector {
    pub const CODE64: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const CODE32: u16 = 0x18;
    pub const USER_DATA: u16 = 0x23;
    pub const USER_CODE64: u16 = 0x2b;
    pub const USER_CODE32: u16 = 0x33;
}

/// Page-table entry bits for [`Bench::protect`].
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod page {
    pub const PRESENT: u64 = 1;
    pub const WRITABLE: u64 = 2;
    pub const USER: u64 = 4;
    pub const NX: u64 = 1 << 63;
}

/// A platform whose time is what the test sets.
#[derive(Default)]
pub struct FakePlatform {
    /// Guest time in nanoseconds.
    pub now_ns: AtomicU64,
    /// Guest time as a function of the host's counter, if it is to be one.
    pub linear_time: Mutex<Option<LinearTime>>,
    /// What the next call of `entropy` gives.
    pub entropy: AtomicU64,
    /// The FERR# output.
    pub ferr: AtomicBool,
    /// The IGNNE# input.
    pub ignne: AtomicBool,
    /// CPUs kicked, in order.
    pub kicked: Mutex<Vec<u32>>,
}

impl Platform for FakePlatform {
    fn now_ns(&self, _: u64) -> u64 {
        self.now_ns.load(Ordering::SeqCst)
    }
    fn linear_time(&self) -> Option<LinearTime> {
        *self.linear_time.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn epoch_unix_ns(&self) -> i64 {
        0
    }
    fn entropy(&self) -> u64 {
        self.entropy.load(Ordering::SeqCst)
    }
    fn steal_ns(&self, _: u32) -> u64 {
        0
    }
    fn kick(&self, cpu: u32) {
        self.kicked.lock().unwrap_or_else(PoisonError::into_inner).push(cpu);
    }
    fn ferr(&self, level: bool) {
        self.ferr.store(level, Ordering::SeqCst);
    }
    fn ignne(&self) -> bool {
        self.ignne.load(Ordering::SeqCst)
    }
}

/// A local APIC that has one vector to give at most, and remembers the rest.
#[derive(Default)]
pub struct FakeLapic {
    /// The vector that waits; 0 for none.
    pub vector: AtomicU8,
    /// CR8.
    pub cr8: AtomicU8,
    /// IA32_APIC_BASE.
    pub base: AtomicU64,
    /// IA32_TSC_DEADLINE.
    pub deadline: AtomicU64,
    /// EOIs so far.
    pub eois: AtomicU64,
    /// What [`Lapic::silent_eoi_vector`] gives; 0 for none.
    pub silent: AtomicU8,
    /// PV EOI is armed.
    pub is_pv_eoi_armed: AtomicBool,
    /// Writes to its page: offset, width, value. A read gives the offset's complement.
    pub writes: Mutex<Vec<(u64, Width, u64)>>,
    /// ICR values sent.
    pub icrs: Mutex<Vec<u64>>,
}

impl Lapic for FakeLapic {
    fn mmio_read(&self, offset: u64, width: Width) -> u64 {
        !offset & width.mask()
    }
    fn mmio_write(&self, offset: u64, width: Width, value: u64) {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner).push((offset, width, value));
    }
    fn msr_read(&self, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&self, _: u32, _: u64) -> bool {
        false
    }
    fn base(&self) -> u64 {
        self.base.load(Ordering::SeqCst)
    }
    fn set_base(&self, value: u64) -> bool {
        self.base.store(value, Ordering::SeqCst);
        true
    }
    fn cr8(&self) -> u8 {
        self.cr8.load(Ordering::SeqCst)
    }
    fn set_cr8(&self, value: u8) {
        self.cr8.store(value, Ordering::SeqCst);
    }
    fn has_interrupt(&self) -> bool {
        self.vector.load(Ordering::SeqCst) != 0
    }
    fn acknowledge(&self) -> Option<u8> {
        Some(self.vector.swap(0, Ordering::SeqCst)).filter(|&vector| vector != 0)
    }
    fn eoi(&self) {
        self.eois.fetch_add(1, Ordering::SeqCst);
    }
    fn silent_eoi_vector(&self) -> Option<u8> {
        Some(self.silent.load(Ordering::SeqCst)).filter(|&vector| vector != 0)
    }
    fn set_pv_eoi_armed(&self, armed: bool) {
        self.is_pv_eoi_armed.store(armed, Ordering::SeqCst);
    }
    fn tsc_deadline(&self) -> u64 {
        self.deadline.load(Ordering::SeqCst)
    }
    fn set_tsc_deadline(&self, value: u64) {
        self.deadline.store(value, Ordering::SeqCst);
    }
    fn set_tsc_offset(&self, _: u64) {}
    fn init(&self) {}
    fn send_icr(&self, icr: u64) {
        self.icrs.lock().unwrap_or_else(PoisonError::into_inner).push(icr);
    }
}

/// The policy of `cpu` on a machine with one CPU, whose TSC counts nanoseconds.
pub fn policy(cpu: &str) -> Result<CpuidPolicy, CpuModelError> {
    CpuidPolicy::new(cpu, CpuidMachine { cpus: 1, tsc_hz: 1_000_000_000, apic_hz: 1_000_000_000 })
}

/// A CPU and what it is connected to.
pub struct Bench {
    /// The CPU.
    pub cpu: Cpu,
    /// Its platform.
    pub platform: Arc<FakePlatform>,
    /// Its local APIC.
    pub lapic: Arc<FakeLapic>,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    /// A CPU after RESET, with RAM and everything that CPUID can offer.
    #[expect(clippy::expect_used, reason = "the model exists on every host")]
    pub fn new() -> Self {
        let everything = if policy("max").is_ok_and(|max| max.vendor() == decoder::Vendor::Amd) {
            "max,+la57,+monitor,+mwaitx,+rdpru"
        } else {
            "max,+la57,+monitor"
        };
        Self::with_cpu(everything).expect("a model")
    }

    /// A CPU after RESET, of the model `cpu` as `--cpu` has it.
    #[expect(clippy::expect_used, reason = "tests have the memory for a few MiB or fail")]
    pub fn with_cpu(cpu: &str) -> Result<Self, CpuModelError> {
        let ram = Arc::new(Ram::new(RAM_BYTES).expect("memory for the bench"));
        let space = Arc::new(PhysicalSpace::new(ram));
        space.map(GuestPhysical(0), RAM_BYTES, RegionKind::Ram(0)).expect("an empty space");
        let (platform, lapic) = (Arc::<FakePlatform>::default(), Arc::<FakeLapic>::default());
        let events = Arc::<Events>::default();
        let environment = Environment {
            index: 0,
            cpu_count: 1,
            space,
            ports: Arc::new(PortSpace::new()),
            platform: platform.clone(),
            lapic: lapic.clone(),
            all_events: Arc::new([Arc::clone(&events)]),
            events,
            cpuid: Arc::new(policy(cpu)?),
        };
        Ok(Self { cpu: Cpu::new(environment), platform, lapic })
    }

    /// 64-bit mode at CPL 0, paging on, all units on (OSFXSR, OSXSAVE, XCR0 with AVX-512), x87 as
    /// after FNINIT.
    pub fn long64() -> Self {
        Self::new().in_long64()
    }

    /// The bench put into the state of [`Bench::long64`].
    #[must_use]
    pub fn in_long64(mut self) -> Self {
        self.build_tables();
        let state = &mut self.cpu.state;
        state.cr3 = PML4;
        state.cr4 = cr4::PAE;
        state.msrs.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        self.enter(selector::CODE64, cr0::PG, attr::L);
        self
    }

    /// Flat 32-bit protected mode at CPL 0 without paging, all units on.
    pub fn protected32() -> Self {
        let mut bench = Self::new();
        bench.build_tables();
        bench.enter(selector::CODE32, 0, attr::DB);
        bench
    }

    /// Compatibility mode: 32-bit code at CPL 0 under the page tables of [`Bench::long64`].
    pub fn compatibility32() -> Self {
        let mut bench = Self::long64();
        bench.enter(selector::CODE32, cr0::PG, attr::DB);
        bench
    }

    /// Real-address mode, segments at 0, all units on that exist there; `DATA` and `CODE` are out
    /// of reach: code goes to the low 64 KiB ([`Bench::put_code_at`]).
    pub fn real16() -> Self {
        let mut bench = Self::new();
        let state = &mut bench.cpu.state;
        state.segments = [Segment::real(0); 6];
        state.segments[seg::CS].attributes |= attr::CODE;
        state.gpr[gpr::RSP] = 0xf000;
        bench.switch_units_on(cr0::ET);
        bench
    }

    fn enter(&mut self, cs: u16, paging: u64, size: u16) {
        let flat = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::G;
        let state = &mut self.cpu.state;
        state.segments = [Segment {
            selector: selector::DATA,
            attributes: flat | attr::DB,
            limit: u32::MAX,
            base: 0,
        }; 6];
        state.segments[seg::CS] = Segment {
            selector: cs,
            attributes: flat | attr::CODE | size,
            limit: u32::MAX,
            base: 0,
        };
        state.gdtr = TableRegister { base: GDT, limit: 0x37 };
        state.idtr = TableRegister { base: IDT, limit: 0xfff };
        state.gpr[gpr::RSP] = STACK;
        state.rip = CODE;
        self.switch_units_on(cr0::PE | cr0::ET | paging);
    }

    fn switch_units_on(&mut self, cr0: u64) {
        let state = &mut self.cpu.state;
        state.rflags = rflags::FIXED;
        state.cr0 = cr0 | cr0::NE | cr0::MP;
        state.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        state.xcr0 = 0xe7;
        state.fpu = FpuState { fcw: 0x37f, ftw: 0, ..FpuState::default() };
        self.cpu.flush_translations();
        self.cpu.mode_changed();
    }

    fn build_tables(&mut self) {
        const DESCRIPTORS: [u64; 7] = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_fb00_0000_ffff,
        ];
        for (index, descriptor) in (0..).zip(DESCRIPTORS) {
            self.poke(GDT + 8 * index, &u64::to_le_bytes(descriptor));
        }
        self.poke(PML4, &(PDPT | PAGE_OPEN).to_le_bytes());
        self.poke(PDPT, &(PD | PAGE_OPEN).to_le_bytes());
        for table in 0..RAM_BYTES >> 21 {
            self.poke(PD + 8 * table, &((PT + 0x1000 * table) | PAGE_OPEN).to_le_bytes());
        }
        for page in 0..RAM_BYTES >> 12 {
            self.poke(PT + 8 * page, &(page << 12 | PAGE_OPEN).to_le_bytes());
        }
    }

    /// Goes to privilege level `cpl`, with flat segments of it.
    pub fn set_cpl(&mut self, cpl: u8) {
        let state = &mut self.cpu.state;
        state.cpl = cpl;
        for segment in &mut state.segments {
            segment.attributes =
                segment.attributes & !attr::DPL | u16::from(cpl) << attr::DPL_SHIFT;
            segment.selector = segment.selector & !3 | u16::from(cpl);
        }
        self.cpu.mode_changed();
    }

    /// Gives the page of `linear` the entry bits `bits` ([`page`]; 0 takes it away).
    pub fn protect(&mut self, linear: u64, bits: u64) {
        let page = linear >> 12;
        self.poke(PT + 8 * page, &(page << 12 | bits).to_le_bytes());
        self.cpu.flush_translations();
    }

    /// Makes the CPU take notice of control registers and page tables that the test wrote.
    pub fn control_changed(&mut self) {
        self.cpu.flush_translations();
        self.cpu.mode_changed();
    }

    /// A second CPU on the same memory and ports, in the state of the first. Its local APIC is the
    /// first one's too; its mailbox is its own.
    pub fn second_cpu(&self) -> Cpu {
        let mut env = self.cpu.env.clone();
        env.index = 1;
        env.events = Arc::default();
        let mut cpu = Cpu::new(env);
        cpu.state = self.cpu.state.clone();
        cpu.all_changed();
        cpu
    }

    /// Writes physical memory.
    pub fn poke(&self, physical: u64, bytes: &[u8]) {
        self.cpu.ram.write_bytes(physical, bytes);
    }

    /// Reads physical memory.
    pub fn peek<const N: usize>(&self, physical: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.cpu.ram.read_bytes(physical, &mut bytes);
        bytes
    }

    /// Writes `code` at `address` and points RIP there (its offset from CS's base).
    pub fn put_code_at(&mut self, address: u64, code: &[u8]) {
        self.poke(address, code);
        self.cpu.state.rip = address.wrapping_sub(self.cpu.state.segments[seg::CS].base);
    }

    /// Executes the one instruction `code` at [`CODE`]. An exception is given back, not delivered.
    pub fn execute(&mut self, code: &[u8]) -> Exec {
        self.put_code_at(CODE, code);
        self.step()
    }

    /// Executes the instruction at RIP. An exception is given back, not delivered, and RIP stays.
    pub fn step(&mut self) -> Exec {
        let cpu = &mut self.cpu;
        cpu.begin_block();
        let taken = cpu.take_block()?;
        let outcome = taken.block.insns.first().map_or(Ok(()), |insn: &Insn| {
            cpu.next_rip = insn.next_ip;
            (insn.handler)(cpu, insn)
        });
        cpu.blocks.put(taken);
        if outcome.is_ok() {
            cpu.state.rip = cpu.next_rip;
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exception::Exception;

    #[test]
    fn a_nonexistent_instruction_is_undefined_in_every_mode() {
        for mut bench in [Bench::long64(), Bench::protected32(), Bench::compatibility32()] {
            assert_eq!(bench.execute(&[0x0f, 0x0b]), Err(Exception::UD));
        }
    }

    #[test]
    fn a_page_taken_away_faults() {
        let mut bench = Bench::long64();
        bench.protect(CODE, 0);
        assert_eq!(bench.execute(&[0x90]), Err(Exception::pf(0x10)));
        assert_eq!(bench.cpu.state.cr2, CODE);
    }
}
