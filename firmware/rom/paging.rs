//! Page tables (SDM Vol. 3A, "Paging"), built by the 32-bit stage with paging off.

use iced_x86::code_asm::*;

use crate::rom::layout::{
    ALIAS_PAGE, ALIAS_PT32, DEMO_FRAME, DEMO_PAGE, DEMO_PD, DEMO_PT, PAGE_TABLES, PAGE_TABLES_END,
    PD, PD32, PDPT, PML4, PT32,
};
use crate::rom::stage::{Emit, Stage};

/// P.
pub const PRESENT: u32 = 1;
/// R/W.
pub const WRITABLE: u32 = 1 << 1;
/// U/S.
pub const USER: u32 = 1 << 2;
/// A.
pub const ACCESSED: u32 = 1 << 5;
/// D.
pub const DIRTY: u32 = 1 << 6;
/// PS.
const LARGE: u32 = 1 << 7;
/// What the entries above a leaf allow: everything; the leaf decides.
const TABLE: u32 = PRESENT | WRITABLE | USER;

/// CR4.PAE.
const CR4_PAE: u32 = 1 << 5;
/// IA32_EFER.
pub const IA32_EFER: u32 = 0xC000_0080;
/// IA32_EFER.SCE, .LME, .NXE.
const EFER_ENABLES: u32 = 1 | 1 << 8 | 1 << 11;
/// CR0.PG and CR0.WP, so that ring 0 respects read-only pages.
const CR0_PG_WP: u32 = 1 << 31 | 1 << 16;

/// Two levels: 4 MiB onto themselves, and two linear pages at `ALIAS_PAGE` for `DEMO_FRAME`.
pub fn build_two_level(s: &mut Stage) -> Emit {
    clear_tables(s)?;
    s.mov(dword_ptr(PD32), (PT32 | TABLE) as i32)?;
    s.mov(dword_ptr(PD32 + (ALIAS_PAGE >> 22) * 4), (ALIAS_PT32 | TABLE) as i32)?;
    for page in 0..2 {
        s.mov(dword_ptr(ALIAS_PT32 + page * 4), (DEMO_FRAME | PRESENT | WRITABLE) as i32)?;
    }
    fill(s, PT32, 1024, Entries { first: PRESENT | WRITABLE, stride: 0x1000, bytes: 4 })
}

/// Four levels: 4 GiB onto themselves in 2 MiB pages, only the first of them ring 3's too, and the
/// tables of the demonstration page, whose own entry stays absent.
pub fn build_four_level(s: &mut Stage) -> Emit {
    clear_tables(s)?;
    s.mov(dword_ptr(PML4), (PDPT | TABLE) as i32)?;
    for gigabyte in 0..4 {
        let table = PD + gigabyte * 0x1000;
        s.mov(dword_ptr(PDPT + gigabyte * 8), (table | TABLE) as i32)?;
    }
    let demo_pdpte = PDPT + (DEMO_PAGE >> 30) as u32 * 8;
    s.mov(dword_ptr(demo_pdpte), (DEMO_PD | TABLE) as i32)?;
    s.mov(dword_ptr(DEMO_PD), (DEMO_PT | TABLE) as i32)?;
    let large = Entries { first: PRESENT | WRITABLE | LARGE, stride: 0x20_0000, bytes: 8 };
    fill(s, PD, 2048, large)?;
    s.or(dword_ptr(PD), USER as i32)
}

/// A run of leaf entries.
struct Entries {
    first: u32,
    stride: u32,
    bytes: u32,
}

fn fill(s: &mut Stage, table: u32, count: u32, entries: Entries) -> Emit {
    let mut next = s.create_label();
    s.mov(edi, table)?;
    s.mov(ecx, count)?;
    s.mov(eax, entries.first)?;
    s.set_label(&mut next)?;
    s.mov(dword_ptr(edi), eax)?;
    s.add(edi, entries.bytes)?;
    s.add(eax, entries.stride)?;
    s.dec(ecx)?;
    s.jne(next)
}

fn clear_tables(s: &mut Stage) -> Emit {
    s.mov(edi, PAGE_TABLES)?;
    s.mov(ecx, (PAGE_TABLES_END - PAGE_TABLES) / 4)?;
    s.xor(eax, eax)?;
    s.rep().stosd()
}

/// 32-bit code that turns on 4-level paging and IA-32e mode (SDM Vol. 3A, "Initializing IA-32e
/// Mode"); a far jump to 64-bit code must follow. Both processors use it.
pub fn enable_long_mode(s: &mut Stage) -> Emit {
    s.mov(eax, cr4)?;
    s.or(eax, CR4_PAE)?;
    s.mov(cr4, eax)?;
    s.mov(eax, PML4)?;
    s.mov(cr3, eax)?;
    s.mov(ecx, IA32_EFER)?;
    s.rdmsr()?;
    s.or(eax, EFER_ENABLES)?;
    s.wrmsr()?;
    s.mov(eax, cr0)?;
    s.or(eax, CR0_PG_WP)?;
    s.mov(cr0, eax)
}
