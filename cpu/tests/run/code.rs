//! Code that changes: the bytes that run are those that are there, whoever wrote them.
//!
//! Source: SDM Vol. 3A, "Handling Self- and Cross-Modifying Code".

use cpu::engine::{Vcpu, VmExit};
use cpu::state::gpr;
use cpu::testing::{Bench, CODE, DATA, PT};
use memory::GuestPhysical;

use crate::bench::*;

fn run_to_halt(bench: &mut Bench) {
    let exit = bench.cpu.run(100_000);
    assert!(matches!(exit, VmExit::Halt { .. }), "{exit:?} at {:#x}", bench.cpu.state.rip);
    assert_eq!(vector(bench), 0, "an exception");
}

fn al(bench: &Bench) -> u64 {
    bench.cpu.state.gpr[gpr::RAX] & 0xff
}

/// Every way an instruction stores a byte of value 2 at RBX; what follows is `mov al, 1; hlt`,
/// whose immediate it hits. RBX is set for it.
#[test]
fn a_store_into_the_next_instruction_counts_at_once() {
    let stores: [(&str, &[u8]); 8] = [
        ("mov byte [rbx], 2", &[0xc6, 0x03, 0x02]),
        ("mov [rbx], dl", &[0x88, 0x13]),
        ("inc byte [rbx]", &[0xfe, 0x03]),
        ("lock inc byte [rbx]", &[0xf0, 0xfe, 0x03]),
        ("xchg [rbx], dl", &[0x86, 0x13]),
        ("rep stosb", &[0xf3, 0xaa]),
        ("movsb", &[0xa4]),
        ("lock xadd [rbx], r8b", &[0xf0, 0x44, 0x0f, 0xc0, 0x03]),
    ];
    for (name, store) in stores {
        for warm in [false, true] {
            let mut code = store.to_vec();
            code.extend([0xb0, 0x01, 0xf4]);
            let mut bench = bench(&code);
            let target = CODE + store.len() as u64 + 1;
            bench.poke(DATA, &[2]);
            let aim = |bench: &mut Bench, at: u64| {
                let state = &mut bench.cpu.state;
                state.gpr[gpr::RBX] = at;
                state.gpr[gpr::RDI] = at;
                state.gpr[gpr::RSI] = DATA;
                state.gpr[gpr::RAX] = 2;
                state.gpr[gpr::RDX] = 2;
                state.gpr[gpr::RCX] = 1;
                state.gpr[8] = 1;
            };
            if warm {
                // The block is decoded and the page cached before.
                aim(&mut bench, DATA + 0x800);
                run_to_halt(&mut bench);
                bench.cpu.state.activity = cpu::state::Activity::Active;
                bench.cpu.state.rip = CODE;
            }
            aim(&mut bench, target);
            run_to_halt(&mut bench);
            assert_eq!(al(&bench), 2, "{name}, warm: {warm}");
        }
    }
}

/// movups, fxsave-like wide stores and a store that only touches the page's last byte.
#[test]
fn a_vector_store_into_the_next_instruction_counts_at_once() {
    // movups [rbx], xmm0; mov al, 1; hlt
    let mut bench = bench(&[0x0f, 0x11, 0x03, 0xb0, 0x01, 0xf4]);
    bench.cpu.state.gpr[gpr::RBX] = CODE + 3;
    let mut bytes = [0x90; 64];
    bytes[..3].copy_from_slice(&[0xb0, 0x02, 0xf4]);
    bench.cpu.state.fpu.zmm[0] = bytes;
    run_to_halt(&mut bench);
    assert_eq!(al(&bench), 2);
}

/// REP STOSB that runs over itself: the new bytes run.
#[test]
fn a_rep_that_overwrites_itself_gives_way_to_what_it_wrote() {
    // rep stosb at CODE; the fill is HLT.
    let mut bench = bench(&[0xf3, 0xaa, 0xb0, 0x01]);
    let state = &mut bench.cpu.state;
    (state.gpr[gpr::RAX], state.gpr[gpr::RDI], state.gpr[gpr::RCX]) = (0xf4, CODE, 64);
    run_to_halt(&mut bench);
    assert_eq!(al(&bench), 0xf4, "what followed did not run");
    assert!(bench.cpu.state.rip <= CODE + 3);
}

/// A counter in the page of the loop that counts it: every turn writes the page.
#[test]
fn code_and_data_share_a_page() {
    // inc qword [rbx]; dec ecx; jnz; hlt
    let mut bench = bench(&[0x48, 0xff, 0x03, 0xff, 0xc9, 0x75, 0xf9, 0xf4]);
    bench.cpu.state.gpr[gpr::RBX] = CODE + 0x100;
    bench.cpu.state.gpr[gpr::RCX] = 1000;
    run_to_halt(&mut bench);
    assert_eq!(u64::from_le_bytes(bench.peek(CODE + 0x100)), 1000);
    assert_eq!(bench.cpu.retired(), 3001);
    assert_eq!(generation(&bench), 0, "no store over code");
}

/// The code generation of the page at `CODE`.
fn generation(bench: &Bench) -> u32 {
    bench.cpu.env.space.ram().flags().generation(CODE >> 12)
}

/// A loop that writes a function of its own page, counts in the page, and calls the function: each
/// version runs, and only the writes over code count as such. The last place shares its lines with
/// the loop itself.
#[test]
fn code_that_is_rewritten_beside_data_of_its_page_runs_each_time() {
    // mov [rbx+1], cl; inc qword [rdi]; call rbx; add rdx, rax; dec ecx; jnz; hlt
    let code = [
        0x88, 0x4b, 0x01, 0x48, 0xff, 0x07, 0xff, 0xd3, 0x48, 0x01, 0xc2, 0xff, 0xc9, 0x75, 0xf1,
        0xf4,
    ];
    for (function, data) in [(0x200, 0x300), (0x3d, 0x300), (0xff0, 0x80), (0x20, 0x30)] {
        let mut bench = bench(&code);
        // mov eax, imm32; ret
        bench.poke(CODE + function, &[0xb8, 0, 0, 0, 0, 0xc3]);
        let before = generation(&bench);
        let state = &mut bench.cpu.state;
        (state.gpr[gpr::RBX], state.gpr[gpr::RDI]) = (CODE + function, CODE + data);
        (state.gpr[gpr::RCX], state.gpr[gpr::RDX]) = (200, 0);
        run_to_halt(&mut bench);
        assert_eq!(bench.cpu.state.gpr[gpr::RDX], (1..=200).sum(), "function at {function:#x}");
        assert_eq!(u64::from_le_bytes(bench.peek(CODE + data)), 200);
        let moves = generation(&bench) - before;
        // The first write came before anybody had decoded the function.
        let expected = if function / 64 == data / 64 { 400 } else { 199 };
        assert!((expected..=expected + 1).contains(&moves), "{moves} for {function:#x}");
    }
}

/// mov eax, imm32 over a page end, changed in its second page, by stores that leave the first
/// alone.
#[test]
fn an_instruction_over_two_pages_is_looked_up_in_both() {
    let start = CODE + 0xffe;
    let mut bench = bench(&[]);
    for round in 0..4u8 {
        bench.put_code_at(start, &[0xb8, 0x11, round, 0x33, round, 0xf4]);
        bench.cpu.state.activity = cpu::state::Activity::Active;
        run_to_halt(&mut bench);
        let expected = u32::from_le_bytes([0x11, round, 0x33, round]);
        assert_eq!(bench.cpu.state.gpr[gpr::RAX], u64::from(expected));
    }
    // Another frame for the second page: the same bytes but for one.
    bench.poke(DATA, &[0x77, 0x33, 0x88, 0xf4]);
    bench.poke(PT + 8 * ((CODE + 0x1000) >> 12), &(DATA | 7).to_le_bytes());
    bench.control_changed();
    bench.cpu.state.rip = start;
    bench.cpu.state.activity = cpu::state::Activity::Active;
    run_to_halt(&mut bench);
    assert_eq!(bench.cpu.state.gpr[gpr::RAX], 0x8833_7711);
}

/// What could not be decoded once may be decoded when other bytes are there, also in the part of
/// it that is not the first byte, and also in the next page.
#[test]
fn an_undefined_instruction_is_decoded_anew_when_it_changes() {
    for start in [CODE, CODE + 0xfff] {
        // 0F 04 is undefined; 0F 1F 00 is a NOP.
        let mut bench = bench(&[]);
        for _ in 0..3 {
            bench.put_code_at(start, &[0x0f, 0x04, 0x00, 0xf4]);
            bench.cpu.state.activity = cpu::state::Activity::Active;
            bench.cpu.run(10);
            assert_eq!((vector(&bench), frame(&bench).0), (6, start), "#UD");
            bench.cpu.state.gpr[15] = 0;
            bench.put_code_at(start, &[0x0f, 0x1f, 0x00, 0xf4]);
            bench.cpu.state.activity = cpu::state::Activity::Active;
            run_to_halt(&mut bench);
            assert_eq!(bench.cpu.state.rip, start + 4);
        }
    }
}

/// A translator's loop: write a function, call it, add up what it gives.
#[test]
fn a_loop_that_writes_and_calls_code_runs_each_version() {
    let function = CODE + 0x1800;
    // mov [rbx+1], cl; call rbx; add rdx, rax; dec ecx; jnz; hlt
    let code = [0x88, 0x4b, 0x01, 0xff, 0xd3, 0x48, 0x01, 0xc2, 0xff, 0xc9, 0x75, 0xf4, 0xf4];
    let mut bench = bench(&code);
    // mov eax, imm32; ret
    bench.poke(function, &[0xb8, 0, 0, 0, 0, 0xc3]);
    let state = &mut bench.cpu.state;
    (state.gpr[gpr::RBX], state.gpr[gpr::RCX], state.gpr[gpr::RDX]) = (function, 200, 0);
    run_to_halt(&mut bench);
    assert_eq!(bench.cpu.state.gpr[gpr::RDX], (1..=200).sum());
}

#[test]
fn dma_over_code_is_seen_by_the_next_run() {
    let mut bench = bench(&[0xb0, 0x01, 0xf4]);
    run_to_halt(&mut bench);
    assert_eq!(al(&bench), 1);
    bench.cpu.env.space.dma_write(GuestPhysical(CODE + 1), &[9]).unwrap();
    bench.cpu.state.activity = cpu::state::Activity::Active;
    bench.cpu.state.rip = CODE;
    run_to_halt(&mut bench);
    assert_eq!(al(&bench), 9);
}

/// The code's frame, written through another linear page.
#[test]
fn a_store_through_an_alias_changes_code() {
    // mov byte [rbx], 2; mov al, 1; hlt
    let mut bench = bench(&[0xc6, 0x03, 0x02, 0xb0, 0x01, 0xf4]);
    bench.poke(PT + 8 * (DATA >> 12), &(CODE | 7).to_le_bytes());
    bench.control_changed();
    bench.cpu.state.gpr[gpr::RBX] = DATA + 4;
    run_to_halt(&mut bench);
    assert_eq!(al(&bench), 2);
}

/// One frame at two linear addresses: RIP-relative code means something else at each.
#[test]
fn code_at_two_linear_addresses_knows_where_it_is() {
    // lea rax, [rip]; hlt
    let mut bench = bench(&[0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xf4]);
    bench.poke(PT + 8 * (DATA >> 12), &(CODE | 7).to_le_bytes());
    bench.control_changed();
    for at in [CODE, DATA, CODE] {
        bench.cpu.state.rip = at;
        bench.cpu.state.activity = cpu::state::Activity::Active;
        run_to_halt(&mut bench);
        assert_eq!(bench.cpu.state.gpr[gpr::RAX], at + 7);
    }
}

/// One CPU writes a new number into another's code and waits until it shows; the other runs it
/// over and over and shows what it loads.
#[test]
fn one_cpu_sees_the_code_that_another_writes() {
    const LAST: u8 = 200;
    // mov al, 0; mov [rbx], al; cmp al, LAST; jne start; hlt
    let mut runner = bench(&[0xb0, 0x00, 0x88, 0x03, 0x3c, LAST, 0x75, 0xf8, 0xf4]);
    runner.cpu.state.gpr[gpr::RBX] = DATA;
    let mut writer = runner.second_cpu();
    // inc cl; mov [rdi], cl; wait: cmp [rbx], cl; jne wait; cmp cl, LAST; jne start; hlt
    let code = CODE + 0x2000;
    let writer_code =
        [0xfe, 0xc1, 0x88, 0x0f, 0x38, 0x0b, 0x75, 0xfc, 0x80, 0xf9, LAST, 0x75, 0xf3, 0xf4];
    runner.poke(code, &writer_code);
    writer.state.rip = code;
    writer.state.gpr[gpr::RCX] = 0;
    writer.state.gpr[gpr::RDI] = CODE + 1;
    // Far more than it takes, so that a version that is never seen fails instead of hanging.
    const PLENTY: u64 = 2_000_000_000;
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(matches!(writer.run(PLENTY), VmExit::Halt { .. })));
        assert!(matches!(runner.cpu.run(PLENTY), VmExit::Halt { .. }));
    });
    assert_eq!(runner.peek(DATA), [LAST]);
}
