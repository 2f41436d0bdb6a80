//! Somebody's iperf3 server, for `--server`: where it is, whether it answers, and what is to be done where it does not.

mod name;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::bulk::{iperf3, said};
use crate::lab::command::Program;
use crate::lab::netns::Netns;
use crate::lab::world;
use crate::machine::find;

/// For an answer from anywhere; iperf3 waits for ever for one that is no iperf3 server.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of waiting for a connection, in milliseconds: an end before that of [`PATIENCE`], which tells why.
const CONNECT: &str = "--connect-timeout 5000";

/// An address of the server for each family in which it answers, and what is wrong in the other one, if it has one.
pub fn find_out(server: &str) -> Result<(Vec<SocketAddr>, Option<String>)> {
    ensure!(find("iperf3").is_some(), "--server takes the program iperf3 here, too, and it is not installed");
    let here = Netns::current()?;
    let (mut answering, mut wrong) = (Vec::new(), None);
    for addr in name::resolve(server)? {
        match ask(addr, &here) {
            Ok(()) => answering.push(addr),
            Err(error) => wrong = Some(error.to_string()),
        }
    }
    match wrong {
        Some(wrong) if answering.is_empty() => bail!("{wrong}"),
        wrong => Ok((answering, wrong)),
    }
}

/// Sends to it for the shortest time that iperf3 knows, a second.
fn ask(addr: SocketAddr, here: &Netns) -> Result<()> {
    let client = Program::new(iperf3(addr.ip(), addr.port(), CONNECT, None, 1)).env("PATH", world::path());
    let Ok(done) = client.deadline(PATIENCE).run(here) else {
        bail!("{}", wrong(addr, &format!("nothing within {} s", PATIENCE.as_secs())));
    };
    match said(&done.stdout) {
        Some(said) => bail!("{}", wrong(addr, said)),
        None if !done.status.success() => bail!("{}", wrong(addr, done.stderr.trim())),
        None => Ok(()),
    }
}

/// A sentence with cause and fix out of what iperf3 says.
fn wrong(addr: SocketAddr, said: &str) -> String {
    let port = addr.port();
    if said.contains("busy") {
        return format!(
            "the iperf3 server at {addr} is busy with another test; try again when that is over, or start one more there, \
             `iperf3 -s -p PORT`, and give --server HOST:PORT"
        );
    }
    let Some(cause) = said.strip_prefix("unable to connect to server: ") else {
        return format!("{addr} does not answer as an iperf3 server does ({said}); is {port} the port of `iperf3 -s`?");
    };
    if cause.starts_with("Connection refused") {
        return format!(
            "nobody listens at {addr}; start `iperf3 -s -p {port}` there, or give the right --server HOST:PORT"
        );
    }
    format!("{addr} is out of reach ({cause}); is the address right, and does every firewall let port {port} through?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_to_do() {
        let addr = "192.0.2.7:5201".parse().unwrap();
        let cases = [
            ("the server is busy running a test. try again later", "busy with another test"),
            ("unable to connect to server: Connection refused", "`iperf3 -s -p 5201`"),
            ("unable to connect to server: No route to host", "out of reach (No route to host)"),
            ("control socket has closed unexpectedly", "is 5201 the port"),
        ];
        for (said, told) in cases {
            assert!(wrong(addr, said).contains(told), "{said}: {}", wrong(addr, said));
        }
    }
}
