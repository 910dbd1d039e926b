//! x87 and vector registers in the area that KVM_GET_XSAVE and KVM_SET_XSAVE have: the standard
//! format of XSAVE (SDM Vol. 1, "Standard Form of XSAVE Area"), its extended components where the
//! host's CPUID says.
// UNSAFETY: KVM_SET_XSAVE reads as much as the guest's features ask for.
#![expect(unsafe_code, reason = "unsafe island 4: an ioctl that reads a whole area")]

use std::arch::x86_64::__cpuid_count;

use cpu::fpu::{fxsave, get, put};
use cpu::state::State;
use cpu::xstate::{XsaveComponent, xcr0};
use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;

use crate::KvmError;

/// Bytes of `kvm_xsave`: more than all components that guests get take.
const AREA_BYTES: usize = 4096;
/// XSTATE_BV.
const HEADER: usize = 512;
/// FCW of a component that is in its initial configuration.
const INITIAL_FCW: u16 = 0x37f;
/// A component that is.
const INITIAL: [u8; 1024] = [0; 1024];

type Area = [u8; AREA_BYTES];
type Legacy = [u8; fxsave::BYTES];

/// Where the extended components are that the host has.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    places: Vec<(&'static XsaveComponent, usize)>,
}

impl Layout {
    /// The host's.
    pub(crate) fn of_host() -> Self {
        let place = |component: &'static XsaveComponent| {
            let leaf = __cpuid_count(0xd, component.number);
            let (offset, size) = (leaf.ebx as usize, leaf.eax as usize);
            (size != 0 && offset + size <= AREA_BYTES).then_some((component, offset))
        };
        Self { places: XsaveComponent::EXTENDED.iter().filter_map(place).collect() }
    }

    /// The area of `state`. All components are there, in use or not.
    fn write(&self, state: &State) -> Area {
        let mut area = [0; AREA_BYTES];
        if let Some(image) = area.first_chunk_mut::<{ fxsave::BYTES }>() {
            state.fpu.write_x87(image);
            state.fpu.write_wide_pointers(image);
            state.fpu.write_sse(image);
        }
        let mut present = xcr0::X87 | xcr0::SSE;
        for &(component, start) in &self.places {
            present |= component.bit();
            component.save(state, true, &mut area[start..]);
        }
        put(&mut area, HEADER, present.to_le_bytes());
        area
    }

    /// Takes an area over into `state`. What is not in it is in its initial configuration.
    fn read(&self, area: &Area, state: &mut State) {
        let present = u64::from_le_bytes(get(area, HEADER));
        let mut image: Legacy = get(area, 0);
        if present & xcr0::X87 == 0 {
            image[..fxsave::MXCSR].fill(0);
            image[fxsave::ST..fxsave::XMM].fill(0);
            put(&mut image, fxsave::FCW, INITIAL_FCW.to_le_bytes());
        }
        if present & xcr0::SSE == 0 {
            image[fxsave::XMM..].fill(0);
        }
        state.fpu.read_x87(&image);
        state.fpu.read_wide_pointers(&image);
        state.fpu.mxcsr = u32::from_le_bytes(get(&image, fxsave::MXCSR));
        state.fpu.read_xmm(&image, 16);
        for &(component, start) in &self.places {
            let is_there = present & component.bit() != 0;
            component.restore(state, true, if is_there { &area[start..] } else { &INITIAL });
        }
    }

    /// Gives CPU `fd` the registers of `state`.
    pub(crate) fn put(&self, fd: &VcpuFd, state: &State) -> Result<(), KvmError> {
        let mut area = kvm_xsave::default();
        for (word, bytes) in area.region.iter_mut().zip(self.write(state).chunks_exact(4)) {
            *word = u32::from_le_bytes(get(bytes, 0));
        }
        // SAFETY: the kernel reads 4096 bytes where no component beyond them was asked for of it
        // (arch_prctl or KVM_CAP_XSAVE2), which nobody in this process does.
        unsafe { fd.set_xsave(&area) }.map_err(KvmError::of("KVM_SET_XSAVE"))
    }

    /// Takes the registers of CPU `fd` over into `state`.
    pub(crate) fn fetch(&self, fd: &VcpuFd, state: &mut State) -> Result<(), KvmError> {
        let image = fd.get_xsave().map_err(KvmError::of("KVM_GET_XSAVE"))?;
        let mut area = [0; AREA_BYTES];
        for (bytes, word) in area.chunks_exact_mut(4).zip(image.region) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        self.read(&area, state);
        Ok(())
    }
}
