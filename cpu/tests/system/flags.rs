//! CLI, STI, PUSHF and POPF under IOPL, VME and PVI (SDM Vol. 2, tables of "CLI", "STI", "POPF").

use cpu::exception::{Exception, Exec};
use cpu::state::{InterruptShadow, cr4, gpr, rflags};
use cpu::testing::{Bench, STACK};

use crate::bench::enter_virtual_8086;

const CLI: &[u8] = &[0xfa];
const STI: &[u8] = &[0xfb];
const GP: Exec = Err(Exception::GP0);

/// A virtual-8086 task in the bench's low memory.
fn virtual_8086(iopl: u64, cr4: u64, flags: u64) -> Bench {
    let mut bench = Bench::protected32();
    enter_virtual_8086(&mut bench, iopl, cr4, flags);
    bench
}

fn protected(cpl: u8, iopl: u64, cr4: u64, flags: u64) -> Bench {
    let mut bench = Bench::protected32();
    bench.cpu.state.cr4 |= cr4;
    bench.cpu.state.rflags |= iopl << 12 | flags;
    bench.set_cpl(cpl);
    bench
}

#[test]
fn cli_and_sti_move_if_or_vif_or_fault() {
    let (vip, vif, interrupt) = (rflags::VIP, rflags::VIF, rflags::IF);
    // bench, code, outcome, IF and VIF then
    let rows = [
        (protected(0, 0, 0, interrupt), CLI, Ok(()), 0),
        (protected(0, 0, 0, 0), STI, Ok(()), interrupt),
        (protected(3, 3, 0, interrupt), CLI, Ok(()), 0),
        (protected(3, 0, 0, interrupt), CLI, GP, interrupt),
        (protected(3, 0, 0, 0), STI, GP, 0),
        (protected(3, 0, cr4::PVI, interrupt | vif), CLI, Ok(()), interrupt),
        (protected(3, 0, cr4::PVI, interrupt), STI, Ok(()), interrupt | vif),
        (protected(3, 0, cr4::PVI, interrupt | vip), STI, GP, interrupt),
        (protected(3, 0, cr4::VME, interrupt), CLI, GP, interrupt),
        (protected(1, 0, cr4::PVI, interrupt), CLI, GP, interrupt),
    ];
    for (index, (mut bench, code, outcome, flags)) in rows.into_iter().enumerate() {
        assert_eq!(bench.execute(code), outcome, "row {index}");
        assert_eq!(bench.cpu.state.rflags & (interrupt | vif), flags, "row {index}");
    }
    let rows = [
        (virtual_8086(3, 0, interrupt), CLI, Ok(()), 0),
        (virtual_8086(0, 0, interrupt), CLI, GP, interrupt),
        (virtual_8086(0, cr4::VME, interrupt | vif), CLI, Ok(()), interrupt),
        (virtual_8086(0, cr4::VME, interrupt), STI, Ok(()), interrupt | vif),
        (virtual_8086(0, cr4::VME, interrupt | vip), STI, GP, interrupt),
    ];
    for (index, (mut bench, code, outcome, flags)) in rows.into_iter().enumerate() {
        bench.put_code_at(0x1000, code);
        assert_eq!(bench.step(), outcome, "V86 row {index}");
        assert_eq!(bench.cpu.state.rflags & (interrupt | vif), flags, "V86 row {index}");
    }
}

#[test]
fn sti_shadows_the_next_instruction_only_if_interrupts_were_off() {
    let mut bench = protected(0, 0, 0, 0);
    bench.execute(STI).unwrap();
    assert_eq!(bench.cpu.state.shadow, InterruptShadow::Sti);
    bench.cpu.state.shadow = InterruptShadow::None;
    bench.execute(STI).unwrap();
    assert_eq!(bench.cpu.state.shadow, InterruptShadow::None);
}

#[test]
fn popf_loads_what_the_privilege_allows() {
    let all = rflags::ALL & !rflags::TF;
    let plain = rflags::STATUS | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    let iopl = |level: u64| level << 12;
    // CPL, IOPL before, flags after popping `all`
    let rows = [
        (0, 0, plain | rflags::IF | rflags::IOPL),
        (3, 0, plain),
        (3, 3, plain | rflags::IF | iopl(3)),
        (1, 2, plain | rflags::IF | iopl(2)),
    ];
    for (cpl, level, expected) in rows {
        let mut bench = protected(cpl, level, 0, 0);
        bench.poke(STACK, &(all as u32).to_le_bytes());
        bench.execute(&[0x9d]).unwrap();
        assert_eq!(bench.cpu.state.rflags, expected | rflags::FIXED, "CPL {cpl}, IOPL {level}");
    }
}

#[test]
fn a_narrow_popf_leaves_the_upper_flags() {
    let mut bench = protected(0, 0, 0, rflags::AC | rflags::ID);
    bench.poke(STACK, &[0, 0, 0xff, 0xff]);
    bench.execute(&[0x66, 0x9d]).unwrap();
    assert_eq!(bench.cpu.state.rflags, rflags::FIXED | rflags::AC | rflags::ID);
}

#[test]
fn virtual_8086_flags_go_through_vif() {
    // PUSHF with VME: IF shows VIF, IOPL shows 3.
    let mut bench = virtual_8086(0, cr4::VME, rflags::VIF);
    bench.put_code_at(0x1000, &[0x9c]);
    assert_eq!(bench.step(), Ok(()));
    let pushed = u64::from(u16::from_le_bytes(bench.peek(0x7ffe)));
    assert_eq!(pushed, rflags::FIXED | rflags::IOPL | rflags::IF);
    // POPF back with IF: VIF.
    bench.cpu.state.rflags &= !rflags::VIF;
    bench.put_code_at(0x1000, &[0x9d]);
    assert_eq!(bench.step(), Ok(()));
    assert_eq!(bench.cpu.state.rflags & (rflags::VIF | rflags::IF | rflags::IOPL), rflags::VIF);
}

#[test]
fn virtual_8086_flags_fault_where_the_monitor_must_help() {
    // PUSHF and POPF: CR4, flags, popped image, code
    let rows: [(u64, u64, u16, &[u8]); 5] = [
        (0, 0, 0, &[0x9c]),
        (0, 0, 0, &[0x9d]),
        (cr4::VME, 0, 0, &[0x66, 0x9c]),
        (cr4::VME, 0, rflags::TF as u16, &[0x9d]),
        (cr4::VME, rflags::VIP, rflags::IF as u16, &[0x9d]),
    ];
    for (index, (cr4, flags, image, code)) in rows.into_iter().enumerate() {
        let mut bench = virtual_8086(0, cr4, flags);
        bench.poke(0x8000, &image.to_le_bytes());
        bench.put_code_at(0x1000, code);
        assert_eq!(bench.step(), GP, "row {index}");
        assert_eq!(bench.cpu.state.gpr[gpr::RSP], 0x8000, "row {index}");
    }
}
