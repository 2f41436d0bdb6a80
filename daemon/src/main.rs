//! Parse, set up logging, run one command; nothing else.

use std::process::ExitCode;

use sidestep::logging::LogSettings;

fn main() -> ExitCode {
    match sidestep::cli::run() {
        Ok(code) => code,
        Err(error) => {
            // Where the command has not come to it, or has none of its own.
            sidestep::logging::init(LogSettings::default());
            tracing::error!("{error:#}");
            ExitCode::from(sidestep::FAILURE)
        }
    }
}
