//! The monitor's words: addresses and formats.

use cpu::Cpu;
use symbols::Symbols;

use super::registers;
use crate::cli::values;
use crate::names::Names;

pub(super) use values::number;

/// Items that one command shows at most.
pub(super) const ITEMS_MAX: usize = 4096;

/// An address: numbers, `$register`s and symbols with `+` and `-` between them.
pub(super) fn address(text: &str, cpu: &mut Cpu, names: &Names) -> Result<u64, String> {
    let mut sum = 0u64;
    let mut rest = text.trim();
    let mut is_minus = false;
    loop {
        let end = rest.find(['+', '-']).unwrap_or(rest.len());
        let (term, behind) = rest.split_at(end);
        let value = term_value(term.trim(), cpu, names)?;
        sum = if is_minus { sum.wrapping_sub(value) } else { sum.wrapping_add(value) };
        let Some(sign) = behind.chars().next() else { return Ok(sum) };
        is_minus = sign == '-';
        rest = behind.get(1..).unwrap_or_default();
    }
}

fn term_value(term: &str, cpu: &mut Cpu, names: &Names) -> Result<u64, String> {
    let Some(name) = term.strip_prefix('$') else {
        if let Some(number) = number(term) {
            return Ok(number);
        }
        let symbols = names.settle(cpu);
        let symbol = symbols.find(term).ok_or_else(|| unknown_symbol(term, &symbols))?;
        return Ok(symbol.address);
    };
    let register = registers::by_name(name)
        .ok_or_else(|| format!("${name}: no such register; `info registers` lists them"))?;
    register.number(cpu).ok_or_else(|| format!("${name}: is no number"))
}

/// What is said of a name that no symbol has.
pub(super) fn unknown_symbol(name: &str, symbols: &Symbols) -> String {
    /// Letters that say enough of a name.
    const LETTERS_MIN: usize = 3;
    /// Names that are told.
    const NAMES_MAX: usize = 4;
    let known = if name.len() < LETTERS_MIN { vec![] } else { symbols.names_from(name, NAMES_MAX) };
    match known.split_last() {
        None => format!("{name}: no such symbol; give a number, a $register or a symbol"),
        Some((last, [])) => format!("{name}: no such symbol, but {last}"),
        Some((last, names)) => {
            format!("{name}: no such symbol, but {} or {last}", names.join(", "))
        }
    }
}

/// How memory is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Hexadecimal,
    Signed,
    Unsigned,
    Octal,
    Binary,
    Character,
    Instruction,
}

/// `/COUNT FORMAT SIZE`, as gdb has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) count: usize,
    pub(super) style: Style,
    /// Bytes of an item.
    pub(super) size: usize,
}

/// Reads what stands behind the slash.
pub(super) fn layout(text: &str) -> Result<Layout, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, letters) = text.split_at(digits);
    let count = if count.is_empty() { Some(1) } else { count.parse().ok() };
    let count = count
        .filter(|count| (1..=ITEMS_MAX).contains(count))
        .ok_or_else(|| format!("/{text}: show 1 to {ITEMS_MAX} items"))?;
    let mut layout = Layout { count, style: Style::Hexadecimal, size: 4 };
    for letter in letters.chars() {
        match letter {
            'x' => layout.style = Style::Hexadecimal,
            'd' => layout.style = Style::Signed,
            'u' => layout.style = Style::Unsigned,
            'o' => layout.style = Style::Octal,
            't' => layout.style = Style::Binary,
            'c' => (layout.style, layout.size) = (Style::Character, 1),
            'i' => layout.style = Style::Instruction,
            'b' => layout.size = 1,
            'h' => layout.size = 2,
            'w' => layout.size = 4,
            'g' => layout.size = 8,
            _ => {
                return Err(format!(
                    "/{text}: formats are x, d, u, o, t, c and i, sizes b, h, w and g"
                ));
            }
        }
    }
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_gdb() {
        let plain = Layout { count: 1, style: Style::Hexadecimal, size: 4 };
        for (text, expected) in [
            ("", Some(plain)),
            ("8", Some(Layout { count: 8, ..plain })),
            ("2xg", Some(Layout { count: 2, size: 8, ..plain })),
            ("10i", Some(Layout { count: 10, style: Style::Instruction, ..plain })),
            ("c", Some(Layout { style: Style::Character, size: 1, ..plain })),
            ("0x", None),
            ("4097b", None),
            ("99999999999999999999", None),
            ("y", None),
            ("é", None),
        ] {
            assert_eq!(layout(text).ok(), expected, "{text}");
        }
    }
}
