//! Which ids a workspace has: user_namespaces(7), subuid(5).
//!
//! - identity: a caller that may write it (root with CAP_SETUID) keeps every id of its own namespace;
//! - root: an ordinary user becomes root, its subordinate ids follow from 1;
//! - keep: an ordinary user keeps its id, its subordinate ids lie around it.
//!
//! Subordinate ids need newuidmap(1) and newgidmap(1); without them there is the one id alone.

use std::fs;
use std::io::ErrorKind;
use std::process::Command;

use anyhow::{Context, anyhow};
use nix::unistd::{Gid, Pid, Uid, User};
use rustix::thread::CapabilitySet;

use super::needs::{self, Missing};

/// Lines the kernel takes in one map (UID_GID_MAP_MAX_EXTENTS).
const EXTENTS_MAX: usize = 340;

/// One line of a map: `count` ids from `inside` on are those from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    inside: u32,
    outside: u32,
    count: u32,
}

/// Subordinate ids somebody was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

/// One kind of id: its files and helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Uid,
    Gid,
}

/// The maps to write for one workspace.
#[derive(Debug)]
pub enum IdMaps {
    Identity { uid: Vec<Extent>, gid: Vec<Extent> },
    Subordinate { uid: IdMap, gid: IdMap },
}

/// An ordinary user's map of one kind.
#[derive(Debug)]
pub struct IdMap {
    own: u32,
    inside: u32,
    ranges: Vec<Range>,
    keep: bool,
}

impl IdMaps {
    /// Reads what the caller is and has. With `keep_id` the caller's ids are the same inside.
    pub fn plan(keep_id: bool) -> anyhow::Result<Self> {
        let (uid, gid) = (Uid::effective(), Gid::effective());
        if may_write_any_map()? && (uid.is_root() || keep_id) {
            return Ok(Self::Identity { uid: own_map(Kind::Uid)?, gid: own_map(Kind::Gid)? });
        }
        let name = user_name(uid);
        let map = |kind: Kind, own: u32| IdMap {
            own,
            inside: if keep_id { own } else { 0 },
            ranges: subordinate(kind, name.as_deref(), uid.as_raw()),
            keep: keep_id,
        };
        Ok(Self::Subordinate { uid: map(Kind::Uid, uid.as_raw()), gid: map(Kind::Gid, gid.as_raw()) })
    }

    /// The caller is not root inside: what it may do there has to be ambient.
    pub fn needs_ambient(&self) -> bool {
        match self {
            Self::Identity { .. } => !Uid::effective().is_root(),
            Self::Subordinate { uid, .. } => uid.inside != 0,
        }
    }

    /// Writes both maps of a child that has just been cloned; gives what the subordinate ids lack, where the caller's id
    /// is the only one inside in spite of them.
    pub fn write(&self, child: Pid) -> anyhow::Result<Option<Missing>> {
        match self {
            Self::Identity { uid, gid } => {
                write_map(child, Kind::Uid, uid)?;
                write_map(child, Kind::Gid, gid)?;
                Ok(None)
            }
            Self::Subordinate { uid, gid } => {
                let missing = uid.write(child, Kind::Uid, true)?;
                // The other helper would fail for the same reason.
                let also = gid.write(child, Kind::Gid, missing.is_none())?;
                Ok(missing.or(also))
            }
        }
    }

    /// How many users there can be inside; what is missing where that is the caller alone.
    pub fn users(&self) -> Result<u64, Missing> {
        match self {
            Self::Identity { uid, .. } => Ok(uid.iter().map(|extent| u64::from(extent.count)).sum()),
            Self::Subordinate { uid, gid } => {
                for (kind, map) in [(Kind::Uid, uid), (Kind::Gid, gid)] {
                    if map.ranges.is_empty() {
                        let uid = Uid::effective();
                        let user = user_name(uid).unwrap_or_else(|| uid.to_string());
                        return Err(needs::no_subordinate_ids(kind.ranges(), &user));
                    }
                }
                Ok(1 + uid.ranges.iter().map(|range| u64::from(range.count)).sum::<u64>())
            }
        }
    }
}

impl IdMap {
    /// Through the helper where there are subordinate ids and they are wanted, else the one id alone. Gives what a
    /// helper that failed lacks.
    fn write(&self, child: Pid, kind: Kind, wanted: bool) -> anyhow::Result<Option<Missing>> {
        let mut missing = None;
        if !self.ranges.is_empty() && wanted {
            let extents = if self.keep { keep(self.own, &self.ranges) } else { as_root(self.own, &self.ranges) };
            match run_helper(child, kind, &extents) {
                Ok(()) => return Ok(None),
                Err(reason) => missing = Some(reason),
            }
        }
        if kind == Kind::Gid {
            // Without CAP_SETGID outside the kernel wants setgroups(2) given up first.
            fs::write(format!("/proc/{child}/setgroups"), "deny").context("cannot give up setgroups")?;
        }
        write_map(child, kind, &[Extent { inside: self.inside, outside: self.own, count: 1 }])?;
        Ok(missing)
    }
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Uid => "uid",
            Self::Gid => "gid",
        }
    }

    fn ranges(self) -> &'static str {
        match self {
            Self::Uid => "/etc/subuid",
            Self::Gid => "/etc/subgid",
        }
    }
}

/// Whether a user namespace of ours may get any map: the three capabilities user_namespaces(7) asks for.
fn may_write_any_map() -> anyhow::Result<bool> {
    let have = rustix::thread::capabilities(None).context("cannot read our capabilities")?.effective;
    Ok(have.contains(CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SETFCAP))
}

/// Every id of the current namespace mapped to itself.
fn own_map(kind: Kind) -> anyhow::Result<Vec<Extent>> {
    let path = format!("/proc/self/{}_map", kind.word());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(identity(&text))
}

/// All ids there are in one line is what runc, containerd, dockerd and systemd know the initial user namespace by. They
/// would take themselves for the machine's root, and give up over cgroups and devices that a workspace's may not touch:
/// so the last id has a line of its own.
fn identity(map: &str) -> Vec<Extent> {
    let same = |inside, count| Extent { inside, outside: inside, count };
    let lines = map.lines().filter_map(|line| {
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let [inside, _, count] = numbers[..] else { return None };
        Some(same(inside, count))
    });
    match lines.take(EXTENTS_MAX).collect::<Vec<_>>()[..] {
        [Extent { count: u32::MAX, .. }] => vec![same(0, u32::MAX - 1), same(u32::MAX - 1, 1)],
        ref extents => extents.to_vec(),
    }
}

fn write_map(child: Pid, kind: Kind, extents: &[Extent]) -> anyhow::Result<()> {
    let lines: String = extents.iter().map(|e| format!("{} {} {}\n", e.inside, e.outside, e.count)).collect();
    let path = format!("/proc/{child}/{}_map", kind.word());
    let own = Uid::effective().as_raw();
    fs::write(&path, lines).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) if own == 0 => needs::no_capability_for_ids(kind.word()).into(),
        _ => anyhow!(error).context(format!("cannot give the workspace its {}s ({path})", kind.word())),
    })
}

fn run_helper(child: Pid, kind: Kind, extents: &[Extent]) -> Result<(), Missing> {
    let helper = format!("new{}map", kind.word());
    let numbers = extents.iter().flat_map(|e| [e.inside, e.outside, e.count]).map(|n| n.to_string());
    let failed = |said: &str| needs::id_helper_failed(&helper, kind.ranges(), said);
    let output = match Command::new(&helper).arg(child.to_string()).args(numbers).output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(needs::no_id_helper(&helper, kind.ranges())),
        Err(error) => return Err(failed(&error.to_string())),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(said.trim().lines().next().unwrap_or("no reason given")))
}

/// The C library's answer; in a static binary, which could not load the C library's modules for it, /etc/passwd's.
fn user_name(uid: Uid) -> Option<String> {
    if cfg!(target_feature = "crt-static") {
        let uid = uid.to_string();
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        passwd.lines().find_map(|line| match line.split(':').collect::<Vec<_>>()[..] {
            [name, _, number, ..] if number == uid => Some(name.to_owned()),
            _ => None,
        })
    } else {
        User::from_uid(uid).ok().flatten().map(|user| user.name)
    }
}

/// The caller's ranges in /etc/subuid or /etc/subgid; both name users.
fn subordinate(kind: Kind, name: Option<&str>, uid: u32) -> Vec<Range> {
    let text = fs::read_to_string(kind.ranges()).unwrap_or_default();
    parse_subordinate(&text, name, uid)
}

fn parse_subordinate(text: &str, name: Option<&str>, uid: u32) -> Vec<Range> {
    let uid = uid.to_string();
    let ranges = text.lines().filter_map(|line| {
        let [owner, first, count] = line.trim().split(':').collect::<Vec<_>>()[..] else { return None };
        let range = Range { first: first.parse().ok()?, count: count.parse().ok()? };
        let is_there = range.count > 0 && range.first.checked_add(range.count).is_some();
        (is_there && (Some(owner) == name || owner == uid)).then_some(range)
    });
    ranges.take(EXTENTS_MAX - 2).collect()
}

/// Root inside is the caller, and the subordinate ids follow.
fn as_root(own: u32, ranges: &[Range]) -> Vec<Extent> {
    let mut extents = vec![Extent { inside: 0, outside: own, count: 1 }];
    let mut inside = 1u32;
    for range in ranges {
        let count = range.count.min(u32::MAX - inside);
        extents.push(Extent { inside, outside: range.first, count });
        inside += count;
    }
    extents
}

/// The caller is itself inside, and the subordinate ids fill 0 to own-1 and go on after own.
fn keep(own: u32, ranges: &[Range]) -> Vec<Extent> {
    let mut extents = vec![Extent { inside: own, outside: own, count: 1 }];
    let mut inside = 0u32;
    for range in ranges {
        let mut rest = *range;
        if inside < own {
            let count = rest.count.min(own - inside);
            extents.push(Extent { inside, outside: rest.first, count });
            inside += count;
            rest = Range { first: rest.first + count, count: rest.count - count };
        }
        if inside == own {
            inside += 1;
        }
        let count = rest.count.min(u32::MAX - inside);
        if count > 0 {
            extents.push(Extent { inside, outside: rest.first, count });
            inside += count;
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn triples(extents: Vec<Extent>) -> Vec<(u32, u32, u32)> {
        extents.into_iter().map(|e| (e.inside, e.outside, e.count)).collect()
    }

    #[test]
    fn subordinate_ranges_are_found_by_name_and_by_number() {
        let text = "# note\nalice:100000:65536\nbob:165536:65536\n1000:300000:10\nalice:x:1\nalice:5:0\nalice:4294967290:100\n";
        let got = |name, uid| -> Vec<_> {
            parse_subordinate(text, name, uid).into_iter().map(|r| (r.first, r.count)).collect()
        };
        assert_eq!(got(Some("alice"), 1000), [(100_000, 65536), (300_000, 10)]);
        assert_eq!(got(Some("bob"), 1001), [(165_536, 65536)]);
        assert_eq!(got(None, 1000), [(300_000, 10)]);
        assert_eq!(got(Some("carol"), 1002), []);
    }

    #[test]
    fn the_caller_becomes_root() {
        let two = [Range { first: 100_000, count: 65536 }, Range { first: 300_000, count: 10 }];
        assert_eq!(triples(as_root(1000, &two)), [(0, 1000, 1), (1, 100_000, 65536), (65537, 300_000, 10)]);
    }

    #[test]
    fn the_caller_keeps_its_id_among_the_subordinate_ones() {
        let cases = [
            (1000, vec![(100_000, 65536)], vec![(1000, 1000, 1), (0, 100_000, 1000), (1001, 101_000, 64536)]),
            (1000, vec![(100_000, 10)], vec![(1000, 1000, 1), (0, 100_000, 10)]),
            (20, vec![(100, 10), (200, 10), (300, 5)], vec![(20, 20, 1), (0, 100, 10), (10, 200, 10), (21, 300, 5)]),
            (0, vec![(100, 10)], vec![(0, 0, 1), (1, 100, 10)]),
        ];
        for (own, ranges, want) in cases {
            let ranges: Vec<_> = ranges.into_iter().map(|(first, count)| Range { first, count }).collect();
            assert_eq!(triples(keep(own, &ranges)), want, "{own}");
        }
    }

    #[test]
    fn identity_maps_what_the_own_namespace_has() {
        let all = identity("         0          0 4294967295\n");
        assert_eq!(triples(all), [(0, 0, u32::MAX - 1), (u32::MAX - 1, u32::MAX - 1, 1)]);
        assert_eq!(triples(identity("0 1000 1\n1 100000 65536\n")), [(0, 0, 1), (1, 1, 65536)]);
    }
}
