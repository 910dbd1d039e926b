//! The caches that CPUID tells of: plausible ones, for what guests tune by them.

/// One cache.
struct Cache {
    /// 1 data, 2 instructions, 3 both.
    kind: u32,
    level: u32,
    ways: u32,
    sets: u32,
    /// Shared by all CPUs of the package, not by one core.
    is_shared: bool,
    /// It holds what the levels below hold.
    is_inclusive: bool,
}

const LINE_BYTES: u32 = 64;

const CACHES: [Cache; 4] = [
    Cache { kind: 1, level: 1, ways: 8, sets: 64, is_shared: false, is_inclusive: false },
    Cache { kind: 2, level: 1, ways: 8, sets: 64, is_shared: false, is_inclusive: false },
    Cache { kind: 3, level: 2, ways: 8, sets: 1024, is_shared: false, is_inclusive: false },
    Cache { kind: 3, level: 3, ways: 16, sets: 16384, is_shared: true, is_inclusive: true },
];

/// CPUID.04H, "Deterministic Cache Parameters" (Intel).
pub(super) fn deterministic(index: u32, cpus: u32) -> [u32; 4] {
    let Some(cache) = CACHES.get(index as usize) else { return [0; 4] };
    let sharing = if cache.is_shared { id_span(cpus) - 1 } else { 0 };
    let self_initializing = 1 << 8;
    [
        cache.kind
            | cache.level << 5
            | self_initializing
            | sharing.min(0xfff) << 14
            | (id_span(cpus) - 1).min(0x3f) << 26,
        (LINE_BYTES - 1) | (cache.ways - 1) << 22,
        cache.sets - 1,
        u32::from(cache.is_inclusive) << 1,
    ]
}

/// How many APIC IDs a package of `cpus` CPUs spans: a power of two.
pub(super) fn id_span(cpus: u32) -> u32 {
    cpus.max(1).checked_next_power_of_two().unwrap_or(1 << 31)
}

/// CPUID.8000_0005H: TLBs, then both first-level caches (AMD).
pub(super) fn amd_level1() -> [u32; 4] {
    let [data, code, ..] = &CACHES;
    let describe = |cache: &Cache| kilobytes(cache) << 24 | cache.ways << 16 | 1 << 8 | LINE_BYTES;
    const TLBS: u32 = 0xff40_ff40;
    [TLBS, TLBS, describe(data), describe(code)]
}

/// CPUID.8000_0006H: TLBs, then the second- and third-level caches.
pub(super) fn amd_level2() -> [u32; 4] {
    let [.., second, third] = &CACHES;
    const TLBS: u32 = 0x4200_4200;
    let half_megabytes = kilobytes(third) / 512;
    [
        TLBS,
        TLBS,
        kilobytes(second) << 16 | associativity(second) << 12 | 1 << 8 | LINE_BYTES,
        half_megabytes << 18 | associativity(third) << 12 | 1 << 8 | LINE_BYTES,
    ]
}

fn kilobytes(cache: &Cache) -> u32 {
    cache.ways * cache.sets * LINE_BYTES / 1024
}

/// AMD's encoding of the number of ways.
fn associativity(cache: &Cache) -> u32 {
    match cache.ways {
        8 => 6,
        16 => 8,
        _ => 0xf,
    }
}
