//! `sidestep ports`: published ports of a running workspace, at run time.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::json;
use sidestep_forwarder::policy::Transport;
use sidestep_forwarder::ports::{Entry, Origin};

use super::stats;
use crate::logging::{self, LogSettings};
use crate::monitor::state_dir::{self, CONTROL_SOCKET};
use crate::publish::Spec;
use crate::supervisor::control::client;

/// Publish ports of a running workspace, list them, or publish them no more.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  sidestep ports list
  sidestep ports add 8080:80 127.0.0.1:5353:53/udp
  sidestep ports remove 3

Ports that were given to `sidestep run -p` are among them. A port at which a program inside listens
itself (--bypass) goes when that one stops listening. The workspace itself is refused: run this
outside.")]
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
        let dir = match self.state_dir {
            Some(dir) => dir,
            None => stats::choose(&state_dir::usual_parent(), self.pid)?,
        };
        let socket = dir.join(CONTROL_SOCKET);
        let show = |text: String| -> anyhow::Result<()> {
            if self.json {
                println!("{text}");
                return Ok(());
            }
            let entries: Vec<Entry> =
                serde_json::from_str(&text).context("the workspace was started by another version of sidestep")?;
            entries.iter().for_each(|entry| println!("{}", line(entry)));
            Ok(())
        };
        match self.action {
            Action::List => show(client::get(&socket, "/v1/ports")?)?,
            Action::Add { ports } => {
                for port in ports {
                    // Said here rather than there, and before anything is sent.
                    port.parse::<Spec>().with_context(|| port.clone())?;
                    let body = json!({ "publish": port }).to_string();
                    show(client::request(&socket, Method::POST, "/v1/ports", body)?)?;
                }
            }
            Action::Remove { numbers } => {
                for number in numbers {
                    client::request(&socket, Method::DELETE, &format!("/v1/ports/{number}"), String::new())?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
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
