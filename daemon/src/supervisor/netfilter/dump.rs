//! Reading a namespace's tables: chains, rules and sets of all families in three dumps, then the elements of those sets
//! that rules on a connection's way look into.
//!
//! The kernel does not promise that several dumps see one state; who asks compares notifications before and after.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::lower::{self, Names, number, text};
use super::packet::{
    NF_INET_INGRESS, NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING, NF_INET_PRE_ROUTING, NF_NETDEV_EGRESS,
    NF_NETDEV_INGRESS,
};
use super::ruleset::{Base, Boundary, ChainId, Ruleset, Set, SetId, Step, Verdict};
use crate::supervisor::netlink::{Attributes, Messages, Request, malformed, table};

/// More than this of rules and sets is not read: everything stays in place. 50,000 rules of k3s have some 20 MB.
const MAX_BYTES: usize = 64 << 20;
/// The kernel fills 32 KiB at a time where there is room (NLMSG_GOODSIZE at least).
const BUFFER: usize = 64 << 10;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// enum nf_tables_msg_types
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_GETSET: u16 = 10;
const NFT_MSG_GETSETELEM: u16 = 13;
/// struct nfgenmsg
const NFGENMSG: usize = 4;
const NF_DROP: u32 = 0;
/// enum nft_set_flags: what makes the elements something else than keys, or ranges of one key.
const NFT_SET_INTERVAL: u32 = 4;
const NFT_SET_MAP: u32 = 8;
const NFT_SET_TIMEOUT: u32 = 0x10;
const NFT_SET_EVAL: u32 = 0x20;
const NFT_SET_CONCAT: u32 = 0x80;
/// NFT_DATA_VERDICT: the type of a verdict map's data.
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
/// enum nft_set_elem_flags
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
const NFT_SET_ELEM_CATCHALL: u32 = 2;

/// A NETLINK_NETFILTER socket of the namespace in question; blocking, with a time limit.
pub struct Reader {
    socket: OwnedFd,
    sequence: u32,
    /// What may still be read for this set of rules.
    budget: usize,
    buffer: Vec<u8>,
}

/// Why rules were not read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("more than {MAX_BYTES} bytes of rules")]
    TooMany,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Unread> for io::Error {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Io(error) => error,
            other => Self::other(other),
        }
    }
}

/// A table: its family and its name.
type Table = (u8, Vec<u8>);

#[derive(Default)]
struct Found {
    ruleset: Ruleset,
    chains: HashMap<(Table, Vec<u8>), ChainId>,
    /// Rules, not yet lowered: they name chains and sets that come later.
    rules: Vec<(Table, ChainId, Vec<u8>)>,
    sets: HashMap<(Table, Vec<u8>), SetId>,
    /// By SetId: whose it is, its name, its flags.
    set_flags: Vec<(Table, Vec<u8>, u32)>,
}

struct InTable<'a> {
    found: &'a Found,
    table: &'a Table,
}

impl Names for InTable<'_> {
    fn chain(&self, name: &[u8]) -> Option<ChainId> {
        self.found.chains.get(&(self.table.clone(), name.to_vec())).copied()
    }

    fn set(&self, name: &[u8]) -> Option<SetId> {
        self.found.sets.get(&(self.table.clone(), name.to_vec())).copied()
    }
}

impl Reader {
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, sequence: 0, budget: 0, buffer: vec![0; BUFFER] }
    }

    pub fn read(&mut self) -> io::Result<Ruleset> {
        self.budget = MAX_BYTES;
        let read = self.tables();
        if read.is_err() {
            // The rest of a dump must not stand before the next one.
            self.discard()?;
        }
        match read {
            Ok(ruleset) => Ok(ruleset),
            Err(Unread::TooMany) => Ok(Ruleset { too_many: true, ..Ruleset::default() }),
            // How nfnetlink says that there is no nf_tables in this kernel.
            Err(Unread::Io(error)) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Ruleset::default()),
            Err(Unread::Io(error)) => Err(error),
        }
    }

    fn discard(&self) -> io::Result<()> {
        for _ in 0..2 * MAX_BYTES / BUFFER {
            match recv(&self.socket, &mut [0; 1], RecvFlags::DONTWAIT) {
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Unread::TooMany.into())
    }

    fn tables(&mut self) -> Result<Ruleset, Unread> {
        let mut found = Found::default();
        self.dump(NFT_MSG_GETCHAIN, None, |family, attributes| found.chain(family, attributes))?;
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
        send(&self.socket, &request.bytes(), SendFlags::empty()).map_err(io::Error::from)?;
        loop {
            let (received, length) =
                recv(&self.socket, self.buffer.as_mut_slice(), RecvFlags::TRUNC).map_err(io::Error::from)?;
            self.budget = self.budget.checked_sub(length).ok_or(Unread::TooMany)?;
            if length > received {
                return Err(malformed().into());
            }
            let datagram = self.buffer.get(..length).unwrap_or(&[]);
            for message in Messages(datagram) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                if i32::from(message.flags) & libc::NLM_F_DUMP_INTR != 0 {
                    return Err(io::Error::from_raw_os_error(libc::EINTR).into());
                }
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return Err(io::Error::from_raw_os_error(message.errno()?).into()),
                    // NFT_MSG_NEWx comes one before NFT_MSG_GETx.
                    _ if message.kind != kind(what) - 1 => return Err(malformed().into()),
                    _ => {
                        let family = message.body.first().ok_or_else(malformed)?;
                        take(*family, message.body.get(NFGENMSG..).ok_or_else(malformed)?)?;
                    }
                }
            }
        }
    }
}

impl Found {
    fn chain(&mut self, family: u8, attributes: &[u8]) -> io::Result<()> {
        let [_, of, _, name, hook, policy, _, kind] = table(attributes)?;
        let chain = self.ruleset.chains.len();
        self.ruleset.chains.push(Vec::new());
        self.chains.insert(((family, text(of)?.to_vec()), text(name)?.to_vec()), chain);
        if let Some(hook) = hook {
            let [_, hook] = table(hook)?;
            let hook = number(hook)?;
            if is_on_the_way(family, hook) {
                let drops = policy.is_some() && number(policy)? == NF_DROP;
                self.ruleset.bases.push(Base { family, hook, nat: text(kind)? == b"nat", drops, chain });
            }
        }
        Ok(())
    }

    fn set(&mut self, family: u8, attributes: &[u8]) -> io::Result<()> {
        let [_, of, name, flags, _, _, data_type] = table(attributes)?;
        let mut flags = flags.map_or(Ok(0), |flags| number(Some(flags)))?;
        if flags & NFT_SET_MAP != 0 && number(data_type)? != NFT_DATA_VERDICT {
            // What it maps to is never asked; whether it has the key may be.
            flags &= !NFT_SET_MAP;
        }
        let of = (family, text(of)?.to_vec());
        let name = text(name)?.to_vec();
        self.sets.insert((of.clone(), name.clone()), self.ruleset.sets.len());
        self.ruleset.sets.push(Set::Opaque);
        self.set_flags.push((of, name, flags));
        Ok(())
    }

    fn rule(&mut self, family: u8, attributes: &[u8]) -> io::Result<()> {
        let [_, of, chain, _, expressions] = table(attributes)?;
        let of = (family, text(of)?.to_vec());
        let chain = self.chains.get(&(of.clone(), text(chain)?.to_vec()));
        let chain = *chain.ok_or_else(|| io::Error::other("a rule of no chain"))?;
        self.rules.push((of, chain, expressions.unwrap_or(&[]).to_vec()));
        Ok(())
    }

    fn lower(&mut self) -> io::Result<()> {
        for (of, chain, expressions) in std::mem::take(&mut self.rules) {
            let rule = lower::rule(&expressions, &InTable { found: self, table: &of })?;
            if let Some(chain) = self.ruleset.chains.get_mut(chain) {
                chain.push(rule);
            }
        }
        Ok(())
    }
}

impl Ruleset {
    /// Forgets what can do nothing: empty chains of the hooks, and what no hook leads to.
    fn prune(&mut self) {
        let chains = &self.chains;
        self.bases.retain(|base| base.drops || chains.get(base.chain).is_some_and(|rules| !rules.is_empty()));
        let reached = self.reached();
        for (chain, _) in self.chains.iter_mut().zip(reached).filter(|(_, reached)| !reached) {
            *chain = Vec::new();
        }
    }

    /// By ChainId. Verdict maps are not known yet: what one of the table may lead to is taken as reached.
    fn reached(&self) -> Vec<bool> {
        let mut reached = vec![false; self.chains.len()];
        let mut next: Vec<_> = self.bases.iter().map(|base| base.chain).collect();
        while let Some(chain) = next.pop() {
            match reached.get_mut(chain) {
                Some(seen) if !*seen => *seen = true,
                _ => continue,
            }
            for step in self.chains.get(chain).into_iter().flatten().flatten() {
                match step {
                    Step::Verdict(Verdict::Jump(to) | Verdict::Goto(to)) => next.push(*to),
                    Step::Lookup { verdict: true, .. } => return vec![true; self.chains.len()],
                    _ => {}
                }
            }
        }
        reached
    }

    fn sets_looked_into(&self) -> Vec<SetId> {
        let steps = self.chains.iter().flatten().flatten();
        let mut sets: Vec<_> =
            steps.filter_map(|step| if let Step::Lookup { set, .. } = step { Some(*set) } else { None }).collect();
        sets.sort_unstable();
        sets.dedup();
        sets
    }
}

/// None: something that is no key.
fn boundary(element: &[u8], flags: u32, names: &impl Names) -> io::Result<Option<Boundary>> {
    let [_, key, data, element_flags, timeout, _, _, expression, _, _, key_end, expressions] = table(element)?;
    let element_flags = element_flags.map_or(Ok(0), |flags| number(Some(flags)))?;
    if element_flags & NFT_SET_ELEM_CATCHALL != 0
        || [timeout, expression, key_end, expressions].iter().any(Option::is_some)
    {
        return Ok(None);
    }
    let gap = element_flags & NFT_SET_ELEM_INTERVAL_END != 0;
    let verdict = match data {
        Some(data) if flags & NFT_SET_MAP != 0 => match lower::element_verdict(data, names)? {
            // To go on with the rule is no end of it.
            None => return Ok(None),
            verdict => verdict,
        },
        _ => None,
    };
    Ok(Some(Boundary { key: lower::value(key)?, gap, verdict }))
}

fn is_on_the_way(family: u8, hook: u32) -> bool {
    match i32::from(family) {
        libc::NFPROTO_IPV4 | libc::NFPROTO_IPV6 | libc::NFPROTO_INET => matches!(
            hook,
            NF_INET_LOCAL_OUT | NF_INET_POST_ROUTING | NF_INET_PRE_ROUTING | NF_INET_LOCAL_IN | NF_INET_INGRESS
        ),
        libc::NFPROTO_NETDEV => matches!(hook, NF_NETDEV_EGRESS | NF_NETDEV_INGRESS),
        _ => false,
    }
}

fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message
}

fn with_nul(name: &[u8]) -> Vec<u8> {
    [name, &[0]].concat()
}
