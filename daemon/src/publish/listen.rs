//! The host's sockets of published ports, and why one cannot be had.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::anyhow;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use sidestep_forwarder::policy::Transport;
use sidestep_forwarder::ports::{Entry, Publication, Published};

use super::{group, owner};

/// Clients that wait for the forwarder; the kernel lowers it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Whether programs of the workspace may come to listen at a port themselves ([`group`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    No,
    /// Under `--bypass`.
    WithPrograms,
}

/// Takes the port. From here on clients of a TCP port can connect, and wait.
pub fn listen(entry: Entry, sharing: Sharing) -> anyhow::Result<Published> {
    let socket = take(&entry.publication, sharing).map_err(|errno| refusal(&entry.publication, errno))?;
    Ok(Published { entry, socket })
}

/// Whether nobody has the port, not even for connections or without listening.
pub fn is_free(publication: &Publication) -> bool {
    let bound = |address| bind(&socket_of(publication, address)?, &address);
    !matches!(in_a_family(publication, publication.host_addr(), bound), Err(Errno::ADDRINUSE))
}

fn take(publication: &Publication, sharing: Sharing) -> Result<OwnedFd, Errno> {
    let address = match sharing {
        Sharing::WithPrograms if publication.transport == Transport::Tcp => group::address(publication),
        _ => publication.host_addr(),
    };
    in_a_family(publication, address, |address| open(publication, address, sharing))
}

fn in_a_family<T>(
    publication: &Publication,
    address: SocketAddr,
    open: impl Fn(SocketAddr) -> Result<T, Errno>,
) -> Result<T, Errno> {
    match open(address) {
        // A host without IPv6 has one family to listen at.
        Err(Errno::AFNOSUPPORT) if publication.host.is_none_or(|host| host.is_ipv4()) => {
            let host = publication.host.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
            open(SocketAddr::new(host, publication.host_port))
        }
        opened => opened,
    }
}

fn open(publication: &Publication, address: SocketAddr, sharing: Sharing) -> Result<OwnedFd, Errno> {
    let socket = socket_of(publication, address)?;
    let kind = kind_of(publication);
    if kind == SocketType::STREAM {
        // Connections of an earlier workspace in TIME-WAIT are no reason to wait. (With UDP it would share the port.)
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    if kind == SocketType::STREAM {
        if sharing == Sharing::WithPrograms {
            group::found(&socket)?;
        }
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// Not bound yet.
fn socket_of(publication: &Publication, address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind_of(publication), flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, publication.host.is_some_and(|host| host.is_ipv6()))?;
    }
    Ok(socket)
}

fn kind_of(publication: &Publication) -> SocketType {
    if publication.transport == Transport::Udp { SocketType::DGRAM } else { SocketType::STREAM }
}

/// One sentence with the cause and the fix.
fn refusal(publication: &Publication, errno: Errno) -> anyhow::Error {
    let port = publication.host_port;
    let place = match publication.host {
        Some(host) => format!("port {port} on {host}"),
        None => format!("port {port}"),
    };
    match errno {
        Errno::ADDRINUSE => match owner::of(publication.transport, port) {
            Some(owner) if owner.pid == std::process::id() => anyhow!("{place} is published twice"),
            Some(owner) => anyhow!("{place} is taken by {} (process {}): choose another", owner.name, owner.pid),
            None => anyhow!("{place} is taken by another program: choose another"),
        },
        Errno::ACCESS => anyhow!(
            "{place} needs a privilege: choose one from {} on or, as root, sysctl -w \
             net.ipv4.ip_unprivileged_port_start={port} or setcap cap_net_bind_service=ep on sidestep's file",
            first_unprivileged_port(),
        ),
        Errno::ADDRNOTAVAIL => anyhow!("{place}: this host has no such address; leave it out for all addresses"),
        errno => anyhow::Error::from(errno).context(format!("cannot listen at {place}")),
    }
}

fn first_unprivileged_port() -> String {
    let start = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    start.map_or("1024".to_owned(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use sidestep_forwarder::ports::Origin;

    use super::*;

    fn entry(transport: Transport, host: Option<&str>, host_port: u16) -> Entry {
        let host = host.map(|host| host.parse::<IpAddr>().unwrap());
        let publication = Publication { transport, host, host_port, guest: None, guest_port: 80 };
        Entry { number: 1, origin: Origin::Start, publication }
    }

    #[test]
    fn a_port_is_free_when_nobody_has_it() {
        let publication = |host, port| entry(Transport::Tcp, host, port).publication;
        let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let accepted = listener.accept().unwrap().0;
        let is_free = || [None, Some("0.0.0.0")].map(|host| is_free(&publication(host, port)));
        assert_eq!(is_free(), [false; 2]);
        // Bound, and no more than that.
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        assert_eq!(is_free(), [false; 2]);
        drop(listener);
        assert_eq!(is_free(), [false; 2]);
        // A reset leaves nothing behind.
        sockopt::set_socket_linger(&accepted, Some(std::time::Duration::ZERO)).unwrap();
        drop((accepted, client));
        assert_eq!(is_free(), [true; 2]);
    }

    #[test]
    fn a_taken_port_says_by_whom() {
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        for host in [None, Some("127.0.0.1"), Some("0.0.0.0")] {
            for sharing in [Sharing::No, Sharing::WithPrograms] {
                let error = listen(entry(Transport::Tcp, host, port), sharing).unwrap_err().to_string();
                // The owner is this very test, which published nothing before.
                assert!(error.ends_with("is published twice"), "{error}");
            }
        }
        let udp = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = udp.local_addr().unwrap().port();
        assert!(listen(entry(Transport::Udp, Some("127.0.0.1"), port), Sharing::No).is_err());
        let error = listen(entry(Transport::Tcp, Some("198.51.100.77"), 8080), Sharing::No).unwrap_err().to_string();
        assert!(error.contains("no such address"), "{error}");
    }
}
