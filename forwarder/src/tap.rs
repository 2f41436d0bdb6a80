//! The TAP device: opened or adopted, switched to a 12-byte virtio-net header and every offload the kernel has, then
//! read and written one whole frame a call.
//!
//! With offloads the workspace's kernel hands over TCP segments of up to 64 KB with partial checksums and takes the
//! same from us, whatever its MTU: that is where the speed comes from. A device attached without IFF_VNET_HDR is
//! refused; kernels that know fewer offloads give fewer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::capture::{Capture, Direction};
use crate::sys::tun;
use crate::wire::VNET_LEN;

/// Attach flags; from linux/if_tun.h.
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

/// What to ask for, best first: USO needs Linux 6.2.
const OFFLOADS: [u32; 4] = [
    tun::TUN_F_CSUM | tun::TUN_F_TSO4 | tun::TUN_F_TSO6 | tun::TUN_F_TSO_ECN | tun::TUN_F_USO4 | tun::TUN_F_USO6,
    tun::TUN_F_CSUM | tun::TUN_F_TSO4 | tun::TUN_F_TSO6 | tun::TUN_F_TSO_ECN,
    tun::TUN_F_CSUM,
    0,
];

/// What is said where the kernel takes none that cuts TCP.
pub const NO_SEGMENTATION: &str = "the kernel refuses segmentation offload on the TAP: it will be slow";

/// An attached TAP, nonblocking, with virtio-net headers.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    capture: Option<Box<Capture>>,
    /// TUN_F_*, those that the kernel took.
    offloads: u32,
}

/// What became of a frame given to [`Tap::write`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Sent,
    /// The device takes nothing now: wait for EPOLLOUT.
    Full,
    /// The device is down or refused this frame: it is gone.
    Dropped,
}

/// Creates the interface `ifname` in the caller's network namespace, or attaches to it, and sets it up. It lives until the
/// last descriptor is closed.
pub fn open(ifname: &str) -> io::Result<Tap> {
    let fd = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    tun::attach(fd.as_fd(), ifname, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)?;
    Tap::adopt(fd)
}

impl Tap {
    /// Takes over a descriptor attached with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR and sets it up as the forwarder needs
    /// it. Doing so again, after another process has, is harmless.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let flags = tun::attached_flags(fd.as_fd())?;
        let wanted = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the TAP is attached with flags {flags:#x}, not IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"),
            ));
        }
        tun::set_vnet_header_size(fd.as_fd(), i32::from(VNET_LEN))?;
        let accepted = OFFLOADS.into_iter().find(|&offloads| tun::set_offload(fd.as_fd(), offloads).is_ok());
        let tap = Self { fd, capture: None, offloads: accepted.unwrap_or(0) };
        if !tap.cuts_segments() {
            tracing::warn!("{NO_SEGMENTATION}");
        }
        let status = rustix::fs::fcntl_getfl(&tap.fd)?;
        rustix::fs::fcntl_setfl(&tap.fd, status | OFlags::NONBLOCK)?;
        Ok(tap)
    }

    /// A descriptor that is set up already, whose reads and writes are frames.
    pub(crate) fn ready(fd: OwnedFd) -> Self {
        Self { fd, capture: None, offloads: OFFLOADS[0] }
    }

    /// From now on every frame is captured, too.
    pub fn capture(&mut self, capture: Capture) {
        self.capture = Some(Box::new(capture));
    }

    /// Frames may hold several UDP datagrams (USO): a kernel that can send them here can also take them.
    pub fn cuts_datagrams(&self) -> bool {
        self.offloads & tun::TUN_F_USO4 != 0
    }

    /// Frames may hold several TCP segments (TSO).
    pub fn cuts_segments(&self) -> bool {
        self.offloads & tun::TUN_F_TSO4 != 0
    }

    /// Reads one frame with its virtio-net header; None when there is none.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match retry_on_intr(|| rustix::io::read(&self.fd, &mut *buffer)) {
            Ok(len) => {
                if self.capture.is_some() {
                    self.captured(Direction::FromTap, buffer.get(..len).unwrap_or_default());
                }
                Ok(Some(len))
            }
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes one frame with its virtio-net header.
    pub fn write(&mut self, frame: &[u8]) -> Written {
        match rustix::io::write(&self.fd, frame) {
            Ok(_) => {
                if self.capture.is_some() {
                    self.captured(Direction::ToTap, frame);
                }
                Written::Sent
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => Written::Full,
            Err(_) => Written::Dropped,
        }
    }

    #[cold]
    fn captured(&mut self, direction: Direction, frame: &[u8]) {
        let Some(capture) = &mut self.capture else { return };
        if let Err(error) = capture.frame(direction, frame) {
            tracing::warn!("--pcap ends here, the file cannot be written: {error}");
            self.capture = None;
        }
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
