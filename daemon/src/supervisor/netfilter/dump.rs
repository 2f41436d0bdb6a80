//! Reading a namespace's tables: chains, rules and sets of all families in three dumps, then the elements of those sets
//! that rules on a connection's way look into.
//!
//! The kernel does not promise that several dumps see one state; who asks compares notifications before and after.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{SendFlags, send};

use super::ruleset::{Ruleset, Set};
use super::tables::{Found, InTable, NFT_SET_CONCAT, NFT_SET_EVAL, NFT_SET_INTERVAL, NFT_SET_TIMEOUT, Table, boundary};
use crate::supervisor::netlink::{self, Attributes, Request, Unread, malformed, table};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// enum nf_tables_msg_types
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_GETSET: u16 = 10;
const NFT_MSG_GETSETELEM: u16 = 13;
/// struct nfgenmsg
const NFGENMSG: usize = 4;

/// A NETLINK_NETFILTER socket of the namespace in question; blocking, with a time limit.
pub struct Reader {
    socket: OwnedFd,
    sequence: u32,
    max_bytes: usize,
    /// What may still be read for this set of rules.
    budget: usize,
}

impl Reader {
    pub fn new(socket: OwnedFd, max_bytes: usize) -> Self {
        Self { socket, sequence: 0, max_bytes, budget: 0 }
    }

    pub fn read(&mut self) -> io::Result<Ruleset> {
        self.budget = self.max_bytes;
        match self.tables() {
            Err(Unread::TooLong) => Ok(Ruleset { too_many: true, ..Ruleset::default() }),
            read => Ok(read?),
        }
    }

    fn tables(&mut self) -> Result<Ruleset, Unread> {
        let mut found = Found::default();
        match self.dump(NFT_MSG_GETCHAIN, None, |family, attributes| found.chain(family, attributes)) {
            // How nfnetlink says that there is no nf_tables in this kernel.
            Err(Unread::Io(error)) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Ruleset::default()),
            read => read?,
        }
        if found.ruleset.bases.is_empty() {
            return Ok(found.ruleset);
        }
        self.dump(NFT_MSG_GETSET, None, |family, attributes| found.set(family, attributes))?;
        self.dump(NFT_MSG_GETRULE, None, |family, attributes| found.rule(family, attributes))?;
        found.lower()?;
        found.ruleset.prune();
        for id in found.ruleset.sets_looked_into() {
            let Some((table, name, flags)) = found.set_flags.get(id) else { continue };
            let elements = self.elements(&found, table, name, *flags)?;
            if let Some(set) = found.ruleset.sets.get_mut(id) {
                *set = elements;
            }
        }
        Ok(found.ruleset)
    }

    fn elements(&mut self, found: &Found, of: &Table, name: &[u8], flags: u32) -> Result<Set, Unread> {
        if flags & (NFT_SET_TIMEOUT | NFT_SET_EVAL) != 0 || flags & NFT_SET_INTERVAL != 0 && flags & NFT_SET_CONCAT != 0
        {
            return Ok(Set::Opaque);
        }
        let mut boundaries = Vec::new();
        let mut opaque = false;
        let names = InTable { found, table: of };
        self.dump(NFT_MSG_GETSETELEM, Some((of, name)), |_, attributes| {
            let [_, _, _, list] = table(attributes)?;
            for element in Attributes(list.unwrap_or(&[])) {
                match boundary(element?.1, flags, &names)? {
                    Some(boundary) => boundaries.push(boundary),
                    None => opaque = true,
                }
            }
            Ok(())
        })?;
        if opaque {
            return Ok(Set::Opaque);
        }
        if flags & NFT_SET_INTERVAL == 0 {
            return Ok(Set::Exact(boundaries.into_iter().map(|element| (element.key, element.verdict)).collect()));
        }
        // Where one range ends and another begins, the beginning counts.
        boundaries.sort_by(|a, b| a.key.cmp(&b.key).then(b.gap.cmp(&a.gap)));
        Ok(Set::Intervals(boundaries))
    }

    /// `take` gets the family and the attributes of each message. `of` names a set.
    fn dump(
        &mut self,
        what: u16,
        of: Option<(&Table, &[u8])>,
        mut take: impl FnMut(u8, &[u8]) -> io::Result<()>,
    ) -> Result<(), Unread> {
        self.sequence = self.sequence.wrapping_add(1);
        let family = of.map_or(0, |((family, _), _)| *family);
        let mut request = Request::new(kind(what), libc::NLM_F_DUMP, self.sequence, &[family, 0, 0, 0]);
        if let Some(((_, of), set)) = of {
            request = request.attribute(1, &with_nul(of)).attribute(2, &with_nul(set));
        }
        send(&self.socket, &request.bytes(), SendFlags::empty())?;
        netlink::dump(&self.socket, self.sequence, &mut self.budget, |message| {
            // NFT_MSG_NEWx comes one before NFT_MSG_GETx.
            if message.kind != kind(what) - 1 {
                return Err(malformed());
            }
            let family = message.body.first().ok_or_else(malformed)?;
            take(*family, message.body.get(NFGENMSG..).ok_or_else(malformed)?)
        })
    }
}

fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message
}

fn with_nul(name: &[u8]) -> Vec<u8> {
    [name, &[0]].concat()
}
