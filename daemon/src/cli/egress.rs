//! `--deny` and `--allow`: one list of rules in the order in which both flags were given, which clap keeps apart.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use sidestep_forwarder::policy::{Action, Match, Rule};

const DENY: &str = "deny";
const ALLOW: &str = "allow";

#[derive(Clone, Debug)]
pub struct EgressRules(pub Vec<Rule>);

impl Args for EgressRules {
    fn augment_args(command: Command) -> Command {
        let rule = |name| {
            Arg::new(name)
                .long(name)
                .value_name("CIDR[:PORT[-PORT]][/tcp|udp]")
                .action(ArgAction::Append)
                .value_parser(str::parse::<Match>)
        };
        command
            .arg(rule(DENY).help("Refuse these destinations (EHOSTUNREACH), with and without the bypass").long_help(
                "Refuse these destinations: connect fails at once with EHOSTUNREACH, with and without the bypass\n\n\
                 Of all --deny and --allow, the first that fits decides; without one that fits, the destination is \
                 allowed. IPv6 with a port goes in brackets: [2001:db8::/32]:443. Two keywords stand for addresses: \
                 metadata (where clouds hand out a machine's credentials: 169.254.169.254, fd00:ec2::254, \
                 fd20:ce::254 and the like) and host (the host's own addresses, and whatever else it keeps to itself). \
                 The virtual resolver asks the host's resolvers whatever is denied here.",
            ))
            .arg(rule(ALLOW).help("Allow these destinations, before the --deny that follow").long_help(
                "Allow these destinations, before the --deny that follow\n\n\
                 --allow 192.0.2.0/24:443/tcp --deny 0.0.0.0/0 --deny ::/0 leaves nothing else open. The host's \
                 loopback stays closed without --host-loopback.",
            ))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for EgressRules {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = |name, action| {
            let at = matches.indices_of(name).into_iter().flatten();
            let rules = matches.get_many::<Match>(name).into_iter().flatten();
            at.zip(rules.cloned().map(move |matches| Rule { action, matches }))
        };
        let mut rules: Vec<_> = given(DENY, Action::Deny).chain(given(ALLOW, Action::Allow)).collect();
        rules.sort_by_key(|(at, _)| *at);
        Ok(Self(rules.into_iter().map(|(_, rule)| rule).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        egress: EgressRules,
    }

    #[test]
    fn rules_keep_the_order_of_the_command_line() {
        let line = ["x", "--allow", "192.0.2.1", "--deny=192.0.2.0/24:80", "--allow", "host", "--deny", "metadata"];
        let actions: Vec<_> = Cli::try_parse_from(line).unwrap().egress.0.into_iter().map(|rule| rule.action).collect();
        assert_eq!(actions, [Action::Allow, Action::Deny, Action::Allow, Action::Deny]);
        assert!(Cli::try_parse_from(["x"]).unwrap().egress.0.is_empty());
        assert!(Cli::try_parse_from(["x", "--deny", "192.0.2.1/24"]).is_err());
    }
}
