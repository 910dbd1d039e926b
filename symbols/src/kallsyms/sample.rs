//! Tables of a small kernel, as kernels of each version have them: for tests.

/// A kernel's tables, made as `scripts/kallsyms` of a version makes them.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Addresses are behind the index, as from Linux 6.5.
    pub is_newer: bool,
    /// A table of 3 bytes a symbol: before the tokens, or at the end.
    pub has_order: bool,
    /// How addresses are written.
    pub addresses: Written,
    /// Bytes of a mark.
    pub mark: usize,
}

/// How addresses are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// As they are.
    Plain,
    /// From a base on.
    Relative,
    /// From a base on, but for those that are not negative.
    RelativeWithAbsolute,
}

/// Where the kernel is.
pub const BASE: u64 = 0xffff_ffff_9a00_0000;
/// Where the tables are, from `BASE`.
const TABLES: u64 = 0x140_0000;

/// Some thousand symbols; per-CPU ones first, and one whose name is longer than 127 bytes.
pub fn symbols(has_absolute: bool) -> Vec<(u64, String)> {
    let mut all: Vec<_> = (0..2500u64).map(|n| (BASE + n * 0x30, format!("tsymbol_{n}"))).collect();
    all.push((BASE + 0x50_0000, format!("D{}", "long_".repeat(60))));
    if has_absolute {
        let per_cpu = (0..40u64).map(|n| (n * 0x20, format!("Aper_cpu_{n}")));
        all.splice(0..0, per_cpu);
    }
    all
}

/// The tokens: characters stand for themselves, and some bytes for pieces of names.
fn tokens() -> Vec<String> {
    let mut tokens: Vec<String> = (0..=255u8)
        .map(|byte| match byte {
            b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
            byte => format!("piece{byte}"),
        })
        .collect();
    for (number, text) in [(1, "symbol_"), (0xff, "per_")] {
        if let Some(token) = tokens.get_mut(number) {
            *token = text.into();
        }
    }
    tokens
}

fn compress(name: &str) -> Vec<u8> {
    let name = name.replace("symbol_", "\u{1}");
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        match rest.strip_prefix(b"per_") {
            Some(behind) => {
                bytes.push(0xff);
                rest = behind;
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    bytes
}

fn align(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// The bytes at `BASE + TABLES`.
pub fn tables(form: Form) -> Vec<u8> {
    let symbols = symbols(form.addresses == Written::RelativeWithAbsolute);
    let (mut names, mut marks) = (Vec::new(), Vec::new());
    for (index, (_, name)) in symbols.iter().enumerate() {
        if index % 256 == 0 {
            marks.extend(names.len().to_le_bytes().into_iter().take(form.mark));
        }
        let name = compress(name);
        match name.len() {
            length @ ..128 => names.push(length as u8),
            length => names.extend([length as u8 & 0x7f | 0x80, (length >> 7) as u8]),
        }
        names.extend(name);
    }
    let (mut text, mut index) = (Vec::new(), Vec::new());
    for token in tokens() {
        index.extend_from_slice(&(text.len() as u16).to_le_bytes());
        text.extend(token.as_bytes());
        text.push(0);
    }
    let mut addresses = Vec::new();
    for (address, _) in &symbols {
        match form.addresses {
            Written::Plain => addresses.extend(address.to_le_bytes()),
            Written::Relative => addresses.extend(((address - BASE) as u32).to_le_bytes()),
            Written::RelativeWithAbsolute if *address < BASE => {
                addresses.extend((*address as u32).to_le_bytes());
            }
            Written::RelativeWithAbsolute => {
                addresses
                    .extend((BASE.wrapping_sub(1).wrapping_sub(*address) as u32).to_le_bytes());
            }
        }
    }
    align(&mut addresses);
    if form.addresses != Written::Plain {
        addresses.extend(BASE.to_le_bytes());
    }
    // What ends in no NUL shall not be taken for the end of a token.
    let order = vec![0xee; if form.has_order { 3 * symbols.len() } else { 0 }];
    let count = (symbols.len() as u32).to_le_bytes().to_vec();
    let parts = match form.is_newer {
        false => vec![addresses, count, names, marks, order, text, index],
        true => vec![count, names, marks, text, index, addresses, order],
    };
    let mut all = vec![0x5a; 4096];
    for part in parts {
        all.extend(part);
        align(&mut all);
    }
    all.extend([0xa5; 4096]);
    all
}

/// Reads `bytes` at `BASE + TABLES`, where nothing else is.
pub fn reader(bytes: &[u8]) -> impl FnMut(u64, &mut [u8]) -> usize + '_ {
    move |at, out| {
        let Some(offset) = at.checked_sub(BASE + TABLES) else { return 0 };
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(out.len());
        out.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        count
    }
}

/// Every form.
pub fn forms() -> impl Iterator<Item = Form> {
    let addresses = [Written::Plain, Written::Relative, Written::RelativeWithAbsolute];
    let orders = [(false, false), (false, true), (true, false), (true, true)];
    addresses.into_iter().flat_map(move |addresses| {
        orders.into_iter().flat_map(move |(is_newer, has_order)| {
            [4, 8].map(|mark| Form { is_newer, has_order, addresses, mark })
        })
    })
}
