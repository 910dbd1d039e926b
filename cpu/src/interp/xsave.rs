//! XSAVE, XSAVEOPT, XSAVEC, XSAVES and XRSTOR, XRSTORS; XGETBV and XSETBV.
//!
//! Source: SDM Vol. 1, "Managing State Using the XSAVE Feature Set". A component is *in use* if it
//! differs from its initial configuration; there is no finer tracking, so XSAVEOPT and XSAVES have
//! the init optimisation and never the modified one.

use decoder::Feature;
use iced_x86::Code;

use super::dispatch::Table;
use super::insn::Insn;
use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::fpu::{fxsave, get, put};
use crate::mmu::Access;
use crate::state::{cr0, cr4, gpr};
use crate::xstate::{XsaveComponent, xcr0};

/// Bytes of the largest area, in either format.
const AREA_BYTES: usize = 2696;
/// Offset of the header: XSTATE_BV, XCOMP_BV, and 48 bytes that are zero.
const HEADER: usize = 512;
const HEADER_BYTES: usize = 64;
/// Offset of the first component in the compacted format.
const EXTENDED: usize = HEADER + HEADER_BYTES;
/// XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;
const INITIAL_MXCSR: u32 = 0x1f80;

/// Which instruction of the family.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Xsave,
    Xsaveopt,
    Xsavec,
    Xsaves,
}

#[rustfmt::skip]
pub(super) fn register(table: &mut Table) {
    table.both(Code::Xsave_mem,      |cpu, insn| cpu.xsave(insn, Form::Xsave));
    table.both(Code::Xsave64_mem,    |cpu, insn| cpu.xsave(insn, Form::Xsave));
    table.both(Code::Xsaveopt_mem,   |cpu, insn| cpu.xsave(insn, Form::Xsaveopt));
    table.both(Code::Xsaveopt64_mem, |cpu, insn| cpu.xsave(insn, Form::Xsaveopt));
    table.both(Code::Xsavec_mem,     |cpu, insn| cpu.xsave(insn, Form::Xsavec));
    table.both(Code::Xsavec64_mem,   |cpu, insn| cpu.xsave(insn, Form::Xsavec));
    table.both(Code::Xsaves_mem,     |cpu, insn| cpu.xsave(insn, Form::Xsaves));
    table.both(Code::Xsaves64_mem,   |cpu, insn| cpu.xsave(insn, Form::Xsaves));
    table.both(Code::Xrstor_mem,     xrstor);
    table.both(Code::Xrstor64_mem,   xrstor);
    table.both(Code::Xrstors_mem,    xrstors);
    table.both(Code::Xrstors64_mem,  xrstors);
    table.both(Code::Xgetbv,         xgetbv);
    table.both(Code::Xsetbv,         xsetbv);
}

/// XGETBV: XCR0, or with ECX = 1 which of its components are in use.
fn xgetbv(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_osxsave()?;
    let value = match cpu.reg::<u32>(gpr::RCX as u8) {
        0 => cpu.state.xcr0,
        1 => cpu.state.xcr0 & cpu.components_in_use(),
        _ => return Err(Exception::GP0),
    };
    cpu.set_reg(gpr::RAX as u8, value as u32);
    cpu.set_reg(gpr::RDX as u8, (value >> 32) as u32);
    Ok(())
}

/// XSETBV (SDM Vol. 2, "XSETBV-Set Extended Control Register").
fn xsetbv(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_osxsave()?;
    let value = cpu.edx_eax();
    let index = cpu.reg::<u32>(gpr::RCX as u8);
    if index != 0 {
        return Err(Exception::GP0);
    }
    cpu.set_xcr0(value)
}

fn xrstor(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let supported = cpu.state.xcr0;
    cpu.xrstor(insn, supported, false)
}

fn xrstors(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let supported = cpu.state.xcr0 | cpu.state.msrs.xss;
    cpu.xrstor(insn, supported, true)
}

impl Cpu {
    fn check_osxsave(&self) -> Exec {
        if self.state.cr4 & cr4::OSXSAVE == 0 { Err(Exception::UD) } else { Ok(()) }
    }

    pub(crate) fn edx_eax(&self) -> u64 {
        let high = u64::from(self.reg::<u32>(gpr::RDX as u8));
        high << 32 | u64::from(self.reg::<u32>(gpr::RAX as u8))
    }

    /// The gates of the family and the offset of its area, which must be aligned to 64 bytes.
    fn xsave_area(&mut self, insn: &Insn) -> Exec<(usize, u64)> {
        self.check_osxsave()?;
        if self.state.cr0 & cr0::TS != 0 {
            return Err(Exception::NM);
        }
        let (segment, offset) = (usize::from(insn.mem.segment), self.effective_address(&insn.mem));
        let linear = self.linear(segment, offset, 1, Access::Read)?;
        if linear & 63 != 0 {
            return Err(Exception::GP0);
        }
        Ok((segment, offset))
    }

    /// XINUSE: the components that differ from their initial configuration.
    pub(crate) fn components_in_use(&self) -> u64 {
        let extended = XsaveComponent::EXTENDED.iter().filter(|c| c.is_in_use(&self.state));
        extended.fold(self.state.fpu.legacy_in_use(), |bits, component| bits | component.bit())
    }

    fn xsave(&mut self, insn: &Insn, form: Form) -> Exec {
        let (segment, offset) = self.xsave_area(insn)?;
        let supervisor = if form == Form::Xsaves { self.state.msrs.xss } else { 0 };
        let requested = self.edx_eax() & (self.state.xcr0 | supervisor);
        let is_compacted = matches!(form, Form::Xsavec | Form::Xsaves);
        let mut in_use = self.components_in_use();
        if is_compacted && self.state.fpu.mxcsr != INITIAL_MXCSR {
            in_use |= xcr0::SSE;
        }
        let saved = if form == Form::Xsave { requested } else { requested & in_use };
        let layout = Layout::new(if is_compacted { requested } else { u64::MAX }, is_compacted);
        let mut area = [0; AREA_BYTES];
        let mut header = [0; 16];
        self.check_access(segment, offset, layout.end(requested) as u64, Access::Write)?;
        self.read_bytes(segment, offset.wrapping_add(HEADER as u64), &mut header)?;
        let old_bits = u64::from_le_bytes(get(&header, 0));
        let bits = if is_compacted { 0 } else { old_bits & !requested } | requested & in_use;
        put(&mut header, 0, bits.to_le_bytes());
        if is_compacted {
            put(&mut header, 8, (COMPACTED | requested).to_le_bytes());
        }
        put(&mut area, HEADER, header);
        self.write_legacy(
            segment,
            offset,
            &mut area,
            LegacyParts {
                has_x87: saved & xcr0::X87 != 0,
                has_xmm: saved & xcr0::SSE != 0,
                // The standard format keeps MXCSR with SSE or AVX, in use or not.
                has_mxcsr: if is_compacted {
                    saved & xcr0::SSE != 0
                } else {
                    requested & xcr0::MXCSR_OWNERS != 0
                },
                is_wide: is_wide(insn),
            },
        )?;
        for (component, at) in layout.components(saved) {
            let bytes = component.save(&self.state, self.mode.is_64(), &mut area[at..]);
            let data = &area[at..at + bytes];
            if !data.is_empty() {
                self.write_bytes(segment, offset.wrapping_add(at as u64), data)?;
            }
        }
        let header = if is_compacted { 16 } else { 8 };
        self.write_bytes(
            segment,
            offset.wrapping_add(HEADER as u64),
            &area[HEADER..HEADER + header],
        )
    }

    fn write_legacy(
        &mut self,
        segment: usize,
        offset: u64,
        area: &mut [u8; AREA_BYTES],
        parts: LegacyParts,
    ) -> Exec {
        let Some(image) = area.first_chunk_mut::<{ fxsave::BYTES }>() else { return Ok(()) };
        self.write_image(image, parts.is_wide);
        let ranges = [
            (parts.has_x87, fxsave::FCW..fxsave::MXCSR),
            (parts.has_mxcsr, fxsave::MXCSR..fxsave::ST),
            (parts.has_x87, fxsave::ST..fxsave::XMM),
            (parts.has_xmm, fxsave::XMM..fxsave::XMM + 16 * self.xmm_count()),
        ];
        for (_, range) in ranges.into_iter().filter(|(is_saved, _)| *is_saved) {
            let at = offset.wrapping_add(range.start as u64);
            self.write_bytes(segment, at, &area[range])?;
        }
        Ok(())
    }

    fn xrstor(&mut self, insn: &Insn, supported: u64, is_supervisor: bool) -> Exec {
        let (segment, offset) = self.xsave_area(insn)?;
        let mut area = [0; AREA_BYTES];
        let head = &mut area[..EXTENDED];
        self.read_bytes(segment, offset, head)?;
        let requested = self.edx_eax() & supported;
        let header = self.checked_header(&area, supported, is_supervisor)?;
        let loaded = requested & header.present;
        for (component, at) in header.layout.components(loaded) {
            let target = &mut area[at..at + component.size];
            self.read_bytes(segment, offset.wrapping_add(at as u64), target)?;
        }
        let mxcsr = self.mxcsr_to_restore(&area, requested, &header)?;
        self.restore_legacy(&area, requested, header.present, is_wide(insn));
        if let Some(mxcsr) = mxcsr {
            self.state.fpu.mxcsr = mxcsr;
        }
        self.restore_extended(&area, requested, &header);
        Ok(())
    }

    /// The header's checks (SDM Vol. 1, "Operation of XRSTOR", "Operation of XRSTORS").
    fn checked_header(
        &self,
        area: &[u8; AREA_BYTES],
        supported: u64,
        is_supervisor: bool,
    ) -> Exec<Header> {
        let present = u64::from_le_bytes(get(area, HEADER));
        let compaction = u64::from_le_bytes(get(area, HEADER + 8));
        let is_compacted = compaction & COMPACTED != 0;
        let is_zero = |from: usize, to: usize| area[from..to].iter().all(|&byte| byte == 0);
        let components = compaction & !COMPACTED;
        let is_valid = if is_compacted {
            (is_supervisor || self.env.cpuid.features().contains(Feature::Xsavec))
                && components & !supported == 0
                && present & !components == 0
                && is_zero(HEADER + 16, EXTENDED)
        } else {
            !is_supervisor && present & !supported == 0 && is_zero(HEADER + 8, HEADER + 24)
        };
        if !is_valid {
            return Err(Exception::GP0);
        }
        let layout = Layout::new(if is_compacted { components } else { u64::MAX }, is_compacted);
        Ok(Header { present, layout, is_compacted })
    }

    /// MXCSR as the area gives it, if it is restored at all. #GP(0) if it has reserved bits.
    fn mxcsr_to_restore(
        &self,
        area: &[u8; AREA_BYTES],
        requested: u64,
        header: &Header,
    ) -> Exec<Option<u32>> {
        let owners = if header.is_compacted { xcr0::SSE } else { xcr0::MXCSR_OWNERS };
        if requested & owners == 0 {
            return Ok(None);
        }
        if header.is_compacted && header.present & xcr0::SSE == 0 {
            return Ok(Some(INITIAL_MXCSR));
        }
        let mxcsr = u32::from_le_bytes(get(area, fxsave::MXCSR));
        self.check_mxcsr(mxcsr)?;
        Ok(Some(mxcsr))
    }

    fn restore_legacy(
        &mut self,
        area: &[u8; AREA_BYTES],
        requested: u64,
        present: u64,
        is_wide: bool,
    ) {
        let Some(image) = area.first_chunk::<{ fxsave::BYTES }>() else { return };
        if requested & xcr0::X87 != 0 {
            if present & xcr0::X87 != 0 {
                self.read_image_x87(image, is_wide);
            } else {
                self.change_x87(|fpu| {
                    fpu.initialize_x87();
                    fpu.x87 = [[0; 16]; 8];
                });
            }
        }
        if requested & xcr0::SSE != 0 {
            let zeroes = [0; fxsave::BYTES];
            self.read_image_xmm(if present & xcr0::SSE != 0 { image } else { &zeroes });
        }
    }

    fn restore_extended(&mut self, area: &[u8; AREA_BYTES], requested: u64, header: &Header) {
        let old_pkru = self.state.pkru;
        let is_64 = self.mode.is_64();
        let zeroes = [0; AREA_BYTES];
        for component in XsaveComponent::EXTENDED {
            if requested & component.bit() != 0 && header.present & component.bit() == 0 {
                component.restore(&mut self.state, is_64, &zeroes);
            }
        }
        for (component, at) in header.layout.components(requested & header.present) {
            component.restore(&mut self.state, is_64, &area[at..]);
        }
        if self.state.pkru != old_pkru {
            self.flush_translations();
        }
    }
}

/// What of the legacy region is written.
struct LegacyParts {
    has_x87: bool,
    has_xmm: bool,
    has_mxcsr: bool,
    /// REX.W: 64-bit pointers.
    is_wide: bool,
}

/// The header of an area to restore, checked.
struct Header {
    /// XSTATE_BV.
    present: u64,
    layout: Layout,
    is_compacted: bool,
}

/// Where the extended components are.
struct Layout {
    is_compacted: bool,
    /// The components that have room in a compacted area.
    components: u64,
}

impl Layout {
    fn new(components: u64, is_compacted: bool) -> Self {
        Self { is_compacted, components }
    }

    /// The extended components in `selected`, each with its offset.
    fn components(&self, selected: u64) -> impl Iterator<Item = (&'static XsaveComponent, usize)> {
        let (is_compacted, room) = (self.is_compacted, self.components);
        let mut next = EXTENDED;
        XsaveComponent::EXTENDED.iter().filter_map(move |component| {
            let at = if is_compacted { next } else { component.offset };
            if room & component.bit() != 0 {
                next += component.size;
            }
            (selected & room & component.bit() != 0).then_some((component, at))
        })
    }

    /// Bytes of an area that holds `selected`.
    fn end(&self, selected: u64) -> usize {
        self.components(selected)
            .map(|(component, at)| at + component.size)
            .max()
            .unwrap_or(EXTENDED)
    }
}

/// REX.W forms keep 64-bit pointers.
pub(super) fn is_wide(insn: &Insn) -> bool {
    matches!(
        insn.iced.code(),
        Code::Fxsave64_m512byte
            | Code::Fxrstor64_m512byte
            | Code::Xsave64_mem
            | Code::Xsaveopt64_mem
            | Code::Xsavec64_mem
            | Code::Xsaves64_mem
            | Code::Xrstor64_mem
            | Code::Xrstors64_mem
    )
}
