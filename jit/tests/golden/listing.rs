//! The text of an entry: guest instructions, then what the host executes for them.

use std::fmt::Write as _;

use iced_x86::{
    FlowControl, Formatter, Instruction, NasmFormatter, OpKind, SymbolResolver, SymbolResult,
};

use crate::block::{self, Block, Target, Wants};
use crate::entry::Entry;
use crate::names::Names;

/// An entry as text, with its figures.
pub struct Listing {
    pub text: String,
    /// Guest instructions.
    pub guest: usize,
    /// Host instructions on the path.
    pub host: usize,
}

/// Names what the formatter is about to write as a number.
struct Resolver {
    names: Names,
    /// What a jump's target is called.
    target: Option<String>,
    /// What a constant behind the code is.
    constant: Option<String>,
    is_context: bool,
}

impl SymbolResolver for Resolver {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _: u32,
        operand: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let text = self.target.clone().or_else(|| self.constant.clone());
        if let Some(text) = text {
            return Some(SymbolResult::with_string(address, text));
        }
        let is_memory = operand.is_some_and(|n| instruction.op_kind(n) == OpKind::Memory);
        if !self.is_context || !is_memory {
            return None;
        }
        let (name, base) = self.names.of(address)?;
        Some(SymbolResult::with_string(base, name.to_string()))
    }
}

fn formatter(resolver: Option<Box<dyn SymbolResolver>>) -> NasmFormatter {
    let mut formatter = NasmFormatter::with_options(resolver, None);
    let options = formatter.options_mut();
    options.set_space_after_operand_separator(true);
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    options.set_small_hex_numbers_in_decimal(true);
    formatter
}

/// The text of a host instruction.
fn host_text(block: &Block, names: &Names, host: &Instruction, labels: &[u64]) -> String {
    let is_near = matches!(
        host.flow_control(),
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call
    ) && host.near_branch_target() != 0;
    let target = is_near.then(|| match block.target(host) {
        Target::Inside(to) if to == block.body => "body".to_string(),
        Target::Inside(to) => label(labels, to),
        other => other.name().to_string(),
    });
    let constant = host
        .is_ip_rel_memory_operand()
        .then(|| block.constant(host.ip_rel_memory_address()))
        .flatten()
        .map(|word| format!("word({word:#x})"));
    let is_context = block::context_displacement(host).is_some();
    let resolver = Resolver { names: names.clone(), target, constant, is_context };
    let mut text = String::new();
    formatter(Some(Box::new(resolver))).format(host, &mut text);
    text
}

fn label(labels: &[u64], at: u64) -> String {
    let number = labels.iter().position(|&known| known == at).unwrap_or_default();
    format!("L{}", number + 1)
}

/// Positions on the path that something on it jumps to.
fn labels(block: &Block, hot: &[Instruction]) -> Vec<u64> {
    let jumps = hot.iter().filter(|host| host.near_branch_target() != 0);
    let mut labels: Vec<u64> = jumps
        .filter_map(|jump| match block.target(jump) {
            Target::Inside(to) => Some(to),
            _ => None,
        })
        .collect();
    labels.sort_unstable();
    labels.dedup();
    labels
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// The text and figures of `entry`.
pub fn of(entry: &Entry, names: &Names) -> Listing {
    let block = block::of(entry);
    let mut text = format!("== {}", entry.name);
    head(entry, &mut text);
    let mut at = 0;
    for guest in &block.guest {
        let bytes = &block.guest_bytes[at..at + guest.len()];
        at += guest.len();
        let mut line = String::new();
        formatter(None).format(guest, &mut line);
        write!(text, "\n{:<32} {line}", hex(bytes)).expect("text");
    }
    let wants = match block.wants {
        Wants::Nothing => "flags not wanted",
        Wants::Live => "flags live",
        Wants::Spilled => "flags spilled",
    };
    write!(text, "\n-- {wants}").expect("text");
    let hot = block.hot();
    let labels = labels(&block, &hot);
    if entry.shows_entries {
        for host in block::decode(&block.bytes, 0, block.body) {
            write!(text, "\n  | {}", host_text(&block, names, &host, &[])).expect("text");
        }
    }
    for host in &hot {
        if labels.contains(&host.ip()) {
            write!(text, "\n  {}:", label(&labels, host.ip())).expect("text");
        }
        write!(text, "\n    {}", host_text(&block, names, host, &labels)).expect("text");
    }
    let count = count(&block);
    let (guest, out) = (block.guest.len() * entry.turns, block.out_of_line());
    write!(text, "\n-- {guest} guest, {count} host, {out} out of line").expect("text");
    Listing { text, guest, host: count }
}

fn head(entry: &Entry, text: &mut String) {
    let mut put = |is_so: bool, what: &str| {
        if is_so {
            write!(text, ", {what}").expect("text");
        }
    };
    put(entry.bits == 32, "32-bit");
    put(entry.cpl == 3, "CPL 3");
    put(entry.is_counting, "counted");
    put(entry.turns > 1, "hot");
    put(entry.is_ungrouped, "checked one by one");
}

/// Host instructions on the path, but for the jump to the next block that is only there because the
/// test ends the block.
fn count(block: &Block) -> usize {
    let is_cut = block.guest.last().is_none_or(|last| {
        matches!(last.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch)
    });
    let length = block.path_length(block.body).expect("a way through the block");
    length - usize::from(is_cut)
}
