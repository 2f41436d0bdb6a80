//! Files the workspace sees differently: /etc/resolv.conf is one of its own, writable, bind-mounted over the path that
//! the name leads to. It lives in a tmpfs that nothing else refers to, so that nothing is left behind.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use super::needs::{self, Missing};
use super::resolv_conf;
use super::tap::Networked;

pub struct Furnished {
    pub networked: Networked,
}

pub fn provide(networked: Networked, text: &str) -> anyhow::Result<Furnished> {
    match cover_resolv_conf(text) {
        Err(error) if error.is::<Missing>() => tracing::warn!("{error}"),
        other => other?,
    }
    Ok(Furnished { networked })
}

/// Where there is no resolv.conf the error is what is [`Missing`].
pub fn cover_resolv_conf(text: &str) -> anyhow::Result<()> {
    let found = fs::canonicalize(resolv_conf::PATH);
    let path = found.map_err(|error| needs::no_resolv_conf(resolv_conf::PATH, &error))?;
    bind_text(&path, text).with_context(|| format!("cannot put a file over {}", path.display()))
}

/// Puts a file with this text over `path`, through a tmpfs mounted for a moment over the directory it is in: only a
/// mounted tree can be cloned before Linux 6.15. Nobody else is in this mount namespace yet.
fn bind_text(path: &Path, text: &str) -> anyhow::Result<()> {
    let directory = path.parent().context("not a file")?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "mode", "0755")?;
    fsconfig_create(&context)?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let tmpfs = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(&tmpfs, "resolv.conf", create, Mode::from_raw_mode(0o644))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
    File::from(file).write_all(text.as_bytes())?;

    move_mount(&tmpfs, "", CWD, directory, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let tree = open_tree(&tmpfs, "resolv.conf", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    unmount(directory, UnmountFlags::DETACH)?;
    move_mount(&tree?, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}
