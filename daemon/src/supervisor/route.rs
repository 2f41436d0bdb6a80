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

use super::netlink::{Messages, Request, array, malformed, table};

/// What the workspace's kernel would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsideRoute {
    OurTap {
        /// The address a connection would come from.
        source: Option<IpAddr>,
    },
    /// Another device, the workspace itself, or nowhere.
    Elsewhere,
}

/// What the host's kernel would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRoute {
    One {
        /// Index of the device it leaves by.
        device: u32,
    },
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
    source: Option<IpAddr>,
}

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
        socket::answers_soon(netlink.as_fd())?;
        Ok(Self { netlink: Mutex::new(Netlink { socket: netlink, sequence: 0 }) })
    }

    /// Asks as the owner of a workspace's socket would be routed; `uid` is that owner.
    pub fn inside(&self, destination: IpAddr, uid: u32, tap: u32) -> InsideRoute {
        match self.ask(destination, None, Some(uid)) {
            Ok(Some(Route { kind: libc::RTN_UNICAST, device, source })) if device == tap => {
                InsideRoute::OurTap { source }
            }
            _ => InsideRoute::Elsewhere,
        }
    }

    /// `source`: the address a connection would come from, where the routes do not choose it.
    pub fn host(&self, destination: IpAddr, source: Option<IpAddr>) -> HostRoute {
        match self.ask(destination, source, None) {
            Ok(Some(Route { kind: libc::RTN_UNICAST, device, .. })) => HostRoute::One { device },
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
    fn ask(&self, destination: IpAddr, source: Option<IpAddr>, uid: Option<u32>) -> io::Result<Option<Route>> {
        let mut netlink =
            self.netlink.lock().map_err(|_| io::Error::other("a thread died while asking for a route"))?;
        netlink.sequence = netlink.sequence.wrapping_add(1);
        let sequence = netlink.sequence;
        send(&netlink.socket, &request(destination, source, uid, sequence), SendFlags::empty())?;
        let mut buffer = [0; 512];
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

/// rtmsg, RTA_DST and, where given, RTA_SRC and RTA_UID.
fn request(destination: IpAddr, source: Option<IpAddr>, uid: Option<u32>, sequence: u32) -> Vec<u8> {
    let octets = |addr| match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (family, bits) = if destination.is_ipv4() { (libc::AF_INET, 32) } else { (libc::AF_INET6, 128) };
    let mut rtmsg = [0; RTMSG];
    rtmsg[0] = u8::try_from(family).unwrap_or(0);
    rtmsg[1] = bits;
    rtmsg[2] = if source.is_some() { bits } else { 0 };
    let request = Request::new(libc::RTM_GETROUTE, 0, sequence, &rtmsg);
    let mut request = request.attribute(libc::RTA_DST, &octets(destination));
    if let Some(source) = source {
        request = request.attribute(libc::RTA_SRC, &octets(source));
    }
    if let Some(uid) = uid {
        request = request.attribute(libc::RTA_UID, &uid.to_ne_bytes());
    }
    request.bytes()
}

#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Route(Route),
    Unroutable,
    /// The late answer to an earlier request.
    Stale,
}

fn parse_reply(datagram: &[u8], sequence: u32) -> io::Result<Reply> {
    let message = Messages(datagram).next().ok_or_else(malformed)??;
    if message.sequence != sequence {
        return Ok(Reply::Stale);
    }
    if i32::from(message.kind) == libc::NLMSG_ERROR {
        return match message.errno()? {
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL => Ok(Reply::Unroutable),
            errno => Err(io::Error::from_raw_os_error(errno)),
        };
    }
    if message.kind != libc::RTM_NEWROUTE {
        return Err(malformed());
    }
    let [kind] = array(message.body, 7).ok_or_else(malformed)?;
    // RTA_OIF is 4, RTA_PREFSRC 7.
    let [_, _, _, _, device, _, _, source] = table(message.body.get(RTMSG..).ok_or_else(malformed)?)?;
    let device = device.map_or(Some(0), |device| Some(u32::from_ne_bytes(array(device, 0)?))).ok_or_else(malformed)?;
    Ok(Reply::Route(Route { kind, device, source: source.and_then(address) }))
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => Some(IpAddr::from(array::<4>(octets, 0)?)),
        16 => Some(IpAddr::from(array::<16>(octets, 0)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::netlink::HEADER;

    fn own() -> Oracle {
        Oracle::new(socket::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap()).unwrap()
    }

    #[test]
    fn loopback_is_the_hosts_own_and_never_a_tap() {
        let oracle = own();
        for address in ["127.0.0.1", "::1", "127.255.0.9"] {
            let address = address.parse().unwrap();
            assert_eq!(oracle.host(address, None), HostRoute::Own);
            assert_eq!(oracle.inside(address, 0, 1), InsideRoute::Elsewhere, "local, although its device is 1");
        }
        assert_eq!(oracle.host("127.255.255.255".parse().unwrap(), None), HostRoute::Many);
    }

    #[test]
    fn a_source_is_asked_about_too() {
        let own = own();
        let (destination, source) = ("127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap());
        assert_eq!(own.host(destination, Some(source)), HostRoute::Own);
        let (v6, lost) = ("::1".parse().unwrap(), "2001:db8::77".parse().unwrap());
        assert_eq!((own.host(v6, Some(v6)), own.host(v6, Some(lost))), (HostRoute::Own, HostRoute::Own));
    }

    #[test]
    fn replies_that_do_not_fit() {
        let question = request("192.0.2.1".parse().unwrap(), None, Some(0), 7);
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
