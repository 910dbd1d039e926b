//! Why translated code is left.

/// The word that the leave thunks and helpers put into the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Exit {
    /// By a link whose target must be found (and which can be made, if it is patchable).
    Link = 0,
    /// To the address in the context that the jump cache does not know.
    Indirect = 1,
    /// A host signal stopped the code at the step that the context's RIP names: it is to be
    /// interpreted, or a safe point was asked for.
    Signal = 2,
    /// A helper has everything in the state and wants the dispatcher to go on from there.
    State = 3,
    /// A helper wants the step at the state's RIP to be interpreted.
    Interpret = 4,
    /// A helper wants the step at the state's RIP to go on in code without groups.
    Ungrouped = 5,
    /// A helper has raised the exception that the owner keeps.
    Exception = 6,
}

impl Exit {
    /// How many there are.
    pub(crate) const COUNT: usize = 7;
    /// What the statistics call them, by number.
    pub(crate) const NAMES: [&str; Self::COUNT] =
        ["link", "indirect", "signal", "state", "interpret", "ungrouped", "exception"];

    /// The exit that a context's word names.
    pub(crate) fn of(word: u32) -> Self {
        match word {
            0 => Self::Link,
            1 => Self::Indirect,
            2 => Self::Signal,
            4 => Self::Interpret,
            5 => Self::Ungrouped,
            6 => Self::Exception,
            _ => Self::State,
        }
    }
}
