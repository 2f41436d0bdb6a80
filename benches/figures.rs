//! The figures of the performance promises: `make demo` for a look, `make bench` for all of them with their spread.
//!
//! Everything runs in the tests' lab (`tests/lab`): two hosts as namespaces joined by veth, nothing of the machine's
//! own network touched. sidestep is called by an ordinary user throughout: uid 1000 of the lab with subordinate ids
//! where root starts this program, the caller's own single id where an ordinary user does.
//!
//! Measured are pairs: each round measures every path once, in an order that rotates, after one round that does not
//! count; ratios and differences are formed within a round and the median of those is told, since this kind of
//! machine changes its speed from minute to minute. `host again` is the host once more under another name: how far its
//! ratio is from 1 is how far any ratio is to be trusted.

#[path = "figures/applications.rs"]
mod applications;
#[path = "figures/bulk.rs"]
mod bulk;
#[path = "figures/bypass4netns.rs"]
mod bypass4netns;
#[path = "figures/calls.rs"]
mod calls;
#[path = "figures/connections.rs"]
mod connections;
#[path = "figures/datagrams.rs"]
mod datagrams;
#[path = "figures/demo.rs"]
mod demo;
#[path = "figures/figure.rs"]
mod figure;
#[path = "figures/footprint.rs"]
mod footprint;
#[path = "figures/idle.rs"]
mod idle;
#[path = "../tests/lab/mod.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod lab;
#[path = "figures/loopback.rs"]
mod loopback;
#[path = "figures/machine.rs"]
mod machine;
#[path = "figures/nested.rs"]
mod nested;
#[path = "figures/peers.rs"]
mod peers;
#[path = "figures/redis.rs"]
mod redis;
#[path = "figures/report.rs"]
mod report;
#[path = "figures/station.rs"]
mod station;
#[path = "figures/statistics.rs"]
mod statistics;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use calls::Call;
use lab::world;
use machine::Machine;
use report::Report;

/// Measure sidestep beside the host it runs on, and print a Markdown table
#[derive(Parser)]
#[command(
    name = "figures",
    after_long_help = "\
Examples (from the top of the repository; `make bench` takes the flags in ARGS):
  make demo                                                    a look, in half a minute
  make bench                                                   every figure, about forty minutes
  make bench ARGS=\"--only bulk --rounds 5\"                     bulk TCP, roughly
  make bench ARGS=\"--only connections,in-place\"               two groups, eight minutes
  make bench ARGS=\"--json /tmp/figures.json\"                   every single value as well

slirp4netns, pasta and bypass4netns are measured in the same rounds where they are installed; a run that one of them
does not finish counts as 0. What is missing is named in the table.

Reading the table: `ratio` is the median of the ratios to the host in the same round, with a bootstrap 95 % interval;
lines with `÷` have the ratio to another path instead, or to the better peer: of slirp4netns and pasta the one that did
better in that round. A target is `met` or `not met` when the whole interval says so, and `likely` one of them when only
the median does. Believe no difference that is smaller than that of `host again` from 1."
)]
struct Arguments {
    /// One short table: host, TAP and bypass, iperf3 both ways and 2,000 short connections each
    #[arg(long)]
    demo: bool,

    /// How often each path is measured; a promise takes 15
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Only these figures [default: all]
    #[arg(long, value_enum, value_name = "NAME", value_delimiter = ',')]
    only: Vec<Name>,

    /// Seconds of each iperf3 run
    #[arg(long, value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,

    /// Write the same data with every single value to FILE (relative to the repository)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Where --json goes, opened before the lab's mounts hide it.
    #[arg(long, hide = true)]
    json_fd: Option<i32>,

    /// What cargo calls every bench with.
    #[arg(long, hide = true)]
    bench: bool,

    #[command(subcommand)]
    inside: Option<Inside>,
}

/// A group of figures that share a way of being measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Bulk TCP, one stream, both families
    Bulk,
    /// Bulk TCP, 4 and 16 streams
    Parallel,
    /// Bulk TCP from a container inside: bridge, veth, masquerade
    Nested,
    /// Bulk TCP from the host's loopback to a published port
    Loopback,
    /// New connections a second
    Connections,
    /// New connections a second to 127.0.0.1 inside
    InPlace,
    /// redis-benchmark, pgbench and wrk with the bypass
    Applications,
    /// redis-benchmark through the TAP, rate and latency
    Redis,
    /// UDP, more than fits
    Datagrams,
    /// Ten thousand open connections
    Idle,
    /// Nanoseconds of system calls that the filter lets pass
    Calls,
    /// Memory of an idle workspace
    Memory,
    /// Time until the command runs
    Start,
}

/// What this program does where it is itself the measured command.
#[derive(Subcommand)]
#[command(hide = true)]
enum Inside {
    /// Print how many connections a second it makes
    #[command(hide = true)]
    Connect { addr: SocketAddr, count: u32, threads: u32 },
    /// The same to itself, by 127.0.0.1
    #[command(hide = true)]
    ConnectInPlace { count: u32, threads: u32 },
    /// Keep connections open
    #[command(hide = true)]
    Hold { held: SocketAddr, closed: SocketAddr },
    /// Print the nanoseconds of a system call
    #[command(hide = true)]
    Calls { call: Call },
    /// Print the monotonic clock in nanoseconds
    #[command(hide = true)]
    Clock,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(inside) = arguments.inside {
        inside.run()?;
        return Ok(ExitCode::SUCCESS);
    }
    if let (Some(file), None) = (&arguments.json, arguments.json_fd) {
        return Err(report::open_and_restart(file));
    }
    let sidestep = std::env::var_os("SIDESTEP_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_sidestep").into());
    if let Some(code) = world::enter(Path::new(&sidestep))? {
        return Ok(code);
    }
    let machine = Machine::look(Path::new(&sidestep));
    print!("{machine}");
    if arguments.demo {
        demo::run()?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut report = Report::new(machine);
    for name in arguments.chosen() {
        arguments.measure(name, &mut report)?;
    }
    report.finish(arguments.json_fd)?;
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    fn chosen(&self) -> Vec<Name> {
        if self.only.is_empty() { Name::value_variants().to_vec() } else { self.only.clone() }
    }

    fn measure(&self, name: Name, report: &mut Report) -> anyhow::Result<()> {
        match name {
            Name::Bulk => bulk::measure(self, report),
            Name::Parallel => bulk::parallel(self, report),
            Name::Nested => bulk::nested(self, report),
            Name::Loopback => loopback::measure(self, report),
            Name::Connections => connections::measure(self, report),
            Name::InPlace => connections::in_place(self, report),
            Name::Applications => applications::measure(self, report),
            Name::Redis => redis::measure(self, report),
            Name::Datagrams => datagrams::measure(self, report),
            Name::Idle => idle::measure(report),
            Name::Calls => calls::measure(self, report),
            Name::Memory => footprint::memory(report),
            Name::Start => footprint::start(self, report),
        }
    }
}

impl Inside {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Connect { addr, count, threads } => println!("{}", connections::connect(addr, count, threads)?),
            Self::ConnectInPlace { count, threads } => println!("{}", connections::connect_in_place(count, threads)?),
            Self::Hold { held, closed } => idle::open(held, closed)?,
            Self::Calls { call } => println!("{}", call.nanoseconds()?),
            Self::Clock => println!("{}", footprint::monotonic_nanoseconds()),
        }
        Ok(())
    }
}
