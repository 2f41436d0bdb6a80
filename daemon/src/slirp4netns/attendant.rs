//! What the forwarder cannot do in its sandbox, done by a process outside of it, over the link that the supervisor has
//! under `sidestep run`: it serves the API socket and binds the ports that are asked for there, follows the host's
//! resolv.conf, and has sockets made in the namespace for clients of the host's loopback.
//!
//! It never sees a frame. It ends with the forwarder; without it the forwarder goes on with what it has.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use anyhow::Context;
use nix::unistd::close;
use rustix::process::{PidfdFlags, getpid, getppid, pidfd_open};
use tokio::io::Interest;

use crate::channel::Channel;
use crate::publish::Sharing;
use crate::supervisor::factory::Factory;
use crate::supervisor::inside::Inside;
use crate::supervisor::link::Link;
use crate::supervisor::ports::Ports;
use crate::supervisor::resolvers;
use crate::sys::{fork, readiness};

use super::api_socket;
use super::tap::Namespaces;

/// Forks it, with `link` as its end; it closes what is `not_its_own`. Only in a process with one thread.
pub fn start(
    link: &Channel,
    namespaces: &Namespaces,
    api: Option<&UnixListener>,
    guest: Ipv4Addr,
    not_its_own: &[RawFd],
) -> anyhow::Result<()> {
    let forwarder = getpid();
    fork::fork(|| {
        let attended = || {
            // Not PR_SET_PDEATHSIG: that signal comes from the one who died, whose Landlock domain sends none.
            let life = pidfd_open(forwarder, PidfdFlags::empty())?;
            anyhow::ensure!(getppid() == Some(forwarder), "the forwarder is gone");
            for &descriptor in not_its_own {
                close(descriptor)?;
            }
            attend(link, life, namespaces, api, guest)
        };
        let Err(error) = attended() else { return 0 };
        tracing::warn!("no port forwarding, and no changes of resolv.conf: {error:#}");
        1
    })
    .context("cannot start the attendant")?;
    Ok(())
}

fn attend(
    link: &Channel,
    life: OwnedFd,
    namespaces: &Namespaces,
    api: Option<&UnixListener>,
    guest: Ipv4Addr,
) -> anyhow::Result<()> {
    rustix::thread::set_name(c"attendant")?;
    let factory = Arc::new(Factory::start().context("cannot start the socket factory")?);
    let inside = Inside::new(factory, &namespaces.userns, &namespaces.netns)?;
    let api = api.map(UnixListener::try_clone).transpose()?;
    let link = link.as_fd().try_clone_to_owned()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let link = Link::start(link, Some(inside), None)?;
        tokio::spawn(resolvers::follow(Arc::clone(&link)));
        if let Some(api) = api {
            let api = tokio::net::UnixListener::from_std(api)?;
            tokio::spawn(api_socket::serve(api, Ports::start(link, Sharing::No, None), guest));
        }
        // Readable once the forwarder has ended.
        let life = readiness::register(life, Interest::READABLE)?;
        life.readable().await.map(drop)?;
        Ok(())
    })
}
