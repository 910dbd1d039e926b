//! Accesses over page ends, to devices and the local APIC, locked ones of two CPUs, and alignment.

use std::sync::{Arc, Mutex};

use cpu::engine::{Vcpu, VmExit};
use cpu::exception::Exception;
use cpu::state::{cr0, gpr, rflags};
use cpu::testing::{Bench, CODE, DATA, page};
use memory::{Device, GuestPhysical, IoError, RegionKind, Width};

/// An instruction on `[rbx]`, the bytes it accesses and whether it writes.
const INSTRUCTIONS: [(&str, &[u8], u64, bool); 9] = [
    ("mov ax, [rbx]", &[0x66, 0x8b, 0x03], 2, false),
    ("mov eax, [rbx]", &[0x8b, 0x03], 4, false),
    ("mov rax, [rbx]", &[0x48, 0x8b, 0x03], 8, false),
    ("mov [rbx], ax", &[0x66, 0x89, 0x03], 2, true),
    ("mov [rbx], eax", &[0x89, 0x03], 4, true),
    ("mov [rbx], rax", &[0x48, 0x89, 0x03], 8, true),
    ("add [rbx], rax", &[0x48, 0x01, 0x03], 8, true),
    ("lock add [rbx], eax", &[0xf0, 0x01, 0x03], 4, true),
    ("movups [rbx], xmm0", &[0x0f, 0x11, 0x03], 16, true),
];

const VALUE: u64 = 0x8877_6655_4433_2211;
/// The end of [`DATA`]'s page.
const END: u64 = DATA + 0x1000;

fn bench(linear: u64) -> Bench {
    let mut bench = Bench::long64();
    bench.cpu.state.gpr[gpr::RBX] = linear;
    bench.cpu.state.gpr[gpr::RAX] = VALUE;
    bench
}

#[test]
fn scalars_are_whole_at_every_offset_around_a_page_end() {
    for offset in 1..=24 {
        let at = END - offset;
        for (name, code, bytes, is_write) in INSTRUCTIONS.into_iter().filter(|row| row.2 <= 8) {
            // Once with nothing cached and once with everything.
            let mut bench = bench(at);
            let mask = u64::MAX >> (64 - 8 * bytes);
            for round in 0..2 {
                bench.poke(END - 32, &[0; 64]);
                bench.cpu.state.gpr[gpr::RAX] = VALUE;
                if is_write {
                    bench.execute(code).unwrap();
                    let found = u64::from_le_bytes(bench.peek(at));
                    assert_eq!(found, VALUE & mask, "{name} at -{offset}, {round}");
                } else {
                    bench.poke(at, &VALUE.to_le_bytes());
                    bench.cpu.state.gpr[gpr::RAX] = 0;
                    bench.execute(code).unwrap();
                    assert_eq!(bench.cpu.state.gpr[gpr::RAX], VALUE & mask, "{name} at -{offset}");
                }
            }
        }
    }
}

/// The fault is the second page's, with its first byte in CR2, and nothing has been written.
#[test]
fn a_fault_in_the_second_page_leaves_the_first_alone() {
    for (name, code, bytes, is_write) in INSTRUCTIONS {
        for before in 1..bytes {
            let mut bench = bench(END - before);
            bench.poke(END - 16, &[0x5a; 32]);
            bench.cpu.state.fpu.zmm[0] = [0xff; 64];
            bench.protect(END, 0);
            let error = if is_write { 2 } else { 0 };
            let outcome = bench.execute(code);
            assert_eq!(outcome, Err(Exception::pf(error)), "{name}, {before} bytes before");
            assert_eq!(bench.cpu.state.cr2, END, "{name}");
            assert_eq!(bench.peek(END - 16), [0x5a; 32], "{name}");
            assert_eq!(bench.cpu.state.gpr[gpr::RAX], VALUE, "{name}");
            assert_eq!(bench.cpu.state.rip, CODE);
        }
    }
}

#[test]
fn a_fault_in_the_first_page_comes_before_one_in_the_second() {
    for (name, code, _, is_write) in INSTRUCTIONS {
        let mut bench = bench(END - 1);
        bench.protect(END, 0);
        bench.protect(DATA, 0);
        let error = if is_write { 2 } else { 0 };
        assert_eq!(bench.execute(code), Err(Exception::pf(error)), "{name}");
        assert_eq!(bench.cpu.state.cr2, END - 1, "{name}");
    }
}

#[test]
fn a_read_only_second_page_stops_writes_only() {
    for (name, code, _, is_write) in INSTRUCTIONS {
        let mut bench = bench(END - 1);
        bench.cpu.state.cr0 |= cr0::WP;
        bench.protect(END, page::PRESENT);
        let expected = if is_write { Err(Exception::pf(3)) } else { Ok(()) };
        assert_eq!(bench.execute(code), expected, "{name}");
    }
}

/// Two pages side by side that are not side by side in memory.
#[test]
fn the_two_halves_go_to_their_own_frames() {
    let mut bench = bench(END - 3);
    let far = 0x50_0000;
    // The bench's table is identical but for this entry.
    bench.poke(0x4000 + 8 * (END >> 12), &(far | 7_u64).to_le_bytes());
    bench.control_changed();
    bench.execute(&[0x48, 0x89, 0x03]).unwrap();
    assert_eq!(bench.peek(END - 3), [0x11, 0x22, 0x33]);
    assert_eq!(bench.peek(far), [0x44, 0x55, 0x66, 0x77, 0x88]);
    assert_eq!(bench.peek(END), [0; 5]);
}

/// Read or write, offset, width, and the value written.
type Access = (char, u64, Width, u64);

#[derive(Default)]
struct Recorder(Mutex<Vec<Access>>);

impl Device for Recorder {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        self.0.lock().unwrap().push(('r', offset, width, 0));
        Ok(0x1020_3040_5060_7080 & width.mask())
    }
    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        self.0.lock().unwrap().push(('w', offset, width, value));
        Ok(())
    }
}

/// Where the device is; without paging all of 4 GiB can be reached.
const DEVICE: u64 = 0xd000_0000;

fn with_device() -> (Bench, Arc<Recorder>) {
    let mut bench = Bench::protected32();
    let device = Arc::<Recorder>::default();
    let kind = RegionKind::Device(device.clone());
    bench.cpu.env.space.map(GuestPhysical(DEVICE), 0x1000, kind).unwrap();
    bench.cpu.state.gpr[gpr::RBX] = DEVICE + 8;
    bench.cpu.state.gpr[gpr::RAX] = VALUE & 0xffff_ffff;
    (bench, device)
}

#[test]
fn a_device_sees_each_access_once_and_in_its_width() {
    use Width::{Byte, Dword, Word};
    let value = 0x4433_2211;
    let rows: [(&[u8], &[Access]); 6] = [
        (&[0x8a, 0x03], &[('r', 8, Byte, 0)]),
        (&[0x66, 0x8b, 0x03], &[('r', 8, Word, 0)]),
        (&[0x8b, 0x03], &[('r', 8, Dword, 0)]),
        (&[0x89, 0x03], &[('w', 8, Dword, value)]),
        (&[0x66, 0x89, 0x03], &[('w', 8, Word, 0x2211)]),
        // or [ebx], eax: read once, written once, locked or not.
        (&[0xf0, 0x09, 0x03], &[('r', 8, Dword, 0), ('w', 8, Dword, value | 0x5060_7080)]),
    ];
    for (code, expected) in rows {
        let (mut bench, device) = with_device();
        // The second time nothing may come from a cache.
        for _ in 0..2 {
            bench.cpu.state.gpr[gpr::RAX] = value;
            bench.execute(code).unwrap();
            assert_eq!(std::mem::take(&mut *device.0.lock().unwrap()), expected, "{code:x?}");
        }
    }
}

#[test]
fn an_access_from_ram_into_a_device_is_split() {
    let (mut bench, device) = with_device();
    let ram = DEVICE - 0x1000;
    bench.cpu.env.space.map(GuestPhysical(ram), 0x1000, RegionKind::Ram(DATA)).unwrap();
    bench.cpu.run(0);
    bench.cpu.state.gpr[gpr::RBX] = DEVICE - 1;
    bench.execute(&[0x89, 0x03]).unwrap();
    assert_eq!(bench.peek(DATA + 0xfff), [0x11]);
    let expected = [('w', 0, Width::Word, 0x3322), ('w', 2, Width::Byte, 0x44)];
    assert_eq!(*device.0.lock().unwrap(), expected);
}

/// What a device does to memory by DMA while it is written, the next instruction sees.
#[test]
fn a_write_to_a_device_ends_the_block() {
    struct Patcher(Arc<memory::PhysicalSpace>);
    impl Device for Patcher {
        fn read(&self, _: u64, _: Width) -> Result<u64, IoError> {
            Err(IoError::NoRegister)
        }
        fn write(&self, _: u64, _: Width, _: u64) -> Result<(), IoError> {
            // mov cl, 2 in the place of mov cl, 1.
            self.0.dma_write(GuestPhysical(CODE + 3), &[2]).map_err(|_| IoError::NoRegister)
        }
    }
    let mut bench = Bench::protected32();
    let space = bench.cpu.env.space.clone();
    let kind = RegionKind::Device(Arc::new(Patcher(space.clone())));
    space.map(GuestPhysical(DEVICE), 0x1000, kind).unwrap();
    // mov [ebx], eax; mov cl, 1; hlt
    bench.put_code_at(CODE, &[0x89, 0x03, 0xb1, 0x01, 0xf4]);
    bench.cpu.state.gpr[gpr::RBX] = DEVICE;
    assert!(matches!(bench.cpu.run(10), VmExit::Halt { .. }));
    assert_eq!(bench.cpu.state.gpr[gpr::RCX] & 0xff, 2);
}

#[test]
fn the_local_apic_s_page_lies_over_whatever_is_there() {
    let mut bench = Bench::protected32();
    bench.cpu.state.gpr[gpr::RBX] = DATA + 0x20;
    bench.cpu.state.gpr[gpr::RCX] = 0x1b;
    bench.cpu.state.gpr[gpr::RDX] = 0;
    let move_to = |bench: &mut Bench, base: u64| {
        bench.cpu.state.gpr[gpr::RAX] = base;
        bench.execute(&[0x0f, 0x30]).unwrap();
    };
    bench.poke(DATA + 0x20, &0x1234_5678_u32.to_le_bytes());
    let read = |bench: &mut Bench| {
        bench.execute(&[0x8b, 0x03]).unwrap();
        bench.cpu.state.gpr[gpr::RAX]
    };
    assert_eq!(read(&mut bench), 0x1234_5678);
    // Enabled, on the bootstrap processor, over the page of data.
    move_to(&mut bench, DATA | 0x900);
    assert_eq!(read(&mut bench), !0x20 & 0xffff_ffff);
    bench.cpu.state.gpr[gpr::RAX] = 0xcafe;
    bench.execute(&[0x89, 0x03]).unwrap();
    assert_eq!(*bench.lapic.writes.lock().unwrap(), [(0x20, Width::Dword, 0xcafe)]);
    assert_eq!(bench.peek(DATA + 0x20), 0x1234_5678_u32.to_le_bytes());
    // Elsewhere: the memory is back.
    move_to(&mut bench, 0xfee0_0900);
    assert_eq!(read(&mut bench), 0x1234_5678);
}

/// lock inc qword [rbx]; dec ecx; jnz; hlt
const COUNT: [u8; 9] = [0xf0, 0x48, 0xff, 0x03, 0xff, 0xc9, 0x75, 0xf8, 0xf4];

/// In a line, over two lines, and over two pages.
#[test]
fn locked_increments_of_two_cpus_all_count() {
    const ROUNDS: u64 = 3000;
    for at in [DATA, DATA + 61, END - 3] {
        let mut bench = bench(at);
        bench.put_code_at(CODE, &COUNT);
        bench.cpu.state.gpr[gpr::RCX] = ROUNDS;
        let mut second = bench.second_cpu();
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(matches!(second.run(u64::MAX), VmExit::Halt { .. })));
            assert!(matches!(bench.cpu.run(u64::MAX), VmExit::Halt { .. }));
        });
        assert_eq!(u64::from_le_bytes(bench.peek(at)), 2 * ROUNDS, "at {at:#x}");
    }
}

/// SDM Vol. 3A, "Interrupt 17-Alignment Check Exception (#AC)".
#[test]
fn misaligned_data_of_user_code_faults_when_asked_to() {
    for (am, ac, cpl) in [(true, true, 3), (false, true, 3), (true, false, 3), (true, true, 0)] {
        for (name, code, bytes, _) in INSTRUCTIONS.into_iter().filter(|row| row.2 <= 8) {
            for offset in [0, 1, 2, 3, 4, 6, 0xffd, 0xffe] {
                let mut bench = bench(DATA + offset);
                bench.cpu.state.cr0 |= if am { cr0::AM } else { 0 };
                bench.cpu.state.rflags |= if ac { rflags::AC } else { 0 };
                bench.set_cpl(cpl);
                let is_checked = am && ac && cpl == 3;
                let expected =
                    if is_checked && offset % bytes != 0 { Err(Exception::AC) } else { Ok(()) };
                let outcome = bench.execute(code);
                assert_eq!(outcome, expected, "{name} at {offset:#x}, {am} {ac} CPL {cpl}");
            }
        }
    }
}
