//! A fuzz input, read front to back.

/// What is left of an input. Behind its end there are zeroes.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.bytes())
    }

    pub(super) fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub(super) fn dword(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    pub(super) fn qword(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// One of `choices`, which are not empty.
    pub(super) fn choose<T: Copy + Default>(&mut self, choices: &[T]) -> T {
        let index = usize::from(self.byte()) % choices.len().max(1);
        choices.get(index).copied().unwrap_or_default()
    }

    /// The next `count` bytes, or what there is of them.
    pub(super) fn slice(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = self.slice(N);
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }
}
