//! `sidestep completions` and `sidestep man`: both out of the command line's own definition.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, say};

/// Print what a shell needs to complete sidestep's commands and flags.
#[derive(Debug, Args)]
#[command(after_long_help = "\
`make install` puts it where these shells look for it. By hand:
  bash        source <(sidestep completions bash)
  zsh         sidestep completions zsh > \"${fpath[1]}/_sidestep\"
  fish        sidestep completions fish > ~/.config/fish/completions/sidestep.fish
  elvish      eval (sidestep completions elvish | slurp)
  powershell  sidestep completions powershell | Out-String | Invoke-Expression")]
pub struct Completions {
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "sidestep", &mut script);
        say(String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Write the man pages of all commands into a directory.
#[derive(Debug, Args)]
pub struct Man {
    directory: PathBuf,
}

impl Man {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        clap_mangen::generate_to(Cli::command(), &self.directory)
            .with_context(|| format!("cannot write man pages into {}", self.directory.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    /// Every command that is shown, with its name as a man page's.
    fn commands(command: &clap::Command, name: &str, into: &mut Vec<(String, clap::Command)>) {
        for shown in command.get_subcommands().filter(|shown| !shown.is_hide_set()) {
            commands(shown, &format!("{name}-{}", shown.get_name()), into);
        }
        into.push((name.to_owned(), command.clone()));
    }

    fn flags(command: &clap::Command) -> impl Iterator<Item = String> {
        let shown = command.get_arguments().filter(|argument| !argument.is_hide_set());
        shown.filter_map(|argument| argument.get_long()).map(str::to_owned)
    }

    #[test]
    fn every_flag_is_completed_and_has_its_place_in_a_man_page() {
        let mut all = Vec::new();
        commands(&Cli::command(), "sidestep", &mut all);
        for name in ["sidestep-run", "sidestep-bench", "sidestep-ports-add"] {
            assert!(all.iter().any(|(shown, _)| shown == name), "no {name} in {all:?}");
        }
        let pages = tempfile::tempdir().unwrap();
        Man { directory: pages.path().to_owned() }.run().unwrap();
        for (name, command) in &all {
            let page = std::fs::read_to_string(pages.path().join(format!("{name}.1"))).unwrap();
            for flag in flags(command) {
                assert!(page.contains(&flag.replace('-', "\\-")), "no --{flag} in {name}.1");
            }
        }
        assert_eq!(std::fs::read_dir(pages.path()).unwrap().count(), all.len());
        for &shell in Shell::value_variants() {
            let mut script = Vec::new();
            generate(shell, &mut Cli::command(), "sidestep", &mut script);
            let script = String::from_utf8(script).unwrap();
            for flag in all.iter().flat_map(|(_, command)| flags(command)) {
                assert!(script.contains(&flag), "no --{flag} for {shell}");
            }
        }
    }
}
