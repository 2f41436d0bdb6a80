//! What is done about a predecessor's shadows, against a forwarder that the test is.

use sidestep_forwarder::link::{ToForwarder, ToSupervisor};
use sidestep_forwarder::ports::{Origin, Publication};

use super::*;
use crate::channel::Channel;
use crate::publish::Sharing;
use crate::supervisor::link::tests::heard;

/// Its shadow is known only when the forwarder has told of it.
#[test]
fn room_is_made_where_a_program_of_a_predecessor_was() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (link, forwarder) = Channel::pair().unwrap();
        let link = Link::start(link.into(), None, Some(0)).unwrap();
        let ports = Ports::start(Arc::clone(&link), Sharing::WithPrograms, None);
        let netlink = socket::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG).unwrap();
        let (listening, event_loop) = (Listening::new(netlink).unwrap(), Handle::current());
        let listeners = HostListeners { ports, link, listening, auto: None, event_loop, removing: Mutex::default() };
        let (begins, begun) = tokio::sync::oneshot::channel();
        let mut making_room = tokio::task::spawn_blocking(move || {
            let _ = begins.send(());
            listeners.make_room(80);
        });
        begun.await.unwrap();
        // One that does not wait for the forwarder is over by then.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }

        let socket = || socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        let (host_port, guest_port) = (1, 80);
        let publication = Publication { transport: Transport::Tcp, host: None, host_port, guest: None, guest_port };
        let entry = Entry { number: 1, origin: Origin::Start, publication };
        let shadow = Shadow { program: 7, port: 1, guest_port, to: ([127, 0, 0, 1], host_port).into() };
        let mut is_removed = false;
        loop {
            let message = tokio::select! {
                message = heard(&forwarder) => message,
                made = &mut making_room => break made.unwrap(),
            };
            // All that there is, and then that there is no more.
            let (answer, of) = match message {
                ToForwarder::Ports { id, from: 0 } => (ToSupervisor::Ports { id, ports: vec![entry] }, 1),
                ToForwarder::Ports { id, .. } => (ToSupervisor::Ports { id, ports: Vec::new() }, 0),
                ToForwarder::Shadows { id, from: 0 } => (ToSupervisor::Shadows { id, shadows: vec![shadow] }, 1),
                ToForwarder::Shadows { id, .. } => (ToSupervisor::Shadows { id, shadows: Vec::new() }, 0),
                ToForwarder::Unshadow { id, program } => {
                    assert_eq!(program, 7);
                    is_removed = true;
                    (ToSupervisor::Unshadowed { id }, 0)
                }
                _ => continue,
            };
            let sockets: Vec<_> = (0..of).map(|_| socket()).collect();
            let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            forwarder.send(&answer, &sockets).unwrap();
        }
        assert!(is_removed);
    });
}
