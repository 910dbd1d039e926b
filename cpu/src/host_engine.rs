//! What an engine needs of a CPU that executes guests by other means than this crate's MMU and
//! decoder, and brings their state here for what is no instruction.

use crate::Cpu;
use crate::state::{cr0, cr4, efer};

/// The longest instruction.
const INSTRUCTION_BYTES_MAX: usize = 15;

impl Cpu {
    /// Delivers interrupt `vector`, which the local APIC has handed out already.
    pub fn take_interrupt(&mut self, vector: u8) {
        self.deliver_interrupt(vector);
    }

    /// Loads the PDPTE registers where paging has them. The other engine has checked them.
    pub fn reload_pdptes(&mut self) {
        let is_pae = self.state.cr0 & cr0::PG != 0
            && self.state.cr4 & cr4::PAE != 0
            && self.state.msrs.efer & efer::LMA == 0;
        if is_pae && self.load_pdptes(self.state.cr3).is_err() {
            log::debug!(target: "cpu::mmu", "PDPTEs have become invalid in memory");
        }
    }

    /// The bytes of the instruction at RIP and behind it, as far as they are mapped, for messages.
    pub fn bytes_at_rip(&mut self) -> Vec<u8> {
        let start = self.linear_ip();
        let mut bytes = Vec::new();
        for address in (start..).take(INSTRUCTION_BYTES_MAX) {
            let Some(physical) = self.probe(address) else { break };
            let mut byte = [0];
            if self.env.space.dma_read(physical, &mut byte).is_err() {
                break;
            }
            bytes.extend(byte);
        }
        bytes
    }
}
