//! What a test is: a function of a fresh [`Workspace`], run once for each way in which sidestep is to be run.

use std::fmt::Write as _;

use anyhow::Result;
use libtest_mimic::{Failed, Trial};

use crate::lab::effort;
use crate::lab::workspace::{Caller, Path, Way, Workspace};

/// A test function and the ways it is run.
pub struct Case {
    pub name: &'static str,
    pub ways: &'static [Way],
    pub test: fn(Workspace) -> Result<()>,
}

const fn way(path: Path, caller: Caller) -> Way {
    Way { path, caller }
}

pub const EVERY_WAY: &[Way] = &[
    way(Path::Tap, Caller::User),
    way(Path::Bypass, Caller::User),
    way(Path::Tap, Caller::Root),
    way(Path::Bypass, Caller::Root),
];
/// Every way, and on the host without sidestep: such a case describes Linux, and shows that the lab is sound.
pub const EVERYWHERE: &[Way] = &[
    way(Path::Host, Caller::User),
    way(Path::Tap, Caller::User),
    way(Path::Bypass, Caller::User),
    way(Path::Tap, Caller::Root),
    way(Path::Bypass, Caller::Root),
];
pub const BOTH_PATHS: &[Way] = &[way(Path::Tap, Caller::User), way(Path::Bypass, Caller::User)];
/// Where the lab has to be changed under sidestep in ways that only its root may.
pub const BOTH_PATHS_AS_ROOT: &[Way] = &[way(Path::Tap, Caller::Root), way(Path::Bypass, Caller::Root)];
/// Where the supervisor's calls are counted: only root may trace it in every lab.
pub const BYPASS_AS_ROOT: &[Way] = &[way(Path::Bypass, Caller::Root)];
pub const BYPASS: &[Way] = &[way(Path::Bypass, Caller::User), way(Path::Bypass, Caller::Root)];
pub const BYPASS_AS_USER: &[Way] = &[way(Path::Bypass, Caller::User)];
pub const TAP: &[Way] = &[way(Path::Tap, Caller::User), way(Path::Tap, Caller::Root)];
/// Where the forwarder's descriptors are counted: it is not dumpable, and an ordinary user's lab may look into that of its
/// root only.
pub const TAP_AS_ROOT: &[Way] = &[way(Path::Tap, Caller::Root)];
pub const HOST: &[Way] = &[way(Path::Host, Caller::User), way(Path::Host, Caller::Root)];
/// Where other programs start sidestep, in a user's login.
pub const HOST_AS_USER: &[Way] = &[way(Path::Host, Caller::User)];
pub const USER: &[Way] = &[way(Path::Tap, Caller::User)];

/// A table of cases; a test's name is its module's and its function's.
///
/// ```ignore
/// cases! {
///     EVERY_WAY: refused, unreachable;
///     BYPASS: second_listener;
/// }
/// ```
#[macro_export]
macro_rules! cases {
    ($($ways:ident: $($test:ident),+;)+) => {
        pub const CASES: &[$crate::cases::Case] = &[$($(
            $crate::cases::Case {
                name: concat!(module_path!(), "::", stringify!($test)),
                ways: $crate::cases::$ways,
                test: $test,
            },
        )+)+];
    };
}

impl Case {
    pub fn trials(&self) -> impl Iterator<Item = Trial> + use<> {
        let (name, test) = (self.name.trim_start_matches("whole::"), self.test);
        self.ways.iter().map(move |&way| {
            let name = format!("{name}::{way}");
            Trial::test(name.clone(), move || {
                effort::reported(&name, || Workspace::new(way).and_then(test)).map_err(failed)
            })
        })
    }
}

/// The whole chain of an error, one cause a line.
fn failed(error: anyhow::Error) -> Failed {
    let mut text = String::new();
    for (depth, cause) in error.chain().enumerate() {
        // Writing to a String cannot fail.
        let _never = writeln!(text, "{}{cause}", if depth == 0 { "" } else { "because: " });
    }
    text.into()
}
