//! Random accesses, images and saved states for the board as a whole.
//!
//! [`crate::device_fuzz`] tries each chip alone; here they are wired to each other, so that one
//! chip's output is another's input and the buses move ranges about while they are used. The board
//! is real ([`Pc`]), its time is counted, and nobody stands behind its power events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memory::{GuestPhysical, Width};

use crate::clock::Clock;
use crate::i8042::MouseInput;
use crate::lapic::LocalApic;
use crate::layout::{self, Form};
use crate::loader::{BootSource, Kernel, Module};
use crate::pc::{DebugExitPorts, Pc, PcConfig, Surroundings};
use crate::serial_backend::Unplugged;
use crate::signals::{CpuSignals, PowerEvent, PowerSink};
use crate::timers::Timers;

/// Guest RAM: enough for every range of the layout below 4 GiB to be where it always is.
const MEMORY_BYTES: u64 = 16 << 20;
/// Longer than any single step may take, with room for a loaded host.
const STEP_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a script that one step takes.
const STEP_BYTES: usize = 12;

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A read left bits above its width.
    WideValue,
    /// A step took longer than any may.
    Slow,
    /// The chip refused a state that it had just saved.
    OwnStateRefused(String),
    /// The chip saved something else after it restored what it saved.
    StateChanged(String),
    /// The chip changed although it refused a state.
    RefusedButChanged(String),
    /// The board could not be made.
    NoBoard,
}

/// Nobody: the board's signals and power events end here.
struct Nobody;

impl CpuSignals for Nobody {
    fn interrupt(&self, _cpu: u32) {}
    fn nmi(&self, _cpu: u32) {}
    fn init(&self, _cpu: u32) {}
    fn startup(&self, _cpu: u32, _vector: u8) {}
}

impl PowerSink for Nobody {
    fn power(&self, _event: PowerEvent) {}
}

/// A board of either form with everything plugged in.
struct Board {
    pc: Pc,
    timers: Arc<Timers>,
}

impl Board {
    fn new(form: Form) -> Result<Self, Failure> {
        let mut config = PcConfig::new(MEMORY_BYTES, 2);
        config.form = form;
        config.serial = vec![Arc::new(Unplugged), Arc::new(Unplugged)];
        config.debugcon = Some((0xe9, Arc::new(Unplugged)));
        config.debug_exit = Some(DebugExitPorts { first: 0xf4, count: 4 });
        config.pc_testdev = Some(None);
        config.has_pci_testdev = true;
        let timers = Timers::new(Arc::new(Clock::counted(1_770_000_000_123_456_789)));
        let (signals, power) = (Arc::new(Nobody), Arc::new(Nobody));
        let around = Surroundings { timers: Arc::clone(&timers), signals, power };
        Ok(Self { pc: Pc::new(config, around).map_err(|_| Failure::NoBoard)?, timers })
    }

    /// A board as the first byte of an input says, and the rest of that input.
    fn from_input(input: &[u8]) -> Result<(Self, &[u8]), Failure> {
        let (&form, rest) = input.split_first().unwrap_or((&0, &[]));
        Ok((Self::new(if form & 1 == 0 { Form::Q35 } else { Form::Pc })?, rest))
    }

    /// Every chip takes back what it saves.
    fn round_trip(&self) -> Result<(), Failure> {
        for chip in self.pc.chips() {
            let saved = chip.save();
            let name = || chip.name().to_owned();
            chip.restore(&saved).map_err(|_| Failure::OwnStateRefused(name()))?;
            if chip.save() != saved {
                return Err(Failure::StateChanged(name()));
            }
        }
        Ok(())
    }

    /// Moves guest time on and runs what is due, a bounded number of rounds.
    fn advance(&self, by_ns: u64) {
        let clock = self.timers.clock();
        clock.advance_to(clock.now_ns().saturating_add(by_ns));
        for _ in 0..4 {
            self.timers.run_expired();
        }
    }

    fn run(&self, script: &[u8]) -> Result<(), Failure> {
        for step in script.chunks(STEP_BYTES) {
            let mut bytes = [0; STEP_BYTES];
            bytes.iter_mut().zip(step).for_each(|(to, from)| *to = *from);
            let started = Instant::now();
            self.step(Step::new(bytes))?;
            if started.elapsed() > STEP_LIMIT {
                return Err(Failure::Slow);
            }
        }
        self.round_trip()
    }

    fn step(&self, step: Step) -> Result<(), Failure> {
        match step.action & 15 {
            0..=2 => return self.read(&step),
            3..=5 => self.pc.ports().write(step.port(), step.port_width(), step.value as u32),
            6..=7 => {
                let address = GuestPhysical(step.address());
                self.pc.space().write(address, step.width(), step.value);
            }
            8 | 9 => self.configure(&step),
            10 | 11 => self.advance(step.value >> (step.at & 63) & 0xffff_ffff_ffff),
            12 | 13 => self.local_apic(&step),
            14 => self.outside(&step),
            _ => self.rarely(&step),
        }
        Ok(())
    }

    fn read(&self, step: &Step) -> Result<(), Failure> {
        let (value, mask) = if step.action & 3 == 0 {
            let width = step.width();
            (self.pc.space().read(GuestPhysical(step.address()), width), width.mask())
        } else {
            let width = step.port_width();
            (self.pc.ports().read(step.port(), width).into(), width.mask())
        };
        if value & !mask == 0 { Ok(()) } else { Err(Failure::WideValue) }
    }

    /// A configuration register of a function that is there, mostly.
    fn configure(&self, step: &Step) {
        const FUNCTIONS: [u32; 6] = [0, 1 << 11, 4 << 11, 31 << 11, 1 << 11 | 3 << 8, 31 << 11];
        let function = FUNCTIONS.get(usize::from(step.range % 7)).copied();
        let function = function.unwrap_or(u32::from(step.at) << 8 & 0xffff00);
        let ports = self.pc.ports();
        let address = 1 << 31 | function | u32::from(step.at & 0xfc);
        ports.write(layout::PCI_CONFIG_PORT, Width::Dword, address);
        let data = layout::PCI_CONFIG_PORT + 4 + (step.at & 3);
        ports.write(data, step.port_width(), step.value as u32);
    }

    fn local_apic(&self, step: &Step) {
        let Some(apic) = self.pc.lapic(u32::from(step.range & 1)) else { return };
        let (offset, value) = (u64::from(step.at & 0xfff), step.value);
        match step.range >> 1 & 15 {
            0..=3 => apic.mmio_write(offset & !15, Width::Dword, value & 0xffff_ffff),
            4 => drop(apic.mmio_read(offset, step.width())),
            5 => apic.mmio_write(offset, step.width(), value),
            6..=8 => drop(apic.msr_write(0x800 | u32::from(step.at) & 0xff, value)),
            9 => drop(apic.msr_read(0x800 | u32::from(step.at) & 0xff)),
            10 => drop(apic.set_apic_base(0xfee0_0000 | value & 0xd00)),
            11 => apic.set_tsc_deadline(value),
            12 => apic.set_tsc_offset(value),
            _ => acknowledge(apic),
        }
    }

    /// What comes from outside the machine.
    fn outside(&self, step: &Step) {
        let bytes = step.value.to_le_bytes();
        match step.range & 7 {
            0 | 1 => {
                if let Some(uart) = self.pc.uart(usize::from(step.at & 1)) {
                    uart.receive(&bytes);
                    uart.receive_break();
                }
            }
            2 => drop(self.pc.i8042().inject_scancodes(&bytes)),
            3 => self.pc.i8042().inject_mouse(MouseInput::default()),
            4 => self.pc.acpi_pm().power_button(),
            5 => {
                self.pc.dma().set_request(bytes[0], bytes[1] & 1 != 0);
                self.pc.dma().write_memory(bytes[0], &bytes);
                self.pc.dma().read_memory(bytes[0], &mut [0; 64]);
            }
            6 => self.pc.nmi(),
            _ => self.pc.interrupt_line(u32::from(bytes[0] & 31)).set(bytes[1] & 1 != 0),
        }
    }

    /// What the owner of the board does to it.
    fn rarely(&self, step: &Step) {
        match step.range & 7 {
            0 => self.pc.reset(),
            1 => drop(self.pc.resume()),
            2 => drop(self.pc.load(&BootSource::Kernel(Kernel::default()))),
            3 => drop(damage_one(self, u64::from(step.at), step.value)),
            _ => self.advance(step.value % 1_000_000),
        }
    }
}

fn acknowledge(apic: &LocalApic) {
    if apic.has_interrupt() {
        apic.acknowledge();
    }
    apic.eoi();
}

/// One step of a script.
struct Step {
    action: u8,
    range: u8,
    at: u16,
    value: u64,
}

impl Step {
    fn new(bytes: [u8; STEP_BYTES]) -> Self {
        let [action, range, low, high, value @ ..] = bytes;
        let at = u16::from_le_bytes([low, high]);
        Self { action, range, at, value: u64::from_le_bytes(value) }
    }

    fn width(&self) -> Width {
        const WIDTHS: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];
        WIDTHS.get(usize::from(self.action >> 6)).copied().unwrap_or(Width::Byte)
    }

    fn port_width(&self) -> Width {
        match self.width() {
            Width::Qword => Width::Byte,
            width => width,
        }
    }

    /// A port that something answers at, mostly.
    fn port(&self) -> u16 {
        const RANGES: [(u16, u16); 22] = [
            (0x00, 16),
            (0x20, 2),
            (0xa0, 2),
            (0x40, 4),
            (0x60, 1),
            (0x61, 1),
            (0x64, 1),
            (0x70, 4),
            (0x80, 16),
            (0x92, 1),
            (0xb2, 2),
            (0xc0, 32),
            (0xe0, 24),
            (0x2f8, 8),
            (0x3f8, 8),
            (0x4d0, 2),
            (0x510, 12),
            (0x600, 128),
            (0xcf8, 8),
            (0xcf9, 1),
            (0x2000, 24),
            (0xc000, 256),
        ];
        match RANGES.get(usize::from(self.range % 24)) {
            Some((first, count)) => first + self.at % count,
            None => self.at,
        }
    }

    /// An address that something answers at, mostly.
    fn address(&self) -> u64 {
        const RANGES: [(u64, u64); 10] = [
            (layout::IOAPIC_BASE, 0x1000),
            (layout::IOAPIC_BASE, 0x20),
            (layout::HPET_BASE, 0x200),
            (layout::LAPIC_BASE, 0x1000),
            (layout::ECAM_BASE, 0x1_0000),
            (layout::ECAM_BASE + (31 << 15), 0x1000),
            (layout::PCI_WINDOW_BASE, 0x1_0000),
            (layout::SHADOW_BASE, 0x1_0000),
            (0, MEMORY_BYTES),
            (crate::pc_testdev::MMIO_BASE, 0x1000),
        ];
        let at = u64::from(self.at);
        match RANGES.get(usize::from(self.range % 12)) {
            Some((base, bytes)) => base + at % bytes,
            None => at.wrapping_mul(0x1_0001_0001),
        }
    }
}

/// Turns a bit or more over in what one chip saved, and offers it.
fn damage_one(board: &Board, at: u64, value: u64) -> Result<(), Failure> {
    let chips = board.pc.chips();
    let Some(chip) = chips.get((value % chips.len().max(1) as u64) as usize) else {
        return Ok(());
    };
    let before = chip.save();
    let mut saved = before.clone();
    let index = (at % saved.len().max(1) as u64) as usize;
    if let Some(byte) = saved.get_mut(index) {
        *byte ^= (value >> 8) as u8;
    }
    if chip.restore(&saved).is_err() && chip.save() != before {
        return Err(Failure::RefusedButChanged(chip.name().to_owned()));
    }
    Ok(())
}

/// Runs `input` as accesses to a board.
pub fn accesses(input: &[u8]) -> Result<(), Failure> {
    let (board, script) = Board::from_input(input)?;
    board.run(script)
}

/// Puts what a kernel of a format is known by over `image`, or chance alone would stop there.
fn plant_landmarks(image: &mut [u8], format: u8) {
    let landmarks: &[(usize, &[u8])] = match format & 7 {
        // Linux: boot flag, a short jump over the header, "HdrS" with a version, loaded high.
        0 | 1 => &[(0x1fe, b"\x55\xaa\xeb\x66HdrS"), (0x207, &[2]), (0x211, &[1])],
        // ELF, 64 and 32 bits: an x86 executable with a program header or two behind its own.
        2 | 3 => &[
            (0, b"\x7fELF\x02\x01"),
            (16, &[2, 0, 62, 0]),
            (32, &[64, 0, 0, 0, 0, 0, 0, 0]),
            (54, &[56, 0, 2, 0]),
            (64, &[1, 0, 0, 0]),
            (120, &[4, 0, 0, 0]),
        ],
        4 => &[
            (0, b"\x7fELF\x01\x01"),
            (16, &[2, 0, 3, 0]),
            (28, &[52, 0, 0, 0]),
            (42, &[32, 0, 2, 0]),
            (52, &[1, 0, 0, 0]),
            (84, &[4, 0, 0, 0]),
            (128, &[2, 0xb0, 0xad, 0x1b, 0, 0, 0, 0, 0xfe, 0x4f, 0x52, 0xe4]),
        ],
        // Multiboot with load addresses.
        5 => &[(4, &[2, 0xb0, 0xad, 0x1b, 0, 0, 1, 0, 0xfe, 0x4f, 0x51, 0xe4])],
        _ => &[],
    };
    for (at, bytes) in landmarks {
        if let Some(place) = image.get_mut(*at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

/// Boots `input` as a kernel file, with a second part of it as initrd. Refusing it is as good as
/// loading it.
pub fn kernel_image(input: &[u8]) -> Result<(), Failure> {
    let (board, input) = Board::from_input(input)?;
    let (&format, image) = input.split_first().unwrap_or((&0xff, &[]));
    let mut image = image.to_vec();
    plant_landmarks(&mut image, format);
    let initrd = image.get(image.len() / 2..).unwrap_or(&[]);
    let module = Module { data: initrd.to_vec(), command_line: "module".to_owned() };
    let kernel = Kernel {
        image: image.clone(),
        name: "kernel".to_owned(),
        command_line: "quiet".to_owned(),
        modules: vec![module],
    };
    let started = Instant::now();
    board.pc.load(&BootSource::Kernel(kernel)).ok();
    board.pc.load(&BootSource::Rom(image)).ok();
    if started.elapsed() > STEP_LIMIT { Err(Failure::Slow) } else { board.round_trip() }
}

/// Offers damaged states to every chip, then drives the board that came of it. The input is a
/// script whose first half says what is damaged.
pub fn restored(input: &[u8]) -> Result<(), Failure> {
    let (board, input) = Board::from_input(input)?;
    let (changes, script) = input.split_at(input.len() / 2);
    for change in changes.chunks_exact(10) {
        let mut bytes = [0; STEP_BYTES];
        bytes[2..].copy_from_slice(change);
        let Step { at, value, .. } = Step::new(bytes);
        damage_one(&board, u64::from(at), value)?;
    }
    for chip in board.pc.chips() {
        // Bytes that no chip ever saved.
        let before = chip.save();
        if chip.restore(script).is_err() && chip.save() != before {
            return Err(Failure::RefusedButChanged(chip.name().to_owned()));
        }
    }
    board.run(script)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn script() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..3000)
    }

    proptest! {
        #[test]
        fn no_accesses_break_the_board(input in script()) {
            prop_assert_eq!(accesses(&input), Ok(()));
        }

        #[test]
        fn no_saved_states_break_the_board(input in script()) {
            prop_assert_eq!(restored(&input), Ok(()));
        }

        #[test]
        fn no_bytes_break_the_loaders(input in script()) {
            prop_assert_eq!(kernel_image(&input), Ok(()));
        }
    }
}
