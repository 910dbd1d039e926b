//! Values of options: what their text means.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use machine::layout::{MEMORY_MAX, MEMORY_MIN};

use crate::config::{Accel, Backend, Endpoint, EngineKind, ModuleFile, TimeBase};
use crate::names::SymbolFile;
use crate::profile::ProfileConfig;
use crate::views::Range;

/// Guest RAM is made of pages.
const PAGE_BYTES: u64 = 4096;
/// What an instruction takes with `--clock icount`: about the interpreter's own pace.
const COUNTED_NS: u64 = 10;
/// A millisecond an instruction: slower than any clock a guest could believe in.
const COUNTED_NS_MAX: u64 = 1_000_000;

/// The least and the most of a time that is waited for.
const TIME_MIN_NS: u64 = 10_000;
const TIME_MAX_NS: u64 = 1_000_000_000_000_000;

const BACKENDS: &str = "stdio, none, file:PATH, unix:PATH or tcp:HOST:PORT";

/// A number with a unit, in bytes. None if it is none, or beyond 64 bits.
///
/// Units are binary, as everywhere where memory is counted: `K`, `KB` and `KiB` are 1024 bytes.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Checks that a machine can have this much memory.
pub(crate) fn check_memory(bytes: u64) -> Result<u64, String> {
    match bytes {
        ..MEMORY_MIN => Err(format!("a machine needs at least {}M", MEMORY_MIN >> 20)),
        _ if bytes > MEMORY_MAX => Err(format!("a machine takes at most {}G", MEMORY_MAX >> 30)),
        _ if !bytes.is_multiple_of(PAGE_BYTES) => Err("memory comes in pages of 4 KiB".into()),
        _ => Ok(bytes),
    }
}

/// `--symbols FILE[@BASE]`. What stands behind the last `@` belongs to the name if it is no number.
pub(super) fn symbols(text: &OsStr) -> SymbolFile {
    let bytes = text.as_bytes();
    let split = bytes.iter().rposition(|&byte| byte == b'@').and_then(|at| {
        let (path, base) = (bytes.get(..at)?, bytes.get(at + 1..)?);
        Some((path, number(std::str::from_utf8(base).ok()?)?))
    });
    match split {
        Some((path, base)) => SymbolFile { path: OsStr::from_bytes(path).into(), base: Some(base) },
        None => SymbolFile { path: text.into(), base: None },
    }
}

/// `--range START-END`, or the name of a function.
pub(super) fn code_range(text: &str) -> Result<Range, String> {
    let Some((start, end)) = text.split_once('-') else {
        return match number(text) {
            Some(_) => Err("give both ends, as in 0x1000-0x1fff".into()),
            None => Ok(Range::Symbol(text.into())),
        };
    };
    match (number(start), number(end)) {
        (Some(start), Some(end)) if start <= end => Ok(Range::Addresses(start..=end)),
        _ => Err("give addresses in order, as in 0x1000-0x1fff, or a function".into()),
    }
}

/// `--profile FILE[,hz=N][,cpl=0|3]`.
pub(super) fn profile(text: &str) -> Result<ProfileConfig, String> {
    const HZ_MAX: u32 = 10_000;
    let (path, options) = text.split_once(',').unwrap_or((text, ""));
    if path.is_empty() {
        return Err("name the file of the picture, such as profile.svg".into());
    }
    let mut profile = ProfileConfig { path: path.into(), hz: 99, cpl: None };
    if profile.path.extension().is_some_and(|extension| extension == "folded") {
        return Err("name the picture; its stacks go to .folded beside it".into());
    }
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("hz", hz)) => {
                let hz = hz.parse().ok().filter(|hz| (1..=HZ_MAX).contains(hz));
                profile.hz = hz.ok_or_else(|| format!("{option}: give 1 to {HZ_MAX} a second"))?;
            }
            Some(("cpl", "0")) => profile.cpl = Some(0),
            Some(("cpl", "3")) => profile.cpl = Some(3),
            _ => return Err(format!("'{option}': take hz=N, cpl=0 or cpl=3")),
        }
    }
    Ok(profile)
}

/// `--memory SIZE`.
pub(super) fn memory(text: &str) -> Result<u64, String> {
    check_memory(bytes(text).ok_or("give a number with its unit, such as 512M or 4G")?)
}

/// `--jit-cache SIZE`. Whether it is enough depends on the number of CPUs.
pub(super) fn cache(text: &str) -> Result<u64, String> {
    bytes(text).ok_or_else(|| "give a number with its unit, such as 64M".into())
}

/// `--seconds N`: how long a measurement may take, an hour at most.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (1e-6..=3600.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "give a number of seconds above 0, and at most 3600".into())
}

/// `--accel`.
pub(super) fn accel(text: &str) -> Result<Accel, String> {
    match text {
        "auto" => Ok(Accel::Auto),
        "kvm" => Ok(Accel::Kvm),
        "jit" => Ok(Accel::Jit),
        "interp" => Ok(Accel::Interp),
        _ => Err("take auto, kvm, jit or interp".into()),
    }
}

/// An engine by name.
pub(crate) fn engine(text: &str) -> Result<EngineKind, String> {
    let all = [EngineKind::Kvm, EngineKind::Jit, EngineKind::Interp];
    let found = all.into_iter().find(|engine| engine.to_string() == text);
    found.ok_or_else(|| "take kvm, jit or interp".into())
}

/// `--switch-to ENGINE@TIME`.
pub(super) fn engine_at(text: &str) -> Result<(u64, EngineKind), String> {
    let (name, when) = text.split_once('@').ok_or("give an engine and a time, such as jit@10s")?;
    Ok((time(when)?, engine(name)?))
}

/// A guest time in nanoseconds, from its start or between two of the same thing.
pub(super) fn time(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ns = match unit {
        "s" => 1_000_000_000,
        "ms" => 1_000_000,
        "us" => 1000,
        _ => return Err("give a whole number with its unit: s, ms or us".into()),
    };
    let ns = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ns));
    ns.filter(|ns| (TIME_MIN_NS..=TIME_MAX_NS).contains(ns))
        .ok_or_else(|| "give a time from 10us to 1000000s".into())
}

/// `--cpu MODEL[,+feat,-feat]`. Whether the model exists, and here, is known when it is made.
pub(super) fn cpu_model(text: &str) -> Result<String, String> {
    match text.split(',').any(str::is_empty) {
        true => Err("give MODEL[,+feature][,-feature], such as max,-avx512f".into()),
        false => Ok(text.to_owned()),
    }
}

/// `--serial` and `--debugcon`.
pub(super) fn backend(text: &str) -> Result<Backend, String> {
    let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
    match (kind, rest.filter(|rest| !rest.is_empty())) {
        ("stdio", None) if rest.is_none() => Ok(Backend::Stdio),
        ("none", None) if rest.is_none() => Ok(Backend::Null),
        ("file", Some(path)) => Ok(Backend::File(path.into())),
        ("unix", Some(path)) => Ok(Backend::Unix(path.into())),
        ("tcp", Some(address)) if is_host_and_port(address) => Ok(Backend::Tcp(address.into())),
        _ => Err(format!("take {BACKENDS}")),
    }
}

/// `--gdb`.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, String> {
    let endpoint = backend(text).ok().as_ref().and_then(Endpoint::of);
    endpoint.ok_or_else(|| "take tcp:HOST:PORT or unix:PATH, such as tcp:localhost:1234".into())
}

/// `--monitor`.
pub(super) fn monitor(text: &str) -> Result<Backend, String> {
    let is_place = |place: &Backend| !matches!(place, Backend::File(_));
    let place = backend(text).ok().filter(is_place);
    place.ok_or_else(|| "take stdio, none, unix:PATH or tcp:HOST:PORT".into())
}

/// True for `HOST:PORT`; `[::1]:PORT` counts, an empty host does not.
pub(crate) fn is_host_and_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// A number, decimal or hexadecimal with `0x`.
pub(crate) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // from_str_radix would take a sign.
        Some(digits) if digits.starts_with('+') => None,
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None if text.starts_with('+') => None,
        None => text.parse().ok(),
    }
}

/// `--debug-exit=PORT`.
pub(super) fn port(text: &str) -> Result<u16, String> {
    let port = number(text).and_then(|number| u16::try_from(number).ok());
    port.ok_or_else(|| "give an I/O port from 0 to 0xffff, such as 0xf4".into())
}

/// `--clock host|icount[=ns]`.
pub(super) fn clock(text: &str) -> Result<TimeBase, String> {
    let counted = |ns_per_instruction| TimeBase::Counted { ns_per_instruction };
    match text {
        "host" => return Ok(TimeBase::Host),
        "icount" => return Ok(counted(COUNTED_NS)),
        _ => {}
    }
    text.strip_prefix("icount=")
        .and_then(|ns| ns.parse().ok())
        .filter(|ns| (1..=COUNTED_NS_MAX).contains(ns))
        .map(counted)
        .ok_or_else(|| {
            format!("take host or icount[=NS], NS from 1 to {COUNTED_NS_MAX} an instruction")
        })
}

/// `PATH[ ARGUMENTS]`: a file for the guest, and what a Multiboot kernel is told with it.
pub(crate) fn module(text: &OsStr) -> ModuleFile {
    let bytes = text.as_bytes();
    let space = bytes.iter().position(|&byte| byte == b' ').unwrap_or(bytes.len());
    let (path, arguments) = bytes.split_at(space);
    let arguments = arguments.get(1..).unwrap_or_default();
    ModuleFile {
        path: PathBuf::from(OsStr::from_bytes(path)),
        arguments: String::from_utf8_lossy(arguments).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_binary_units() {
        #[rustfmt::skip]
        let rows = [
            ("512M", Some(512 << 20)), ("4g", Some(4 << 30)), ("64KiB", Some(64 << 10)),
            ("1TB", Some(1 << 40)), ("0M", Some(0)),
            ("", None), ("M", None), ("512", None), ("1.5G", None), ("-1M", None), ("+1M", None),
            ("1 G", None), ("1X", None), ("16777216T", None), ("99999999999999999999M", None),
            ("1Gé", None), ("é", None),
        ];
        for (text, bytes_of_text) in rows {
            assert_eq!(bytes(text), bytes_of_text, "{text}");
        }
    }

    #[test]
    fn backends_are_named_as_on_the_command_line() {
        #[rustfmt::skip]
        let rows = [
            ("stdio", Some(Backend::Stdio)),
            ("none", Some(Backend::Null)),
            ("file:a:b", Some(Backend::File("a:b".into()))),
            ("unix:/run/s", Some(Backend::Unix("/run/s".into()))),
            ("tcp:localhost:5555", Some(Backend::Tcp("localhost:5555".into()))),
            ("tcp:[::1]:5555", Some(Backend::Tcp("[::1]:5555".into()))),
            ("stdio:", None), ("none:x", None), ("file", None), ("unix:", None), ("tcp:5555", None),
            ("tcp::5555", None), ("tcp:localhost:65536", None), ("", None), ("vc", None),
        ];
        for (text, expected) in rows {
            assert_eq!(backend(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal_without_a_sign() {
        for (text, value) in [("244", Some(244)), ("0xF4", Some(244)), ("0X10", Some(16))] {
            assert_eq!(number(text), value, "{text}");
        }
        for text in ["", "0x", "+1", "0x+1", "-1", "f4", "1 "] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn counted_time_has_a_pace() {
        assert_eq!(clock("host"), Ok(TimeBase::Host));
        assert_eq!(clock("icount"), Ok(TimeBase::Counted { ns_per_instruction: COUNTED_NS }));
        assert_eq!(clock("icount=7"), Ok(TimeBase::Counted { ns_per_instruction: 7 }));
        for text in ["icount=", "icount=0", "icount=1000001", "icount=-1", "guest", ""] {
            assert!(clock(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_module_is_a_path_and_what_stands_behind_it() {
        let parsed = module(OsStr::from_bytes(b"dir/\xff.bin root=a  b"));
        assert_eq!(parsed.path.as_os_str().as_bytes(), b"dir/\xff.bin");
        assert_eq!(parsed.arguments, "root=a  b");
        assert_eq!(module(OsStr::new("plain")).arguments, "");
    }
}
