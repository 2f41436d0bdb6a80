//! What the forwarder gives up once it is set up and before it reads a frame. Whoever takes it over by a frame or a
//! host's answer finds
//!
//! 1. no file system ([`leave_files`]): a user and a mount namespace of its own, an empty read-only root;
//! 2. no capability, and none to be had ([`drop_privileges`]): every set empty, no_new_privs; no core dump, and not
//!    dumpable, so that no other process of the same user may trace it or read its memory;
//! 3. Landlock behind that ([`enter_landlock`]): no access to any file, no signal and no abstract Unix socket outside
//!    itself;
//! 4. the calls of an allow-list and no others ([`filter_calls`], `seccomp_profile::forwarder`).
//!
//! What it keeps are its descriptors and the host's network namespace: TCP, UDP and ping to wherever the host reaches,
//! for that is its task. The egress policy is its own code's; the sandbox does not know it.
//!
//! There is no capability for ports below 1024 either: it would be one of the namespace of step 1, which has no say over
//! the host's network. Whoever starts the forwarder binds such a port and sends the listening socket.
//!
//! Ping sockets and ports go by the ids and the namespace that the kernel has for this process, which a user namespace
//! without an id map leaves as they are.

use std::io;

use anyhow::Context as _;
use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, RulesetStatus, Scope,
};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsmount, fsopen,
    move_mount, unmount,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getpid, pivot_root, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use sidestep_seccomp_profile::{forwarder, load};

/// Landlock's latest version this was written for. An older kernel enforces what it has of it.
const LANDLOCK: ABI = ABI::V6;

/// All of it, for good. The process must have one thread and everything it will ever open.
pub fn enter() -> anyhow::Result<()> {
    enter_keeping(CapabilitySet::empty())
}

/// The same with capabilities that whoever started it looks for. They are those of step 1's namespace: good for nothing.
pub fn enter_keeping(kept: CapabilitySet) -> anyhow::Result<()> {
    leave_files().context(
        "cannot give the forwarder a user and mount namespace of its own, which its sandbox is made of; in a container \
         its seccomp profile must allow unshare, mount and pivot_root (docker run --security-opt seccomp=unconfined)",
    )?;
    drop_privileges_but(kept).context("cannot drop the forwarder's capabilities")?;
    enter_landlock().context(
        "cannot enter a Landlock domain for the forwarder (the kernel takes 16 inside one another): run it further out",
    )?;
    filter_calls().context("cannot load the forwarder's seccomp filter")
}

/// Exchanges the root for an empty one, in namespaces of its own; the old one is unmounted, not hidden.
pub fn leave_files() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let empty = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(&empty, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(&empty)?;
    // The old root lands on top of the new one (pivot_root(2), NOTES), and goes with everything mounted below it.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(())
}

/// Empties every capability set and closes the ways by which they fill again or this process is looked into.
pub fn drop_privileges() -> io::Result<()> {
    drop_privileges_but(CapabilitySet::empty())
}

fn drop_privileges_but(kept: CapabilitySet) -> io::Result<()> {
    for number in (0..u64::BITS).filter(|number| kept.bits() & 1 << number == 0) {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The kernel has no more of them.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })?;
    rustix::thread::set_no_new_privs(true)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Enters a domain that may touch no file and nobody outside. A kernel without Landlock, or with less of it, goes on
/// without: it stands behind an empty root and a filter that refuse the same.
pub fn enter_landlock() -> anyhow::Result<()> {
    let domain = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    if domain.ruleset != RulesetStatus::FullyEnforced {
        tracing::debug!("this kernel's Landlock is older than 6.12's: {:?} in the forwarder", domain.ruleset);
    }
    Ok(())
}

/// Loads the allow-list; the last step, as it allows none of the others.
pub fn filter_calls() -> anyhow::Result<()> {
    let program = forwarder::build(getpid().as_raw_nonzero().get())?;
    // The kernel wants it of whoever has no capability.
    rustix::thread::set_no_new_privs(true)?;
    load::load_unmitigated(&program)?;
    Ok(())
}
