//! One stopped system call, from the caller's instruction to its return, answered by a thread that does nothing else.
//!
//! It is what the kernel takes for any bypass made of seccomp notifications: two context switches and two ioctls. Hold a
//! connect in place to 127.0.0.1 (its rate in docs/performance.md) against it, and it against a call that is not stopped.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use criterion::Criterion;
use rustix::net::{AddressFamily, SocketType, listen, socket};
use sidestep::listener::{Listener, NOTIFICATION_WORDS, Received, Reply, clear};
use sidestep_seccomp_profile::{filter, load};

/// The last of the pieces: the filter stays on this thread.
pub fn pieces(criterion: &mut Criterion) {
    let socket: OwnedFd = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    let (listeners, taken) = mpsc::channel();
    std::thread::spawn(move || answer(&taken.recv().expect("a listener")));

    rustix::thread::set_no_new_privs(true).expect("no_new_privs");
    let listener =
        load::load(&filter::build().expect("a filter")).expect("a kernel with seccomp and no other listener");
    listeners.send(Listener::new(listener)).expect("the answering thread");

    let mut group = criterion.benchmark_group("notification");
    group.bench_function("round trip", |bench| bench.iter(|| listen(&socket, 1)));
    group.bench_function("not stopped", |bench| bench.iter(|| rustix::net::getsockname(&socket)));
    group.finish();
}

/// EINVAL, which the kernel itself would have said, until nobody is left under the filter.
fn answer(listener: &Listener) {
    let words = [const { AtomicU64::new(0) }; NOTIFICATION_WORDS];
    loop {
        clear(&words);
        match listener.receive(&words).expect("a notification") {
            Received::Notification => {
                let id = words[0].load(std::sync::atomic::Ordering::Relaxed);
                let _ = listener.send(id, Reply::Errno(libc::EINVAL)).expect("an answer");
            }
            Received::Nothing => {}
            Received::FilterUnused => return,
        }
    }
}
