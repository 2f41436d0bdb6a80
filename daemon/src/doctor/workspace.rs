//! A workspace that runs no command: the launcher's steps, each said as it is tried, and none left out because one
//! before it failed, as long as it can be tried without.
//!
//! child → us: a [`Finding`] a step, the one about the listener with the listener; its last is that about Landlock.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, bail};
use sidestep_forwarder::network::{Ipv4Subnet, VirtualNetwork};
use sidestep_forwarder::tap::{NO_SEGMENTATION, Tap};
use sidestep_seccomp_profile::{filter, load};

use super::{Check, Finding, PATIENCE, Status, call};
use crate::channel::{Channel, Received};
use crate::launcher::confine;
use crate::launcher::id_map::IdMaps;
use crate::launcher::namespaces::{self, Namespaces, ProcRefused};
use crate::launcher::needs::{self, Missing, UsernsSysctls};
use crate::launcher::resolv_conf::{self, ResolvConf};
use crate::launcher::{Workspace, files, host, tap};
use crate::sys::landlock::{self, ABI_NETWORK, ABI_SIGNAL_SCOPE};
use crate::sys::listener::Listener;

/// What is decided before the clone, as for a real workspace.
struct Trial {
    network: VirtualNetwork,
    resolv_conf: ResolvConf,
    program: filter::Program,
    landlock_abi: u32,
}

/// Tries the launcher's steps and the supervisor's.
pub fn tried() -> anyhow::Result<Vec<Finding>> {
    let trial = Trial {
        network: VirtualNetwork::new(Ipv4Subnet::DEFAULT, None, host::default_mtu()),
        resolv_conf: ResolvConf::parse(&fs::read_to_string(resolv_conf::PATH).unwrap_or_default()),
        program: filter::build().context("cannot build the seccomp filter")?,
        landlock_abi: landlock::abi(),
    };
    let workspace = match Workspace::cloned(true, |channel| trial.steps(channel)) {
        Ok(workspace) => workspace,
        Err(error) => return Ok(vec![Finding::fail(Check::UserNamespace, needs::inside(&error))]),
    };
    let switches = UsernsSysctls::read().list();
    let made = if switches.is_empty() { "made".to_owned() } else { format!("made ({switches})") };
    let mut findings = vec![Finding::ok(Check::UserNamespace, made)];
    let maps = IdMaps::plan(false)?;
    match workspace.map_ids(&maps) {
        Ok(missing) => findings.push(ids(missing, &maps)),
        Err(error) => {
            findings.push(Finding::fail(Check::Ids, needs::inside(&error)));
            return Ok(findings);
        }
    }
    follow(workspace.channel(), &mut findings)?;
    Ok(findings)
}

fn ids(missing: Option<Missing>, maps: &IdMaps) -> Finding {
    match missing.map_or_else(|| maps.users(), Err) {
        Ok(1) => Finding::ok(Check::Ids, "one user, which is all there is here"),
        Ok(users) => Finding::ok(Check::Ids, format!("{users} users inside")),
        Err(missing) => Finding::warn(Check::Ids, missing),
    }
}

/// Takes what the child says until it has said the last, or ends because it cannot go on.
fn follow(channel: &Channel, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    loop {
        match channel.receive::<Finding>(Some(PATIENCE))? {
            Received::Message(finding, fds) => {
                let last = finding.check == Check::Landlock;
                findings.push(finding);
                if let Some(listener) = fds.into_iter().next() {
                    call::answered(&Listener::new(listener), PATIENCE, findings)?;
                }
                if last {
                    return Ok(());
                }
            }
            Received::Closed if findings.iter().any(|finding| finding.status == Status::Fail) => return Ok(()),
            Received::Closed => bail!("the trial's process ended before it was through"),
            Received::Timeout => bail!("the trial's process is stuck"),
        }
    }
}

impl Trial {
    /// In the child, which does not go further.
    fn steps(&self, channel: &Channel) {
        // Who started it is gone, if that cannot be said any more.
        drop(self.say_steps(channel));
    }

    fn say_steps(&self, channel: &Channel) -> anyhow::Result<()> {
        let say = |finding: Finding| channel.send(&finding, &[]);
        let namespaces = match Namespaces::entered(channel, false) {
            Ok(namespaces) => namespaces,
            Err(error) => return say(Finding::fail(Check::NetworkNamespace, needs::inside(&error))),
        };
        say(Finding::ok(Check::NetworkNamespace, "made"))?;
        say(pid_namespace())?;
        let networked = tap::bring_up(namespaces, &self.network, "tap0");
        say(tun(networked.as_ref().map(|networked| &networked.tap)))?;
        say(self.resolv_conf())?;
        let loaded = load::load(&self.program);
        match &loaded {
            Ok(listener) => {
                let finding = Finding::ok(Check::Listener, "the filter stands, and no other has a listener");
                channel.send(&finding, &[listener.as_fd()])?;
            }
            Err(error) => say(Finding::fail(Check::Listener, needs::filter_refused(error)))?,
        }
        let stopped = loaded.is_ok();
        // Whoever answers has the listener now.
        drop(loaded);
        say(self.landlock(stopped))
    }

    fn resolv_conf(&self) -> Finding {
        let ResolvConf { resolvers, .. } = &self.resolv_conf;
        match files::cover_resolv_conf(&self.resolv_conf.for_workspace(&self.network)) {
            Ok(()) => {
                let resolvers: Vec<_> = resolvers.iter().map(|resolver| resolver.ip().to_string()).collect();
                Finding::ok(Check::ResolvConf, format!("the host's resolvers: {}", resolvers.join(", ")))
            }
            Err(error) if error.is::<Missing>() => Finding::warn(Check::ResolvConf, needs::inside(&error)),
            Err(error) => Finding::fail(Check::ResolvConf, needs::inside(&error)),
        }
    }

    /// Enters the domain. Where the filter is ours two connects are stopped: [`call`] answers the first, and the second
    /// goes on to the kernel, for Landlock to deny.
    fn landlock(&self, stopped: bool) -> Finding {
        let abi = self.landlock_abi;
        let strict = abi >= ABI_NETWORK;
        let entered = confine::restrict(abi, strict);
        let results = stopped.then(|| [connect(), connect()]);
        match (strict, entered, results) {
            (false, ..) => Finding::fail(Check::Landlock, needs::no_landlock_network(abi)),
            (_, Err(error), _) => Finding::fail(Check::Landlock, needs::inside(&error)),
            (_, _, Some([_, result])) if !is_denied(&result) => {
                let got = result.map_or_else(|error| error.to_string(), |()| "connected".to_owned());
                Finding::fail(Check::Landlock, needs::landlock_without_force(&got))
            }
            _ if abi >= ABI_SIGNAL_SCOPE => {
                Finding::ok(Check::Landlock, format!("version {abi}: no TCP but the supervisor's, signals stay inside"))
            }
            _ => Finding::ok(
                Check::Landlock,
                format!("version {abi}: no TCP but the supervisor's; signals stay inside by the pid namespace alone"),
            ),
        }
    }
}

fn pid_namespace() -> Finding {
    match namespaces::mount_proc() {
        Ok(()) => Finding::ok(Check::PidNamespace, "made, with a /proc of its own"),
        Err(error) if error.is::<ProcRefused>() => Finding::warn(Check::PidNamespace, needs::masked_proc()),
        Err(error) => Finding::fail(Check::PidNamespace, needs::inside(&error)),
    }
}

fn tun(tap: Result<&OwnedFd, &anyhow::Error>) -> Finding {
    let tap = tap.map_err(needs::inside).and_then(|tap| {
        let again = tap.try_clone().and_then(Tap::adopt);
        again.map_err(|error| needs::tap_refused(&error))
    });
    match tap {
        Ok(tap) if tap.cuts_datagrams() => Finding::ok(Check::Tun, "a TAP with segmentation offload for TCP and UDP"),
        Ok(tap) if tap.cuts_segments() => {
            Finding::ok(Check::Tun, "a TAP with segmentation offload for TCP (Linux 6.2 has it for UDP)")
        }
        Ok(_) => Finding::warn(Check::Tun, needs::no_segmentation(NO_SEGMENTATION)),
        Err(missing) => Finding::fail(Check::Tun, missing),
    }
}

/// To a port of the trial's own loopback where nobody listens.
fn connect() -> io::Result<()> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, 1)).map(drop)
}

fn is_denied(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EACCES))
}
