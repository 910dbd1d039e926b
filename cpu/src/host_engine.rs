//! What an engine needs of a CPU that executes guests by other means than this crate's MMU and
//! decoder, and brings their state here for what is no instruction.

use memory::PAGE_SIZE;

use crate::Cpu;
use crate::state::{cr0, efer};

impl Cpu {
    /// Takes INIT, start-up IPIs and NMIs out of the mailbox, before the local APIC's registers go
    /// to an engine that has its own.
    pub fn take_posted_signals(&mut self) {
        self.take_signals();
    }

    /// Delivers interrupt `vector`, which the local APIC has handed out already.
    pub fn take_interrupt(&mut self, vector: u8) {
        self.deliver_interrupt(vector);
    }

    /// Loads the PDPTE registers where paging has them. The other engine has checked them.
    pub fn reload_pdptes(&mut self) {
        let has_pdptes =
            self.state.cr0 & cr0::PG != 0 && self.is_pae() && self.state.msrs.efer & efer::LMA == 0;
        if has_pdptes && self.load_pdptes(self.state.cr3).is_err() {
            log::debug!(target: "cpu::mmu", "PDPTEs have become invalid in memory");
        }
    }

    /// The `count` bytes at `linear`, as far as they are mapped. No accessed bit is set: it is for
    /// messages and comparisons.
    pub fn peek_code(&mut self, mut linear: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut done = 0;
        while done < count {
            let here = (count - done).min((PAGE_SIZE - (linear & (PAGE_SIZE - 1))) as usize);
            let part = &mut bytes[done..done + here];
            let physical = self.probe(linear);
            if physical.is_none_or(|at| self.env.space.dma_read(at, part).is_err()) {
                break;
            }
            (done, linear) = (done + here, linear.wrapping_add(here as u64));
        }
        bytes.truncate(done);
        bytes
    }
}
