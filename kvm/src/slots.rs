//! Guest memory as the kernel has it: slots, one for each range of RAM or ROM.
// UNSAFETY: tells the kernel host addresses that the guest then reads and writes. They are those of
// the machine's RAM, which outlives the virtual machine that has them (`KvmVm` holds both).
#![expect(unsafe_code, reason = "unsafe island 4: the kernel is told where guest memory is")]

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use memory::{BackedRange, PhysicalSpace};

/// The slots that the kernel has.
#[derive(Default)]
pub(crate) struct Slots {
    /// The generation of the space that they are of.
    generation: Option<u64>,
    /// By number of the slot; `None` is one without memory.
    ranges: Vec<Option<BackedRange>>,
}

impl Slots {
    /// Makes the kernel's slots those of `space`, if it has changed.
    pub(crate) fn update(&mut self, fd: &VmFd, space: &PhysicalSpace) {
        let generation = space.generation();
        if self.generation == Some(generation) {
            return;
        }
        let wanted = space.backed_ranges();
        // What goes makes room first: slots never overlap.
        for number in 0..self.ranges.len() {
            if self.ranges[number].is_some_and(|range| !wanted.contains(&range)) {
                self.set(fd, space, number, None);
            }
        }
        for range in wanted {
            if !self.ranges.contains(&Some(range)) {
                let free = self.ranges.iter().position(Option::is_none);
                let number = free.unwrap_or(self.ranges.len());
                self.set(fd, space, number, Some(range));
            }
        }
        self.generation = Some(generation);
    }

    /// Takes all slots away, until the next [`Slots::update`].
    pub(crate) fn clear(&mut self, fd: &VmFd, space: &PhysicalSpace) {
        for number in 0..self.ranges.len() {
            self.set(fd, space, number, None);
        }
        self.generation = None;
    }

    fn set(&mut self, fd: &VmFd, space: &PhysicalSpace, number: usize, range: Option<BackedRange>) {
        if self.ranges.len() <= number {
            self.ranges.resize(number + 1, None);
        }
        let old = std::mem::replace(&mut self.ranges[number], range);
        let Some(BackedRange { base, size, offset, is_rom }) = range.or(old) else { return };
        let Some(host) = space.ram().host_address(offset) else { return };
        let region = kvm_userspace_memory_region {
            slot: number as u32,
            flags: if is_rom { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: base,
            memory_size: if range.is_some() { size } else { 0 },
            userspace_addr: host.0,
        };
        // SAFETY: 1. the range is inside of RAM, which the space vouches for; 2. RAM is one mapping
        // that lives as long as the space, which the machine of `fd` holds; 3. nobody has Rust
        // references into it (memory/src/ram.rs).
        if let Err(error) = unsafe { fd.set_user_memory_region(region) } {
            // Accesses to it come as to a device, and reach the memory all the same.
            log::warn!(target: "kvm::memory", "slot {number} at {base:#x}: {error}");
            self.ranges[number] = None;
        }
    }
}
