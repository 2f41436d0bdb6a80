//! Everything decided on the host before anything is made: checks first, so that a refusal leaves nothing behind.

use std::ffi::CString;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, ensure};
use sidestep_forwarder::network::{Ipv6Subnet, VirtualNetwork};
use sidestep_forwarder::outbound::Outbound;
use sidestep_forwarder::policy::{Policy, Transport};
use sidestep_forwarder::ports::{Entry, MAX_PORTS, Origin, Published};

use super::confine::Confinement;
use super::id_map::IdMaps;
use super::resolv_conf::{self, ResolvConf};
use super::{Bypass, Choice, Mtu, Settings, host, outbound};
use crate::logging::LogFormat;
use crate::publish::{self, Sharing, Spec};
use crate::supervisor::{Extent, PublishAuto};

pub struct Plan {
    pub network: VirtualNetwork,
    pub policy: Policy,
    /// What the bypass takes out besides TCP of the workspace's own namespace.
    pub extent: Extent,
    pub outbound: Outbound,
    /// The host's, for the forwarder.
    pub resolvers: Vec<SocketAddr>,
    pub search: Vec<String>,
    pub ifname: String,
    /// Published ports, taken already.
    pub ports: Vec<Published>,
    pub confinement: Confinement,
    /// `--publish-auto`.
    pub publish_auto: Option<PublishAuto>,
    pub(super) pidns: Choice,
    pub(super) id_maps: IdMaps,
    /// Text of the workspace's resolv.conf.
    pub(super) resolv_conf: String,
    pub(super) command: Vec<CString>,
    pub(super) log_format: LogFormat,
    /// Signal mask the command starts with, as the caller of sidestep had it.
    pub(super) sigmask: u64,
}

impl Plan {
    /// False only where `--pidns=off` was given.
    pub fn wants_pid_namespace(&self) -> bool {
        self.pidns != Choice::Off
    }

    pub fn new(settings: &Settings, sigmask: u64) -> anyhow::Result<Self> {
        let mtu = match settings.mtu {
            Mtu::Fixed(mtu) => mtu,
            Mtu::Auto => host::default_mtu(),
        };
        let mut network =
            VirtualNetwork::new(settings.cidr, wants_ipv6(settings.ipv6)?.then_some(Ipv6Subnet::DEFAULT), mtu);
        network.dns = !settings.disable_dns;
        if let Some(mac) = settings.macaddress {
            ensure!(mac != network.gateway_mac, "--macaddress: the gateway has this address; choose another");
            network.guest_mac = mac;
        }
        let policy = Policy { host_loopback: settings.host_loopback, rules: settings.egress_rules.clone() };
        let host_resolv_conf = ResolvConf::parse(&fs::read_to_string(resolv_conf::PATH).unwrap_or_default());
        let command = settings.command.iter().map(|argument| CString::new(argument.as_bytes()));
        Ok(Self {
            extent: extent(settings, &policy)?,
            policy,
            resolv_conf: host_resolv_conf.for_workspace(&network),
            resolvers: host_resolv_conf.resolvers,
            search: host_resolv_conf.search,
            outbound: outbound::resolve(settings.outbound_addr.as_deref(), settings.outbound_addr6.as_deref())?,
            network,
            ifname: settings.ifname.clone(),
            confinement: Confinement::choose(settings.bypass)?,
            publish_auto: settings.publish_auto.map(|host| PublishAuto { host }),
            pidns: settings.pidns,
            id_maps: IdMaps::plan(settings.keep_id)?,
            command: command.collect::<Result<_, _>>().context("an argument has a zero byte in it")?,
            log_format: settings.log.format,
            sigmask,
            ports: take_ports(settings)?,
        })
    }
}

fn take_ports(settings: &Settings) -> anyhow::Result<Vec<Published>> {
    let specs = &settings.publish;
    let sharing = if settings.bypass == Bypass::Off { Sharing::No } else { Sharing::WithPrograms };
    let count = specs.iter().flat_map(Spec::publications).count();
    ensure!(count <= MAX_PORTS, "--publish: {count} ports, and {MAX_PORTS} are possible");
    let entries = (1..).zip(specs.iter().flat_map(Spec::publications));
    let listen = |(number, publication)| publish::listen(Entry { number, origin: Origin::Start, publication }, sharing);
    entries.map(listen).collect()
}

fn extent(settings: &Settings, policy: &Policy) -> anyhow::Result<Extent> {
    if settings.bypass_udp {
        ensure!(settings.bypass != Bypass::Off, "--bypass-udp takes UDP past the TAP, which needs --bypass as well");
        ensure!(
            !policy.restricts(Transport::Udp),
            "--bypass-udp cannot keep to a --deny: a UDP socket taken out sends wherever it likes; give the rule for \
             /tcp only, or leave --bypass-udp out"
        );
    }
    ensure!(
        !settings.bypass_nested || settings.bypass != Bypass::Off,
        "--bypass-nested takes connections of containers past the TAP, which needs --bypass as well"
    );
    Ok(Extent { udp: settings.bypass_udp, nested: settings.bypass_nested })
}

fn wants_ipv6(choice: Choice) -> anyhow::Result<bool> {
    let kernel_has_it = Path::new("/proc/net/if_inet6").exists();
    match choice {
        Choice::Off => Ok(false),
        Choice::Auto => Ok(kernel_has_it && host::default_device_v6().is_some()),
        Choice::On => {
            ensure!(kernel_has_it, "--ipv6=on: this kernel runs without IPv6 (ipv6.disable=1); use --ipv6=off");
            Ok(true)
        }
    }
}
