//! What translated code reaches through the GS segment: guest registers that have no host register,
//! virtual flags, the software TLBs, the jump caches and the pages that code may run from.
//!
//! There is one context for each address-space slot of a vCPU, so that a load of CR3 swaps TLB,
//! jump cache and valid pages by moving the GS base. Translated code is the same for all of them:
//! every offset below is a constant of the code.
//!
//! Invariant: a TLB entry whose tag matches an address gives the host address of a mapped page of
//! guest memory, and its write tag is set only while stores to the page need not be noted.

use std::mem::offset_of;
use std::sync::atomic::{AtomicPtr, AtomicU32};

use cpu::fpu::FpuState;
use cpu::mmu::View;
use cpu::platform::LinearTime;

use crate::gaps::Gaps;

/// One page of a software TLB.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TlbEntry {
    /// Linear address of the page, if it may be read; else [`no_page`].
    pub(crate) read_tag: u64,
    /// Linear address of the page, if it may be written without being noted; else [`no_page`].
    pub(crate) write_tag: u64,
    /// Host address of the page.
    pub(crate) host: u64,
    /// What to add to a linear address for the host address.
    pub(crate) delta: u64,
}

/// The page of the stack that was accessed last; it may be written.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct StackEntry {
    /// Its linear address, or [`NO_PAGE`].
    pub(crate) tag: u64,
    /// What to add to a linear address for the host address.
    pub(crate) delta: u64,
}

/// A tag that no canonical address matches, for what has no number.
pub(crate) const NO_PAGE: u64 = 1 << 63;

/// The tag of no page for the entry with number `index`. Not even an address that is not canonical
/// matches it: those that have the tag's bits belong to an entry beside it.
pub(crate) const fn no_page(index: usize) -> u64 {
    NO_PAGE | (!index as u64 & 1) << 12
}

/// Entry number `index` with no page.
pub(crate) const fn empty(index: usize) -> TlbEntry {
    TlbEntry { read_tag: no_page(index), write_tag: no_page(index), host: 0, delta: 0 }
}

/// The number of the entry that `linear` belongs to; only its low bits count.
pub(crate) const fn entry_index(linear: u64) -> usize {
    (linear >> 12) as usize
}

/// Empties `entries`, the first of which has an even number.
fn empty_all(entries: &mut [TlbEntry]) {
    entries.iter_mut().enumerate().for_each(|(index, entry)| *entry = empty(index));
}

/// log2 of the bytes of an entry.
pub(crate) const ENTRY_SHIFT: u32 = 5;
const _: () = assert!(size_of::<TlbEntry>() == 1 << ENTRY_SHIFT);

/// Entries of the TLB of CPL 3.
const USER_ENTRIES: usize = 16384;
/// Entries of the TLB of the supervisor.
const SUPERVISOR_ENTRIES: usize = 8192;
/// Entries of the TLB of the supervisor with EFLAGS.AC.
const SUPERVISOR_AC_ENTRIES: usize = 1024;
/// Entries that are dropped together.
const CHUNK: usize = 128;
const _: () = assert!(USER_ENTRIES / CHUNK <= 128 && SUPERVISOR_ENTRIES / CHUNK <= 128);

/// Entries of each jump cache. A miss costs a thousand times a hit, and Python's interpreter with
/// SQLite and a kernel jumps to tens of thousands of places.
pub(crate) const JUMPS: usize = 1 << 15;
/// Pages of code that can be told apart; see [`Context::valid`].
pub(crate) const CODE_PAGES: usize = 1 << 16;
/// Code pages from this number on are global: they stay valid over loads of CR3.
pub(crate) const FIRST_GLOBAL_PAGE: usize = CODE_PAGES / 2;
/// Counters of links, see [`Context::counters`].
pub(crate) const COUNTERS: usize = 1024;
/// Groups of accesses with a common check that a block can have at a time.
pub(crate) const GROUPS: usize = 8;
/// Where a jump to a computed address finds its code.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct JumpEntry {
    /// Guest RIP.
    pub(crate) rip: u64,
    /// Host address.
    pub(crate) code: u64,
}

/// log2 of the bytes of an entry, less what an index can be scaled by.
pub(crate) const JUMP_UNITS: u32 = 1;
const _: () = assert!(size_of::<JumpEntry>() == 8 << JUMP_UNITS);

/// Where jumps to computed addresses find their code, by the hash of the guest's RIP. What is not
/// used is zero, so that memory is only taken where it is.
#[repr(C)]
pub(crate) struct JumpCache {
    entries: [JumpEntry; JUMPS],
}

/// See the head of this file.
#[repr(C, align(64))]
pub(crate) struct Context {
    /// First, so that code of CPL 3 reaches it by short displacements.
    pub(crate) tlb_user: [TlbEntry; USER_ENTRIES],
    /// Guest registers: R13 to R15 live here, the others while translated code does not run.
    pub(crate) gpr: [u64; 16],
    /// Guest RIP, as exits leave it.
    pub(crate) rip: u64,
    /// Status flags while they are not in EFLAGS: AH as LAHF gives it, AL 1 for OF.
    pub(crate) flags: u32,
    /// RFLAGS.IF in its place, or 0.
    pub(crate) interrupt_flag: u32,
    /// RFLAGS.DF in its place, or 0.
    pub(crate) direction_flag: u32,
    /// RFLAGS.AC in its place, or 0.
    pub(crate) alignment_flag: u32,
    /// The other flags of RFLAGS.
    pub(crate) system_flags: u32,
    /// Why the code was left, see [`crate::exit::Exit`].
    pub(crate) exit_kind: u32,
    /// A link, for exits by one.
    pub(crate) exit_link: u32,
    /// RSP of the Rust code that entered.
    pub(crate) host_rsp: u64,
    /// Returns that may yet be mispredicted before the stack of predictions is given up.
    pub(crate) patience: u32,
    /// RSP of translated code while a helper runs.
    pub(crate) code_rsp: u64,
    /// The bottom of the stack of return predictions.
    pub(crate) stack_bottom: u64,
    /// The bottom of the one for supervisor code with EFLAGS.AC, and RSP of the other meanwhile.
    pub(crate) ac_stack_bottom: u64,
    /// See [`Context::ac_stack_bottom`].
    pub(crate) saved_rsp: u64,
    /// Bytes of an access over two pages.
    pub(crate) bounce: [u8; 64],
    /// What may be accessed of pages with watchpoints.
    pub(crate) gaps: Gaps,
    /// The guest's vector registers and MXCSR while translated code does not run.
    pub(crate) fpu: *mut FpuState,
    /// The owner, for helpers.
    pub(crate) owner: *mut u8,
    /// MXCSR of Rust code.
    pub(crate) host_mxcsr: u32,
    /// Not zero: leave at the next transfer that asks.
    pub(crate) poll: AtomicU32,
    /// Where back-edges load from: a readable word, or none to be stopped.
    pub(crate) safepoint: AtomicPtr<u8>,
    /// The word of the vCPU's mailbox.
    pub(crate) events: *const AtomicU32,
    /// Bases of FS and GS.
    pub(crate) fs_base: u64,
    /// See [`Context::fs_base`].
    pub(crate) gs_base: u64,
    /// IA32_KERNEL_GS_BASE.
    pub(crate) kernel_gs_base: u64,
    /// CR2, to be read.
    pub(crate) cr2: u64,
    /// Selectors of the segment registers; those of CS and SS may be old.
    pub(crate) selectors: [u32; 6],
    /// The time-stamp counter as a function of the host's; the multiplier is 0 if it is none.
    pub(crate) time: LinearTime,
    /// IA32_TSC_AUX, to be read.
    pub(crate) tsc_aux: u32,
    /// PKRU, to be read.
    pub(crate) pkru: u32,
    /// The privilege that code runs at.
    pub(crate) cpl: u32,
    /// What Rust has to catch up with: [`CALLED`] and [`RETURNED`].
    pub(crate) system_calls: u32,
    /// SYSCALL and SYSRETQ may be executed without Rust; what follows says how.
    pub(crate) has_system_calls: u32,
    /// The flags that SYSCALL keeps, as [`Context::flags`] has them.
    pub(crate) kept_status: u32,
    /// The others of the flags that SYSCALL keeps.
    pub(crate) kept_flags: u32,
    /// Where SYSCALL goes.
    pub(crate) system_entry: u64,
    /// Instructions left of the budget, where they are counted.
    pub(crate) budget: u64,
    /// Where the next word goes that tells a trace what is executed.
    pub(crate) notes: u64,
    /// Room for values that two scratch registers cannot hold.
    pub(crate) spare: [u64; 4],
    /// For each group of accesses, what to add to a linear address for its host address.
    pub(crate) deltas: [u64; GROUPS],
    /// By view: the page of the stack's last access.
    pub(crate) stack: [StackEntry; 3],
    /// Accesses that looked into the TLB, where they are counted.
    pub(crate) accesses: u64,
    /// How often links may be taken yet until they are hot, by the low bits of their numbers.
    pub(crate) counters: [u32; COUNTERS],
    pub(crate) jumps_user: JumpCache,
    pub(crate) jumps_supervisor: JumpCache,
    pub(crate) jumps_supervisor_ac: JumpCache,
    /// By number of a code page: not zero if its linear page is mapped to its RAM page here.
    pub(crate) valid: [u8; CODE_PAGES],
    /// By view: which runs of [`CHUNK`] entries of its TLB are not empty.
    filled: [u128; 3],
    pub(crate) tlb_supervisor: [TlbEntry; SUPERVISOR_ENTRIES],
    pub(crate) tlb_supervisor_ac: [TlbEntry; SUPERVISOR_AC_ENTRIES],
}

/// SYSCALL was executed.
pub(crate) const CALLED: u32 = 1;
/// SYSRETQ was executed, behind the SYSCALL if there was one.
pub(crate) const RETURNED: u32 = 2;

/// The offsets of what depends on who executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ViewOffsets {
    /// The TLB.
    pub(crate) tlb: i32,
    /// Ones for the bits of `linear >> (12 - ENTRY_SHIFT)` that are the offset of an entry.
    pub(crate) tlb_mask: i32,
    /// The first RIP of the jump cache.
    pub(crate) jump_rips: i32,
    /// The first code of the jump cache.
    pub(crate) jump_codes: i32,
}

/// The offsets for code that `view` executes.
pub(crate) const fn view_offsets(view: View) -> ViewOffsets {
    let (tlb, entries, jumps) = match view {
        View::User => {
            (offset_of!(Context, tlb_user), USER_ENTRIES, offset_of!(Context, jumps_user))
        }
        View::Supervisor => (
            offset_of!(Context, tlb_supervisor),
            SUPERVISOR_ENTRIES,
            offset_of!(Context, jumps_supervisor),
        ),
        View::SupervisorAc => (
            offset_of!(Context, tlb_supervisor_ac),
            SUPERVISOR_AC_ENTRIES,
            offset_of!(Context, jumps_supervisor_ac),
        ),
    };
    ViewOffsets {
        tlb: tlb as i32,
        tlb_mask: ((entries - 1) << ENTRY_SHIFT) as i32,
        jump_rips: (jumps + offset_of!(JumpEntry, rip)) as i32,
        jump_codes: (jumps + offset_of!(JumpEntry, code)) as i32,
    }
}

/// The multiplier and shift that make an index of a RIP's low half.
pub(crate) const JUMP_HASH: u32 = 0x9e37_79b1;
/// See [`JUMP_HASH`].
pub(crate) const JUMP_SHIFT: u32 = 32 - JUMPS.trailing_zeros();

/// The index of `rip` in a jump cache; translated code computes the same.
pub(crate) const fn jump_index(rip: u64) -> usize {
    ((rip as u32).wrapping_mul(JUMP_HASH) >> JUMP_SHIFT) as usize
}

/// The counter of link number `link`.
pub(crate) const fn counter_index(link: u32) -> usize {
    link as usize % COUNTERS
}

impl Context {
    /// The TLB of `view`.
    pub(crate) fn tlb(&mut self, view: View) -> &mut [TlbEntry] {
        match view {
            View::User => &mut self.tlb_user,
            View::Supervisor => &mut self.tlb_supervisor,
            View::SupervisorAc => &mut self.tlb_supervisor_ac,
        }
    }

    /// The entry in which `view` keeps the page of `linear`.
    pub(crate) fn entry(&mut self, view: View, linear: u64) -> Option<&mut TlbEntry> {
        let tlb = self.tlb(view);
        let index = entry_index(linear) & (tlb.len() - 1);
        tlb.get_mut(index)
    }

    /// The linear page that `view` reaches at a host address that ends in `host`: the one of
    /// `likely` if it is there, else any.
    pub(crate) fn page_at(&mut self, view: View, host: u32, likely: Option<u64>) -> Option<u64> {
        let is_here = |entry: &TlbEntry| entry.host as u32 == host && entry.host != 0;
        if let Some(linear) = likely
            && let Some(entry) = self.entry(view, linear)
            && entry.read_tag == linear & !0xfff
            && is_here(entry)
        {
            return Some(entry.read_tag);
        }
        if let Some(linear) = self.gaps.page_at(view, host) {
            return Some(linear);
        }
        let mut filled = self.filled[view_index(view)];
        while filled != 0 {
            let chunk = filled.trailing_zeros() as usize;
            filled &= filled - 1;
            let entries = self.tlb(view).get(chunk * CHUNK..(chunk + 1) * CHUNK)?;
            if let Some(entry) = entries.iter().find(|entry| is_here(entry)) {
                return Some(entry.read_tag);
            }
        }
        None
    }

    /// The jump cache of `view`.
    pub(crate) fn jumps(&mut self, view: View) -> &mut JumpCache {
        match view {
            View::User => &mut self.jumps_user,
            View::Supervisor => &mut self.jumps_supervisor,
            View::SupervisorAc => &mut self.jumps_supervisor_ac,
        }
    }

    /// Drops all TLB entries of memory whose contents are unknown.
    pub(crate) fn clear_tlbs(&mut self) {
        for view in VIEWS {
            empty_all(self.tlb(view));
        }
        self.filled = [0; 3];
        self.forget_shortcuts();
    }

    /// Forgets the stacks' pages, and the gaps between watchpoints.
    pub(crate) fn forget_shortcuts(&mut self) {
        self.stack = [StackEntry { tag: NO_PAGE, delta: 0 }; 3];
        self.gaps.clear();
    }

    /// Drops all entries of the TLB of `view`, at a cost by what is in it.
    pub(crate) fn clear_tlb(&mut self, view: View) {
        self.forget_shortcuts();
        let mut filled = std::mem::take(&mut self.filled[view_index(view)]);
        while filled != 0 {
            let chunk = filled.trailing_zeros() as usize;
            filled &= filled - 1;
            if let Some(entries) = self.tlb(view).get_mut(chunk * CHUNK..(chunk + 1) * CHUNK) {
                empty_all(entries);
            }
        }
    }

    /// As [`Context::entry`], for an entry that will be filled.
    pub(crate) fn entry_to_fill(&mut self, view: View, linear: u64) -> Option<&mut TlbEntry> {
        let chunk = (entry_index(linear) & (self.tlb(view).len() - 1)) / CHUNK;
        self.filled[view_index(view)] |= 1 << chunk;
        self.entry(view, linear)
    }

    /// Drops every store's shortcut to the page of RAM at host address `host`.
    pub(crate) fn drop_write_tags(&mut self, host: u64) {
        self.forget_shortcuts();
        for view in VIEWS {
            let mut filled = self.filled[view_index(view)];
            while filled != 0 {
                let chunk = filled.trailing_zeros() as usize;
                filled &= filled - 1;
                let range = chunk * CHUNK..(chunk + 1) * CHUNK;
                let entries = self.tlb(view).get_mut(range).into_iter().flatten();
                for (index, entry) in entries.enumerate() {
                    if entry.host == host {
                        entry.write_tag = no_page(index);
                    }
                }
            }
        }
    }

    /// Drops `linear`'s page from all TLBs.
    pub(crate) fn drop_page(&mut self, linear: u64) {
        self.forget_shortcuts();
        for view in VIEWS {
            if let Some(entry) = self.entry(view, linear)
                && (entry.read_tag == linear || entry.write_tag == linear)
            {
                *entry = empty(entry_index(linear));
            }
        }
    }
}

const EMPTY_JUMP: JumpEntry = JumpEntry { rip: 0, code: 0 };
/// What no jump looks for in the entry of RIP 0, which alone would be found in an empty one.
const NO_JUMP: JumpEntry = JumpEntry { rip: 1, code: 0 };
const _: () = assert!(jump_index(0) != jump_index(1));

impl JumpCache {
    /// The entry for `rip`.
    pub(crate) fn entry(&self, rip: u64) -> JumpEntry {
        self.entries[jump_index(rip)]
    }

    /// Lets jumps to `rip` find `code`.
    pub(crate) fn set(&mut self, rip: u64, code: u64) {
        self.entries[jump_index(rip)] = JumpEntry { rip, code };
    }

    /// Forgets every jump.
    pub(crate) fn clear(&mut self) {
        self.entries.fill(EMPTY_JUMP);
        self.entries[jump_index(0)] = NO_JUMP;
    }

    /// Forgets the jumps in the entries of `indices`.
    pub(crate) fn clear_entries(&mut self, indices: impl Iterator<Item = usize>) {
        for index in indices {
            self.entries[index % JUMPS] = EMPTY_JUMP;
        }
        self.entries[jump_index(0)] = NO_JUMP;
    }
}

/// The place of `view` in arrays by view.
pub(crate) fn view_index(view: View) -> usize {
    match view {
        View::User => 0,
        View::Supervisor => 1,
        View::SupervisorAc => 2,
    }
}

/// All views.
pub(crate) const VIEWS: [View; 3] = [View::User, View::Supervisor, View::SupervisorAc];
