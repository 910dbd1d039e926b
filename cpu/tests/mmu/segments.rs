//! Segment limits and types (SDM Vol. 3A, "Limit Checking", "Type Checking"; 64-bit mode:
//! "Canonical Addressing").

use cpu::exception::{Exception, Exec};
use cpu::state::{Segment, attr, cr4, gpr, seg};
use cpu::testing::{Bench, DATA};

const P_S: u16 = attr::P | attr::S;
const DATA_RW: u16 = P_S | attr::RW;
const DATA_RO: u16 = P_S;
const DOWN: u16 = attr::DC;
const CODE_XO: u16 = P_S | attr::CODE;
const CODE_RX: u16 = P_S | attr::CODE | attr::RW;

const READ_DWORD: [u8; 2] = [0x8b, 0x03];
const WRITE_DWORD: [u8; 2] = [0x89, 0x03];
const READ_BYTE: [u8; 2] = [0x8a, 0x03];

/// Executes `code` on `[ebx]` of DS with `attributes` and `limit`, based at [`DATA`].
fn access(code: &[u8], attributes: u16, limit: u32, offset: u64) -> Exec {
    let mut bench = Bench::protected32();
    bench.cpu.state.segments[seg::DS] = Segment { selector: 0x10, attributes, limit, base: DATA };
    bench.cpu.state.gpr[gpr::RBX] = offset;
    bench.cpu.mode_changed();
    bench.execute(code)
}

#[test]
fn limits_bound_the_last_byte() {
    const BIG: u16 = attr::DB;
    // attributes, limit, offset of a doubleword, inside
    let rows = [
        (DATA_RW, 0xfff, 0, true),
        (DATA_RW, 0xfff, 0xffc, true),
        (DATA_RW, 0xfff, 0xffd, false),
        (DATA_RW, 0xfff, 0x1000, false),
        (DATA_RW, 3, 0, true),
        (DATA_RW, 2, 0, false),
        (DATA_RW, 0, 0xffff_fffd, false),
        (DATA_RW | DOWN | BIG, 0xfff, 0x1000, true),
        (DATA_RW | DOWN | BIG, 0xfff, 0xfff, false),
        (DATA_RW | DOWN | BIG, 0xfff, 0xffd, false),
        (DATA_RW | DOWN | BIG, 0xfff, 0x2_0000, true),
        (DATA_RW | DOWN | BIG, 0xfff, 0xffff_fffe, false),
        (DATA_RW | DOWN, 0xfff, 0xfffc, true),
        (DATA_RW | DOWN, 0xfff, 0xfffd, false),
        (DATA_RW | DOWN, 0xfff, 0x1_0000, false),
        // Nothing is above the top: the segment is empty.
        (DATA_RW | DOWN, 0xffff, 0, false),
        (DATA_RW | DOWN, 0xffff, 0xfffc, false),
        (DATA_RW | DOWN | BIG, 0xffff_ffff, 0x1000, false),
    ];
    for (attributes, limit, offset, is_inside) in rows {
        let expected = if is_inside { Ok(()) } else { Err(Exception::GP0) };
        for code in [READ_DWORD, WRITE_DWORD] {
            let outcome = access(&code, attributes, limit, offset);
            assert_eq!(outcome, expected, "{attributes:#x} {limit:#x} {offset:#x}");
        }
    }
}

#[test]
fn a_byte_reaches_the_limit_itself() {
    assert_eq!(access(&READ_BYTE, DATA_RW, 0xfff, 0xfff), Ok(()));
    assert_eq!(access(&READ_BYTE, DATA_RW, 0xfff, 0x1000), Err(Exception::GP0));
    assert_eq!(access(&READ_BYTE, DATA_RW | DOWN, 0xfff, 0x1000), Ok(()));
    assert_eq!(access(&READ_BYTE, DATA_RW | DOWN, 0xfff, 0xfff), Err(Exception::GP0));
}

#[test]
fn types_allow_what_they_say() {
    // attributes, readable, writable
    let rows = [
        (DATA_RW, true, true),
        (DATA_RO, true, false),
        (CODE_RX, true, false),
        (CODE_XO, false, false),
        (CODE_RX | attr::DC, true, false),
        (DATA_RW | attr::UNUSABLE, false, false),
    ];
    for (attributes, readable, writable) in rows {
        let expected = |is_allowed| if is_allowed { Ok(()) } else { Err(Exception::GP0) };
        let (read, write) = (READ_DWORD, WRITE_DWORD);
        assert_eq!(access(&read, attributes, 0xffff, 0), expected(readable), "{attributes:#x}");
        assert_eq!(access(&write, attributes, 0xffff, 0), expected(writable), "{attributes:#x}");
    }
}

#[test]
fn the_stack_segment_faults_as_ss() {
    let mut bench = Bench::protected32();
    bench.cpu.state.segments[seg::SS].limit = 0xfff;
    bench.cpu.state.gpr[gpr::RBP] = 0x1000;
    // mov eax, [ebp]
    assert_eq!(bench.execute(&[0x8b, 0x45, 0x00]), Err(Exception::SS0));
    bench.cpu.state.gpr[gpr::RSP] = 0x1000 + 4;
    assert_eq!(bench.execute(&[0x50]), Err(Exception::SS0), "push eax");
    assert_eq!(bench.cpu.state.gpr[gpr::RSP], 0x1004);
    bench.cpu.state.gpr[gpr::RSP] = 0x1000;
    assert_eq!(bench.execute(&[0x50]), Ok(()));
}

#[test]
fn real_mode_segments_end_at_64_kilobytes() {
    let read = |offset: u64, code: &[u8]| {
        let mut bench = Bench::real16();
        bench.cpu.state.gpr[gpr::RBX] = offset;
        bench.put_code_at(0x8000, code);
        bench.step()
    };
    // mov ax, [bx]; mov al, [bx]; mov eax, [ebx]
    assert_eq!(read(0xfffe, &[0x8b, 0x07]), Ok(()));
    assert_eq!(read(0xffff, &[0x8b, 0x07]), Err(Exception::GP0));
    assert_eq!(read(0xffff, &[0x8a, 0x07]), Ok(()));
    assert_eq!(read(0x1_0000, &[0x66, 0x67, 0x8b, 0x03]), Err(Exception::GP0));
    // 16-bit addresses wrap before the limit is looked at: mov al, [bx+2] is byte 1.
    assert_eq!(read(0xffff, &[0x8a, 0x47, 0x02]), Ok(()));
}

#[test]
fn linear_addresses_wrap_at_4_gigabytes_outside_64_bit_mode() {
    let mut bench = Bench::protected32();
    bench.cpu.state.segments[seg::DS].base = 0xffff_f000;
    bench.cpu.state.gpr[gpr::RBX] = 0x1000 + DATA;
    bench.poke(DATA, &0x1357_9bdf_u32.to_le_bytes());
    bench.execute(&READ_DWORD).unwrap();
    assert_eq!(bench.cpu.state.gpr[gpr::RAX], 0x1357_9bdf);
}

#[test]
fn addresses_in_64_bit_mode_are_canonical_or_fault() {
    // LA57, address, the exception of a read; in the top half nothing is mapped
    let gp = Err(Exception::GP0);
    let pf = Err(Exception::pf(0));
    let rows = [
        (false, 0x0000_7fff_ffff_fff8, pf),
        (false, 0x0000_7fff_ffff_fff9, gp),
        (false, 0x0000_8000_0000_0000, gp),
        (false, 0xffff_7fff_ffff_ffff, gp),
        (false, 0xffff_8000_0000_0000, pf),
        (true, 0x0000_8000_0000_0000, pf),
        (true, 0x00ff_ffff_ffff_fff9, gp),
        (true, 0x0100_0000_0000_0000, gp),
        (true, 0xff00_0000_0000_0000, pf),
    ];
    for (la57, address, expected) in rows {
        // The stack segment's faults are its own.
        for (code, is_stack) in [(&[0x48, 0x8b, 0x03][..], false), (&[0x48, 0x8b, 0x45, 0], true)] {
            let mut bench = Bench::long64();
            if la57 {
                // A fifth level above the bench's four.
                bench.poke(0x90_0000, &0x1007_u64.to_le_bytes());
                bench.cpu.state.cr3 = 0x90_0000;
                bench.cpu.state.cr4 |= cr4::LA57;
                bench.control_changed();
            }
            bench.cpu.state.gpr[gpr::RBX] = address;
            bench.cpu.state.gpr[gpr::RBP] = address;
            let expected = if is_stack && expected == gp { Err(Exception::SS0) } else { expected };
            assert_eq!(bench.execute(code), expected, "LA57 {la57}, {address:#x}");
        }
    }
}

#[test]
fn only_fs_and_gs_have_bases_in_64_bit_mode() {
    let mut bench = Bench::long64();
    for segment in [seg::DS, seg::FS, seg::GS] {
        bench.cpu.state.segments[segment].base = 0x1000;
        bench.cpu.state.segments[segment].limit = 0;
    }
    bench.cpu.state.gpr[gpr::RBX] = DATA;
    bench.poke(DATA, &[1]);
    bench.poke(DATA + 0x1000, &[2]);
    for (prefix, expected) in [(0x3e, 1), (0x64, 2), (0x65, 2)] {
        bench.execute(&[prefix, 0x8a, 0x03]).unwrap();
        assert_eq!(bench.cpu.state.gpr[gpr::RAX] & 0xff, expected, "prefix {prefix:#x}");
    }
}
