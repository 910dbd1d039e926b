//! `volvelle doctor`: what this host offers, and which engine would run.
//!
//! [`Host::examine`] asks the host, [`report`] says what the answers mean; only the first touches
//! anything outside the process.

mod examine;
mod kvm;
mod limits;

use std::fmt::Write;

use ::kvm::DebugRegisters;

pub(crate) use kvm::Kvm;
pub(crate) use limits::Limits;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// The processor's name.
    pub(crate) model: String,
    /// `vmx` or `svm`, if /proc/cpuinfo has it.
    pub(crate) virtualization: Option<&'static str>,
    /// True if /proc/cpuinfo says that this host is a guest itself.
    pub(crate) is_guest: bool,
    /// The level of x86-64, 1 to 4; 0 where even the first is not complete.
    pub(crate) isa_level: u8,
    /// Host CPUs this process may use.
    pub(crate) cpus: usize,
    /// What KVM is good for.
    pub(crate) kvm: Kvm,
    /// What KVM stops guests at for a debugger.
    pub(crate) debug_registers: DebugRegisters,
    /// Whether the translator can run, or what it lacks.
    pub(crate) translator: Result<(), String>,
    /// Memory, and what limits it.
    pub(crate) limits: Limits,
}

/// Memory a small guest wants.
const COMFORTABLE_BYTES: u64 = 1 << 30;
/// Mappings the kernel allows by default.
const USUAL_MAPPINGS: u64 = 65_530;

/// What a host's answers mean: a table, and the remedies for what is missing.
pub(crate) fn report(host: &Host) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{name:<15} {value}");
    };
    row("Processor", &host.model);
    row("Virtualization", &virtualization(host));
    row("/dev/kvm", &host.kvm.to_string());
    row("ISA level", &isa_level(host.isa_level));
    row("CPUs", &host.cpus.to_string());
    row("Memory", &host.limits.memory());
    row("Address space", &limits::amount(host.limits.address_space_bytes));
    row("Mappings", &host.limits.mappings.map_or("unknown".into(), |count| count.to_string()));
    row("memfd", if host.limits.has_memfd { "works" } else { "refused" });
    row("Translator", host.translator.as_ref().map_or_else(|lack| lack.as_str(), |()| "works"));
    row("Engine", engine(host));
    row("Breakpoints", breakpoints(host));
    for remedy in remedies(host) {
        let _ = write!(text, "\n- {remedy}");
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn virtualization(host: &Host) -> String {
    let place = if host.is_guest { " (this host is a guest itself)" } else { "" };
    format!("{}{place}", host.virtualization.unwrap_or("none: neither vmx nor svm"))
}

fn isa_level(level: u8) -> String {
    match level {
        0 => "below x86-64-v1".into(),
        level => format!("x86-64-v{level}"),
    }
}

/// What `--accel auto` takes, and why nothing better.
fn engine(host: &Host) -> &'static str {
    match (&host.kvm, &host.translator) {
        (Kvm::Works, _) => "kvm, which --accel auto takes: the probe guest passed",
        (_, Ok(())) => "jit, which --accel auto takes: the translator works",
        (_, Err(_)) => "interp, which --accel auto takes: the translator cannot run",
    }
}

/// Where a debugger can stop guests.
fn breakpoints(host: &Host) -> &'static str {
    let DebugRegisters { stop_at_code, stop_at_data } = host.debug_registers;
    match (&host.kvm, stop_at_code, stop_at_data) {
        (Kvm::Works | Kvm::Weak(_), true, true) => "at code and data, on KVM four",
        (Kvm::Works | Kvm::Weak(_), true, false) => {
            "at code and data, on KVM four and at code alone"
        }
        (Kvm::Works | Kvm::Weak(_), false, _) => "at code and data, on KVM none",
        _ => "at code and data",
    }
}

/// What the user can do about what is missing, one sentence each.
fn remedies(host: &Host) -> Vec<String> {
    let mut remedies = Vec::new();
    remedies.extend(host.kvm.remedy(host.virtualization.is_some()).map(str::to_owned));
    if !host.limits.has_memfd {
        remedies
            .push("The translator needs memfd_create: allow it in the sandbox's filter.".into());
    }
    if host.limits.usable_bytes().is_some_and(|bytes| bytes < COMFORTABLE_BYTES) {
        remedies.push("Memory is short: give guests less with --memory, such as 256M.".into());
    }
    if host.limits.address_space_bytes.is_some() {
        remedies
            .push("Guest memory counts as address space: `ulimit -v unlimited` lifts it.".into());
    }
    if host.limits.mappings.is_some_and(|count| count < USUAL_MAPPINGS) {
        remedies.push(format!("Mappings are few: `sysctl vm.max_map_count={USUAL_MAPPINGS}`."));
    }
    remedies
}

#[cfg(test)]
mod tests;
