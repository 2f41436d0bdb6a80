//! `sidestep init`: the first process of a workspace; see [`crate::init`].

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

use crate::init;
use crate::logging::{self, LogFormat, LogSettings};
use crate::signals;

/// Started by `sidestep run`.
#[derive(Debug, Args)]
pub struct Init {
    /// Signals the command starts with blocked, as a hexadecimal mask like the ones of /proc/PID/status
    #[arg(long, value_name = "HEX", default_value = "0", value_parser = parse_mask)]
    sigmask: u64,

    /// Log lines in JSON
    #[arg(long)]
    json: bool,

    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

impl Init {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let format = if self.json { LogFormat::Json } else { LogFormat::Text };
        logging::init(LogSettings { format, ..LogSettings::default() });
        init::run(&self.command, signals::mask_from_bits(self.sigmask))
    }
}

fn parse_mask(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text, 16)
}
