//! `--trace FILE,KEY=VALUE,...`.
//!
//! A filter may name symbols. Those of a guest are known once it runs, so such filters are kept as
//! they are written, and read again with the names when the trace begins.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use cpu::recording::{Trigger, Wishes};
use symbols::Symbols;
use trace::Kinds;

use super::values;
use crate::config::TraceConfig;
use crate::names;

/// What `what=` takes.
#[rustfmt::skip]
const KINDS: &[(&str, Kinds)] = &[
    ("block", Kinds::BLOCKS.with(Kinds::CONTROL)),
    ("insn",  Kinds::INSNS.with(Kinds::CONTROL)),
    ("mem",   Kinds::INSNS.with(Kinds::CONTROL).with(Kinds::MEMORY)),
    ("regs",  Kinds::INSNS.with(Kinds::CONTROL).with(Kinds::REGISTERS)),
    ("int",   Kinds::INTERRUPTS.with(Kinds::EXCEPTIONS)),
    ("io",    Kinds::IO),
    ("cr",    Kinds::CONTROL),
    ("msr",   Kinds::MSRS),
];
/// What is recorded unless told.
const DEFAULT: Kinds =
    Kinds::INSNS.with(Kinds::CONTROL).with(Kinds::INTERRUPTS).with(Kinds::EXCEPTIONS);

/// Reads the value of the option. What names symbols waits for [`resolve_trace`].
pub(crate) fn trace(text: &str) -> Result<TraceConfig, String> {
    let mut parts = text.split(',');
    let path = parts.next().filter(|path| !path.is_empty() && !path.contains('='));
    let path = path.ok_or("name a file first, such as run.trace,what=insn")?;
    let mut config = TraceConfig {
        path: PathBuf::from(path),
        wishes: Wishes { kinds: DEFAULT, ..Wishes::default() },
        cpu: None,
        ring_bytes: None,
        from: String::new(),
        to: String::new(),
        named: Vec::new(),
    };
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("'{part}' is no KEY=VALUE, such as what=insn+int"))?;
        if has_name(key, value) {
            config.named.push((key.to_owned(), value.to_owned()));
        } else {
            set(&mut config, key, value, &Symbols::default())?;
        }
    }
    Ok(config)
}

/// The same trace with the names looked up that were given.
pub(crate) fn resolve_trace(
    config: &TraceConfig,
    symbols: &Symbols,
) -> Result<TraceConfig, String> {
    let mut resolved = config.clone();
    for (key, value) in std::mem::take(&mut resolved.named) {
        set(&mut resolved, &key, &value, symbols)?;
    }
    Ok(resolved)
}

fn has_name(key: &str, value: &str) -> bool {
    match key {
        "range" => value.split('-').any(is_name),
        "from" | "to" => value.strip_prefix("at:").is_some_and(is_name),
        _ => false,
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic() || "_.".contains(first))
}

fn set(config: &mut TraceConfig, key: &str, value: &str, symbols: &Symbols) -> Result<(), String> {
    let wishes = &mut config.wishes;
    match key {
        "what" => wishes.kinds = kinds(value)?,
        "size" => {
            let bytes = values::bytes(value).filter(|bytes| *bytes >= trace::RING_BYTES_MIN);
            config.ring_bytes = Some(bytes.ok_or("size: give 1M or more, such as 256M")?);
        }
        "range" => {
            let range = range(value, symbols)?;
            if range.is_empty() {
                return Err("range: the last address is before the first".into());
            }
            wishes.range = Some(range);
        }
        "cpu" => config.cpu = Some(number(value).ok_or("cpu: give the number of a processor")?),
        "cpl" => {
            let cpl = number(value).filter(|cpl| *cpl <= 3);
            wishes.cpl = Some(cpl.ok_or("cpl: give 0, 1, 2 or 3")?);
        }
        "cr3" => wishes.cr3 = Some(address(value, symbols)?),
        "from" => {
            wishes.from = Some(trigger(value, symbols)?);
            config.from = value.to_owned();
        }
        "to" => {
            wishes.to = Some(trigger(value, symbols)?);
            config.to = value.to_owned();
        }
        _ => {
            return Err(format!(
                "'{key}' is unknown; take what, size, range, cpu, cpl, cr3, from or to"
            ));
        }
    }
    Ok(())
}

fn kinds(text: &str) -> Result<Kinds, String> {
    text.split('+').try_fold(Kinds::default(), |all, name| {
        let known = KINDS.iter().find(|(known, _)| *known == name);
        let names = || KINDS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        known.map(|(_, kinds)| all.with(*kinds)).ok_or_else(|| {
            format!("what: '{name}' is unknown; take some of {} with + between", names())
        })
    })
}

/// Where recording begins or ends.
fn trigger(text: &str, symbols: &Symbols) -> Result<Trigger, String> {
    if let Some(vector) = text.strip_prefix("int:") {
        let vector = number(vector).ok_or("int: give a vector, 0 to 255")?;
        return Ok(Trigger::Vector(vector));
    }
    if let Some(place) = text.strip_prefix("at:") {
        return Ok(Trigger::Address(address(place, symbols)?));
    }
    let count = number(text);
    count.map(Trigger::Count).ok_or_else(|| {
        format!("'{text}' is no count of instructions, no at:ADDRESS and no int:VECTOR")
    })
}

/// FIRST-LAST, or all of a function.
fn range(text: &str, symbols: &Symbols) -> Result<RangeInclusive<u64>, String> {
    match text.split_once('-') {
        Some((first, last)) => Ok(address(first, symbols)?..=address(last, symbols)?),
        None if is_name(text) => names::extent(symbols, text).ok_or_else(|| unknown(text)),
        None => Err("range: give FIRST-LAST, or the name of a function".into()),
    }
}

/// A linear address: a number, or a name to which one may be added.
fn address(text: &str, symbols: &Symbols) -> Result<u64, String> {
    if !is_name(text) {
        return number(text).ok_or_else(|| format!("'{text}' is no address"));
    }
    let (name, offset) = text.split_once('+').unwrap_or((text, "0"));
    let start = symbols.find(name).ok_or_else(|| unknown(name))?.address;
    let offset = number(offset).ok_or_else(|| format!("'{offset}' is no offset"))?;
    Ok(start.wrapping_add(offset))
}

fn unknown(name: &str) -> String {
    format!("'{name}': no such symbol is known yet; give --symbols, or an address")
}

/// A number that fits.
fn number<T: TryFrom<u64>>(text: &str) -> Option<T> {
    T::try_from(values::number(text)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_alone_has_instructions_and_interrupts() {
        let config = trace("run.trace").unwrap();
        assert_eq!(config.path, PathBuf::from("run.trace"));
        assert_eq!(config.wishes.kinds, DEFAULT);
        assert_eq!(config.ring_bytes, None);
    }

    #[test]
    fn each_key_says_what_is_left_out() {
        let words = "t,what=block+io,size=64M,range=0x1000-0x1fff,cpu=1,cpl=3,cr3=0x5000,from=100";
        let config = trace(&format!("{words},to=int:14")).unwrap();
        assert!(config.wishes.kinds.has(Kinds::IO) && config.wishes.kinds.has(Kinds::BLOCKS));
        assert!(!config.wishes.kinds.has(Kinds::INSNS.with(Kinds::MEMORY)));
        assert_eq!(config.ring_bytes, Some(64 << 20));
        assert_eq!(config.wishes.range, Some(0x1000..=0x1fff));
        assert_eq!((config.cpu, config.wishes.cpl), (Some(1), Some(3)));
        assert_eq!(config.wishes.cr3, Some(0x5000));
        assert_eq!(config.wishes.from, Some(Trigger::Count(100)));
        assert_eq!(config.wishes.to, Some(Trigger::Vector(14)));
        assert_eq!(trace("t,from=at:0xfff0").unwrap().wishes.from, Some(Trigger::Address(0xfff0)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("", "a file first"),
            ("what=insn", "a file first"),
            ("t,what=all", "'all'"),
            ("t,size=5", "1M or more"),
            ("t,range=5", "FIRST-LAST"),
            ("t,range=5-4", "before"),
            ("t,cpl=4", "0, 1, 2 or 3"),
            ("t,cpu=+1", "a processor"),
            ("t,cr3=0x+5000", "'0x+5000'"),
            ("t,from=start_kernel", "'start_kernel'"),
            ("t,depth=3", "'depth'"),
            ("t,fast", "'fast'"),
            ("t,range=0x5+-6", "'0x5+'"),
        ] {
            let error = trace(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn names_are_looked_up_when_the_trace_begins() {
        let mut builder = symbols::Builder::new("vmlinux");
        for (at, size, name) in [(0x1000, 0x80, "do_exit"), (0x2000, 0, "last")] {
            builder.push(at, size, 'T', name).unwrap();
        }
        let mut known = Symbols::default();
        known.add(builder.finish());
        let read = |text: &str| resolve_trace(&trace(text).unwrap(), &known);
        for (text, expected) in [
            ("t,range=do_exit", 0x1000..=0x107f),
            ("t,range=do_exit-last", 0x1000..=0x2000),
            ("t,range=0xf00-last+0xff", 0xf00..=0x20ff),
        ] {
            assert_eq!(trace(text).unwrap().wishes.range, None, "{text}");
            assert_eq!(read(text).unwrap().wishes.range, Some(expected), "{text}");
        }
        let config = read("t,from=at:do_exit,to=at:last+8").unwrap();
        assert_eq!(config.wishes.from, Some(Trigger::Address(0x1000)));
        assert_eq!(config.wishes.to, Some(Trigger::Address(0x2008)));
        assert_eq!((config.from.as_str(), config.to.as_str()), ("at:do_exit", "at:last+8"));
        for (text, named) in [
            ("t,range=no_such", "'no_such': no such symbol"),
            ("t,to=at:no_such+5", "'no_such': no such symbol"),
            ("t,from=at:last+x", "'x' is no offset"),
            ("t,range=last-do_exit", "before"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
