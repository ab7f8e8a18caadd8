//! Which flows are meant: an expression in the clauses of the policy language.
//!
//! The expression becomes the one rule of a policy, and a flow is meant where that policy
//! allows it. So it means here what it means in a policy.

use engine::policy::{
    Diagnostic, Environment, Judgement, Policy, ReadError, Source, Verdict, code,
};
use engine::{Fact, Facts, Report, Resolvers};

use crate::diagnostics::Told;
use crate::policy_files;

/// What stands before the expression on its line.
const LEAD: &str = "allow ";
/// What diagnostics call the expression.
const NAME: &str = "--match";

/// A compiled expression.
#[derive(Debug)]
pub(crate) struct Selection {
    policy: Policy,
}

/// The users of the host, the resolvers of the daemon, and no files.
struct Known<'d>(&'d Resolvers);

impl Environment for Known<'_> {
    fn uid(&self, user: &str) -> Option<u32> {
        policy_files::uid(user)
    }

    fn read(&self, _: &str, _: &str) -> Result<String, ReadError> {
        Err(ReadError::Missing)
    }

    fn resolvers(&self) -> Resolvers {
        self.0.clone()
    }

    fn secret(&self) -> u128 {
        policy_files::secret()
    }
}

impl Selection {
    /// Compiles an expression such as `tcp to 10.0.0.0/8 port 443`; an empty one means all.
    /// May ask the host for users, which may take its time.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn parse(expression: &str, resolvers: &Resolvers) -> Result<Self, Vec<Told>> {
        // One line, so that nothing but clauses can be said. What is left out where a comment
        // or a backslash ends the line would be missed without a word.
        let visible = |c: char| if c.is_control() && c != '\t' { '\u{fffd}' } else { c };
        let line: String = expression.chars().map(visible).collect();
        let line = match line.trim_end() {
            line if line.ends_with('\\') => format!("{line}\u{fffd}"),
            line => line.to_owned(),
        };
        let text = format!("policy 1\n{LEAD}{line}\ndefault block\n");
        let source = Source { name: NAME.to_owned(), text };
        match Policy::load(&[source], &Known(resolvers)) {
            Ok((policy, _)) => Ok(Self { policy }),
            Err(found) => Err(found.iter().map(told).collect()),
        }
    }

    /// Whether a flow is meant. A clause about what its report does not know does not hold.
    pub(crate) fn means(&self, report: &Report) -> bool {
        let mut facts =
            Facts::new(report.protocol, report.client, report.destination, report.local);
        facts.owner = Fact::answered(report.owner.clone());
        facts.egress = Fact::answered(report.egress);
        facts.name = Fact::answered(report.name.clone());
        let resolvers = self.policy.resolvers();
        facts.resolvers = report.resolvers.iter().filter_map(|name| resolvers.id(name)).collect();
        match self.policy.judge(&facts) {
            Judgement::Decided(decision) => decision.verdict == Verdict::Allow,
            // No fact is unasked here.
            Judgement::Needs(_) => false,
        }
    }
}

/// A diagnostic that speaks of the expression and not of the rule around it.
fn told(diagnostic: &Diagnostic) -> Told {
    debug_assert!(diagnostic.code != code::MISSING_DEFAULT, "the expression ended its rule");
    Told::of(diagnostic, &|source| source.into()).in_argument(NAME, LEAD.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The flow of `docs/json.md`: tcp 192.168.7.5 by eth0 to 203.0.113.9:443, alice's.
    #[test]
    fn expressions() {
        let report = crate::report::tests::example();
        let nameless = Report {
            owner: None,
            egress: None,
            name: None,
            resolvers: Vec::new(),
            ..report.clone()
        };
        for (expression, meant, where_unknown) in [
            ("", true, true),
            ("tcp", true, true),
            ("udp", false, false),
            ("tcp to 203.0.113.0/24 port 443", true, true),
            ("to 203.0.113.9 port 80", false, false),
            ("client 198.18.0.0/15", true, true),
            ("from 192.168.7.5", true, false),
            ("from not 192.168.7.5", false, false),
            ("egress eth0", true, false),
            ("egress wwan0", false, false),
            ("user 1000", true, false),
            ("user root", false, false),
            ("user unknown", false, true),
            ("cgroup /user.slice", true, false),
            ("to www.example.com", true, false),
            ("to *.com 192.0.2.1", true, false),
            ("to not *.example", true, false),
            ("to unknown-name", false, true),
            ("resolver upstream", true, false),
            ("via direct", true, true),
            ("tcp # a comment", true, true),
        ] {
            let selection = Selection::parse(expression, &Resolvers::default()).expect(expression);
            assert_eq!(selection.means(&report), meant, "{expression}");
            assert_eq!(selection.means(&nameless), where_unknown, "{expression}");
        }
    }

    #[test]
    fn faults_are_shown_where_they_are() {
        for (expression, code, column) in [
            ("tcp prot 443", "unknown-clause", 5),
            ("to 10.0.0.1/8", "host-bits", 4),
            ("user no-such-user-here", "unknown-user", 6),
            ("to @lan", "unknown-set", 4),
            ("via wg0", "unknown-way", 5),
            ("to www..example.com", "bad-domain", 4),
            ("resolver nobody", "unknown-resolver", 10),
            ("tcp \nallow udp", "bad-character", 5),
            ("tcp \\", "bad-character", 5),
        ] {
            let found = Selection::parse(expression, &Resolvers::default()).expect_err(expression);
            let object = found[0].object();
            assert_eq!((&object["file"], &object["line"]), (&"--match".into(), &1.into()));
            assert_eq!(object["code"], code, "{expression}: {object}");
            assert_eq!(object["column"], column, "{expression}: {object}");
            let text = object["excerpt"]["text"].as_str().expect("an excerpt");
            assert!(!text.starts_with(LEAD), "{object}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// No heap of words makes it panic, and none is more than clauses.
        #[test]
        fn no_heap_of_words_panics(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "tcp", "to", "from", "not", "port", "via", "resolver", "user", "cgroup", "egress",
                    "default", "allow", "set", "route", "policy 1", "@a", "any", "443", "9-1", ",",
                    "10.0.0.0/8", "10.0.0.1/8", "a.example", "*.", "\n", "\r\n", "\\", "#", "\"",
                    "unknown", "id", "\0", "é", "direct", "upstream", "root", "file",
                ]),
                0..20,
            ),
        ) {
            let report = crate::report::tests::example();
            let expression = words.join(" ");
            match Selection::parse(&expression, &Resolvers::default()) {
                Ok(selection) => {
                    prop_assert_eq!(selection.policy.summary().rules, 1, "{}", expression);
                    selection.means(&report);
                }
                Err(found) => prop_assert!(!found.is_empty(), "{expression}"),
            }
        }
    }
}
