//! `volvelle bench`.

use std::time::Duration;

use clap::Args;

use super::values;
use crate::bench::Options;

#[derive(Args)]
pub(super) struct BenchArguments {
    /// Only benches with this in their name
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// About how long all of it may take
    #[arg(long, value_name = "N", default_value = "6", value_parser = values::seconds)]
    seconds: Duration,
}

impl BenchArguments {
    /// What these arguments ask for.
    pub(super) fn into_options(self) -> Options {
        Options { filter: self.filter, duration: self.seconds }
    }
}
