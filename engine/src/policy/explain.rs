//! Why a verdict is as it is.
//!
//! The verdict comes from the same lookup that judges live flows. Only then are the
//! rules before it walked, one clause at a time, to say what kept each from matching.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::compile::{ClauseEntry, RuleEntry, Ruleset, Test};
use super::hypothesis::SourceClasses;
use super::index::{Answers, Dimension};
use super::{AssumedSource, Decision, Dependence, Hypothesis, Policy, Verdict, choose};
use crate::{Protocol, WayId, WayKind};

/// The way of a made-up flow through the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Routes tried, in order, up to the one that matched.
    pub routes: Vec<RuleTried>,
    /// The way out: the first that is usable, or the first where none is.
    pub via: Arc<str>,
    /// The ways out that the route gives, in the order of preference.
    pub ways: Vec<WayTried>,
    /// Rules tried, in order, up to the one that matched.
    pub rules: Vec<RuleTried>,
    /// The verdict.
    pub verdict: Verdict,
    /// The name of the rule that gave it.
    pub rule: String,
    /// What the app sees, where the flow is not allowed or has no way out.
    pub error: Option<AppError>,
    /// No name is known, or several whose results differ, and the first bytes would be looked at
    /// for one before the verdict: what is said here is what becomes of the flow where they
    /// tell of none.
    pub peek: bool,
}

/// A way out of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WayTried {
    /// Its name.
    pub name: Arc<str>,
    /// Whether a new flow may take it.
    pub usable: bool,
}

impl Explanation {
    /// No way out of the route is usable: the flow fails though it is allowed.
    pub fn has_no_way_out(&self) -> bool {
        !self.ways.iter().any(|way| way.usable)
    }
}

/// A rule that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleTried {
    /// Its id or `FILE:LINE`.
    pub name: String,
    /// The file that it stands in.
    pub file: String,
    /// The line that it begins on.
    pub line: u32,
    /// What it says.
    pub text: String,
    /// Whether all of its clauses hold.
    pub matched: bool,
    /// Its clauses in the order of the text.
    pub clauses: Vec<ClauseTried>,
}

/// A rule as it stands in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleText<'a> {
    /// Its id or `FILE:LINE`.
    pub name: &'a str,
    /// The file that it stands in.
    pub file: &'a str,
    /// The line that it begins on.
    pub line: u32,
    /// What it says.
    pub text: String,
    /// What it decides.
    pub verdict: Verdict,
}

/// A clause that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClauseTried {
    /// What it says.
    pub text: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// Whether a clause holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It holds.
    Holds,
    /// It does not hold.
    Fails,
    /// It does not hold, negated or not, because what it asks about is unknown.
    Unknown,
}

impl Outcome {
    /// `holds`, `fails` or `unknown`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "fails",
            Self::Unknown => "unknown",
        }
    }
}

/// What an app sees of a flow that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AppError {
    /// The error of its system call, where it gets one.
    pub errno: Option<&'static str>,
    /// How it comes to it.
    pub how: &'static str,
}

impl AppError {
    /// What an app sees of a flow whose route has no usable way out.
    const NO_WAY_OUT: Self =
        Self { errno: Some("ENETUNREACH"), how: "ICMP net unreachable: no way out is usable" };

    /// What a verdict looks like to the app; `None` where the flow is allowed. Without a
    /// destination it is that of an IPv4 host.
    pub fn of(verdict: Verdict, protocol: Protocol, destination: Option<IpAddr>) -> Option<Self> {
        let destination = destination.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        // RFC 1122 3.2.2: an ICMP error never answers a broadcast or a multicast.
        let unanswered = match destination {
            IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_multicast(),
        };
        let error = |errno, how| Some(Self { errno: Some(errno), how });
        match (verdict, protocol) {
            (Verdict::Allow, _) => None,
            (Verdict::Block, _) if unanswered => Some(Self {
                errno: None,
                how: "no answer: ICMP errors never answer multicast or broadcast",
            }),
            (Verdict::Block, Protocol::Tcp) => error("ECONNREFUSED", "TCP reset"),
            (Verdict::Block, Protocol::Udp | Protocol::Icmp) if destination.is_ipv4() => {
                error("EHOSTUNREACH", "ICMP 3/13, administratively prohibited")
            }
            (Verdict::Block, Protocol::Udp | Protocol::Icmp) => {
                error("EACCES", "ICMPv6 1/1, administratively prohibited")
            }
            (Verdict::Drop, Protocol::Tcp) => {
                error("ETIMEDOUT", "no answer, until the app's own timer ends")
            }
            (Verdict::Drop, Protocol::Udp | Protocol::Icmp) => {
                Some(Self { errno: None, how: "no answer" })
            }
        }
    }
}

impl Policy {
    /// The way of a made-up flow through the policy, while every way out is usable.
    ///
    /// # Errors
    /// Its source is left open and the verdict depends on it.
    pub fn explain(&self, flow: &Hypothesis) -> Result<Explanation, Dependence> {
        self.explain_with(flow, |_| true)
    }

    /// The same while these ways out are usable.
    ///
    /// # Errors
    /// Its source is left open and the verdict depends on it.
    pub fn explain_with(
        &self,
        flow: &Hypothesis,
        usable: impl Fn(WayId) -> bool,
    ) -> Result<Explanation, Dependence> {
        let supposed = self.supposed_route(flow);
        let (via, has_way) = choose(supposed.ways, &usable);
        let alone = supposed.ways == [WayId::DIRECT];
        let classes = SourceClasses::default();
        let (decision, answers) = self.suppose_via(flow, Some(via), &classes)?;
        let Decision { verdict, rule } = decision;
        let last = |rules: &Ruleset, matched: Option<u32>| {
            matched.map_or(rules.rules.len(), |rule| rule as usize + 1)
        };
        let matched = Some(rule.0).filter(|rule| (*rule as usize) < self.rules.rules.len());
        let rules = self.walk(&self.rules, &answers, last(&self.rules, matched));
        debug_assert!(agrees(&rules, matched), "the walk found another rule than the index");
        let answers = self.routes.index.answers(&flow.question(flow.versions()[0], None));
        let matched = self.routes.index.lowest(&answers).map(|lowest| lowest.rule);
        let routes = self.walk(&self.routes, &answers, last(&self.routes, matched));
        debug_assert!(agrees(&routes, matched), "the walk found another route than the index");
        let peek = flow.protocol == Protocol::Tcp
            && flow.name.is_none()
            && flow.source != AssumedSource::Nothing
            && self.ways.kind(via) != Some(WayKind::Link)
            && (!flow.others.is_empty()
                || self.wants_name(flow.question(flow.versions()[0], Some(via))));
        Ok(Explanation {
            peek,
            routes,
            via: self.ways.name(via).cloned().unwrap_or_default(),
            ways: supposed
                .ways
                .iter()
                .map(|way| self.way_tried(*way, alone || usable(*way)))
                .collect(),
            rules,
            verdict,
            rule: self.rule_name(rule).to_owned(),
            error: match verdict {
                Verdict::Allow if !has_way => Some(AppError::NO_WAY_OUT),
                Verdict::Allow | Verdict::Block | Verdict::Drop => {
                    AppError::of(verdict, flow.protocol, flow.destination)
                }
            },
        })
    }

    fn way_tried(&self, way: WayId, usable: bool) -> WayTried {
        WayTried { name: self.ways.name(way).cloned().unwrap_or_default(), usable }
    }

    /// The rules that give verdicts, in the order in which they are asked, without the default.
    pub fn rule_texts(&self) -> impl Iterator<Item = RuleText<'_>> {
        self.rules.rules.iter().map(|rule| RuleText {
            name: self.rules.name(rule),
            file: self.source(rule).map_or("", |source| &source.name),
            line: rule.line,
            text: self.text(rule, rule.site.span),
            verdict: rule.verdict,
        })
    }

    /// The verdict where no rule matches.
    pub fn default_verdict(&self) -> Verdict {
        self.default
    }

    fn walk(&self, ruleset: &Ruleset, answers: &Answers, count: usize) -> Vec<RuleTried> {
        let places = ruleset.index.places();
        let mut places = places.chunk_by(|a, b| a.0 == b.0);
        let tried = |rule: &RuleEntry| {
            let places = places.next().unwrap_or_default();
            let clauses = rule.clauses.start as usize..rule.clauses.end as usize;
            let clauses: Vec<ClauseTried> = ruleset.clauses[clauses]
                .iter()
                .map(|clause| ClauseTried {
                    text: self.text(rule, clause.span),
                    outcome: outcome(ruleset, places, clause, answers),
                })
                .collect();
            RuleTried {
                name: ruleset.name(rule).to_owned(),
                file: self.source(rule).map_or("", |source| &source.name).to_owned(),
                line: rule.line,
                text: self.text(rule, rule.site.span),
                matched: clauses.iter().all(|clause| clause.outcome == Outcome::Holds),
                clauses,
            }
        };
        ruleset.rules.iter().take(count).map(tried).collect()
    }

    fn source(&self, rule: &RuleEntry) -> Option<&super::SourceText> {
        self.sources.get(rule.site.source.0 as usize)
    }

    /// A part of a rule on one line.
    fn text(&self, rule: &RuleEntry, span: super::Span) -> String {
        let text = self.source(rule).map_or("", |source| span.of(&source.text));
        let words = text.split_whitespace().filter(|word| *word != "\\");
        words.map(|word| word.trim_end_matches('\\')).collect::<Vec<_>>().join(" ")
    }
}

/// Only the last rule of a walk that ended early matches.
fn agrees(walk: &[RuleTried], matched: Option<u32>) -> bool {
    let found = walk.iter().position(|rule| rule.matched);
    found == matched.map(|rule| rule as usize)
}

fn outcome(
    ruleset: &Ruleset,
    places: &[(u32, u32)],
    clause: &ClauseEntry,
    answers: &Answers,
) -> Outcome {
    let (dimensions, not) = match clause.test {
        Test::Always => return Outcome::Holds,
        Test::Protocol(protocol) if answers.protocol() == protocol => return Outcome::Holds,
        Test::Protocol(_) => return Outcome::Fails,
        Test::Lists { dimensions, not } => (dimensions, not),
    };
    let asked = Dimension::ALL.into_iter().filter(|d| d.mask() & dimensions != 0);
    let unknown = answers.unknown(dimensions);
    let mut lists = asked.flat_map(|dimension| {
        let held =
            places.iter().filter_map(move |(_, at)| ruleset.index.holds(*at, dimension, answers));
        held.map(move |holds| (dimension, holds))
    });
    // What is known may settle it alone: by standing in a plain list, or in a negated one.
    if not {
        let fails = lists.any(|(dimension, holds)| !holds && !answers.unknown(dimension.mask()));
        match (fails, unknown) {
            (true, _) => Outcome::Fails,
            (false, true) => Outcome::Unknown,
            (false, false) => Outcome::Holds,
        }
    } else {
        match (lists.any(|(_, holds)| holds), unknown) {
            (true, _) => Outcome::Holds,
            (false, true) => Outcome::Unknown,
            (false, false) => Outcome::Fails,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{AssumedSource, NoEnvironment, Source};

    const POLICY: &str = "policy 1\n\
        set lan = 10.0.0.0/8 fd00::/8\n\
        route to @lan via direct\n\
        block tcp to @lan \\\n  port 22, 23 id no-ssh\n\
        allow from not 192.0.2.0/24 user unknown\n\
        drop to 203.0.113.1\n\
        default block\n";

    fn explain(source: &str, destination: &str, port: Option<u16>) -> Explanation {
        let source_text = Source { name: "a.policy".into(), text: POLICY.into() };
        let (policy, _) = Policy::load(&[source_text], &NoEnvironment).expect("a good policy");
        let flow = Hypothesis {
            protocol: Protocol::Tcp,
            source: AssumedSource::Address(source.parse().expect("address")),
            destination: Some(destination.parse().expect("address")),
            name: None,
            others: Vec::new(),
            resolvers: crate::ResolverSet::EMPTY,
            port,
            client: None,
            uid: None,
            egress: None,
        };
        policy.explain(&flow).expect("a source is given")
    }

    #[test]
    fn each_rule_says_why() {
        let told = explain("192.0.2.1", "10.0.0.1", Some(80));
        assert_eq!((told.verdict, &*told.rule), (Verdict::Block, "default"));
        assert_eq!(told.routes.len(), 1);
        assert!(told.routes[0].matched);
        let lines: Vec<String> = told
            .rules
            .iter()
            .map(|rule| {
                let outcomes = rule.clauses.iter();
                let outcomes = outcomes.map(|c| format!("{} {}", c.text, c.outcome.as_str()));
                format!("{} {}: {}", rule.name, rule.line, outcomes.collect::<Vec<_>>().join("; "))
            })
            .collect();
        assert_eq!(
            lines,
            [
                "no-ssh 4: tcp holds; to @lan holds; port 22, 23 fails",
                "a.policy:6 6: from not 192.0.2.0/24 fails; user unknown holds",
                "a.policy:7 7: to 203.0.113.1 fails",
            ]
        );
        assert_eq!(told.rules[0].text, "block tcp to @lan port 22, 23 id no-ssh");
    }

    #[test]
    fn rules_as_they_stand() {
        let source = Source { name: "a.policy".into(), text: POLICY.into() };
        let (policy, _) = Policy::load(&[source], &NoEnvironment).expect("a good policy");
        let rules: Vec<_> = policy.rule_texts().collect();
        let names: Vec<_> = rules.iter().map(|rule| (rule.name, rule.line, rule.verdict)).collect();
        let want = [
            ("no-ssh", 4, Verdict::Block),
            ("a.policy:6", 6, Verdict::Allow),
            ("a.policy:7", 7, Verdict::Drop),
        ];
        assert_eq!(names, want);
        assert_eq!(rules[2].text, "drop to 203.0.113.1");
        assert_eq!(policy.default_verdict(), Verdict::Block);
    }

    #[test]
    fn the_walk_ends_at_the_rule_that_decides() {
        let told = explain("10.0.0.9", "10.0.0.1", Some(22));
        assert_eq!((told.verdict, &*told.rule, told.rules.len()), (Verdict::Block, "no-ssh", 1));
        assert_eq!(told.error.and_then(|error| error.errno), Some("ECONNREFUSED"));
        let told = explain("10.0.0.9", "10.0.0.1", None);
        assert_eq!((told.verdict, &*told.rule), (Verdict::Allow, "a.policy:6"));
        assert_eq!(told.rules[0].clauses[2].outcome, Outcome::Unknown);
        assert_eq!(told.error, None);
    }

    #[test]
    fn where_a_peek_would_be() {
        for (rules, protocol, name, peek) in [
            ("block to bad.example", Protocol::Tcp, None, true),
            ("block to bad.example", Protocol::Tcp, Some("good.example"), false),
            ("block to bad.example", Protocol::Udp, None, false),
            ("block to bad.example port 80", Protocol::Tcp, None, false),
            ("block to bad.example from 198.51.100.1", Protocol::Tcp, None, false),
            ("allow to good.example", Protocol::Tcp, None, false),
            ("allow to 203.0.113.9\nblock to bad.example", Protocol::Tcp, None, false),
            ("block to unknown-name", Protocol::Tcp, None, true),
            ("block to 203.0.113.9", Protocol::Tcp, None, false),
            ("route to corp.example via direct", Protocol::Tcp, None, false),
        ] {
            let text = format!("policy 1\n{rules}\ndefault allow\n");
            let source = Source { name: "a.policy".into(), text };
            let (policy, _) = Policy::load(&[source], &NoEnvironment).expect("a good policy");
            let flow = Hypothesis {
                protocol,
                source: AssumedSource::Address("192.0.2.1".parse().expect("address")),
                destination: Some("203.0.113.9".parse().expect("address")),
                name: name.map(Arc::from),
                others: Vec::new(),
                resolvers: crate::ResolverSet::EMPTY,
                port: Some(443),
                client: None,
                uid: None,
                egress: None,
            };
            let told = policy.explain(&flow).expect("a source is given");
            assert_eq!(told.peek, peek, "{rules} {protocol} {name:?}");
        }
    }

    #[test]
    fn errors_of_the_app() {
        for (verdict, protocol, destination, errno) in [
            (Verdict::Allow, Protocol::Tcp, "192.0.2.1", None),
            (Verdict::Block, Protocol::Tcp, "192.0.2.1", Some("ECONNREFUSED")),
            (Verdict::Block, Protocol::Tcp, "2001:db8::1", Some("ECONNREFUSED")),
            (Verdict::Block, Protocol::Udp, "192.0.2.1", Some("EHOSTUNREACH")),
            (Verdict::Block, Protocol::Udp, "2001:db8::1", Some("EACCES")),
            (Verdict::Block, Protocol::Icmp, "192.0.2.1", Some("EHOSTUNREACH")),
            (Verdict::Block, Protocol::Icmp, "2001:db8::1", Some("EACCES")),
            (Verdict::Block, Protocol::Udp, "224.0.0.251", None),
            (Verdict::Block, Protocol::Udp, "255.255.255.255", None),
            (Verdict::Drop, Protocol::Tcp, "192.0.2.1", Some("ETIMEDOUT")),
            (Verdict::Drop, Protocol::Udp, "192.0.2.1", None),
        ] {
            let address = Some(destination.parse().expect("address"));
            let error = AppError::of(verdict, protocol, address);
            assert_eq!(error.and_then(|e| e.errno), errno, "{verdict} {protocol} {destination}");
            assert_eq!(error.is_none(), verdict == Verdict::Allow);
        }
    }
}
