//! Notification to call: numbers become descriptors, pointers become copies.

use sidestep_seccomp_profile::syscalls::Stopped;

use super::notification::Notification;
use super::sockaddr::{Meaning, RawAddress};
use super::tracee::{TraceeError, TraceeFd, read_address};

/// One stopped call with everything the tracee said, copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Connect(RawAddress),
    Bind(RawAddress),
    Listen { backlog: i32 },
}

impl Call {
    pub fn decode(notification: &Notification) -> Result<Self, TraceeError> {
        let address = || read_address(notification.tid, notification.arguments[1], notification.int_argument(2));
        match notification.call {
            Some(Stopped::Connect) => Ok(Self::Connect(address()?)),
            Some(Stopped::Bind) => Ok(Self::Bind(address()?)),
            Some(Stopped::Listen) => Ok(Self::Listen { backlog: notification.int_argument(1) }),
            _ => Err(TraceeError::Errno(libc::ENOSYS)),
        }
    }

    /// A connect that names a destination, rather than AF_UNSPEC.
    pub fn is_connect_to_address(&self) -> bool {
        matches!(self, Self::Connect(address) if address.meaning() != Meaning::Unspecified)
    }
}

/// Every call that is decoded names its socket first.
pub fn socket_number(notification: &Notification) -> TraceeFd {
    TraceeFd(notification.int_argument(0))
}
