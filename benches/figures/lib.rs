//! `sidestep bench`: what sidestep does beside the host it runs on and beside the systems that do the same job.
//!
//! It makes a lab for itself ([`lab`]): two hosts as namespaces joined by veth, without any privilege and with nothing of
//! the machine's own network touched; or it measures against somebody's iperf3 server. Every contender is called by an
//! ordinary user.
//!
//! Measured are pairs: each round measures every path once, in an order that rotates, after one round that does not
//! count; ratios and differences are formed within a round and the median of those is told, since most machines
//! change their speed from minute to minute. `host again` is the host once more under another name: how far its
//! ratio is from 1 is how far any ratio is to be trusted.
//!
//! A group of figures is a file; [`figure`] compares, [`statistics`] says how sure that is, [`report`] and [`html`] tell.

mod applications;
#[cfg(test)]
mod browser;
mod bulk;
mod bypass4netns;
mod calls;
mod connections;
mod cpu;
mod datagrams;
mod demo;
mod figure;
mod footprint;
mod html;
mod idle;
pub mod lab;
mod latency;
mod loopback;
mod machine;
mod nested;
mod peers;
mod plot;
mod progress;
mod published;
mod redis;
mod report;
mod server;
mod station;
mod statistics;
mod times;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand, ValueEnum};

use calls::Call;
use lab::world;
use machine::Machine;
use report::{Files, Report, Settings};
use station::{Contender, IPERF3_PORT, Station};

/// Measure this machine: the host, sidestep's two paths, and whatever else is installed that does the same.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    // A paragraph is one line: it is wrapped to the terminal.
    after_long_help = "\
Examples:
  sidestep bench                                     everything, in half an hour
  sidestep bench --only bulk,connections --rounds 3  a look, in three minutes
  sidestep bench --report figures                    a page with plots in figures
  sidestep bench --server iperf.example.net          over the real network

Without --server it measures in two hosts of its own making, namespaces joined by veth, with cubic everywhere; nothing \
of that is left behind. slirp4netns, pasta and bypass4netns (with runc) are measured in the same rounds where they are \
installed; a run that one of them does not finish counts as 0. What is missing, or never finishes, is named in the \
table. ^C ends it early with a report of the rounds that are complete.

Reading the table: `ratio` is the median of the ratios to the host in the same round, with a bootstrap 95 % interval; \
lines with `÷` have the ratio to another path instead, or to the better peer: of slirp4netns and pasta the one that did \
better in that round. A target is `met` or `not met` when the whole interval says so, and `likely` one of them when only \
the median does. Believe no difference that is smaller than that of `host again` from 1."
)]
pub struct Arguments {
    /// Measure with the iperf3 server there instead of in a lab: bulk, parallel and datagrams [default port: 5201]
    #[arg(long, value_name = "HOST[:PORT]")]
    server: Option<String>,

    /// Seconds of each iperf3 run
    #[arg(long, value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=600))]
    duration: u32,

    /// How often each path is measured; a promise takes 15
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Write everything with every single value to FILE; `-` is standard output, and the table then on standard error
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write report.html (with plots, nothing loaded from elsewhere), report.md and report.json into DIR
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,

    /// Only these figures [default: all]
    #[arg(long, value_enum, value_name = "NAME", value_delimiter = ',')]
    only: Vec<Name>,

    /// One short table: host, TAP and bypass, iperf3 both ways and 2,000 short connections each
    #[arg(long, hide = true)]
    demo: bool,

    /// What --server is, once the name is resolved: an address of each family.
    #[arg(skip)]
    servers: Vec<SocketAddr>,

    /// The bypass does not run here: it is left out.
    #[arg(skip)]
    no_bypass: bool,

    #[command(subcommand)]
    inside: Option<Inside>,
}

/// A group of figures that share a way of being measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Bulk TCP, one stream, both families
    Bulk,
    /// Bulk TCP, 4 and 16 streams
    Parallel,
    /// Bulk TCP from a container inside: bridge, veth, masquerade
    Nested,
    /// Bulk TCP and new connections a second from the remote to a published port
    Published,
    /// Bulk TCP from the host's loopback to a published port
    Loopback,
    /// New connections a second, and how long each takes
    Connections,
    /// New connections a second to 127.0.0.1 inside
    InPlace,
    /// Request and response, one byte each
    Latency,
    /// redis-benchmark, pgbench and wrk with the bypass
    Applications,
    /// redis-benchmark through the TAP, rate and latency
    Redis,
    /// UDP, more than fits
    Datagrams,
    /// Processor time of a gigabyte
    Cpu,
    /// Thousands of open connections
    Idle,
    /// Nanoseconds of system calls that the filter lets pass
    Calls,
    /// Memory of a workspace: idle, with 1,000 and 10,000 connections
    Memory,
    /// Time until the command runs
    Start,
}

/// What this program does where it is itself the measured command.
#[derive(Debug, Subcommand)]
enum Inside {
    /// Print how many connections a second it makes, and their times
    #[command(hide = true)]
    Connect { addr: SocketAddr, count: u32, threads: u32 },
    /// The same to itself, by 127.0.0.1
    #[command(hide = true)]
    ConnectInPlace { count: u32, threads: u32 },
    /// Close every connection to the port at once, until the end of standard input
    #[command(hide = true)]
    Close { port: u16 },
    /// Print the times of bytes that are sent back
    #[command(hide = true)]
    PingPong { addr: SocketAddr, count: u32 },
    /// Keep connections open
    #[command(hide = true)]
    Hold { held: SocketAddr, closed: SocketAddr, count: u32 },
    /// Print the nanoseconds of a system call
    #[command(hide = true)]
    Calls { call: Call },
    /// Print the monotonic clock in nanoseconds
    #[command(hide = true)]
    Clock,
    /// Run a command, and print what it took of the processors
    #[command(hide = true)]
    Accounted {
        #[arg(trailing_var_arg = true, required = true)]
        argv: Vec<String>,
    },
}

impl Arguments {
    /// Measures, and gives the exit code. Has to be called before there is a second thread.
    pub fn run(mut self) -> Result<ExitCode> {
        if let Some(inside) = self.inside {
            inside.run()?;
            return Ok(ExitCode::SUCCESS);
        }
        let chosen = self.chosen()?;
        if let Some(code) = world::enter(self.server.is_none())? {
            return Ok(code);
        }
        if self.demo {
            return demo::run().map(|()| ExitCode::SUCCESS);
        }
        let silent = match &self.server {
            Some(server) => {
                let (answering, silent) = server::find_out(server)?;
                self.servers = answering;
                silent
            }
            None => None,
        };
        let without_bypass = self.try_out()?;
        let files = Files::prepare(self.json.take(), self.report.take())?;
        let settings = Settings { rounds: self.rounds, duration: self.duration, server: self.server.clone() };
        let report = Report::new(Machine::look(self.server.is_none()), settings, files);
        report_when_interrupted(report.clone());
        for (what, why) in [("the server's other address", silent), ("bypass", without_bypass)] {
            why.into_iter().for_each(|why| report.left_out(what, &why));
        }
        let measured = chosen.into_iter().try_for_each(|name| self.measure(name, &report));
        report.finish(measured.is_ok())?;
        measured.map(|()| ExitCode::SUCCESS)
    }

    fn chosen(&self) -> Result<Vec<Name>> {
        let chosen = if self.only.is_empty() { Name::value_variants().to_vec() } else { self.only.clone() };
        ensure!(
            self.server.is_none() || chosen.iter().any(|name| name.needs_only_iperf3()),
            "nothing of this can be measured with --server: that has bulk, parallel and datagrams"
        );
        Ok(chosen)
    }

    /// That `sidestep run` runs here. Why not with the bypass, which is then left out.
    fn try_out(&mut self) -> Result<Option<String>> {
        for station in self.stations(&[Contender::TAP, Contender::Bypass])? {
            let done = station.program(&["true".to_owned()]).run(&station.workspace.lab.host)?;
            if done.status.success() {
                continue;
            }
            let said = done.stderr.lines().last().unwrap_or_default();
            let why = said.trim_start_matches("sidestep: ").to_owned();
            ensure!(station.contender == Contender::Bypass, "`sidestep run` does not run here: {why}");
            self.no_bypass = true;
            return Ok(Some(why));
        }
        Ok(None)
    }

    fn measure(&self, name: Name, report: &Report) -> Result<()> {
        if self.server.is_some() && !name.needs_only_iperf3() {
            let name = name.to_possible_value().map(|value| value.get_name().to_owned());
            report.left_out(&name.unwrap_or_default(), "needs the lab: not with --server");
            return Ok(());
        }
        match name {
            Name::Bulk => bulk::measure(self, report),
            Name::Parallel => bulk::parallel(self, report),
            Name::Nested => bulk::nested(self, report),
            Name::Published => published::measure(self, report),
            Name::Loopback => loopback::measure(self, report),
            Name::Connections => connections::measure(self, report),
            Name::InPlace => connections::in_place(self, report),
            Name::Latency => latency::measure(self, report),
            Name::Applications => applications::measure(self, report),
            Name::Redis => redis::measure(self, report),
            Name::Datagrams => datagrams::measure(self, report),
            Name::Cpu => cpu::measure(self, report),
            Name::Idle => idle::measure(self, report),
            Name::Calls => calls::measure(self, report),
            Name::Memory => footprint::memory(self, report),
            Name::Start => footprint::start(self, report),
        }
    }

    /// In labs, or on the machine; without those that do not run here.
    fn stations(&self, contenders: &[Contender]) -> Result<Vec<Station>> {
        let run = |contender: &Contender| !(self.no_bypass && contender.has_bypass());
        let contenders: Vec<Contender> = contenders.iter().copied().filter(run).collect();
        if self.servers.is_empty() { Station::all(&contenders) } else { Station::of_the_machine(&contenders) }
    }

    /// At least one, at most one of each family.
    fn iperf3_servers(&self) -> Vec<SocketAddr> {
        if self.servers.is_empty() {
            lab::REMOTE.map(|addr| SocketAddr::new(addr, IPERF3_PORT)).to_vec()
        } else {
            self.servers.clone()
        }
    }
}

/// At ^C: this is pid 1 of its namespace, so everything that still runs ends with it.
fn report_when_interrupted(report: Report) {
    std::thread::spawn(move || {
        let signal = world::interrupt();
        progress::clear();
        eprintln!("interrupted: the report is of what was measured until now");
        if let Err(error) = report.finish(false) {
            eprintln!("{error:#}");
        }
        std::process::exit(128 + signal);
    });
}

impl Name {
    fn needs_only_iperf3(self) -> bool {
        matches!(self, Self::Bulk | Self::Parallel | Self::Datagrams)
    }
}

impl Inside {
    fn run(self) -> Result<()> {
        match self {
            Self::Connect { addr, count, threads } => say(&connections::connect(addr, count, threads)?),
            Self::ConnectInPlace { count, threads } => say(&connections::connect_in_place(count, threads)?),
            Self::Close { port } => connections::close(port),
            Self::PingPong { addr, count } => say(&latency::ping_pong(addr, count)?),
            Self::Hold { held, closed, count } => idle::open(held, closed, count),
            Self::Calls { call } => say(&call.nanoseconds()?),
            Self::Clock => say(&footprint::monotonic_nanoseconds()),
            Self::Accounted { argv } => cpu::accounted(&argv),
        }
    }
}

/// For [`Station::answer`].
fn say(answer: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(answer)?);
    Ok(())
}
