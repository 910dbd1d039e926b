//! `volvelle trace`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::values;
use crate::names::SymbolFile;
use crate::views::{Filter, Format, Options, Range};

#[derive(Args)]
pub(super) struct TraceArguments {
    /// The trace, as `volvelle run --trace` has written it
    #[arg(value_name = "FILE")]
    trace: PathBuf,
    /// What it becomes
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    format: Format,
    /// Names for addresses: an ELF file or a System.map, at BASE; and more with each use
    #[arg(long, value_name = "FILE[@BASE]")]
    #[arg(value_parser = OsStringValueParser::new().map(|text| values::symbols(&text)))]
    symbols: Vec<SymbolFile>,
    /// Only this CPU
    #[arg(long, value_name = "N", help_heading = "Filters")]
    cpu: Option<u16>,
    /// Only code at this privilege level
    #[arg(long, value_name = "N", help_heading = "Filters")]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=3))]
    cpl: Option<u8>,
    /// Only blocks with code at START-END, or of the function SYMBOL
    #[arg(long, value_name = "START-END|SYMBOL", value_parser = values::code_range)]
    #[arg(help_heading = "Filters")]
    range: Option<Range>,
    /// Only from where a CPU has retired so many instructions
    #[arg(long, value_name = "COUNT", help_heading = "Filters")]
    from: Option<u64>,
    /// Only to before that
    #[arg(long, value_name = "COUNT", help_heading = "Filters")]
    to: Option<u64>,
    /// Show where another trace is the first to differ, instead; the exit status is 1 if one does
    #[arg(long, value_name = "FILE")]
    #[arg(conflicts_with_all = ["format", "cpl", "range", "from", "to"])]
    compare: Option<PathBuf>,
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl TraceArguments {
    /// What these arguments ask for.
    pub(super) fn into_options(self) -> Options {
        Options {
            trace: self.trace,
            format: self.format,
            symbols: self.symbols,
            output: self.output,
            compare: self.compare,
            filter: Filter {
                cpu: self.cpu,
                cpl: self.cpl,
                range: self.range,
                from: self.from,
                to: self.to,
            },
        }
    }
}
