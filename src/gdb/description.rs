//! The target description: one, for 64-bit registers, which is valid in every mode.
//!
//! gdb reads it once for each connection, and takes an i8086 under a 64-bit one for an error; so
//! RIP is an offset in CS in all modes, and `volvelle-gdb.py` disassembles at `$cs_base+$pc`.
//! Features that gdb knows have gdb's names and types; the others are `org.volvelle`'s.

use std::fmt::Write;
use std::sync::LazyLock;

use crate::debug::registers::{Format, Group, REGISTERS, Register};

const HEAD: &str = "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n\
    <target version=\"1.0\">\n<architecture>i386:x86-64</architecture>\n";

const FLAGS: &[(&str, u32)] = &[
    ("CF", 0),
    ("", 1),
    ("PF", 2),
    ("AF", 4),
    ("ZF", 6),
    ("SF", 7),
    ("TF", 8),
    ("IF", 9),
    ("DF", 10),
    ("OF", 11),
    ("NT", 14),
    ("RF", 16),
    ("VM", 17),
    ("AC", 18),
    ("VIF", 19),
    ("VIP", 20),
    ("ID", 21),
];
const MXCSR_FLAGS: &[(&str, u32)] = &[
    ("IE", 0),
    ("DE", 1),
    ("ZE", 2),
    ("OE", 3),
    ("UE", 4),
    ("PE", 5),
    ("DAZ", 6),
    ("IM", 7),
    ("DM", 8),
    ("ZM", 9),
    ("OM", 10),
    ("UM", 11),
    ("PM", 12),
    ("FZ", 15),
];
const VECTOR: &str = "<vector id=\"v8bf16\" type=\"bfloat16\" count=\"8\"/>\
    <vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/>\
    <vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>\
    <vector id=\"v16i8\" type=\"int8\" count=\"16\"/>\
    <vector id=\"v8i16\" type=\"int16\" count=\"8\"/>\
    <vector id=\"v4i32\" type=\"int32\" count=\"4\"/>\
    <vector id=\"v2i64\" type=\"int64\" count=\"2\"/>\
    <union id=\"vec128\"><field name=\"v8_bfloat16\" type=\"v8bf16\"/>\
    <field name=\"v4_float\" type=\"v4f\"/><field name=\"v2_double\" type=\"v2d\"/>\
    <field name=\"v16_int8\" type=\"v16i8\"/><field name=\"v8_int16\" type=\"v8i16\"/>\
    <field name=\"v4_int32\" type=\"v4i32\"/><field name=\"v2_int64\" type=\"v2i64\"/>\
    <field name=\"uint128\" type=\"uint128\"/></union>\n";
const PAIR: &str = "<vector id=\"v2ui128\" type=\"uint128\" count=\"2\"/>\n";

/// The description.
pub(super) fn xml() -> &'static str {
    static XML: LazyLock<String> = LazyLock::new(write);
    &XML
}

fn write() -> String {
    let mut text = HEAD.to_owned();
    let mut group = None;
    for (number, register) in REGISTERS.iter().enumerate() {
        if group != Some(register.group) {
            text += if group.is_some() { "</feature>\n" } else { "" };
            open(&mut text, register.group);
            group = Some(register.group);
        }
        write_register(&mut text, number, register);
    }
    text + "</feature>\n</target>\n"
}

fn open(text: &mut String, group: Group) {
    let (name, types) = match group {
        Group::Core => ("gnu.gdb.i386.core", flags("i386_eflags", FLAGS)),
        Group::Sse => ("gnu.gdb.i386.sse", VECTOR.to_owned() + &flags("i386_mxcsr", MXCSR_FLAGS)),
        Group::Linux => ("gnu.gdb.i386.linux", String::new()),
        Group::SegmentBases => ("gnu.gdb.i386.segments", String::new()),
        Group::Avx => ("gnu.gdb.i386.avx", String::new()),
        Group::Avx512 => ("gnu.gdb.i386.avx512", VECTOR.to_owned() + PAIR),
        Group::Pkeys => ("gnu.gdb.i386.pkeys", String::new()),
        Group::Control => ("volvelle.control", String::new()),
        Group::Segments => ("volvelle.segments", String::new()),
        Group::Msrs => ("volvelle.msrs", String::new()),
    };
    // A string takes every write.
    let _ = write!(text, "<feature name=\"org.{name}\">\n{types}");
}

/// A type of four bytes whose bits have names.
fn flags(id: &str, bits: &[(&str, u32)]) -> String {
    let field = |(name, bit): &(&str, u32)| {
        format!("<field name=\"{name}\" start=\"{bit}\" end=\"{bit}\"/>")
    };
    let fields: String = bits.iter().map(field).collect();
    format!("<flags id=\"{id}\" size=\"4\">{fields}</flags>\n")
}

fn write_register(text: &mut String, number: usize, register: &Register) {
    let Register { name, bits, format, .. } = register;
    let integer =
        format!("{}{bits}", if *bits == 32 && !is_ours(register) { "int" } else { "uint" });
    let kind = match format {
        Format::Integer if register.group == Group::Core && *bits == 64 => "int64",
        Format::Integer => &integer,
        Format::DataPointer => "data_ptr",
        Format::CodePointer => "code_ptr",
        Format::Flags => "i386_eflags",
        Format::Extended => "i387_ext",
        Format::Environment => "int",
        Format::Vector => "vec128",
        Format::VectorPair => "v2ui128",
        Format::Mxcsr => "i386_mxcsr",
    };
    let group = match (format, register.group) {
        (Format::Environment, _) => " group=\"float\"",
        (Format::Mxcsr, _) => " group=\"vector\"",
        (_, Group::Control | Group::Segments | Group::Msrs) => " group=\"system\"",
        _ => "",
    };
    let _ = writeln!(
        text,
        "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\" regnum=\"{number}\"{group}/>"
    );
}

fn is_ours(register: &Register) -> bool {
    matches!(register.group, Group::Control | Group::Segments | Group::Msrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_closed_and_registers_numbered() {
        let text = xml();
        assert_eq!(text.matches("<feature").count(), text.matches("</feature>").count());
        assert_eq!(text.matches("<reg ").count(), REGISTERS.len());
        assert!(
            text.contains("<reg name=\"rip\" bitsize=\"64\" type=\"code_ptr\" regnum=\"16\"/>")
        );
        assert!(text.contains("name=\"cs_base\" bitsize=\"64\" type=\"uint64\""));
    }
}
