//! Which TCP sockets listen in a namespace, the workspace's or the host's: a dump of the listening ones from a kept
//! NETLINK_SOCK_DIAG socket of it (sock_diag(7)). Only those are walked, so connections cost nothing. Which one a client
//! would come to is a question of its own, at a tenth of that.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use rustix::net::{SendFlags, send};

use crate::sys::socket;

use super::facts::SocketCookie;
use super::netlink::{self, Message, Request, array, malformed};

/// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// TCP_LISTEN (linux/tcp_states.h), in idiag_states as a bit.
const LISTEN: u8 = 10;
/// struct inet_diag_sockid: the source's port first; what is zero is any.
const SOCKET_ID: usize = 48;
/// Whatever cookie the socket has (INET_DIAG_NOCOOKIE).
const ANY_COOKIE: [u8; 8] = [0xff; 8];
/// Index of a namespace's loopback device (LOOPBACK_IFINDEX).
pub const LOOPBACK: u32 = 1;
/// Sockets looked at: more ports than are ever published by themselves.
const SOCKETS_MAX: usize = 4096;
/// Bytes of all that listens, some 200,000 sockets. Of a workspace with more nothing is known.
const MAX_BYTES: usize = 32 << 20;
/// One socket is told of with some 100 bytes.
const ANSWER: usize = 4096;

pub struct Listening(Mutex<(OwnedFd, u32)>);

impl Listening {
    /// `netlink`: a NETLINK_SOCK_DIAG socket made in the namespace.
    pub fn new(netlink: OwnedFd) -> io::Result<Self> {
        socket::answers_soon(netlink.as_fd())?;
        Ok(Self(Mutex::new((netlink, 0))))
    }

    /// Where TCP sockets listen now, of both families.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(self.sockets(0)?.into_iter().map(|(address, _)| address).collect())
    }

    /// The cookies of the sockets that listen at a port, at any address.
    pub fn at(&self, port: u16) -> io::Result<Vec<SocketCookie>> {
        Ok(self.sockets(port)?.into_iter().map(|(_, cookie)| cookie).collect())
    }

    /// The socket that a client with this address gets to, over the loopback. Of those that share a port it is one that
    /// depends on the client (a program of theirs that chooses is not asked).
    pub fn reached(&self, to: SocketAddr, client: IpAddr) -> io::Result<Option<SocketCookie>> {
        let mut netlink = self.0.lock().map_err(|_| io::Error::other("a thread died while asking for sockets"))?;
        let (socket, sequence) = &mut *netlink;
        *sequence = sequence.wrapping_add(1);
        send(&*socket, &question(to, client, *sequence), SendFlags::empty())?;
        match netlink::answer(socket, *sequence, &mut [0; ANSWER]) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            answer => Ok(Some(listener(&answer?).ok_or_else(malformed)?.1)),
        }
    }

    /// Port 0: all.
    fn sockets(&self, port: u16) -> io::Result<Vec<(SocketAddr, SocketCookie)>> {
        let mut netlink = self.0.lock().map_err(|_| io::Error::other("a thread died while asking for sockets"))?;
        let (socket, sequence) = &mut *netlink;
        let (mut found, mut budget) = (Vec::new(), MAX_BYTES);
        for family in [libc::AF_INET, libc::AF_INET6] {
            *sequence = sequence.wrapping_add(1);
            send(&*socket, &request(family, port, *sequence), SendFlags::empty())?;
            netlink::dump(socket, *sequence, &mut budget, |message| {
                if found.len() < SOCKETS_MAX {
                    found.push(listener(message).ok_or_else(malformed)?);
                }
                Ok(())
            })?;
        }
        Ok(found)
    }
}

fn request(family: i32, port: u16, sequence: u32) -> Vec<u8> {
    let mut id = [0; SOCKET_ID];
    id[..2].copy_from_slice(&port.to_be_bytes());
    request_about(family, &id, libc::NLM_F_DUMP, sequence)
}

/// No connection has a client at port 0, so what is found listens.
fn question(to: SocketAddr, client: IpAddr, sequence: u32) -> Vec<u8> {
    let mut id = [0; SOCKET_ID];
    id[..2].copy_from_slice(&to.port().to_be_bytes());
    let mut put = |at: usize, ip: IpAddr| match ip {
        IpAddr::V4(v4) => id[at..at + 4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => id[at..at + 16].copy_from_slice(&v6.octets()),
    };
    let at = to.ip().to_canonical();
    put(4, at);
    put(20, client);
    id[36..40].copy_from_slice(&LOOPBACK.to_ne_bytes());
    id[40..].copy_from_slice(&ANY_COOKIE);
    request_about(if at.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }, &id, 0, sequence)
}

/// struct inet_diag_req_v2: family, protocol, extensions, padding, states, socket.
fn request_about(family: i32, id: &[u8; SOCKET_ID], flags: i32, sequence: u32) -> Vec<u8> {
    let byte = |number: i32| u8::try_from(number).unwrap_or(0);
    let mut header = vec![byte(family), byte(libc::IPPROTO_TCP), 0, 0];
    header.extend((1_u32 << LISTEN).to_ne_bytes());
    header.extend(id);
    Request::new(SOCK_DIAG_BY_FAMILY, flags, sequence, &header).bytes()
}

/// struct inet_diag_msg: family, state, timer, retransmissions, then the socket: ports, source, destination, interface,
/// cookie (the low half first).
fn listener(message: &Message<'_>) -> Option<(SocketAddr, SocketCookie)> {
    let port = u16::from_be_bytes(array(message.body, 4)?);
    let address = match i32::from(*message.body.first()?) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(array::<4>(message.body, 8)?)),
        _ => IpAddr::from(Ipv6Addr::from(array::<16>(message.body, 8)?)).to_canonical(),
    };
    let half = |at| Some(u64::from(u32::from_ne_bytes(array(message.body, at)?)));
    Some((SocketAddr::new(address, port), SocketCookie(half(44)? | half(48)? << 32)))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::supervisor::facts::SocketFacts;

    #[test]
    fn listeners_of_both_families_and_no_connections() {
        let netlink = socket::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG).unwrap();
        let listening = Listening::new(netlink).unwrap();
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::1]:0").unwrap();
        let client = std::net::TcpStream::connect(v4.local_addr().unwrap()).unwrap();
        for _ in 0..2 {
            let found = listening.addresses().unwrap();
            for listener in [&v4, &v6] {
                assert!(found.contains(&listener.local_addr().unwrap()), "{found:?}");
            }
            assert!(!found.contains(&client.local_addr().unwrap()));
        }
        let cookie = SocketFacts::of(v4.as_fd()).unwrap().cookie;
        assert_eq!(listening.at(v4.local_addr().unwrap().port()).unwrap(), [cookie]);
        let reached = |to, client: &str| listening.reached(to, client.parse().unwrap()).unwrap();
        assert_eq!(reached(v4.local_addr().unwrap(), "127.0.0.1"), Some(cookie));
        let cookie = SocketFacts::of(v6.as_fd()).unwrap().cookie;
        assert_eq!(reached(v6.local_addr().unwrap(), "::5"), Some(cookie));
        assert_eq!(reached(SocketAddr::new([127, 0, 0, 2].into(), v4.local_addr().unwrap().port()), "127.0.0.1"), None);
        let gone = v4.local_addr().unwrap();
        drop((v4, client));
        assert!(!listening.addresses().unwrap().contains(&gone));
    }
}
