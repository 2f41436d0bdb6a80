//! Whether a packet of a connection could be touched: the rules are walked as the kernel would, with three truths.
//!
//! A rule that may match is taken both ways, so the walk is a superset of what the kernel could do. Bounded by [`STEPS`]:
//! rules that take longer are said to touch the packet (a workspace could write some that take for ever).

use super::packet::{Connection, NF_INET_POST_ROUTING, Packet, Stage, Way};
use super::register::Registers;
use super::ruleset::{Base, ChainId, Rule, Ruleset, Set, Step, Verdict};

/// Rules and their steps, about a millisecond; k3s with a thousand services has some ten thousand.
const STEPS: u32 = 100_000;
/// NFT_JUMP_STACK_SIZE.
const DEPTH: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truth {
    No,
    Maybe,
    Yes,
}

impl Truth {
    pub fn and(self, other: Self) -> Self {
        self.min(other)
    }

    pub fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
            Self::Yes => Self::No,
        }
    }

    pub fn xor(self, inverted: bool) -> Self {
        if inverted { self.not() } else { self }
    }
}

impl From<bool> for Truth {
    fn from(truth: bool) -> Self {
        if truth { Self::Yes } else { Self::No }
    }
}

/// The packet could be dropped, changed, or reported.
#[derive(Debug)]
struct Touched;

/// Whether the walk may get behind the last rule of a chain: Maybe and Yes are the same here.
type FallsThrough = bool;

impl Ruleset {
    /// Whether any packet of the connection could be touched by any rule.
    pub fn could_touch(&self, connection: &Connection) -> bool {
        if self.too_many {
            return true;
        }
        let mut steps = STEPS;
        self.touched(connection, &mut steps).is_err()
    }

    fn touched(&self, connection: &Connection, steps: &mut u32) -> Result<(), Touched> {
        let masqueraded = match (connection.way, self.masquerades(connection, steps)?) {
            // With the TAP's address it leaves in any case.
            (Way::ByTap(_), _) => false,
            (Way::Through { .. }, Truth::Yes) => true,
            (_, Truth::No) => false,
            // What the workspace sees of it is not known.
            _ => return Err(Touched),
        };
        for stage in [Stage::First, Stage::Later, Stage::Reply] {
            // Address translation is decided about with the first packet.
            for base in self.bases.iter().filter(|base| !base.nat || stage == Stage::First) {
                self.walk(base, stage, connection, masqueraded, steps)?;
            }
        }
        Ok(())
    }

    /// Whether the connection leaves with the address of its device, by a rule.
    fn masquerades(&self, connection: &Connection, steps: &mut u32) -> Result<Truth, Touched> {
        if let Way::ByTap(_) = connection.way {
            return Ok(Truth::No);
        }
        let mut found = Truth::No;
        for base in self.bases.iter().filter(|base| base.nat && base.hook == NF_INET_POST_ROUTING) {
            found = found.max(self.walk(base, Stage::First, connection, false, steps)?);
        }
        Ok(found)
    }

    /// A packet through one hook's chains; says whether they masquerade it.
    fn walk(
        &self,
        base: &Base,
        stage: Stage,
        connection: &Connection,
        masqueraded: bool,
        steps: &mut u32,
    ) -> Result<Truth, Touched> {
        let Some(packet) = Packet::at(base, stage, connection, masqueraded) else { return Ok(Truth::No) };
        let mut walk = Walk { ruleset: self, packet: &packet, steps, in_doubt: false, masquerades: Truth::No };
        let falls_through = walk.chain(base.chain, DEPTH)?;
        if falls_through && base.drops { Err(Touched) } else { Ok(walk.masquerades) }
    }
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    steps: &'a mut u32,
    /// A verdict that may have been reached may have led elsewhere.
    in_doubt: bool,
    masquerades: Truth,
}

impl Walk<'_> {
    fn chain(&mut self, id: ChainId, depth: u32) -> Result<FallsThrough, Touched> {
        let depth = depth.checked_sub(1).ok_or(Touched)?;
        let ruleset = self.ruleset;
        let mut left = false;
        for rule in ruleset.chains.get(id).ok_or(Touched)? {
            // One that only counts takes no step, and may be there a million times.
            *self.steps = self.steps.checked_sub(1).ok_or(Touched)?;
            let mut registers = Registers::default();
            // What certainly happens ends the walk of this chain; what may happen is looked into on the way.
            match self.rule(rule, &mut registers, depth)? {
                After::Next => {}
                After::MayLeave => left = true,
                After::Leaves => return Ok(true),
                After::Ends => return Ok(left),
            }
        }
        Ok(true)
    }

    fn rule(&mut self, rule: &Rule, registers: &mut Registers, depth: u32) -> Result<After, Touched> {
        let mut truth = Truth::Yes;
        for step in rule {
            *self.steps = self.steps.checked_sub(1).ok_or(Touched)?;
            truth = match step {
                Step::Doubt => truth.and(Truth::Maybe),
                Step::Match(matching) => truth.and(matching.of(self.packet)),
                Step::Verdict(verdict) => return self.verdict(*verdict, truth, depth),
                Step::Lookup { at, set, outside, verdict } => {
                    let Some(set) = self.ruleset.sets.get(*set) else { return Err(Touched) };
                    if *verdict {
                        return self.verdicts(set, *at, registers, truth, depth);
                    }
                    truth.and(registers.is_in(set, *at).xor(*outside))
                }
                other => truth.and(registers.step(other, self.packet)),
            };
            if truth == Truth::No {
                return Ok(After::Next);
            }
        }
        Ok(After::Next)
    }

    fn verdict(&mut self, verdict: Verdict, truth: Truth, depth: u32) -> Result<After, Touched> {
        let certain = truth == Truth::Yes;
        self.in_doubt |= !certain;
        if verdict == Verdict::Masquerade {
            self.masquerades = self.masquerades.max(if self.in_doubt { Truth::Maybe } else { Truth::Yes });
        }
        Ok(match verdict {
            Verdict::Effect => return Err(Touched),
            Verdict::Accept | Verdict::Masquerade if certain => After::Ends,
            Verdict::Accept | Verdict::Masquerade => After::Next,
            Verdict::Return if certain => After::Leaves,
            Verdict::Return => After::MayLeave,
            Verdict::Jump(chain) => match (self.chain(chain, depth)?, certain) {
                (false, true) => After::Ends,
                _ => After::Next,
            },
            Verdict::Goto(chain) => match (self.chain(chain, depth)?, certain) {
                (true, true) => After::Leaves,
                (true, false) => After::MayLeave,
                (false, true) => After::Ends,
                (false, false) => After::Next,
            },
        })
    }

    /// A verdict map: the one verdict of a known key, or any of them.
    fn verdicts(
        &mut self,
        map: &Set,
        at: usize,
        registers: &Registers,
        truth: Truth,
        depth: u32,
    ) -> Result<After, Touched> {
        if let Some(found) = registers.find(map, at) {
            return match found {
                Some(Some(verdict)) => self.verdict(verdict, truth, depth),
                Some(None) => Err(Touched),
                None => Ok(After::Next),
            };
        }
        let mut after = After::Next;
        for verdict in map.verdicts().ok_or(Touched)? {
            *self.steps = self.steps.checked_sub(1).ok_or(Touched)?;
            if self.verdict(verdict.ok_or(Touched)?, Truth::Maybe, depth)? == After::MayLeave {
                after = After::MayLeave;
            }
        }
        Ok(after)
    }
}

/// What a rule leaves to be walked of its chain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// Go on with the next rule.
    Next,
    /// Go on; the caller's next rule is to be looked at too.
    MayLeave,
    /// Back to the caller.
    Leaves,
    /// Nothing more happens to the packet at this hook.
    Ends,
}
