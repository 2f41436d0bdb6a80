//! Process trees and namespaces out of /proc: what a run consists of, and whether all of it is gone.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::poll;

/// One process: its number and the time it was started, which together are never used again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub pid: i32,
    parent: i32,
    started: u64,
    pub command: String,
}

/// A process, its descendants, and the namespaces they are in besides the harness's own.
#[derive(Debug)]
pub struct Tree {
    root: i32,
    pub processes: BTreeSet<Process>,
    namespaces: BTreeSet<String>,
}

/// What a process takes.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Bytes that it has written and nobody shares. Its share of the program's pages (PSS) grows when other tests end.
    pub memory: u64,
    pub descriptors: usize,
    pub threads: usize,
}

struct Stat {
    parent: i32,
    state: char,
    started: u64,
    /// User and system time, in clock ticks, of which Linux shows everybody a hundred a second.
    ticks: u64,
}

impl Tree {
    pub fn of(root: Pid) -> Result<Self> {
        let mut pids = vec![root.as_raw()];
        let all = pids_of_the_world()?;
        let mut next = 0;
        while let Some(&parent) = pids.get(next) {
            pids.extend(all.iter().filter(|&&pid| stat(pid).is_some_and(|stat| stat.parent == parent)));
            next += 1;
        }
        let own = namespaces_of("self");
        Ok(Self {
            root: root.as_raw(),
            namespaces: pids
                .iter()
                .flat_map(|pid| namespaces_of(&pid.to_string()))
                .filter(|ns| !own.contains(ns))
                .collect(),
            processes: pids.iter().filter_map(|&pid| process(pid)).collect(),
        })
    }

    /// The root's one child whose command line has `word` second (`sidestep supervisor`).
    pub fn worker(&self, word: &str) -> Result<&Process> {
        let children = self.processes.iter().filter(|process| process.parent == self.root);
        let mut found = children.filter(|process| process.command.split(' ').nth(1) == Some(word));
        match (found.next(), found.next()) {
            (Some(process), None) => Ok(process),
            (None, _) => bail!("no `sidestep {word}` among {:#?}", self.processes),
            (Some(_), Some(_)) => bail!("more than one `sidestep {word}` among {:#?}", self.processes),
        }
    }

    /// All of `sidestep run` but the command, which is known by how its command line starts.
    pub fn but(&self, command: &str) -> Result<Vec<&Process>> {
        let ours: Vec<_> = self.processes.iter().filter(|process| !process.command.starts_with(command)).collect();
        ensure!(ours.len() > 1, "only one process of `sidestep run`: {self:#?}");
        Ok(ours)
    }

    /// Kills them all, the root first: it starts no others then.
    pub fn kill(&self) {
        let (root, others): (Vec<_>, Vec<_>) = self.alive().into_iter().partition(|process| process.pid == self.root);
        for process in root.into_iter().chain(others) {
            // Failing means that it has just ended.
            let _gone = process.kill(Signal::SIGKILL);
        }
    }

    /// Waits until none of these processes runs and nothing else is in their namespaces.
    pub fn is_gone(&self, within: Duration) -> Result<()> {
        let gone = poll("everything is gone", within, || {
            let processes = self.alive();
            let spaces = self.namespaces_in_use()?;
            Ok((processes.is_empty() && spaces.is_empty()).then_some(()))
        });
        gone.with_context(|| {
            format!("left behind: {:#?}, namespaces {:?}", self.alive(), self.namespaces_in_use().unwrap_or_default())
        })
    }

    fn alive(&self) -> Vec<&Process> {
        self.processes.iter().filter(|known| known.is_alive()).collect()
    }

    fn namespaces_in_use(&self) -> Result<Vec<String>> {
        let pids = pids_of_the_world()?;
        // A zombie that nobody waited for yet still shows its user namespace; it is the waiter's, not left behind.
        let running = pids.into_iter().filter_map(process);
        let used: BTreeSet<String> = running.flat_map(|process| namespaces_of(&process.pid.to_string())).collect();
        Ok(self.namespaces.intersection(&used).cloned().collect())
    }
}

impl Process {
    pub fn kill(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("{signal} to {self:?}"))
    }

    pub fn footprint(&self) -> Result<Footprint> {
        let count = |what: &str| -> Result<usize> { Ok(fs::read_dir(format!("/proc/{}/{what}", self.pid))?.count()) };
        let maps = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid))?;
        let private: Option<u64> =
            maps.lines().find_map(|line| line.strip_prefix("Private_Dirty:")?.trim().strip_suffix(" kB")?.parse().ok());
        let memory = private.context("smaps_rollup without Private_Dirty")? * 1024;
        Ok(Footprint { memory, descriptors: count("fd")?, threads: count("task")? })
    }

    /// The processor time it has taken, to a hundredth of a second.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = stat(self.pid).context("no such process")?;
        Ok(Duration::from_millis(stat.ticks * 10))
    }

    /// Stopped by a signal, as ^Z leaves it.
    pub fn is_stopped(&self) -> bool {
        stat(self.pid).is_some_and(|now| now.started == self.started && now.state == 'T')
    }

    /// Whether it runs: neither gone nor a zombie.
    pub fn is_alive(&self) -> bool {
        // Not compared whole: its parent may have died, and it may have executed something else.
        process(self.pid).is_some_and(|now| now.started == self.started)
    }
}

fn pids_of_the_world() -> Result<Vec<i32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// None for what does not run: no such process, or a zombie.
fn process(pid: i32) -> Option<Process> {
    let stat = stat(pid)?;
    if matches!(stat.state, 'Z' | 'X') {
        return None;
    }
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
    Some(Process { pid, parent: stat.parent, started: stat.started, command })
}

/// proc_pid_stat(5), fields 3, 4, 14, 15 and 22; the second is in parentheses and may hold anything.
fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text[text.rfind(')')? + 2..].split(' ').collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        ticks: fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?,
    })
}

/// Links such as `net:[4026531840]`.
pub fn namespaces_of(pid: &str) -> BTreeSet<String> {
    let links = ["user", "pid", "net", "mnt"].into_iter();
    links
        .filter_map(|kind| Some(fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?.to_string_lossy().into_owned()))
        .collect()
}
