//! `pc-testdev`: what kvm-unit-tests drives interrupts, ports and MMIO with.
//!
//! Four ranges: a scratch register of four bytes at E0h to E3h (again at E8h) in any width, the
//! page flush at E4h, one port for each interrupt line from 2000h (a write of 0 lowers the line,
//! anything else raises it), and 64 KiB of MMIO at FF00_0000h that reads back what was written.
//!
//! Source: kvm-unit-tests, `lib/x86/apic.c`, `x86/ioram.h` and the tests that use them.
//! Known departures: the page flush does nothing but call its hook; no engine needs it.

use std::sync::{Arc, Mutex};

use memory::{Device, IoError, Width};
use serde::{Deserialize, Serialize};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::guard::lock;
use crate::line::LineSink;

/// The scratch register's first port; it has four.
pub const SCRATCH_PORT: u16 = 0xe0;
/// The page flush's first port; it has four.
pub const FLUSH_PORT: u16 = 0xe4;
/// Where the scratch register is again.
pub const SCRATCH_ALIAS_PORT: u16 = 0xe8;
/// The port of interrupt line 0.
pub const LINES_PORT: u16 = 0x2000;
/// How many interrupt lines there are.
pub const LINE_COUNT: u32 = 24;
/// Where the MMIO is.
pub const MMIO_BASE: u64 = 0xff00_0000;
/// How long the MMIO is.
pub const MMIO_BYTES: u64 = 64 << 10;
const VERSION: u16 = 1;

/// Which of the device's ranges a [`Device`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestRange {
    /// [`SCRATCH_PORT`] and [`SCRATCH_ALIAS_PORT`].
    Scratch,
    /// [`FLUSH_PORT`].
    Flush,
    /// [`LINES_PORT`].
    Lines,
    /// [`MMIO_BASE`].
    Mmio,
}

/// Called with the guest-linear address whose page is to be flushed.
pub type FlushHook = Arc<dyn Fn(u32) + Send + Sync>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    scratch: Vec<u8>,
    mmio: Vec<u8>,
    /// The lines that are high, a bit each.
    lines: u32,
}

impl Default for State {
    fn default() -> Self {
        Self { scratch: vec![0; 4], mmio: vec![0; MMIO_BYTES as usize], lines: 0 }
    }
}

/// The device; [`PcTestdev::range`] gives what is to be mapped.
pub struct PcTestdev {
    state: Mutex<State>,
    lines: Arc<dyn LineSink>,
    flush: Option<FlushHook>,
}

struct Mapped {
    device: Arc<PcTestdev>,
    range: TestRange,
}

impl PcTestdev {
    /// A device that drives the inputs 0 to 23 of `lines` and calls `flush`.
    pub fn new(lines: Arc<dyn LineSink>, flush: Option<FlushHook>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), lines, flush })
    }

    /// What answers in `range`.
    pub fn range(self: &Arc<Self>, range: TestRange) -> Arc<dyn Device> {
        Arc::new(Mapped { device: Arc::clone(self), range })
    }

    fn set_line(&self, offset: u64, level: bool) -> Result<(), IoError> {
        let pin = u32::try_from(offset).ok().filter(|pin| *pin < LINE_COUNT);
        let pin = pin.ok_or(IoError::NoRegister)?;
        let bit = 1u32.wrapping_shl(pin);
        {
            let mut state = lock(&self.state);
            state.lines = if level { state.lines | bit } else { state.lines & !bit };
        }
        self.lines.set_line(pin, level);
        Ok(())
    }

    /// Drives all lines that differ between `before` and `after`.
    fn drive(&self, before: u32, after: u32) {
        for pin in (0..LINE_COUNT).filter(|pin| (before ^ after) >> pin & 1 != 0) {
            self.lines.set_line(pin, after >> pin & 1 != 0);
        }
    }
}

/// The bytes of `memory` that an access is about.
fn window(memory: &mut [u8], offset: u64, width: Width) -> Result<&mut [u8], IoError> {
    let start = usize::try_from(offset).map_err(|_| IoError::NoRegister)?;
    let bytes = memory.get_mut(start..).filter(|bytes| !bytes.is_empty());
    let bytes = bytes.ok_or(IoError::NoRegister)?;
    bytes.get_mut(..width.bytes() as usize).ok_or(IoError::Width)
}

fn load(memory: &mut [u8], offset: u64, width: Width) -> Result<u64, IoError> {
    let bytes = window(memory, offset, width)?;
    Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn store(memory: &mut [u8], offset: u64, width: Width, value: u64) -> Result<(), IoError> {
    let bytes = window(memory, offset, width)?;
    for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
        *to = from;
    }
    Ok(())
}

impl Device for Mapped {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        let mut state = lock(&self.device.state);
        match self.range {
            TestRange::Scratch => load(&mut state.scratch, offset, width),
            TestRange::Mmio => load(&mut state.mmio, offset, width),
            TestRange::Flush => Ok(0),
            TestRange::Lines => Err(IoError::NoRegister),
        }
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        match self.range {
            TestRange::Scratch => {
                store(&mut lock(&self.device.state).scratch, offset, width, value)
            }
            TestRange::Mmio => store(&mut lock(&self.device.state).mmio, offset, width, value),
            TestRange::Flush => {
                if let (Some(flush), Width::Dword) = (&self.device.flush, width) {
                    flush(value as u32);
                }
                Ok(())
            }
            TestRange::Lines => self.device.set_line(offset, value != 0),
        }
    }
}

impl Chip for PcTestdev {
    fn name(&self) -> &str {
        "pc_testdev"
    }

    fn reset(&self) {
        let before = std::mem::take(&mut *lock(&self.state)).lines;
        self.drive(before, 0);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &*lock(&self.state))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let restored: State = decode("pc_testdev", VERSION, saved)?;
        let empty = State::default();
        let wrong = |field| Err(RestoreError::Value { chip: "pc_testdev", field });
        if restored.scratch.len() != empty.scratch.len() {
            return wrong("scratch");
        }
        if restored.mmio.len() != empty.mmio.len() {
            return wrong("mmio");
        }
        if restored.lines >> LINE_COUNT != 0 {
            return wrong("lines");
        }
        let after = restored.lines;
        let before = std::mem::replace(&mut *lock(&self.state), restored).lines;
        self.drive(before, after);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device_fuzz::check_chip;
    use crate::test_lines::Recorder;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn scratch_keeps_what_was_written_in_every_width() {
        let device = PcTestdev::new(Recorder::new(), None);
        let scratch = device.range(TestRange::Scratch);
        for (width, value) in
            [(Width::Byte, 0xff), (Width::Word, 0xabcd), (Width::Dword, 0x1234_5678)]
        {
            assert_eq!(scratch.write(0, width, value), Ok(()));
            assert_eq!(scratch.read(0, width), Ok(value));
        }
        assert_eq!(scratch.write(2, Width::Byte, 0xee), Ok(()));
        assert_eq!(scratch.read(0, Width::Dword), Ok(0x12ee_5678));
        assert_eq!(scratch.read(2, Width::Dword), Err(IoError::Width));
    }

    #[test]
    fn mmio_reads_back() {
        let mmio = PcTestdev::new(Recorder::new(), None).range(TestRange::Mmio);
        assert_eq!(mmio.write(0xfff8, Width::Qword, 0x0102_0304_0506_0708), Ok(()));
        assert_eq!(mmio.read(0xfffc, Width::Dword), Ok(0x0102_0304));
        assert_eq!(mmio.read(0x1_0000, Width::Byte), Err(IoError::NoRegister));
    }

    #[test]
    fn each_port_drives_its_line_until_reset() {
        let recorder = Recorder::new();
        let device = PcTestdev::new(recorder.clone(), None);
        let lines = device.range(TestRange::Lines);
        assert_eq!(lines.write(14, Width::Byte, 1), Ok(()));
        assert_eq!(lines.write(23, Width::Dword, 5), Ok(()));
        assert_eq!(lines.write(24, Width::Byte, 1), Err(IoError::NoRegister));
        assert!(recorder.level(14) && recorder.level(23));
        assert_eq!(lines.write(14, Width::Byte, 0), Ok(()));
        assert!(!recorder.level(14));
        let saved = device.save();
        device.reset();
        assert!(!recorder.level(23));
        assert_eq!(device.restore(&saved), Ok(()));
        assert!(recorder.level(23));
    }

    #[test]
    fn flush_calls_the_hook_with_the_address() {
        let seen = Arc::new(AtomicU32::new(0));
        let hook = Arc::clone(&seen);
        let flush: FlushHook = Arc::new(move |at| hook.store(at, Ordering::Relaxed));
        let device = PcTestdev::new(Recorder::new(), Some(flush));
        assert_eq!(device.range(TestRange::Flush).write(0, Width::Dword, 0x1234_5000), Ok(()));
        assert_eq!(seen.load(Ordering::Relaxed), 0x1234_5000);
    }

    #[test]
    fn takes_any_access() {
        check_chip(|_| {
            let device = PcTestdev::new(Recorder::new(), None);
            let ranges = [
                (TestRange::Scratch, 4),
                (TestRange::Flush, 4),
                (TestRange::Lines, 24),
                (TestRange::Mmio, MMIO_BYTES),
            ];
            let ranges = ranges.map(|(range, size)| (device.range(range), size)).into();
            (device, ranges)
        });
    }
}
