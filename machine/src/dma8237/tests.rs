use super::*;
use crate::device_fuzz::check_chip;
use memory::{Ram, RegionKind};

const RAM_BYTES: u64 = 1 << 20;
const SINGLE: u8 = 0x40;

fn space() -> Arc<PhysicalSpace> {
    let space = PhysicalSpace::new(Arc::new(Ram::new(RAM_BYTES).expect("1 MiB of RAM")));
    space.map(GuestPhysical(0), RAM_BYTES, RegionKind::Ram(0)).expect("an empty space");
    Arc::new(space)
}

struct Bench {
    dma: Arc<DmaPair>,
    space: Arc<PhysicalSpace>,
}

fn bench() -> Bench {
    let space = space();
    Bench { dma: DmaPair::new(Arc::clone(&space)), space }
}

impl Bench {
    fn write(&self, ports: DmaPorts, offset: u64, value: u8) {
        self.dma.ports(ports).write(offset, Width::Byte, u64::from(value)).expect("a register");
    }

    fn read(&self, ports: DmaPorts, offset: u64) -> u8 {
        self.dma.ports(ports).read(offset, Width::Byte).expect("a register") as u8
    }

    /// Programs channel 2 as a floppy driver would and unmasks it.
    fn program_2(&self, mode: u8, page: u8, address: u16, count: u16) {
        self.write(DmaPorts::First, 0xc, 0);
        for (register, word) in [(4, address), (5, count)] {
            for byte in word.to_le_bytes() {
                self.write(DmaPorts::First, register, byte);
            }
        }
        self.write(DmaPorts::Pages, 1, page);
        self.write(DmaPorts::First, 0xb, mode | 2);
        self.write(DmaPorts::First, 0xa, 2);
    }

    /// Current address and count of channel 2.
    fn current_2(&self) -> (u16, u16) {
        self.write(DmaPorts::First, 0xc, 0);
        let word = |register| {
            let low = self.read(DmaPorts::First, register);
            u16::from_le_bytes([low, self.read(DmaPorts::First, register)])
        };
        (word(4), word(5))
    }

    fn ram(&self, at: u64, count: usize) -> Vec<u8> {
        let mut out = vec![0; count];
        self.space.dma_read(GuestPhysical(at), &mut out).expect("RAM");
        out
    }
}

#[test]
fn a_write_transfer_fills_memory_and_masks_at_terminal_count() {
    let b = bench();
    b.program_2(SINGLE | MODE_WRITE, 3, 0x1000, 7);
    let progress = b.dma.write_memory(2, b"01234");
    assert_eq!(progress, DmaProgress { bytes: 5, is_terminal: false });
    assert_eq!(b.current_2(), (0x1005, 2));
    let progress = b.dma.write_memory(2, b"56789");
    assert_eq!(progress, DmaProgress { bytes: 3, is_terminal: true });
    assert_eq!(b.ram(0x3_1000, 9), *b"01234567\0");
    assert_eq!(b.current_2(), (0x1008, 0xffff));
    assert_eq!(b.read(DmaPorts::First, 8), 1 << 2, "terminal count");
    assert_eq!(b.read(DmaPorts::First, 8), 0, "reading cleared it");
    assert!(!b.dma.is_ready(2));
}

#[test]
fn auto_initialization_starts_again_unmasked() {
    let b = bench();
    b.program_2(SINGLE | MODE_READ | MODE_AUTO_INITIALIZE, 0, 0x2000, 3);
    b.space.dma_write(GuestPhysical(0x2000), b"abcd").expect("RAM");
    let mut out = [0; 4];
    for _ in 0..2 {
        let progress = b.dma.read_memory(2, &mut out);
        assert_eq!(progress, DmaProgress { bytes: 4, is_terminal: true });
        assert_eq!(out, *b"abcd");
    }
    assert_eq!(b.current_2(), (0x2000, 3));
}

#[test]
fn addresses_wrap_inside_their_page_and_go_down_if_told() {
    let b = bench();
    b.program_2(SINGLE | MODE_WRITE, 1, 0xfffe, 3);
    b.dma.write_memory(2, b"wxyz");
    assert_eq!((b.ram(0x1_fffe, 2), b.ram(0x1_0000, 2)), (b"wx".to_vec(), b"yz".to_vec()));
    b.program_2(SINGLE | MODE_WRITE | MODE_DECREMENT, 4, 3, 3);
    assert!(b.dma.write_memory(2, b"dcba").is_terminal);
    assert_eq!(b.ram(0x4_0000, 4), *b"abcd");
}

#[test]
fn word_channels_count_words() {
    let b = bench();
    b.write(DmaPorts::Second, 0x18, 0);
    for (register, word) in [(4u64, 0x0100u16), (6, 1)] {
        for byte in word.to_le_bytes() {
            b.write(DmaPorts::Second, register, byte);
        }
    }
    b.write(DmaPorts::Pages, 0xb, 0x05);
    b.write(DmaPorts::Second, 0x16, SINGLE | MODE_WRITE | 1);
    b.write(DmaPorts::Second, 0x14, 1);
    let progress = b.dma.write_memory(5, b"ABCDE");
    assert_eq!(progress, DmaProgress { bytes: 4, is_terminal: true });
    assert_eq!(b.ram(0x4_0200, 5), *b"ABCD\0");
}

#[test]
fn nothing_moves_when_masked_disabled_or_set_up_otherwise() {
    let b = bench();
    let nothing = DmaProgress::default();
    b.program_2(SINGLE | MODE_WRITE, 0, 0, 9);
    assert_eq!(b.dma.read_memory(2, &mut [0; 4]), nothing, "wrong direction");
    b.write(DmaPorts::First, 8, COMMAND_DISABLE);
    assert_eq!(b.dma.write_memory(2, b"x"), nothing, "controller off");
    b.write(DmaPorts::First, 8, 0);
    b.write(DmaPorts::First, 0xa, SET_BIT | 2);
    assert_eq!(b.dma.write_memory(2, b"x"), nothing, "masked");
    b.write(DmaPorts::First, 0xe, 0);
    b.write(DmaPorts::First, 0xb, MODE_CASCADE | 2);
    assert_eq!(b.dma.write_memory(2, b"x"), nothing, "cascade");
    assert_eq!(b.dma.write_memory(200, b"x"), nothing, "no such channel");
}

#[test]
fn verify_counts_without_moving() {
    let b = bench();
    b.program_2(SINGLE | MODE_VERIFY, 0, 0x3000, 1);
    assert!(b.dma.write_memory(2, b"vv").is_terminal);
    assert_eq!(b.ram(0x3000, 2), [0, 0]);
}

#[test]
fn masks_requests_and_master_clear() {
    let b = bench();
    assert_eq!(b.read(DmaPorts::First, 0xf), 0xff, "all masked after reset");
    b.write(DmaPorts::First, 0xf, 0x05);
    assert_eq!(b.read(DmaPorts::First, 0xf), 0xf5);
    b.dma.set_request(1, true);
    assert_eq!(b.read(DmaPorts::First, 8), 0x20);
    b.write(DmaPorts::First, 0xd, 0);
    assert_eq!((b.read(DmaPorts::First, 8), b.read(DmaPorts::First, 0xf)), (0, 0xff));
}

#[test]
fn state_survives_saving() {
    let b = bench();
    b.program_2(SINGLE | MODE_WRITE, 3, 0x1234, 0x55);
    let saved = b.dma.save();
    b.dma.reset();
    assert_eq!(b.dma.restore(&saved), Ok(()));
    assert_eq!(b.current_2(), (0x1234, 0x55));
    let mut state = State::default();
    state.controllers[1].mask = 0x10;
    let refused = RestoreError::Value { chip: "dma", field: "controllers" };
    assert_eq!(b.dma.restore(&encode(VERSION, &state)), Err(refused));
}

#[test]
fn takes_any_access() {
    check_chip(|_| {
        let pair = DmaPair::new(space());
        let ports = [(DmaPorts::First, 16), (DmaPorts::Second, 32), (DmaPorts::Pages, 16)];
        let ranges = ports.map(|(ports, size)| (pair.ports(ports), size)).into();
        (pair, ranges)
    });
}
