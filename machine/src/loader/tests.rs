//! All formats, whole and damaged, against the memory they leave behind.

use proptest::prelude::*;

use super::test_machine::TestMemory;
use super::*;
use crate::layout::boot;

const MIB: u64 = 1 << 20;

fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage of protocol 2.15 with 4 KiB of code.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0u8; 1024];
    put(&mut image, 0x1f1, &[1]);
    put(&mut image, 0x1f4, &(4096u32 / 16).to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x20f_u16.to_le_bytes());
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000_u32.to_le_bytes());
    put(&mut image, 0x234, &[1]);
    put(&mut image, 0x236, &3u16.to_le_bytes());
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &0x100_0000_u64.to_le_bytes());
    put(&mut image, 0x260, &0x200_0000_u32.to_le_bytes());
    image.extend([0x90; 4096]);
    image
}

fn kernel(image: Vec<u8>) -> Kernel {
    Kernel {
        image,
        name: "kernel".into(),
        command_line: "console=ttyS0 quiet".into(),
        modules: Vec::new(),
    }
}

fn with_initrd(image: Vec<u8>, bytes: usize) -> Kernel {
    let module = Module { data: vec![0x1d; bytes], command_line: "initrd".into() };
    Kernel { modules: vec![module], ..kernel(image) }
}

/// An ELF file of class `bits` with one segment of `code` at `address` and, if asked, a PVH note.
fn elf(bits: u32, address: u64, code: &[u8], bss: u64, pvh_entry: Option<u32>) -> Vec<u8> {
    let (header, entry_size) = if bits == 64 { (64, 56) } else { (52, 32) };
    let mut note = Vec::new();
    if let Some(entry) = pvh_entry {
        // A foreign note first, of odd sizes, so that padding counts.
        note.extend([3u32, 5, 1].map(u32::to_le_bytes).concat());
        note.extend(b"GN\0\0hello\0\0\0");
        note.extend([4u32, 4, 18].map(u32::to_le_bytes).concat());
        note.extend(b"Xen\0");
        note.extend(entry.to_le_bytes());
    }
    let data_at = header + 2 * entry_size;
    let note_at = data_at + code.len();
    let mut image = b"\x7fELF\x01\x01\x01".to_vec();
    image[4] = if bits == 64 { 2 } else { 1 };
    image.resize(16, 0);
    image.extend([2u16, if bits == 64 { 62 } else { 3 }].map(u16::to_le_bytes).concat());
    image.extend(1u32.to_le_bytes());
    let word = |value: u64| value.to_le_bytes()[..bits as usize / 8].to_vec();
    image.extend([word(address + 0x10), word(header as u64), word(0)].concat());
    image.extend(0u32.to_le_bytes());
    image.extend([header, entry_size, 2, 0, 0, 0].map(|v| (v as u16).to_le_bytes()).concat());
    let segments = [
        (1u32, data_at, address, code.len() as u64, code.len() as u64 + bss),
        (4, note_at, 0, note.len() as u64, note.len() as u64),
    ];
    for (kind, offset, physical, file, memory) in segments {
        image.extend(kind.to_le_bytes());
        if bits == 64 {
            image.extend(0u32.to_le_bytes());
        }
        let fields = [offset as u64, physical, physical, file, memory];
        image.extend(fields.map(word).concat());
        if bits == 32 {
            image.extend(0u32.to_le_bytes());
        }
        image.extend(word(4));
    }
    assert_eq!(image.len(), data_at);
    image.extend(code);
    image.extend(note);
    image
}

fn multiboot_code(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002_u32;
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let mut code: Vec<u8> = [magic, flags, checksum].map(u32::to_le_bytes).concat();
    code.extend(addresses.iter().flat_map(|word| word.to_le_bytes()));
    code.resize(256, 0x90);
    code
}

#[test]
fn bzimage_is_entered_in_long_mode_with_boot_params() {
    let memory = TestMemory::new(128 * MIB);
    let state = load(&with_initrd(bzimage(), 5000), &memory.target()).unwrap();
    let BootState::Long64 { entry, registers, cr3, gdt } = state else { panic!("{state:?}") };
    assert_eq!(entry, 0x100_0200);
    assert_eq!(memory.bytes(0x100_0000, 4096), [0x90; 4096]);
    let params = registers.rsi;
    assert_eq!(memory.bytes(params + 0x202, 4), b"HdrS");
    assert_eq!(memory.bytes(params + 0x210, 1), [0xff]);
    assert_eq!(memory.text(memory.u32(params + 0x228).into()), "console=ttyS0 quiet");
    assert_eq!(memory.u64(params + 0x70), crate::layout::RSDP_BASE);
    let entries = memory.bytes(params + 0x1e8, 1)[0];
    assert_eq!(usize::from(entries), memory.map.entries().len());
    for (index, entry) in (0u64..).zip(memory.map.entries()) {
        let at = params + 0x2d0 + 20 * index;
        assert_eq!((memory.u64(at), memory.u64(at + 8)), (entry.base, entry.bytes));
        assert_eq!(memory.u32(at + 16), entry.kind as u32);
    }
    let initrd = u64::from(memory.u32(params + 0x218));
    assert_eq!(memory.u32(params + 0x21c), 5000);
    assert_eq!(memory.bytes(initrd, 5000), [0x1d; 5000]);
    assert_eq!(initrd % 4096, 0);
    assert!(memory.map.is_usable(initrd, 5000) && initrd >= 0x300_0000);
    assert_eq!(memory.u64(gdt.base + 0x10), 0x00af_9b00_0000_ffff);
    assert_eq!(walk(&memory, cr3, 0xfee0_0123), 0xfee0_0123);
    assert_eq!(walk(&memory, cr3, 0x100_0200), 0x100_0200);
}

/// Translates `address` through page tables of 2 MiB pages.
fn walk(memory: &TestMemory, cr3: u64, address: u64) -> u64 {
    let entry = |table: u64, shift: u32| memory.u64(table + 8 * (address >> shift & 511));
    let pdpt = entry(cr3, 39);
    let directory = entry(pdpt & !0xfff, 30);
    let page = entry(directory & !0xfff, 21);
    assert_eq!((pdpt & 1, directory & 1, page & 0x81), (1, 1, 0x81));
    (page & !0x1f_ffff) | (address & 0x1f_ffff)
}

#[test]
fn bzimage_without_64_bit_entry_is_entered_in_protected_mode() {
    let memory = TestMemory::new(128 * MIB);
    let mut image = bzimage();
    put(&mut image, 0x236, &[0, 0]);
    let state = load(&kernel(image), &memory.target()).unwrap();
    let BootState::Protected32 { entry, registers, gdt } = state else { panic!("{state:?}") };
    assert_eq!((entry, registers.rsi), (0x100_0000, boot::BOOT_PARAMS));
    assert_eq!(memory.u64(gdt.unwrap().base + 0x10), 0x00cf_9b00_0000_ffff);
}

#[test]
fn an_old_fixed_kernel_goes_to_1_mib() {
    let memory = TestMemory::new(64 * MIB);
    let mut image = bzimage();
    put(&mut image, 0x206, &0x204_u16.to_le_bytes());
    let state = load(&kernel(image), &memory.target()).unwrap();
    assert!(matches!(state, BootState::Protected32 { entry: 0x10_0000, .. }), "{state:?}");
}

#[test]
fn a_relocatable_kernel_moves_where_there_is_room() {
    let memory = TestMemory::new(36 * MIB);
    let state = load(&kernel(bzimage()), &memory.target()).unwrap();
    assert!(matches!(state, BootState::Long64 { entry: 0x20_0200, .. }), "{state:?}");
}

#[test]
fn a_large_initrd_goes_above_4_gib_if_the_kernel_can() {
    let memory = TestMemory::new(4 << 30);
    let mut image = bzimage();
    put(&mut image, 0x22c, &0x3ff_ffff_u32.to_le_bytes());
    load(&with_initrd(image.clone(), 32 << 20), &memory.target()).unwrap();
    let params = boot::BOOT_PARAMS;
    assert_ne!(memory.u32(params + 0xc0), 0);
    put(&mut image, 0x236, &1u16.to_le_bytes());
    let error = load(&with_initrd(image, 32 << 20), &memory.target()).unwrap_err();
    assert!(matches!(error, LoadError::InitrdTooLarge { bytes: 0x200_0000, .. }), "{error}");
}

#[test]
fn damaged_bzimages_are_refused_by_what_is_wrong() {
    let broken = |offset: usize, bytes: &[u8]| {
        let mut image = bzimage();
        put(&mut image, offset, bytes);
        image
    };
    let load_in = |memory: u64, image: Vec<u8>| {
        load(&kernel(image), &TestMemory::new(memory).target()).unwrap_err()
    };
    let full = bzimage();
    let truncated = load_in(64 * MIB, full[..full.len() - 1].to_vec());
    assert!(matches!(truncated, LoadError::Truncated { needed: 5120, size: 5119, .. }));
    let header = load_in(64 * MIB, full[..0x240].to_vec());
    assert!(matches!(header, LoadError::Truncated { .. }), "{header}");
    let old = load_in(64 * MIB, broken(0x206, &[1, 2]));
    assert_eq!(old, LoadError::OldProtocol { version: 0x201 });
    assert_eq!(load_in(64 * MIB, broken(0x211, &[0])), LoadError::ZImage);
    let alignment = load_in(64 * MIB, broken(0x230, &[3, 0, 0, 0]));
    assert_eq!(alignment, LoadError::Field { field: "kernel_alignment", value: 3 });
    let small = load_in(16 * MIB, full.clone());
    assert!(matches!(small, LoadError::MemoryTooSmall { needed: 0x200_0000, .. }), "{small}");
    assert_eq!(load_in(64 * MIB, Vec::new()), LoadError::Empty);
    assert_eq!(load_in(64 * MIB, vec![0; 777]), LoadError::NotAKernel { size: 777 });

    let memory = TestMemory::new(64 * MIB);
    let mut long = kernel(full.clone());
    long.command_line = "x".repeat(2048);
    let error = load(&long, &memory.target()).unwrap_err();
    assert_eq!(error, LoadError::CommandLine { bytes: 2048, limit: 2047 });
    let error = load(&with_initrd(full.clone(), 64 << 20), &memory.target()).unwrap_err();
    assert!(matches!(error, LoadError::InitrdTooLarge { .. }), "{error}");
    let mut two = with_initrd(full, 1);
    two.modules.push(Module::default());
    assert_eq!(load(&two, &memory.target()), Err(LoadError::ManyInitrds { count: 2 }));
}

#[test]
fn vmlinux_is_entered_at_its_pvh_note() {
    let memory = TestMemory::new(64 * MIB);
    // What an earlier kernel left in the bss must not stay.
    memory.space.dma_write(GuestPhysical(0x100_0100), &[0xee; 9000]).unwrap();
    let image = elf(64, 0x100_0000, &[0x90; 256], 9000, Some(0x100_0040));
    let state = load(&with_initrd(image, 100), &memory.target()).unwrap();
    let BootState::Protected32 { entry, registers, .. } = state else { panic!("{state:?}") };
    assert_eq!(entry, 0x100_0040);
    assert_eq!(memory.bytes(0x100_0000, 256), [0x90; 256]);
    assert_eq!(memory.bytes(0x100_0100, 9000), [0; 9000]);
    let info = registers.rbx;
    assert_eq!((memory.u32(info), memory.u32(info + 4)), (0x336e_c578, 1));
    assert_eq!(memory.u32(info + 12), 1);
    let list = memory.u64(info + 16);
    assert_eq!(memory.bytes(memory.u64(list), 100), [0x1d; 100]);
    assert_eq!(memory.u64(list + 8), 100);
    assert_eq!(memory.text(memory.u64(info + 24)), "console=ttyS0 quiet");
    assert_eq!(memory.u64(info + 32), crate::layout::RSDP_BASE);
    assert_eq!(memory.u32(info + 48) as usize, memory.map.entries().len());
    let map = memory.u64(info + 40);
    assert_eq!(memory.u64(map + 8), memory.map.entries()[0].bytes);
    assert_eq!(memory.u32(map + 16), 1);
}

#[test]
fn elf_files_that_cannot_start_are_refused_by_name() {
    let memory = TestMemory::new(64 * MIB);
    let refuse = |image: Vec<u8>| load(&kernel(image), &memory.target()).unwrap_err();
    assert_eq!(refuse(elf(64, 0x100_0000, &[0; 64], 0, None)), LoadError::ElfWithoutEntry);
    let multiboot = multiboot_code(0, &[]);
    assert_eq!(refuse(elf(64, 0x100_0000, &multiboot, 0, None)), LoadError::Multiboot64);
    let mut arm = elf(64, 0x100_0000, &[0; 64], 0, Some(1));
    put(&mut arm, 18, &183u16.to_le_bytes());
    assert_eq!(refuse(arm), LoadError::ForeignElf { field: "e_machine", value: 183 });
    let outside = refuse(elf(64, 64 * MIB, &[0; 64], 0, Some(1)));
    assert!(matches!(outside, LoadError::NoRoom { address: 0x400_0000, .. }), "{outside}");
    let bss = refuse(elf(64, 0x100_0000, &[0; 64], u64::MAX - 64, Some(1)));
    assert!(matches!(bss, LoadError::NoRoom { .. }), "{bss}");
    let cut = elf(64, 0x100_0000, &[0; 64], 0, Some(1));
    let cut = refuse(cut[..100].to_vec());
    assert!(matches!(cut, LoadError::Truncated { .. }), "{cut}");
}

#[test]
fn multiboot_elf_gets_modules_memory_map_and_name() {
    let memory = TestMemory::new(64 * MIB);
    let image = elf(32, 0x40_0000, &multiboot_code(3, &[]), 0x1234, None);
    let state = load(&with_initrd(image, 5000), &memory.target()).unwrap();
    let BootState::Protected32 { entry, registers, gdt } = state else { panic!("{state:?}") };
    assert_eq!((entry, registers.rax, gdt), (0x40_0010, 0x2bad_b002, None));
    let info = registers.rbx;
    assert!(info >= 0x40_0100 + 0x1234);
    assert_eq!(memory.u32(info), 0x24d);
    assert_eq!(memory.u32(info + 4), 639);
    assert_eq!(u64::from(memory.u32(info + 8)), (63 * MIB - (128 << 10)) >> 10);
    assert_eq!(memory.text(memory.u32(info + 16).into()), "kernel console=ttyS0 quiet");
    assert_eq!(memory.u32(info + 20), 1);
    let module = u64::from(memory.u32(info + 24));
    let (start, end) = (memory.u32(module), memory.u32(module + 4));
    assert_eq!((start % 4096, end - start), (0, 5000));
    assert_eq!(memory.bytes(start.into(), 5000), [0x1d; 5000]);
    assert_eq!(memory.text(memory.u32(module + 8).into()), "initrd");
    assert_eq!(memory.u32(info + 44) as usize, 24 * memory.map.entries().len());
    let map = u64::from(memory.u32(info + 48));
    assert_eq!((memory.u32(map), memory.u64(map + 12)), (20, 0x9_fc00));
    assert_eq!(memory.text(memory.u32(info + 64).into()), "Volvelle");
}

#[test]
fn multiboot_address_fields_place_a_raw_image() {
    let memory = TestMemory::new(64 * MIB);
    let base = 0x20_0000;
    let mut image = vec![0xcc; 64];
    image.extend(multiboot_code(1 << 16, &[base + 64, base, base + 320, base + 400, base + 8]));
    let state = load(&kernel(image.clone()), &memory.target()).unwrap();
    assert!(matches!(state, BootState::Protected32 { entry: 0x20_0008, .. }), "{state:?}");
    assert_eq!(memory.bytes(base.into(), 320), image);
    // Real mode test images load just above the interrupt vectors.
    let low = multiboot_code(1 << 16, &[0x4000, 0x4000, 0, 0, 0x4000]);
    load(&kernel(low), &memory.target()).unwrap();
    let unknown = load(&kernel(multiboot_code(0x1_0008, &[])), &memory.target()).unwrap_err();
    assert_eq!(unknown, LoadError::MultibootFlags { flags: 8 });
    for addresses in [
        [base, base + 1, 0, 0, 0],
        [base + 65, base, 0, 0, 0],
        [base, base, base - 1, 0, 0],
        [base, base, base + 16, base + 8, 0],
    ] {
        let image = multiboot_code(1 << 16, &addresses);
        let error = load(&kernel(image), &memory.target()).unwrap_err();
        assert!(matches!(error, LoadError::Field { .. }), "{addresses:x?}: {error}");
    }
}

#[test]
fn messages_are_one_line_that_names_the_numbers() {
    let error = LoadError::OldProtocol { version: 0x201 };
    assert_eq!(error.to_string(), "Linux boot protocol 2.01 is too old, 2.02 is the least");
    let error = LoadError::InitrdTooLarge { bytes: 0x1000, available: 0x800 };
    assert!(error.to_string().contains("0x1000") && !error.to_string().contains('\n'));
}

/// Images that begin well and then have bytes changed and their end cut off.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let whole = prop_oneof![
        Just(bzimage()),
        Just(elf(64, 0x100_0000, &[0x90; 256], 4096, Some(0x100_0000))),
        Just(elf(32, 0x100_0000, &multiboot_code(0, &[]), 4096, None)),
        Just(multiboot_code(1 << 16, &[0x20_0000, 0x20_0000, 0, 0, 0x20_0000])),
        proptest::collection::vec(any::<u8>(), 0..2048),
    ];
    let changes = proptest::collection::vec((any::<usize>(), any::<u8>()), 0..8);
    (whole, changes, any::<usize>(), any::<bool>()).prop_map(|(mut image, changes, cut, cuts)| {
        for (at, byte) in changes {
            let length = image.len().max(1);
            // Most fields are in the first sectors.
            if let Some(slot) = image.get_mut(at % length) {
                *slot = byte;
            }
        }
        if cuts {
            image.truncate(cut % (image.len() + 1));
        }
        image
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_image_panics_and_no_entry_is_without_memory(image in damaged()) {
        let memory = TestMemory::new(40 * MIB);
        let target = memory.target();
        for load in [load, bzimage::load, elf_pvh::load, multiboot::load] {
            // Either outcome will do; what counts is that there is one.
            let _ = load(&with_initrd(image.clone(), 100), &target);
        }
    }
}
