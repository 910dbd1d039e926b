//! Asks the host. What it answers with is text of the kernel's, read by pure functions.

use std::arch::is_x86_feature_detected as has;
use std::fs::read_to_string;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, getrlimit};

use super::{Host, Kvm, Limits};

impl Host {
    /// What this host offers.
    pub(crate) fn examine() -> Self {
        let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            model: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            virtualization: virtualization(&cpuinfo),
            is_guest: has_flag(&cpuinfo, "hypervisor"),
            isa_level: isa_level(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kvm: Kvm::probe(),
            debug_registers: ::kvm::debug_registers(),
            translator: jit::supported(),
            limits: limits(),
        }
    }
}

/// The value behind `name` and a colon, in its first line.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    field(cpuinfo, "flags").is_some_and(|flags| flags.split_whitespace().any(|word| word == flag))
}

/// What `grep -wE 'vmx|svm' /proc/cpuinfo` finds.
pub(super) fn virtualization(cpuinfo: &str) -> Option<&'static str> {
    ["vmx", "svm"].into_iter().find(|flag| has_flag(cpuinfo, flag))
}

/// The x86-64 psABI, "Micro-Architecture Levels". A level counts only on top of those below.
fn isa_level() -> u8 {
    let levels = [
        has!("fxsr") && has!("sse2"),
        has!("cmpxchg16b") && has!("popcnt") && has!("sse3") && has!("ssse3") && has!("sse4.2"),
        has!("avx2")
            && has!("bmi1")
            && has!("bmi2")
            && has!("f16c")
            && has!("fma")
            && has!("lzcnt")
            && has!("movbe")
            && has!("xsave"),
        has!("avx512f")
            && has!("avx512bw")
            && has!("avx512cd")
            && has!("avx512dq")
            && has!("avx512vl"),
    ];
    levels.into_iter().zip(1..).take_while(|(is_there, _)| *is_there).last().map_or(0, |(_, n)| n)
}

fn limits() -> Limits {
    let meminfo = read_to_string("/proc/meminfo").unwrap_or_default();
    let number = |path: &str| read_to_string(path).ok()?.trim().parse().ok();
    Limits {
        total_bytes: kibibytes(&meminfo, "MemTotal"),
        available_bytes: kibibytes(&meminfo, "MemAvailable"),
        cgroup_bytes: read_to_string("/proc/self/cgroup").ok().and_then(|groups| {
            let limits = cgroup_limit_files(&groups);
            limits.iter().filter_map(|path| cgroup_limit(&read_to_string(path).ok()?)).min()
        }),
        address_space_bytes: getrlimit(Resource::As).current,
        mappings: number("/proc/sys/vm/max_map_count"),
        has_memfd: memfd_create("volvelle-doctor", MemfdFlags::CLOEXEC).is_ok(),
    }
}

/// A line of /proc/meminfo in bytes.
pub(super) fn kibibytes(meminfo: &str, name: &str) -> Option<u64> {
    field(meminfo, name)?.strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The files in which the control groups of /proc/self/cgroup say how much memory may be used: the
/// group's own and all above it. Inside a container the named groups may not be visible, and the
/// root of the mount is the container's own.
pub(super) fn cgroup_limit_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(mut path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        path = path.trim_end_matches('/');
        files.push(format!("{root}{path}/{file}"));
        while let Some((parent, _)) = path.rsplit_once('/') {
            files.push(format!("{root}{parent}/{file}"));
            path = parent;
        }
    }
    files
}

/// What such a file says. Version 2 writes `max` for no limit, version 1 the largest page count.
pub(super) fn cgroup_limit(text: &str) -> Option<u64> {
    const UNLIMITED_V1: u64 = 1 << 62;
    text.trim().parse().ok().filter(|&bytes| bytes < UNLIMITED_V1)
}
