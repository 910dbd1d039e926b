//! The terminal escape: Ctrl-A, then a letter.

/// The escape character, Ctrl-A.
const ESCAPE: u8 = 1;

/// What the user asked for with an escape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Ctrl-A x: leave.
    Leave,
    /// Ctrl-A h: say what the escapes are.
    Help,
    /// Ctrl-A c: the monitor.
    Monitor,
    /// Ctrl-A b: send a break.
    Break,
}

/// Finds escapes in what the user types.
#[derive(Default)]
pub(crate) struct Escape {
    is_pending: bool,
}

/// What a typed byte turns into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// This byte for the guest.
    Byte(u8),
    /// A command for us.
    Command(Command),
    /// The start of an escape: nothing yet.
    Nothing,
}

impl Escape {
    /// Takes the next byte typed. Ctrl-A twice sends one; an unknown letter is the guest's.
    pub(crate) fn take(&mut self, byte: u8) -> Typed {
        if !self.is_pending {
            self.is_pending = byte == ESCAPE;
            return if self.is_pending { Typed::Nothing } else { Typed::Byte(byte) };
        }
        self.is_pending = false;
        match byte {
            b'x' => Typed::Command(Command::Leave),
            b'h' | b'?' => Typed::Command(Command::Help),
            b'c' => Typed::Command(Command::Monitor),
            b'b' => Typed::Command(Command::Break),
            byte => Typed::Byte(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(bytes: &[u8]) -> Vec<Typed> {
        let mut escape = Escape::default();
        bytes.iter().map(|&byte| escape.take(byte)).filter(|t| *t != Typed::Nothing).collect()
    }

    #[test]
    fn escapes_are_commands_and_everything_else_is_the_guests() {
        assert_eq!(typed(b"ab"), [Typed::Byte(b'a'), Typed::Byte(b'b')]);
        assert_eq!(typed(b"\x01x"), [Typed::Command(Command::Leave)]);
        assert_eq!(
            typed(b"\x01h\x01c"),
            [Typed::Command(Command::Help), Typed::Command(Command::Monitor)]
        );
        assert_eq!(typed(b"\x01\x01x"), [Typed::Byte(1), Typed::Byte(b'x')]);
        assert_eq!(typed(b"\x01z\x01b"), [Typed::Byte(b'z'), Typed::Command(Command::Break)]);
    }
}
