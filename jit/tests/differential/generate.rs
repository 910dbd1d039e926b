//! Random programs.

use cpu::state::rflags;
use cpu::testing::forms::{self, Chooser, build, encode};
use cpu::testing::random::Random;
use cpu::testing::{CODE, STACK};
use decoder::Row;
use iced_x86::{
    Code, Decoder, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic, OpAccess, OpKind,
    Register,
};

use crate::address::{self, Knowledge};
use crate::case::{Case, Start, random_fpu};
use crate::pool::Pool;
use crate::program::{Aim, Item, Program, set_absolute};
use crate::quirk::Quirk;
use crate::world::{COUNTER, HIGH, Mode, PAGE, Rights, STACK_PAGES, TABLE, TOP, World};

const RSP: usize = 4;
const RBP: usize = 5;
/// Slots of the table of addresses.
const TABLE_SLOTS: usize = 8;

/// The case that `seed` names.
pub fn case(pool: &Pool, world: &World, mode: Mode, seed: u64) -> Case {
    let mut random = Random::new(seed ^ (mode as u64) << 56);
    let is_risky = random.chance(40);
    let knowledge = knowledge(&mut random, mode, is_risky);
    let start = start(&mut random, mode, &knowledge);
    let mut generator = Generator::new(random, pool, world, mode, knowledge);
    generator.program(start.turns);
    Case { seed, mode, program: generator.program, start }
}

/// A program of one instruction of the form `row`, with its memory operand in memory if it may be;
/// `None` if there is no such instruction.
pub fn case_of_form(
    pool: &Pool,
    world: &World,
    mode: Mode,
    row: &Row,
    (wants_memory, seed): (bool, u64),
) -> Option<Case> {
    let mut random = Random::new(seed ^ (row.code as u64) << 20 ^ (mode as u64) << 56);
    let knowledge = knowledge(&mut random, mode, false);
    let mut start = start(&mut random, mode, &knowledge);
    (start.turns, start.runs, start.is_limited) = (1, 2, false);
    start.quirk = Quirk::None;
    let mut generator = Generator::new(random, pool, world, mode, knowledge);
    generator.wants_memory = wants_memory;
    let instruction = (0..50).find_map(|_| generator.of_row(row))?;
    let has_memory = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
    let is_either = row.code.op_code().op_kinds().iter().any(|kind| forms::is_either(*kind));
    if is_either && has_memory != wants_memory || !is_either && wants_memory {
        return None;
    }
    generator.push(instruction);
    generator.program.items[0].ignored = if mode.bits() == 32 && seed & 2 != 0 { 0xff } else { 0 };
    let is_near = matches!(instruction.op0_kind(), OpKind::NearBranch32 | OpKind::NearBranch64);
    if is_near {
        generator.program.items[0].aim = Some(Aim::Branch(2));
    }
    generator.push(Instruction::with(generator.code(Code::Cqo, Code::Cdq)));
    generator.push(Instruction::with(Code::Hlt));
    generator.program.table = vec![1; TABLE_SLOTS];
    Some(Case { seed, mode, program: generator.program, start })
}

fn knowledge(random: &mut Random, mode: Mode, is_risky: bool) -> Knowledge {
    let bits = mode.bits();
    let half = if bits == 64 { random.pick(&[0, 0, HIGH, TOP]) } else { 0 };
    let mut knowledge = Knowledge {
        bits,
        is_risky,
        known: [None; 16],
        pointers: 1 << RSP,
        indices: 0,
        bases: [0; 2],
        half,
    };
    let count = if bits == 64 { 16 } else { 8 };
    for base in &mut knowledge.bases {
        let high = if bits == 64 { random.pick(&[0, 0, TOP]) } else { 0 };
        *base = high.wrapping_add(random.pick(&[0, 0x1000, 0x10_0010, 0x20_0123]));
    }
    for number in 0..count {
        knowledge.known[number] = Some(random.operand());
    }
    for _ in 0..2 + random.below(4) {
        let number = random.below(count as u64) as usize;
        let half = knowledge.any_half(random);
        let place = knowledge.place(random, half, 64, true);
        let place = if random.chance(75) { place & !15 } else { place };
        knowledge.known[number] = Some(place);
        knowledge.pointers |= 1 << number;
    }
    let stack = stack_pointer(random, is_risky);
    let stack_half = knowledge.any_half(random);
    knowledge.known[RSP] = Some(stack_half.wrapping_add(stack));
    if random.chance(70) {
        knowledge.known[RBP] = knowledge.known[RSP].map(|rsp| rsp + 8 * random.below(32));
        knowledge.pointers |= 1 << RBP;
    }
    for _ in 0..2 {
        let number = random.below(count as u64) as usize;
        if knowledge.pointers >> number & 1 == 0 {
            let small = random.below(40);
            knowledge.known[number] = Some(if random.chance(70) { small } else { !small });
            knowledge.indices |= 1 << number;
        }
    }
    if bits == 32 {
        knowledge.known.iter_mut().flatten().for_each(|value| *value &= 0xffff_ffff);
    }
    knowledge
}

fn stack_pointer(random: &mut Random, is_risky: bool) -> u64 {
    let low = STACK - STACK_PAGES * PAGE;
    match random.below(10) {
        0..=4 => STACK - 0x800 + 8 * random.below(0x20),
        5..=7 => STACK - PAGE + 8 * random.below(0x10) - 0x20,
        8 => STACK - PAGE + random.below(0x40) - 0x20,
        _ if is_risky => random.pick(&[low, STACK]) + random.below(0x20) - 0x10,
        _ => STACK - 0x100,
    }
}

fn start(random: &mut Random, mode: Mode, knowledge: &Knowledge) -> Start {
    let gpr = std::array::from_fn(|number| match knowledge.known[number] {
        Some(value) => value,
        None => random.bits(),
    });
    let mut flags = rflags::FIXED | random.bits() & (rflags::STATUS | rflags::ID);
    if mode.is_user() || random.chance(50) {
        flags |= rflags::IF;
    }
    if random.chance(10) {
        flags |= rflags::DF;
    }
    if random.chance(10) {
        flags |= rflags::AC;
    }
    let offset = match random.below(4) {
        0 => 0x100,
        1 => PAGE - 1 - random.below(0x80),
        _ => random.below(0xf00),
    };
    let is_kernel = !mode.is_user() && mode.is_paged();
    let base = knowledge.half.wrapping_add(CODE + offset);
    let pointer = (0..16).find(|n| *n != RSP && knowledge.pointers >> n & 1 != 0).unwrap_or(RSP);
    let (watched, near) = (gpr[pointer], base + random.below(40));
    let quirk = Quirk::random(random, mode, watched, near);
    Start {
        gpr,
        rflags: flags,
        fpu: random_fpu(random),
        bases: knowledge.bases,
        is_limited: mode.bits() == 32 && random.chance(15),
        rights: Rights {
            has_wp: random.chance(85),
            has_smap: is_kernel && random.chance(20),
            is_code_read_only: mode.is_paged() && random.chance(15),
            has_handler_stacks: mode.is_paged() && random.chance(50),
        },
        quirk,
        base,
        memory_seed: random.bits(),
        turns: random.pick(&[1, 2, 3, 5]),
        runs: 3,
    }
}

struct Generator<'a> {
    random: Random,
    pool: &'a Pool,
    world: &'a World,
    mode: Mode,
    /// Items whose aim is to be made one of the current part.
    loose: Vec<usize>,
    /// Items that call a subroutine.
    calls: Vec<(usize, usize)>,
    subroutines: usize,
    program: Program,
    knowledge: Knowledge,
    info: InstructionInfoFactory,
    wants_memory: bool,
}

impl Chooser for Generator<'_> {
    fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    fn wants_memory(&mut self) -> bool {
        self.wants_memory
    }

    fn general(&mut self, bytes: u32, operand: u32, row: &Row) -> u32 {
        let count = if self.mode.bits() == 64 { 16 } else { 8 };
        let keeps = matches!(row.code.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push);
        if bytes == 1 && self.random.chance(30) {
            return 16 + self.random.below(4) as u32;
        }
        for _ in 0..3 {
            let number = self.random.below(count) as u32;
            let is_kept = (self.knowledge.pointers | self.knowledge.indices) >> number & 1 != 0;
            if operand > 0 || keeps || !is_kept || self.random.chance(8) {
                return number;
            }
        }
        self.random.below(3) as u32
    }

    fn address(&mut self, row: &Row, vector: Option<Register>) -> MemoryOperand {
        if self.mode.bits() == 32 && vector.is_none() && self.random.chance(3) {
            return address::short(&mut self.random);
        }
        self.knowledge.operand(&mut self.random, row, vector)
    }

    fn target(&mut self) -> u64 {
        self.ip() + 0x10
    }

    fn immediate(&mut self, bytes: u32) -> u64 {
        let value = self.random.operand();
        if bytes == 1 && self.random.chance(50) { value & 0x3f } else { value }
    }
}

impl<'a> Generator<'a> {
    fn new(
        random: Random,
        pool: &'a Pool,
        world: &'a World,
        mode: Mode,
        knowledge: Knowledge,
    ) -> Self {
        Self {
            random,
            pool,
            world,
            mode,
            loose: Vec::new(),
            calls: Vec::new(),
            subroutines: 0,
            program: Program::default(),
            knowledge,
            info: InstructionInfoFactory::new(),
            wants_memory: false,
        }
    }

    fn is_64(&self) -> bool {
        self.mode.bits() == 64
    }

    /// One of two codes: of 64-bit or of 32-bit mode.
    fn code(&self, of_64: Code, of_32: Code) -> Code {
        if self.is_64() { of_64 } else { of_32 }
    }

    fn program(&mut self, turns: u8) {
        let length = 2 + self.random.below(26) as usize;
        self.subroutines = self.random.below(4) as usize;
        let has_loop = turns > 1;
        let top = self.random.below(length as u64 / 2 + 1) as usize;
        let mut top_item = 0;
        while self.program.items.len() < length {
            if self.program.items.len() <= top {
                top_item = self.program.items.len();
            }
            self.any_item();
        }
        if has_loop {
            self.close_loop(top_item);
        }
        self.push(Instruction::with(Code::Hlt));
        self.end_part(0);
        let first_call = self.program.table.len();
        let _ = first_call;
        let mut starts = Vec::new();
        for _ in 0..self.subroutines {
            starts.push(self.program.items.len());
            self.subroutine();
        }
        for (item, number) in std::mem::take(&mut self.calls) {
            let start = starts[number];
            match self.program.items[item].aim {
                Some(Aim::Branch(_)) => self.program.items[item].aim = Some(Aim::Branch(start)),
                Some(Aim::Address(_)) => self.program.items[item].aim = Some(Aim::Address(start)),
                Some(Aim::Value(_)) => self.program.items[item].aim = Some(Aim::Value(start)),
                _ => {}
            }
        }
        self.fill_table(&starts);
    }

    /// The first slots are subroutines, the others whatever was meant by those who jump by them.
    fn fill_table(&mut self, starts: &[usize]) {
        let end = self.program.items.len() - 1;
        let table = &mut self.program.table;
        table.resize(TABLE_SLOTS, end);
        for (slot, start) in table.iter_mut().zip(starts) {
            *slot = *start;
        }
    }

    fn close_loop(&mut self, top: usize) {
        let mut decrement = Instruction::default();
        decrement.set_code(Code::Dec_rm32);
        let counter = self.knowledge.half.wrapping_add(COUNTER);
        set_absolute(&mut decrement, self.mode.bits(), 0, counter);
        self.push(decrement);
        let code = self.code(Code::Jne_rel32_64, Code::Jne_rel32_32);
        self.push_branch(code, top);
        if self.random.chance(50) {
            self.any_item();
        }
    }

    /// Loose aims are put among the items from `first` on that are behind them.
    fn end_part(&mut self, first: usize) {
        let last = self.program.items.len() - 1;
        for item in std::mem::take(&mut self.loose) {
            let room = (last - item.min(last)).max(1) as u64;
            let target = (item + 1 + self.random.below(room.min(8)) as usize).clamp(first, last);
            let aim = self.program.items[item].aim.map(|aim| match aim {
                Aim::Branch(_) => Aim::Branch(target),
                Aim::Address(_) => Aim::Address(target),
                _ => Aim::Value(target),
            });
            self.program.items[item].aim = aim;
        }
    }

    fn subroutine(&mut self) {
        let first = self.program.items.len();
        let rsp = self.random.chance(50);
        let bytes = self.mode.bits() / 8;
        let (sp, bp) = if bytes == 8 {
            (Register::RSP, Register::RBP)
        } else {
            (Register::ESP, Register::EBP)
        };
        if rsp {
            self.push_one(self.code(Code::Push_r64, Code::Push_r32), bp);
            let code = self.code(Code::Mov_rm64_r64, Code::Mov_rm32_r32);
            self.push_with(Instruction::with2(code, bp, sp));
            let code = self.code(Code::Sub_rm64_imm8, Code::Sub_rm32_imm8);
            let frame = 8 * self.random.below(8) as i32;
            self.push_with(Instruction::with2(code, sp, frame));
            self.knowledge.pointers |= 1 << RBP;
        }
        for _ in 0..self.random.below(5) {
            self.any_item();
        }
        if rsp {
            self.push(Instruction::with(self.code(Code::Leaveq, Code::Leaved)));
        }
        if self.random.chance(15) {
            let code = self.code(Code::Retnq_imm16, Code::Retnd_imm16);
            let bytes = self.random.pick(&[0u32, 8, 16]);
            self.push_with(Instruction::with1(code, bytes));
        } else {
            self.push(Instruction::with(self.code(Code::Retnq, Code::Retnd)));
        }
        self.end_part(first);
    }

    fn any_item(&mut self) {
        let has_pointers = (self.knowledge.pointers & !(1 << RSP)).count_ones() > 1;
        match self.random.below(100) {
            0..=13 => self.flow(),
            14..=16 => self.self_modification(),
            20..=22 => self.string(),
            23 => self.bit_string(),
            17..=19 => self.new_pointer(),
            _ if !has_pointers && self.random.chance(30) => self.new_pointer(),
            24..=27 => self.move_pointer(),
            _ => self.straight(),
        }
    }

    /// An instruction of the pool.
    fn straight(&mut self) {
        for _ in 0..20 {
            let Some(row) = self.pool.pick(&mut self.random) else { return };
            self.wants_memory = self.random.chance(55);
            let Some(instruction) = self.of_row(row) else { continue };
            let is_gated = self.world.bench.cpu.is_gated(row, &instruction);
            if is_gated && !self.random.chance(5) {
                continue;
            }
            let prefix = self.prefix(&instruction);
            let has_ignored = !self.is_64() && self.random.chance(20);
            let ignored = if has_ignored { self.random.bits() as u8 } else { 0 };
            self.push(instruction);
            if let Some(item) = self.program.items.last_mut() {
                (item.prefix, item.ignored) = (prefix, ignored);
            }
            return;
        }
    }

    /// An instruction of the form `row`, as it decodes.
    fn of_row(&mut self, row: &Row) -> Option<Instruction> {
        let bits = self.mode.bits();
        let built = build(self, bits, row).ok()?;
        let ip = self.ip();
        let bytes = encode(&built, bits, ip)?;
        let options = self.world.bench.cpu.decoder_options();
        let decoded = Decoder::with_ip(bits, &bytes, ip, options).decode();
        (decoded.code() == row.code).then_some(decoded)
    }

    /// About where the next instruction will be.
    fn ip(&self) -> u64 {
        self.knowledge.half.wrapping_add(CODE)
    }

    /// Prefixes that mean nothing to the instruction.
    fn prefix(&mut self, instruction: &Instruction) -> Vec<u8> {
        const PREFIXES: [&[u8]; 8] =
            [&[0x3e], &[0x26], &[0x2e], &[0x48, 0x3e], &[0x66], &[0x40], &[0x67], &[0x36, 0x36]];
        let prefix = self.random.pick(&PREFIXES).to_vec();
        let bits = self.mode.bits();
        if !self.random.chance(6) {
            return Vec::new();
        }
        let ip = self.ip();
        let Some(code) = encode(instruction, bits, ip + prefix.len() as u64) else {
            return Vec::new();
        };
        let bytes = [prefix.clone(), code].concat();
        let options = self.world.bench.cpu.decoder_options();
        let decoded = Decoder::with_ip(bits, &bytes, ip, options).decode();
        let is_same = decoded.code() == instruction.code()
            && decoded.len() == bytes.len()
            && (0..decoded.op_count()).all(|n| decoded.op_kind(n) == instruction.op_kind(n));
        if is_same { prefix } else { Vec::new() }
    }

    /// Adds an instruction whose operands are as they should be.
    fn push(&mut self, instruction: Instruction) {
        self.learn(&instruction);
        self.program.items.push(Item::plain(instruction));
    }

    fn push_with(&mut self, instruction: Result<Instruction, iced_x86::IcedError>) {
        if let Ok(instruction) = instruction {
            self.push(instruction);
        }
    }

    fn push_one(&mut self, code: Code, register: Register) {
        self.push_with(Instruction::with1(code, register));
    }

    fn push_aimed(&mut self, instruction: Instruction, aim: Aim) -> usize {
        self.learn(&instruction);
        self.program.items.push(Item::aimed(instruction, aim));
        self.program.items.len() - 1
    }

    fn push_branch(&mut self, code: Code, target: usize) -> usize {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        let kind = if self.is_64() { OpKind::NearBranch64 } else { OpKind::NearBranch32 };
        instruction.set_op0_kind(kind);
        self.push_aimed(instruction, Aim::Branch(target))
    }

    /// Takes over what an instruction does to registers.
    fn learn(&mut self, instruction: &Instruction) {
        let known = self.result(instruction);
        let written: Vec<u32> = self
            .info
            .info(instruction)
            .used_registers()
            .iter()
            .filter(|used| !matches!(used.access(), OpAccess::Read | OpAccess::CondRead))
            .filter(|used| used.register().is_gpr())
            .map(|used| used.register().full_register().number() as u32)
            .collect();
        let knowledge = &mut self.knowledge;
        let old_rsp = knowledge.known[RSP];
        for number in written {
            knowledge.known[number as usize] = None;
            if number as usize != RSP {
                knowledge.pointers &= !(1 << number);
                knowledge.indices &= !(1 << number);
            }
        }
        if let Some((number, value, is_pointer)) = known {
            knowledge.known[number] = value;
            knowledge.pointers |= u16::from(is_pointer) << number;
        }
        let moved = i64::from(instruction.stack_pointer_increment());
        let row = decoder::row(instruction.code());
        if row.stack && !matches!(instruction.mnemonic(), Mnemonic::Leave | Mnemonic::Enter) {
            knowledge.known[RSP] = old_rsp.map(|rsp| rsp.wrapping_add_signed(moved));
        }
    }

    /// The value of the register that an instruction writes, if it is known.
    fn result(&self, instruction: &Instruction) -> Option<(usize, Option<u64>, bool)> {
        let to = instruction.op0_register();
        if instruction.op0_kind() != OpKind::Register || to.size() != self.mode.bits() as usize / 8
        {
            return None;
        }
        let number = to.number();
        let mask = if self.is_64() { u64::MAX } else { 0xffff_ffff };
        let is_pointer = self.knowledge.pointers >> number & 1 != 0;
        let old = self.knowledge.known[number];
        let immediate = instruction.try_immediate(1).ok();
        let add = |by: u64| Some((number, old.map(|v| v.wrapping_add(by) & mask), is_pointer));
        match instruction.mnemonic() {
            Mnemonic::Add => add(immediate?),
            Mnemonic::Sub => add(immediate?.wrapping_neg()),
            Mnemonic::Inc => add(1),
            Mnemonic::Dec => add(u64::MAX),
            Mnemonic::Mov if instruction.op1_register().is_gpr() => {
                let from = instruction.op1_register().number();
                let is_pointer = self.knowledge.pointers >> from & 1 != 0;
                Some((number, self.knowledge.known[from], is_pointer))
            }
            Mnemonic::Mov => Some((number, Some(immediate? & mask), false)),
            Mnemonic::Cmp | Mnemonic::Test => Some((number, old, is_pointer)),
            _ => None,
        }
    }

    /// A register is made point somewhere.
    fn new_pointer(&mut self) {
        let count = if self.is_64() { 16 } else { 8 };
        let number = self.random.below(count) as usize;
        if number == RSP {
            return;
        }
        let half = self.knowledge.any_half(&mut self.random);
        let place = self.knowledge.place(&mut self.random, half, 64, true);
        let instruction = if self.is_64() {
            let register = Register::RAX + number as u32;
            Instruction::with2(Code::Mov_r64_imm64, register, place)
        } else {
            let register = Register::EAX + number as u32;
            Instruction::with2(Code::Mov_r32_imm32, register, place as u32)
        };
        self.push_with(instruction);
        self.knowledge.pointers |= 1 << number;
        self.knowledge.known[number] = Some(place);
    }

    /// A pointer moves a little, or is copied.
    fn move_pointer(&mut self) {
        let numbers: Vec<u32> =
            (0..16).filter(|n| self.knowledge.pointers >> n & 1 != 0 && *n != 4).collect();
        if numbers.is_empty() {
            return self.new_pointer();
        }
        let first = if self.is_64() { Register::RAX } else { Register::EAX };
        let number = self.random.pick(&numbers);
        let pointer = first + number;
        let step = self.random.pick(&[8i32, 4, 16, 1, -8, -16]);
        let other = first + self.random.below(4) as u32;
        let instruction = match self.random.below(5) {
            0 => Instruction::with2(
                self.code(Code::Add_rm64_imm8, Code::Add_rm32_imm8),
                pointer,
                step,
            ),
            1 => Instruction::with2(
                self.code(Code::Mov_r64_rm64, Code::Mov_r32_rm32),
                other,
                pointer,
            ),
            2 => Instruction::with1(self.code(Code::Inc_rm64, Code::Inc_rm32), pointer),
            _ => {
                let memory = MemoryOperand::with_base_displ(pointer, i64::from(step));
                let code = self.code(Code::Lea_r64_m, Code::Lea_r32_m);
                let lea = Instruction::with2(code, pointer, memory);
                let value = self.knowledge.known[number as usize];
                self.push_with(lea);
                self.knowledge.pointers |= 1 << number;
                self.knowledge.known[number as usize] =
                    value.map(|value| value.wrapping_add_signed(i64::from(step)));
                return;
            }
        };
        self.push_with(instruction);
    }

    /// Loads a register with a number that is known.
    fn load(&mut self, number: u32, value: u64) {
        let instruction = if self.is_64() {
            Instruction::with2(Code::Mov_r64_imm64, Register::RAX + number, value)
        } else {
            Instruction::with2(Code::Mov_r32_imm32, Register::EAX + number, value as u32)
        };
        self.push_with(instruction);
    }

    /// A string instruction whose registers are where it can work, often near the end of a page.
    fn string(&mut self) {
        const RCX: u32 = 1;
        const RSI: u32 = 6;
        const RDI: u32 = 7;
        let rows: Vec<_> = decoder::rows()
            .filter(|row| row.class == decoder::Class::String)
            .filter(|row| row.memory.shape == decoder::MemoryShape::String)
            .filter(|row| row.privilege == decoder::Privilege::Any)
            .filter(|row| crate::pool::exists(row, &self.world.bench.cpu, self.mode))
            .collect();
        let row = self.random.pick(&rows);
        for number in [RSI, RDI] {
            if self.random.chance(85) {
                let half = self.knowledge.any_half(&mut self.random);
                let place = self.knowledge.place(&mut self.random, half, 64, number == RDI);
                self.load(number, place);
            }
        }
        if self.random.chance(20)
            && let Some(place) = self.knowledge.known[RSI as usize]
        {
            let distance = self.random.below(33).wrapping_sub(16);
            self.load(RDI, place.wrapping_add(distance));
        }
        let count = self.random.pick(&[0, 1, 2, 7, 40, 300]);
        self.load(RCX, count);
        if self.random.chance(20) {
            let code = self.random.pick(&[Code::Std, Code::Cld]);
            self.push(Instruction::with(code));
        }
        if let Some(instruction) = self.of_row(row) {
            self.push(instruction);
        }
        if self.random.chance(30) {
            self.push(Instruction::with(Code::Cld));
        }
    }

    /// A bit test whose offset leaves its operand.
    fn bit_string(&mut self) {
        let rows: Vec<_> = decoder::rows()
            .filter(|row| row.memory.shape == decoder::MemoryShape::BitString)
            .filter(|row| crate::pool::exists(row, &self.world.bench.cpu, self.mode))
            .collect();
        let row = self.random.pick(&rows);
        self.wants_memory = true;
        let Some(instruction) = self.of_row(row) else { return };
        let register = instruction.op1_register();
        let number = register.full_register().number() as u32;
        let is_free = number as usize != RSP && self.knowledge.pointers >> number & 1 == 0;
        if register.is_gpr() && is_free {
            let reach = self.random.pick(&[64, 512, 0x8000]);
            let offset = self.random.below(2 * reach).wrapping_sub(reach);
            self.load(number, offset);
        }
        self.push(instruction);
    }

    /// A store into code: of another instruction behind it, before it, or of itself.
    fn self_modification(&mut self) {
        let is_again = self.random.chance(25) && self.mode.is_paged();
        let kind = self.random.below(4);
        if kind == 0 {
            let item = self.program.items.len();
            let value = self.random.bits() as u32;
            let store = self.store(4, u64::from(value));
            self.push_aimed(store, Aim::Site { item, back: 4, is_again });
            return;
        }
        let (bytes, back) = if kind == 3 { (1, 2) } else { (4, 4) };
        let value = match bytes {
            1 => self.random.pick(&[0x01, 0x29, 0x31, 0x21, 0x09]),
            _ => self.random.operand(),
        };
        let store = self.store(bytes, value);
        let victim = self.victim(kind);
        if self.random.chance(30) {
            self.push_with(victim);
            let item = self.program.items.len() - 1;
            self.push_aimed(store, Aim::Site { item, back, is_again });
            return;
        }
        let aim = Aim::Site { item: 0, back, is_again };
        let at = self.push_aimed(store, aim);
        for _ in 0..self.random.below(3) {
            self.straight();
        }
        self.push_with(victim);
        let item = self.program.items.len() - 1;
        self.program.items[at].aim = Some(Aim::Site { item, back, is_again });
    }

    /// An instruction whose last bytes can be replaced.
    fn victim(&mut self, kind: u64) -> Result<Instruction, iced_x86::IcedError> {
        let register = Register::EAX + self.random.below(4) as u32;
        let other = Register::EAX + self.random.below(8) as u32;
        let value = self.random.operand() as u32;
        match kind {
            1 => Instruction::with2(Code::Mov_r32_imm32, register, value),
            2 => Instruction::with2(Code::Add_rm32_imm32, register, value),
            _ => Instruction::with2(Code::Add_rm32_r32, register, other),
        }
    }

    /// A store of `bytes` bytes to an absolute address.
    fn store(&mut self, bytes: u32, value: u64) -> Instruction {
        let mut instruction = Instruction::default();
        let bits = self.mode.bits();
        let register = Register::EAX + self.random.below(8) as u32;
        let is_by_register = bytes == 4 && self.random.chance(30);
        instruction.set_code(match (bytes, is_by_register) {
            (1, _) => Code::Mov_rm8_imm8,
            (_, true) => Code::Mov_rm32_r32,
            _ => Code::Mov_rm32_imm32,
        });
        set_absolute(&mut instruction, bits, 0, 0);
        if is_by_register {
            instruction.set_op1_kind(OpKind::Register);
            instruction.set_op1_register(register);
        } else if bytes == 1 {
            instruction.set_op1_kind(OpKind::Immediate8);
            instruction.set_immediate8(value as u8);
        } else {
            instruction.set_op1_kind(OpKind::Immediate32);
            instruction.set_immediate32(value as u32);
        }
        instruction
    }

    /// A transfer of control.
    fn flow(&mut self) {
        match self.random.below(20) {
            0..=7 => self.conditional(),
            8 => {
                let code = if self.random.chance(50) {
                    self.code(Code::Jmp_rel8_64, Code::Jmp_rel8_32)
                } else {
                    self.code(Code::Jmp_rel32_64, Code::Jmp_rel32_32)
                };
                let item = self.push_branch(code, 0);
                self.loose.push(item);
            }
            9..=12 if self.subroutines > 0 => {
                let item = self.push_branch(self.code(Code::Call_rel32_64, Code::Call_rel32_32), 0);
                self.call(item);
            }
            13..=14 if self.subroutines > 0 => {
                let number = self.random.below(self.subroutines as u64);
                self.by_table(self.code(Code::Call_rm64, Code::Call_rm32), number);
            }
            15 if self.subroutines > 0 => {
                let (register, item) = self.address_in_register();
                self.call(item);
                self.push_one(self.code(Code::Call_rm64, Code::Call_rm32), register);
            }
            16 => {
                let (register, item) = self.address_in_register();
                self.loose.push(item);
                self.push_one(self.code(Code::Jmp_rm64, Code::Jmp_rm32), register);
            }
            17 => {
                let (register, item) = self.address_in_register();
                self.loose.push(item);
                self.push_one(self.code(Code::Push_r64, Code::Push_r32), register);
                self.push(Instruction::with(self.code(Code::Retnq, Code::Retnd)));
            }
            18 => self.counted(),
            _ => self.conditional(),
        }
    }

    fn call(&mut self, item: usize) {
        let number = self.random.below(self.subroutines as u64) as usize;
        self.calls.push((item, number));
    }

    fn conditional(&mut self) {
        const CODES: [[Code; 4]; 16] = [
            [Code::Jo_rel8_64, Code::Jo_rel8_32, Code::Jo_rel32_64, Code::Jo_rel32_32],
            [Code::Jno_rel8_64, Code::Jno_rel8_32, Code::Jno_rel32_64, Code::Jno_rel32_32],
            [Code::Jb_rel8_64, Code::Jb_rel8_32, Code::Jb_rel32_64, Code::Jb_rel32_32],
            [Code::Jae_rel8_64, Code::Jae_rel8_32, Code::Jae_rel32_64, Code::Jae_rel32_32],
            [Code::Je_rel8_64, Code::Je_rel8_32, Code::Je_rel32_64, Code::Je_rel32_32],
            [Code::Jne_rel8_64, Code::Jne_rel8_32, Code::Jne_rel32_64, Code::Jne_rel32_32],
            [Code::Jbe_rel8_64, Code::Jbe_rel8_32, Code::Jbe_rel32_64, Code::Jbe_rel32_32],
            [Code::Ja_rel8_64, Code::Ja_rel8_32, Code::Ja_rel32_64, Code::Ja_rel32_32],
            [Code::Js_rel8_64, Code::Js_rel8_32, Code::Js_rel32_64, Code::Js_rel32_32],
            [Code::Jns_rel8_64, Code::Jns_rel8_32, Code::Jns_rel32_64, Code::Jns_rel32_32],
            [Code::Jp_rel8_64, Code::Jp_rel8_32, Code::Jp_rel32_64, Code::Jp_rel32_32],
            [Code::Jnp_rel8_64, Code::Jnp_rel8_32, Code::Jnp_rel32_64, Code::Jnp_rel32_32],
            [Code::Jl_rel8_64, Code::Jl_rel8_32, Code::Jl_rel32_64, Code::Jl_rel32_32],
            [Code::Jge_rel8_64, Code::Jge_rel8_32, Code::Jge_rel32_64, Code::Jge_rel32_32],
            [Code::Jle_rel8_64, Code::Jle_rel8_32, Code::Jle_rel32_64, Code::Jle_rel32_32],
            [Code::Jg_rel8_64, Code::Jg_rel8_32, Code::Jg_rel32_64, Code::Jg_rel32_32],
        ];
        let codes = self.random.pick(&CODES);
        let width = usize::from(!self.is_64());
        let code = codes[width + if self.random.chance(50) { 0 } else { 2 }];
        let item = self.push_branch(code, 0);
        self.loose.push(item);
    }

    fn counted(&mut self) {
        let code = if self.is_64() {
            self.random.pick(&[
                Code::Jrcxz_rel8_64,
                Code::Jecxz_rel8_64,
                Code::Loop_rel8_64_RCX,
                Code::Loop_rel8_64_ECX,
                Code::Loope_rel8_64_RCX,
                Code::Loopne_rel8_64_RCX,
            ])
        } else {
            self.random.pick(&[
                Code::Jecxz_rel8_32,
                Code::Loop_rel8_32_ECX,
                Code::Loope_rel8_32_ECX,
                Code::Loopne_rel8_32_ECX,
                Code::Jcxz_rel8_32,
            ])
        };
        let item = self.push_branch(code, 0);
        self.loose.push(item);
    }

    /// Jumps or calls by slot `number` of the table.
    fn by_table(&mut self, code: Code, number: u64) {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        let address = self.knowledge.half.wrapping_add(TABLE + 8 * number);
        set_absolute(&mut instruction, self.mode.bits(), 0, address);
        self.push(instruction);
    }

    /// Puts the address of an item yet to be said into a register.
    fn address_in_register(&mut self) -> (Register, usize) {
        let count = if self.is_64() { 16 } else { 8 };
        let number = loop {
            let number = self.random.below(count) as u32;
            if number as usize != RSP {
                break number;
            }
        };
        if self.is_64() {
            let register = Register::RAX + number;
            if self.random.chance(60) {
                let mut instruction = Instruction::default();
                instruction.set_code(Code::Lea_r64_m);
                instruction.set_op0_kind(OpKind::Register);
                instruction.set_op0_register(register);
                set_absolute(&mut instruction, 64, 1, 0);
                return (register, self.push_aimed(instruction, Aim::Address(0)));
            }
            let instruction = Instruction::with2(Code::Mov_r64_imm64, register, 0u64);
            return (register, self.push_aimed(instruction.unwrap_or_default(), Aim::Value(0)));
        }
        let register = Register::EAX + number;
        let instruction = Instruction::with2(Code::Mov_r32_imm32, register, 0u32);
        (register, self.push_aimed(instruction.unwrap_or_default(), Aim::Value(0)))
    }
}
