//! The control socket: HTTP/1.1 with JSON on a Unix socket in the state directory, for the caller of `sidestep run` and
//! root, not for the workspace ([`peer`]).
//!
//! | request            | answer                                             |
//! |--------------------|----------------------------------------------------|
//! | `GET /v1/state`    | what state.json says when nobody has changed it    |
//! | `GET /v1/counters` | what supervisor and forwarder have counted         |
//! | `GET /v1/flows`    | the largest flows of the forwarder                 |
//! | `GET /v1/ports`    | published ports                                    |
//! | `POST /v1/ports`   | `{"publish": "8080:80"}`: those published by it     |
//! | `DELETE /v1/ports/N` | publishes the port with number N no more         |
//! | `GET /metrics`     | the counters as Prometheus reads them              |
//!
//! A connection carries one request, and is closed after [`WITHIN`] whatever it has come to. Errors are
//! `{"error": "one sentence"}`.

pub mod client;
mod metrics;
pub mod peer;

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::fs::{AtFlags, Mode, fchmod, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, listen, socket_with};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sidestep_forwarder::ports::Origin;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::sync::watch::Receiver;
use tokio::time::{sleep, timeout};

use crate::publish::Spec;
use crate::state_dir::CONTROL_SOCKET;

use super::counters::{self, Counters};
use super::link::{Link, Silent};
use super::ports::{Ports, Refused};

/// Connections at a time; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 16;
/// From accept to the answer's last byte.
const WITHIN: Duration = Duration::from_secs(5);
/// Request line and headers; hyper's least is 8 KB.
const HEAD_MAX: usize = 8 * 1024;
/// A body: one wish for ports.
const WISH_MAX: usize = 1024;
/// Out of descriptors, say: a moment later there may be some.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What is answered from.
pub struct Control {
    /// The monitor's word; None until it has come.
    pub state: Receiver<Option<String>>,
    pub counters: Arc<Counters>,
    pub link: Arc<Link>,
    pub ports: Arc<Ports>,
    /// Deaths of supervisors before this one.
    pub restarts: u64,
}

type Answer = Response<Full<Bytes>>;

/// Binds the socket in the state directory; one that a predecessor left is replaced.
pub fn bind(state_dir: BorrowedFd<'_>) -> anyhow::Result<UnixListener> {
    match unlinkat(state_dir, CONTROL_SOCKET, AtFlags::empty()) {
        Err(error) if error != Errno::NOENT => return Err(error).context("cannot remove what is in its place"),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // What bind(2) makes has the socket's mode. By its name it could be another's by then.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let path = format!("/proc/self/fd/{}/{CONTROL_SOCKET}", state_dir.as_raw_fd());
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?).context("cannot bind it")?;
    listen(&socket, libc::SOMAXCONN)?;
    Ok(UnixListener::from_std(socket.into())?)
}

/// Serves until the event loop ends.
pub async fn serve(listener: UnixListener, control: Arc<Control>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept on the control socket");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        if let Err(stranger) = peer::check_client(stream.as_fd()) {
            tracing::debug!("refused on the control socket: {stranger}");
            refuse(&stream);
            continue;
        }
        let control = Arc::clone(&control);
        tokio::spawn(async move {
            let _place = place;
            let answering = service_fn(|request| control.answer(request));
            let served = hyper::server::conn::http1::Builder::new()
                .keep_alive(false)
                .max_buf_size(HEAD_MAX)
                .serve_connection(TokioIo::new(stream), answering);
            match timeout(WITHIN, served).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("on the control socket: {error}"),
                Err(_) => tracing::debug!("on the control socket: nothing for too long"),
            }
        });
    }
}

/// Told, as far as there is room; nothing of a stranger's is read or waited for.
fn refuse(stream: &UnixStream) {
    const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let _ = stream.try_write(FORBIDDEN.as_bytes());
}

impl Control {
    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let path = request.uri().path();
        if path == "/v1/ports" || path.starts_with("/v1/ports/") {
            return Ok(self.ports(request).await);
        }
        if !matches!(path, "/v1/state" | "/v1/counters" | "/v1/flows" | "/metrics") {
            return Ok(error(StatusCode::NOT_FOUND, &format!("no {path} here")));
        }
        if request.method() != Method::GET {
            return Ok(error(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} is for GET")));
        }
        Ok(match path {
            "/v1/state" => match self.state().await {
                Some(text) => answer(StatusCode::OK, "application/json", text),
                None => error(StatusCode::SERVICE_UNAVAILABLE, "the workspace has ended"),
            },
            "/v1/counters" => json_answer(StatusCode::OK, &self.counted().await),
            "/v1/flows" => match self.link.flows().await {
                Ok(flows) => json_answer(StatusCode::OK, &flows),
                Err(Silent) => error(StatusCode::SERVICE_UNAVAILABLE, &Silent.to_string()),
            },
            _ => answer(StatusCode::OK, "text/plain; version=0.0.4", metrics::text(&self.counted().await)),
        })
    }

    async fn state(&self) -> Option<String> {
        self.state.clone().wait_for(Option::is_some).await.ok()?.clone()
    }

    async fn ports(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let number = path.strip_prefix("/v1/ports/").map(str::parse);
        let done = match (head.method, number) {
            (Method::GET, None) => self.ports.list().await.map_err(Refused::from).map(|all| (StatusCode::OK, all)),
            (Method::POST, None) => match read_spec(body).await {
                Ok(spec) => {
                    let added = self.ports.add(Origin::Added, spec.publications().collect()).await;
                    added.map(|added| (StatusCode::CREATED, added))
                }
                Err(failed) => return error(StatusCode::BAD_REQUEST, &format!("{failed:#}")),
            },
            (Method::DELETE, Some(Ok(number))) => {
                self.ports.remove(number).await.map(|()| (StatusCode::OK, Vec::new()))
            }
            (_, Some(Err(_))) => return error(StatusCode::NOT_FOUND, &format!("no {path} here")),
            (_, None) => return error(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} is for GET and POST")),
            (_, Some(Ok(_))) => return error(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} is for DELETE")),
        };
        match done {
            Ok((status, entries)) => json_answer(status, &entries),
            Err(refused) => {
                let status = match refused {
                    Refused::Unknown(_) => StatusCode::NOT_FOUND,
                    Refused::Silent(_) | Refused::Monitor(_) => StatusCode::SERVICE_UNAVAILABLE,
                    Refused::Shared(_) | Refused::Full | Refused::Taken(_) => StatusCode::CONFLICT,
                };
                error(status, &refused.to_string())
            }
        }
    }

    /// Without the forwarder's part where it does not answer.
    async fn counted(&self) -> counters::All {
        counters::All {
            supervisor: self.counters.snapshot(),
            forwarder: self.link.counters().await.ok(),
            restarts: counters::Restarts { supervisor: self.restarts, forwarder: self.link.forwarder_restarts() },
        }
    }
}

#[derive(Deserialize)]
struct Wish {
    publish: String,
}

async fn read_spec(body: Incoming) -> anyhow::Result<Spec> {
    let body = Limited::new(body, WISH_MAX).collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
    let wish: Wish = serde_json::from_slice(&body).context("not {\"publish\": \"8080:80\"}")?;
    wish.publish.parse::<Spec>().with_context(|| wish.publish.clone())
}

fn json_answer(status: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_string(body) {
        Ok(text) => answer(status, "application/json", text),
        Err(failed) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", failed.to_string()),
    }
}

fn error(status: StatusCode, sentence: &str) -> Answer {
    json_answer(status, &json!({ "error": sentence }))
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
