//! SYSCALL, SYSRET, SYSENTER and SYSEXIT.

use cpu::exception::Exception;
use cpu::mode::OperatingMode;
use cpu::state::{efer, gpr, rflags, seg};
use cpu::testing::{Bench, CODE, selector};
use decoder::Vendor;

const SYSCALL: [u8; 2] = [0x0f, 0x05];
const SYSRETQ: [u8; 3] = [0x48, 0x0f, 0x07];
const SYSRETD: [u8; 2] = [0x0f, 0x07];
const SYSENTER: [u8; 2] = [0x0f, 0x34];
const SYSEXIT: [u8; 2] = [0x0f, 0x35];
const R11: usize = 11;

fn bench() -> Bench {
    let mut bench = Bench::long64();
    let msrs = &mut bench.cpu.state.msrs;
    msrs.star = 0x0023_0008 << 32;
    msrs.lstar = 0xffff_8000_0000_1000;
    msrs.cstar = 0xffff_8000_0000_2000;
    msrs.sfmask = rflags::IF | rflags::DF;
    bench
}

#[test]
fn syscall_enters_level_0_with_masked_flags() {
    let mut bench = bench();
    bench.set_cpl(3);
    bench.cpu.state.rflags |= rflags::IF | rflags::DF | rflags::CF;
    bench.execute(&SYSCALL).unwrap();
    let state = &bench.cpu.state;
    assert_eq!((state.rip, state.cpl), (0xffff_8000_0000_1000, 0));
    assert_eq!(state.gpr[gpr::RCX], CODE + 2);
    assert_eq!(state.gpr[R11], rflags::FIXED | rflags::IF | rflags::DF | rflags::CF);
    assert_eq!(state.rflags, rflags::FIXED | rflags::CF);
    assert_eq!(state.segments[seg::CS].selector, selector::CODE64);
    assert_eq!(state.segments[seg::SS].selector, selector::DATA);
    assert_eq!(bench.cpu.mode.operating, OperatingMode::Long64);
}

#[test]
fn sysret_leaves_for_level_3() {
    // code, RIP, mode, CS
    let rows: [(&[u8], u64, OperatingMode, u16); 2] = [
        (&SYSRETQ, 0x12_3456_789a, OperatingMode::Long64, 0x33),
        (&SYSRETD, 0x3456_789a, OperatingMode::Compatibility, 0x23),
    ];
    for (code, rip, mode, cs) in rows {
        let mut bench = bench();
        bench.cpu.state.gpr[gpr::RCX] = 0x12_3456_789a;
        bench.cpu.state.gpr[R11] = rflags::IF | rflags::RF | rflags::VM | rflags::ZF;
        bench.execute(code).unwrap();
        let state = &bench.cpu.state;
        assert_eq!((state.rip, state.cpl), (rip, 3));
        assert_eq!(state.rflags, rflags::FIXED | rflags::IF | rflags::ZF);
        assert_eq!(bench.cpu.mode.operating, mode);
        assert_eq!(bench.cpu.state.segments[seg::CS].selector, cs);
        assert_eq!(bench.cpu.state.segments[seg::SS].selector, 0x2b);
    }
}

#[test]
fn fast_calls_need_efer_and_privilege() {
    let mut closed = bench();
    closed.cpu.state.msrs.efer &= !efer::SCE;
    assert_eq!(closed.execute(&SYSCALL), Err(Exception::UD));
    assert_eq!(closed.execute(&SYSRETQ), Err(Exception::UD));
    let mut user = bench();
    user.set_cpl(3);
    assert_eq!(user.execute(&SYSRETQ), Err(Exception::GP0));
}

#[test]
fn sysenter_is_undefined_in_long_mode_on_amd_only() {
    for mut bench in [Bench::long64(), Bench::compatibility32()] {
        bench.cpu.state.msrs.sysenter_cs = 8;
        let is_amd = bench.cpu.env.cpuid.vendor() == Vendor::Amd;
        let expected = if is_amd { Err(Exception::UD) } else { Ok(()) };
        assert_eq!(bench.execute(&SYSENTER), expected);
    }
}

#[test]
fn sysenter_and_sysexit_change_levels_in_protected_mode() {
    let mut bench = Bench::protected32();
    bench.set_cpl(3);
    assert_eq!(bench.execute(&SYSENTER), Err(Exception::GP0));
    let msrs = &mut bench.cpu.state.msrs;
    (msrs.sysenter_cs, msrs.sysenter_esp, msrs.sysenter_eip) = (0x18, 0x5000, 0x6000);
    bench.cpu.state.rflags |= rflags::IF;
    bench.execute(&SYSENTER).unwrap();
    let state = &bench.cpu.state;
    assert_eq!((state.rip, state.gpr[gpr::RSP], state.cpl), (0x6000, 0x5000, 0));
    assert_eq!(state.rflags & rflags::IF, 0);
    assert_eq!(state.segments[seg::SS].selector, 0x20);
    bench.cpu.state.gpr[gpr::RDX] = 0x7000;
    bench.cpu.state.gpr[gpr::RCX] = 0x8000;
    bench.execute(&SYSEXIT).unwrap();
    let state = &bench.cpu.state;
    assert_eq!((state.rip, state.gpr[gpr::RSP], state.cpl), (0x7000, 0x8000, 3));
    assert_eq!(state.segments[seg::CS].selector, 0x2b);
    assert_eq!(state.segments[seg::SS].selector, 0x33);
}
