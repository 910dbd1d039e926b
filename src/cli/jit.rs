//! The options of `volvelle run` that only the translator has.

use clap::Args;

use super::values;
use crate::config::{Accel, JitConfig};

#[derive(Args)]
#[command(next_help_heading = "Translator")]
pub(super) struct JitArguments {
    /// Room for translated code, all processors together [default: 256M each]
    #[arg(long, value_name = "SIZE", value_parser = values::cache)]
    jit_cache: Option<u64>,
    /// Guest instructions in a block at most, 1 to 64 [default: 64]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=JitConfig::BLOCK_SIZE_MAX as i64))]
    jit_block_size: Option<u16>,
    /// Times that a jump is taken until its target is a superblock, 0 for never [default: 4000]
    #[arg(long, value_name = "N")]
    jit_superblock_after: Option<u32>,
    /// Overwrite what calls out of translated code may overwrite
    #[arg(long)]
    jit_trash_helpers: bool,
    /// Have the interpreter execute every block too, and compare
    #[arg(long)]
    jit_cross_check: bool,
    /// Count the accesses of translated code, for the hit rate of --stats
    #[arg(long)]
    jit_count_accesses: bool,
    /// Name translated code for perf, in /tmp/perf-PID.map
    #[arg(long)]
    perf_map: bool,
}

impl JitArguments {
    /// How the translator works on a machine of `cpus`, or the line that says why it cannot.
    pub(super) fn config(&self, accel: Accel, cpus: u32) -> Result<JitConfig, String> {
        let other = match accel {
            Accel::Interp => Some("interp"),
            Accel::Kvm => Some("kvm"),
            Accel::Auto | Accel::Jit => None,
        };
        if let (Some(engine), Some(option)) = (other, self.first_given()) {
            return Err(format!("{option}: --accel {engine} does not translate; take --accel jit"));
        }
        if let Some(bytes) = self.jit_cache {
            check_cache(bytes, cpus)?;
        }
        let default = JitConfig::default();
        Ok(JitConfig {
            cache_bytes: self.jit_cache,
            block_size: self.jit_block_size.map_or(default.block_size, usize::from),
            superblock_after: self.jit_superblock_after,
            trash_helpers: self.jit_trash_helpers,
            cross_check: self.jit_cross_check,
            count_accesses: self.jit_count_accesses,
            perf_map: self.perf_map,
        })
    }

    fn first_given(&self) -> Option<&'static str> {
        let options = [
            ("--jit-cache", self.jit_cache.is_some()),
            ("--jit-block-size", self.jit_block_size.is_some()),
            ("--jit-superblock-after", self.jit_superblock_after.is_some()),
            ("--jit-trash-helpers", self.jit_trash_helpers),
            ("--jit-cross-check", self.jit_cross_check),
            ("--jit-count-accesses", self.jit_count_accesses),
            ("--perf-map", self.perf_map),
        ];
        options.into_iter().find(|(_, is_given)| *is_given).map(|(option, _)| option)
    }
}

fn check_cache(bytes: u64, cpus: u32) -> Result<(), String> {
    let all = |each: u64| each * u64::from(cpus);
    let (least, most) = (all(JitConfig::CPU_CACHE_MIN), all(JitConfig::CPU_CACHE_MAX));
    let machine = if cpus == 1 { "1 CPU takes".into() } else { format!("{cpus} CPUs take") };
    match bytes {
        _ if bytes < least => Err(format!("at least {}M", least >> 20)),
        _ if bytes > most => Err(format!("at most {}M", most >> 20)),
        _ => Ok(()),
    }
    .map_err(|limit| format!("--jit-cache {}: {machine} {limit}", size(bytes)))
}

/// A size as it is given, in the largest unit that holds it.
fn size(bytes: u64) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    let fits = |(shift, _): &(u32, &str)| bytes != 0 && bytes.is_multiple_of(1 << shift);
    let (shift, unit) = units.into_iter().find(fits).unwrap_or((10, "K"));
    format!("{}{unit}", bytes >> shift)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{launch, parse_words};
    use super::*;

    fn jit(words: &[&str]) -> JitConfig {
        launch(words).config.jit
    }

    #[test]
    fn every_option_reaches_the_configuration() {
        assert_eq!(launch(&["--accel", "jit"]).config.accel, Accel::Jit);
        assert_eq!(jit(&[]), JitConfig::default());
        assert_eq!(jit(&["--jit-cache", "1G"]).cache_bytes, Some(1 << 30));
        for size in [1, 64] {
            assert_eq!(jit(&["--jit-block-size", &size.to_string()]).block_size, size);
        }
        assert_eq!(jit(&["--jit-superblock-after", "7"]).superblock_after, Some(7));
        let config = jit(&["--jit-trash-helpers", "--jit-cross-check"]);
        assert!(config.trash_helpers && config.cross_check);
        let config = jit(&["--accel", "jit", "--jit-count-accesses", "--perf-map"]);
        assert!(config.count_accesses && config.perf_map);
    }

    #[test]
    fn the_interpreter_takes_none_of_them() {
        for words in [
            &["--jit-cache", "64M"][..],
            &["--jit-block-size", "1"],
            &["--jit-superblock-after", "7"],
            &["--jit-trash-helpers"],
            &["--jit-cross-check"],
            &["--jit-count-accesses"],
            &["--perf-map"],
        ] {
            let line = [&["run", "--accel", "interp"], words].concat();
            let message = parse_words(&line).unwrap_err().message;
            assert!(message.starts_with(words[0]), "{message}");
            assert!(message.contains("--accel interp"), "{message}");
        }
    }

    #[test]
    fn processors_share_the_cache() {
        let share = |words: &[&str]| {
            let config = launch(words).config;
            config.jit.cpu_cache_bytes(config.cpus)
        };
        assert_eq!(share(&["--cpus", "8"]), 256 << 20);
        assert_eq!(share(&["--cpus", "8", "--jit-cache", "32M"]), 4 << 20);
        assert_eq!(share(&["--cpus", "2", "--jit-cache", "2G"]), 1 << 30);
    }
}
