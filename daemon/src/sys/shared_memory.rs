//! A memfd mapped as shared words.
//!
//! Only atomics are handed out: whatever a dead process left in the memory, every value of it is a valid one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use anyhow::Context;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Memory that outlives the workers which map it.
pub fn create(name: &str, size: usize) -> anyhow::Result<OwnedFd> {
    let memory = memfd_create(name, MemfdFlags::CLOEXEC).with_context(|| format!("cannot make the memory {name}"))?;
    ftruncate(&memory, u64::try_from(size)?).with_context(|| format!("cannot make the memory {name}"))?;
    Ok(memory)
}

/// Maps `words` words of `memory`, for as long as the process lives.
pub fn map_words(memory: impl AsFd, words: usize) -> io::Result<&'static [AtomicU64]> {
    let length = words * size_of::<u64>();
    if rustix::fs::fstat(&memory)?.st_size < i64::try_from(length).map_err(io::Error::other)? {
        return Err(io::Error::other("the ledger's memory is shorter than the ledger"));
    }
    // SAFETY: a new mapping at an address of the kernel's choice; it aliases nothing in this process.
    let start =
        unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, memory, 0) }?;
    // SAFETY: `start` is page aligned, `length` bytes long and never unmapped; any bit pattern is a valid AtomicU64, and
    // shared memory is only ever accessed through atomics or by the kernel.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), words) })
}
