//! MOV Sreg, POP SS, LSS and the bases (SDM Vol. 2B, "MOV", "Loading a segment register").

use cpu::exception::{Exception, Exec};
use cpu::state::{InterruptShadow, attr, cr4, gpr, seg};
use cpu::testing::{Bench, STACK, selector};
use decoder::Vendor;

use crate::bench::{FREE, Outcome, flat, gdt, set_gdt};

const MOV_DS_AX: [u8; 2] = [0x8e, 0xd8];
const MOV_SS_AX: [u8; 2] = [0x8e, 0xd0];
const MOV_FS_AX: [u8; 2] = [0x8e, 0xe0];

fn load(bench: &mut Bench, code: &[u8], selector: u16) -> Exec {
    bench.cpu.state.gpr[gpr::RAX] = u64::from(selector);
    bench.execute(code)
}

#[test]
fn data_segments_load_or_fault_by_type_privilege_and_presence() {
    let ok: Exec = Ok(());
    // access byte, CPL, RPL, outcome for DS
    let rows: [(u64, u8, u16, Outcome); 12] = [
        (0x93, 0, 0, |_| Ok(())),                // data
        (0x90, 0, 0, |_| Ok(())),                // read-only data
        (0x9b, 0, 0, |_| Ok(())),                // readable code
        (0x99, 0, 0, |s| Err(Exception::gp(s))), // execute-only code
        (0x89, 0, 0, |s| Err(Exception::gp(s))), // a TSS
        (0x13, 0, 0, |s| Err(Exception::np(s))), // data, not present
        (0x93, 0, 3, |s| Err(Exception::gp(s))), // RPL above DPL
        (0xf3, 0, 3, |_| Ok(())),                // RPL equal to DPL
        (0xf3, 3, 0, |_| Ok(())),                // CPL equal to DPL
        (0x93, 3, 0, |s| Err(Exception::gp(s))), // CPL above DPL
        (0x9f, 3, 3, |_| Ok(())),                // conforming code: no privilege check
        (0x1f, 3, 3, |s| Err(Exception::np(s))), // conforming code, not present
    ];
    for (access, cpl, rpl, outcome) in rows {
        let mut bench = Bench::protected32();
        set_gdt(&mut bench, FREE, flat(access, 0xc));
        bench.set_cpl(cpl);
        let result = load(&mut bench, &MOV_DS_AX, FREE | rpl);
        assert_eq!(result, outcome(FREE), "access {access:#x}, CPL {cpl}, RPL {rpl}");
        if result == ok {
            assert_eq!(gdt(&bench, FREE) >> 40 & 1, 1, "accessed, {access:#x}");
        }
    }
}

#[test]
fn stack_segments_need_their_own_privilege_and_writable_data() {
    let rows: [(u64, u8, u16, Exec); 8] = [
        (0x92, 0, FREE, Ok(())),
        (0x90, 0, FREE, Err(Exception::gp(FREE))),
        (0x9a, 0, FREE, Err(Exception::gp(FREE))),
        (0xf2, 0, FREE, Err(Exception::gp(FREE))),
        (0x92, 0, FREE | 3, Err(Exception::gp(FREE))),
        (0xf2, 3, FREE | 3, Ok(())),
        (0x12, 0, FREE, Err(Exception::ss(FREE))),
        (0x92, 0, 0, Err(Exception::GP0)),
    ];
    for (access, cpl, selector, outcome) in rows {
        let mut bench = Bench::protected32();
        set_gdt(&mut bench, FREE, flat(access, 0xc));
        bench.set_cpl(cpl);
        let before = bench.cpu.state.segments[seg::SS];
        let result = load(&mut bench, &MOV_SS_AX, selector);
        assert_eq!(result, outcome, "access {access:#x}, CPL {cpl}, selector {selector:#x}");
        let is_shadowed = bench.cpu.state.shadow == InterruptShadow::MovSs;
        assert_eq!(is_shadowed, outcome.is_ok());
        assert_eq!(bench.cpu.state.segments[seg::SS] == before, outcome.is_err());
    }
}

#[test]
fn a_selector_beyond_the_table_is_gp_with_its_index_and_ti() {
    for (selector, code) in [(FREE + 8, FREE + 8), (FREE + 11, FREE + 8), (0x0f, 0x0c)] {
        let mut bench = Bench::protected32();
        bench.cpu.state.ldtr.attributes = attr::UNUSABLE;
        let result = load(&mut bench, &MOV_DS_AX, selector);
        assert_eq!(result, Err(Exception::gp(code)), "{selector:#x}");
    }
}

#[test]
fn null_loads_close_a_data_segment_until_it_is_used() {
    let mut bench = Bench::protected32();
    assert_eq!(load(&mut bench, &MOV_DS_AX, 3), Ok(()));
    assert!(bench.cpu.state.segments[seg::DS].has(attr::UNUSABLE));
    // mov al, [0x200000]
    assert_eq!(bench.execute(&[0xa0, 0, 0, 0x20, 0]), Err(Exception::GP0));
}

#[test]
fn long_mode_takes_a_null_ss_above_level_3_only() {
    for (cpl, selector, outcome) in
        [(0, 0, Ok(())), (0, 1, Err(Exception::GP0)), (3, 3, Err(Exception::GP0))]
    {
        let mut bench = Bench::long64();
        bench.set_cpl(cpl);
        assert_eq!(load(&mut bench, &MOV_SS_AX, selector), outcome, "CPL {cpl}, {selector}");
    }
}

#[test]
fn real_mode_loads_keep_the_limit() {
    let mut bench = Bench::real16();
    bench.cpu.state.segments[seg::DS].limit = u32::MAX;
    bench.cpu.state.gpr[gpr::RAX] = 0x1234;
    bench.put_code_at(0x1000, &MOV_DS_AX);
    bench.step().unwrap();
    let ds = bench.cpu.state.segments[seg::DS];
    assert_eq!((ds.selector, ds.base, ds.limit), (0x1234, 0x12340, u32::MAX));
}

#[test]
fn a_pop_of_ss_that_faults_leaves_the_stack_pointer() {
    let mut bench = Bench::protected32();
    bench.poke(STACK, &u32::to_le_bytes(0x18));
    assert_eq!(bench.execute(&[0x17]), Err(Exception::gp(0x18)));
    assert_eq!(bench.cpu.state.gpr[gpr::RSP], STACK);
    bench.poke(STACK, &u32::to_le_bytes(u32::from(selector::DATA)));
    assert_eq!(bench.execute(&[0x17]), Ok(()));
    assert_eq!(bench.cpu.state.gpr[gpr::RSP], STACK + 4);
}

#[test]
fn a_far_pointer_whose_selector_faults_leaves_the_register() {
    let mut bench = Bench::protected32();
    bench.poke(0x20_0000, &[0x78, 0x56, 0x34, 0x12, 0x40, 0]);
    bench.cpu.state.gpr[gpr::RBX] = 0x20_0000;
    // lfs ecx, [ebx]
    assert_eq!(bench.execute(&[0x0f, 0xb4, 0x0b]), Err(Exception::gp(0x40)));
    assert_eq!(bench.cpu.state.gpr[gpr::RCX], 0);
    bench.poke(0x20_0004, &[0x10, 0]);
    assert_eq!(bench.execute(&[0x0f, 0xb4, 0x0b]), Ok(()));
    assert_eq!(bench.cpu.state.gpr[gpr::RCX], 0x1234_5678);
    assert_eq!(bench.cpu.state.segments[seg::FS].selector, 0x10);
}

#[test]
fn base_instructions_obey_fsgsbase_and_canonicity() {
    let mut bench = Bench::long64();
    let wrgsbase_rax = [0xf3, 0x48, 0x0f, 0xae, 0xd8];
    bench.cpu.state.gpr[gpr::RAX] = 0x7fff_1234_5678;
    assert_eq!(bench.execute(&wrgsbase_rax), Err(Exception::UD));
    bench.cpu.state.cr4 |= cr4::FSGSBASE;
    bench.cpu.mode_changed();
    assert_eq!(bench.execute(&wrgsbase_rax), Ok(()));
    assert_eq!(bench.cpu.state.segments[seg::GS].base, 0x7fff_1234_5678);
    bench.cpu.state.gpr[gpr::RAX] = 1 << 47;
    assert_eq!(bench.execute(&wrgsbase_rax), Err(Exception::GP0));
    // swapgs
    bench.cpu.state.msrs.kernel_gs_base = 0x1000;
    assert_eq!(bench.execute(&[0x0f, 0x01, 0xf8]), Ok(()));
    assert_eq!(bench.cpu.state.segments[seg::GS].base, 0x1000);
    assert_eq!(bench.cpu.state.msrs.kernel_gs_base, 0x7fff_1234_5678);
}

#[test]
fn a_null_load_of_fs_in_long_mode_keeps_the_base_on_amd_only() {
    let mut bench = Bench::long64();
    bench.cpu.state.segments[seg::FS].base = 0x1234_0000_0000;
    assert_eq!(load(&mut bench, &MOV_FS_AX, 0), Ok(()));
    let is_amd = bench.cpu.env.cpuid.vendor() == Vendor::Amd;
    let expected = if is_amd { 0x1234_0000_0000 } else { 0 };
    assert_eq!(bench.cpu.state.segments[seg::FS].base, expected);
}
