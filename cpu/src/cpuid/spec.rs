//! `--cpu MODEL[,+feature][,-feature][,feature=on|off][,phys-bits=N][,vendor=V]`.

use decoder::{Feature as I, FeatureSet, Vendor};
use thiserror::Error;

use super::feature::{Feature as S, SystemFeatures};
use super::model::{self, MODELS};
use super::{Identity, host};

/// Why a CPU model cannot be had.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CpuModelError {
    /// No model of this name.
    #[error("unknown CPU model '{0}'; the models are {names}", names = model_names())]
    UnknownModel(String),
    /// No feature or property of this name.
    #[error("unknown CPU feature '{0}'")]
    UnknownFeature(String),
    /// The feature exists, but not here.
    #[error("CPU feature '{0}' is not implemented")]
    NotImplemented(String),
    /// Executed by the host's own instruction, which it has not.
    #[error("CPU feature '{0}' needs a host that has it")]
    NotOnHost(String),
    /// Asked for by name, and one of the engines of the machine has not got it.
    #[error("CPU feature '{0}' is not on every engine of this machine; leave it or the engine out")]
    NotOnEngine(&'static str),
    /// A property with a value that is none of its.
    #[error("CPU property '{name}' cannot be '{value}'; it takes {expected}")]
    BadValue {
        /// The property.
        name: String,
        /// What it was given.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
}

fn model_names() -> String {
    MODELS.iter().map(|model| model.name).collect::<Vec<_>>().join(", ")
}

/// A specification understood.
pub(super) struct Selection {
    pub(super) features: FeatureSet,
    pub(super) system: SystemFeatures,
    /// Those that were asked for by name.
    pub(super) asked: (FeatureSet, SystemFeatures),
    pub(super) identity: Identity,
    pub(super) physical_bits: u32,
}

/// MAXPHYADDR unless asked otherwise: 1 TiB.
const PHYSICAL_BITS: u32 = 40;

/// Features of other emulators' users that we never offer: taking them away is granted.
#[rustfmt::skip]
const NEVER: &[&str] = &[
    "svm", "vmx", "npt", "nrip-save", "skinit", "vmx-mbec", "ibs", "osvw", "wdt", "topoext",
    "perfctr-core", "3dnow", "3dnowext", "rtm", "hle", "mpx", "pdcm", "arch-capabilities",
    "spec-ctrl", "ssbd", "stibp", "ibpb", "ibrs", "md-clear", "pmu", "waitpkg", "tsx-ctrl",
    "kvm-asyncpf", "kvm-asyncpf-int", "kvm-mmu", "kvm-hint-dedicated", "amx-tile", "xfd", "lam",
    "shstk", "ibt", "xop", "fma4", "tbm", "ds", "acpi", "tm", "tm2", "dtes64", "xtpr", "est",
    "smx", "ht", "ss",
];

/// Other names of features, both as [`normal`] writes them.
#[rustfmt::skip]
const ALIASES: &[(&str, &str)] = &[
    ("lzcnt", "abm"), ("pni", "sse3"), ("cmpxchg16b", "cx16"), ("cmpxchg8b", "cx8"),
    ("ffxsr", "fxsropt"), ("clfsh", "clflush"), ("xd", "nx"), ("monitorx", "mwaitx"),
];

/// A name without what people write differently.
fn normal(name: &str) -> String {
    let name: String =
        name.chars().filter(|c| !matches!(c, '_' | '-' | '.')).collect::<String>().to_lowercase();
    match ALIASES.iter().find(|(alias, _)| *alias == name) {
        Some((_, target)) => (*target).to_owned(),
        None => name,
    }
}

/// What a name stands for.
enum Named {
    Instructions(I),
    System(SystemFeatures),
    Never,
}

fn look_up(name: &str) -> Result<Named, CpuModelError> {
    let wanted = normal(name);
    if let Some(&feature) = I::ALL.iter().find(|f| normal(f.name()) == wanted) {
        return Ok(Named::Instructions(feature));
    }
    if let Some(&feature) = S::ALL.iter().find(|f| normal(f.name()) == wanted) {
        let clock = SystemFeatures::of(&[S::KvmClock, S::KvmClock2]);
        let is_clock = feature == S::KvmClock2;
        return Ok(Named::System(if is_clock { clock } else { SystemFeatures::of(&[feature]) }));
    }
    match wanted.as_str() {
        "kvm" => Ok(Named::System(model::PARAVIRTUAL)),
        _ if NEVER.iter().any(|never| normal(never) == wanted) => Ok(Named::Never),
        _ => Err(CpuModelError::UnknownFeature(name.to_owned())),
    }
}

fn bad_value(name: &str, value: &str, expected: &'static str) -> CpuModelError {
    CpuModelError::BadValue { name: name.to_owned(), value: value.to_owned(), expected }
}

/// Reads a specification.
pub(super) fn parse(spec: &str) -> Result<Selection, CpuModelError> {
    let mut parts = spec.split(',');
    let name = parts.next().unwrap_or_default();
    let model = MODELS
        .iter()
        .find(|model| model.name.eq_ignore_ascii_case(name))
        .ok_or_else(|| CpuModelError::UnknownModel(name.to_owned()))?;
    let properties: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    let vendor = properties
        .iter()
        .rev()
        .find_map(|part| part.strip_prefix("vendor="))
        .map_or(Ok(host::vendor()), parse_vendor)?;
    let possible = host::possible();
    let (features, system) = model::of_vendor(vendor, model.features(possible));
    if let Some(lacking) = features.iter().find(|&f| !possible.contains(f)) {
        return Err(CpuModelError::NotOnHost(lacking.name().to_owned()));
    }
    let identity = Identity::of(vendor);
    let mut selection = Selection {
        features,
        system,
        asked: Default::default(),
        identity,
        physical_bits: PHYSICAL_BITS,
    };
    for property in properties {
        selection.apply(property, possible)?;
    }
    let (features, system) = model::consistent(selection.features, selection.system);
    Ok(Selection { features, system, ..selection })
}

fn parse_vendor(value: &str) -> Result<Vendor, CpuModelError> {
    match value {
        "GenuineIntel" => Ok(Vendor::Intel),
        "AuthenticAMD" => Ok(Vendor::Amd),
        _ => Err(bad_value("vendor", value, "GenuineIntel or AuthenticAMD")),
    }
}

impl Selection {
    fn apply(&mut self, property: &str, possible: FeatureSet) -> Result<(), CpuModelError> {
        if let Some(name) = property.strip_prefix('+') {
            return self.switch(name, true, possible);
        }
        if let Some(name) = property.strip_prefix('-') {
            return self.switch(name, false, possible);
        }
        let (name, value) = property.split_once('=').unwrap_or((property, "on"));
        match name {
            "vendor" => return Ok(()),
            "phys-bits" => {
                let bits = value.parse().ok().filter(|bits| (32..=52).contains(bits));
                self.physical_bits =
                    bits.ok_or_else(|| bad_value(name, value, "a number from 32 to 52"))?;
                return Ok(());
            }
            _ => {}
        }
        let is_on = match value {
            "on" | "yes" | "true" => true,
            "off" | "no" | "false" => false,
            _ => return Err(bad_value(name, value, "'on' or 'off'")),
        };
        match name {
            "host-phys-bits" if is_on => self.physical_bits = host::physical_bits(),
            // What other emulators' users say of things that are as they are here.
            "host-phys-bits" | "migratable" | "check" | "enforce" => {}
            _ => return self.switch(name, is_on, possible),
        }
        Ok(())
    }

    fn switch(&mut self, name: &str, on: bool, possible: FeatureSet) -> Result<(), CpuModelError> {
        match look_up(name)? {
            Named::Never if on => return Err(CpuModelError::NotImplemented(name.to_owned())),
            Named::Never => {}
            Named::Instructions(feature) if !on => {
                self.features = self.features.without(feature);
                self.asked.0 = self.asked.0.without(feature);
            }
            Named::Instructions(feature) if !possible.contains(feature) => {
                return Err(CpuModelError::NotOnHost(name.to_owned()));
            }
            Named::Instructions(feature) => {
                self.features = self.features.with(feature);
                self.asked.0 = self.asked.0.with(feature);
            }
            Named::System(set) if on => {
                self.system = self.system.union(set);
                self.asked.1 = self.asked.1.union(set);
            }
            Named::System(set) => {
                self.system = set.iter().fold(self.system, SystemFeatures::without);
                self.asked.1 = set.iter().fold(self.asked.1, SystemFeatures::without);
            }
        }
        Ok(())
    }
}
