//! bind and listen as programs know them, although the supervisor carries them out.

use anyhow::Result;

use crate::lab::workspace::Workspace;

crate::cases! {
    EVERY_WAY: own_privileged_port, nested_network;
    EVERYWHERE: privileged_port_of_others, unix_credentials, twice_bound;
}

/// Root of the workspace may bind any port of its own network.
fn own_privileged_port(ws: Workspace) -> Result<()> {
    ws.python(
        "s = tcp('0.0.0.0'); s.bind(('0.0.0.0', 80)); s.listen()
c = dial('127.0.0.1', 80); print(side(s.accept()[0]))",
    )?
    .printed("workspace")
}

/// Root of a user namespace inside has every capability there, and none over the network around it.
fn privileged_port_of_others(ws: Workspace) -> Result<()> {
    let code = "import socket, errno
try: socket.socket().bind(('0.0.0.0', 81)); print('bound')
except OSError as e: print(errno.errorcode[e.errno])";
    ws.run(["unshare", "--user", "--map-root-user", "/usr/bin/python3", "-c", code])?.printed("EACCES")
}

/// A network namespace of a nested user namespace belongs to the root there.
fn nested_network(ws: Workspace) -> Result<()> {
    let code = "import socket
s = socket.socket(); s.bind(('0.0.0.0', 81)); s.listen(); print(s.getsockname())";
    ws.run(["unshare", "--user", "--map-root-user", "--net", "/usr/bin/python3", "-c", code])?
        .printed("('0.0.0.0', 81)")
}

/// What a client of a Unix socket sees of who listens.
fn unix_credentials(ws: Workspace) -> Result<()> {
    ws.python(
        "s = socket.socket(socket.AF_UNIX); s.bind('\\0sidestep-test'); s.listen()
c = socket.socket(socket.AF_UNIX); c.connect('\\0sidestep-test')
server = struct.unpack('3i', c.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
client = struct.unpack('3i', s.accept()[0].getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
print(server[1:] == client[1:] == (os.getuid(), os.getgid()), client[0] == os.getpid())",
    )?
    .printed("True True")
}

fn twice_bound(ws: Workspace) -> Result<()> {
    ws.python(
        "s = tcp('127.0.0.1'); s.bind(('127.0.0.1', 0)); s.listen()
print(outcome(lambda: s.bind(('127.0.0.1', 0))), outcome(lambda: tcp('127.0.0.1').bind(s.getsockname())),
    outcome(lambda: tcp('127.0.0.1').bind(('203.0.113.1', 1000))))",
    )?
    .printed("EINVAL EADDRINUSE EADDRNOTAVAIL")
}
