//! Descriptor-table registers, LLDT, LTR, LAR, LSL, VERR, VERW, ARPL.

use std::sync::Arc;

use cpu::exception::{Exception, Exec};
use cpu::state::{TableRegister, attr, gpr, rflags};
use cpu::testing::{Bench, DATA, policy};

use crate::bench::*;

const LGDT_RBX: [u8; 3] = [0x0f, 0x01, 0x13];
const LLDT_AX: [u8; 3] = [0x0f, 0x00, 0xd0];
const LTR_AX: [u8; 3] = [0x0f, 0x00, 0xd8];

#[test]
fn lgdt_loads_by_operand_size_and_refuses_what_is_not_canonical() {
    let image = [0x34, 0x12, 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x00, 0x00];
    // bench, code, base
    let rows: [(Make, &[u8], u64); 3] = [
        (Bench::long64, &LGDT_RBX, 0x5040_3020_1000),
        (Bench::protected32, &LGDT_RBX, 0x3020_1000),
        (Bench::protected32, &[0x66, 0x0f, 0x01, 0x13], 0x20_1000),
    ];
    for (make, code, base) in rows {
        let mut bench = make();
        bench.poke(DATA, &image);
        bench.cpu.state.gpr[gpr::RBX] = DATA;
        assert_eq!(bench.execute(code), Ok(()));
        assert_eq!(bench.cpu.state.gdtr, TableRegister { base, limit: 0x1234 });
    }
    let mut bench = Bench::long64();
    bench.poke(DATA, &[0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1]);
    bench.cpu.state.gpr[gpr::RBX] = DATA;
    assert_eq!(bench.execute(&LGDT_RBX), Err(Exception::GP0));
}

#[test]
fn sgdt_stores_ten_bytes_in_64_bit_mode_and_six_elsewhere() {
    for (make, length) in [(Bench::long64 as Make, 10), (Bench::protected32, 6)] {
        let mut bench = make();
        bench.poke(DATA, &[0xee; 12]);
        bench.cpu.state.gdtr = TableRegister { base: 0x1122_3344, limit: 0x5566 };
        bench.cpu.state.gpr[gpr::RBX] = DATA;
        assert_eq!(bench.execute(&[0x0f, 0x01, 0x03]), Ok(()));
        let mut expected = [0xee; 12];
        expected[..10].copy_from_slice(&[0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0]);
        expected[length..].fill(0xee);
        assert_eq!(bench.peek(DATA), expected);
    }
}

#[test]
fn ltr_takes_an_available_tss_and_marks_it_busy() {
    // access byte, selector, outcome
    let rows: [(u64, u16, Exec); 6] = [
        (0x89, FREE, Ok(())),
        (0x8b, FREE, Err(Exception::gp(FREE))),
        (0x82, FREE, Err(Exception::gp(FREE))),
        (0x09, FREE, Err(Exception::np(FREE))),
        (0x89, 0, Err(Exception::GP0)),
        (0x89, FREE | 4, Err(Exception::gp(FREE | 4))),
    ];
    for (access, selector, outcome) in rows {
        for make in [Bench::long64 as Make, Bench::protected32] {
            let mut bench = make();
            set_gdt(&mut bench, FREE + 8, 0);
            set_gdt(&mut bench, FREE, access << 40 | 0x67 | 0x1234 << 16);
            bench.cpu.state.gpr[gpr::RAX] = u64::from(selector);
            assert_eq!(bench.execute(&LTR_AX), outcome, "access {access:#x}, {selector:#x}");
            if outcome.is_ok() {
                assert_eq!(gdt(&bench, FREE) >> 40 & 0xff, 0x8b);
                let tr = bench.cpu.state.tr;
                assert_eq!((tr.base, tr.limit, tr.attributes), (0x1234, 0x67, 0x8b));
            }
        }
    }
}

#[test]
fn long_mode_system_descriptors_have_sixteen_bytes() {
    let mut bench = Bench::long64();
    set_gdt(&mut bench, FREE, 0x0000_8900_0000_0067);
    bench.cpu.state.gpr[gpr::RAX] = u64::from(FREE);
    // Cut off by the limit.
    assert_eq!(bench.execute(&LTR_AX), Err(Exception::gp(FREE)));
    // A type in the upper half.
    set_gdt(&mut bench, FREE + 8, 0x0000_0100_0000_0000);
    assert_eq!(bench.execute(&LTR_AX), Err(Exception::gp(FREE)));
    // A base that is not canonical.
    set_gdt(&mut bench, FREE + 8, 0x0100_0000);
    assert_eq!(bench.execute(&LTR_AX), Err(Exception::gp(FREE)));
    set_gdt(&mut bench, FREE + 8, 0x7fff);
    assert_eq!(bench.execute(&LTR_AX), Ok(()));
    assert_eq!(bench.cpu.state.tr.base, 0x7fff_0000_0000);
}

#[test]
fn lldt_takes_an_ldt_or_nothing() {
    let rows: [(u64, u16, Exec); 5] = [
        (0x82, FREE, Ok(())),
        (0x82, 0, Ok(())),
        (0x89, FREE, Err(Exception::gp(FREE))),
        (0x02, FREE, Err(Exception::np(FREE))),
        (0x82, FREE | 4, Err(Exception::gp(FREE | 4))),
    ];
    for (access, selector, outcome) in rows {
        let mut bench = Bench::protected32();
        set_gdt(&mut bench, FREE, access << 40 | 0xff);
        bench.cpu.state.gpr[gpr::RAX] = u64::from(selector);
        assert_eq!(bench.execute(&LLDT_AX), outcome, "access {access:#x}, {selector:#x}");
        let is_null = bench.cpu.state.ldtr.has(attr::UNUSABLE);
        assert!(outcome.is_err() || is_null == (selector == 0));
    }
}

/// LAR and LSL see what the manual's tables say; the last two columns are ZF for each.
#[test]
fn lar_and_lsl_see_by_type_and_privilege() {
    // access byte, CPL, RPL, in long mode, LAR, LSL
    let rows = [
        (0x93, 0, 0, false, true, true),
        (0x93, 3, 3, false, false, false),
        (0x93, 0, 3, false, false, false),
        (0x9f, 3, 3, false, true, true),
        (0xf3, 3, 3, false, true, true),
        (0x82, 0, 0, false, true, true),
        (0x84, 0, 0, false, true, false),
        (0x85, 0, 0, false, true, false),
        (0x8c, 0, 0, false, true, false),
        (0x8e, 0, 0, false, false, false),
        (0x81, 0, 0, false, true, true),
        (0x81, 0, 0, true, false, false),
        (0x85, 0, 0, true, false, false),
        (0x8b, 0, 0, true, true, true),
        (0x8c, 0, 0, true, true, false),
        (0x80, 0, 0, false, false, false),
    ];
    for (access, cpl, rpl, is_long, lar, lsl) in rows {
        for (opcode, is_seen, value) in [(0x02, lar, access << 8), (0x03, lsl, 0xfffff)] {
            let mut bench = if is_long { Bench::long64() } else { Bench::protected32() };
            set_gdt(&mut bench, FREE, flat(access, 0));
            bench.set_cpl(cpl);
            bench.cpu.state.gpr[gpr::RCX] = u64::from(FREE | rpl);
            bench.cpu.state.gpr[gpr::RAX] = 0x7777;
            // lar eax, ecx; lsl eax, ecx
            bench.execute(&[0x0f, opcode, 0xc1]).unwrap();
            let row = format!("access {access:#x}, CPL {cpl}, RPL {rpl}, {opcode:#x}");
            assert_eq!(bench.cpu.flag(rflags::ZF), is_seen, "{row}");
            let raw_limit = if opcode == 2 { 0xf_0000 } else { 0 };
            let expected = if is_seen { value | raw_limit } else { 0x7777 };
            assert_eq!(bench.cpu.state.gpr[gpr::RAX] & !0xf_0000, expected & !0xf_0000, "{row}");
        }
    }
}

#[test]
fn verr_and_verw_tell_readable_and_writable() {
    // access byte, VERR, VERW
    let rows = [
        (0x93, true, true),
        (0x91, true, false),
        (0x9b, true, false),
        (0x99, false, false),
        (0x89, false, false),
    ];
    for (access, readable, writable) in rows {
        for (modrm, expected) in [(0xe0, readable), (0xe8, writable)] {
            let mut bench = Bench::protected32();
            set_gdt(&mut bench, FREE, flat(access, 0));
            bench.cpu.state.gpr[gpr::RAX] = u64::from(FREE);
            bench.execute(&[0x0f, 0x00, modrm]).unwrap();
            assert_eq!(bench.cpu.flag(rflags::ZF), expected, "{access:#x}, {modrm:#x}");
        }
    }
}

#[test]
fn arpl_raises_the_rpl() {
    for (destination, source, result, is_changed) in
        [(0x10, 3, 0x13, true), (0x13, 1, 0x13, false), (0x11, 1, 0x11, false)]
    {
        let mut bench = Bench::protected32();
        bench.cpu.state.gpr[gpr::RAX] = destination;
        bench.cpu.state.gpr[gpr::RCX] = source;
        // arpl ax, cx; then the memory form
        bench.execute(&[0x63, 0xc8]).unwrap();
        assert_eq!(bench.cpu.state.gpr[gpr::RAX], result);
        assert_eq!(bench.cpu.flag(rflags::ZF), is_changed);
        bench.poke(DATA, &(destination as u16).to_le_bytes());
        bench.cpu.state.gpr[gpr::RBX] = DATA;
        bench.execute(&[0x63, 0x0b]).unwrap();
        assert_eq!(u16::from_le_bytes(bench.peek(DATA)), result as u16);
    }
}

#[test]
fn bases_may_have_57_bits_before_paging_has() {
    // model, base, outcome
    let rows = [
        ("max", 0x00ff_aaaa_aaaa_aaaa_u64, Err(Exception::GP0)),
        ("max,+la57", 0x00ff_aaaa_aaaa_aaaa, Ok(())),
        ("max,+la57", 0x01ff_aaaa_aaaa_aaaa, Err(Exception::GP0)),
    ];
    for (model, base, outcome) in rows {
        let mut bench = Bench::long64();
        bench.cpu.env.cpuid = Arc::new(policy(model).unwrap());
        bench.poke(DATA + 2, &base.to_le_bytes());
        bench.cpu.state.gpr[gpr::RBX] = DATA;
        assert_eq!(bench.execute(&LGDT_RBX), outcome, "{model}: {base:#x}");
        // INVPCID of one address: PCID 0, type 0.
        bench.poke(DATA, &[u64::to_le_bytes(0), base.to_le_bytes()].concat());
        assert_eq!(bench.execute(&[0x66, 0x0f, 0x38, 0x82, 0x03]), outcome, "INVPCID, {model}");
    }
}
