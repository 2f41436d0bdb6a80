//! Landlock's version number; the rulesets themselves are made by the `landlock` crate.

/// Landlock's ABI with rules for TCP bind and connect (Linux 6.7).
pub const ABI_NETWORK: u32 = 4;
/// Landlock's ABI with scoped signals (Linux 6.12).
pub const ABI_SIGNAL_SCOPE: u32 = 6;

/// The kernel's Landlock ABI, 0 where it has none (not built in, or not among the enabled LSMs).
pub fn abi() -> u32 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: a null attribute of size 0 with LANDLOCK_CREATE_RULESET_VERSION only asks for the version.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0, VERSION) };
    u32::try_from(version).unwrap_or(0)
}
