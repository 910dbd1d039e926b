//! Making a CPU, RESET, INIT and the start-up IPI, and what must be derived again after changes.
//!
//! Source: SDM Vol. 3A, "Processor State After Reset" and "MP Initialization".

use std::sync::Arc;

use decoder::BlockScanner;
use trace::Kinds;

use crate::cpu::{Cpu, Environment};
use crate::cpuid::Feature;
use crate::debugger::Debugger;
use crate::fpu::FpuState;
use crate::interp::block::BlockCache;
use crate::mmu::{Flush, Mmu, MmuLimits};
use crate::mode::Mode;
use crate::msr::Msrs;
use crate::state::{
    Activity, InterruptShadow, Segment, State, TableRegister, attr, cr0, gpr, rflags, seg,
};

/// Bit 11 of IA32_APIC_BASE: the APIC is on.
const APIC_ENABLE: u64 = 1 << 11;
/// Bit 10 of IA32_APIC_BASE: x2APIC mode.
const APIC_X2APIC: u64 = 1 << 10;

impl State {
    /// The state after RESET. EDX holds `signature`, the family, model and stepping.
    pub fn at_reset(signature: u32) -> Self {
        let mut state = Self {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: rflags::FIXED,
            segments: [Segment::real(0); 6],
            ldtr: system_segment(0x2),
            tr: system_segment(0xb),
            gdtr: TableRegister { base: 0, limit: 0xffff },
            idtr: TableRegister { base: 0, limit: 0xffff },
            cpl: 0,
            cr0: cr0::CD | cr0::NW | cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            pdpte: [0; 4],
            xcr0: 1,
            dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            msrs: Msrs::at_reset(),
            pkru: 0,
            fpu: FpuState::default(),
            activity: Activity::Active,
            shadow: InterruptShadow::None,
            nmi_blocked: false,
            nmis_pending: 0,
        };
        state.gpr[gpr::RDX] = u64::from(signature);
        state.segments[seg::CS] = reset_cs();
        state
    }
}

/// CS after RESET and INIT: F000, with its base at the top of 4 GiB.
fn reset_cs() -> Segment {
    let attributes = Segment::real(0).attributes | attr::CODE;
    Segment { selector: 0xf000, attributes, limit: 0xffff, base: 0xffff_0000 }
}

fn system_segment(kind: u16) -> Segment {
    Segment { selector: 0, attributes: attr::P | kind, limit: 0xffff, base: 0 }
}

impl Cpu {
    /// A CPU after RESET. The bootstrap processor runs, the others wait for a start-up IPI.
    pub fn new(env: Environment) -> Self {
        let mut state = State::at_reset(env.cpuid.signature());
        if env.index != 0 {
            state.activity = Activity::WaitForSipi;
        }
        let mut cpu = Self {
            next_rip: state.rip,
            mode: Mode::of(&state),
            mmu: Mmu::new(),
            mmu_limits: MmuLimits::default(),
            ram: Arc::clone(env.space.ram()),
            blocks: BlockCache::new(),
            scanner: BlockScanner::new(env.cpuid.vendor(), env.cpuid.features()),
            trace_digest: 0,
            retired: 0,
            break_block: false,
            device_written: false,
            suppress_step: false,
            pending_dr6: 0,
            debugger: Debugger::default(),
            recording: None,
            has_new_recording: false,
            logs_blocks: false,
            native: crate::native::Native::new(),
            pv: crate::pv::Paravirtual::new(),
            state,
            env,
        };
        cpu.physical_space_changed();
        cpu.mode_changed();
        cpu.lapic_base_changed();
        cpu
    }

    /// RESET: everything, as at power-up. The machine resets the local APIC by itself.
    pub fn reset(&mut self) {
        self.sync_pv_eoi();
        self.state = State::at_reset(self.env.cpuid.signature());
        if self.env.index != 0 {
            self.state.activity = Activity::WaitForSipi;
        }
        self.pv = crate::pv::Paravirtual::new();
        self.all_changed();
        self.record(Kinds::CONTROL, || trace::Event::Reset);
    }

    /// INIT: as RESET, but caches, MSRs, x87 and vector state stay (SDM Vol. 3A, table "IA-32 and
    /// Intel 64 Processor States Following Power-up, Reset, or INIT").
    pub(crate) fn init(&mut self) {
        let old = &self.state;
        let fresh = State::at_reset(self.env.cpuid.signature());
        let cache_bits = old.cr0 & (cr0::CD | cr0::NW);
        let mut msrs = old.msrs.clone();
        msrs.efer = 0;
        self.state = State {
            cr0: cr0::ET | cache_bits,
            msrs,
            fpu: old.fpu.clone(),
            xcr0: old.xcr0,
            activity: if self.env.index == 0 { Activity::Active } else { Activity::WaitForSipi },
            ..fresh
        };
        self.sync_pv_eoi();
        self.env.lapic.init();
        self.all_changed();
    }

    /// A start-up IPI: real mode at `vector << 12`.
    pub(crate) fn startup(&mut self, vector: u8) {
        let attributes = reset_cs().attributes;
        self.state.segments[seg::CS] = Segment {
            selector: u16::from(vector) << 8,
            attributes,
            limit: 0xffff,
            base: u64::from(vector) << 12,
        };
        self.state.rip = 0;
        self.state.activity = Activity::Active;
        self.all_changed();
    }

    pub(crate) fn all_changed(&mut self) {
        self.pending_dr6 = 0;
        self.flush_translations();
        self.blocks.clear();
        self.mode_changed();
        self.lapic_base_changed();
        self.env.lapic.set_tsc_offset(self.state.msrs.tsc_offset);
    }

    /// Drops all translations.
    pub(crate) fn flush_translations(&mut self) {
        self.flush(Flush::Everything);
    }

    /// Drops at least the translations that `flush` names. The interpreter's are not tagged with a
    /// PCID nor marked as global: only one page is less than everything.
    pub(crate) fn flush(&mut self, flush: Flush) {
        match flush {
            Flush::Page(linear) => self.mmu.flush_page(linear),
            Flush::Everything | Flush::NonGlobal | Flush::Pcid(_) => self.mmu.flush_all(),
        }
        self.mmu.flushes.note(flush);
        self.break_block = true;
    }

    /// MOV CR3 that keeps the translations of the new PCID (bit 63): the interpreter's have no PCID
    /// and go all the same.
    pub(crate) fn keep_pcid(&mut self) {
        self.mmu.flush_all();
        self.break_block = true;
    }

    /// Looks up again where RAM is.
    pub(crate) fn physical_space_changed(&mut self) {
        self.mmu.space_generation = self.env.space.generation();
        let bits = self.env.cpuid.physical_bits();
        self.mmu_limits = MmuLimits {
            reserved_physical: 0x000f_ffff_ffff_ffff & !((1 << bits) - 1),
            has_gigabyte_pages: self.env.cpuid.has(Feature::Pdpe1gb),
            ram_ranges: self.env.space.ram_ranges(),
        };
        self.flush_translations();
    }

    /// Writes IA32_APIC_BASE; `false` is #GP.
    pub fn set_apic_base(&mut self, value: u64) -> bool {
        let is_written = self.env.lapic.set_base(value);
        if is_written {
            self.lapic_base_changed();
        }
        is_written
    }

    /// Looks up again where the local APIC's page is. Call after IA32_APIC_BASE was written.
    pub(crate) fn lapic_base_changed(&mut self) {
        let base = self.env.lapic.base();
        let is_mapped = base & (APIC_ENABLE | APIC_X2APIC) == APIC_ENABLE;
        self.mmu.lapic_page = if is_mapped { base & 0x000f_ffff_ffff_f000 } else { u64::MAX };
        self.flush_translations();
    }
}
