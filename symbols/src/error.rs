//! What can be wrong with a source of symbols.

/// Why no symbols came of it.
#[derive(Debug, thiserror::Error)]
pub enum SymbolError {
    /// The file cannot be read.
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
    /// It is no ELF file for x86, or a damaged one.
    #[error("is no ELF file that can be read: {0}")]
    Elf(String),
    /// It is an ELF file without a symbol table.
    #[error("has no symbols: it is stripped")]
    Stripped,
    /// It is an ELF file without DWARF lines.
    #[error("has no DWARF: build it with -g")]
    NoLines,
    /// A DWARF section is compressed.
    #[error("has compressed DWARF; objcopy --decompress-debug-sections makes a file that serves")]
    Compressed,
    /// A line of a text that is no symbol.
    #[error("line {line} is not `ADDRESS TYPE NAME`")]
    Line {
        /// Its number, from 1.
        line: usize,
    },
    /// A text whose addresses are hidden.
    #[error("has no address but 0: kptr_restrict hides them")]
    Hidden,
    /// There is more than anybody needs.
    #[error("has more symbols or DWARF than are taken")]
    TooLarge,
    /// No table of a Linux kernel is in memory.
    #[error("no symbol table of a Linux kernel is in memory")]
    NoKernel,
    /// The kernel's tables are of a form that is not known.
    #[error("the kernel's symbol table at {at:#x} is not of a form that is known: no {what}")]
    Form {
        /// Where its token table is.
        at: u64,
        /// What was looked for beside it.
        what: &'static str,
    },
}
