//! `sidestep doctor`: what is missing on this machine, before `sidestep run` stumbles over it.

use std::env;
use std::fmt::{self, Display};
use std::io::{IsTerminal, stdout};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::say;
use crate::doctor::{self, Check, Finding, Mode, Status};
use crate::logging::{self, LogFormat, LogLevel, LogSettings};

/// Exit code where `run` works and something else is missing.
const LACKING: u8 = 1;
/// Exit code where `run` cannot start.
const UNUSABLE: u8 = 2;

/// Try everything that `sidestep run` needs, and say what is missing and what mends it.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 nothing is missing, 1 `sidestep run` works with something missing, 2 it does not.",
    after_long_help = "\
A workspace is made that runs no command; nothing is changed on the machine and nothing is left
behind. Run it where and as whom you would run `sidestep run`: in the same container, as the same
user.

  ok    works
  warn  works, with less than there could be
  fail  what it stands under does not work
  skip  not tried, for what comes before it has failed

Exit code: 0 nothing is missing; 1 `sidestep run` works, and a mode or something else is missing;
2 `sidestep run` cannot start; 125 the doctor itself failed.

--json prints one object, to which fields may be added:
  {\"version\": \"0.1.0\", \"kernel\": \"6.18.0\",
   \"works\": {\"tap\": true, \"bypass\": true, \"strict\": true},
   \"checks\": [{\"for\": \"tap|bypass|strict\", \"name\": \"ids\", \"status\": \"ok|warn|fail|skip\",
               \"found\": \"...\", \"fix\": \"...\" or null}, ...]}
tap is what every `sidestep run` needs, bypass what --bypass=unconfined adds, strict what
--bypass=auto and --bypass=require add to that. `found` and `fix` with \"; \" between them are the
sentence that `sidestep run` says."
)]
pub struct Doctor {
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        // Warnings are findings here.
        logging::init(LogSettings { level: LogLevel::Error, format: LogFormat::Text });
        let findings = doctor::examine()?;
        if self.json {
            say(format_args!("{:#}\n", as_json(&findings)))?;
        } else {
            let colour = stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            say(Table { findings: &findings, colour })?;
        }
        Ok(ExitCode::from(exit_code(&findings)))
    }
}

fn exit_code(findings: &[Finding]) -> u8 {
    if !doctor::works(findings, Mode::Tap) {
        UNUSABLE
    } else if findings.iter().any(|finding| finding.status != Status::Ok) {
        LACKING
    } else {
        0
    }
}

fn as_json(findings: &[Finding]) -> Value {
    let works = |mode| doctor::works(findings, mode);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": kernel(),
        "works": { "tap": works(Mode::Tap), "bypass": works(Mode::Bypass), "strict": works(Mode::Strict) },
        "checks": findings,
    })
}

fn kernel() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// For people: a heading a mode, a line a check, the fix under it.
struct Table<'a> {
    findings: &'a [Finding],
    colour: bool,
}

impl Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = Check::ALL.into_iter().map(|check| name(check).len()).max().unwrap_or(0);
        for (mode, heading) in [
            (Mode::Tap, "sidestep run"),
            (Mode::Bypass, "the bypass (--bypass=unconfined)"),
            (Mode::Strict, "strict mode (--bypass=auto, --bypass=require)"),
        ] {
            let own = || self.findings.iter().filter(|finding| finding.mode == mode);
            let verdict = match doctor::works(self.findings, mode) {
                true => "works",
                false if own().any(|finding| finding.status == Status::Fail) => "does not work",
                false => "does not work, for what has failed above",
            };
            writeln!(f, "{heading}: {verdict}")?;
            for finding in own() {
                let status = self.status(finding.status);
                writeln!(f, "  {status}  {:width$}  {}", name(finding.check), finding.found)?;
                if let Some(fix) = &finding.fix {
                    writeln!(f, "        {:width$}  fix: {fix}", "")?;
                }
            }
        }
        Ok(())
    }
}

impl Table<'_> {
    /// Four letters wide; coloured as select graphic rendition has it (ECMA-48 8.3.117).
    fn status(&self, status: Status) -> String {
        let (word, colour) = match status {
            Status::Ok => ("ok  ", 32),
            Status::Warn => ("warn", 33),
            Status::Fail => ("fail", 31),
            Status::Skip => ("skip", 2),
        };
        if self.colour { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() }
    }
}

/// As in JSON.
fn name(check: Check) -> String {
    json!(check).as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Findings as a trial gives them: everything well but for these.
    fn but_for(lacking: &[(Check, Status)]) -> Vec<Finding> {
        let parsed = |check: Check| {
            let status = lacking.iter().find(|(other, _)| *other == check).map_or(Status::Ok, |(_, status)| *status);
            let mode = match check {
                Check::Landlock => Mode::Strict,
                Check::Listener | Check::SyncWakeUp | Check::PidfdGetfd | Check::NetnsCookie | Check::Addfd => {
                    Mode::Bypass
                }
                _ => Mode::Tap,
            };
            let fix = (status != Status::Ok).then(|| "do this".to_owned());
            Finding { mode, check, status, found: "found".to_owned(), fix }
        };
        Check::ALL.into_iter().map(parsed).collect()
    }

    #[test]
    fn the_worst_counts() {
        let cases = [
            (&[][..], 0, [true, true, true]),
            (&[(Check::Ids, Status::Warn)], 1, [true, true, true]),
            (&[(Check::SyncWakeUp, Status::Warn)], 1, [true, true, true]),
            (&[(Check::Landlock, Status::Fail)], 1, [true, true, false]),
            (&[(Check::Listener, Status::Fail), (Check::Addfd, Status::Skip)], 1, [true, false, false]),
            (&[(Check::Tun, Status::Fail)], 2, [false, false, false]),
        ];
        for (lacking, code, works) in cases {
            let findings = but_for(lacking);
            let got = [Mode::Tap, Mode::Bypass, Mode::Strict].map(|mode| doctor::works(&findings, mode));
            assert_eq!((exit_code(&findings), got), (code, works), "{lacking:?}");
        }
    }

    #[test]
    fn for_people_and_for_programs() {
        let findings = but_for(&[(Check::Tun, Status::Fail)]);
        let plain = Table { findings: &findings, colour: false }.to_string();
        let lines: Vec<&str> = plain.lines().collect();
        assert!(lines.contains(&"sidestep run: does not work"), "{plain}");
        assert!(lines.contains(&"  fail  /dev/net/tun       found"), "{plain}");
        assert!(lines.contains(&"                           fix: do this"), "{plain}");
        assert!(!plain.contains('\x1b'));
        assert!(Table { findings: &findings, colour: true }.to_string().contains("\x1b[31mfail\x1b[0m"));
        let json = as_json(&findings);
        assert_eq!(json["works"]["tap"], false);
        assert_eq!(json["checks"][4]["name"], "/dev/net/tun");
        assert_eq!(json["checks"][4]["status"], "fail");
        assert_eq!(json["checks"][0]["fix"], Value::Null);
    }
}
