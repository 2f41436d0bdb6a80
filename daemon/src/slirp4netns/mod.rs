//! sidestep under the name `slirp4netns`: the forwarder for a network namespace that others made (Podman, RootlessKit,
//! Docker), without monitor and supervisor.
//!
//! ```text
//! slirp4netns ── becomes the forwarder: TAP <-> host sockets, in its sandbox; its life is the caller's to end
//!  └─ attendant  outside of the sandbox, on the other end of the link: API socket, ports, resolv.conf, factory
//! ```
//!
//! A third process, gone before these begin, enters the namespaces and hands out the TAP.

mod api_socket;
mod attendant;
mod tap;

use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use rustix::thread::CapabilitySet;
use sidestep_forwarder::link::Link;
use sidestep_forwarder::outbound::Outbound;
use sidestep_forwarder::policy::Policy;
use sidestep_forwarder::slirp4netns::command_line::{self, Parsed, SLIRP_CONFIG_VERSION_MAX, Settings};
use sidestep_forwarder::{Config, Handles, MEMORY_WORDS, sandbox};

use crate::channel::Channel;
use crate::launcher::outbound;
use crate::launcher::resolv_conf::{self, ResolvConf};
use crate::logging::{self, LogSettings};
use crate::sys::{inherited, shared_memory};

use self::tap::Namespaces;

/// Whether this program was started as slirp4netns.
pub fn is_our_name() -> bool {
    std::env::args_os()
        .next()
        .is_some_and(|name| Path::new(&name).file_name().is_some_and(|name| name == "slirp4netns"))
}

/// The whole of it; any failure has exit code 1.
pub fn run() -> ExitCode {
    let settings = match command_line::parse(std::env::args_os().skip(1)) {
        Ok(Parsed::Help) => {
            say(command_line::HELP);
            return ExitCode::SUCCESS;
        }
        Ok(Parsed::Version) => {
            say(&version());
            return ExitCode::SUCCESS;
        }
        Ok(Parsed::Start(settings)) => settings,
        Err(refusal) => {
            eprintln!("{refusal}");
            if refusal.with_help {
                say(command_line::HELP);
            }
            return ExitCode::FAILURE;
        }
    };
    logging::init(LogSettings::default());
    match serve(*settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What callers read: the interface's version first, then what it is made of.
fn version() -> String {
    format!(
        "{}\ncommit: sidestep {}\nlibslirp: none\nSLIRP_CONFIG_VERSION_MAX: {SLIRP_CONFIG_VERSION_MAX}\nlibseccomp: {}\n",
        command_line::VERSION,
        env!("CARGO_PKG_VERSION"),
        sidestep_seccomp_profile::library_version(),
    )
}

fn serve(settings: Settings) -> anyhow::Result<()> {
    let outbound = outbound(&settings)?;
    let take = |option: &str, number: Option<_>| number.map(|number| inherited::take_any(option, number)).transpose();
    let ready = take("--ready-fd", settings.ready_fd)?;
    let exit = take("--exit-fd", settings.exit_fd)?;
    let namespaces = Namespaces::open(&settings)?;
    let tap = tap::make(&namespaces, &settings)?;
    let api = settings.api_socket.as_deref().map(listen).transpose()?;
    let (attendants, ours) = Channel::pair().context("cannot make a socket pair")?;
    // Without an exit descriptor nothing ever ends the other end of this one but our own end.
    let (mut stop, never) = Channel::pair().map(|(stop, never)| (OwnedFd::from(stop), never))?;
    if let Some(exit) = exit {
        stop = exit;
    }

    let not_its_own = [Some(tap.as_raw_fd()), ready.as_ref().map(OwnedFd::as_raw_fd), Some(stop.as_raw_fd())];
    let not_its_own: Vec<_> = not_its_own.into_iter().flatten().chain([ours.as_fd().as_raw_fd()]).collect();
    attendant::start(&attendants, &namespaces, api.as_ref(), settings.network.v4.guest(), &not_its_own)?;
    drop((api, namespaces));

    let host = ResolvConf::parse(&std::fs::read_to_string(resolv_conf::PATH).unwrap_or_default());
    let config = Config {
        network: settings.network.clone(),
        policy: Policy { host_loopback: settings.host_loopback, rules: Vec::new() },
        outbound,
        resolvers: host.resolvers,
        search: host.search,
    };
    let memory = shared_memory::create("sidestep-connections", MEMORY_WORDS * size_of::<u64>())?;
    let memory = shared_memory::map_words(memory, MEMORY_WORDS).context("cannot map the connections' memory")?;
    announce(&settings);
    let handles = Handles { tap, stop, link: Some(Link::new(ours, 0)), capture: None, ports: Vec::new() };
    let needs_sandbox = settings.needs_sandbox;
    let done = sidestep_forwarder::run(config, handles, memory, || confine(needs_sandbox), || tell_ready(ready));
    // Both ends of either channel are open until here: a link whose attendant is gone is merely silent.
    drop((attendants, never));
    done
}

/// Whoever asked for a sandbox gets it or nothing. Others have what they would have with slirp4netns: without the right
/// to make namespaces it runs all the same.
fn confine(needs_sandbox: bool) -> anyhow::Result<()> {
    // Callers look for this one, which is what slirp4netns keeps to listen at privileged ports.
    match sandbox::enter_keeping(CapabilitySet::NET_BIND_SERVICE) {
        Err(error) if !needs_sandbox => {
            tracing::warn!("no sandbox: {error:#}");
            Ok(())
        }
        entered => entered,
    }
}

fn tell_ready(ready: Option<OwnedFd>) -> anyhow::Result<()> {
    match ready {
        Some(ready) => File::from(ready).write_all(b"1").context("cannot write to the ready-fd"),
        None => Ok(()),
    }
}

/// What slirp4netns tells on standard output.
fn announce(settings: &Settings) {
    let v4 = settings.network.v4;
    let mut text = format!(
        "Starting slirp\n* MTU:             {}\n* Network:         {}\n* Netmask:         {}\n* Gateway:         {}\n\
         * DNS:             {}\n* Recommended IP:  {}\n",
        settings.network.mtu,
        v4.network(),
        v4.netmask(),
        v4.gateway(),
        v4.resolver(),
        v4.guest()
    );
    if let Some(path) = &settings.api_socket {
        text += &format!("* API Socket:      {}\n", path.display());
    }
    if settings.host_loopback {
        text += &format!("The host's 127.0.0.1 is open at {} (--disable-host-loopback closes it)\n", v4.gateway());
    }
    say(&text);
}

/// Whoever does not listen misses nothing.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush());
}

/// As slirp4netns takes them: an address need not be the host's yet.
fn outbound(settings: &Settings) -> anyhow::Result<Outbound> {
    let mut outbound = Outbound::default();
    if let Some(text) = &settings.outbound_addr {
        outbound.v4 = match text.parse().or_else(|_| outbound::of_interface("--outbound-addr", text, false)) {
            Ok(IpAddr::V4(addr)) => Some(addr),
            _ => return Err(anyhow!("outbound-addr has to be valid ipv4 address or interface name.")),
        };
    }
    if let Some(text) = &settings.outbound_addr6 {
        outbound.v6 = match text.parse().or_else(|_| outbound::of_interface("--outbound-addr6", text, true)) {
            Ok(IpAddr::V6(addr)) => Some(addr),
            _ => return Err(anyhow!("outbound-addr6 has to be valid ipv6 address or interface name.")),
        };
    }
    Ok(outbound)
}

/// A socket left by one that ended gives way.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
        std::fs::remove_file(path).with_context(|| format!("cannot replace the API socket {}", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot make the API socket {}", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
