//! What is being measured, for a person who waits: a bar on a terminal, a line a figure elsewhere. On stderr.

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
    all: usize,
    done: Cell<usize>,
    terminal: bool,
}

impl<'a> Steps<'a> {
    pub fn begin(name: &'a str, all: usize) -> Self {
        let steps = Self { name, all, done: Cell::new(0), terminal: std::io::stderr().is_terminal() };
        if !steps.terminal {
            eprintln!("{name}: {all} steps");
        }
        steps
    }

    pub fn step<T>(&self, what: &impl Display, work: impl FnOnce() -> T) -> T {
        if self.terminal {
            eprint!("\r\x1b[K{}", bar(self.name, &what.to_string(), self.done.get(), self.all));
        }
        self.done.set(self.done.get() + 1);
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
