//! Signals and the terminal: the workspace behaves as if the command had been started directly.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::lab::command::DEADLINE;
use crate::lab::processes::Tree;
use crate::lab::servers::TcpServer;
use crate::lab::terminal::{CTRL_C, CTRL_Z, Terminal};
use crate::lab::workspace::Workspace;
use crate::lab::{REMOTE, poll};

crate::cases! {
    EVERY_WAY: forwarded, fatal, interrupt_key, suspend_and_resume, typing;
    BOTH_PATHS: network_survives_interrupt, shell_has_job_control, hangup;
}

fn forwarded(ws: Workspace) -> Result<()> {
    let mut running = ws.start([
        "bash",
        "-c",
        "for s in HUP INT USR1 USR2 WINCH; do trap \"echo $s\" $s; done; trap 'echo TERM; exit 7' TERM; echo ready
         while :; do read -t 0.05; done < <(sleep 100)",
    ])?;
    running.line_with("ready")?;
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM] {
        running.kill(signal)?;
        let heard = running.line()?;
        ensure!(format!("SIG{heard}") == signal.as_str(), "{heard} instead of {signal}");
    }
    running.finish()?.exited(7)?;
    Ok(())
}

fn fatal(ws: Workspace) -> Result<()> {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
        let mut running = ws.start(["sh", "-c", "echo ready; exec sleep 100"])?;
        running.line_with("ready")?;
        running.kill(signal)?;
        running.finish()?.exited(code)?;
    }
    Ok(())
}

fn interrupt_key(ws: Workspace) -> Result<()> {
    let mut terminal = Terminal::start(ws.program(["sh", "-c", "echo ready; exec sleep 100"]), &ws.lab.host)?;
    terminal.expect("ready")?;
    terminal.type_keys(CTRL_C)?;
    let code = terminal.exit_code()?;
    ensure!(code == 130, "exit code {code} after ^C");
    Ok(())
}

/// What is put into the terminal's input would be read by the caller's shell in the end.
fn typing(ws: Workspace) -> Result<()> {
    let program = ws.python_program(
        "TIOCSTI = 0x5412
print('typed' if outcome(lambda: fcntl.ioctl(0, TIOCSTI, b'x')) == 'connected' else 'refused')",
    );
    let mut terminal = Terminal::start(program, &ws.lab.host)?;
    terminal.expect("refused")?;
    let code = terminal.exit_code()?;
    ensure!(code == 0, "exit code {code}");
    Ok(())
}

fn network_survives_interrupt(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let program = ws.python_program(&format!(
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); say('ready')
signal.sigwait([signal.SIGINT]); say('interrupted'); say(attempt('{}', {}))",
        REMOTE[0],
        echo.addr.port()
    ));
    let mut terminal = Terminal::start(program, &ws.lab.host)?;
    terminal.expect("ready")?;
    terminal.type_keys(CTRL_C)?;
    terminal.expect("interrupted")?;
    terminal.expect("connected")?;
    let code = terminal.exit_code()?;
    ensure!(code == 0, "exit code {code}");
    Ok(())
}

/// ^Z stops the whole run and gives the terminal back; fg goes on where it was.
fn suspend_and_resume(ws: Workspace) -> Result<()> {
    let mut terminal = Terminal::start(ws.outside(["bash", "--norc", "-i"]).env("PS1", "host$ "), &ws.lab.host)?;
    terminal.expect("host$ ")?;
    terminal.type_keys(&format!("{} sh -c 'echo rea''dy; read word; echo got $word'\n", ws.prefix().join(" ")))?;
    terminal.expect("ready")?;
    let tree = Tree::of(terminal.pid())?;
    let reader = tree.processes.iter().find(|process| process.command.starts_with("sh -c echo rea"));
    let reader = reader.with_context(|| format!("no reader among {:#?}", tree.processes))?;
    terminal.type_keys(CTRL_Z)?;
    terminal.expect("Stopped")?;
    terminal.expect("host$ ")?;
    // The shell waits for the process it knows, the monitor; one that reads the terminal on another processor may take
    // a key before it stops.
    poll("the reader stops", DEADLINE, || Ok(reader.is_stopped().then_some(())))?;
    terminal.type_keys("echo $((40 + 2))\n")?;
    terminal.expect("42")?;
    terminal.type_keys("fg\n")?;
    terminal.expect("echo got")?;
    terminal.type_keys("something\n")?;
    terminal.expect("got something")?;
    terminal.expect("host$ ")?;
    terminal.type_keys("exit\n")?;
    let code = terminal.exit_code()?;
    ensure!(code == 0, "exit code {code}");
    Ok(())
}

fn shell_has_job_control(ws: Workspace) -> Result<()> {
    let mut terminal = Terminal::start(ws.program(["bash", "--norc", "-i"]).env("PS1", "inside$ "), &ws.lab.host)?;
    terminal.expect("inside$ ")?;
    ensure!(!terminal.screen().contains("no job control"), "{}", terminal.screen());
    terminal.type_keys("sh -c 'echo go''ing; exec sleep 100'\n")?;
    terminal.expect("going")?;
    terminal.type_keys(CTRL_Z)?;
    terminal.expect("Stopped")?;
    terminal.type_keys("exit 4\n")?;
    terminal.expect("There are stopped jobs")?;
    terminal.type_keys("exit 4\n")?;
    let code = terminal.exit_code()?;
    ensure!(code == 4, "exit code {code}");
    Ok(())
}

/// The terminal goes away: so does the workspace.
fn hangup(ws: Workspace) -> Result<()> {
    let mut terminal = Terminal::start(ws.program(["sh", "-c", "echo ready; exec sleep 100"]), &ws.lab.host)?;
    terminal.expect("ready")?;
    let tree = Tree::of(terminal.pid())?;
    terminal.hang_up()?;
    tree.is_gone(DEADLINE)
}
