//! `--trace FILE,KEY=VALUE,...`.

use std::path::PathBuf;

use cpu::recording::{Trigger, Wishes};
use trace::Kinds;

use super::values;
use crate::config::TraceConfig;

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

/// Reads the value of the option.
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
    };
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("'{part}' is no KEY=VALUE, such as what=insn+int"))?;
        set(&mut config, key, value)?;
    }
    Ok(config)
}

fn set(config: &mut TraceConfig, key: &str, value: &str) -> Result<(), String> {
    let wishes = &mut config.wishes;
    match key {
        "what" => wishes.kinds = kinds(value)?,
        "size" => {
            let bytes = values::bytes(value).filter(|bytes| *bytes >= trace::RING_BYTES_MIN);
            config.ring_bytes = Some(bytes.ok_or("size: give 1M or more, such as 256M")?);
        }
        "range" => {
            let (start, end) = value.split_once('-').ok_or("range: give FIRST-LAST")?;
            let range = address(start)?..=address(end)?;
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
        "cr3" => wishes.cr3 = Some(address(value)?),
        "from" => {
            wishes.from = Some(trigger(value)?);
            config.from = value.to_owned();
        }
        "to" => {
            wishes.to = Some(trigger(value)?);
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
fn trigger(text: &str) -> Result<Trigger, String> {
    if let Some(vector) = text.strip_prefix("int:") {
        let vector = number(vector).ok_or("int: give a vector, 0 to 255")?;
        return Ok(Trigger::Vector(vector));
    }
    if let Some(place) = text.strip_prefix("at:") {
        return Ok(Trigger::Address(address(place)?));
    }
    let count = number(text);
    count.map(Trigger::Count).ok_or_else(|| {
        format!("'{text}' is no count of instructions, no at:ADDRESS and no int:VECTOR")
    })
}

/// A linear address. The names of symbols are to be looked up here, once a guest's are known before
/// it runs.
fn address(text: &str) -> Result<u64, String> {
    number(text).ok_or_else(|| format!("'{text}' is no address"))
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
        ] {
            let error = trace(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
