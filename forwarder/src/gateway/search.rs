//! The search list of the host's resolv.conf as DHCP (option 119, RFC 3397) and router advertisements (DNSSL, RFC 8106)
//! carry it: names as in DNS messages (RFC 1035 3.1), not compressed.
#![forbid(unsafe_code)]

/// The longest label and the longest name of DNS.
const LABEL_MAX: usize = 63;
const NAME_MAX: usize = 253;

/// The names in order, as many as fit in `limit` bytes; what is no name of DNS is left out.
pub fn encode(domains: &[String], limit: usize) -> Vec<u8> {
    let mut list = Vec::new();
    for domain in domains.iter().filter_map(|domain| name(domain)) {
        // Labels' lengths stand where the dots do, and there is one more of them; the root's ends the name.
        if list.len() + domain.len() + 2 > limit {
            break;
        }
        for label in domain.split('.') {
            list.extend(u8::try_from(label.len()));
            list.extend_from_slice(label.as_bytes());
        }
        list.push(0);
    }
    list
}

/// The first of them, for clients that know one only (option 15, RFC 2132 3.17).
pub fn first(domains: &[String]) -> Option<&str> {
    domains.iter().find_map(|domain| name(domain))
}

/// Without the dot at its end. The root, which says "as it is", is no name to put behind others.
fn name(domain: &str) -> Option<&str> {
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    let is_label = |label: &str| (1..=LABEL_MAX).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_graphic());
    (domain.len() <= NAME_MAX && domain.split('.').all(is_label)).then_some(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_in_dns_messages() {
        let long = "x".repeat(64);
        let cases: [(&[&str], &[u8]); 6] = [
            (&[], b""),
            (&["lab"], b"\x03lab\0"),
            (&["a.lab.", "b"], b"\x01a\x03lab\0\x01b\0"),
            (&[".", "", "a..b", "\u{e9}.lab", &long, "ok"], b"\x02ok\0"),
            (&["0123456789", "fits.not"], b"\x0a0123456789\0"),
            (&["01234567890123456789"], b""),
        ];
        for (domains, want) in cases {
            let domains: Vec<_> = domains.iter().map(|&domain| domain.to_owned()).collect();
            assert_eq!(encode(&domains, 16), want, "{domains:?}");
        }
        let domains = [".", "lab."].map(str::to_owned);
        assert_eq!((first(&domains), first(&[])), (Some("lab"), None));
    }
}
