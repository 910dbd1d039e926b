//! Names for offsets in the translator's context, found by translating code that is known to use
//! each: the layout is the translator's own business.

use iced_x86::{Instruction, Mnemonic, Register};

use crate::block::{self, context_displacement};
use crate::entry::{Code, Entry, entry};

/// A field: name, first byte, bytes.
#[derive(Clone, Copy)]
struct Field(&'static str, u64, u64);

/// The fields that were found.
#[derive(Clone)]
pub struct Names(Vec<Field>);

impl Names {
    /// The field that `offset` is in, and where that begins.
    pub fn of(&self, offset: u64) -> Option<(&'static str, u64)> {
        let within = |field: &&Field| offset.wrapping_sub(field.1) < field.2;
        self.0.iter().find(within).map(|field| (field.0, field.1))
    }
}

/// Whether a host instruction names the field.
type Pick = fn(&Instruction) -> bool;

/// Loads and stores by a fixed offset.
fn is_fixed(host: &Instruction) -> bool {
    host.memory_base() == Register::None && host.memory_index() == Register::None
}

fn loads_second_scratch(host: &Instruction) -> bool {
    is_fixed(host) && host.mnemonic() == Mnemonic::Mov && host.op0_register() == Register::R15
}

fn indexes_tlb(host: &Instruction) -> bool {
    host.mnemonic() == Mnemonic::Xor && host.memory_base() == Register::R15
}

fn stores_constant(host: &Instruction) -> bool {
    is_fixed(host)
        && matches!(host.mnemonic(), Mnemonic::Mov | Mnemonic::And | Mnemonic::Or)
        && host.op_kind(0) == iced_x86::OpKind::Memory
        && host.op_kind(1) != iced_x86::OpKind::Register
}

fn stores_first_scratch(host: &Instruction) -> bool {
    is_fixed(host) && host.mnemonic() == Mnemonic::Mov && host.op1_register() == Register::R14
}

fn loads_first_scratch(host: &Instruction) -> bool {
    is_fixed(host) && host.mnemonic() == Mnemonic::Mov && host.op0_register() == Register::R14
}

fn compares(host: &Instruction) -> bool {
    use iced_x86::OpKind;
    let is_short = matches!(host.op_kind(1), OpKind::Immediate8to32 | OpKind::Immediate8to64);
    is_fixed(host) && host.mnemonic() == Mnemonic::Cmp && is_short
}

fn looks_up(host: &Instruction) -> bool {
    host.mnemonic() == Mnemonic::Cmp && host.memory_index() == Register::R15
}

fn jumps(host: &Instruction) -> bool {
    host.mnemonic() == Mnemonic::Jmp && host.memory_index() == Register::R15
}

fn checks_page(host: &Instruction) -> bool {
    is_fixed(host) && host.code() == iced_x86::Code::Cmp_rm8_imm8
}

fn is_stack_tag(host: &Instruction) -> bool {
    is_fixed(host) && host.mnemonic() == Mnemonic::Xor && host.op0_register() == Register::R14
}

fn stores_flags(host: &Instruction) -> bool {
    is_fixed(host) && host.mnemonic() == Mnemonic::Mov && host.op1_register() == Register::EAX
}

fn stores_second_scratch(host: &Instruction) -> bool {
    is_fixed(host) && host.mnemonic() == Mnemonic::Mov && host.op1_register() == Register::R15
}

/// Bytes of a table that fills what is not named before it.
const TABLE: u64 = 1 << 17;
/// Bytes of a word of a jump cache's entry.
const JUMPS: u64 = 8;

/// Finds the names.
pub fn find() -> Names {
    use iced_x86::code_asm::*;
    let load: Code = |a| a.mov(rax, qword_ptr(rbx));
    let jump: Code = |a| a.jmp(r11);
    let mut fields = Vec::new();
    let mut add = |name, back: u64, size, entry: Entry, pick: Pick| {
        let block = block::of(&entry);
        let all = block::decode(&block.bytes, 0, block.hot_end);
        let found = all.iter().filter(|host| pick(host)).find_map(context_displacement);
        let Some(first) = found else { return println!("{name}: not found") };
        fields.push(Field(name, first.wrapping_sub(back), size));
    };
    add("valid", 0, 1 << 16, entry("valid", |a| a.nop()), checks_page);
    add("gpr", 13 * 8, 128, entry("gpr", |a| a.mov(rax, r13)), loads_second_scratch);
    let spilling: Code = |a| {
        a.stc()?;
        a.mov(rax, qword_ptr(rbx))
    };
    add("flags", 0, 4, entry("flags", spilling), stores_flags);
    add("interrupt_flag", 0, 4, entry("cli", |a| a.cli()), stores_constant);
    add("direction_flag", 0, 4, entry("cld", |a| a.cld()), stores_constant);
    add("alignment_flag", 0, 4, entry("clac", |a| a.clac()), stores_constant);
    add("fs_base", 0, 8, entry("fs", |a| a.mov(rax, qword_ptr(rbx).fs())), loads_second_scratch);
    add("gs_base", 0, 8, entry("gs", |a| a.mov(rax, qword_ptr(rbx).gs())), loads_second_scratch);
    add("budget", 0, 8, entry("budget", |a| a.nop()).counting(), |host| {
        is_fixed(host) && host.mnemonic() == Mnemonic::Sub
    });
    add(
        "events",
        0,
        8,
        entry("sti", |a| {
            a.sti()?;
            a.nop()
        }),
        loads_first_scratch,
    );
    add("system_flags", 0, 4, entry("popfq", |a| a.popfq()), |host| {
        is_fixed(host) && host.op0_register() == Register::R14D && host.mnemonic() == Mnemonic::Xor
    });
    add("saved_rsp", 0, 8, entry("stac", |a| a.stac()), |host| {
        host.op1_register() == Register::RSP
    });
    add("ac_stack_bottom", 0, 8, entry("stac", |a| a.stac()), |host| {
        host.op0_register() == Register::RSP
    });
    let back: Code = |a| a.jmp(cpu::testing::CODE);
    add("safepoint", 0, 8, entry("safepoint", back), loads_second_scratch);
    add("poll", 0, 4, entry("poll", jump), compares);
    let alternating: Code = |a| {
        a.mov(rax, qword_ptr(rbx))?;
        a.mov(rcx, qword_ptr(rdx))?;
        a.mov(rax, qword_ptr(rbx + 8))?;
        a.mov(rcx, qword_ptr(rdx + 8))
    };
    add("deltas", 0, 64, entry("deltas", alternating), stores_first_scratch);
    add("spare", 0, 32, entry("spare", |a| a.movsq()), stores_second_scratch);
    add("stack", 16, 48, entry("stack", |a| a.push(rax)), is_stack_tag);
    for (is_user, names) in [
        (false, ["tlb", "jump_rips", "jump_codes"]),
        (true, ["tlb_user", "jump_rips_user", "jump_codes_user"]),
    ] {
        let of = |code| if is_user { entry("", code).user() } else { entry("", code) };
        add(names[1], 0, JUMPS, of(jump), looks_up);
        add(names[2], 0, JUMPS, of(jump), jumps);
        add(names[0], 0, TABLE, of(load), indexes_tlb);
    }
    // The tables are large and come last: a name that lies in one is its own.
    fields.sort_by_key(|field| field.2);
    Names(fields)
}
