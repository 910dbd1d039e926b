//! Memory, and what limits it.

/// What is limited, in bytes where nothing else is said; None where there is no limit, or no
/// answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// MemTotal.
    pub(crate) total_bytes: Option<u64>,
    /// MemAvailable.
    pub(crate) available_bytes: Option<u64>,
    /// What the control group may use.
    pub(crate) cgroup_bytes: Option<u64>,
    /// RLIMIT_AS.
    pub(crate) address_space_bytes: Option<u64>,
    /// vm.max_map_count.
    pub(crate) mappings: Option<u64>,
    /// memfd_create works.
    pub(crate) has_memfd: bool,
}

impl Limits {
    /// What guests can use at most, as far as it is known.
    pub(super) fn usable_bytes(&self) -> Option<u64> {
        [self.available_bytes, self.cgroup_bytes, self.address_space_bytes]
            .into_iter()
            .flatten()
            .min()
    }

    /// Memory in one line.
    pub(super) fn memory(&self) -> String {
        let known = |bytes: Option<u64>| bytes.map_or("unknown".into(), mebibytes);
        let cgroup = match self.cgroup_bytes {
            Some(bytes) => format!(", this control group at most {}", mebibytes(bytes)),
            None => String::new(),
        };
        let (total, available) = (known(self.total_bytes), known(self.available_bytes));
        format!("{total}, {available} available{cgroup}")
    }
}

/// A limit as people read it.
pub(super) fn amount(limit_bytes: Option<u64>) -> String {
    limit_bytes.map_or("unlimited".into(), mebibytes)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
