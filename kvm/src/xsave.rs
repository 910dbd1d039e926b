//! x87 and vector registers in the area that KVM_GET_XSAVE and KVM_SET_XSAVE have: the standard
//! format of XSAVE (SDM Vol. 1, "Standard Form of XSAVE Area"), its extended components where the
//! host's CPUID says.
// UNSAFETY: KVM_SET_XSAVE reads as much as the guest's features ask for.
#![expect(unsafe_code, reason = "unsafe island 4: an ioctl that reads a whole area")]

use std::arch::x86_64::__cpuid_count;

use cpu::fpu::{FpuState, fxsave};
use cpu::state::State;
use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;

use crate::KvmError;

/// Bytes of `kvm_xsave`: more than all components that guests get take.
const AREA_BYTES: usize = 4096;
/// XSTATE_BV.
const HEADER: usize = 512;
const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u32 = 2;
const OPMASK: u32 = 5;
const ZMM_HI256: u32 = 6;
const HI16_ZMM: u32 = 7;
const PKRU: u32 = 9;

type Area = [u8; AREA_BYTES];

/// Where the extended components are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Component and offset, of those that the host has.
    places: [(u32, Option<usize>); 5],
}

impl Layout {
    /// The host's.
    pub(crate) fn of_host() -> Self {
        let place = |component: u32| {
            let leaf = __cpuid_count(0xd, component);
            let (offset, size) = (leaf.ebx as usize, leaf.eax as usize);
            (component, (size != 0 && offset + size <= AREA_BYTES).then_some(offset))
        };
        Self { places: [AVX, OPMASK, ZMM_HI256, HI16_ZMM, PKRU].map(place) }
    }

    fn present(&self) -> impl Iterator<Item = (u32, usize)> {
        self.places.into_iter().filter_map(|(component, offset)| Some((component, offset?)))
    }

    /// The area of `state`. All components are there, in use or not.
    pub(crate) fn write(&self, state: &State) -> Area {
        let mut area = [0; AREA_BYTES];
        let fpu = &state.fpu;
        if let Some(image) = area.first_chunk_mut::<{ fxsave::BYTES }>() {
            write_legacy(fpu, image);
        }
        let mut present = X87 | SSE;
        for (component, at) in self.present() {
            present |= 1 << component;
            let parts: Vec<&[u8]> = match component {
                AVX => fpu.zmm[..16].iter().map(|register| &register[16..32]).collect(),
                ZMM_HI256 => fpu.zmm[..16].iter().map(|register| &register[32..]).collect(),
                HI16_ZMM => fpu.zmm[16..].iter().map(|register| &register[..]).collect(),
                _ => Vec::new(),
            };
            let mut bytes = parts.concat();
            match component {
                OPMASK => bytes.extend(fpu.opmask.iter().flat_map(|mask| mask.to_le_bytes())),
                PKRU => bytes.extend(state.pkru.to_le_bytes()),
                _ => {}
            }
            area[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        area[HEADER..HEADER + 8].copy_from_slice(&present.to_le_bytes());
        area
    }

    /// Takes an area over into `state`. What is not in it is in its initial configuration.
    pub(crate) fn read(&self, area: &Area, state: &mut State) {
        let present = u64::from_le_bytes(at(area, HEADER));
        read_legacy(area, present, &mut state.fpu);
        for (component, start) in self.present() {
            let is_there = present >> component & 1 != 0;
            let byte = |offset: usize| if is_there { area[start + offset] } else { 0 };
            let fpu = &mut state.fpu;
            match component {
                AVX => fill(&mut fpu.zmm[..16], 16..32, byte),
                ZMM_HI256 => fill(&mut fpu.zmm[..16], 32..64, byte),
                HI16_ZMM => fill(&mut fpu.zmm[16..], 0..64, byte),
                OPMASK => {
                    for (number, mask) in fpu.opmask.iter_mut().enumerate() {
                        let bytes = std::array::from_fn(|index| byte(8 * number + index));
                        *mask = u64::from_le_bytes(bytes);
                    }
                }
                _ => state.pkru = u32::from_le_bytes(std::array::from_fn(byte)),
            }
        }
    }

    /// Gives CPU `fd` the registers of `state`.
    pub(crate) fn put(&self, fd: &VcpuFd, state: &State) -> Result<(), KvmError> {
        let mut area = kvm_xsave::default();
        for (word, bytes) in area.region.iter_mut().zip(self.write(state).chunks_exact(4)) {
            *word = u32::from_le_bytes(at(bytes, 0));
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

/// `N` bytes of `bytes` from `start`; zeroes outside.
fn at<const N: usize>(bytes: &[u8], start: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes.get(start + index).copied().unwrap_or(0))
}

/// Fills `range` of each register with bytes that follow each other.
fn fill(registers: &mut [[u8; 64]], range: std::ops::Range<usize>, byte: impl Fn(usize) -> u8) {
    for (number, register) in registers.iter_mut().enumerate() {
        for (index, to) in register[range.clone()].iter_mut().enumerate() {
            *to = byte(range.len() * number + index);
        }
    }
}

fn write_legacy(fpu: &FpuState, image: &mut [u8; fxsave::BYTES]) {
    fpu.write_x87(image);
    let mut put = |place: usize, bytes: &[u8]| {
        image[place..place + bytes.len()].copy_from_slice(bytes);
    };
    put(fxsave::FOP, &fpu.fop.to_le_bytes());
    put(fxsave::FIP, &fpu.fip.to_le_bytes());
    put(fxsave::FDP, &fpu.fdp.to_le_bytes());
    put(fxsave::MXCSR, &fpu.mxcsr.to_le_bytes());
    for (number, register) in fpu.zmm[..16].iter().enumerate() {
        put(fxsave::XMM + 16 * number, &register[..16]);
    }
}

fn read_legacy(area: &Area, present: u64, fpu: &mut FpuState) {
    let mut image = [0; fxsave::BYTES];
    image.copy_from_slice(&area[..fxsave::BYTES]);
    if present & X87 == 0 {
        image[..fxsave::MXCSR].fill(0);
        image[fxsave::ST..fxsave::XMM].fill(0);
        image[fxsave::FCW..fxsave::FCW + 2].copy_from_slice(&0x37f_u16.to_le_bytes());
    }
    if present & SSE == 0 {
        image[fxsave::XMM..fxsave::XMM + 256].fill(0);
    }
    fpu.read_x87(&image);
    fpu.fop = u16::from_le_bytes(at(&image, fxsave::FOP));
    fpu.fip = u64::from_le_bytes(at(&image, fxsave::FIP));
    fpu.fdp = u64::from_le_bytes(at(&image, fxsave::FDP));
    (fpu.fcs, fpu.fds) = (0, 0);
    fpu.mxcsr = u32::from_le_bytes(at(&image, fxsave::MXCSR));
    for (number, register) in fpu.zmm[..16].iter_mut().enumerate() {
        register[..16].copy_from_slice(&at::<16>(&image, fxsave::XMM + 16 * number));
    }
}
