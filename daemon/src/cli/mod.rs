//! The command line: one file per command; `egress` and `running` are what several flags and commands have in common.

mod completions;
mod doctor;
mod egress;
mod forwarder;
mod init;
mod ports;
mod run;
mod running;
mod stats;
mod supervisor;

use std::fmt::Display;
use std::io::{Write as _, stdout};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::FAILURE;
use crate::logging::{self, LogSettings};
use crate::slirp4netns;
use crate::sys::disposition;

/// Networking for rootless workspaces.
///
/// A workspace (a shell, an IDE server, a Docker daemon) gets user and network namespaces of its own without any
/// privilege. Its packets leave through a TAP device; with `--bypass` its TCP connections run at the host's own speed.
#[derive(Debug, Parser)]
#[command(name = "sidestep", version, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Stats(stats::Stats),
    Ports(ports::Ports),
    Bench(sidestep_bench::Arguments),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    #[command(hide = true)]
    Man(completions::Man),
    #[command(hide = true)]
    Supervisor,
    #[command(hide = true)]
    Forwarder,
    #[command(hide = true)]
    Init(init::Init),
}

/// The last thing a command does: a reader that has seen enough, as head(1), ends it without a word.
fn say(text: impl Display) -> anyhow::Result<()> {
    disposition::restore_sigpipe()?;
    let said = write!(stdout(), "{text}").and_then(|()| stdout().flush());
    said.context("cannot write to standard output")
}

/// Parses the command line, runs the command and gives its exit code.
pub fn run() -> anyhow::Result<ExitCode> {
    if slirp4netns::is_our_name() {
        return Ok(slirp4netns::run());
    }
    // With a file capability (setcap(8), for ports below 1024) our files in /proc are root's, and so are a child's: its id
    // maps could not be written, nor could it be told who speaks on the control socket.
    set_dumpable_behavior(DumpableBehavior::Dumpable).context("cannot have our files in /proc")?;
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { FAILURE } else { 0 };
            disposition::restore_sigpipe()?;
            error.print()?;
            return Ok(ExitCode::from(code));
        }
    };
    match cli.command {
        Command::Run(run) => run.run(),
        Command::Stats(stats) => stats.run(),
        Command::Ports(ports) => ports.run(),
        Command::Bench(bench) => {
            logging::init(LogSettings::default());
            bench.run()
        }
        Command::Doctor(doctor) => doctor.run(),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
        Command::Supervisor => supervisor::run(),
        Command::Forwarder => forwarder::run(),
        Command::Init(init) => init.run(),
    }
}
