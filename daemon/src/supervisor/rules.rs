//! What a namespace's routing rules look at (ip-rule(8), linux/fib_rules.h): by that a route is asked for with a
//! destination's port or without, and answers are good for all ports or for one.
//!
//! What a rule looks at and nobody knows of a connection before it is made (its own port, what is set on the socket), or
//! what is newer than this program, makes every route one in doubt.

use std::io;

use super::netlink::{Attributes, array, malformed};

/// struct fib_rule_hdr, and where the type of service is in it.
pub const HEADER: usize = 12;
const TOS: usize = 3;

/// The last of those that do not depend on what a packet carries: addresses, devices, mark, uid, what is done.
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_DPORT_RANGE: u16 = 24;
const FRA_DPORT_MASK: u16 = 29;

/// Of all rules of a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub by_protocol: bool,
    pub by_port: bool,
    pub in_doubt: bool,
}

impl Rules {
    /// `rule`: the body of an RTM_NEWRULE.
    pub fn add(&mut self, rule: &[u8]) -> io::Result<()> {
        let [tos] = array(rule, TOS).ok_or_else(malformed)?;
        self.in_doubt |= tos != 0;
        for attribute in Attributes(rule.get(HEADER..).ok_or_else(malformed)?) {
            match attribute?.0 {
                ..=FRA_PROTOCOL => {}
                FRA_IP_PROTO => self.by_protocol = true,
                FRA_DPORT_RANGE | FRA_DPORT_MASK => self.by_port = true,
                _ => self.in_doubt = true,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::netlink::{self, Request};

    #[test]
    fn what_rules_look_at() {
        let rule = |tos, attributes: &[u16]| {
            let mut header = [0; HEADER];
            header[TOS] = tos;
            let request = attributes.iter().fold(Request::new(libc::RTM_NEWRULE, 0, 0, &header), |request, &kind| {
                request.attribute(kind, &[0; 4])
            });
            request.bytes().split_off(netlink::HEADER)
        };
        let all = Rules { by_protocol: true, by_port: true, in_doubt: true };
        let none = Rules::default();
        let cases = [
            (rule(0, &[]), none),
            // Of `ip rule add fwmark 5 uidrange 0-9 lookup 100`.
            (rule(0, &[15, 14, 6, 10, 16, 20, 21]), none),
            (rule(0, &[22]), Rules { by_protocol: true, ..none }),
            (rule(0, &[24]), Rules { by_port: true, ..none }),
            (rule(0, &[24, 29]), Rules { by_port: true, ..none }),
            (rule(0, &[22, 23, 24]), all),
            // A DSCP, and what is not known yet.
            (rule(0, &[25]), Rules { in_doubt: true, ..none }),
            (rule(0, &[99]), Rules { in_doubt: true, ..none }),
            (rule(16, &[]), Rules { in_doubt: true, ..none }),
        ];
        for (rule, want) in cases {
            let mut rules = Rules::default();
            rules.add(&rule).unwrap();
            assert_eq!(rules, want);
            for length in 0..rule.len() {
                let _ = Rules::default().add(&rule[..length]);
            }
            // Those of another rule stay.
            rules.add(&[0; HEADER]).unwrap();
            assert_eq!(rules, want);
        }
    }
}
