//! The requests of slirp4netns's API socket, and what is answered: one JSON object each way.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Deserializer, Value, json};
use thiserror::Error;

use crate::policy::Transport;
use crate::ports::{Entry, Publication};

/// A request has fewer bytes than this.
pub const REQUEST_MAX: usize = 4096;

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    AddHostfwd(Publication),
    ListHostfwd,
    RemoveHostfwd(u64),
}

/// What is wrong with a request; the words are slirp4netns's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadRequest {
    #[error("too large message")]
    TooLarge,
    #[error("cannot parse JSON")]
    NotJson,
    #[error("json_object() failed")]
    NotObject,
    #[error("no execute found")]
    NoExecute,
    #[error("unknown execute")]
    UnknownExecute,
    #[error("add_hostfwd: bad arguments.{0}")]
    Add(&'static str),
    #[error("add_hostfwd: slirp_add_hostfwd failed")]
    AddFailed,
    #[error("remove_hostfwd: bad arguments.id")]
    RemoveId,
    #[error("remove_hostfwd: slirp_remove_hostfwd failed")]
    RemoveFailed,
}

impl BadRequest {
    pub fn reply(self) -> String {
        json!({"error": {"desc": format!("bad request: {self}")}}).to_string()
    }
}

pub fn added(id: u64) -> String {
    json!({"return": {"id": id}}).to_string()
}

pub fn removed() -> String {
    json!({"return": {}}).to_string()
}

pub fn listed(entries: &[Entry]) -> String {
    let entry = |&Entry { number, publication, .. }: &Entry| {
        json!({
            "id": number,
            "proto": if publication.transport == Transport::Udp { "udp" } else { "tcp" },
            "host_addr": publication.host,
            "host_port": publication.host_port,
            "guest_addr": publication.guest.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            "guest_port": publication.guest_port,
        })
    };
    let entries: Vec<_> = entries.iter().map(entry).collect();
    // Where slirp4netns's manual has them, and where slirp4netns has them.
    json!({"return": {"entries": entries}, "entries": entries}).to_string()
}

/// Reads what has come so far; None: there may be more of it, and it has not `ended`. What follows the first value is
/// nobody's. `guest` is where a port leads unless it says otherwise.
pub fn parse(bytes: &[u8], ended: bool, guest: Ipv4Addr) -> Option<Result<Request, BadRequest>> {
    if bytes.len() >= REQUEST_MAX {
        return Some(Err(BadRequest::TooLarge));
    }
    match Deserializer::from_slice(bytes).into_iter::<Value>().next() {
        Some(Ok(value)) => Some(request(&value, guest)),
        Some(Err(error)) if !error.is_eof() => Some(Err(BadRequest::NotJson)),
        _ => ended.then_some(Err(BadRequest::NotJson)),
    }
}

fn request(value: &Value, guest: Ipv4Addr) -> Result<Request, BadRequest> {
    let object = value.as_object().ok_or(BadRequest::NotObject)?;
    let execute = object.get("execute").and_then(Value::as_str).ok_or(BadRequest::NoExecute)?;
    let arguments = object.get("arguments").unwrap_or(&Value::Null);
    match execute {
        "add_hostfwd" => publication(arguments, guest).map(Request::AddHostfwd).map_err(BadRequest::Add),
        "list_hostfwd" => Ok(Request::ListHostfwd),
        "remove_hostfwd" => {
            arguments.get("id").and_then(Value::as_u64).map(Request::RemoveHostfwd).ok_or(BadRequest::RemoveId)
        }
        _ => Err(BadRequest::UnknownExecute),
    }
}

/// The error is the name of the argument that is wrong.
fn publication(arguments: &Value, guest: Ipv4Addr) -> Result<Publication, &'static str> {
    let transport = match arguments.get("proto").and_then(Value::as_str) {
        Some("tcp") => Transport::Tcp,
        Some("udp") => Transport::Udp,
        _ => return Err("proto"),
    };
    let address = |name: &'static str, default: Ipv4Addr| match arguments.get(name).and_then(Value::as_str) {
        None | Some("") => Ok(default),
        Some(text) => text.parse().map_err(|_| name),
    };
    let port = |name: &'static str| {
        let port = arguments.get(name).and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
        port.filter(|&port| port != 0).ok_or(name)
    };
    let host = address("host_addr", Ipv4Addr::UNSPECIFIED)?;
    let host_port = port("host_port")?;
    let guest = address("guest_addr", guest)?;
    // Nobody could listen there, or be reached from outside.
    if guest.is_multicast() || guest.is_loopback() {
        return Err("guest_addr");
    }
    let guest_port = port("guest_port")?;
    // Whoever has DHCP's first address, for slirp4netns: the workspace, wherever it is.
    let guest = Some(IpAddr::V4(guest)).filter(|guest| !guest.is_unspecified());
    Ok(Publication { transport, host: Some(host.into()), host_port, guest, guest_port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Origin;

    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);

    fn add(arguments: &str) -> Option<Result<Request, BadRequest>> {
        parse(format!("{{\"execute\":\"add_hostfwd\",\"arguments\":{arguments}}}\n").as_bytes(), false, GUEST)
    }

    #[test]
    fn ports_are_added_listed_and_removed() {
        let some = |transport, host: [u8; 4], host_port, guest: [u8; 4], guest_port| Publication {
            transport,
            host: Some(Ipv4Addr::from(host).into()),
            host_port,
            guest: Some(Ipv4Addr::from(guest).into()),
            guest_port,
        };
        let default = some(Transport::Tcp, [0; 4], 8080, GUEST.octets(), 80);
        let whole = some(Transport::Udp, [127, 0, 0, 1], 5353, [10, 0, 2, 15], 53);
        let anywhere = Publication { guest: None, ..default };
        let cases = [
            (r#"{"proto":"tcp","host_port":8080,"guest_port":80}"#, default),
            (r#"{"proto":"tcp","host_addr":"","host_port":8080,"guest_addr":"","guest_port":80}"#, default),
            (r#"{"proto":"tcp","host_port":8080,"guest_addr":"0.0.0.0","guest_port":80}"#, anywhere),
            (
                r#"{"proto":"udp","host_addr":"127.0.0.1","host_port":5353,"guest_addr":"10.0.2.15","guest_port":53}"#,
                whole,
            ),
        ];
        for (arguments, want) in cases {
            assert_eq!(add(arguments), Some(Ok(Request::AddHostfwd(want))), "{arguments}");
        }
        let entry = |number, publication| Entry { number, origin: Origin::Added, publication };
        let entries = json!([
            {"id": 1, "proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080,
             "guest_addr": "10.0.2.100", "guest_port": 80},
            {"id": 7, "proto": "udp", "host_addr": "127.0.0.1", "host_port": 5353,
             "guest_addr": "10.0.2.15", "guest_port": 53},
            {"id": 8, "proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080,
             "guest_addr": "0.0.0.0", "guest_port": 80},
        ]);
        assert_eq!(
            serde_json::from_str::<Value>(&listed(&[entry(1, default), entry(7, whole), entry(8, anywhere)])).unwrap(),
            json!({"return": {"entries": entries}, "entries": entries})
        );
        assert_eq!(
            (listed(&[]), added(1), removed()),
            (
                r#"{"entries":[],"return":{"entries":[]}}"#.to_owned(),
                r#"{"return":{"id":1}}"#.to_owned(),
                r#"{"return":{}}"#.to_owned()
            )
        );
        let parsed = |text: &str| parse(text.as_bytes(), false, GUEST);
        assert_eq!(parsed(r#"{"execute":"list_hostfwd"}"#), Some(Ok(Request::ListHostfwd)));
        let remove = r#"{"execute":"remove_hostfwd","arguments":{"id":7}} and more"#;
        assert_eq!(parsed(remove), Some(Ok(Request::RemoveHostfwd(7))));
    }

    #[test]
    fn every_error_in_slirp4netns_words() {
        let large = format!("{{\"execute\":\"{}", "x".repeat(REQUEST_MAX));
        let cases = [
            ("", "cannot parse JSON"),
            ("\n", "cannot parse JSON"),
            ("badjson", "cannot parse JSON"),
            (r#"{"execute":"list_hostfwd""#, "cannot parse JSON"),
            (&large, "too large message"),
            ("[]", "json_object() failed"),
            ("42", "json_object() failed"),
            (r#"{"unexpectedjson":42}"#, "no execute found"),
            (r#"{"execute":42}"#, "no execute found"),
            (r#"{"execute":"bad"}"#, "unknown execute"),
            (r#"{"execute":"add_hostfwd"}"#, "add_hostfwd: bad arguments.proto"),
            (r#"{"execute":"remove_hostfwd"}"#, "remove_hostfwd: bad arguments.id"),
            (r#"{"execute":"remove_hostfwd","arguments":{"id":-1}}"#, "remove_hostfwd: bad arguments.id"),
        ];
        for (text, want) in cases {
            let Some(Err(error)) = parse(text.as_bytes(), true, GUEST) else { panic!("{text}") };
            assert_eq!(error.reply(), format!(r#"{{"error":{{"desc":"bad request: {want}"}}}}"#), "{text}");
        }
        let ports = r#""host_port":1,"guest_port":1"#;
        let cases = [
            (r#"{"proto":"sctp"}"#.to_owned(), "proto"),
            (format!(r#"{{"proto":"tcp","host_addr":"::1",{ports}}}"#), "host_addr"),
            (format!(r#"{{"proto":"tcp","guest_addr":"x",{ports}}}"#), "guest_addr"),
            (format!(r#"{{"proto":"tcp","guest_addr":"127.0.0.1",{ports}}}"#), "guest_addr"),
            (format!(r#"{{"proto":"udp","guest_addr":"224.0.0.1",{ports}}}"#), "guest_addr"),
            (r#"{"proto":"tcp","host_port":0,"guest_port":1}"#.to_owned(), "host_port"),
            (r#"{"proto":"tcp","host_port":65536,"guest_port":1}"#.to_owned(), "host_port"),
            (r#"{"proto":"tcp","host_port":"1","guest_port":1}"#.to_owned(), "host_port"),
            (r#"{"proto":"tcp","host_port":1}"#.to_owned(), "guest_port"),
        ];
        for (arguments, name) in cases {
            assert_eq!(add(&arguments), Some(Err(BadRequest::Add(name))), "{arguments}");
        }
    }

    #[test]
    fn what_is_not_whole_is_waited_for() {
        let whole = br#"{"execute":"list_hostfwd"}"#;
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end], false, GUEST), None, "{end}");
        }
    }
}
