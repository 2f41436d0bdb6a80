//! The other end of the control socket: one request, for commands of ours.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::peer;

/// Somewhat more than the supervisor gives a connection.
const WITHIN: Duration = Duration::from_secs(15);
/// A thousand flows are 300 KB.
const BODY_MAX: usize = 4 << 20;

/// The body of the answer to `GET path` on the control socket at `socket`.
pub fn get(socket: &Path, path: &str) -> anyhow::Result<String> {
    request(socket, Method::GET, path, String::new())
}

/// The body of the answer to any request.
pub fn request(socket: &Path, method: Method, path: &str, body: String) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { timeout(WITHIN, request_in_time(socket, method, path, body)).await });
    answer.with_context(|| format!("the supervisor behind {} does not answer", socket.display()))?
}

async fn request_in_time(socket: &Path, method: Method, path: &str, body: String) -> anyhow::Result<String> {
    let stream = match UnixStream::connect(socket).await {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            bail!("no workspace is running behind {}: `sidestep run` starts one", socket.display())
        }
        stream => stream.with_context(|| format!("cannot connect to {}", socket.display()))?,
    };
    // What a hostile workspace put there instead would be printed.
    peer::check_server(stream.as_fd())
        .with_context(|| format!("{} is not served by a supervisor of yours", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(HOST, "sidestep");
    let request = request.body(Full::new(Bytes::from(body)))?;
    let answer = sender.send_request(request).await.context("the supervisor hung up: is this a workspace?")?;
    let status = answer.status();
    ensure!(status != StatusCode::FORBIDDEN, "the supervisor answers nobody but the caller of `sidestep run` and root");
    let body = Limited::new(answer.into_body(), BODY_MAX).collect().await;
    let body = body.map_err(anyhow::Error::from_boxed).context("the supervisor hung up")?.to_bytes();
    let text = String::from_utf8(body.into()).context("an answer that is no text")?;
    if !status.is_success() {
        let sentence =
            serde_json::from_str(&text).ok().and_then(|body: Value| Some(body["error"].as_str()?.to_owned()));
        bail!(sentence.unwrap_or_else(|| format!("{path}: {status}: {text}")));
    }
    Ok(text)
}
