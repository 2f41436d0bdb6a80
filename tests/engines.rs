//! Container engines that start sidestep under the name slirp4netns, as Debian ships them: Podman and RootlessKit.

pub mod podman;
pub mod rootlesskit;

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;

use crate::lab::HOST_V4;
use crate::lab::command::{DEADLINE, Finished, Program};
use crate::lab::netns::Netns;
use crate::lab::poll;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const HOST: IpAddr = IpAddr::V4(HOST_V4);

/// What a client in `from` gets from a port of the host, an empty text for nothing.
fn curl(from: &Netns, addr: IpAddr, port: u16, path: &str) -> Result<Finished> {
    Program::new(["curl", "-sS", "--max-time", "10", &format!("http://{addr}:{port}/{path}")]).run(from)
}

/// Asks until the server that has just been started answers.
fn answers(from: &Netns, addr: IpAddr, port: u16, path: &str) -> Result<String> {
    let mut last = None;
    let answer = poll("an answer of the published server", DEADLINE, || {
        let done = curl(from, addr, port, path)?;
        let answer = done.status.success().then(|| done.stdout.trim().to_owned());
        last = Some(done);
        Ok(answer)
    });
    answer.map_err(|error| match last {
        Some(done) => error.context(done.to_string()),
        None => error,
    })
}

/// curl(1)'s exit code where nobody listens.
const REFUSED: i32 = 7;
