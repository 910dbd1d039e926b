//! `System.map`, and `/proc/kallsyms` saved to a file: a line each, address, type and name.

use std::io::{BufRead, Read};

use crate::{Builder, Module, SymbolError};

/// Bytes of a line at most.
const LINE_MAX: u64 = 4096;

/// Reads the text `input` as the module `name`.
pub fn read(name: &str, input: &mut dyn BufRead) -> Result<Module, SymbolError> {
    let mut builder = Builder::new(name);
    let mut line = Vec::new();
    let mut all = 0;
    for number in 1.. {
        line.clear();
        let count = input.take(LINE_MAX).read_until(b'\n', &mut line).map_err(SymbolError::Read)?;
        if count == 0 {
            break;
        }
        let bad = || SymbolError::Line { line: number };
        let text = std::str::from_utf8(&line).map_err(|_| bad())?.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let (address, letter, name) = symbol(text).ok_or_else(bad)?;
        all |= address;
        builder.push(address, 0, letter, name)?;
    }
    if all == 0 {
        let is_empty = builder.is_empty();
        return Err(if is_empty { SymbolError::Stripped } else { SymbolError::Hidden });
    }
    Ok(builder.finish())
}

/// Takes a line apart. The module's name that may follow the symbol's behind a tab is dropped;
/// blanks are in names of Rust.
fn symbol(line: &str) -> Option<(u64, char, &str)> {
    let (address, rest) = line.split_once(|c: char| c.is_ascii_whitespace())?;
    let address = u64::from_str_radix(address.strip_prefix("0x").unwrap_or(address), 16).ok()?;
    let (letter, rest) = rest.trim_ascii_start().split_once(|c: char| c.is_ascii_whitespace())?;
    let is_letter = letter.len() == 1 && letter.bytes().all(|byte| byte.is_ascii_graphic());
    let letter = letter.chars().next().filter(|_| is_letter)?;
    let name = rest.trim_ascii_start().split('\t').next()?.trim_ascii_end();
    Some((address, letter, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(text: &str) -> Result<Module, SymbolError> {
        read("map", &mut text.as_bytes())
    }

    #[test]
    fn both_texts_are_read() {
        let text = "\
            0000000000000000 A fixed_percpu_data\n\
            ffffffff81000000 T _stext\n\n\
            ffffffffc0001000 t helper\t[virtio_net]\n";
        let module = module(text).expect("it is one");
        assert_eq!(module.len(), 3);
        assert_eq!(module.find("helper").map(|symbol| symbol.address), Some(0xffff_ffff_c000_1000));
    }

    #[test]
    fn what_is_no_symbol_is_told_by_its_line() {
        for text in ["10 T a\nhello\n", "10 T a\n10 T\n", "10 T a\n10 TT b\n", "10 T a\nxyz T b\n"]
        {
            assert!(matches!(module(text), Err(SymbolError::Line { line: 2 })), "{text}");
        }
        assert!(matches!(module(""), Err(SymbolError::Stripped)));
        assert!(matches!(module("0000 T a\n0000 T b\n"), Err(SymbolError::Hidden)));
        let long = "a".repeat(2 * LINE_MAX as usize);
        assert!(module(&long).is_err());
    }
}
