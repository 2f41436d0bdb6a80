//! Urgent data (RFC 6093), in both directions.

use super::*;

#[test]
fn urgent_bytes_towards_the_host() {
    let mut open = Open::new();
    rustix::net::sockopt::set_socket_oobinline(&open.host, true).unwrap();
    // The pointer comes before the byte.
    for (at, pointer, payload) in [(0, 6, &b"abc"[..]), (3, 3, b"deUf")] {
        let ends = (open.ports, FIRST + at, open.first, ACK.with(TcpFlags::URG));
        let mut frame = open.lab.tcp_with(ends, &[], payload);
        let field = usize::from(VNET_LEN) + ETHERNET_LEN + IPV4_LEN + 18;
        frame[field + 1] = pointer;
        open.lab.feed(&[frame]);
    }
    let mut buffer = [0; 9];
    for want in [&b"abcde"[..], b"Uf"] {
        let count = open.host.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], want, "a read ends before the mark");
    }
}

#[test]
fn urgent_bytes_towards_the_workspace() {
    let mut open = Open::new();
    for before in [&b"abcde"[..], b""] {
        open.host.write_all(before).unwrap();
        rustix::net::send(&open.host, b"U", rustix::net::SendFlags::OOB).unwrap();
        open.host.write_all(b"fgh").unwrap();
        let at = u32::try_from(before.len()).unwrap();
        let first = open.first;
        for attempt in 0..2 {
            // The second time after a timeout.
            let sent = open.wait(400);
            let stream: Vec<u8> = sent.iter().flat_map(|s| s.3.clone()).collect();
            assert_eq!(stream, [before, b"Ufgh"].concat(), "{attempt}");
            let urgent = sent.iter().find(|s| s.1 == first.wrapping_add(at)).unwrap();
            assert!(urgent.0.has(TcpFlags::URG), "{attempt}: {sent:?}");
        }
        assert!(open.send(0, at + 4, ACK, &[]).is_empty());
        open.first = first.wrapping_add(at + 4);
    }
}
