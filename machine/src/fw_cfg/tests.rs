use super::*;
use crate::device_fuzz::check_chip;
use memory::{Ram, RegionKind};

const RAM_BYTES: u64 = 1 << 20;

fn space() -> Arc<PhysicalSpace> {
    let space = PhysicalSpace::new(Arc::new(Ram::new(RAM_BYTES).expect("1 MiB of RAM")));
    space.map(GuestPhysical(0), RAM_BYTES, RegionKind::Ram(0)).expect("an empty space");
    Arc::new(space)
}

struct Bench {
    device: Arc<FwCfg>,
    space: Arc<PhysicalSpace>,
}

fn bench() -> Bench {
    let space = space();
    Bench { device: FwCfg::new(Arc::clone(&space)), space }
}

impl Bench {
    fn select(&self, key: u16) {
        self.device.write(SELECTOR, Width::Word, u64::from(key)).expect("a register");
    }

    fn bytes(&self, count: usize) -> Vec<u8> {
        let byte = |_| self.device.read(DATA, Width::Byte).expect("a register") as u8;
        (0..count).map(byte).collect()
    }

    /// Runs a DMA command at 1000h; its control word afterwards.
    fn dma(&self, control: u32, length: u32, target: u64) -> u32 {
        let mut command = control.to_be_bytes().to_vec();
        command.extend(length.to_be_bytes());
        command.extend(target.to_be_bytes());
        self.space.dma_write(GuestPhysical(0x1000), &command).expect("RAM");
        let address = u64::from(0x1000u32.swap_bytes());
        self.device.write(DMA_HIGH, Width::Dword, 0).expect("a register");
        self.device.write(DMA_LOW, Width::Dword, address).expect("a register");
        let mut control = [0; 4];
        self.space.dma_read(GuestPhysical(0x1000), &mut control).expect("RAM");
        u32::from_be_bytes(control)
    }

    fn ram(&self, at: u64, count: usize) -> Vec<u8> {
        let mut out = vec![0; count];
        self.space.dma_read(GuestPhysical(at), &mut out).expect("RAM");
        out
    }
}

#[test]
fn signature_and_id_say_what_is_there() {
    let b = bench();
    b.select(key::SIGNATURE);
    assert_eq!(b.bytes(6), *b"QEMU\0\0");
    b.select(key::ID);
    assert_eq!(b.bytes(4), [3, 0, 0, 0]);
    assert_eq!(b.device.read(DMA_HIGH, Width::Qword), Ok(u64::from_le_bytes(*b"QEMU CFG")));
    assert_eq!(b.device.read(DMA_LOW, Width::Dword), Ok(u64::from(u32::from_le_bytes(*b" CFG"))));
}

#[test]
fn numbers_are_little_endian_and_selecting_starts_anew() {
    let b = bench();
    b.device.set_u64(key::RAM_SIZE, 0x1_2345_6789);
    b.device.set_u16(key::NB_CPUS, 2);
    for _ in 0..2 {
        b.select(key::RAM_SIZE);
        assert_eq!(b.bytes(8), 0x1_2345_6789u64.to_le_bytes());
    }
    b.select(key::NB_CPUS | WRITE_CHANNEL);
    assert_eq!(b.bytes(2), [2, 0]);
    b.select(0x0bad);
    assert_eq!(b.bytes(2), [0, 0], "no such item");
}

#[test]
fn the_directory_lists_files_by_name() {
    let b = bench();
    assert_eq!(b.device.add_file("etc/b", *b"second"), Ok(0x20));
    assert_eq!(b.device.add_file("etc/a", *b"first"), Ok(0x21));
    b.select(key::FILE_DIR);
    assert_eq!(b.bytes(4), [0, 0, 0, 2]);
    let entry = b.bytes(64);
    assert_eq!(entry[..13], *b"\0\0\0\x05\0\x21\0\0etc/a");
    assert!(entry[13..].iter().all(|byte| *byte == 0));
    assert_eq!(b.bytes(13), *b"\0\0\0\x06\0\x20\0\0etc/b");
    b.select(0x21);
    assert_eq!(b.bytes(5), *b"first");
}

#[test]
fn refuses_bad_and_double_names() {
    let b = bench();
    for name in ["", "with\0zero", &"x".repeat(56)] {
        assert_eq!(b.device.add_file(name, *b""), Err(FileError::Name(name.to_owned())));
    }
    assert!(b.device.add_file(&"x".repeat(55), *b"").is_ok());
    let again = b.device.add_file(&"x".repeat(55), *b"");
    assert_eq!(again, Err(FileError::Exists("x".repeat(55))));
}

#[test]
fn dma_selects_skips_and_reads_with_zeros_behind_the_end() {
    let b = bench();
    let key = b.device.add_file("opt/file", *b"0123456789").expect("a free key");
    b.space.dma_write(GuestPhysical(0x2000), &[0xee; 16]).expect("RAM");
    assert_eq!(b.dma(u32::from(key) << 16 | DMA_SELECT | DMA_SKIP, 4, 0), 0);
    assert_eq!(b.dma(DMA_READ, 3, 0x2000), 0);
    assert_eq!(b.dma(DMA_READ, 5, 0x2003), 0);
    assert_eq!(b.ram(0x2000, 9), *b"456789\0\0\xee");
}

#[test]
fn dma_errors_are_reported_in_the_control_word() {
    let b = bench();
    assert_eq!(b.dma(DMA_READ, 16, RAM_BYTES - 8), DMA_ERROR, "the target leaves RAM");
    assert_eq!(b.dma(DMA_READ, u32::MAX, 0x2000), DMA_ERROR);
    assert_eq!(b.dma(DMA_WRITE, 1, 0x2000), DMA_ERROR, "nothing is writable");
    // A command outside RAM does nothing and ends.
    b.device.write(DMA_HIGH, Width::Qword, u64::MAX).expect("a register");
}

#[test]
fn state_survives_saving() {
    let b = bench();
    b.select(key::SIGNATURE);
    b.bytes(1);
    let saved = b.device.save();
    b.device.reset();
    b.select(key::ID);
    assert_eq!(b.device.restore(&saved), Ok(()));
    assert_eq!(b.bytes(3), *b"EMU");
}

#[test]
fn takes_any_access() {
    check_chip(|_| {
        let device = FwCfg::new(space());
        device.add_file("etc/file", vec![1; 300]).expect("a free key");
        (Arc::clone(&device), vec![(device as Arc<dyn Device>, 12)])
    });
}
