//! What the kernel says about a network device, and about how one namespace names another (rtnetlink(7)).
//!
//! Asked of the namespace that the socket of a [`route::Oracle`](super::route::Oracle) was made in.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::netlink::{Request, array, malformed, table};
use super::route::Oracle;

/// struct ifinfomsg
const IFINFOMSG: usize = 16;
/// struct rtgenmsg and struct netconfmsg, with their padding.
const GENERAL: usize = 4;
/// Leaves the counters out of an answer.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const NETNSA_FD: u16 = 3;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_IFINDEX_ALL: i32 = -1;
/// enum BR_STATE: what a port does with frames.
const BR_STATE_FORWARDING: u8 = 3;

/// A namespace as another one numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetnsId(i32);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Up, and with a carrier.
    pub is_running: bool,
    pub kind: LinkKind,
    /// Of the bridge, bond or VRF it is a port of.
    pub master: Option<u32>,
    /// As a bridge's port: it takes frames and passes them on.
    pub is_forwarding_port: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// One end of a pair. Index of the other one, and the namespace that is in; None: this one's own.
    Veth {
        peer: u32,
        namespace: Option<NetnsId>,
    },
    /// A bridge that knows no VLANs.
    Bridge,
    Other,
}

impl Oracle {
    pub fn link(&self, index: u32) -> io::Result<Link> {
        let mut ifinfomsg = [0; IFINFOMSG];
        ifinfomsg[4..8].copy_from_slice(&index.to_ne_bytes());
        self.ask(
            |sequence| {
                Request::new(libc::RTM_GETLINK, 0, sequence, &ifinfomsg)
                    .attribute(libc::IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes())
            },
            libc::RTM_NEWLINK,
            link,
        )
    }

    /// What the namespace asked calls the one given. Err: it has no number for it, and so no device that leads there.
    pub fn number_of(&self, netns: BorrowedFd<'_>) -> io::Result<NetnsId> {
        let descriptor = netns.as_raw_fd().to_ne_bytes();
        let number = |body: &[u8]| {
            let [_, number] = table(body.get(GENERAL..).ok_or_else(malformed)?)?;
            let number = i32::from_ne_bytes(array(number.ok_or_else(malformed)?, 0).ok_or_else(malformed)?);
            // NETNSA_NSID_NOT_ASSIGNED is -1.
            if number < 0 { Err(io::ErrorKind::NotFound.into()) } else { Ok(NetnsId(number)) }
        };
        self.ask(
            |sequence| Request::new(libc::RTM_GETNSID, 0, sequence, &[0; GENERAL]).attribute(NETNSA_FD, &descriptor),
            libc::RTM_NEWNSID,
            number,
        )
    }

    /// net.ipv6.conf.all.forwarding, which IPv6's input route does not look at as IPv4's does.
    pub fn forwards_ipv6(&self) -> io::Result<bool> {
        let mut netconfmsg = [0; GENERAL];
        netconfmsg[0] = u8::try_from(libc::AF_INET6).unwrap_or(0);
        let forwarding = |body: &[u8]| {
            let [_, _, forwarding] = table(body.get(GENERAL..).ok_or_else(malformed)?)?;
            Ok(i32::from_ne_bytes(array(forwarding.ok_or_else(malformed)?, 0).ok_or_else(malformed)?) != 0)
        };
        self.ask(
            |sequence| {
                Request::new(libc::RTM_GETNETCONF, 0, sequence, &netconfmsg)
                    .attribute(NETCONFA_IFINDEX, &NETCONFA_IFINDEX_ALL.to_ne_bytes())
            },
            libc::RTM_NEWNETCONF,
            forwarding,
        )
    }
}

fn link(body: &[u8]) -> io::Result<Link> {
    let flags = i32::from_ne_bytes(array(body, 8).ok_or_else(malformed)?);
    let attributes: [_; libc::IFLA_LINK_NETNSID as usize + 1] = table(body.get(IFINFOMSG..).ok_or_else(malformed)?)?;
    let at = |kind: u16| attributes.get(usize::from(kind)).copied().flatten();
    let index = |kind| at(kind).and_then(|value| array(value, 0)).map(u32::from_ne_bytes);
    let [_, kind, data, _, _, port] = table(at(libc::IFLA_LINKINFO).unwrap_or(&[]))?;
    let kind = match kind.and_then(|name| name.split(|&byte| byte == 0).next()) {
        Some(b"veth") => {
            let namespace = at(libc::IFLA_LINK_NETNSID).and_then(|value| array(value, 0));
            let peer = index(libc::IFLA_LINK).ok_or_else(malformed)?;
            LinkKind::Veth { peer, namespace: namespace.map(|number| NetnsId(i32::from_ne_bytes(number))) }
        }
        Some(b"bridge") => {
            // IFLA_BR_VLAN_FILTERING is 7.
            let [_, _, _, _, _, _, _, vlans] = table(data.unwrap_or(&[]))?;
            if vlans == Some(&[0]) { LinkKind::Bridge } else { LinkKind::Other }
        }
        _ => LinkKind::Other,
    };
    // IFLA_BRPORT_STATE is 1.
    let [_, state] = table(port.unwrap_or(&[]))?;
    let running = libc::IFF_UP | libc::IFF_RUNNING;
    Ok(Link {
        is_running: flags & running == running,
        kind,
        master: index(libc::IFLA_MASTER),
        is_forwarding_port: state == Some(&[BR_STATE_FORWARDING]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket;

    #[test]
    fn the_loopback_device_is_no_veth() {
        let netlink = socket::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap();
        let oracle = Oracle::new(netlink).unwrap();
        let lo = oracle.link(1).unwrap();
        assert_eq!((lo.kind, lo.master), (LinkKind::Other, None));
        assert!(oracle.link(0x7fff_ffff).is_err());
        assert!(oracle.forwards_ipv6().is_ok());
    }

    #[test]
    fn answers_cut_short() {
        let attributes = |kind: u16, value: &[u8]| {
            let request = Request::new(0, 0, 0, &[]).attribute(kind, value).bytes();
            request.get(crate::supervisor::netlink::HEADER..).unwrap().to_vec()
        };
        let body = [
            [0; IFINFOMSG].to_vec(),
            attributes(libc::IFLA_LINK, &7_u32.to_ne_bytes()),
            attributes(libc::IFLA_LINKINFO, &attributes(1, b"veth\0")),
            attributes(libc::IFLA_LINK_NETNSID, &3_i32.to_ne_bytes()),
        ]
        .concat();
        let veth = link(&body).unwrap();
        assert_eq!(veth.kind, LinkKind::Veth { peer: 7, namespace: Some(NetnsId(3)) });
        assert!(!veth.is_running && !veth.is_forwarding_port);
        for length in 0..body.len() {
            let _ = link(&body[..length]);
        }
    }
}
