//! Why a call was not taken out, or not carried out: said by the decision, the swap and listen(2), named in the log and in
//! the counters.

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    NotIp,
    /// No socket that is taken out: UDP without `--bypass-udp`, raw, a connection of MPTCP.
    NotTcp,
    /// Without `--bypass-nested`, or one that cannot be asked.
    NestedNamespace,
    NotConnect,
    NotAnAddress,
    /// connect to AF_UNSPEC on a host socket.
    Disconnect,
    InUse,
    Bound,
    Signals,
    VirtualAddress,
    Multicast,
    PortZero,
    /// The route inside leads elsewhere: loopback, a bridge, another device, nowhere.
    Route,
    /// A rule of the workspace's netfilter could touch it.
    Netfilter,
    /// The host would not send it to one peer.
    HostRoute,
    Policy,
    // What shows only in the swap.
    /// One of the namespaces has no sockets of this family.
    NoFamily,
    /// An option that has no meaning, or another one, on a host socket.
    SocketOption,
    SocketFilter,
    /// Sticky IPv6 headers and packet information.
    ExtensionHeaders,
    /// A priority that takes a privilege.
    Priority,
    /// The host socket did not take an option's value.
    NotTaken,
    /// A UDP socket could not be bound to the interface it would leave by.
    Interface,
    // Of listen(2).
    /// The port is not published, or not for a socket of this family.
    NotPublished,
    /// The program shares its port with others (SO_REUSEPORT), or it is published more than once.
    SharedPort,
    /// The host's port could not be shared.
    HostPort,
    // Of a connect to a program that listens on the host.
    /// The host has it at another address or port, which the program that connects would see; or its queue is full.
    Relayed,
}

impl Reason {
    /// In the order of their declaration.
    pub const ALL: [Self; 27] = [
        Self::NotIp,
        Self::NotTcp,
        Self::NestedNamespace,
        Self::NotConnect,
        Self::NotAnAddress,
        Self::Disconnect,
        Self::InUse,
        Self::Bound,
        Self::Signals,
        Self::VirtualAddress,
        Self::Multicast,
        Self::PortZero,
        Self::Route,
        Self::Netfilter,
        Self::HostRoute,
        Self::Policy,
        Self::NoFamily,
        Self::SocketOption,
        Self::SocketFilter,
        Self::ExtensionHeaders,
        Self::Priority,
        Self::NotTaken,
        Self::Interface,
        Self::NotPublished,
        Self::SharedPort,
        Self::HostPort,
        Self::Relayed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::NotTcp => "not_tcp",
            Self::NestedNamespace => "nested_namespace",
            Self::NotConnect => "not_connect",
            Self::NotAnAddress => "not_an_address",
            Self::Disconnect => "disconnect",
            Self::InUse => "in_use",
            Self::Bound => "bound",
            Self::Signals => "signals",
            Self::VirtualAddress => "virtual_address",
            Self::Multicast => "multicast",
            Self::PortZero => "port_zero",
            Self::Route => "route",
            Self::Netfilter => "netfilter",
            Self::HostRoute => "host_route",
            Self::Policy => "policy",
            Self::NoFamily => "no_family",
            Self::SocketOption => "socket_option",
            Self::SocketFilter => "socket_filter",
            Self::ExtensionHeaders => "extension_headers",
            Self::Priority => "priority",
            Self::NotTaken => "not_taken",
            Self::Interface => "interface",
            Self::NotPublished => "not_published",
            Self::SharedPort => "shared_port",
            Self::HostPort => "host_port",
            Self::Relayed => "relayed",
        }
    }
}
