//! A small memory to load into.

use std::sync::Arc;

use memory::{GuestPhysical, PhysicalSpace, Ram, RegionKind};

use super::Target;
use crate::e820::E820Map;
use crate::layout::{self, Form, RamPlan};

pub(crate) struct TestMemory {
    pub space: PhysicalSpace,
    pub map: E820Map,
}

impl TestMemory {
    pub(crate) fn new(memory_bytes: u64) -> Self {
        let plan = RamPlan { memory_bytes, rom_bytes: 0 };
        let space = PhysicalSpace::new(Arc::new(Ram::new(memory_bytes).unwrap()));
        let low = plan.low_ram_end();
        space.map(GuestPhysical(0), low, RegionKind::Ram(0)).unwrap();
        if plan.high_ram_bytes() != 0 {
            let high = GuestPhysical(layout::ABOVE_4G);
            space.map(high, plan.high_ram_bytes(), RegionKind::Ram(low)).unwrap();
        }
        Self { space, map: E820Map::new(Form::Q35, &plan) }
    }

    pub(crate) fn target(&self) -> Target<'_> {
        Target { space: &self.space, map: &self.map, rsdp: layout::RSDP_BASE }
    }

    pub(crate) fn bytes(&self, address: u64, count: usize) -> Vec<u8> {
        let mut out = vec![0; count];
        self.space.dma_read(GuestPhysical(address), &mut out).unwrap();
        out
    }

    pub(crate) fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address, 4).try_into().unwrap())
    }

    pub(crate) fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address, 8).try_into().unwrap())
    }

    pub(crate) fn text(&self, address: u64) -> String {
        let bytes = self.bytes(address, 4096);
        let end = bytes.iter().position(|&byte| byte == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    }
}
