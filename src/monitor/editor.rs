//! One line, edited.
//!
//! Ctrl-U and Ctrl-W take the line or its last word away, Ctrl-C drops it, Ctrl-D ends an empty
//! one, Ctrl-L shows it anew; arrows up and down, or Ctrl-P and Ctrl-N, go through the lines before
//! it. The cursor is at the end always.

use std::collections::VecDeque;

/// Bytes of a line at most.
pub(super) const LINE_MAX: usize = 1024;
/// Lines that are kept.
const HISTORY_MAX: usize = 100;
const BELL: u8 = 7;

/// What a key leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// The line is as it was.
    Nothing,
    /// So many columns go from its end, and this comes behind.
    Change(usize, String),
    /// It is to be shown anew.
    Redraw,
    /// It has no room for more.
    Full,
    /// It is complete.
    Line(String),
    /// It was dropped.
    Dropped,
    /// There will be no more of them.
    End,
}

/// Where in an escape sequence the next key is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sequence {
    #[default]
    Outside,
    Escape,
    /// Behind `ESC [` or `ESC O`.
    Bracket,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Editor {
    line: String,
    /// Bytes of a character that is not complete.
    partial: Vec<u8>,
    history: VecDeque<String>,
    /// How many lines back the one that is shown is from.
    back: usize,
    sequence: Sequence,
    /// The last key was a carriage return: a line feed behind it belongs to it.
    was_return: bool,
}

impl Editor {
    /// The line as it is.
    pub(super) fn line(&self) -> &str {
        &self.line
    }

    /// Takes a key.
    pub(super) fn take(&mut self, byte: u8) -> Edit {
        let was_return = std::mem::replace(&mut self.was_return, byte == b'\r');
        match (self.sequence, byte) {
            (Sequence::Escape, b'[' | b'O') => self.sequence = Sequence::Bracket,
            (Sequence::Bracket, b'0'..=b'9' | b';') => {}
            (Sequence::Bracket, _) => {
                self.sequence = Sequence::Outside;
                return match byte {
                    b'A' => self.recall(self.back + 1),
                    b'B' => self.recall(self.back.saturating_sub(1)),
                    _ => Edit::Nothing,
                };
            }
            (Sequence::Escape, _) => self.sequence = Sequence::Outside,
            (Sequence::Outside, b'\n') if was_return => {}
            (Sequence::Outside, _) => return self.outside(byte),
        }
        Edit::Nothing
    }

    fn outside(&mut self, byte: u8) -> Edit {
        match byte {
            b'\r' | b'\n' => self.finish(),
            0x1b => {
                self.sequence = Sequence::Escape;
                Edit::Nothing
            }
            0x03 => {
                self.clear();
                Edit::Dropped
            }
            0x04 if self.line.is_empty() => Edit::End,
            0x08 | 0x7f => self.erase(|line| line.char_indices().last().map_or(0, |(at, _)| at)),
            0x0c => Edit::Redraw,
            0x0e => self.recall(self.back.saturating_sub(1)),
            0x10 => self.recall(self.back + 1),
            0x15 => self.erase(|_| 0),
            0x17 => self.erase(|line| line.trim_end().rfind(' ').map_or(0, |at| at + 1)),
            b'\t' => self.add(b' '),
            0..0x20 => Edit::Nothing,
            byte => self.add(byte),
        }
    }

    fn add(&mut self, byte: u8) -> Edit {
        if self.line.len() >= LINE_MAX {
            return Edit::Full;
        }
        if byte.is_ascii() {
            self.partial.clear();
        }
        self.partial.push(byte);
        match std::str::from_utf8(&self.partial) {
            Ok(text) => {
                let text = text.to_owned();
                self.partial.clear();
                self.line.push_str(&text);
                Edit::Change(0, text)
            }
            Err(error) if error.error_len().is_some() => {
                self.partial.clear();
                Edit::Nothing
            }
            Err(_) => Edit::Nothing,
        }
    }

    fn erase(&mut self, keep: impl FnOnce(&str) -> usize) -> Edit {
        let keep = keep(&self.line);
        let columns = self.line.get(keep..).map_or(0, |text| text.chars().count());
        self.partial.clear();
        self.line.truncate(keep);
        if columns == 0 { Edit::Nothing } else { Edit::Change(columns, String::new()) }
    }

    /// Shows the line of `back` lines ago instead.
    fn recall(&mut self, back: usize) -> Edit {
        if back > self.history.len() || back == self.back {
            return Edit::Nothing;
        }
        let columns = self.line.chars().count();
        self.back = back;
        self.partial.clear();
        let recalled = back.checked_sub(1).and_then(|at| self.history.get(at));
        self.line = recalled.cloned().unwrap_or_default();
        Edit::Change(columns, self.line.clone())
    }

    fn finish(&mut self) -> Edit {
        let line = std::mem::take(&mut self.line);
        self.clear();
        if !line.trim().is_empty() && self.history.front() != Some(&line) {
            self.history.push_front(line.clone());
            self.history.truncate(HISTORY_MAX);
        }
        Edit::Line(line)
    }

    fn clear(&mut self) {
        self.line.clear();
        self.partial.clear();
        self.back = 0;
    }
}

impl Edit {
    /// What a terminal is to be sent for it; the line anew is the screen's to show.
    pub(super) fn echo(&self) -> Vec<u8> {
        match self {
            Self::Change(columns, text) => {
                let mut bytes = b"\x08 \x08".repeat(*columns);
                bytes.extend_from_slice(text.as_bytes());
                bytes
            }
            Self::Full => vec![BELL],
            Self::Line(_) | Self::End => b"\n".to_vec(),
            Self::Dropped => b"^C\n".to_vec(),
            Self::Nothing | Self::Redraw => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that `keys` make, and what is left.
    fn typed(keys: &[u8]) -> (Vec<String>, String) {
        let mut editor = Editor::default();
        let mut lines = Vec::new();
        for &key in keys {
            if let Edit::Line(line) = editor.take(key) {
                lines.push(line);
            }
        }
        (lines, editor.line().to_owned())
    }

    #[test]
    fn lines_are_edited_as_on_a_terminal() {
        #[rustfmt::skip]
        let rows: [(&[u8], &[&str], &str); 14] = [
            (b"info cpus\r",          &["info cpus"],  ""),
            (b"a\r\nb\nc",            &["a", "b"],     "c"),
            (b"abd\x7fc\x08c",        &[],             "abc"),
            (b"abc\x15x",             &[],             "x"),
            (b"x one two\x17",        &[],             "x one "),
            (b"x one  \x17\x17\x17",  &[],             ""),
            (b"abc\x03d",             &[],             "d"),
            (b"one\rtwo\r\x1b[A",     &["one", "two"], "two"),
            (b"one\rtwo\r\x1bOA\x10", &["one", "two"], "one"),
            (b"one\r\x10\x10\x0e",    &["one"],        ""),
            (b"one\r\x1b[1;5C\x1b[Bx", &["one"],       "x"),
            ("é\u{7f}ü".as_bytes(),   &[],             "ü"),
            (b"\xff\xc3\x28a\x00\x1bza", &[],          "(aa"),
            (b"one\rone\r\x10\x10",   &["one", "one"], "one"),
        ];
        for (keys, lines, left) in rows {
            let (made, rest) = typed(keys);
            let made: Vec<_> = made.iter().map(String::as_str).collect();
            assert_eq!((made.as_slice(), rest.as_str()), (lines, left));
        }
    }

    #[test]
    fn what_is_shown_is_the_line() {
        let mut editor = Editor::default();
        let mut shown = Vec::new();
        for &key in b"abc\x7f\x7fd\rxy\x10\x17\x10" {
            for byte in editor.take(key).echo() {
                match byte {
                    8 => {
                        shown.pop();
                    }
                    b'\n' => shown.clear(),
                    byte => shown.push(byte),
                }
            }
            // A blank is printed over what goes, and the cursor goes back over it.
            assert_eq!(String::from_utf8_lossy(&shown), editor.line());
        }
    }

    #[test]
    fn a_line_has_an_end_and_so_has_the_history() {
        let mut editor = Editor::default();
        (0..2 * LINE_MAX).for_each(|_| drop(editor.take(b'x')));
        assert_eq!(editor.line().len(), LINE_MAX);
        assert_eq!(editor.take(b'x'), Edit::Full);
        assert!(matches!(editor.take(4), Edit::Nothing));
        editor.take(0x15);
        assert_eq!(editor.take(4), Edit::End);
        for line in 0..2 * HISTORY_MAX {
            line.to_string().bytes().chain([b'\r']).for_each(|key| drop(editor.take(key)));
        }
        assert_eq!(editor.history.len(), HISTORY_MAX);
    }
}
