//! The API socket: one request a connection, answered by what the forwarder's ports are then.
//!
//! Whoever says nothing, too much, or goes away is one connection: [`CONNECTIONS`] at a time, of which the oldest gives
//! way to a newcomer, each for [`TIME_LIMIT`], with [`REQUEST_MAX`] bytes.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use sidestep_forwarder::ports::{Entry, Origin, Publication};
use sidestep_forwarder::slirp4netns::api::{self, BadRequest, REQUEST_MAX, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::supervisor::ports::{Ports, Refused};

/// More than a caller ever has open, and few enough for any limit of descriptors.
const CONNECTIONS: usize = 64;
/// For the request and its answer.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// How long a port that cannot be had is tried again: `podman restart` asks for it without waiting for the end of the
/// forwarder that had it.
const PORT_WITHIN: Duration = Duration::from_secs(1);
/// Before the next try: a port, or a client for whom there was no descriptor.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until the process ends. `guest` is where ports lead unless it is said otherwise.
pub async fn serve(listener: UnixListener, ports: Arc<Ports>, guest: Ipv4Addr) {
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let ports = Arc::clone(&ports);
        let connection = tokio::spawn(async move {
            // Whoever is late or gone does not hear of it.
            let _ = timeout(TIME_LIMIT, converse(stream, &ports, guest)).await;
        });
        connections.push_back(connection.abort_handle());
    }
}

async fn converse(mut stream: UnixStream, ports: &Ports, guest: Ipv4Addr) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(REQUEST_MAX);
    let request = loop {
        let room = REQUEST_MAX - bytes.len();
        let has_ended = (&mut stream).take(u64::try_from(room).unwrap_or(0)).read_buf(&mut bytes).await? == 0;
        if let Some(request) = api::parse(&bytes, has_ended, guest) {
            break request;
        }
    };
    let reply = match request {
        Ok(request) => carry_out(ports, request).await,
        Err(error) => Err(error),
    };
    stream.write_all(reply.unwrap_or_else(BadRequest::reply).as_bytes()).await?;
    stream.shutdown().await
}

async fn carry_out(ports: &Ports, request: Request) -> Result<String, BadRequest> {
    match request {
        Request::AddHostfwd(publication) => match add(ports, publication).await.as_deref() {
            Ok([entry, ..]) => Ok(api::added(entry.number)),
            failed => {
                tracing::warn!("add_hostfwd: {}", failed.err().map_or_else(String::new, ToString::to_string));
                Err(BadRequest::AddFailed)
            }
        },
        Request::ListHostfwd => Ok(api::listed(&ports.list().await.unwrap_or_default())),
        Request::RemoveHostfwd(id) => match ports.remove(id).await {
            Ok(()) => Ok(api::removed()),
            Err(Refused::Unknown(_)) => Err(BadRequest::RemoveId),
            Err(_) => Err(BadRequest::RemoveFailed),
        },
    }
}

async fn add(ports: &Ports, publication: Publication) -> Result<Vec<Entry>, Refused> {
    let deadline = Instant::now() + PORT_WITHIN;
    loop {
        match ports.add(Origin::Added, vec![publication]).await {
            Err(Refused::Taken(_)) if Instant::now() < deadline => sleep(PAUSE).await,
            done => return done,
        }
    }
}
