//! HLT, MONITOR, MWAIT, SMSW, RDPMC and the privilege of each.

use cpu::exception::{Exception, Exec};
use cpu::state::{Activity, cr4, gpr};
use cpu::testing::{Bench, DATA};

const GP: Exec = Err(Exception::GP0);
const UD: Exec = Err(Exception::UD);

#[test]
fn hlt_waits() {
    let mut bench = Bench::long64();
    bench.execute(&[0xf4]).unwrap();
    assert_eq!(bench.cpu.state.activity, Activity::Halted);
}

/// Instructions at CPL 3, without and with CR4.UMIP.
#[test]
fn level_3_gets_what_the_privilege_column_says() {
    let rows: [(&str, &[u8], Exec, Exec); 14] = [
        ("HLT", &[0xf4], GP, GP),
        ("CLTS", &[0x0f, 0x06], GP, GP),
        ("LMSW", &[0x0f, 0x01, 0xf0], GP, GP),
        ("INVLPG", &[0x0f, 0x01, 0x3b], GP, GP),
        ("INVD", &[0x0f, 0x08], GP, GP),
        ("WBINVD", &[0x0f, 0x09], GP, GP),
        ("MOV from CR0", &[0x0f, 0x20, 0xc0], GP, GP),
        ("MOV from DR7", &[0x0f, 0x21, 0xf8], GP, GP),
        ("SWAPGS", &[0x0f, 0x01, 0xf8], GP, GP),
        ("MONITOR", &[0x0f, 0x01, 0xc8], UD, UD),
        ("STAC", &[0x0f, 0x01, 0xcb], UD, UD),
        ("SMSW", &[0x0f, 0x01, 0xe0], Ok(()), GP),
        ("STR", &[0x0f, 0x00, 0xc8], Ok(()), GP),
        ("SGDT", &[0x0f, 0x01, 0x03], Ok(()), GP),
    ];
    for (name, code, plain, umip) in rows {
        for (bits, expected) in [(0, plain), (cr4::UMIP, umip)] {
            let mut bench = Bench::long64();
            bench.cpu.state.cr4 |= bits;
            bench.cpu.state.gpr[gpr::RBX] = DATA;
            bench.set_cpl(3);
            assert_eq!(bench.execute(code), expected, "{name}, CR4 {bits:#x}");
        }
    }
}

#[test]
fn monitor_checks_its_address_and_its_extensions() {
    let monitor = [0x0f, 0x01, 0xc8];
    for (address, ecx, expected) in [
        (DATA, 0, Ok(())),
        (DATA, 1, GP),
        (1 << 47, 0, GP),
        (DATA + 0x1000, 0, Err(Exception::pf(0))),
    ] {
        let mut bench = Bench::long64();
        bench.protect(DATA + 0x1000, 0);
        bench.cpu.state.gpr[gpr::RAX] = address;
        bench.cpu.state.gpr[gpr::RCX] = ecx;
        assert_eq!(bench.execute(&monitor), expected, "{address:#x}, ECX {ecx}");
    }
}

#[test]
fn mwait_ends_by_itself_and_refuses_unknown_extensions() {
    for (ecx, expected) in [(0, Ok(())), (1, Ok(())), (2, GP)] {
        let mut bench = Bench::long64();
        bench.cpu.state.gpr[gpr::RCX] = ecx;
        assert_eq!(bench.execute(&[0x0f, 0x01, 0xc9]), expected, "ECX {ecx}");
        assert_eq!(bench.cpu.state.activity, Activity::Active);
    }
}

#[test]
fn no_performance_counter_exists() {
    assert_eq!(Bench::long64().execute(&[0x0f, 0x33]), GP);
}
