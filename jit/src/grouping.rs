//! Memory accesses that can share a check: those by one base register that changes by constants
//! only. They form a group, and what the check finds is kept for all of them.

use decoder::Class;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::context::GROUPS;
use crate::plan::{Action, Step, access_bytes, is_based, writes_memory};
use crate::registers::{self, Number, RSP};

/// A memory access by one base register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    /// The group that checks it, if it is not alone.
    pub(crate) group: Option<u8>,
    /// It is the first of its group, and does the check.
    pub(crate) is_first: bool,
    /// What to add to the base register, as it is here, for the lowest byte of the group.
    pub(crate) lowest: i32,
    /// Bytes from the group's lowest to its last.
    pub(crate) span: u32,
    /// Some access of the group writes.
    pub(crate) has_write: bool,
    /// The group's delta is kept in the context: S0 is taken for something else between two of its
    /// accesses.
    pub(crate) is_kept: bool,
}

/// Bytes that a group spans at most.
const MAX_SPAN: i64 = 1024;

/// The value of a register, as far as it is known: a constant more than some unknown value.
#[derive(Clone, Copy)]
struct Value {
    origin: u32,
    offset: i64,
}

/// What finds accesses that one check can cover. It is kept from block to block for its memory.
#[derive(Default)]
pub(crate) struct Grouper {
    groups: Vec<Group>,
    members: Vec<Member>,
}

/// An access in terms of known values.
#[derive(Clone, Copy)]
struct Found {
    value: Value,
    displacement: i64,
    size: i64,
    is_write: bool,
}

struct Group {
    origin: u32,
    low: i64,
    high: i64,
    has_write: bool,
    /// How many accesses it has.
    count: u16,
    /// Its number, if it is used.
    number: Option<u8>,
    /// Its first access is assigned.
    is_begun: bool,
}

/// An access of a group.
struct Member {
    group: u16,
    step: u16,
    slot: u8,
    /// What the base register is then, relative to its origin.
    offset: i64,
}

impl Grouper {
    /// Finds the accesses of `steps` that one check can cover: those by one base register that
    /// changed by constants only. Only for 64-bit addresses, whose sums wrap as the host's do.
    pub(crate) fn group_accesses(&mut self, steps: &mut [Step], is_64: bool) {
        if !is_64 {
            return;
        }
        self.groups.clear();
        self.members.clear();
        let mut tracker = Tracker::new();
        for (index, step) in steps.iter().enumerate() {
            if let Some(found) = tracker.explicit(step) {
                self.join(found, index, 0);
            }
            if let Some(found) = tracker.of_stack(step) {
                self.join(found, index, 1);
            }
            tracker.advance(step);
        }
        // The stack's entry serves single accesses too.
        let is_used = |group: &&mut Group| group.count > 1 || group.origin == u32::from(RSP);
        for (number, group) in self.groups.iter_mut().filter(is_used).take(GROUPS).enumerate() {
            group.number = Some(number as u8);
        }
        for member in &self.members {
            let Some(group) = self.groups.get_mut(usize::from(member.group)) else { continue };
            let access = group.access(member.offset);
            let step = steps.get_mut(usize::from(member.step));
            if let Some(slot) = step.and_then(|s| s.accesses.get_mut(usize::from(member.slot))) {
                *slot = access;
            }
        }
        if self.groups.iter().any(|group| group.count > 1 && group.number.is_some()) {
            keep_deltas(steps);
        }
    }

    fn join(&mut self, found: Found, step: usize, slot: u8) {
        let low = found.value.offset + found.displacement;
        let high = low + found.size;
        let origin = found.value.origin;
        let fits = |group: &Group| {
            group.origin == origin && group.high.max(high) - group.low.min(low) <= MAX_SPAN
        };
        let number = self.groups.iter().rposition(fits).unwrap_or(self.groups.len());
        match self.groups.get_mut(number) {
            Some(group) => {
                group.low = group.low.min(low);
                group.high = group.high.max(high);
                group.has_write |= found.is_write;
                group.count += 1;
            }
            None => self.groups.push(Group {
                origin,
                low,
                high,
                has_write: found.is_write,
                count: 1,
                number: None,
                is_begun: false,
            }),
        }
        let (group, step, offset) = (number as u16, step as u16, found.value.offset);
        self.members.push(Member { group, step, slot, offset });
    }
}

impl Group {
    /// What its next access is to be, whose base register is `offset` from the origin.
    fn access(&mut self, offset: i64) -> Option<Access> {
        let group = self.number?;
        let Ok(lowest) = i32::try_from(self.low - offset) else {
            self.number = None;
            return None;
        };
        Some(Access {
            group: Some(group),
            is_first: !std::mem::replace(&mut self.is_begun, true),
            lowest,
            span: (self.high - self.low) as u32,
            has_write: self.has_write,
            is_kept: false,
        })
    }
}

/// Finds the groups whose delta does not stay in S0 from each access to the next.
fn keep_deltas(steps: &mut [Step]) {
    let (mut in_scratch, mut kept) = (None, [false; GROUPS]);
    for step in steps.iter() {
        for access in step.accesses.iter().flatten() {
            let Some(group) = access.group else { continue };
            if !access.is_first && in_scratch != Some(group) {
                kept[usize::from(group) % GROUPS] = true;
            }
            in_scratch = Some(group);
        }
        if !leaves_scratch(step) {
            in_scratch = None;
        }
    }
    for access in steps.iter_mut().flat_map(|step| step.accesses.iter_mut()).flatten() {
        access.is_kept = access.group.is_some_and(|group| kept[usize::from(group) % GROUPS]);
    }
}

/// True if the code of a step is expected to leave S0 alone but for the accesses that it shares.
fn leaves_scratch(step: &Step) -> bool {
    let iced = &step.iced;
    let is_simple = match step.action {
        Action::Copy => !step.has_memory || step.accesses[0].is_some(),
        Action::Push | Action::Pop => !step.has_memory,
        Action::Nothing
        | Action::Lea
        | Action::Branch(_)
        | Action::FollowedJump
        | Action::FollowedBranch(_) => true,
        _ => false,
    };
    let is_pinned = |register: Register| {
        !register.is_gpr() || registers::is_pinned(register.number() as Number)
    };
    let mut operands = (0..iced.op_count()).filter(|&n| iced.op_kind(n) == OpKind::Register);
    is_simple
        && operands.all(|n| is_pinned(iced.op_register(n)))
        && is_pinned(iced.memory_base())
        && is_pinned(iced.memory_index())
}

/// Follows what registers hold.
struct Tracker {
    registers: [Value; 16],
    next: u32,
}

impl Tracker {
    fn new() -> Self {
        let registers = std::array::from_fn(|n| Value { origin: n as u32, offset: 0 });
        Self { registers, next: 16 }
    }

    fn value(&self, number: Number) -> Value {
        self.registers[usize::from(number & 15)]
    }

    fn set(&mut self, number: Number, value: Value) {
        self.registers[usize::from(number & 15)] = value;
    }

    fn forget(&mut self, number: Number) {
        self.set(number, Value { origin: self.next, offset: 0 });
        self.next += 1;
    }

    fn add(&mut self, number: Number, addend: i64) {
        let value = self.value(number);
        // Sums that leave the range of a displacement are of no use.
        if (value.offset + addend).abs() < 1 << 30 {
            self.set(number, Value { offset: value.offset + addend, ..value });
        } else {
            self.forget(number);
        }
    }

    /// The access of a step by ModRM, if it is by a base register alone.
    fn explicit(&self, step: &Step) -> Option<Found> {
        let iced = &step.iced;
        let is_access = step.has_memory
            && matches!(
                step.action,
                Action::Copy | Action::Push | Action::JumpIndirect | Action::CallIndirect
            );
        let base = iced.memory_base();
        let is_plain = is_access
            && base.is_gpr64()
            && iced.memory_index() == Register::None
            && !is_based(iced);
        if !is_plain {
            return None;
        }
        let size = access_bytes(step);
        (size != 0).then(|| Found {
            value: self.value(base.number() as Number),
            displacement: iced.memory_displacement64() as i64,
            size: i64::from(size),
            is_write: writes_memory(step),
        })
    }

    /// The access of a step to the stack.
    fn of_stack(&self, step: &Step) -> Option<Found> {
        let value = self.value(RSP);
        let found = |displacement, is_write| Some(Found { value, displacement, size: 8, is_write });
        match step.action {
            Action::Push | Action::PushFlags | Action::Call | Action::CallIndirect => {
                found(-8, true)
            }
            Action::Pop | Action::PopFlags | Action::Return(_) => found(0, false),
            Action::Leave => {
                Some(Found { value: self.value(5), displacement: 0, size: 8, is_write: false })
            }
            _ => None,
        }
    }

    /// Takes over what a step does to registers.
    fn advance(&mut self, step: &Step) {
        let iced = &step.iced;
        match step.action {
            Action::Nothing
            | Action::Branch(_)
            | Action::FollowedJump
            | Action::FollowedBranch(_)
            | Action::SetDirectionFlag(_)
            | Action::SetInterruptFlag(_) => {}
            Action::Push | Action::PushFlags => self.add(RSP, -8),
            Action::Pop => {
                self.add(RSP, 8);
                self.forget(iced.op0_register().number() as Number);
            }
            Action::Leave => {
                self.set(RSP, self.value(5));
                self.add(RSP, 8);
                self.forget(5);
            }
            Action::Lea => self.advance_lea(iced),
            Action::Copy => self.advance_copy(step),
            _ => (0..16).for_each(|number| self.forget(number)),
        }
    }

    fn advance_lea(&mut self, iced: &Instruction) {
        let to = iced.op0_register();
        let base = iced.memory_base();
        let is_sum = to.is_gpr64() && base.is_gpr64() && iced.memory_index() == Register::None;
        if is_sum {
            self.set(to.number() as Number, self.value(base.number() as Number));
            self.add(to.number() as Number, iced.memory_displacement64() as i64);
        } else {
            self.forget(to.number() as Number);
        }
    }

    fn advance_copy(&mut self, step: &Step) {
        let iced = &step.iced;
        let to = iced.op0_register();
        let number = to.full_register().number() as Number;
        if iced.op0_kind() == OpKind::Register && to.is_gpr64() {
            match (iced.mnemonic(), iced.try_immediate(1)) {
                (Mnemonic::Add, Ok(addend)) => return self.add(number, addend as i64),
                (Mnemonic::Sub, Ok(addend)) => {
                    return self.add(number, (addend as i64).wrapping_neg());
                }
                (Mnemonic::Inc, _) => return self.add(number, 1),
                (Mnemonic::Dec, _) => return self.add(number, -1),
                (Mnemonic::Mov, _) if iced.op1_register().is_gpr64() => {
                    return self.set(number, self.value(iced.op1_register().number() as Number));
                }
                (Mnemonic::Cmp | Mnemonic::Test, _) => return,
                _ => {}
            }
        }
        // Every general register that an instruction names may be written, and those that it does
        // not name by RAX, RCX, RDX, RBX.
        let mut targets = step.form.targets;
        while targets != 0 {
            let operand = targets.trailing_zeros();
            targets &= targets - 1;
            let register = iced.op_register(operand);
            if iced.op_kind(operand) == OpKind::Register && register.is_gpr() {
                self.forget(register.full_register().number() as Number);
            }
        }
        if matches!(step.row.class, Class::MulDiv | Class::Exchange | Class::Mov | Class::Flag)
            || matches!(step.row.class, Class::SimdInteger | Class::SimdFloat | Class::X87)
        {
            self.forget_implicit(step);
        }
    }

    fn forget_implicit(&mut self, step: &Step) {
        use Mnemonic as M;
        let numbers: &[Number] = match step.iced.mnemonic() {
            M::Mul | M::Imul | M::Div | M::Idiv | M::Cmpxchg8b | M::Cmpxchg16b => &[0, 2],
            M::Cwd | M::Cdq | M::Cqo => &[2],
            M::Cbw | M::Cwde | M::Cdqe | M::Cmpxchg | M::Lahf | M::Fnstsw => &[0],
            _ if step.row.class == Class::SimdInteger => &[1],
            _ => &[],
        };
        numbers.iter().for_each(|&number| self.forget(number));
    }
}
