//! A DNS server with four names, over UDP and TCP: just enough of RFC 1035 to tell right answers from wrong ones.
//!
//! | name          | answer                                                                  |
//! |---------------|-------------------------------------------------------------------------|
//! | remote.lab    | A and AAAA of the remote                                                |
//! | big.lab       | TXT of 3,000 bytes: too long for UDP, so truncated there, whole over TCP |
//! | silent.lab    | none, ever                                                              |
//! | anything else | NXDOMAIN                                                                |

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::thread;

use anyhow::{Context as _, Result};

use super::netns::Netns;
use super::{REMOTE_V4, REMOTE_V6};

const A: u16 = 1;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const TRUNCATED: u8 = 0x02;
const NXDOMAIN: u8 = 3;
/// What a client without EDNS takes over UDP.
const UDP_LIMIT: usize = 512;

/// Serves port 53 of `addr` until the process ends.
pub fn serve(netns: &Netns, addr: IpAddr) -> Result<()> {
    serve_at(netns, SocketAddr::new(addr, 53))
}

/// The same where an address needs a scope.
pub fn serve_at(netns: &Netns, addr: SocketAddr) -> Result<()> {
    let sockets = netns.within(|| Ok::<_, std::io::Error>((UdpSocket::bind(addr)?, TcpListener::bind(addr)?)));
    let (udp, tcp) = sockets.with_context(|| format!("serve DNS at {addr}"))?;
    thread::spawn(move || {
        let mut query = [0; 4096];
        loop {
            let Ok((length, client)) = udp.recv_from(&mut query) else { continue };
            let Some(answer) = answer(&query[..length], UDP_LIMIT) else { continue };
            // A client that is gone asks again if it wants to.
            drop(udp.send_to(&answer, client));
        }
    });
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            thread::spawn(move || -> std::io::Result<()> {
                loop {
                    let mut length = [0; 2];
                    stream.read_exact(&mut length)?;
                    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                    stream.read_exact(&mut query)?;
                    let Some(answer) = answer(&query, usize::from(u16::MAX)) else { return Ok(()) };
                    let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
                    stream.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat())?;
                }
            });
        }
    });
    Ok(())
}

/// The message to send back, if any.
fn answer(query: &[u8], limit: usize) -> Option<Vec<u8>> {
    let (name, end) = name(query)?;
    let kind = u16::from_be_bytes(query.get(end..end + 2)?.try_into().ok()?);
    let question = query.get(12..end + 4)?;
    let data: Option<Vec<u8>> = match (name.as_str(), kind) {
        ("silent.lab", _) => return None,
        ("remote.lab", A) => Some(REMOTE_V4.octets().to_vec()),
        ("remote.lab", AAAA) => Some(REMOTE_V6.octets().to_vec()),
        ("big.lab", TXT) => Some([&[250], [b'x'; 250].as_slice()].concat().repeat(12)),
        _ => None,
    };
    let known = matches!(name.as_str(), "remote.lab" | "big.lab");
    let rcode = if known { 0 } else { NXDOMAIN };
    let record = data.map(|data| record(kind, &data));
    let mut flags = 0x81;
    let mut body = record.unwrap_or_default();
    let mut answers = u8::from(!body.is_empty());
    if 12 + question.len() + body.len() > limit {
        (flags, answers) = (flags | TRUNCATED, 0);
        body.clear();
    }
    let header = [query[0], query[1], flags, 0x80 | rcode, 0, 1, 0, answers, 0, 0, 0, 0];
    Some([&header, question, &body].concat())
}

/// The question's name in lower case, and where its type begins.
fn name(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
}

/// A record for the question's own name (a pointer to offset 12), good for a minute.
fn record(kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap_or(0).to_be_bytes();
    [&[0xc0, 12], kind.to_be_bytes().as_slice(), &[0, 1, 0, 0, 0, 60], &length, data].concat()
}
