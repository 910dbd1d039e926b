//! What a device is to the bus: something that is read and written at an offset.

use crate::Doorbell;

/// The width of one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Width {
    /// 1 byte.
    Byte = 1,
    /// 2 bytes.
    Word = 2,
    /// 4 bytes.
    Dword = 4,
    /// 8 bytes.
    Qword = 8,
}

impl Width {
    /// The width in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// The width of `bytes` bytes, if there is one.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// A mask with a one for every bit of the width; also what an empty bus reads as.
    #[inline]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }

    /// The next narrower width, if there is one.
    pub const fn half(self) -> Option<Self> {
        match self {
            Self::Byte => None,
            Self::Word => Some(Self::Byte),
            Self::Dword => Some(Self::Word),
            Self::Qword => Some(Self::Dword),
        }
    }
}

/// Why a device did not perform an access. Only about the access itself: the bus picks the value
/// that the guest sees (all ones for reads, nothing for writes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The device has no register at this offset.
    #[error("no such register")]
    NoRegister,
    /// The register cannot be reached in this width; the bus splits the access into halves.
    #[error("unsupported access width")]
    Width,
}

/// A device as the buses see it. Methods are called from any vCPU's thread with no bus lock held;
/// the device locks its own state and drops that lock before it raises a line or notifies anyone.
pub trait Device: Send + Sync {
    /// What it is, for people.
    fn label(&self) -> &'static str {
        let path = std::any::type_name::<Self>();
        path.rsplit("::").next().unwrap_or(path)
    }
    /// Reads `width` at `offset` from the start of the mapped range. Bits above the width are zero.
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError>;
    /// Writes the low `width` of `value` at `offset`.
    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError>;
    /// The writes that only ring: asked when the device is mapped, and not given to
    /// [`Device::write`] from then on.
    fn doorbells(&self) -> Vec<Doorbell> {
        Vec::new()
    }
}

/// Reads through `device`, splitting into halves what it cannot do whole; all ones on failure.
pub(crate) fn read_split(device: &dyn Device, offset: u64, width: Width) -> u64 {
    match device.read(offset, width) {
        Ok(value) => value & width.mask(),
        Err(IoError::Width) => match width.half() {
            Some(half) => {
                let low = read_split(device, offset, half);
                let high = read_split(device, offset.wrapping_add(half.bytes()), half);
                low | high << (8 * half.bytes())
            }
            None => width.mask(),
        },
        Err(IoError::NoRegister) => {
            log::trace!(target: "guest_error", "{width:?} read at {offset:#x}: no register");
            width.mask()
        }
    }
}

/// Writes through `device`, splitting into halves what it cannot do whole.
pub(crate) fn write_split(device: &dyn Device, offset: u64, width: Width, value: u64) {
    match device.write(offset, width, value & width.mask()) {
        Ok(()) => {}
        Err(IoError::Width) => {
            if let Some(half) = width.half() {
                write_split(device, offset, half, value);
                let high = value >> (8 * half.bytes());
                write_split(device, offset.wrapping_add(half.bytes()), half, high);
            }
        }
        Err(IoError::NoRegister) => {
            log::trace!(target: "guest_error", "{width:?} write at {offset:#x}: no register");
        }
    }
}
