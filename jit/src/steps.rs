//! From one step to host code.
//!
//! Commit order, for every step: what can fault comes first, guest registers change last, so that a
//! fault finds the state before the instruction.

use cpu::state::rflags;
use decoder::MemoryShape;
use iced_x86::{Mnemonic, OpKind, Register};

use crate::asm::{Alu, Mem, Rm, cc};
use crate::emit::{Emitter, Entry, MarkedFlags, context, in_context};
use crate::encoding::{Encoding, Operands};
use crate::flow::{Effect, Flags};
use crate::forms::{Fields, Place};
use crate::plan::{Action, Step, access_bytes, writes_memory};
use crate::registers::{GUEST_RSP, HOST_RSP, Number, RAX, RBP, RDI, RSP, S0, S1, host};

/// What drains stores, as SERIALIZE does; the host need not have that. What else it asks for is
/// there already: no block outlives a change of its code.
const MFENCE: [u8; 3] = [0x0f, 0xae, 0xf0];

impl Emitter<'_> {
    pub(crate) fn emit_step(&mut self, step: &Step) {
        match step.action {
            Action::Nothing => {}
            Action::Copy => self.copy(step),
            Action::Lea => self.load_address(step),
            Action::Jump => self.jump_to(step.iced.near_branch_target()),
            Action::Branch(code) => self.branch_to(code, step.iced.near_branch_target()),
            Action::FollowedJump => self.follow(step, None),
            Action::FollowedBranch(exit) => self.follow(step, Some(exit)),
            Action::Counted(opcode) => self.counted(step, opcode),
            Action::Call => self.call(step),
            Action::JumpIndirect => self.jump_indirect(step),
            Action::CallIndirect => self.call_indirect(step),
            Action::Return(released) => self.return_near(step, released),
            Action::Push => self.push(step),
            Action::Pop => self.pop(step),
            Action::Leave => self.leave(step),
            Action::PushFlags => self.push_flags(step),
            Action::PopFlags => self.pop_flags(step),
            Action::SetInterruptFlag(is_set) => self.set_interrupt_flag(is_set),
            Action::SetDirectionFlag(is_set) => {
                let value = if is_set { rflags::DF as u32 } else { 0 };
                self.asm.store32_imm(context!(direction_flag), value);
            }
            Action::SetAlignmentFlag(is_set) => {
                let value = if is_set { rflags::AC as u32 } else { 0 };
                self.asm.store32_imm(context!(alignment_flag), value);
                self.switch_stack(is_set);
            }
            Action::String(operation) => self.string(operation),
            Action::BitString => self.bit_string(step),
            Action::AbsoluteMov => self.absolute_mov(step),
            Action::TranslateByte => self.translate_byte(step),
            Action::SystemCall => self.system_call(step),
            Action::SystemReturn => self.system_return(),
            Action::SwapGs => self.swap_gs(),
            Action::ReadBase => self.read_base(step),
            Action::WriteBase => self.write_base(step),
            Action::ReadFaultAddress => self.read_fault_address(step),
            Action::ReadSelector => self.read_selector(step),
            Action::Serialize => self.asm.raw(&MFENCE),
            Action::ReadTime => self.read_time(step),
            Action::ReadProtectionKeys => self.read_protection_keys(),
            Action::Handler => self.handler(),
        }
    }

    /// Calls with EFLAGS.AC and without must not return to each other: each has a stack of its own.
    fn switch_stack(&mut self, is_set: bool) {
        use cpu::mmu::View;
        match (self.around.view, is_set) {
            (View::Supervisor, true) => {
                self.asm.store(context!(saved_rsp), HOST_RSP);
                self.asm.load(HOST_RSP, context!(ac_stack_bottom));
            }
            (View::SupervisorAc, false) => self.asm.load(HOST_RSP, context!(saved_rsp)),
            _ => {}
        }
    }

    /// Has the interpreter's handler execute the step.
    pub(crate) fn handler(&mut self) {
        self.want_spilled();
        let number = self.around.first_handler + self.handlers.len() as u32;
        self.handlers.push(self.current);
        self.mark(self.current, MarkedFlags::Spilled);
        self.asm.constant(S1, u64::from(number));
        self.asm.call_to(self.around.thunks.handler);
        // The return address belongs to this step still.
        self.mark(self.current, MarkedFlags::Spilled);
        self.asm.raw(&[0x90]);
        self.flags = Flags::Spilled;
        self.delta_in_s0 = None;
    }

    // Copies.

    fn copy(&mut self, step: &Step) {
        let Some(encoding) = Encoding::parse(step.form, self.encoding(step), self.around.is_64)
        else {
            return self.handler();
        };
        let fields = Fields::of(step, &encoding);
        if fields.has_unencodable_byte() {
            return self.handler();
        }
        let memory = step.has_memory.then(|| {
            let is_write = writes_memory(step)
                || step.row.memory.shape == MemoryShape::BitString
                    && step.iced.mnemonic() != Mnemonic::Bt;
            self.operand(step, access_bytes(step), is_write)
        });
        let effect = step.effect;
        if matches!(effect, Effect::Reads | Effect::Changes)
            || step.row.class == decoder::Class::MulDiv
        {
            self.want_flags();
        }
        self.emit_copy(step, &encoding, &fields, memory);
        if matches!(effect, Effect::Changes | Effect::Replaces) {
            self.flags_produced();
        }
    }

    fn emit_copy(
        &mut self,
        step: &Step,
        encoding: &Encoding<'_>,
        fields: &Fields,
        memory: Option<Mem>,
    ) {
        let mut scratch = Scratch::new(memory);
        let mut operands = Operands {
            reg: encoding.reg,
            rm: Rm::Reg(encoding.rm),
            vvvv: encoding.vvvv,
            opcode_register: None,
            has_low_byte: fields.has_low_byte,
            has_high_byte: fields.has_high_byte,
        };
        let mut stores = [None; 2];
        // Sources first: what is only written may then share their scratch registers.
        for is_source_pass in [true, false] {
            for field in fields.iter().filter(|field| field.is_source == is_source_pass) {
                let number = if field.is_high_byte {
                    field.guest
                } else if let Some(number) = host(field.guest) {
                    number
                } else {
                    let register = scratch.take(field.guest);
                    if field.is_source {
                        self.asm.load(register, in_context(field.guest));
                    }
                    if register == S0 {
                        self.delta_in_s0 = None;
                    }
                    if field.is_target {
                        note_store(&mut stores, field.guest, register);
                    }
                    register
                };
                match field.place {
                    Place::Reg => operands.reg = number,
                    Place::Rm => operands.rm = Rm::Reg(number),
                    Place::Vvvv => operands.vvvv = number,
                    Place::Opcode => operands.opcode_register = Some(number),
                }
            }
        }
        if let Some(memory) = memory {
            operands.rm = Rm::Mem(memory);
        }
        self.emit_encoding(step, encoding, operands);
        for (guest, register) in stores.into_iter().flatten() {
            self.asm.store(in_context(guest), register);
        }
    }

    fn emit_encoding(&mut self, step: &Step, encoding: &Encoding<'_>, operands: Operands) {
        // XCHG with the accumulator in one byte: the accumulator may be another register here.
        let is_short_exchange = encoding.opcode & 0xf8 == 0x90
            && step.iced.mnemonic() == Mnemonic::Xchg
            && operands.opcode_register.is_some();
        // INC and DEC of 32-bit code in one byte are REX prefixes in the host's mode.
        let is_short_increment = !self.around.is_64
            && matches!(encoding.opcode, 0x40..=0x4f)
            && matches!(step.iced.mnemonic(), Mnemonic::Inc | Mnemonic::Dec);
        if is_short_exchange || is_short_increment {
            let number = operands.opcode_register.unwrap_or(RAX);
            let (opcode, reg) = match step.iced.mnemonic() {
                Mnemonic::Xchg => (0x87, RAX),
                Mnemonic::Inc => (0xff, 0),
                _ => (0xff, 1),
            };
            let size = step.iced.op0_register().size();
            if size == 2 {
                self.asm.byte(0x66);
            }
            self.asm.op(size == 8, &[opcode], reg, Rm::Reg(number));
            return;
        }
        let is_done = encoding.emit(&mut self.asm, operands);
        if is_done {
            return;
        }
        // A high byte register beside a host address: RDI lends itself for the address.
        let Rm::Mem(memory) = operands.rm else { return };
        let spare = context!(spare);
        self.asm.lea(S0, memory);
        self.delta_in_s0 = None;
        self.asm.store(spare, RDI);
        self.asm.mov(RDI, S0);
        let operands = Operands { rm: Rm::Mem(Mem::at(RDI)), ..operands };
        encoding.emit(&mut self.asm, operands);
        self.asm.load(RDI, spare);
    }

    fn load_address(&mut self, step: &Step) {
        let to = step.iced.op0_register();
        let number = to.full_register().number() as Number;
        let is_wide = to.size() == 8;
        let saved = step.iced.memory_segment();
        let _ = saved;
        if let Some(address) = self.constant_address(step) {
            let address = if is_wide { address } else { address & 0xffff_ffff };
            let register = host(number).unwrap_or(S1);
            self.asm.constant(register, address);
            return self.write(number, register);
        }
        let mut plain = *step;
        plain.iced.set_segment_prefix(Register::None);
        let (base, index) = (plain.iced.memory_base(), plain.iced.memory_index());
        let is_address_wide = self.around.is_64 && base.size() != 4 && index.size() != 4;
        let target = host(number);
        let is_simple = |register: Register| {
            register == Register::None || host(register.number() as Number).is_some()
        };
        if let Some(target) = target
            && is_simple(base)
            && is_simple(index)
        {
            let mem = Mem {
                base: (base != Register::None).then(|| host(base.number() as Number)).flatten(),
                index: (index != Register::None)
                    .then(|| host(index.number() as Number))
                    .flatten()
                    .map(|number| (number, plain.iced.memory_index_scale().trailing_zeros() as u8)),
                disp: plain.iced.memory_displacement64() as i32,
                is_gs: false,
            };
            if is_wide && is_address_wide {
                return self.asm.lea(target, mem);
            }
            return self.asm.lea32(target, mem);
        }
        self.offset(&plain);
        if !is_wide {
            self.asm.mov32(S0, S0);
        }
        self.write(number, S0);
    }

    // Control.

    fn counted(&mut self, step: &Step, opcode: u8) {
        let target = step.iced.near_branch_target();
        let next = step.iced.next_ip();
        self.want_flags();
        if target <= self.rip_here() {
            self.poll();
        }
        let is_narrow = matches!(
            step.iced.code(),
            iced_x86::Code::Jecxz_rel8_32
                | iced_x86::Code::Jecxz_rel8_64
                | iced_x86::Code::Loop_rel8_32_ECX
                | iced_x86::Code::Loop_rel8_64_ECX
                | iced_x86::Code::Loope_rel8_32_ECX
                | iced_x86::Code::Loope_rel8_64_ECX
                | iced_x86::Code::Loopne_rel8_32_ECX
                | iced_x86::Code::Loopne_rel8_64_ECX
        );
        if is_narrow {
            self.asm.byte(0x67);
        }
        // Over the jump of the path that is not taken.
        self.asm.raw(&[opcode, 5]);
        let fall = self.asm.jmp();
        let taken = self.asm.jmp();
        self.link_at(fall, next, true);
        self.link_at(taken, target, true);
    }

    fn call(&mut self, step: &Step) {
        let target = step.iced.near_branch_target();
        let next = step.iced.next_ip();
        if target <= self.rip_here() {
            self.poll();
        }
        self.push_return_address(step, next);
        self.move_stack(-self.word());
        self.want_spilled();
        self.flags = Flags::Spilled;
        let patch = self.asm.call();
        self.link_at(patch, target, true);
        self.return_site(next);
    }

    /// Bytes of a stack slot.
    fn word(&self) -> i32 {
        if self.around.is_64 { 8 } else { 4 }
    }

    fn push_return_address(&mut self, step: &Step, next: u64) {
        let slot = self.stack_slot(step, -self.word(), true);
        if self.around.is_64 && i32::try_from(next as i64).is_err() {
            self.asm.constant(S1, next);
            self.asm.store(slot, S1);
        } else {
            self.asm.op(self.around.is_64, &[0xc7], 0, Rm::Mem(slot));
            self.asm.raw(&(next as u32).to_le_bytes());
        }
    }

    /// Where the stack slot at `displacement` from RSP is for host code.
    fn stack_slot(&mut self, step: &Step, displacement: i32, is_write: bool) -> Mem {
        let size = self.word() as u32;
        self.by_base(step.accesses[1], RSP, displacement, size, is_write)
    }

    fn load_word(&mut self, to: Number, from: Mem) {
        if self.around.is_64 { self.asm.load(to, from) } else { self.asm.load32(to, from) }
    }

    fn store_word(&mut self, to: Mem, from: Number) {
        if self.around.is_64 { self.asm.store(to, from) } else { self.asm.store32(to, from) }
    }

    /// Puts the target of an indirect transfer into S0.
    fn load_target(&mut self, step: &Step) {
        if step.iced.op0_kind() == OpKind::Register {
            let number = step.iced.op0_register().number() as Number;
            let register = self.read(number, S0);
            if self.around.is_64 {
                self.asm.mov(S0, register)
            } else {
                self.asm.mov32(S0, register)
            }
        } else {
            let operand = self.operand(step, self.word() as u32, false);
            self.load_word(S0, operand);
        }
        self.delta_in_s0 = None;
    }

    fn jump_indirect(&mut self, step: &Step) {
        self.load_target(step);
        self.want_spilled();
        self.flags = Flags::Spilled;
        self.look_up_jump(false);
        let codes = self.jump_slot(self.offsets.jump_codes);
        self.asm.jmp_rm(Rm::Mem(codes));
    }

    fn call_indirect(&mut self, step: &Step) {
        let next = step.iced.next_ip();
        self.load_target(step);
        self.want_spilled();
        self.flags = Flags::Spilled;
        self.remark();
        // First: a target that is none must leave the stack alone.
        self.look_up_jump(true);
        let codes = self.jump_slot(self.offsets.jump_codes);
        self.asm.load(S1, codes);
        self.asm.store(context!(spare), S1);
        self.push_return_address(step, next);
        self.move_stack(-self.word());
        self.asm.op(false, &[0xff], 2, Rm::Mem(context!(spare)));
        self.return_site(next);
    }

    fn return_near(&mut self, step: &Step, released: u16) {
        let slot = self.stack_slot(step, 0, false);
        self.load_word(S0, slot);
        self.delta_in_s0 = None;
        let bytes = self.word() + i32::from(released);
        self.move_stack(bytes);
        self.want_spilled();
        self.flags = Flags::Spilled;
        // For a target that turns out not to be one.
        let undo = Some((step.iced.ip(), i64::from(bytes)));
        let link = self.add_link(0, 0, Entry::Guarded, undo);
        self.asm.constant(S1, u64::from(self.around.first_link) + link as u64);
        self.asm.ret();
    }

    // Stack.

    fn push(&mut self, step: &Step) {
        let word = self.word();
        if step.iced.op0_kind() == OpKind::Memory {
            let operand = self.operand(step, word as u32, false);
            self.load_word(S1, operand);
            self.asm.store(context!(spare), S1);
            let slot = self.stack_slot(step, -word, true);
            self.asm.load(S1, context!(spare));
            self.store_word(slot, S1);
        } else if step.iced.op0_kind() == OpKind::Register {
            let slot = self.stack_slot(step, -word, true);
            let number = step.iced.op0_register().number() as Number;
            let register = self.read(number, S1);
            self.store_word(slot, register);
        } else {
            let slot = self.stack_slot(step, -word, true);
            let value = step.iced.immediate(0) as u32;
            self.asm.op(self.around.is_64, &[0xc7], 0, Rm::Mem(slot));
            self.asm.raw(&value.to_le_bytes());
        }
        self.move_stack(-word);
    }

    fn pop(&mut self, step: &Step) {
        let slot = self.stack_slot(step, 0, false);
        let number = step.iced.op0_register().number() as Number;
        if number == RSP {
            return self.load_word(GUEST_RSP, slot);
        }
        match host(number) {
            Some(register) => self.load_word(register, slot),
            None => {
                self.load_word(S1, slot);
                self.write(number, S1);
            }
        }
        self.move_stack(self.word());
    }

    fn leave(&mut self, step: &Step) {
        let word = self.word();
        let slot = self.by_base(step.accesses[1], RBP, 0, word as u32, false);
        self.load_word(S1, slot);
        let above = Mem::at(RBP).with_disp(word);
        if self.around.is_64 {
            self.asm.lea(GUEST_RSP, above);
        } else {
            self.asm.lea32(GUEST_RSP, above);
        }
        self.asm.mov(RBP, S1);
    }

    // Flags.

    fn push_flags(&mut self, step: &Step) {
        self.want_spilled();
        self.free_flags();
        self.delta_in_s0 = None;
        self.gather_flags(S1);
        // RF is not pushed.
        self.asm.alu_imm(false, Alu::And, Rm::Reg(S1), !(rflags::RF | rflags::VM) as i32);
        self.asm.store(context!(spare), S1);
        let slot = self.stack_slot(step, -8, true);
        self.asm.load(S1, context!(spare));
        self.asm.store(slot, S1);
        self.move_stack(-8);
    }

    /// POPF at CPL 0 without a change but of the status flags, IF and DF, and with nothing in the
    /// mailbox; everything else is the handler's.
    fn pop_flags(&mut self, step: &Step) {
        self.want_spilled();
        self.free_flags();
        let slot = self.stack_slot(step, 0, false);
        self.load_word(S1, slot);
        self.asm.store(context!(spare), S1);
        // What must be as it is.
        self.delta_in_s0 = None;
        self.asm.mov32(S0, S1);
        self.asm.alu32(Alu::Xor, S0, Rm::Mem(context!(system_flags)));
        self.asm.alu32(Alu::Xor, S0, Rm::Mem(context!(alignment_flag)));
        let free = rflags::STATUS | rflags::IF | rflags::DF;
        self.asm.op(false, &[0xf7], 0, Rm::Reg(S0));
        self.asm.raw(&(!free as u32).to_le_bytes());
        let other = self.asm.jcc(cc::NE);
        self.asm.load(S0, context!(events));
        self.asm.alu_imm(false, Alu::Cmp, Rm::Mem(Mem::at(S0)), 0);
        let pending = self.asm.jcc(cc::NE);
        self.store_masked(rflags::IF as i32, context!(interrupt_flag));
        self.store_masked(rflags::DF as i32, context!(direction_flag));
        self.scatter_status();
        self.move_stack(8);
        let done = self.asm.jmp();
        self.asm.patch_here(other);
        self.asm.patch_here(pending);
        self.handler();
        self.asm.patch_here(done);
        self.flags = Flags::Spilled;
    }

    /// Stores the bits `mask` of S1. Destroys S0.
    pub(crate) fn store_masked(&mut self, mask: i32, to: Mem) {
        self.asm.mov32(S0, S1);
        self.asm.alu_imm(false, Alu::And, Rm::Reg(S0), mask);
        self.asm.store32(to, S0);
    }

    /// STI with something in the mailbox is the handler's; with nothing there, its shadow does not
    /// show.
    fn set_interrupt_flag(&mut self, is_set: bool) {
        if !is_set {
            return self.asm.store32_imm(context!(interrupt_flag), 0);
        }
        self.want_spilled();
        self.free_flags();
        self.delta_in_s0 = None;
        self.asm.load(S0, context!(events));
        self.asm.alu_imm(false, Alu::Cmp, Rm::Mem(Mem::at(S0)), 0);
        let pending = self.asm.jcc(cc::NE);
        self.asm.store32_imm(context!(interrupt_flag), rflags::IF as u32);
        let done = self.asm.jmp();
        self.asm.patch_here(pending);
        self.handler();
        self.asm.patch_here(done);
        self.flags = Flags::Spilled;
    }
}

/// The two scratch registers, as far as they are free for operands.
struct Scratch {
    free: [Option<Number>; 2],
    taken: [(Number, Number); 2],
    count: usize,
}

impl Scratch {
    fn new(memory: Option<Mem>) -> Self {
        let is_s0_free = memory.is_none();
        Self { free: [Some(S1), is_s0_free.then_some(S0)], taken: [(0xff, 0); 2], count: 0 }
    }

    /// A register for guest register `guest`: the one it has, a free one, or one that is shared
    /// with a source.
    fn take(&mut self, guest: Number) -> Number {
        if let Some(&(_, register)) = self.taken.iter().find(|(taken, _)| *taken == guest) {
            return register;
        }
        let register = self.free.iter_mut().find_map(Option::take).unwrap_or(match self.count {
            // Two targets beside a source: the address is read before either is written.
            1 => S0,
            _ => S1,
        });
        if let Some(slot) = self.taken.get_mut(self.count) {
            *slot = (guest, register);
        }
        self.count += 1;
        register
    }
}

fn note_store(stores: &mut [Option<(Number, Number)>; 2], guest: Number, register: Number) {
    if stores.iter().flatten().any(|(known, _)| *known == guest) {
        return;
    }
    if let Some(slot) = stores.iter_mut().find(|slot| slot.is_none()) {
        *slot = Some((guest, register));
    }
}
