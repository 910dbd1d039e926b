//! What differs between two outcomes, in few words.

use cpu::fpu::FpuState;
use cpu::state::State;

use crate::reference::{Outcome, Point, Run};
use crate::world::{MAY_BE_EARLY, is_entry, physical, place_name};

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
/// Bytes of memory that are listed at most.
const LISTED: usize = 24;

/// A list of differences.
#[derive(Clone, Debug, Default)]
pub struct Differences(pub Vec<String>);

impl Differences {
    /// Adds `name` if its values differ.
    pub fn number(&mut self, name: &str, jit: u64, interpreter: u64) {
        if jit != interpreter {
            self.0.push(format!("{name}: jit {jit:#x}, interpreter {interpreter:#x}"));
        }
    }

    /// Adds general registers.
    pub fn general(&mut self, jit: &[u64; 16], interpreter: &[u64; 16]) {
        for (number, name) in NAMES.iter().enumerate() {
            self.number(name, jit[number], interpreter[number]);
        }
    }

    fn bytes(&mut self, name: &str, jit: &[u8], interpreter: &[u8]) {
        if jit != interpreter {
            let hex = |bytes: &[u8]| -> String {
                bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
            };
            self.0.push(format!("{name}: jit {}, interpreter {}", hex(jit), hex(interpreter)));
        }
    }

    fn text(&mut self, name: &str, jit: &impl std::fmt::Debug, interpreter: &impl std::fmt::Debug) {
        let (jit, interpreter) = (format!("{jit:x?}"), format!("{interpreter:x?}"));
        if jit != interpreter {
            self.0.push(format!("{name}: jit {jit}, interpreter {interpreter}"));
        }
    }

    /// Adds the last instruction and operand of x87. Each must be what it is in the interpreter or
    /// was at some point before, since the host's unit loses its own in a switch of threads or a
    /// signal; of two pages that are the same memory either may be the operand's.
    fn pointers(&mut self, jit: &FpuState, interpreter: &FpuState, points: &[Point]) {
        let instruction = jit.instruction_pointer();
        if !points.iter().any(|point| point.x87_instruction == instruction) {
            let expected = interpreter.instruction_pointer();
            self.text("fip, fcs, fop", &instruction, &expected);
        }
        let place = |(offset, selector): (u64, u16)| (physical(offset), selector);
        let data = jit.data_pointer();
        if !points.iter().any(|point| place(point.x87_data) == place(data)) {
            self.text("fdp, fds", &data, &interpreter.data_pointer());
        }
    }

    /// Adds everything of two states but general registers, RIP, flags and the pointers of x87.
    fn state(&mut self, jit: &State, interpreter: &State) {
        for (name, one, other) in [
            ("cr0", jit.cr0, interpreter.cr0),
            ("cr2", jit.cr2, interpreter.cr2),
            ("cr3", jit.cr3, interpreter.cr3),
            ("cr4", jit.cr4, interpreter.cr4),
            ("cpl", u64::from(jit.cpl), u64::from(interpreter.cpl)),
            ("dr6", jit.dr[6], interpreter.dr[6]),
            ("xcr0", jit.xcr0, interpreter.xcr0),
            ("mxcsr", u64::from(jit.fpu.mxcsr), u64::from(interpreter.fpu.mxcsr)),
            ("fcw", u64::from(jit.fpu.fcw), u64::from(interpreter.fpu.fcw)),
            ("fsw", u64::from(jit.fpu.fsw), u64::from(interpreter.fpu.fsw)),
            ("ftw", u64::from(jit.fpu.ftw), u64::from(interpreter.fpu.ftw)),
        ] {
            self.number(name, one, other);
        }
        for number in 0..6 {
            let name = format!("segment {number}");
            self.text(&name, &jit.segments[number], &interpreter.segments[number]);
        }
        self.text("activity", &jit.activity, &interpreter.activity);
        self.text("shadow", &jit.shadow, &interpreter.shadow);
        for (number, (jit, interpreter)) in jit.fpu.zmm.iter().zip(&interpreter.fpu.zmm).enumerate()
        {
            self.bytes(&format!("zmm{number}"), jit, interpreter);
        }
        for (number, (jit, interpreter)) in jit.fpu.x87.iter().zip(&interpreter.fpu.x87).enumerate()
        {
            self.bytes(&format!("x87 R{number}"), jit, interpreter);
        }
        self.text("opmask", &jit.fpu.opmask, &interpreter.fpu.opmask);
    }

    fn memory(&mut self, jit: &[u8], interpreter: &[u8]) {
        if jit == interpreter {
            return;
        }
        let is_early = |offset: usize, jit: u8, interpreter: u8| {
            is_entry(offset)
                && jit | MAY_BE_EARLY == interpreter | MAY_BE_EARLY
                && jit & interpreter == interpreter
        };
        let differing = jit
            .iter()
            .zip(interpreter)
            .enumerate()
            .filter(|(offset, (a, b))| a != b && !is_early(*offset, **a, **b));
        let mut count = 0;
        for (offset, (jit, interpreter)) in differing {
            count += 1;
            if count <= LISTED {
                let name = place_name(offset);
                self.0.push(format!("{name}: jit {jit:02x}, interpreter {interpreter:02x}"));
            }
        }
        if count > LISTED {
            self.0.push(format!("({count} bytes of memory differ)"));
        }
    }
}

/// What differs between the translator's outcome and the interpreter's. The count of instructions
/// is compared if `is_counting`.
pub fn differences(jit: &Outcome, interpreter: &Run, is_counting: bool) -> Vec<String> {
    let Run { outcome, points, x87_pages } = interpreter;
    let mut list = Differences::default();
    list.text("exit", &jit.exit, &outcome.exit);
    list.number("rip", jit.state.rip, outcome.state.rip);
    list.number("rflags", jit.state.rflags, outcome.state.rflags);
    list.general(&jit.state.gpr, &outcome.state.gpr);
    list.state(&jit.state, &outcome.state);
    list.pointers(&jit.state.fpu, &outcome.state.fpu, points);
    if is_counting {
        list.number("retired", jit.retired, outcome.retired);
    }
    list.memory(&without(&jit.contents, x87_pages), &without(&outcome.contents, x87_pages));
    list.0
}

/// `contents` without the bits of `unknown`.
fn without(contents: &[u8], unknown: &[(usize, u8)]) -> Vec<u8> {
    let mut contents = contents.to_vec();
    for (place, bits) in unknown {
        contents[*place] &= !bits;
    }
    contents
}
