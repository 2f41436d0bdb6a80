//! Parse, set up logging, run one command; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    match sidestep::cli::run() {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(sidestep::cli::FAILURE)
        }
    }
}
