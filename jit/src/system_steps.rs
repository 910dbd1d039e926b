//! Steps of operating systems: SYSCALL, SYSRET, SWAPGS, segment bases and selectors, RDTSC, RDPKRU.
//!
//! A system call stays in translated code: SYSCALL goes to the kernel's block by the jump cache of
//! the supervisor, SYSRETQ back by that of CPL 3. The segments and the mode that the CPU's state
//! has are caught up with when the code is left or calls a helper ([`crate::vcpu::Inner::settle`]).
//! Whatever is unusual is the handler's.

use std::mem::offset_of;

use cpu::mmu::View;
use cpu::state::rflags;
use iced_x86::Mnemonic;

use crate::asm::{Alu, Mem, Patch, Rm, cc};
use crate::context::{CALLED, Context, RETURNED, view_offsets};
use crate::emit::{Emitter, context};
use crate::flow::Flags;
use crate::plan::Step;
use crate::registers::{HOST_RSP, Number, R11, RAX, RCX, RDX, S0, S1, host};

const LFENCE: [u8; 3] = [0x0f, 0xae, 0xe8];
const RDTSC: [u8; 2] = [0x0f, 0x31];
/// Extensions of the opcode that shifts by a constant.
const SHL: u8 = 4;
const SHR: u8 = 5;
const SAR: u8 = 7;
/// Flags in R11 with which SYSRET is the handler's.
const UNUSUAL: u64 = rflags::TF | rflags::IOPL | rflags::AC;
/// What SYSRET loads into [`Context::system_flags`].
const RETURNED_FLAGS: u64 = rflags::NT | rflags::VIF | rflags::VIP | rflags::ID;
/// Addresses below `1 << LOW_BITS` are canonical in all paging modes.
const LOW_BITS: u8 = 47;

impl Emitter<'_> {
    pub(crate) fn system_call(&mut self, step: &Step) {
        self.begin_system_step();
        let slow = self.unless_system_calls();
        self.asm.constant(RCX, step.iced.next_ip());
        self.gather_flags(R11);
        // The flags that the mask keeps; IF, DF and AC it never does here.
        for (kept, flags) in [
            (context!(kept_status), context!(flags)),
            (context!(kept_flags), context!(system_flags)),
        ] {
            self.asm.load32(S0, kept);
            self.asm.op(false, &[0x21], S0, Rm::Mem(flags));
        }
        for flag in [context!(interrupt_flag), context!(direction_flag), context!(alignment_flag)] {
            self.asm.store32_imm(flag, 0);
        }
        self.asm.store32_imm(context!(system_calls), CALLED);
        self.asm.store32_imm(context!(cpl), 0);
        self.asm.load(S0, context!(system_entry));
        self.change_privilege(View::Supervisor);
        self.asm.patch_here(slow);
        self.finish_slowly();
    }

    pub(crate) fn system_return(&mut self) {
        if self.around.view != View::Supervisor {
            return self.handler();
        }
        self.begin_system_step();
        let no_calls = self.unless_system_calls();
        self.asm.mov(S0, RCX);
        self.shift(S0, SHR, LOW_BITS);
        let high = self.asm.jcc(cc::NE);
        self.asm.op(false, &[0xf7], 0, Rm::Reg(R11));
        self.asm.raw(&(UNUSUAL as u32).to_le_bytes());
        let unusual = self.asm.jcc(cc::NE);
        self.asm.load(S0, context!(events));
        self.asm.alu_imm(false, Alu::Cmp, Rm::Mem(Mem::at(S0)), 0);
        let pending = self.asm.jcc(cc::NE);
        self.asm.mov32(S1, R11);
        self.store_masked(rflags::IF as i32, context!(interrupt_flag));
        self.store_masked(rflags::DF as i32, context!(direction_flag));
        self.asm.mov32(S0, S1);
        self.asm.alu_imm(false, Alu::And, Rm::Reg(S0), RETURNED_FLAGS as i32);
        self.asm.alu_imm(false, Alu::Or, Rm::Reg(S0), rflags::FIXED as i32);
        self.asm.store32(context!(system_flags), S0);
        self.scatter_status();
        self.asm.alu_imm(false, Alu::Or, Rm::Mem(context!(system_calls)), RETURNED as i32);
        self.asm.store32_imm(context!(cpl), 3);
        self.asm.mov(S0, RCX);
        self.change_privilege(View::User);
        for slow in [no_calls, high, unusual, pending] {
            self.asm.patch_here(slow);
        }
        self.finish_slowly();
    }

    fn begin_system_step(&mut self) {
        self.want_spilled();
        self.free_flags();
        self.delta_in_s0 = None;
    }

    fn unless_system_calls(&mut self) -> Patch {
        self.asm.alu_imm(false, Alu::Cmp, Rm::Mem(context!(has_system_calls)), 0);
        self.asm.jcc(cc::E)
    }

    /// Goes to the address in S0 as `view`, without any return to predict.
    fn change_privilege(&mut self, view: View) {
        self.asm.load(HOST_RSP, context!(stack_bottom));
        let offsets = view_offsets(view);
        self.look_up_jump_of(offsets, false);
        let codes = self.jump_slot(offsets.jump_codes);
        self.asm.jmp_rm(Rm::Mem(codes));
    }

    fn finish_slowly(&mut self) {
        self.flags = Flags::Spilled;
        self.handler();
    }

    /// All of RFLAGS, which are in the context, in `to`. Destroys S0.
    pub(crate) fn gather_flags(&mut self, to: Number) {
        self.asm.movzx8(to, Rm::Mem(Mem::context(offset_of!(Context, flags) + 1)));
        self.asm.movzx8(S0, Rm::Mem(context!(flags)));
        self.asm.shl32(S0, 11);
        self.asm.alu32(Alu::Or, to, Rm::Reg(S0));
        for field in [
            context!(interrupt_flag),
            context!(direction_flag),
            context!(alignment_flag),
            context!(system_flags),
        ] {
            self.asm.alu32(Alu::Or, to, Rm::Mem(field));
        }
    }

    /// The status flags of RFLAGS in S1 to the context. Destroys both scratch registers.
    pub(crate) fn scatter_status(&mut self) {
        // CF, PF, AF, ZF, SF as LAHF has them; OF in the low byte.
        self.asm.mov32(S0, S1);
        self.asm.alu_imm(false, Alu::And, Rm::Reg(S0), 0xd5);
        self.asm.shl32(S0, 8);
        self.asm.shr32(S1, 11);
        self.asm.alu_imm(false, Alu::And, Rm::Reg(S1), 1);
        self.asm.alu32(Alu::Or, S0, Rm::Reg(S1));
        self.asm.store32(context!(flags), S0);
    }

    // Bases.

    pub(crate) fn swap_gs(&mut self) {
        self.delta_in_s0 = None;
        self.asm.load(S0, context!(gs_base));
        self.asm.load(S1, context!(kernel_gs_base));
        self.asm.store(context!(kernel_gs_base), S0);
        self.asm.store(context!(gs_base), S1);
    }

    fn base_of(step: &Step) -> Mem {
        match step.iced.mnemonic() {
            Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => context!(fs_base),
            _ => context!(gs_base),
        }
    }

    pub(crate) fn read_base(&mut self, step: &Step) {
        let register = step.iced.op0_register();
        let number = register.full_register().number() as Number;
        let to = host(number).unwrap_or(S1);
        if register.size() == 8 {
            self.asm.load(to, Self::base_of(step));
        } else {
            self.asm.load32(to, Self::base_of(step));
        }
        self.write(number, to);
    }

    pub(crate) fn write_base(&mut self, step: &Step) {
        let register = step.iced.op0_register();
        let number = register.full_register().number() as Number;
        if register.size() == 4 {
            let from = self.read(number, S1);
            self.asm.mov32(S1, from);
            return self.asm.store(Self::base_of(step), S1);
        }
        self.begin_system_step();
        let from = self.read(number, S1);
        self.asm.mov(S0, from);
        // Addresses that are canonical with 57 bits only are the handler's.
        for extension in [SHL, SAR] {
            self.shift(S0, extension, 63 - LOW_BITS);
        }
        self.asm.alu(Alu::Cmp, S0, Rm::Reg(from));
        let slow = self.asm.jcc(cc::NE);
        self.asm.store(Self::base_of(step), from);
        let done = self.asm.jmp();
        self.asm.patch_here(slow);
        self.finish_slowly();
        self.asm.patch_here(done);
    }

    pub(crate) fn read_fault_address(&mut self, step: &Step) {
        let number = step.iced.op0_register().number() as Number;
        let to = host(number).unwrap_or(S1);
        self.asm.load(to, context!(cr2));
        self.write(number, to);
    }

    pub(crate) fn read_selector(&mut self, step: &Step) {
        let number = step.iced.op0_register().full_register().number() as Number;
        let segment = step.iced.op1_register().number();
        let to = host(number).unwrap_or(S1);
        self.asm.load32(to, Mem::context(offset_of!(Context, selectors) + 4 * segment));
        self.write(number, to);
    }

    pub(crate) fn read_protection_keys(&mut self) {
        self.begin_system_step();
        self.asm.alu_imm(false, Alu::Cmp, Rm::Reg(RCX), 0);
        let slow = self.asm.jcc(cc::NE);
        self.asm.load32(RAX, context!(pkru));
        self.asm.alu32(Alu::Xor, RDX, Rm::Reg(RDX));
        let done = self.asm.jmp();
        self.asm.patch_here(slow);
        self.finish_slowly();
        self.asm.patch_here(done);
    }

    /// The guest's counter from the host's, as [`cpu::platform::LinearTime`] says.
    pub(crate) fn read_time(&mut self, step: &Step) {
        self.begin_system_step();
        self.asm.load(S0, context!(time.multiplier));
        self.asm.alu(Alu::Or, S0, Rm::Reg(S0));
        let slow = self.asm.jcc(cc::E);
        if step.iced.mnemonic() == Mnemonic::Rdtscp {
            // Not before what comes before it. The host need not have RDTSCP.
            self.asm.raw(&LFENCE);
        }
        self.asm.raw(&RDTSC);
        self.shift(RDX, SHL, 32);
        self.asm.alu(Alu::Or, RAX, Rm::Reg(RDX));
        self.asm.alu(Alu::Sub, RAX, Rm::Mem(context!(time.start_ticks)));
        self.asm.op(true, &[0xf7], 4, Rm::Reg(S0));
        self.shift(RAX, SHR, 32);
        self.shift(RDX, SHL, 32);
        self.asm.alu(Alu::Or, RAX, Rm::Reg(RDX));
        self.asm.alu(Alu::Add, RAX, Rm::Mem(context!(time.start_ns)));
        self.asm.mov(RDX, RAX);
        self.shift(RDX, SHR, 32);
        self.asm.mov32(RAX, RAX);
        if step.iced.mnemonic() == Mnemonic::Rdtscp {
            self.asm.load32(RCX, context!(tsc_aux));
        }
        let done = self.asm.jmp();
        self.asm.patch_here(slow);
        self.finish_slowly();
        self.asm.patch_here(done);
    }

    /// Shifts a register by a constant; `extension` is the opcode's.
    fn shift(&mut self, register: Number, extension: u8, count: u8) {
        self.asm.op(true, &[0xc1], extension, Rm::Reg(register));
        self.asm.byte(count);
    }
}
