//! QEMU's `a,b=c` syntax: a first value that may go without its key, then keys with values.

use crate::cli::values;

/// The parts of an option's value. A doubled comma is a comma of a value.
pub(super) fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_doubled = character == ',' && characters.next_if_eq(&',').is_some();
        match parts.last_mut() {
            Some(part) if character != ',' || is_doubled => part.push(character),
            _ => parts.push(String::new()),
        }
    }
    parts
}

/// Keys with their values, taken out one by one; what is left at the end was not understood.
#[derive(Debug)]
pub(super) struct KeyValues {
    pairs: Vec<(String, String)>,
}

impl KeyValues {
    /// Reads `text`. A first part without `=` is the value of `implied`; a later one is switched
    /// on.
    pub(super) fn parse(text: &str, implied: &str) -> Self {
        let parts = split_commas(text).into_iter().enumerate().filter(|(_, part)| !part.is_empty());
        let pairs = parts.map(|(index, part)| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None if index == 0 => (implied.to_owned(), part),
            None => (part, "on".to_owned()),
        });
        Self { pairs: pairs.collect() }
    }

    /// Takes the value of `key`; of several the last one counts.
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        let value = self.pairs.iter().rev().find(|(name, _)| name == key).map(|(_, v)| v.clone());
        self.pairs.retain(|(name, _)| name != key);
        value
    }

    /// Takes a switch.
    pub(super) fn take_switch(&mut self, key: &str) -> Result<Option<bool>, String> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
            Some("off" | "no" | "false" | "n") => Ok(Some(false)),
            Some(value) => Err(format!("{key}={value}: take on or off")),
        }
    }

    /// Takes a number.
    pub(super) fn take_number(&mut self, key: &str) -> Result<Option<u64>, String> {
        let Some(text) = self.take(key) else { return Ok(None) };
        values::number(&text).map(Some).ok_or_else(|| format!("{key}={text}: no number"))
    }

    /// Takes what is left, in order.
    pub(super) fn into_rest(self) -> Vec<(String, String)> {
        self.pairs
    }

    /// Fails if something is left.
    pub(super) fn finish(self) -> Result<(), String> {
        match self.pairs.first() {
            Some((key, value)) => Err(format!("{key}={value}: not supported")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubled_comma_is_one_of_a_value() {
        #[rustfmt::skip]
        let rows: &[(&str, &[&str])] = &[
            ("",          &[""]),
            ("a",         &["a"]),
            ("a,b=c",     &["a", "b=c"]),
            ("a,,b,c",    &["a,b", "c"]),
            ("a,,,b",     &["a,", "b"]),
            (",a",        &["", "a"]),
            ("a,",        &["a", ""]),
            (",,,,",      &[",,"]),
        ];
        for (text, parts) in rows {
            assert_eq!(split_commas(text), *parts, "{text}");
        }
    }

    #[test]
    fn what_is_not_taken_is_named() {
        let mut values = KeyValues::parse("q35,accel=tcg,smm,accel=kvm,x=1", "type");
        assert_eq!(values.take("type").as_deref(), Some("q35"));
        assert_eq!(values.take("accel").as_deref(), Some("kvm"));
        assert_eq!(values.take_switch("smm"), Ok(Some(true)));
        assert_eq!(values.finish(), Err("x=1: not supported".into()));
        assert_eq!(KeyValues::parse("size=1", "type").take("type"), None);
        assert_eq!(KeyValues::parse("", "type").finish(), Ok(()));
    }
}
