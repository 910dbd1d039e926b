//! Events: what happens between two instructions, or inside of one.
//!
//! In the file an event is its byte and then its fields in the order below: numbers as varints,
//! widths and kinds as a byte, values of up to 64 bytes as a length and their bytes.

use crate::varint::{Cursor, Damage, put};

/// Bytes of a value at most: a vector register.
const VALUE_BYTES: usize = 64;

/// Whence an interrupt comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptSource {
    /// By the local APIC.
    External,
    /// A non-maskable one.
    NonMaskable,
    /// INT n, INT3, INTO: the instruction is retired with it.
    Software,
}

/// What is done to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its value is read.
    Read,
    /// A value is written.
    Write,
}

/// Some bytes: what was read, written, or what a register holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Value {
    length: u8,
    bytes: [u8; VALUE_BYTES],
}

impl Value {
    /// The first 64 of `from`.
    pub fn of(from: &[u8]) -> Self {
        let mut bytes = [0; VALUE_BYTES];
        let length = from.len().min(VALUE_BYTES);
        bytes.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        Self { length: length as u8, bytes }
    }

    /// A number of `length` bytes, 8 at most.
    pub fn of_number(number: u64, length: usize) -> Self {
        Self::of(number.to_le_bytes().get(..length.min(8)).unwrap_or_default())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }

    /// The first 8 bytes as a number.
    pub fn number(&self) -> u64 {
        let mut low = [0; 8];
        low.iter_mut().zip(self.bytes()).for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(low)
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x")?;
        self.bytes().iter().rev().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

macro_rules! registers {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// A register, by its number in the file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct Register(u8);

        impl Register {
            $(#[doc = concat!("`", $text, "`.")] pub const $name: Self = Self($number);)*

            /// All, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self($number)),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self.0 {
                    $($number => $text,)*
                    _ => "?",
                }
            }
        }
    };
}

registers! {
    RAX = 0, "rax"; RCX = 1, "rcx"; RDX = 2, "rdx"; RBX = 3, "rbx";
    RSP = 4, "rsp"; RBP = 5, "rbp"; RSI = 6, "rsi"; RDI = 7, "rdi";
    R8 = 8, "r8"; R9 = 9, "r9"; R10 = 10, "r10"; R11 = 11, "r11";
    R12 = 12, "r12"; R13 = 13, "r13"; R14 = 14, "r14"; R15 = 15, "r15";
    RIP = 16, "rip"; RFLAGS = 17, "rflags";
    ES = 18, "es"; CS = 19, "cs"; SS = 20, "ss"; DS = 21, "ds"; FS = 22, "fs"; GS = 23, "gs";
    CS_BASE = 24, "cs_base"; FS_BASE = 25, "fs_base"; GS_BASE = 26, "gs_base";
    KERNEL_GS_BASE = 27, "kernel_gs_base";
    CR0 = 28, "cr0"; CR2 = 29, "cr2"; CR3 = 30, "cr3"; CR4 = 31, "cr4";
    EFER = 33, "efer"; XCR0 = 34, "xcr0"; PKRU = 35, "pkru"; MXCSR = 36, "mxcsr";
    FCW = 37, "fcw"; FSW = 38, "fsw"; FTW = 39, "ftw";
    ST0 = 40, "st0"; ST1 = 41, "st1"; ST2 = 42, "st2"; ST3 = 43, "st3";
    ST4 = 44, "st4"; ST5 = 45, "st5"; ST6 = 46, "st6"; ST7 = 47, "st7";
    K0 = 48, "k0"; K1 = 49, "k1"; K2 = 50, "k2"; K3 = 51, "k3";
    K4 = 52, "k4"; K5 = 53, "k5"; K6 = 54, "k6"; K7 = 55, "k7";
    ZMM0 = 64, "zmm0"; ZMM1 = 65, "zmm1"; ZMM2 = 66, "zmm2"; ZMM3 = 67, "zmm3";
    ZMM4 = 68, "zmm4"; ZMM5 = 69, "zmm5"; ZMM6 = 70, "zmm6"; ZMM7 = 71, "zmm7";
    ZMM8 = 72, "zmm8"; ZMM9 = 73, "zmm9"; ZMM10 = 74, "zmm10"; ZMM11 = 75, "zmm11";
    ZMM12 = 76, "zmm12"; ZMM13 = 77, "zmm13"; ZMM14 = 78, "zmm14"; ZMM15 = 79, "zmm15";
    ZMM16 = 80, "zmm16"; ZMM17 = 81, "zmm17"; ZMM18 = 82, "zmm18"; ZMM19 = 83, "zmm19";
    ZMM20 = 84, "zmm20"; ZMM21 = 85, "zmm21"; ZMM22 = 86, "zmm22"; ZMM23 = 87, "zmm23";
    ZMM24 = 88, "zmm24"; ZMM25 = 89, "zmm25"; ZMM26 = 90, "zmm26"; ZMM27 = 91, "zmm27";
    ZMM28 = 92, "zmm28"; ZMM29 = 93, "zmm29"; ZMM30 = 94, "zmm30"; ZMM31 = 95, "zmm31";
}

impl Register {
    /// General-purpose register `number` as instructions encode it.
    pub fn gpr(number: u8) -> Self {
        Self(number & 15)
    }

    /// Vector register `number`. Its value has 16, 32 or 64 bytes: above them it is 0.
    pub fn vector(number: u8) -> Self {
        Self(Self::ZMM0.0 + (number & 31))
    }

    /// Register ST(`number`) of the x87 unit.
    pub fn stack(number: u8) -> Self {
        Self(Self::ST0.0 + (number & 7))
    }

    /// Opmask register `number`.
    pub fn opmask(number: u8) -> Self {
        Self(Self::K0.0 + (number & 7))
    }

    /// The name by which programs know so many bytes of it: XMM0, YMM0 or ZMM0, say.
    pub fn name_of(self, value: &Value) -> String {
        let name = self.name();
        match (name.strip_prefix("zmm"), value.bytes().len()) {
            (Some(number), 0..=16) => format!("xmm{number}"),
            (Some(number), 17..=32) => format!("ymm{number}"),
            _ => name.to_owned(),
        }
    }

    /// The register with this number in the file.
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.binary_search(&Self(number)).is_ok().then_some(Self(number))
    }

    /// Its number in the file.
    pub fn number(self) -> u8 {
        self.0
    }
}

/// What happens beside the execution of instructions. Which of them a trace has, its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An interrupt is delivered; RIP is then at its handler.
    Interrupt {
        /// Its vector.
        vector: u8,
        /// Whence it comes.
        source: InterruptSource,
    },
    /// An exception is delivered, by the instruction that would be next.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code, if it has one.
        error_code: Option<u32>,
        /// CR2, for a page fault.
        address: u64,
    },
    /// A control register was written: CR0, CR3, CR4 or CR8.
    ControlRegister {
        /// Its number.
        number: u8,
        /// What it holds now.
        value: u64,
    },
    /// RDMSR or WRMSR.
    Msr {
        /// Which of them.
        access: Access,
        /// The number of the register.
        number: u32,
        /// What was read or written.
        value: u64,
    },
    /// IN, OUT or their string forms.
    Port {
        /// Which of them.
        access: Access,
        /// The port.
        port: u16,
        /// What was read or written.
        value: Value,
    },
    /// An access to a device's memory.
    Mmio {
        /// What it does.
        access: Access,
        /// The physical address.
        address: u64,
        /// What was read or written.
        value: Value,
    },
    /// An instruction's access to memory; it comes before the end of its instruction.
    Memory {
        /// What it does.
        access: Access,
        /// The linear address.
        address: u64,
        /// What was read or written.
        value: Value,
    },
    /// A register's new value, behind the instruction that has changed it; or its value where
    /// recording begins.
    Register {
        /// Which one.
        register: Register,
        /// What it holds now.
        value: Value,
    },
    /// The CPU runs at this guest time.
    Time {
        /// In nanoseconds.
        ns: u64,
    },
    /// So many instructions were executed and not recorded: by a filter, or while recording was
    /// off.
    Skipped {
        /// How many.
        instructions: u64,
    },
    /// Recording begins, or goes on.
    Begin,
    /// Recording is off from here on.
    End,
    /// The CPU is reset, by INIT or by the machine.
    Reset,
}

/// The byte of the first event.
pub(crate) const FIRST: u8 = 0xc3;

const INTERRUPT: u8 = FIRST;
const EXCEPTION: u8 = FIRST + 1;
const EXCEPTION_WITH_CODE: u8 = FIRST + 2;
const CONTROL_REGISTER: u8 = FIRST + 3;
const MSR: u8 = FIRST + 4;
const PORT: u8 = FIRST + 5;
const MMIO: u8 = FIRST + 6;
const MEMORY: u8 = FIRST + 7;
const REGISTER: u8 = FIRST + 8;
const TIME: u8 = FIRST + 9;
const SKIPPED: u8 = FIRST + 10;
const BEGIN: u8 = FIRST + 11;
const END: u8 = FIRST + 12;
const RESET: u8 = FIRST + 13;

impl Event {
    /// Appends the event.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Interrupt { vector, source } => {
                out.extend([INTERRUPT, vector, source_byte(source)]);
            }
            Self::Exception { vector, error_code, address } => {
                out.push(if error_code.is_some() { EXCEPTION_WITH_CODE } else { EXCEPTION });
                out.push(vector);
                put(out, address);
                error_code.into_iter().for_each(|code| put(out, u64::from(code)));
            }
            Self::ControlRegister { number, value } => {
                out.extend([CONTROL_REGISTER, number]);
                put(out, value);
            }
            Self::Msr { access, number, value } => {
                out.extend([MSR, access_byte(access)]);
                put(out, u64::from(number));
                put(out, value);
            }
            Self::Port { access, port, value } => {
                put_access(out, PORT, access, u64::from(port), &value);
            }
            Self::Mmio { access, address, value } => {
                put_access(out, MMIO, access, address, &value);
            }
            Self::Memory { access, address, value } => {
                put_access(out, MEMORY, access, address, &value);
            }
            Self::Register { register, value } => {
                out.extend([REGISTER, register.number()]);
                put_value(out, &value);
            }
            Self::Time { ns } => put_number(out, TIME, ns),
            Self::Skipped { instructions } => put_number(out, SKIPPED, instructions),
            Self::Begin => out.push(BEGIN),
            Self::End => out.push(END),
            Self::Reset => out.push(RESET),
        }
    }

    /// Reads the rest of the event that begins with `first`.
    pub(crate) fn get(first: u8, from: &mut Cursor<'_>) -> Result<Self, Damage> {
        Ok(match first {
            INTERRUPT => Self::Interrupt { vector: from.byte()?, source: source_of(from.byte()?)? },
            EXCEPTION | EXCEPTION_WITH_CODE => {
                let (vector, address) = (from.byte()?, from.varint()?);
                let has_code = first == EXCEPTION_WITH_CODE;
                let error_code = has_code.then(|| number_of(from)).transpose()?;
                Self::Exception { vector, error_code, address }
            }
            CONTROL_REGISTER => {
                Self::ControlRegister { number: from.byte()?, value: from.varint()? }
            }
            MSR => Self::Msr {
                access: access_of(from.byte()?)?,
                number: number_of(from)?,
                value: from.varint()?,
            },
            PORT => {
                let (access, port, value) = get_access(from)?;
                let port = u16::try_from(port).map_err(|_| "a port has too large a number")?;
                Self::Port { access, port, value }
            }
            MMIO => {
                let (access, address, value) = get_access(from)?;
                Self::Mmio { access, address, value }
            }
            MEMORY => {
                let (access, address, value) = get_access(from)?;
                Self::Memory { access, address, value }
            }
            REGISTER => {
                let register = Register::of(from.byte()?).ok_or("there is no such register")?;
                Self::Register { register, value: value_of(from)? }
            }
            TIME => Self::Time { ns: from.varint()? },
            SKIPPED => Self::Skipped { instructions: from.varint()? },
            BEGIN => Self::Begin,
            END => Self::End,
            RESET => Self::Reset,
            _ => return Err("there is no such record"),
        })
    }
}

fn put_number(out: &mut Vec<u8>, first: u8, number: u64) {
    out.push(first);
    put(out, number);
}

fn put_access(out: &mut Vec<u8>, first: u8, access: Access, place: u64, value: &Value) {
    out.extend([first, access_byte(access)]);
    put(out, place);
    put_value(out, value);
}

fn get_access(from: &mut Cursor<'_>) -> Result<(Access, u64, Value), Damage> {
    Ok((access_of(from.byte()?)?, from.varint()?, value_of(from)?))
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    out.push(value.length);
    out.extend_from_slice(value.bytes());
}

fn value_of(from: &mut Cursor<'_>) -> Result<Value, Damage> {
    let length = usize::from(from.byte()?);
    if length > VALUE_BYTES {
        return Err("a value is too long");
    }
    from.bytes(length).map(Value::of)
}

fn number_of(from: &mut Cursor<'_>) -> Result<u32, Damage> {
    from.at_most(u64::from(u32::MAX), "a number is too large").map(|number| number as u32)
}

fn access_byte(access: Access) -> u8 {
    u8::from(access == Access::Write)
}

fn access_of(byte: u8) -> Result<Access, Damage> {
    match byte {
        0 => Ok(Access::Read),
        1 => Ok(Access::Write),
        _ => Err("an access is neither a read nor a write"),
    }
}

fn source_byte(source: InterruptSource) -> u8 {
    match source {
        InterruptSource::External => 0,
        InterruptSource::NonMaskable => 1,
        InterruptSource::Software => 2,
    }
}

fn source_of(byte: u8) -> Result<InterruptSource, Damage> {
    match byte {
        0 => Ok(InterruptSource::External),
        1 => Ok(InterruptSource::NonMaskable),
        2 => Ok(InterruptSource::Software),
        _ => Err("an interrupt comes from nowhere"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_in_the_order_of_their_numbers() {
        assert!(Register::ALL.is_sorted());
        assert_eq!(Register::of(63), None);
        assert_eq!(Register::vector(31).name(), "zmm31");
        assert_eq!(Register::opmask(7), Register::K7);
        assert_eq!(Register::stack(7), Register::ST7);
    }

    #[test]
    fn a_vector_register_is_called_by_its_length() {
        let name = |register: Register, bytes| register.name_of(&Value::of(&[1; 64][..bytes]));
        for (bytes, expected) in [(16, "xmm5"), (32, "ymm5"), (64, "zmm5")] {
            assert_eq!(name(Register::vector(5), bytes), expected);
        }
        assert_eq!(name(Register::RAX, 8), "rax");
    }
}
