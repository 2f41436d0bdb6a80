//! The last step: what made the workspace becomes its init.

use std::convert::Infallible;
use std::env;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::thread::{CapabilitySet, capabilities, configure_capability_in_ambient_set, set_capabilities};

use super::confine::Confined;
use super::workspace::{Order, Report};
use super::{Active, Plan};
use crate::channel::{Channel, Received};
use crate::logging::LogFormat;
use crate::sys::disposition;

/// What a user that is not root has inside: the network is its own. SYS_ADMIN is not among them: it would open the
/// mounts that the caller's system set up.
const AMBIENT: [CapabilitySet; 3] = [CapabilitySet::NET_ADMIN, CapabilitySet::NET_RAW, CapabilitySet::NET_BIND_SERVICE];

impl Confined {
    /// Hands the descriptors to the monitor, waits for its word, and executes `sidestep init`.
    pub fn exec(self, plan: &Plan, channel: &Channel) -> anyhow::Result<Infallible> {
        let active = self.active;
        self.hand_over(channel)?;
        let Received::Message(Order::Exec { state_dir }, _) = channel.receive(None)? else {
            bail!("the monitor is gone");
        };
        if plan.id_maps.needs_ambient() {
            raise_ambient().context("cannot raise ambient capabilities")?;
        }
        disposition::restore_sigpipe()?;
        let path = c"/proc/self/exe";
        let failed = nix::unistd::execve(path, &arguments(plan), &environment(active, &state_dir)?);
        failed.with_context(|| format!("cannot execute {}", path.to_string_lossy()))
    }

    /// The monitor's copies are the only ones from here on.
    fn hand_over(self, channel: &Channel) -> anyhow::Result<()> {
        let networked = self.furnished.networked;
        let report = Report::Made { active: self.active, tap_ifindex: networked.ifindex };
        let namespaces = networked.namespaces;
        let mut fds = vec![networked.tap, namespaces.userns, namespaces.netns];
        fds.extend(self.listener);
        let borrowed: Vec<_> = fds.iter().map(std::os::fd::AsFd::as_fd).collect();
        channel.send(&report, &borrowed)
    }
}

fn arguments(plan: &Plan) -> Vec<CString> {
    let head = [c"sidestep".to_owned(), c"init".to_owned()];
    // A number in hexadecimal has no zero byte.
    let mask = CString::new(format!("--sigmask={:x}", plan.sigmask)).unwrap_or_default();
    let json = (plan.log_format == LogFormat::Json).then(|| c"--json".to_owned());
    head.into_iter().chain(json).chain([mask, c"--".to_owned()]).chain(plan.command.iter().cloned()).collect()
}

fn environment(active: Active, state_dir: &Path) -> anyhow::Result<Vec<CString>> {
    let own = ["SIDESTEP_ACTIVE", "SIDESTEP_STATE_DIR"];
    let mut environment = Vec::new();
    for (name, value) in env::vars_os().filter(|(name, _)| !own.iter().any(|own| name == own)) {
        environment.push(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?);
    }
    environment.push(CString::new(format!("SIDESTEP_ACTIVE={}", active.path()))?);
    environment.push(CString::new([b"SIDESTEP_STATE_DIR=", state_dir.as_os_str().as_bytes()].concat())?);
    Ok(environment)
}

fn raise_ambient() -> rustix::io::Result<()> {
    let mut sets = capabilities(None)?;
    for capability in AMBIENT {
        sets.inheritable |= capability;
    }
    set_capabilities(None, sets)?;
    AMBIENT.into_iter().try_for_each(|capability| configure_capability_in_ambient_set(capability, true))
}
