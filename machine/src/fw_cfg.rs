//! QEMU's firmware configuration device: named blobs for firmware and kernels.
//!
//! Ports 510h (selector), 511h (data) and 514h (DMA address, big-endian). Items are set by the
//! board before the machine runs; the guest reads them byte by byte or by DMA.
//!
//! Source: QEMU documentation, "QEMU Firmware Configuration (fw_cfg) Device".
//! Known departures: no item is writable, so DMA writes fail with the error bit.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use memory::{Device, GuestPhysical, IoError, PhysicalSpace, Width};
use serde::{Deserialize, Serialize};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::guard::lock;

/// The first port.
pub const FW_CFG_PORT: u16 = 0x510;
/// How many ports the device has, from [`FW_CFG_PORT`].
pub const FW_CFG_PORT_COUNT: u32 = 12;
const VERSION: u16 = 1;

/// Selector keys of the items that are not files.
pub mod key {
    /// `QEMU`.
    pub const SIGNATURE: u16 = 0x00;
    /// Bit 0: the traditional interface, bit 1: DMA.
    pub const ID: u16 = 0x01;
    /// The machine's UUID, 16 bytes.
    pub const UUID: u16 = 0x02;
    /// RAM size in bytes, 64 bits.
    pub const RAM_SIZE: u16 = 0x03;
    /// 1 if there is no display, 16 bits.
    pub const NOGRAPHIC: u16 = 0x04;
    /// How many CPUs there are, 16 bits.
    pub const NB_CPUS: u16 = 0x05;
    /// Where the kernel is to be loaded, 32 bits.
    pub const KERNEL_ADDR: u16 = 0x07;
    /// The kernel's size in bytes, 32 bits.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Where the initrd is to be loaded, 32 bits.
    pub const INITRD_ADDR: u16 = 0x0a;
    /// The initrd's size in bytes, 32 bits.
    pub const INITRD_SIZE: u16 = 0x0b;
    /// 1 if firmware is to show its boot menu, 16 bits.
    pub const BOOT_MENU: u16 = 0x0e;
    /// One more than the highest APIC id, 16 bits.
    pub const MAX_CPUS: u16 = 0x0f;
    /// The kernel's entry point, 32 bits.
    pub const KERNEL_ENTRY: u16 = 0x10;
    /// The kernel without its real-mode part.
    pub const KERNEL_DATA: u16 = 0x11;
    /// The initrd.
    pub const INITRD_DATA: u16 = 0x12;
    /// Where the command line is to be loaded, 32 bits.
    pub const CMDLINE_ADDR: u16 = 0x13;
    /// The command line's size with its terminating zero, 32 bits.
    pub const CMDLINE_SIZE: u16 = 0x14;
    /// The command line with its terminating zero.
    pub const CMDLINE_DATA: u16 = 0x15;
    /// Where the kernel's real-mode part is to be loaded, 32 bits.
    pub const SETUP_ADDR: u16 = 0x16;
    /// The size of the kernel's real-mode part, 32 bits.
    pub const SETUP_SIZE: u16 = 0x17;
    /// The kernel's real-mode part.
    pub const SETUP_DATA: u16 = 0x18;
    /// The directory of files.
    pub const FILE_DIR: u16 = 0x19;
    /// The first file.
    pub const FILE_FIRST: u16 = 0x20;
    /// x86: 1 if IRQ 0 is on pin 2 of the I/O APIC, 32 bits.
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

/// The bit of a selector that asked for writing in old versions, and is ignored.
const WRITE_CHANNEL: u16 = 0x4000;
const ID_TRADITIONAL: u32 = 1 << 0;
const ID_DMA: u32 = 1 << 1;
const FILE_NAME_BYTES: usize = 56;
/// Keys up to here, less the local bit, are what a selector can hold beside its flags.
const FILE_LAST: u16 = 0x3fff;

const SELECTOR: u64 = 0;
const DATA: u64 = 1;
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;
/// What the DMA register reads as: the interface is there.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

const DMA_ERROR: u32 = 1 << 0;
const DMA_READ: u32 = 1 << 1;
const DMA_SKIP: u32 = 1 << 2;
const DMA_SELECT: u32 = 1 << 3;
const DMA_WRITE: u32 = 1 << 4;
/// How much is copied to the guest at a time.
const DMA_CHUNK_BYTES: usize = 64 << 10;

/// Why a file was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Empty, longer than 55 bytes, or with a zero byte.
    #[error("fw_cfg file name {0:?} is empty or too long")]
    Name(String),
    /// There is a file of this name.
    #[error("fw_cfg file {0:?} exists")]
    Exists(String),
    /// All keys are taken.
    #[error("too many fw_cfg files")]
    TooMany,
}

/// What the guest has selected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Selection {
    key: u16,
    offset: u64,
    /// The upper half of the DMA address, until the lower half starts the transfer.
    dma_high: u32,
}

#[derive(Default)]
struct State {
    selection: Selection,
    /// The items by key, without the directory.
    items: BTreeMap<u16, Arc<[u8]>>,
    /// Keys by name.
    files: BTreeMap<String, u16>,
    directory: Arc<[u8]>,
}

impl State {
    fn select(&mut self, key: u16) {
        self.selection.key = key & !WRITE_CHANNEL;
        self.selection.offset = 0;
    }

    fn selected(&self) -> Option<&Arc<[u8]>> {
        match self.selection.key {
            key::FILE_DIR => Some(&self.directory),
            key => self.items.get(&key),
        }
    }

    /// The next byte of the item; 0 behind its end and where there is none.
    fn next_byte(&mut self) -> u8 {
        let offset = usize::try_from(self.selection.offset).unwrap_or(usize::MAX);
        let byte = self.selected().and_then(|item| item.get(offset)).copied();
        self.selection.offset = self.selection.offset.saturating_add(1);
        byte.unwrap_or(0)
    }

    /// Rebuilds the directory: a big-endian count, then size, key, reserved and name of each file.
    fn rebuild_directory(&mut self) {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (name, key) in &self.files {
            let bytes = self.items.get(key).map_or(0, |item| item.len());
            directory.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes());
            directory.extend_from_slice(&key.to_be_bytes());
            directory.extend_from_slice(&[0; 2]);
            let end = directory.len() + FILE_NAME_BYTES;
            directory.extend_from_slice(name.as_bytes());
            directory.resize(end, 0);
        }
        self.directory = directory.into();
    }
}

/// The device on the bus: 12 ports.
pub struct FwCfg {
    state: Mutex<State>,
    space: Arc<PhysicalSpace>,
}

impl FwCfg {
    /// A device with signature and id, which does its DMA in `space`.
    pub fn new(space: Arc<PhysicalSpace>) -> Arc<Self> {
        let device = Self { state: Mutex::default(), space };
        device.set(key::SIGNATURE, *b"QEMU");
        device.set_u32(key::ID, ID_TRADITIONAL | ID_DMA);
        lock(&device.state).rebuild_directory();
        Arc::new(device)
    }

    /// Sets the item `key` (see [`key`]). To be done before the machine runs.
    pub fn set(&self, key: u16, bytes: impl Into<Arc<[u8]>>) {
        lock(&self.state).items.insert(key, bytes.into());
    }

    /// Sets an item to a 16-bit number.
    pub fn set_u16(&self, key: u16, value: u16) {
        self.set(key, value.to_le_bytes());
    }

    /// Sets an item to a 32-bit number.
    pub fn set_u32(&self, key: u16, value: u32) {
        self.set(key, value.to_le_bytes());
    }

    /// Sets an item to a 64-bit number.
    pub fn set_u64(&self, key: u16, value: u64) {
        self.set(key, value.to_le_bytes());
    }

    /// Adds a file under the next free key, which is returned.
    pub fn add_file(&self, name: &str, bytes: impl Into<Arc<[u8]>>) -> Result<u16, FileError> {
        // The name is followed by a zero in the directory.
        if name.is_empty() || name.len() >= FILE_NAME_BYTES || name.contains('\0') {
            return Err(FileError::Name(name.to_owned()));
        }
        let mut state = lock(&self.state);
        if state.files.contains_key(name) {
            return Err(FileError::Exists(name.to_owned()));
        }
        let taken = u16::try_from(state.files.len()).map_err(|_| FileError::TooMany)?;
        let key = key::FILE_FIRST.checked_add(taken).filter(|key| *key <= FILE_LAST);
        let key = key.ok_or(FileError::TooMany)?;
        state.items.insert(key, bytes.into());
        state.files.insert(name.to_owned(), key);
        state.rebuild_directory();
        Ok(key)
    }

    /// Carries out the DMA command at `address` and writes its outcome back there.
    fn run_dma(&self, address: u64) {
        let mut command = [0; 16];
        if self.space.dma_read(GuestPhysical(address), &mut command).is_err() {
            log::debug!(target: "guest_error", "fw_cfg: DMA command at {address:#x} is not in RAM");
            return;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, target @ ..] = command;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let outcome = self.transfer(control, length, u64::from_be_bytes(target));
        let result = if outcome.is_ok() { 0 } else { DMA_ERROR };
        // If the command was in ROM there is nowhere to report to.
        self.space.dma_write(GuestPhysical(address), &result.to_be_bytes()).ok();
    }

    fn transfer(&self, control: u32, length: u32, target: u64) -> Result<(), ()> {
        if control & DMA_SELECT != 0 {
            lock(&self.state).select((control >> 16) as u16);
        }
        if control & DMA_READ != 0 {
            self.copy_out(length, target)
        } else if control & DMA_WRITE != 0 {
            Err(())
        } else {
            if control & DMA_SKIP != 0 {
                let selection = &mut lock(&self.state).selection;
                selection.offset = selection.offset.saturating_add(u64::from(length));
            }
            Ok(())
        }
    }

    /// Copies `length` bytes from the selected item's offset to `target`, zeros behind its end.
    /// Bounded by the guest's RAM: the first byte that is not RAM ends it.
    fn copy_out(&self, length: u32, target: u64) -> Result<(), ()> {
        let (item, start) = {
            let mut state = lock(&self.state);
            let start = state.selection.offset;
            state.selection.offset = start.saturating_add(u64::from(length));
            (state.selected().cloned().unwrap_or_default(), start)
        };
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let wanted = item.get(start..).unwrap_or_default();
        let wanted = wanted.get(..length as usize).unwrap_or(wanted);
        let mut at = target;
        let mut left = length as usize;
        for chunk in wanted.chunks(DMA_CHUNK_BYTES) {
            self.space.dma_write(GuestPhysical(at), chunk).map_err(|_| ())?;
            at = at.wrapping_add(chunk.len() as u64);
            left = left.saturating_sub(chunk.len());
        }
        let zeros = vec![0; left.min(DMA_CHUNK_BYTES)];
        while left > 0 {
            let chunk = zeros.get(..left).unwrap_or(&zeros);
            self.space.dma_write(GuestPhysical(at), chunk).map_err(|_| ())?;
            at = at.wrapping_add(chunk.len() as u64);
            left = left.saturating_sub(chunk.len());
        }
        Ok(())
    }

    fn write_dma_low(&self, value: u32) {
        let low = u64::from(value.swap_bytes());
        let high = u64::from(std::mem::take(&mut lock(&self.state).selection.dma_high));
        self.run_dma(high << 32 | low);
    }
}

impl Device for FwCfg {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        match (offset, width) {
            (DATA, Width::Byte) => Ok(u64::from(lock(&self.state).next_byte())),
            // The selector cannot be read, and the two halves of a word are two registers.
            (SELECTOR, Width::Byte) => Ok(0),
            (DMA_HIGH, Width::Dword | Width::Qword) | (DMA_LOW, Width::Dword) => {
                let index = if offset == DMA_HIGH { 0 } else { 32 };
                Ok(u64::from_le_bytes(DMA_SIGNATURE) >> index & width.mask())
            }
            (SELECTOR..=DATA, _) => Err(IoError::Width),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        match (offset, width) {
            (SELECTOR, Width::Word) => lock(&self.state).select(value as u16),
            // The data register has been read-only since DMA came.
            (SELECTOR | DATA, Width::Byte) => {}
            (DMA_HIGH, Width::Dword) => {
                lock(&self.state).selection.dma_high = (value as u32).swap_bytes();
            }
            (DMA_LOW, Width::Dword) => self.write_dma_low(value as u32),
            (DMA_HIGH, Width::Qword) => self.run_dma(value.swap_bytes()),
            (SELECTOR..=DATA, _) => return Err(IoError::Width),
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }
}

impl Chip for FwCfg {
    fn name(&self) -> &str {
        "fw_cfg"
    }

    fn reset(&self) {
        lock(&self.state).selection = Selection::default();
    }

    /// What is selected; the items are the board's, which makes them anew.
    fn save(&self) -> Vec<u8> {
        encode(VERSION, &lock(&self.state).selection)
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let selection: Selection = decode("fw_cfg", VERSION, saved)?;
        if selection.key & WRITE_CHANNEL != 0 {
            return Err(RestoreError::Value { chip: "fw_cfg", field: "key" });
        }
        lock(&self.state).selection = selection;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
