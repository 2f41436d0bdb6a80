//! Epolls that watch a socket before it connects: the swap must not be noticed. Everything holds on the host too.

use anyhow::Result;

use crate::lab::REMOTE;
use crate::lab::command::Finished;
use crate::lab::servers::{self, TcpServer};
use crate::lab::workspace::Workspace;

crate::cases! {
    EVERYWHERE: registered_before, several_epolls, one_shot, duplicate_alive, refused, waiting_thread, inherited;
}

/// A nonblocking connect on `s`, then `rest`; `ep` watches `s` from before.
fn watched(ws: &Workspace, before: &str, rest: &str) -> Result<Finished> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    ws.python(&format!(
        "s = tcp('{addr}'); s.setblocking(False)
ep = select.epoll()
def wait(e=None):
    return (e or ep).poll(20)
{before}
s.connect_ex(('{addr}', {port}))
{rest}",
        addr = REMOTE[0],
        port = echo.addr.port()
    ))
}

/// Edge-triggered, and the program's own modification and removal fit afterwards.
fn registered_before(ws: Workspace) -> Result<()> {
    watched(
        &ws,
        "ep.register(s, select.EPOLLOUT | select.EPOLLIN | select.EPOLLET)
ep.poll(0)",
        "events = wait()
while events and not events[0][1] & select.EPOLLOUT: events = wait()
assert events[0][0] == s.fileno() and not events[0][1] & select.EPOLLHUP, events
s.send(b'ping')
events = wait()
assert events == [(s.fileno(), select.EPOLLIN | select.EPOLLOUT)], events
assert s.recv(9) == b'ping'
ep.modify(s, select.EPOLLOUT)
assert wait() == [(s.fileno(), select.EPOLLOUT)]
ep.unregister(s)
assert ep.poll(0) == []
ep.register(s, select.EPOLLOUT)
print('done')",
    )?
    .printed("done")
}

fn several_epolls(ws: Workspace) -> Result<()> {
    watched(
        &ws,
        "others = [select.epoll() for _ in range(3)]
for e in others + [ep]: e.register(s, select.EPOLLIN)
others.append(select.epoll())
for e in others + [ep]: e.poll(0)",
        "select.select([], [s], [], 20)
s.send(b'ping')
for e in others[:3] + [ep]: assert wait(e) == [(s.fileno(), select.EPOLLIN)]
assert others[3].poll(0) == []
print('done')",
    )?
    .printed("done")
}

fn one_shot(ws: Workspace) -> Result<()> {
    watched(
        &ws,
        "ep.register(s, select.EPOLLIN | select.EPOLLONESHOT)
ep.poll(0)
ep.modify(s, select.EPOLLIN | select.EPOLLONESHOT)",
        "select.select([], [s], [], 20)
s.send(b'ping')
events = wait()
while events and not events[0][1] & select.EPOLLIN:
    ep.modify(s, select.EPOLLIN | select.EPOLLONESHOT)
    events = wait()
assert ep.poll(0) == [], 'once'
ep.modify(s, select.EPOLLIN | select.EPOLLONESHOT)
assert wait() == [(s.fileno(), select.EPOLLIN)]
print('done')",
    )?
    .printed("done")
}

/// A copy of the unconnected socket keeps its registration alive in the kernel: nothing of it may show.
fn duplicate_alive(ws: Workspace) -> Result<()> {
    watched(
        &ws,
        "ep.register(s, select.EPOLLIN)
ep.poll(0)
copy = os.dup(s.fileno())",
        "select.select([], [s], [], 20)
os.close(copy) if side(s) == 'workspace' else None
s.send(b'ping')
events = wait()
assert events == [(s.fileno(), select.EPOLLIN)], events
assert s.recv(9) == b'ping'
assert ep.poll(0.1) == []
s.close()
assert ep.poll(0.1) == []
print('done')",
    )?
    .printed("done")
}

fn refused(ws: Workspace) -> Result<()> {
    let port = servers::closed_port(&ws.lab.remote, REMOTE[0])?.port();
    ws.python(&format!(
        "s = tcp('{addr}'); s.setblocking(False)
ep = select.epoll(); ep.register(s, select.EPOLLOUT | select.EPOLLET); ep.poll(0)
s.connect_ex(('{addr}', {port}))
events = ep.poll(20)
while events and not events[0][1] & select.EPOLLERR: events = ep.poll(20)
assert events[0][1] & select.EPOLLHUP, events
print(errno.errorcode[s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)])",
        addr = REMOTE[0]
    ))?
    .printed("ECONNREFUSED")
}

/// Somebody sleeps in epoll_wait while another thread connects, blocking.
fn waiting_thread(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    ws.python(&format!(
        "s = tcp('{addr}')
ep = select.epoll(); ep.register(s, select.EPOLLIN | select.EPOLLET)
ep.poll(0)
got = []
def sleeper():
    while True:
        for number, events in ep.poll(20):
            if not events & select.EPOLLHUP: return got.append((number, events))
t = threading.Thread(target=sleeper); t.start()
s.connect(('{addr}', {port}))
s.send(b'ping')
t.join(20)
assert got == [(s.fileno(), select.EPOLLIN)], got
print('done')",
        addr = REMOTE[0],
        port = echo.addr.port()
    ))?
    .printed("done")
}

/// An epoll made by the parent: no epoll_create of this process ever told of it.
fn inherited(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    ws.python(&format!(
        "ep = select.epoll()
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
s = tcp('{addr}'); s.setblocking(False)
ep.register(s, select.EPOLLIN); ep.poll(0)
s.connect_ex(('{addr}', {port}))
select.select([], [s], [], 20)
s.send(b'ping')
assert ep.poll(20) == [(s.fileno(), select.EPOLLIN)]
print('done')",
        addr = REMOTE[0],
        port = echo.addr.port()
    ))?
    .printed("done")
}
