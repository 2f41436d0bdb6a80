//! What dumps say, put together: chains by name, rules in their chains, the kinds of sets, and what of it can meet a
//! connection.

use std::collections::HashMap;
use std::io;

use super::lower::{self, Names, number, text};
use super::packet::{
    NF_INET_FORWARD, NF_INET_INGRESS, NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING, NF_INET_PRE_ROUTING,
    NF_NETDEV_EGRESS, NF_NETDEV_INGRESS,
};
use super::ruleset::{Base, Boundary, ChainId, Ruleset, Set, SetId, Step, Verdict};
use crate::supervisor::netlink::table;

const NF_DROP: u32 = 0;
/// enum nft_set_flags: what makes the elements something else than keys, or ranges of one key.
pub const NFT_SET_INTERVAL: u32 = 4;
const NFT_SET_MAP: u32 = 8;
pub const NFT_SET_TIMEOUT: u32 = 0x10;
pub const NFT_SET_EVAL: u32 = 0x20;
pub const NFT_SET_CONCAT: u32 = 0x80;
/// NFT_DATA_VERDICT: the type of a verdict map's data.
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
/// enum nft_set_elem_flags
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
const NFT_SET_ELEM_CATCHALL: u32 = 2;

/// A table: its family and its name.
pub type Table = (u8, Vec<u8>);

#[derive(Default)]
pub struct Found {
    pub ruleset: Ruleset,
    chains: HashMap<(Table, Vec<u8>), ChainId>,
    /// Rules, not yet lowered: they name chains and sets that come later.
    rules: Vec<(Table, ChainId, Vec<u8>)>,
    sets: HashMap<(Table, Vec<u8>), SetId>,
    /// By SetId: whose it is, its name, its flags.
    pub set_flags: Vec<(Table, Vec<u8>, u32)>,
}

/// Finds what the rules of one table name.
pub struct InTable<'a> {
    pub found: &'a Found,
    pub table: &'a Table,
}

impl Names for InTable<'_> {
    fn chain(&self, name: &[u8]) -> Option<ChainId> {
        self.found.chains.get(&(self.table.clone(), name.to_vec())).copied()
    }

    fn set(&self, name: &[u8]) -> Option<SetId> {
        self.found.sets.get(&(self.table.clone(), name.to_vec())).copied()
    }
}

impl Found {
    pub fn chain(&mut self, family: u8, attributes: &[u8]) -> io::Result<()> {
        let [_, of, _, name, hook, policy, _, kind] = table(attributes)?;
        let chain = self.ruleset.chains.len();
        self.ruleset.chains.push(Vec::new());
        self.chains.insert(((family, text(of)?.to_vec()), text(name)?.to_vec()), chain);
        if let Some(hook) = hook {
            let [_, hook, priority] = table(hook)?;
            let (hook, priority) = (number(hook)?, number(priority)?.cast_signed());
            if is_on_the_way(family, hook) {
                let drops = policy.is_some() && number(policy)? == NF_DROP;
                self.ruleset.bases.push(Base { family, hook, priority, nat: text(kind)? == b"nat", drops, chain });
            }
        }
        Ok(())
    }

    pub fn set(&mut self, family: u8, attributes: &[u8]) -> io::Result<()> {
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

    pub fn rule(&mut self, family: u8, attributes: &[u8]) -> io::Result<()> {
        let [_, of, chain, _, expressions] = table(attributes)?;
        let of = (family, text(of)?.to_vec());
        let chain = self.chains.get(&(of.clone(), text(chain)?.to_vec()));
        let chain = *chain.ok_or_else(|| io::Error::other("a rule of no chain"))?;
        self.rules.push((of, chain, expressions.unwrap_or(&[]).to_vec()));
        Ok(())
    }

    pub fn lower(&mut self) -> io::Result<()> {
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
    pub fn prune(&mut self) {
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

    pub fn sets_looked_into(&self) -> Vec<SetId> {
        let steps = self.chains.iter().flatten().flatten();
        let mut sets: Vec<_> =
            steps.filter_map(|step| if let Step::Lookup { set, .. } = step { Some(*set) } else { None }).collect();
        sets.sort_unstable();
        sets.dedup();
        sets
    }
}

/// None: something that is no key.
pub fn boundary(element: &[u8], flags: u32, names: &impl Names) -> io::Result<Option<Boundary>> {
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
            NF_INET_LOCAL_OUT
                | NF_INET_POST_ROUTING
                | NF_INET_PRE_ROUTING
                | NF_INET_LOCAL_IN
                | NF_INET_FORWARD
                | NF_INET_INGRESS
        ),
        libc::NFPROTO_NETDEV => matches!(hook, NF_NETDEV_EGRESS | NF_NETDEV_INGRESS),
        libc::NFPROTO_BRIDGE => true,
        _ => false,
    }
}
