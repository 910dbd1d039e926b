//! INT n in virtual-8086 mode (SDM Vol. 3B, "Software Interrupt Handling Methods While Operating in
//! Virtual-8086 Mode").

use cpu::exception::Exception;
use cpu::state::{cr4, rflags, seg};
use cpu::testing::{Bench, selector};

use crate::bench::*;

const VECTOR: u8 = 0x21;
const IO_MAP: u64 = 0x88;

/// A task whose redirection bitmap has `is_intercepted` for [`VECTOR`].
fn bench(iopl: u64, cr4: u64, is_intercepted: bool) -> Bench {
    let mut bench = Bench::protected32();
    install_tss32(&mut bench, selector::DATA);
    set_idt32(&bench, u64::from(VECTOR), USER_INTERRUPT_GATE, selector::CODE32);
    bench.cpu.state.tr.limit = 0x88;
    bench.poke(TSS + 0x66, &(IO_MAP as u16).to_le_bytes());
    let bit = u8::from(is_intercepted) << (VECTOR % 8);
    bench.poke(TSS + IO_MAP - 32 + u64::from(VECTOR / 8), &[bit]);
    bench.poke(4 * u64::from(VECTOR), &[0x00, 0x05, 0x00, 0x03]);
    enter_virtual_8086(&mut bench, iopl, cr4, rflags::IF | rflags::VIF);
    bench.put_code_at(0x1000, &[0xcd, VECTOR]);
    bench
}

#[derive(Debug, PartialEq)]
enum Way {
    Monitor,
    Task,
    Fault,
}

#[test]
fn int_n_goes_to_the_task_the_monitor_or_a_fault() {
    // IOPL, CR4, intercepted, where it goes
    let rows = [
        (3, 0, false, Way::Monitor),
        (0, 0, false, Way::Fault),
        (3, cr4::VME, false, Way::Task),
        (0, cr4::VME, false, Way::Task),
        (3, cr4::VME, true, Way::Monitor),
        (0, cr4::VME, true, Way::Fault),
    ];
    for (iopl, cr4, is_intercepted, way) in rows {
        let mut bench = bench(iopl, cr4, is_intercepted);
        let outcome = bench.step();
        let state = &bench.cpu.state;
        let is_virtual = state.rflags & rflags::VM != 0;
        let found = match (outcome, is_virtual) {
            (Ok(()), true) => Way::Task,
            (Ok(()), false) => Way::Monitor,
            (Err(fault), _) => {
                assert_eq!(fault, Exception::GP0);
                Way::Fault
            }
        };
        assert_eq!(found, way, "IOPL {iopl}, CR4 {cr4:#x}, intercepted {is_intercepted}");
    }
}

#[test]
fn the_task_sees_vif_as_if() {
    let mut bench = bench(0, cr4::VME, false);
    bench.step().unwrap();
    let state = &bench.cpu.state;
    assert_eq!((state.rip, state.segments[seg::CS].base), (0x500, 0x3000));
    assert_eq!(state.rflags & (rflags::IF | rflags::VIF), rflags::IF);
    let image = u64::from(u16::from_le_bytes(bench.peek(0x7ffe)));
    assert_eq!(image, rflags::FIXED | rflags::IF | rflags::IOPL);
    // IRET gives VIF back.
    bench.put_code_at(0x3500, &[0xcf]);
    bench.step().unwrap();
    assert_eq!(bench.cpu.state.rip, 0x1002);
    assert_ne!(bench.cpu.state.rflags & rflags::VIF, 0);
}

#[test]
fn int3_is_not_redirected() {
    let mut bench = bench(0, cr4::VME, false);
    set_idt32(&bench, 3, USER_INTERRUPT_GATE, selector::CODE32);
    bench.put_code_at(0x1000, &[0xcc]);
    bench.step().unwrap();
    assert_eq!(bench.cpu.state.rip, HANDLER);
    assert_eq!(bench.cpu.state.rflags & rflags::VM, 0);
}
