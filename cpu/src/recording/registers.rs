//! The registers that a trace has, and which of them have changed.

use trace::{Register, Value};

use crate::fpu::FpuState;
use crate::state::{State, seg};

/// Bytes of the parts of a vector register that programs see as registers.
const VECTOR_BYTES: [usize; 3] = [16, 32, 64];
/// Bytes of a register of the x87 stack.
const STACK_BYTES: usize = 10;

/// The registers as they were told last.
#[derive(Default)]
pub(super) struct Shown {
    /// Those of [`numbers`], once they were told.
    numbers: Vec<u64>,
    /// Vector registers and the x87 unit's.
    units: Option<Box<FpuState>>,
}

impl Shown {
    /// Tells what differs from what was told last: everything, the first time.
    pub(super) fn update(&mut self, state: &State, mut tell: impl FnMut(Register, Value)) {
        for (index, (register, number, bytes)) in numbers(state).enumerate() {
            match self.numbers.get_mut(index) {
                Some(last) if *last == number => continue,
                Some(last) => *last = number,
                None => self.numbers.push(number),
            }
            tell(register, Value::of_number(number, bytes));
        }
        let now = &state.fpu;
        match &mut self.units {
            Some(last) if **last == *now => {}
            Some(last) => {
                for ((register, value), (_, old)) in unit_registers(now).zip(unit_registers(last)) {
                    if value != old {
                        tell(register, value);
                    }
                }
                (**last).clone_from(now);
            }
            None => {
                unit_registers(now).for_each(|(register, value)| tell(register, value));
                self.units = Some(Box::new(now.clone()));
            }
        }
    }
}

/// Registers of up to 8 bytes with their values and lengths, but for RIP: a trace knows where its
/// instructions are.
fn numbers(state: &State) -> impl Iterator<Item = (Register, u64, usize)> {
    let fpu = &state.fpu;
    let general = (0..).zip(&state.gpr).map(|(number, &value)| (Register::gpr(number), value, 8));
    let selectors =
        [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];
    let selectors = selectors
        .into_iter()
        .zip(&state.segments)
        .map(|(register, segment)| (register, u64::from(segment.selector), 2));
    let system = [
        (Register::RFLAGS, state.rflags, 8),
        (Register::CS_BASE, state.segments[seg::CS].base, 8),
        (Register::FS_BASE, state.segments[seg::FS].base, 8),
        (Register::GS_BASE, state.segments[seg::GS].base, 8),
        (Register::KERNEL_GS_BASE, state.msrs.kernel_gs_base, 8),
        (Register::CR0, state.cr0, 8),
        (Register::CR2, state.cr2, 8),
        (Register::CR3, state.cr3, 8),
        (Register::CR4, state.cr4, 8),
        (Register::EFER, state.msrs.efer, 8),
        (Register::XCR0, state.xcr0, 8),
        (Register::PKRU, u64::from(state.pkru), 4),
        (Register::MXCSR, u64::from(fpu.mxcsr), 4),
        (Register::FCW, u64::from(fpu.fcw), 2),
        (Register::FSW, u64::from(fpu.fsw), 2),
        (Register::FTW, u64::from(fpu.full_tag()), 2),
    ];
    let opmasks =
        (0..).zip(&fpu.opmask).map(|(number, &value)| (Register::opmask(number), value, 8));
    general.chain(selectors).chain(system).chain(opmasks)
}

/// The x87 stack, by its top, and the vector registers.
fn unit_registers(fpu: &FpuState) -> impl Iterator<Item = (Register, Value)> {
    let stack = (0..8).map(|number| {
        let physical = (fpu.top() + usize::from(number)) & 7;
        let bytes = fpu.x87.get(physical).and_then(|bytes| bytes.get(..STACK_BYTES));
        (Register::stack(number), Value::of(bytes.unwrap_or_default()))
    });
    let vectors = (0..).zip(&fpu.zmm).map(|(number, bytes)| {
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let length = VECTOR_BYTES.into_iter().find(|length| used <= *length).unwrap_or(64);
        (Register::vector(number), Value::of(bytes.get(..length).unwrap_or_default()))
    });
    stack.chain(vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of the change from `shown` to `state`: names and bytes, the lowest first.
    fn told(shown: &mut Shown, state: &State) -> Vec<(String, Vec<u8>)> {
        let mut told = Vec::new();
        shown.update(state, |register, value| {
            told.push((register.name_of(&value), value.bytes().to_vec()));
        });
        told
    }

    #[test]
    fn only_what_has_changed_is_told_and_everything_at_first() {
        let mut state = State::at_reset(0);
        let mut shown = Shown::default();
        assert_eq!(told(&mut shown, &state).len(), Register::ALL.len() - 1);
        assert_eq!(told(&mut shown, &state), []);
        state.gpr[3] = 0x1234;
        state.segments[seg::DS].selector = 0x2b;
        let expected = [
            ("rbx".to_owned(), vec![0x34, 0x12, 0, 0, 0, 0, 0, 0]),
            ("ds".to_owned(), vec![0x2b, 0]),
        ];
        assert_eq!(told(&mut shown, &state), expected);
        assert_eq!(told(&mut shown, &state), []);
    }

    #[test]
    fn the_stack_is_told_by_its_top_and_with_its_tags() {
        let mut state = State::at_reset(0);
        state.fpu.initialize_x87();
        let mut shown = Shown::default();
        told(&mut shown, &state);
        // FLD1: R7 becomes ST0.
        let one = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
        state.fpu.fsw = 7 << 11;
        state.fpu.ftw = 0x80;
        state.fpu.x87[7][..10].copy_from_slice(&one);
        let expected = [
            ("fsw".to_owned(), vec![0, 0x38]),
            ("ftw".to_owned(), vec![0xff, 0x3f]),
            ("st0".to_owned(), one.to_vec()),
        ];
        assert_eq!(told(&mut shown, &state), expected);
        state.fpu.fcw = 0x27f;
        state.fpu.mxcsr = 0x1f81;
        let expected =
            [("mxcsr".to_owned(), vec![0x81, 0x1f, 0, 0]), ("fcw".to_owned(), vec![0x7f, 0x02])];
        assert_eq!(told(&mut shown, &state), expected);
    }

    #[test]
    fn a_vector_register_has_the_bytes_that_are_not_zero() {
        let mut state = State::at_reset(0);
        let mut shown = Shown::default();
        told(&mut shown, &state);
        for (highest, name, length) in
            [(15, "xmm7", 16), (16, "ymm7", 32), (31, "ymm7", 32), (63, "zmm7", 64)]
        {
            state.fpu.zmm[7] = [0; 64];
            state.fpu.zmm[7][highest] = 0xa5;
            let mut value = vec![0; length];
            value[highest] = 0xa5;
            assert_eq!(told(&mut shown, &state), [(name.to_owned(), value)]);
        }
        state.fpu.zmm[7] = [0; 64];
        state.fpu.zmm[31][0] = 1;
        state.fpu.opmask[5] = 0x8000_0000_0000_0001;
        let names: Vec<String> =
            told(&mut shown, &state).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["k5", "xmm7", "xmm31"]);
    }
}
