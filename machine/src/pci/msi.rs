//! The MSI capability: up to 32 vectors, 64-bit address, per-vector masking.
//!
//! Source: PCI Local Bus Specification 3.0, "MSI Capability Structure" and "MSI Operation".

use memory::Width;

use super::config_space::{COMMAND, COMMAND_MASTER, ConfigSpace};

const CAPABILITY_ID: u8 = 0x05;
const ENABLE: u16 = 1 << 0;
const CAN_64BIT: u16 = 1 << 7;
const CAN_MASK: u16 = 1 << 8;
const CONTROL: u16 = 2;
const ADDRESS: u16 = 4;
const UPPER_ADDRESS: u16 = 8;
const DATA: u16 = 12;
const MASK: u16 = 16;
const PENDING: u16 = 20;

/// A message to be sent once no lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// The place of an MSI capability; its state is in the configuration space.
#[derive(Clone, Copy, Debug)]
pub struct Msi {
    at: u16,
}

impl Msi {
    /// Adds a capability with `1 << vectors_log2` vectors (at most 32) to `config`.
    pub fn add(config: &mut ConfigSpace, vectors_log2: u8) -> Option<Self> {
        let vectors_log2 = u16::from(vectors_log2.min(5));
        let control = CAN_64BIT | CAN_MASK | vectors_log2 << 1;
        let mut body = vec![0; 22];
        body[..2].copy_from_slice(&control.to_le_bytes());
        let mask = u32::MAX >> (32 - (1u32 << vectors_log2));
        let writable = [
            &(ENABLE | 0x70).to_le_bytes()[..],
            &0xffff_fffc_u32.to_le_bytes(),
            &u32::MAX.to_le_bytes(),
            &0xffff_u32.to_le_bytes(),
            &mask.to_le_bytes(),
        ]
        .concat();
        let at = config.add_capability(CAPABILITY_ID, &body, &writable)?;
        config.note_volatile(at + PENDING, &mask.to_le_bytes());
        Some(Self { at })
    }

    /// True if software chose MSI; the INTx# pin is then not used.
    pub fn is_enabled(&self, config: &ConfigSpace) -> bool {
        config.u16(self.at + CONTROL) & ENABLE != 0
    }

    /// The message of `vector`, to be sent; `None` while it is masked, and then it is pending.
    pub fn signal(&self, config: &mut ConfigSpace, vector: u8) -> Option<Message> {
        // Software may grant fewer vectors than there are: the function then shares them.
        let granted_log2 = (config.u16(self.at + CONTROL) >> 4 & 7).min(5);
        let bit = 1u32 << (vector & 31 & ((1u8 << granted_log2) - 1));
        self.set_pending(config, |pending| pending | bit);
        self.take_deliverable(config).pop()
    }

    /// The messages that became free to be sent, after any write to the configuration space.
    pub fn take_deliverable(&self, config: &mut ConfigSpace) -> Vec<Message> {
        if !self.is_enabled(config) || config.u16(COMMAND) & COMMAND_MASTER == 0 {
            return Vec::new();
        }
        let ready = config.u32(self.at + PENDING) & !config.u32(self.at + MASK);
        self.set_pending(config, |pending| pending & !ready);
        let address = u64::from(config.u32(self.at + UPPER_ADDRESS)) << 32
            | u64::from(config.read(self.at + ADDRESS, Width::Dword));
        let data = u32::from(config.u16(self.at + DATA));
        let vectors = (0..32).filter(|vector| ready >> vector & 1 != 0);
        vectors.map(|vector| Message { address, data: data | vector }).collect()
    }

    fn set_pending(&self, config: &mut ConfigSpace, change: impl Fn(u32) -> u32) {
        let pending = change(config.u32(self.at + PENDING));
        config.set(self.at + PENDING, &pending.to_le_bytes());
    }
}
