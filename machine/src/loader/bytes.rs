//! Reading fields of an image with bounds.

use super::LoadError;

/// An image, or a part of one, whose fields are read with bounds.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a> {
    data: &'a [u8],
    /// What the image is, for messages.
    what: &'static str,
}

impl<'a> Bytes<'a> {
    pub(super) fn new(data: &'a [u8], what: &'static str) -> Self {
        Self { data, what }
    }

    pub(super) fn len(&self) -> u64 {
        self.data.len() as u64
    }

    /// The same bytes under another name in messages.
    pub(super) fn named(self, what: &'static str) -> Self {
        Self { what, ..self }
    }

    /// `bytes` bytes from `offset`.
    pub(super) fn slice(&self, offset: u64, bytes: u64) -> Result<&'a [u8], LoadError> {
        let needed = offset.saturating_add(bytes);
        let truncated = LoadError::Truncated { what: self.what, needed, size: self.len() };
        if needed > self.len() {
            return Err(truncated);
        }
        self.data.get(offset as usize..needed as usize).ok_or(truncated)
    }

    fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N], LoadError> {
        let mut out = [0; N];
        out.copy_from_slice(self.slice(offset, N as u64)?);
        Ok(out)
    }

    pub(super) fn u8(&self, offset: u64) -> Result<u8, LoadError> {
        Ok(u8::from_le_bytes(self.array(offset)?))
    }

    pub(super) fn u16(&self, offset: u64) -> Result<u16, LoadError> {
        Ok(u16::from_le_bytes(self.array(offset)?))
    }

    pub(super) fn u32(&self, offset: u64) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.array(offset)?))
    }

    pub(super) fn u64(&self, offset: u64) -> Result<u64, LoadError> {
        Ok(u64::from_le_bytes(self.array(offset)?))
    }
}
