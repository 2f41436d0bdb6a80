//! `--pcap FILE`: the file is opened by the caller's rights, before anything else exists that could be confused with it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, ensure};

pub fn open(path: &Path) -> anyhow::Result<File> {
    let cannot = || format!("cannot write frames to {}", path.display());
    // A pipe without a reader is an error then, and not waited for.
    let options = OpenOptions::new().write(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK).open(path);
    let mut file = options.with_context(cannot)?;
    ensure!(
        file.metadata()?.is_file(),
        "{} is no regular file: --pcap keeps the newest frames in a ring, which takes one",
        path.display()
    );
    sidestep_forwarder::capture::begin(&mut file).with_context(cannot)?;
    Ok(file)
}
