//! Servers of the harness: std sockets made inside a namespace of the lab, served by threads outside it.
//!
//! A server's socket listens before its constructor returns, so nobody has to wait for one. Its threads end with the
//! process: they block in accept or read, and hold nothing else.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
pub use sidestep_bench::lab::iperf3;

use super::command::DEADLINE;
use super::netns::Netns;
use super::poll;

/// A TCP server that counts what it accepted.
pub struct TcpServer {
    pub addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl TcpServer {
    /// Serves each connection with `serve`, on a thread of its own; port 0 for any.
    pub fn start<S>(netns: &Netns, addr: (IpAddr, u16), serve: S) -> Result<Self>
    where
        S: Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    {
        let listener =
            netns.within(|| TcpListener::bind(addr)).with_context(|| format!("listen at {}:{}", addr.0, addr.1))?;
        let addr = listener.local_addr()?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let Ok(stream) = stream else { continue };
                let serve = serve.clone();
                // A client that goes away ends its connection and nothing else.
                thread::spawn(move || drop(serve(stream)));
            }
        });
        Ok(Self { addr, accepted })
    }

    /// Sends back what comes in, until the client's end of stream.
    pub fn echo(netns: &Netns, addr: IpAddr) -> Result<Self> {
        Self::start(netns, (addr, 0), |mut stream| {
            let mut buffer = [0; 65536];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    n => stream.write_all(&buffer[..n])?,
                }
            }
        })
    }

    /// Writes the address it sees the client at and closes.
    pub fn whoami(netns: &Netns, addr: IpAddr) -> Result<Self> {
        Self::start(netns, (addr, 0), |mut stream| {
            let peer = stream.peer_addr()?;
            stream.write_all(format!("{}\n", peer.ip()).as_bytes())
        })
    }

    /// HTTP/1.1, one request a connection: any GET is answered with `hello`, `/big` with a million bytes.
    pub fn http(netns: &Netns, addr: IpAddr) -> Result<Self> {
        Self::start(netns, (addr, 0), serve_http)
    }

    /// How many connections it has accepted until now: a client may be connected a little before that.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Waits until it has accepted so many; fails where there are more.
    pub fn has_accepted(&self, wanted: usize) -> Result<()> {
        let enough = || Ok((self.accepted() >= wanted).then_some(()));
        poll("as many connections as wanted", DEADLINE, enough)
            .with_context(|| format!("{} accepted of {wanted}", self.accepted()))?;
        ensure!(self.accepted() == wanted, "{} connections accepted instead of {wanted}", self.accepted());
        Ok(())
    }
}

pub const BIG: usize = 1_000_000;

fn serve_http(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&chunk[..n]),
        }
    }
    let body = if request.starts_with(b"GET /big ") { vec![b'x'; BIG] } else { b"hello\n".to_vec() };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}

/// A UDP server that answers every datagram with itself, from where it was sent to.
pub fn udp_echo(netns: &Netns, addr: IpAddr) -> Result<SocketAddr> {
    let socket = netns.within(|| UdpSocket::bind((addr, 0)))?;
    let addr = socket.local_addr()?;
    thread::spawn(move || {
        let mut buffer = [0; 65536];
        loop {
            // ICMP errors of earlier answers surface here; they concern one client, not the server.
            let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
            if socket.send_to(&buffer[..length], peer).is_err() {
                continue;
            }
        }
    });
    Ok(addr)
}

/// A listener whose queue is full: the handshake of a further client is never answered.
pub struct FullListener {
    pub addr: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl FullListener {
    pub fn start(netns: &Netns, addr: IpAddr) -> Result<Self> {
        netns.within(|| {
            let listener = TcpListener::bind((addr, 0))?;
            // listen(2) again with the smallest queue there is: one.
            nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0)?)?;
            let local = listener.local_addr()?;
            let mut queued = vec![TcpStream::connect(local)?];
            while let Ok(stream) = TcpStream::connect_timeout(&local, Duration::from_millis(300)) {
                queued.push(stream);
            }
            Ok(Self { addr: local, _listener: listener, _queued: queued })
        })
    }
}

/// A port of `addr` where nobody listens.
pub fn closed_port(netns: &Netns, addr: IpAddr) -> Result<SocketAddr> {
    // Bound and let go: the kernel hands out ephemeral ports at random from fifty thousand. It never listens: a child that
    // another test is about to start may have a copy for longer than we do.
    let bound = netns.within(|| -> rustix::io::Result<_> {
        let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddr::new(addr, 0))?;
        rustix::net::getsockname(&socket)
    })?;
    Ok(SocketAddr::try_from(bound)?)
}
