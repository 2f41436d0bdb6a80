//! One expression of a rule, as the kernel dumps it, made a step (linux/netfilter/nf_tables.h).
//!
//! Expressions that only read something leave a doubt where it cannot be known beforehand. Those that do something,
//! and those nobody here knows, are an effect. Numbers in attributes are big-endian.

use std::io;

use super::ruleset::{Place, REGISTERS, Relation, SetId, Source, Step, Verdict};
use super::xt::Match;
use crate::supervisor::netlink::{Attributes, array, malformed, table};

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_DATA_VALUE: usize = 1;
const NFTA_DATA_VERDICT: usize = 2;
/// enum nft_registers: the first of those of 4 bytes.
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_REG_4: u32 = 4;
const NFT_REG32_00: u32 = 8;
const NFT_REG32_15: u32 = 23;
/// enum nft_verdicts and linux/netfilter.h.
const NFT_CONTINUE: i32 = -1;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;
const NFT_RETURN: i32 = -5;
const NF_ACCEPT: i32 = 1;
const NFT_OBJECT_COUNTER: u32 = 1;

/// How names in a rule lead to its table's chains and sets.
pub trait Names {
    fn chain(&self, name: &[u8]) -> Option<usize>;
    fn set(&self, name: &[u8]) -> Option<SetId>;
}

/// The steps of a rule, from its NFTA_RULE_EXPRESSIONS.
pub fn rule(expressions: &[u8], names: &impl Names) -> io::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for element in Attributes(expressions) {
        let (kind, expression) = element?;
        if kind != NFTA_LIST_ELEM {
            return Err(malformed());
        }
        let [_, name, data] = table(expression)?;
        steps.extend(expression_step(text(name)?, data.unwrap_or(&[]), names)?);
    }
    Ok(steps)
}

/// None: nothing happens and everything matches.
fn expression_step(name: &[u8], data: &[u8], names: &impl Names) -> io::Result<Option<Step>> {
    // Attribute types are the indices; [0] is never used.
    let effect = Ok(Some(Step::Verdict(Verdict::Effect)));
    let step = match name {
        b"counter" | b"last" => return Ok(None),
        b"limit" | b"quota" | b"connlimit" => Step::Doubt,
        b"immediate" => return immediate(data, names),
        b"bitwise" => bitwise(data)?,
        b"cmp" => {
            let [_, register, operation, with] = table(data)?;
            Step::Compare { at: place(register)?, is: relation(number(operation)?)?, with: value(with)? }
        }
        b"range" => {
            let [_, register, operation, from, to] = table(data)?;
            let outside = number(operation)? != 0;
            Step::Range { at: place(register)?, outside, from: value(from)?, to: value(to)? }
        }
        b"byteorder" => {
            let [_, _, to, _, length] = table(data)?;
            forget(to, number(length)?)?
        }
        b"lookup" => lookup(data, names)?,
        b"payload" => {
            let [_, to, base, offset, length, written] = table(data)?;
            if written.is_some() {
                return effect;
            }
            payload(to, number(base)?, number(offset)?, number(length)?)?
        }
        b"meta" => {
            let [_, to, key, written] = table(data)?;
            if written.is_some() {
                return effect;
            }
            read(to, meta(number(key)?))?
        }
        b"ct" => {
            let [_, to, key, _direction, written] = table(data)?;
            if written.is_some() {
                return effect;
            }
            read(to, conntrack(number(key)?))?
        }
        b"fib" => {
            let [_, to, result, flags] = table(data)?;
            read(to, fib(number(result)?, number(flags)?))?
        }
        b"exthdr" => {
            let [_, to, _, _, length, _, _, written] = table(data)?;
            match (written, to) {
                (None, Some(_)) => forget(to, length.map_or(Ok(64), |length| number(Some(length)))?)?,
                _ => return effect,
            }
        }
        b"rt" | b"osf" | b"xfrm" | b"numgen" => {
            let [_, to] = table(data)?;
            read(to, None)?
        }
        // What is read, or hashed, stands before where to.
        b"socket" | b"tunnel" | b"hash" => {
            let [_, _, to] = table(data)?;
            read(to, None)?
        }
        b"objref" => {
            let [_, kind] = table(data)?;
            if kind.is_some() && number(kind)? == NFT_OBJECT_COUNTER {
                return Ok(None);
            }
            return effect;
        }
        b"match" => {
            let [_, name, revision, info] = table(data)?;
            let known = Match::parse(text(name)?, number(revision)?, info.unwrap_or(&[]));
            known.map_or(Step::Doubt, Step::Match)
        }
        b"masq" => Step::Verdict(Verdict::Masquerade),
        b"target" => {
            let [_, name] = table(data)?;
            let verdict = if text(name)? == b"MASQUERADE" { Verdict::Masquerade } else { Verdict::Effect };
            Step::Verdict(verdict)
        }
        _ => return effect,
    };
    Ok(Some(step))
}

fn immediate(data: &[u8], names: &impl Names) -> io::Result<Option<Step>> {
    let [_, register, data] = table(data)?;
    let register = number(register)?;
    let [_, constant, verdict_data] = table(data.ok_or_else(malformed)?)?;
    if register == NFT_REG_VERDICT {
        return Ok(verdict(verdict_data.ok_or_else(malformed)?, names)?.map(Step::Verdict));
    }
    Ok(Some(Step::Constant { to: offset(register)?, bytes: constant.ok_or_else(malformed)?.to_vec() }))
}

/// None: go on with the rule.
fn verdict(data: &[u8], names: &impl Names) -> io::Result<Option<Verdict>> {
    let [_, code, chain] = table(data)?;
    let code = i32::from_be_bytes(array(code.ok_or_else(malformed)?, 0).ok_or_else(malformed)?);
    let chain = || names.chain(text(chain)?).ok_or_else(|| io::Error::other("a verdict names no chain"));
    Ok(Some(match code {
        NFT_CONTINUE => return Ok(None),
        NFT_JUMP => Verdict::Jump(chain()?),
        NFT_GOTO => Verdict::Goto(chain()?),
        NFT_RETURN => Verdict::Return,
        NF_ACCEPT => Verdict::Accept,
        // Drop, queue and the rest.
        _ => Verdict::Effect,
    }))
}

/// The verdict an element of a verdict map leads to, from its NFTA_SET_ELEM_DATA; None: go on with the rule.
pub fn element_verdict(data: &[u8], names: &impl Names) -> io::Result<Option<Verdict>> {
    let [_, _, data] = table(data)?;
    verdict(data.ok_or_else(malformed)?, names)
}

/// The bytes of an NFTA_DATA_VALUE.
pub fn value(data: Option<&[u8]>) -> io::Result<Vec<u8>> {
    let table: [_; 3] = table(data.ok_or_else(malformed)?)?;
    let (value, verdict) = (table[NFTA_DATA_VALUE], table[NFTA_DATA_VERDICT]);
    match (value, verdict) {
        (Some(value), None) if value.len() <= REGISTERS => Ok(value.to_vec()),
        _ => Err(malformed()),
    }
}

fn bitwise(data: &[u8]) -> io::Result<Step> {
    let [_, from, to, length, mask, xor, operation] = table(data)?;
    let length = number(length)?;
    // Shifts, and operations on two registers.
    if operation.is_some() && number(operation)? != 0 {
        return forget(to, length);
    }
    Ok(Step::Mask { from: place(from)?, to: place(to)?, mask: value(mask)?, xor: value(xor)? })
}

fn lookup(data: &[u8], names: &impl Names) -> io::Result<Step> {
    let [_, set, at, to, _, flags] = table(data)?;
    let outside = flags.is_some() && number(flags)? & 1 != 0;
    let set = names.set(text(set)?).ok_or_else(|| io::Error::other("a rule names no set"))?;
    let verdict = to.is_some() && number(to)? == NFT_REG_VERDICT;
    if to.is_some() && !verdict {
        // A value out of a map: an address to translate to, a mark to set, something to compare. Its set may lack the
        // key, so this may match, and nothing tells what is in the register afterwards.
        return Ok(Step::Forget(Place { at: 0, length: REGISTERS }));
    }
    Ok(Step::Lookup { at: place(at)?, set, outside, verdict })
}

fn payload(to: Option<&[u8]>, base: u32, offset: u32, length: u32) -> io::Result<Step> {
    /// enum nft_payload_bases
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    let (at, length, offset) = (place(to)?, usize_of(length)?, usize_of(offset)?);
    let from = match base {
        NETWORK => Source::Network { offset },
        TRANSPORT => Source::Transport { offset },
        _ => return Ok(Step::Forget(within(at, length)?)),
    };
    Ok(Step::Load { from, to: within(at, length)? })
}

/// enum nft_meta_keys
fn meta(key: u32) -> Option<Source> {
    Some(match key {
        1 => Source::Ethertype,
        3 => Source::Mark,
        4 => Source::InputIndex,
        5 => Source::OutputIndex,
        6 => Source::InputName,
        7 => Source::OutputName,
        15 => Source::Nfproto,
        16 => Source::L4proto,
        _ => return None,
    })
}

/// enum nft_ct_keys
fn conntrack(key: u32) -> Option<Source> {
    match key {
        0 => Some(Source::ConntrackState),
        1 => Some(Source::ConntrackDirection),
        _ => None,
    }
}

fn fib(result: u32, flags: u32) -> Option<Source> {
    const ADDRTYPE: u32 = 3;
    const SADDR: u32 = 1;
    const DADDR: u32 = 2;
    match (result, flags) {
        (ADDRTYPE, SADDR) => Some(Source::FibSaddr),
        (ADDRTYPE, DADDR) => Some(Source::FibDaddr),
        _ => None,
    }
}

/// A read of at most 16 bytes, whatever it is.
fn read(to: Option<&[u8]>, from: Option<Source>) -> io::Result<Step> {
    let at = place(to)?;
    let to = Place { at, length: 16.min(REGISTERS - at) };
    Ok(from.map_or(Step::Forget(to), |from| Step::Load { from, to }))
}

fn forget(to: Option<&[u8]>, length: u32) -> io::Result<Step> {
    let at = place(to)?;
    Ok(Step::Forget(Place { at, length: usize_of(length)?.min(REGISTERS - at) }))
}

fn relation(operation: u32) -> io::Result<Relation> {
    Ok(match operation {
        0 => Relation::Equal,
        1 => Relation::Unequal,
        2 => Relation::Less,
        3 => Relation::LessOrEqual,
        4 => Relation::Greater,
        5 => Relation::GreaterOrEqual,
        _ => return Err(malformed()),
    })
}

fn place(register: Option<&[u8]>) -> io::Result<usize> {
    offset(number(register)?)
}

/// As nft_parse_register(): four of 16 bytes over sixteen of 4.
fn offset(register: u32) -> io::Result<usize> {
    match register {
        NFT_REG_1..=NFT_REG_4 => usize_of((register - NFT_REG_1) * 16),
        NFT_REG32_00..=NFT_REG32_15 => usize_of((register - NFT_REG32_00) * 4),
        _ => Err(malformed()),
    }
}

fn within(at: usize, length: usize) -> io::Result<Place> {
    if at + length.min(REGISTERS) > REGISTERS || length > REGISTERS {
        Err(malformed())
    } else {
        Ok(Place { at, length })
    }
}

pub fn number(attribute: Option<&[u8]>) -> io::Result<u32> {
    Ok(u32::from_be_bytes(array(attribute.ok_or_else(malformed)?, 0).ok_or_else(malformed)?))
}

fn usize_of(number: u32) -> io::Result<usize> {
    usize::try_from(number).map_err(io::Error::other)
}

/// A string without its NUL.
pub fn text(attribute: Option<&[u8]>) -> io::Result<&[u8]> {
    let bytes = attribute.ok_or_else(malformed)?;
    Ok(bytes.split(|&byte| byte == 0).next().unwrap_or(&[]))
}
