//! `sidestep ports`: published ports of a running workspace, at run time.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::json;
use sidestep_forwarder::policy::Transport;
use sidestep_forwarder::ports::{Entry, Origin};

use super::running::{self, parse};
use super::say;
use crate::logging::{self, LogSettings};
use crate::publish::Spec;
use crate::supervisor::control::client;

/// Publish ports of a running workspace, list them, or publish them no more.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  sidestep ports list
  sidestep ports add 8080:80 127.0.0.1:5353:53/udp
  sidestep ports remove 3

Ports that were given to `sidestep run -p` are listed and cannot be removed. The workspace itself
is refused: run this outside.")]
pub struct Ports {
    #[command(subcommand)]
    action: Action,

    /// Process number of the workspace's `sidestep run`, where several are running
    #[arg(long, global = true, conflicts_with = "state_dir")]
    pid: Option<u32>,

    /// The directory given to `sidestep run --state-dir`
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// What the control socket answers, in JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Publish ports, written as for `sidestep run -p`: each argument wholly or not at all
    Add {
        #[arg(required = true, value_name = "[IP:]PORT[-PORT]:PORT[-PORT][/tcp|udp]")]
        ports: Vec<String>,
    },
    /// Show published ports with their numbers
    List,
    /// Publish ports no more; clients stay connected
    Remove {
        #[arg(required = true, value_name = "NUMBER")]
        numbers: Vec<u64>,
    },
}

impl Ports {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        logging::init(LogSettings::default());
        let socket = running::control_socket(self.state_dir, self.pid, "ports --pid")?;
        let mut shown = String::new();
        let done = self.action.carry_out(&socket, self.json, &mut shown);
        // What was done before something failed is told, too.
        say(shown)?;
        done.map(|()| ExitCode::SUCCESS)
    }
}

impl Action {
    fn carry_out(self, socket: &Path, json: bool, shown: &mut String) -> anyhow::Result<()> {
        match self {
            Self::List => *shown += &lines(client::get(socket, "/v1/ports")?, json)?,
            Self::Add { ports } => {
                for port in ports {
                    // Said here rather than there, and before anything is sent.
                    port.parse::<Spec>().with_context(|| port.clone())?;
                    let body = json!({ "publish": port }).to_string();
                    *shown += &lines(client::request(socket, Method::POST, "/v1/ports", body)?, json)?;
                }
            }
            Self::Remove { numbers } => {
                for number in numbers {
                    client::request(socket, Method::DELETE, &format!("/v1/ports/{number}"), String::new())?;
                }
            }
        }
        Ok(())
    }
}

/// An answer of the control socket, for people a line for each port.
fn lines(answer: String, json: bool) -> anyhow::Result<String> {
    if json {
        return Ok(answer + "\n");
    }
    let entries: Vec<Entry> = parse(&answer)?;
    Ok(entries.iter().map(|entry| line(entry) + "\n").collect())
}

/// `3  tcp  *:8080 -> :80  added`
fn line(entry: &Entry) -> String {
    let publication = &entry.publication;
    let transport = if publication.transport == Transport::Udp { "udp" } else { "tcp" };
    let host = publication.host.map_or("*".to_owned(), |host| host.to_string());
    let guest = publication.guest.map_or(String::new(), |guest| guest.to_string());
    let origin = match entry.origin {
        Origin::Start => "start",
        Origin::Added => "added",
        Origin::Auto => "auto",
    };
    let (number, host_port, guest_port) = (entry.number, publication.host_port, publication.guest_port);
    format!("{number}  {transport}  {host}:{host_port} -> {guest}:{guest_port}  {origin}")
}
