//! What the workspace may not do: Landlock, and the filter that hands its network calls to the supervisor, or one that
//! only keeps it from typing into its caller's terminal. All without no_new_privs (the launcher has CAP_SYS_ADMIN in the
//! workspace's user namespace), so that sudo works inside.
//!
//! The filter comes first: where another filter already has a listener, `--bypass=auto` goes on over the TAP, and
//! Landlock's network rules must not stand then, for nobody would make the denied calls in the workspace's place.

use std::os::fd::OwnedFd;

use anyhow::{Context, bail, ensure};
use landlock::{AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope};
use sidestep_seccomp_profile::{filter, load};

use super::files::Furnished;
use super::{Active, Bypass, needs};
use crate::sys::landlock::{ABI_NETWORK, ABI_SIGNAL_SCOPE, abi};

/// Whether a program may put bytes into its terminal's input, as if they had been typed.
const LEGACY_TIOCSTI: &str = "/proc/sys/dev/tty/legacy_tiocsti";

/// What is to be put on, decided and built before the clone.
pub struct Confinement {
    pub landlock_abi: u32,
    bypass: Option<BypassFilter>,
    /// None: this kernel lets nobody type into a terminal.
    typing: Option<filter::Program>,
}

struct BypassFilter {
    program: filter::Program,
    /// With Landlock's network rules.
    strict: bool,
    /// Failing to load it is an error, not a warning.
    required: bool,
}

/// A workspace that is ready but for its command.
pub struct Confined {
    pub furnished: Furnished,
    pub listener: Option<OwnedFd>,
    pub active: Active,
}

impl BypassFilter {
    /// None: only the TAP.
    fn choose(bypass: Bypass, landlock_abi: u32) -> anyhow::Result<Option<Self>> {
        let (strict, required) = match bypass {
            Bypass::Off => return Ok(None),
            Bypass::Unconfined => (false, false),
            Bypass::Auto => (true, false),
            Bypass::Require => (true, true),
        };
        let missing = if strict && landlock_abi < ABI_NETWORK {
            Some(needs::no_landlock_network(landlock_abi))
        } else {
            // In strict mode calls that nobody can answer would leave the workspace without any TCP.
            needs::supervisor_hindered()
        };
        match missing {
            None => {
                let program = filter::build().context("cannot build the seccomp filter")?;
                Ok(Some(Self { program, strict, required }))
            }
            Some(missing) if required => bail!("--bypass=require: {missing}"),
            Some(missing) => {
                tracing::warn!("no bypass, only the TAP: {missing}");
                Ok(None)
            }
        }
    }
}

impl Confinement {
    pub fn choose(bypass: Bypass) -> anyhow::Result<Self> {
        let landlock_abi = abi();
        // Not there before Linux 6.2, where everybody may.
        let is_let = std::fs::read_to_string(LEGACY_TIOCSTI).map_or(true, |text| text.trim() != "0");
        let typing = is_let.then(filter::build_typing).transpose().context("cannot build the seccomp filter")?;
        Ok(Self { landlock_abi, bypass: BypassFilter::choose(bypass, landlock_abi)?, typing })
    }

    /// In the workspace's first process, which has one thread.
    pub fn confine(&self, furnished: Furnished) -> anyhow::Result<Confined> {
        let (active, listener) = match &self.bypass {
            None => (Active::Off, None),
            Some(bypass) => match (load::load(&bypass.program), bypass.strict) {
                (Ok(listener), true) => (Active::Strict, Some(listener)),
                (Ok(listener), false) => (Active::Unconfined, Some(listener)),
                (Err(error), _) if bypass.required => bail!("--bypass=require: {}", needs::filter_refused(&error)),
                (Err(error), _) => {
                    tracing::warn!("no bypass, only the TAP: {}", needs::filter_refused(&error));
                    (Active::Off, None)
                }
            },
        };
        if let (Active::Off, Some(typing)) = (active, &self.typing)
            && let Err(error) = load::load_unmitigated(typing)
        {
            tracing::warn!("the workspace can type into your terminal: {}", needs::filter_refused(&error));
        }
        restrict(self.landlock_abi, active == Active::Strict)?;
        Ok(Confined { furnished, listener, active })
    }
}

/// Enters a Landlock domain: signals stay inside, and in strict mode no TCP bind or connect of its own.
pub fn restrict(abi: u32, network: bool) -> anyhow::Result<()> {
    let signals = abi >= ABI_SIGNAL_SCOPE;
    if !network && !signals {
        return Ok(());
    }
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    if network {
        ruleset = ruleset.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?;
    }
    if signals {
        ruleset = ruleset.scope(Scope::Signal)?;
    }
    let entered = ruleset.create()?.no_new_privs(false).restrict_self();
    let status = entered.map_err(|error| needs::landlock_refused(&error))?;
    ensure!(status.ruleset == RulesetStatus::FullyEnforced, "the kernel enforces Landlock's rules only in part");
    Ok(())
}
