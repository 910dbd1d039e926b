//! Guest memory in host code: the check of a page by the software TLB, and what it is spared.
//!
//! A check compares the page of the address with the TLB's tag (the read tag, or the write tag,
//! which is absent until stores need not be noted) and makes the rest of the access a host address.
//! Accesses by one base register share a check where they lie close together (see
//! [`crate::grouping::Grouper`]); the stack has an entry of its own, which needs no index.

use std::mem::offset_of;

use decoder::Unit;

use crate::asm::{Alu, Mem, Patch, Rm, cc};
use crate::context::{Context, StackEntry, TlbEntry, view_index};
use crate::emit::{Emitter, context, in_context};
use crate::grouping::Access;
use crate::plan::{Action, Step, is_based};
use crate::registers::{Number, RSP, S0, S1, host};
use crate::slow::{SlowKind, SlowPath};
use crate::wanted::Wanted;

pub(crate) const TLB_READ: i32 = offset_of!(TlbEntry, read_tag) as i32;
pub(crate) const TLB_WRITE: i32 = offset_of!(TlbEntry, write_tag) as i32;
pub(crate) const TLB_HOST: i32 = offset_of!(TlbEntry, host) as i32;
pub(crate) const TLB_DELTA: i32 = offset_of!(TlbEntry, delta) as i32;

impl Emitter<'_> {
    /// Where the step's operand of `size` bytes is for host code. Flags are free behind it, S1 too.
    pub(crate) fn operand(&mut self, step: &Step, size: u32, is_write: bool) -> Mem {
        if let Some(access) = step.accesses[0] {
            let base = step.iced.memory_base().number() as Number;
            let displacement = step.iced.memory_displacement64() as i32;
            return self.grouped(access, base, displacement, is_write);
        }
        self.free_flags();
        self.delta_in_s0 = None;
        if let Some(address) = self.constant_address(step)
            && address & 0xfff <= u64::from(4096 - size)
        {
            return self.check_constant(address, size, is_write);
        }
        self.effective_address(step, size);
        self.check(size, is_write);
        Mem::at(S0)
    }

    /// Where `displacement` bytes from a base register is, for host code.
    pub(crate) fn by_base(
        &mut self,
        access: Option<Access>,
        base: Number,
        displacement: i32,
        size: u32,
        is_write: bool,
    ) -> Mem {
        if let Some(access) = access {
            return self.grouped(access, base, displacement, is_write);
        }
        self.free_flags();
        self.delta_in_s0 = None;
        let register = self.read(base, S0);
        let mem = Mem::at(register).with_disp(displacement);
        if self.around.is_64 {
            self.asm.lea(S0, mem)
        } else {
            self.asm.lea32(S0, mem)
        }
        self.check(size, is_write);
        Mem::at(S0)
    }

    fn grouped(&mut self, access: Access, base: Number, displacement: i32, is_write: bool) -> Mem {
        let Some(group) = access.group else { return Mem::at(S0) };
        let delta = Mem::context(offset_of!(Context, deltas) + 8 * usize::from(group));
        let is_here = self.delta_in_s0 == Some(group);
        // The plan may have taken a step for one that leaves S0 alone, wrongly: a second check is
        // as good.
        if access.is_first || !is_here && !access.is_kept {
            self.check_group(access, base, displacement, is_write);
            if access.is_kept {
                self.asm.store(delta, S0);
            }
        } else if !is_here {
            self.asm.load(S0, delta);
        }
        self.delta_in_s0 = Some(group);
        match host(base) {
            Some(register) => {
                Mem { base: Some(S0), index: Some((register, 0)), disp: displacement, is_gs: false }
            }
            None => {
                self.asm.load(S1, in_context(base));
                let sum =
                    Mem { base: Some(S0), index: Some((S1, 0)), disp: displacement, is_gs: false };
                self.asm.lea(S0, sum);
                self.delta_in_s0 = None;
                Mem::at(S0)
            }
        }
    }

    /// The linear address of an operand that no register changes, if it is one.
    pub(crate) fn constant_address(&self, step: &Step) -> Option<u64> {
        use iced_x86::Register as R;
        let iced = &step.iced;
        let is_based = is_based(iced);
        match iced.memory_base() {
            R::RIP | R::EIP if !is_based => Some(iced.memory_displacement64()),
            R::None if iced.memory_index() == R::None && !is_based => {
                let address = iced.memory_displacement64();
                Some(if self.around.is_64 { address } else { address & 0xffff_ffff })
            }
            _ => None,
        }
    }

    /// Puts the linear address of the operand of `size` bytes into S0. Destroys S1, and (outside
    /// 64-bit mode) the flags.
    pub(crate) fn effective_address(&mut self, step: &Step, size: u32) {
        use iced_x86::Register as R;
        self.offset(step);
        let segment_base = match step.iced.memory_segment() {
            R::FS => context!(fs_base),
            R::GS => context!(gs_base),
            _ => return,
        };
        if !self.around.is_64 && size > 1 {
            self.stop_at_segment_end(size);
        }
        self.asm.load(S1, segment_base);
        let sum = Mem { base: Some(S0), index: Some((S1, 0)), disp: 0, is_gs: false };
        if self.around.is_64 { self.asm.lea(S0, sum) } else { self.asm.lea32(S0, sum) }
    }

    /// Bytes that go on at offset 0 are #GP or #SS. In a segment with base 0 they go on in another
    /// page too, which the check of the page finds.
    fn stop_at_segment_end(&mut self, size: u32) {
        self.asm.alu_imm(false, Alu::Cmp, Rm::Reg(S0), -(size as i32));
        let from = self.asm.jcc(cc::A);
        self.add_slow(from, 0, SlowKind::Interpreted);
    }

    /// Puts the operand's offset in its segment into S0. Destroys S1, not the flags.
    pub(crate) fn offset(&mut self, step: &Step) {
        use iced_x86::Register as R;
        let iced = &step.iced;
        let (base, index) = (iced.memory_base(), iced.memory_index());
        let displacement = iced.memory_displacement64();
        let is_wide = base.size() != 4 && index.size() != 4 && self.around.is_64;
        if matches!(base, R::RIP | R::EIP) || base == R::None && index == R::None {
            let narrow = displacement & 0xffff_ffff;
            let is_narrow = iced.memory_displ_size() == 4 && !self.around.is_64 || base == R::EIP;
            self.asm.constant(S0, if is_narrow { narrow } else { displacement });
        } else {
            let base_in = (base != R::None).then(|| self.read(base.number() as Number, S0));
            let index_in = (index != R::None).then(|| {
                let scale = iced.memory_index_scale().trailing_zeros() as u8;
                (self.read(index.number() as Number, S1), scale)
            });
            let mem =
                Mem { base: base_in, index: index_in, disp: displacement as i32, is_gs: false };
            match (is_wide, base_in, index_in, mem.disp) {
                (true, Some(base), None, 0) => self.asm.mov(S0, base),
                (true, ..) => self.asm.lea(S0, mem),
                _ => self.asm.lea32(S0, mem),
            }
        }
        self.delta_in_s0 = None;
    }

    /// Compares the page of the address in S0, and that `size` bytes fit in it: *above* is a miss.
    /// S1 becomes the TLB entry, S0 the address XOR the tag.
    pub(crate) fn compare(&mut self, size: u32, is_write: bool) {
        let tag = self.offsets.tlb + if is_write { TLB_WRITE } else { TLB_READ };
        self.asm.mov32(S1, S0);
        self.asm.shr32(S1, (12 - crate::context::ENTRY_SHIFT) as u8);
        self.asm.alu_imm(false, Alu::And, Rm::Reg(S1), self.offsets.tlb_mask);
        self.asm.alu(Alu::Xor, S0, Rm::Mem(Mem::context_at(S1, tag)));
        self.asm.alu_imm(true, Alu::Cmp, Rm::Reg(S0), 4096 - size as i32);
    }

    /// Turns the linear address in S0 into a host address.
    pub(crate) fn check(&mut self, size: u32, is_write: bool) {
        self.count_access();
        self.compare(size.max(1), is_write);
        let from = self.asm.jcc(cc::A);
        let host = self.offsets.tlb + TLB_HOST;
        self.asm.alu(Alu::Add, S0, Rm::Mem(Mem::context_at(S1, host)));
        let back = self.asm.here();
        let wanted = self.wanted(size, is_write);
        self.add_slow(from, back, SlowKind::Access { wanted });
    }

    /// Counts a look into the TLB. Destroys the flags, which nobody needs where one is about to be.
    fn count_access(&mut self) {
        if self.around.counts_accesses {
            self.asm.alu_imm(true, Alu::Add, Rm::Mem(context!(accesses)), 1);
        }
    }

    fn check_constant(&mut self, address: u64, size: u32, is_write: bool) -> Mem {
        self.count_access();
        let page = address & !0xfff;
        let entry = (address >> (12 - crate::context::ENTRY_SHIFT)) as i32 & self.offsets.tlb_mask;
        let tag = self.offsets.tlb + entry + if is_write { TLB_WRITE } else { TLB_READ };
        let tag = Mem::context(tag as usize);
        if let Ok(short) = i32::try_from(page as i64) {
            self.asm.alu_imm(true, Alu::Cmp, Rm::Mem(tag), short);
        } else {
            self.asm.constant(S0, page);
            self.asm.alu(Alu::Cmp, S0, Rm::Mem(tag));
        }
        let from = self.asm.jcc(cc::NE);
        self.asm.load(S0, Mem::context((self.offsets.tlb + entry + TLB_HOST) as usize));
        let back = self.asm.here();
        let wanted = self.wanted(size, is_write);
        self.add_slow(from, back, SlowKind::Constant { address, wanted });
        Mem::at(S0).with_disp((address & 0xfff) as i32)
    }

    pub(crate) fn add_slow(&mut self, from: Patch, back: usize, kind: SlowKind) {
        self.slow.push(SlowPath { from, back, step: self.current, kind, flags: self.flags });
    }

    /// What the current step wants of a slow path.
    fn wanted(&self, size: u32, is_write: bool) -> Wanted {
        let step = self.steps.get(usize::from(self.current));
        let is_aligned = step.is_some_and(|step| {
            step.row.memory.is_aligned && step.action == Action::Copy && size.is_power_of_two()
        });
        let raises = step.is_some_and(|step| self.raises_page_faults(step));
        let repeats = |step: &Step| matches!(step.action, Action::String(s) if s.is_repeated());
        Wanted {
            size: size.max(1),
            is_write,
            is_aligned,
            raises,
            own_writes: is_write,
            is_x87: step.is_some_and(|step| step.row.unit == Unit::X87),
            is_run: step.is_some_and(repeats),
            own_offset: 0,
        }
    }

    /// True if a page fault is what `step` raises when an access of it finds one: no exception
    /// comes before it, and no part of the access may turn out not to be made.
    fn raises_page_faults(&self, step: &Step) -> bool {
        use decoder::MemoryShape as S;
        let is_plain = match step.action {
            Action::Copy => {
                matches!(step.row.memory.shape, S::Read | S::Write | S::ReadWrite)
                    && !matches!(step.row.unit, Unit::X87 | Unit::Mmx | Unit::SseMmx)
            }
            action => action.accesses_by_itself(),
        };
        is_plain && self.around.is_64
    }

    /// Checks all of a group's bytes. S0 becomes the delta.
    fn check_group(&mut self, access: Access, base: Number, displacement: i32, own_writes: bool) {
        self.free_flags();
        self.count_access();
        let register = self.read(base, S0);
        match access.lowest {
            0 => self.asm.mov(S0, register),
            lowest => self.asm.lea(S0, Mem::at(register).with_disp(lowest)),
        }
        let Access { span, has_write: is_write, lowest, .. } = access;
        // An address that is not aligned is #GP before anything that a translation would leave.
        let may_be_misaligned =
            self.steps.get(usize::from(self.current)).is_none_or(|step| step.row.memory.is_aligned);
        let wanted = self.wanted(span, is_write);
        let wanted = Wanted {
            is_aligned: false,
            raises: wanted.raises && !may_be_misaligned,
            own_writes: own_writes && !may_be_misaligned,
            own_offset: (displacement - lowest) as u32,
            ..wanted
        };
        if base == RSP {
            let tag = self.stack_tag();
            self.asm.alu(Alu::Xor, S0, Rm::Mem(tag));
            self.asm.alu_imm(true, Alu::Cmp, Rm::Reg(S0), 4096 - span as i32);
            let from = self.asm.jcc(cc::A);
            let delta = self.stack_delta();
            self.asm.load(S0, delta);
            let back = self.asm.here();
            return self.add_slow(from, back, SlowKind::Stack { wanted });
        }
        self.compare(span, is_write);
        let from = self.asm.jcc(cc::A);
        self.asm.load(S0, Mem::context_at(S1, self.offsets.tlb + TLB_DELTA));
        let back = self.asm.here();
        self.add_slow(from, back, SlowKind::Group { wanted });
    }

    /// Linear page of the stack, in the context.
    pub(crate) fn stack_tag(&self) -> Mem {
        Mem::context(self.stack_entry() + offset_of!(StackEntry, tag))
    }

    /// What to add to an address in that page.
    pub(crate) fn stack_delta(&self) -> Mem {
        Mem::context(self.stack_entry() + offset_of!(StackEntry, delta))
    }

    fn stack_entry(&self) -> usize {
        let index = view_index(self.around.view);
        offset_of!(Context, stack) + index * size_of::<StackEntry>()
    }
}
