//! What a kernel would do with a destination: RTM_GETROUTE on a kept netlink socket (rtnetlink(7)).
//!
//! The socket belongs to the namespace it was made in, so the workspace's rules, tables and devices answer, however
//! the supervisor itself is placed. One request, one reply; a reply that does not fit the request makes the oracle
//! say "elsewhere", which keeps the socket in place. What the kernel says about devices is in [`super::device`].

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use rustix::net::{SendFlags, send};
use sidestep_forwarder::policy::{self, Transport};

use crate::sys::socket;

use super::known_routes::{Answer, KnownRoutes, Question, Recalled};
use super::netlink::{self, Request, Unread, array, malformed, table};
use super::rules::{self, Rules};

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
pub struct Route {
    /// RTN_*.
    pub kind: u8,
    pub device: u32,
    pub source: Option<IpAddr>,
    /// None: the destination is on the device's own network.
    pub gateway: Option<IpAddr>,
}

/// Whose packet a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packet {
    /// Of a socket of the namespace; its owner, where that is known, and its address, where the routes do not choose it.
    Own { uid: Option<u32>, source: Option<IpAddr> },
    /// One that comes in by a device: the kernel then answers as it would treat it, forwarding and reverse path too.
    Received { source: IpAddr, device: u32 },
}

const RTMSG: usize = 12;
/// linux/rtnetlink.h
const RTA_IP_PROTO: u16 = 27;
const RTA_DPORT: u16 = 29;
/// The longest answer is one about a device: names, addresses, the settings of both families.
const ANSWER: usize = 8192;
/// Bytes of a family's rules that are read: a hundred thousand. With more of them every route is in doubt.
const MAX_RULES: usize = 16 << 20;

pub struct Oracle {
    netlink: Mutex<Netlink>,
    known: Option<Mutex<KnownRoutes>>,
}

struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Oracle {
    /// `netlink`: a NETLINK_ROUTE socket made in the namespace to be asked.
    pub fn new(netlink: OwnedFd) -> io::Result<Self> {
        socket::answers_soon(netlink.as_fd())?;
        Ok(Self { netlink: Mutex::new(Netlink { socket: netlink, sequence: 0 }), known: None })
    }

    /// The same, with a second such socket, for routes that are asked for again and again.
    pub fn remembering(netlink: OwnedFd, notices: OwnedFd) -> io::Result<Self> {
        Ok(Self { known: Some(Mutex::new(KnownRoutes::new(notices)?)), ..Self::new(netlink)? })
    }

    /// Asks as the owner of a workspace's socket would be routed; `uid` is that owner.
    pub fn inside(&self, request: policy::Request, uid: u32, tap: u32) -> InsideRoute {
        match self.route(request, Packet::Own { uid: Some(uid), source: None }) {
            Ok(Some(Route { kind: libc::RTN_UNICAST, device, source, .. })) if device == tap => {
                InsideRoute::OurTap { source }
            }
            _ => InsideRoute::Elsewhere,
        }
    }

    /// `source`: the address a connection would come from, where the routes do not choose it. Of rules that leave a doubt,
    /// the host's kernel thinks once more when the connection is made.
    pub fn host(&self, request: policy::Request, source: Option<IpAddr>) -> HostRoute {
        match self.look_up(request, Packet::Own { uid: None, source }).map(|(_, route)| route) {
            Ok(Some(Route { kind: libc::RTN_UNICAST, device, .. })) => HostRoute::One { device },
            Ok(Some(Route { kind: libc::RTN_LOCAL, .. })) => HostRoute::Own,
            Ok(Some(Route { kind: libc::RTN_BROADCAST | libc::RTN_MULTICAST | libc::RTN_ANYCAST, .. })) => {
                HostRoute::Many
            }
            Ok(_) => HostRoute::None,
            Err(error) => {
                tracing::debug!(destination = %request.destination, %error, "no answer about the host's route");
                HostRoute::Many
            }
        }
    }

    /// None: the kernel has no route. Port 0 stands for one that is not known.
    pub fn route(&self, request: policy::Request, packet: Packet) -> io::Result<Option<Route>> {
        let (rules, route) = self.look_up(request, packet)?;
        if rules.in_doubt || rules.by_port && request.destination.port() == 0 {
            return Err(io::Error::other("rules look at what is not known beforehand"));
        }
        Ok(route)
    }

    fn look_up(&self, request: policy::Request, packet: Packet) -> io::Result<Answer> {
        let family = if request.destination.ip().to_canonical().is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let Some(known) = &self.known else {
            let rules = self.rules(family)?;
            return Ok((rules, self.ask_route(&Question::new(request, packet, rules))?));
        };
        let lock = || known.lock().map_err(|_| io::Error::other("a thread died while it looked for a route"));
        let now = Instant::now();
        let (state, rules) = match lock()?.recall(request, packet, now)? {
            Recalled::Route(rules, route) => return Ok((rules, route)),
            Recalled::Unknown(state, rules) => (state, rules),
        };
        let rules = rules.map_or_else(|| self.rules(family), Ok)?;
        let question = Question::new(request, packet, rules);
        let answer = (rules, self.ask_route(&question)?);
        lock()?.remember(question, answer, state, now);
        Ok(answer)
    }

    /// What the rules of a family look at. A kernel without any (CONFIG_IP_MULTIPLE_TABLES, IPv6) does not know the
    /// question.
    fn rules(&self, family: i32) -> io::Result<Rules> {
        let mut netlink = self.netlink()?;
        let mut header = [0; rules::HEADER];
        header[0] = u8::try_from(family).unwrap_or(0);
        let request = Request::new(libc::RTM_GETRULE, libc::NLM_F_DUMP, netlink.sequence, &header);
        send(&netlink.socket, &request.bytes(), SendFlags::empty())?;
        let (mut rules, mut budget) = (Rules::default(), MAX_RULES);
        let Netlink { socket, sequence } = &mut *netlink;
        match netlink::dump(socket, *sequence, &mut budget, |message| rules.add(message.body)) {
            Err(Unread::Io(error)) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
                Ok(Rules::default())
            }
            dumped => Ok(dumped.map(|()| rules)?),
        }
    }

    fn ask_route(&self, question: &Question) -> io::Result<Option<Route>> {
        let answered = self.ask(|sequence| route_request(question, sequence), libc::RTM_NEWROUTE, route);
        match answered {
            Ok(route) => Ok(Some(route)),
            Err(error) if is_unroutable(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// With a number for the next request.
    fn netlink(&self) -> io::Result<MutexGuard<'_, Netlink>> {
        let mut netlink =
            self.netlink.lock().map_err(|_| io::Error::other("a thread died while asking for a route"))?;
        netlink.sequence = netlink.sequence.wrapping_add(1);
        Ok(netlink)
    }

    /// One request and its answer, which is of the type `wanted`; `read` gets its body.
    pub fn ask<T>(
        &self,
        request: impl FnOnce(u32) -> Request,
        wanted: u16,
        read: impl Fn(&[u8]) -> io::Result<T>,
    ) -> io::Result<T> {
        let netlink = self.netlink()?;
        let sequence = netlink.sequence;
        send(&netlink.socket, &request(sequence).bytes(), SendFlags::empty())?;
        let mut buffer = [0; ANSWER];
        let answer = netlink::answer(&netlink.socket, sequence, &mut buffer)?;
        if answer.kind == wanted { read(answer.body) } else { Err(malformed()) }
    }
}

/// rtmsg, RTA_DST, and what there is to say about the packet.
fn route_request(question: &Question, sequence: u32) -> Request {
    let &Question { destination, packet, carries } = question;
    let octets = |addr| match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (family, bits) = if destination.is_ipv4() { (libc::AF_INET, 32) } else { (libc::AF_INET6, 128) };
    let source = match packet {
        Packet::Own { source, .. } => source,
        Packet::Received { source, .. } => Some(source),
    };
    let mut rtmsg = [0; RTMSG];
    rtmsg[0] = u8::try_from(family).unwrap_or(0);
    rtmsg[1] = bits;
    rtmsg[2] = if source.is_some() { bits } else { 0 };
    let mut request = Request::new(libc::RTM_GETROUTE, 0, sequence, &rtmsg);
    request = request.attribute(libc::RTA_DST, &octets(destination));
    if let Some(source) = source {
        request = request.attribute(libc::RTA_SRC, &octets(source));
    }
    if let Some((transport, port)) = carries {
        let protocol = if transport == Transport::Udp { libc::IPPROTO_UDP } else { libc::IPPROTO_TCP };
        request = request
            .attribute(RTA_IP_PROTO, &[u8::try_from(protocol).unwrap_or(0)])
            .attribute(RTA_DPORT, &port.to_be_bytes());
    }
    match packet {
        Packet::Own { uid: None, .. } => request,
        Packet::Own { uid: Some(uid), .. } => request.attribute(libc::RTA_UID, &uid.to_ne_bytes()),
        Packet::Received { device, .. } => request.attribute(libc::RTA_IIF, &device.to_ne_bytes()),
    }
}

/// How the kernel says that a packet goes nowhere: EXDEV and EINVAL are for sources that it does not expect.
fn is_unroutable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::EXDEV)
    )
}

fn route(body: &[u8]) -> io::Result<Route> {
    let [kind] = array(body, 7).ok_or_else(malformed)?;
    // RTA_OIF is 4, RTA_GATEWAY 5, RTA_PREFSRC 7.
    let [_, _, _, _, device, gateway, _, source] = table(body.get(RTMSG..).ok_or_else(malformed)?)?;
    let device = device.map_or(Some(0), |device| Some(u32::from_ne_bytes(array(device, 0)?))).ok_or_else(malformed)?;
    Ok(Route { kind, device, source: source.and_then(address), gateway: gateway.and_then(address) })
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

    fn to(ip: &str) -> policy::Request {
        policy::Request { destination: (ip.parse::<IpAddr>().unwrap(), 80).into(), transport: Transport::Tcp }
    }

    #[test]
    fn loopback_is_the_hosts_own_and_never_a_tap() {
        let oracle = own();
        for address in ["127.0.0.1", "::1", "127.255.0.9"] {
            assert_eq!(oracle.host(to(address), None), HostRoute::Own);
            assert_eq!(oracle.inside(to(address), 0, 1), InsideRoute::Elsewhere, "local, although its device is 1");
        }
        assert_eq!(oracle.host(to("127.255.255.255"), None), HostRoute::Many);
    }

    #[test]
    fn a_source_is_asked_about_too() {
        let own = own();
        assert_eq!(own.host(to("127.0.0.1"), "127.0.0.2".parse().ok()), HostRoute::Own);
        for source in ["::1", "2001:db8::77"] {
            assert_eq!(own.host(to("::1"), source.parse().ok()), HostRoute::Own);
        }
    }

    #[test]
    fn replies_that_do_not_fit() {
        let question = Question::new(to("192.0.2.1"), Packet::Own { uid: Some(0), source: None }, Rules::default());
        let question = route_request(&question, 7).bytes();
        assert_eq!(question.len(), HEADER + RTMSG + 8 + 8);
        let mut body = question[HEADER..].to_vec();
        for length in 0..body.len() {
            let _ = route(&body[..length]);
        }
        body[RTMSG] = 0;
        assert!(route(&body).is_err(), "an attribute of length 0 does not loop");
        let own = own();
        let route = |wanted| own.ask(|sequence| route_request(&loopback(), sequence), wanted, route);
        assert!(route(libc::RTM_NEWROUTE).is_ok());
        assert!(route(libc::RTM_NEWLINK).is_err(), "an answer of another type");
    }

    fn loopback() -> Question {
        Question::new(to("127.0.0.1"), Packet::Own { uid: None, source: None }, Rules::default())
    }
}
