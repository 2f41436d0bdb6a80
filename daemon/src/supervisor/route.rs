//! What a kernel would do with a destination: RTM_GETROUTE on a kept netlink socket (rtnetlink(7)).
//!
//! The socket belongs to the namespace it was made in, so the workspace's rules, tables and devices answer, however
//! the supervisor itself is placed. One request, one reply; a reply that does not fit the request makes the oracle
//! say "elsewhere", which keeps the socket in place.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::sys::socket;

/// What the workspace's kernel would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsideRoute {
    OurTap,
    /// Another device, the workspace itself, or nowhere.
    Elsewhere,
}

/// What the host's kernel would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRoute {
    One,
    /// The destination is an address of the host itself.
    Own,
    /// Broadcast, multicast, anycast.
    Many,
    /// Unreachable; connect(2) will say how.
    None,
}

/// A route, as far as anybody here asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    kind: u8,
    device: u32,
}

const HEADER: usize = 16;
const RTMSG: usize = 12;

pub struct Oracle {
    netlink: Mutex<Netlink>,
}

struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Oracle {
    /// `netlink`: a NETLINK_ROUTE socket made in the namespace to be asked.
    pub fn new(netlink: OwnedFd) -> io::Result<Self> {
        // A reply is there when the request returns; a bound keeps a lost one from holding a call up.
        let quarter_second = libc::timeval { tv_sec: 0, tv_usec: 250_000 };
        let mut timeout = [0; 16];
        let (seconds, micros) = timeout.split_at_mut(8);
        seconds.copy_from_slice(&quarter_second.tv_sec.to_ne_bytes());
        micros.copy_from_slice(&quarter_second.tv_usec.to_ne_bytes());
        socket::set_option(netlink.as_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
        rustix::io::ioctl_fionbio(&netlink, false)?;
        Ok(Self { netlink: Mutex::new(Netlink { socket: netlink, sequence: 0 }) })
    }

    /// Asks as the owner of a workspace's socket would be routed; `uid` is that owner.
    pub fn inside(&self, destination: IpAddr, uid: u32, tap: u32) -> InsideRoute {
        match self.ask(destination, Some(uid)) {
            Ok(Some(Route { kind: libc::RTN_UNICAST, device })) if device == tap => InsideRoute::OurTap,
            _ => InsideRoute::Elsewhere,
        }
    }

    pub fn host(&self, destination: IpAddr) -> HostRoute {
        match self.ask(destination, None) {
            Ok(Some(Route { kind: libc::RTN_UNICAST, .. })) => HostRoute::One,
            Ok(Some(Route { kind: libc::RTN_LOCAL, .. })) => HostRoute::Own,
            Ok(Some(Route { kind: libc::RTN_BROADCAST | libc::RTN_MULTICAST | libc::RTN_ANYCAST, .. })) => {
                HostRoute::Many
            }
            Ok(_) => HostRoute::None,
            Err(error) => {
                tracing::debug!(%destination, %error, "no answer about the host's route");
                HostRoute::Many
            }
        }
    }

    /// None: the kernel has no route.
    fn ask(&self, destination: IpAddr, uid: Option<u32>) -> io::Result<Option<Route>> {
        let mut netlink =
            self.netlink.lock().map_err(|_| io::Error::other("a thread died while asking for a route"))?;
        netlink.sequence = netlink.sequence.wrapping_add(1);
        let sequence = netlink.sequence;
        let mut buffer = [0; 512];
        let request = request(destination, uid, sequence, &mut buffer);
        send(&netlink.socket, request, SendFlags::empty())?;
        loop {
            let (length, _) = recv(&netlink.socket, &mut buffer, RecvFlags::empty())?;
            match parse_reply(buffer.get(..length).unwrap_or(&[]), sequence)? {
                Reply::Stale => {}
                Reply::Route(route) => return Ok(Some(route)),
                Reply::Unroutable => return Ok(None),
            }
        }
    }
}

/// nlmsghdr, rtmsg, RTA_DST and, where given, RTA_UID.
fn request(destination: IpAddr, uid: Option<u32>, sequence: u32, buffer: &mut [u8; 512]) -> &[u8] {
    let (family, bits, octets) = match destination {
        IpAddr::V4(v4) => (libc::AF_INET, 32, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, 128, v6.octets().to_vec()),
    };
    let mut message = Vec::with_capacity(64);
    message.extend([0; 4]);
    message.extend(libc::RTM_GETROUTE.to_ne_bytes());
    message.extend(u16::try_from(libc::NLM_F_REQUEST).unwrap_or(1).to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
    message.extend([u8::try_from(family).unwrap_or(0), bits]);
    message.resize(HEADER + RTMSG, 0);
    attribute(&mut message, libc::RTA_DST, &octets);
    if let Some(uid) = uid {
        attribute(&mut message, libc::RTA_UID, &uid.to_ne_bytes());
    }
    let length = message.len();
    message.splice(..4, u32::try_from(length).unwrap_or(0).to_ne_bytes());
    let (start, _) = buffer.split_at_mut(length);
    start.copy_from_slice(&message);
    start
}

/// Values here are multiples of four bytes long: no padding.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(u16::try_from(4 + value.len()).unwrap_or(0).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
}

#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Route(Route),
    Unroutable,
    /// The late answer to an earlier request.
    Stale,
}

fn parse_reply(message: &[u8], sequence: u32) -> io::Result<Reply> {
    let malformed = || io::Error::other("a malformed netlink reply");
    let kind = u16::from_ne_bytes(array(message, 4).ok_or_else(malformed)?);
    if u32::from_ne_bytes(array(message, 8).ok_or_else(malformed)?) != sequence {
        return Ok(Reply::Stale);
    }
    if i32::from(kind) == libc::NLMSG_ERROR {
        let errno = i32::from_ne_bytes(array(message, HEADER).ok_or_else(malformed)?).wrapping_neg();
        return match errno {
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL => Ok(Reply::Unroutable),
            errno => Err(io::Error::from_raw_os_error(errno)),
        };
    }
    if kind != libc::RTM_NEWROUTE {
        return Err(malformed());
    }
    let [route_kind] = array(message, HEADER + 7).ok_or_else(malformed)?;
    let mut attributes = message.get(HEADER + RTMSG..).ok_or_else(malformed)?;
    let mut device = 0;
    while let (Some(length), Some(kind)) = (array(attributes, 0), array(attributes, 2)) {
        let length = usize::from(u16::from_ne_bytes(length));
        if u16::from_ne_bytes(kind) == libc::RTA_OIF {
            device = u32::from_ne_bytes(array(attributes, 4).ok_or_else(malformed)?);
        }
        if length < 4 {
            return Err(malformed());
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(Reply::Route(Route { kind: route_kind, device }))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Oracle {
        Oracle::new(socket::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap()).unwrap()
    }

    #[test]
    fn loopback_is_the_hosts_own_and_never_a_tap() {
        let oracle = own();
        for address in ["127.0.0.1", "::1", "127.255.0.9"] {
            let address = address.parse().unwrap();
            assert_eq!(oracle.host(address), HostRoute::Own);
            assert_eq!(oracle.inside(address, 0, 1), InsideRoute::Elsewhere, "local, although its device is 1");
        }
        assert_eq!(oracle.host("127.255.255.255".parse().unwrap()), HostRoute::Many);
    }

    #[test]
    fn replies_that_do_not_fit() {
        let mut buffer = [0; 512];
        let question = request("192.0.2.1".parse().unwrap(), Some(0), 7, &mut buffer).to_vec();
        assert_eq!(question.len(), HEADER + RTMSG + 8 + 8);
        assert!(parse_reply(&question, 7).is_err(), "a request is no reply");
        assert_eq!(parse_reply(&question, 8).unwrap(), Reply::Stale);
        for length in 0..question.len() {
            let _ = parse_reply(&question[..length], 7);
        }
        let mut endless = question;
        endless[4..6].copy_from_slice(&libc::RTM_NEWROUTE.to_ne_bytes());
        endless[HEADER + RTMSG] = 0;
        assert!(parse_reply(&endless, 7).is_err(), "an attribute of length 0 does not loop");
    }
}
