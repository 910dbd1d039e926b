//! The two 8237A DMA controllers of a PC with their page registers.
//!
//! Channels 0 to 3 move bytes, 5 to 7 words; 4 is the cascade. Devices call
//! [`DmaPair::read_memory`] and [`DmaPair::write_memory`] with the data of a request; addresses,
//! counts, masks, auto-initialization and terminal count are the chip's.
//!
//! Source: Intel 8237A data sheet, "Register Description"; Intel ICH9 datasheet, "DMA I/O
//! Registers".
//! Known departures: no memory-to-memory transfers (as on any PC since the AT) and no transfers by
//! software request; priorities do not matter, because a transfer takes no time.

use std::sync::{Arc, Mutex};

use memory::{Device, GuestPhysical, IoError, PhysicalSpace, Width};
use serde::{Deserialize, Serialize};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::guard::lock;

const VERSION: u16 = 1;

// Registers behind the eight of addresses and counts.
const COMMAND_STATUS: u8 = 0x8;
const REQUEST: u8 = 0x9;
const SINGLE_MASK: u8 = 0xa;
const MODE: u8 = 0xb;
const CLEAR_FLIP_FLOP: u8 = 0xc;
const MASTER_CLEAR: u8 = 0xd;
const CLEAR_MASK: u8 = 0xe;
const ALL_MASK: u8 = 0xf;

const COMMAND_DISABLE: u8 = 1 << 2;
const MODE_TYPE: u8 = 0x0c;
const MODE_VERIFY: u8 = 0x00;
const MODE_WRITE: u8 = 0x04;
const MODE_READ: u8 = 0x08;
const MODE_AUTO_INITIALIZE: u8 = 1 << 4;
const MODE_DECREMENT: u8 = 1 << 5;
const MODE_SELECT: u8 = 0xc0;
const MODE_CASCADE: u8 = 0xc0;
/// A request or mask bit is set by this bit, for the channel in the two below.
const SET_BIT: u8 = 1 << 2;

/// The page register of each channel, as the low digit of its port 8xh. Channel 4 has the refresh
/// page.
const PAGE_OF_CHANNEL: [u8; 8] = [0x7, 0x3, 0x1, 0x2, 0xf, 0xb, 0x9, 0xa];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    base_address: u16,
    base_count: u16,
    address: u16,
    /// Transfers left, less one.
    count: u16,
    mode: u8,
}

/// One 8237A.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Controller {
    channels: [Channel; 4],
    command: u8,
    /// Terminal counts reached since the status was read.
    terminal_counts: u8,
    /// DREQ inputs, and requests by software.
    requests: u8,
    mask: u8,
    /// The next byte of a 16-bit register is the high one.
    is_high_byte: bool,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            channels: [Channel::default(); 4],
            command: 0,
            terminal_counts: 0,
            requests: 0,
            mask: 0x0f,
            is_high_byte: false,
        }
    }
}

fn replace_byte(word: u16, is_high: bool, byte: u8) -> u16 {
    let [low, high] = word.to_le_bytes();
    u16::from_le_bytes(if is_high { [low, byte] } else { [byte, high] })
}

impl Controller {
    fn channel_of(&mut self, register: u8) -> Option<(&mut Channel, bool)> {
        let is_count = register & 1 != 0;
        self.channels.get_mut(usize::from(register >> 1)).map(|channel| (channel, is_count))
    }

    /// Which byte this access is about; the next one is about the other.
    fn toggle(&mut self) -> bool {
        self.is_high_byte = !self.is_high_byte;
        !self.is_high_byte
    }

    fn read(&mut self, register: u8) -> u8 {
        match register {
            0..COMMAND_STATUS => {
                let is_high = self.toggle();
                let word = self.channel_of(register).map_or(0, |(channel, is_count)| {
                    if is_count { channel.count } else { channel.address }
                });
                let [low, high] = word.to_le_bytes();
                if is_high { high } else { low }
            }
            COMMAND_STATUS => self.requests << 4 | std::mem::take(&mut self.terminal_counts),
            ALL_MASK => self.mask | 0xf0,
            // The temporary register belongs to memory-to-memory transfers.
            MASTER_CLEAR => 0,
            _ => 0xff,
        }
    }

    fn write(&mut self, register: u8, value: u8) {
        let channel_bit = 1u8.wrapping_shl(u32::from(value & 3));
        match register {
            0..COMMAND_STATUS => self.write_word(register, value),
            COMMAND_STATUS => self.command = value,
            REQUEST if value & SET_BIT != 0 => self.requests |= channel_bit,
            REQUEST => self.requests &= !channel_bit,
            SINGLE_MASK if value & SET_BIT != 0 => self.mask |= channel_bit,
            SINGLE_MASK => self.mask &= !channel_bit,
            MODE => {
                if let Some(channel) = self.channels.get_mut(usize::from(value & 3)) {
                    channel.mode = value & !3;
                }
            }
            CLEAR_FLIP_FLOP => self.is_high_byte = false,
            MASTER_CLEAR => {
                *self = Self { channels: self.channels, ..Self::default() };
            }
            CLEAR_MASK => self.mask = 0,
            _ => self.mask = value & 0x0f,
        }
    }

    /// Writes a byte of a base register and of the current one with it.
    fn write_word(&mut self, register: u8, value: u8) {
        let is_high = self.toggle();
        let Some((channel, is_count)) = self.channel_of(register) else { return };
        let (base, current) = if is_count {
            (&mut channel.base_count, &mut channel.count)
        } else {
            (&mut channel.base_address, &mut channel.address)
        };
        *base = replace_byte(*base, is_high, value);
        *current = replace_byte(*current, is_high, value);
    }

    fn is_ready(&self, index: u8) -> bool {
        let bit = 1u8.wrapping_shl(u32::from(index));
        self.mask & bit == 0 && self.command & COMMAND_DISABLE == 0
    }

    /// Takes up to `limit` transfers of a channel that are contiguous and upwards, if it is set up
    /// for `kind`: the first address, how many, and whether they end in a terminal count.
    fn claim(&mut self, index: u8, kind: u8, limit: u32) -> Option<Run> {
        if !self.is_ready(index) || limit == 0 {
            return None;
        }
        let channel = self.channels.get_mut(usize::from(index))?;
        let is_verify = channel.mode & MODE_TYPE == MODE_VERIFY;
        if channel.mode & MODE_SELECT == MODE_CASCADE
            || !(is_verify || channel.mode & MODE_TYPE == kind)
        {
            return None;
        }
        let address = channel.address;
        let left = u32::from(channel.count) + 1;
        let units = if channel.mode & MODE_DECREMENT != 0 {
            channel.address = address.wrapping_sub(1);
            1
        } else {
            // The page does not move on at the end of its 64 K.
            let units = limit.min(left).min(0x1_0000 - u32::from(address));
            channel.address = address.wrapping_add(units as u16);
            units
        };
        channel.count = channel.count.wrapping_sub(units as u16);
        let is_terminal = units == left;
        if is_terminal {
            self.reach_terminal_count(index);
        }
        Some(Run { address, units, is_terminal, is_verify })
    }

    fn reach_terminal_count(&mut self, index: u8) {
        let bit = 1u8.wrapping_shl(u32::from(index));
        self.terminal_counts |= bit;
        self.requests &= !bit;
        let Some(channel) = self.channels.get_mut(usize::from(index)) else { return };
        if channel.mode & MODE_AUTO_INITIALIZE != 0 {
            channel.address = channel.base_address;
            channel.count = channel.base_count;
        } else {
            self.mask |= bit;
        }
    }

    fn check(&self) -> bool {
        let modes = self.channels.iter().all(|channel| channel.mode & 3 == 0);
        modes && (self.terminal_counts | self.requests | self.mask) <= 0x0f
    }
}

/// Transfers that lie behind each other in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    address: u16,
    units: u32,
    is_terminal: bool,
    is_verify: bool,
}

/// How far a transfer went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DmaProgress {
    /// Bytes moved; fewer than offered if the channel was masked, set up for something else, or
    /// reached its terminal count.
    pub bytes: usize,
    /// The terminal count was reached.
    pub is_terminal: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// Channels 0 to 3 and 4 to 7.
    controllers: [Controller; 2],
    /// Ports 80h to 8Fh; those that belong to no channel are plain bytes.
    pages: [u8; 16],
}

impl State {
    /// The bytes of one transfer, and the next run of channel `channel` for `bytes` of data.
    fn claim(&mut self, channel: u8, kind: u8, bytes: usize) -> Option<(u64, Run)> {
        let controller = self.controllers.get_mut(usize::from(channel >> 2))?;
        let unit = unit_bytes(channel);
        let limit = u32::try_from(bytes / unit).unwrap_or(u32::MAX);
        let run = controller.claim(channel & 3, kind, limit)?;
        let page_register = PAGE_OF_CHANNEL.get(usize::from(channel)).copied().unwrap_or(0);
        let page = self.pages.get(usize::from(page_register)).copied().unwrap_or(0);
        // A word channel's address counts words in a page of 128 K.
        let page = if unit == 2 { page & !1 } else { page };
        let address = u64::from(run.address).wrapping_mul(unit as u64);
        Some((u64::from(page) << 16 | address, run))
    }
}

/// Bytes of one transfer of a channel.
fn unit_bytes(channel: u8) -> usize {
    if channel < 4 { 1 } else { 2 }
}

/// Both controllers and the page registers.
pub struct DmaPair {
    state: Mutex<State>,
    space: Arc<PhysicalSpace>,
}

/// One port range of a [`DmaPair`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaPorts {
    /// 00h to 0Fh: channels 0 to 3.
    First,
    /// C0h to DFh: channels 4 to 7, a register at every even port.
    Second,
    /// 80h to 8Fh.
    Pages,
}

struct Mapped {
    pair: Arc<DmaPair>,
    ports: DmaPorts,
}

impl DmaPair {
    /// Controllers that move data in `space`.
    pub fn new(space: Arc<PhysicalSpace>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), space })
    }

    /// What answers in a port range.
    pub fn ports(self: &Arc<Self>, ports: DmaPorts) -> Arc<dyn Device> {
        Arc::new(Mapped { pair: Arc::clone(self), ports })
    }

    /// Drives a channel's DREQ, which shows in the status register.
    pub fn set_request(&self, channel: u8, level: bool) {
        let mut state = lock(&self.state);
        if let Some(controller) = state.controllers.get_mut(usize::from(channel >> 2)) {
            let bit = 1u8.wrapping_shl(u32::from(channel & 3));
            let requests = controller.requests;
            controller.requests = if level { requests | bit } else { requests & !bit };
        }
    }

    /// True if the channel is not masked and its controller is on.
    pub fn is_ready(&self, channel: u8) -> bool {
        let state = lock(&self.state);
        let controller = state.controllers.get(usize::from(channel >> 2));
        controller.is_some_and(|controller| controller.is_ready(channel & 3))
    }

    /// A device's request for data from memory (the 8237's *read transfer*).
    pub fn read_memory(&self, channel: u8, out: &mut [u8]) -> DmaProgress {
        self.transfer(channel, MODE_READ, out.len(), |at, from, to| {
            if let Some(part) = out.get_mut(from..to)
                && self.space.dma_read(at, part).is_err()
            {
                // Nobody answers on the bus: it floats.
                part.fill(0xff);
            }
        })
    }

    /// A device's data for memory (the 8237's *write transfer*).
    pub fn write_memory(&self, channel: u8, data: &[u8]) -> DmaProgress {
        self.transfer(channel, MODE_WRITE, data.len(), |at, from, to| {
            if let Some(part) = data.get(from..to) {
                // What is not RAM swallows it.
                self.space.dma_write(at, part).ok();
            }
        })
    }

    /// Runs a channel until `total` bytes are moved or it stops; `copy` gets the address and the
    /// range of the device's data. Ends: every run moves at least one unit.
    fn transfer(
        &self,
        channel: u8,
        kind: u8,
        total: usize,
        mut copy: impl FnMut(GuestPhysical, usize, usize),
    ) -> DmaProgress {
        let mut progress = DmaProgress::default();
        while !progress.is_terminal {
            let left = total.saturating_sub(progress.bytes);
            let Some((address, run)) = lock(&self.state).claim(channel, kind, left) else { break };
            let end = progress.bytes.saturating_add(run.units as usize * unit_bytes(channel));
            if !run.is_verify {
                copy(GuestPhysical(address), progress.bytes, end);
            }
            progress = DmaProgress { bytes: end, is_terminal: run.is_terminal };
        }
        progress
    }
}

impl Mapped {
    /// The register at `offset`, if there is one.
    fn register(&self, offset: u64) -> Result<u8, IoError> {
        let offset = if self.ports == DmaPorts::Second { offset >> 1 } else { offset };
        u8::try_from(offset).ok().filter(|register| *register < 16).ok_or(IoError::NoRegister)
    }
}

impl Device for Mapped {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let register = self.register(offset)?;
        let mut state = lock(&self.pair.state);
        let State { controllers: [first, second], pages } = &mut *state;
        Ok(u64::from(match self.ports {
            DmaPorts::First => first.read(register),
            DmaPorts::Second => second.read(register),
            DmaPorts::Pages => pages.get(usize::from(register)).copied().unwrap_or(0xff),
        }))
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let register = self.register(offset)?;
        let value = value as u8;
        let mut state = lock(&self.pair.state);
        let State { controllers: [first, second], pages } = &mut *state;
        match self.ports {
            DmaPorts::First => first.write(register, value),
            DmaPorts::Second => second.write(register, value),
            DmaPorts::Pages => {
                if let Some(page) = pages.get_mut(usize::from(register)) {
                    *page = value;
                }
            }
        }
        Ok(())
    }
}

impl Chip for DmaPair {
    fn name(&self) -> &str {
        "dma"
    }

    fn reset(&self) {
        *lock(&self.state) = State::default();
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &*lock(&self.state))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let state: State = decode("dma", VERSION, saved)?;
        if !state.controllers.iter().all(Controller::check) {
            return Err(RestoreError::Value { chip: "dma", field: "controllers" });
        }
        *lock(&self.state) = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
