//! What is being measured, for a person who waits: a bar on a terminal, a line a round elsewhere. On stderr.

use std::cell::Cell;
use std::fmt::Display;
use std::io::IsTerminal as _;

/// Of the bar, in characters.
const WIDTH: usize = 20;
/// A line longer than the terminal would stay on it; these are as wide as the narrowest in use.
const COLUMNS: usize = 78;

/// The steps of one figure.
pub struct Steps<'a> {
    name: &'a str,
    /// Of each round.
    stations: usize,
    /// Besides the first, which does not count.
    rounds: usize,
    done: Cell<usize>,
    terminal: bool,
}

impl<'a> Steps<'a> {
    pub fn begin(name: &'a str, stations: usize, rounds: u32) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { name, stations, rounds: rounds as usize, done: Cell::new(0), terminal }
    }

    pub fn step<T>(&self, what: &impl Display, work: impl FnOnce() -> T) -> T {
        let done = self.done.replace(self.done.get() + 1);
        if self.terminal {
            let all = self.stations * (self.rounds + 1);
            eprint!("\r\x1b[K{}", bar(self.name, &what.to_string(), done, all));
        } else if done.is_multiple_of(self.stations) {
            eprintln!("{}", line(self.name, done / self.stations, self.rounds));
        }
        work()
    }

    /// A line beside the bar.
    pub fn say(&self, line: &str) {
        clear();
        eprintln!("{line}");
    }
}

impl Drop for Steps<'_> {
    fn drop(&mut self) {
        clear();
    }
}

/// Makes room for a line of the table.
pub fn clear() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

fn line(name: &str, round: usize, rounds: usize) -> String {
    if round == 0 { format!("{name}: warming up") } else { format!("{name}: round {round} of {rounds}") }
}

fn bar(name: &str, what: &str, done: usize, all: usize) -> String {
    let full = WIDTH * done / all.max(1);
    let line = format!("[{}{}] {done}/{all} {name}: {what}", "#".repeat(full), "-".repeat(WIDTH - full));
    line.chars().take(COLUMNS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_fill_and_fit() {
        assert_eq!(bar("send", "host", 0, 4), "[--------------------] 0/4 send: host");
        assert_eq!(bar("send", "host", 3, 4), "[###############-----] 3/4 send: host");
        assert_eq!(bar("send", &"x".repeat(100), 4, 4).chars().count(), COLUMNS);
    }
}
