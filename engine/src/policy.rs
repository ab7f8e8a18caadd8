//! What may leave, and how the answer is found.
//!
//! A policy is text (`docs/policy.md` is its language). [`Policy::load`] turns it into
//! an immutable value once; [`Policy::judge`] then answers for one flow without
//! walking rules or sets and without allocating:
//!
//! ```text
//! text ─ text (words) ─ parse (statements, `rule`) ─ compile (rows, `set`) ─ index
//!                                                       │    └─ domains  large lists of names
//!                                                       ├─ named    where a name is needed
//!                                                       ├─ shadow   rules that never match
//!                                                       ├─ resolve  who answers a name
//!                                                       ├─ expect   tests in the policy
//!                                                       └─ explain  why a verdict is as it is
//! ```
//!
//! Judgement is a pull: a fact that the host has to be asked for is asked only when
//! the result depends on it. The engine calls [`Policy::judge`] with what it has, and
//! either gets a decision or the name of the fact that is needed next.
//!
//! The module is pure: users and files come through an [`Environment`].

mod compile;
mod diagnostic;
mod domains;
mod expect;
mod explain;
mod format;
mod hypothesis;
mod index;
mod item;
mod named;
mod parse;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod reference;
mod resolve;
mod rule;
mod set;
mod shadow;
#[cfg(test)]
mod tests;
mod text;

use std::fmt;
use std::sync::Arc;

pub use diagnostic::{Diagnostic, Excerpt, Place, Related, Severity, code};
pub use explain::{AppError, ClauseTried, Explanation, Outcome, RuleText, RuleTried, WayTried};
pub use format::format;
pub use hypothesis::{AssumedSource, Dependence, Hypothesis, HypothesisError, Supposed};

use compile::Ruleset;
use diagnostic::{Findings, Site, SourceText, Sources, Span};
use index::Question;
use resolve::Resolutions;

use crate::{Facts, ResolverId, ResolverSet, Resolvers, WayId, WayNames};

/// What becomes of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// It leaves.
    Allow,
    /// It is refused at once: a TCP reset, or ICMP administratively prohibited.
    Block,
    /// It is dropped without an answer.
    Drop,
}

impl Verdict {
    /// The verdict's word in the language and in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Block => "block",
            Self::Drop => "drop",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A rule of one policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(u32);

impl RuleId {
    /// No rule matched: the `default` statement decided.
    pub const DEFAULT: Self = Self(u32::MAX);
}

/// A verdict and the rule that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Decision {
    /// What becomes of the flow.
    pub verdict: Verdict,
    /// Who said so.
    pub rule: RuleId,
}

/// A fact that a decision waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// [`Facts::owner`]: whose socket it is.
    Owner,
    /// [`Facts::egress`]: the address and device that it would leave with.
    Source,
    /// [`Facts::name`]: what its first bytes say, which can be had only by answering the app
    /// before the far side does. Needed only where verdict or way out depend on it, and after
    /// all else.
    Name,
}

/// What a policy says about a flow as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Judgement {
    /// No fact that is still to be asked for can change this.
    Decided(Decision),
    /// The result depends on this fact. Ask, put the answer (or `Unknown`) into the
    /// facts, judge again.
    Needs(Need),
}

/// What the routes say of a flow as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Routing<'p> {
    /// It takes the first of these that is usable ([`choose`]); there is one at least.
    Ways(&'p [WayId]),
    /// The result depends on this fact. Ask, put the answer (or `Unknown`) into the
    /// facts, ask again.
    Needs(Need),
}

/// The first usable way out of a route and `true`; where none is, the first and `false`.
/// `direct` alone is taken in any case: what the kernel says of it is the app's answer.
pub fn choose(ways: &[WayId], usable: impl Fn(WayId) -> bool) -> (WayId, bool) {
    let first = ways.first().copied().unwrap_or(WayId::DIRECT);
    if ways.len() < 2 && first == WayId::DIRECT {
        return (first, true);
    }
    match ways.iter().copied().find(|way| usable(*way)) {
        Some(way) => (way, true),
        None => (first, false),
    }
}

/// A text that a policy is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name in diagnostics and in the names of rules, such as `10-base.policy`.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// Why the file of a set could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There is no such file.
    #[error("no such file")]
    Missing,
    /// The file may not be read.
    #[error("permission denied")]
    Denied,
    /// It is a directory or something else that is no file.
    #[error("not a regular file")]
    NotAFile,
    /// A symbolic link leads out of the policy directory.
    #[error("outside the policy directory")]
    Outside,
    /// The bytes from this one on are not UTF-8.
    #[error("byte {0} is not UTF-8 text")]
    NotText(usize),
    /// The system said something else.
    #[error("cannot be read ({0})")]
    Failed(std::io::ErrorKind),
}

/// What a policy asks the host for while it is loaded.
pub trait Environment {
    /// The uid of a user.
    fn uid(&self, user: &str) -> Option<u32>;

    /// The text of a set's file. `path` is relative and without `..`; it is below the
    /// directory of the source named `source`.
    ///
    /// # Errors
    /// Whatever keeps the file from being read.
    fn read(&self, source: &str, path: &str) -> Result<String, ReadError>;

    /// The resolvers of the configuration.
    fn resolvers(&self) -> Resolvers {
        Resolvers::default()
    }

    /// The ways out of the configuration.
    fn ways(&self) -> WayNames {
        WayNames::default()
    }

    /// Random bits that nobody knows, other ones for each load: large lists of names are kept
    /// as hashes, and whoever could choose a name with the hash of another would be taken for
    /// it.
    fn secret(&self) -> u128;
}

/// An environment without users and files, for tests: its secret is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEnvironment;

impl Environment for NoEnvironment {
    fn uid(&self, _: &str) -> Option<u32> {
        None
    }

    fn read(&self, _: &str, _: &str) -> Result<String, ReadError> {
        Err(ReadError::Missing)
    }

    fn secret(&self) -> u128 {
        0
    }
}

/// How the resolvers of a rule work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// One is asked, and its failure is the answer's.
    One,
    /// The next is asked when one fails.
    Else,
    /// All are asked at once, and the first positive answer wins.
    Or,
    /// All are asked at once, and their addresses are merged in this order.
    And,
    /// Nobody is asked: there is no such name.
    None,
}

/// Who answers a name, by a `resolve` rule or for want of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolution<'p> {
    /// How the resolvers work together.
    pub form: Form,
    /// In the order of the text; none where `form` is [`Form::None`].
    pub resolvers: &'p [ResolverId],
    /// Private, link-local and loopback addresses may stand in answers.
    pub private: bool,
    /// The rule names more than `*`.
    pub specific: bool,
    /// `FILE:LINE`; empty where no rule matched.
    pub rule: &'p str,
}

/// How much a policy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Policy files.
    pub files: usize,
    /// `allow`, `block` and `drop` statements.
    pub rules: usize,
    /// `route` statements.
    pub routes: usize,
    /// `resolve` statements.
    pub resolves: usize,
    /// `set` statements.
    pub sets: usize,
    /// `expect` statements, all of which hold.
    pub expects: usize,
}

/// A policy in force: immutable, shared between threads, and swapped as a whole.
pub struct Policy {
    rules: Ruleset,
    routes: Ruleset,
    resolutions: Resolutions,
    resolvers: Resolvers,
    ways: WayNames,
    default: Verdict,
    sources: Vec<SourceText>,
    summary: Summary,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("summary", &self.summary)
            .field("default", &self.default)
            .finish_non_exhaustive()
    }
}

impl Policy {
    /// The policy without rules: everything is allowed, by the rule `default`.
    pub fn allow_all() -> Self {
        Self {
            rules: Ruleset::default(),
            routes: Ruleset::default(),
            resolutions: Resolutions::default(),
            resolvers: Resolvers::default(),
            ways: WayNames::default(),
            default: Verdict::Allow,
            sources: Vec::new(),
            summary: Summary::default(),
        }
    }

    /// The same policy where it names no resolver, for a host with these resolvers.
    #[must_use]
    pub fn with_resolvers(self, resolvers: Resolvers) -> Self {
        Self { resolvers, ..self }
    }

    /// The same policy where it names no way out, for a host with these.
    #[must_use]
    pub fn with_ways(self, ways: WayNames) -> Self {
        Self { ways, ..self }
    }

    /// Reads, compiles and tests a policy; the sources count as one text in this order.
    /// Gives warnings beside the policy.
    ///
    /// # Errors
    /// Everything that is wrong with it, and the warnings, in the order of the text.
    pub fn load(
        sources: &[Source],
        environment: &dyn Environment,
    ) -> Result<(Self, Vec<Diagnostic>), Vec<Diagnostic>> {
        let mut texts = Sources::default();
        let mut findings = Findings::new();
        let policy = compile::load(sources, environment, &mut texts, &mut findings);
        let sound = !findings.has_errors();
        let diagnostics = findings.into_diagnostics(&texts);
        match policy {
            Some(mut policy) if sound => {
                policy.sources = texts.into_first(sources.len());
                Ok((policy, diagnostics))
            }
            Some(_) | None => Err(diagnostics),
        }
    }

    /// What the policy says about a flow. Decides without a fact that was not asked
    /// yet where that fact cannot change verdict or rule; else names the one to ask. Where a
    /// name could change the rule alone, the rule is the one for an unknown name.
    pub fn judge(&self, facts: &Facts) -> Judgement {
        self.judge_question(&Question::of(facts))
    }

    /// By which ways out a flow may leave. What [`Facts::via`] and [`Facts::egress`] say
    /// does not matter: the routes decide these. A proxy of this host leaves directly.
    pub fn route(&self, facts: &Facts) -> Routing<'_> {
        let index = &self.routes.index;
        let of_proxy = facts.owner.known().is_some_and(|owner| owner.of_proxy);
        if of_proxy || self.routes.rules.is_empty() {
            return Routing::Ways(&[WayId::DIRECT]);
        }
        let answers = index.answers(&Question::of(facts));
        match index.lowest(&answers) {
            Some(lowest) if lowest.waits_for & index::OWNER != 0 => Routing::Needs(Need::Owner),
            Some(lowest) if lowest.waits_for != 0 => self.route_unnamed(&answers),
            lowest => Routing::Ways(self.ways_of(lowest.map(|lowest| lowest.rule))),
        }
    }

    /// The ways out of the route at a place; without one, `direct`.
    fn ways_of(&self, route: Option<u32>) -> &[WayId] {
        let route = route.and_then(|at| self.routes.rules.get(at as usize));
        match route.map(|route| self.routes.ways(route)) {
            Some(ways) if !ways.is_empty() => ways,
            Some(_) | None => &[WayId::DIRECT],
        }
    }

    /// The ways out that the policy was loaded with.
    pub fn ways(&self) -> &WayNames {
        &self.ways
    }

    /// The name of a way out.
    pub fn way_name(&self, way: WayId) -> &str {
        self.ways.name(way).map_or("", |name| name)
    }

    /// A route's name, `FILE:LINE`.
    fn route_name(&self, route: u32) -> &str {
        let route = self.routes.rules.get(route as usize);
        route.map_or("", |route| self.routes.name(route))
    }

    /// The rule's `id`, else `FILE:LINE`; `default` where no rule matched.
    pub fn rule_name(&self, rule: RuleId) -> &str {
        self.name_at(rule.0 as usize)
    }

    /// The ways out that its routes name; some more than once.
    pub fn routed(&self) -> impl Iterator<Item = WayId> {
        self.routes.ways.iter().copied()
    }

    /// Whether no change of policy or path resets a flow that this rule allows.
    pub fn protects(&self, rule: RuleId) -> bool {
        self.rules.rules.get(rule.0 as usize).is_some_and(|rule| rule.protected)
    }

    /// How many rules there are, the default not counted.
    pub fn rules(&self) -> usize {
        self.rules.rules.len()
    }

    /// A rule's place in the order in which rules are asked; the default's is behind the last.
    pub fn position(&self, rule: RuleId) -> usize {
        (rule.0 as usize).min(self.rules.rules.len())
    }

    /// The name of the rule at a place, as [`Policy::rule_name`] gives it.
    pub fn name_at(&self, position: usize) -> &str {
        self.rules.rules.get(position).map_or("default", |rule| self.rules.name(rule))
    }

    /// Whether any rule or route asks whose socket a flow belongs to.
    pub fn needs_owner(&self) -> bool {
        self.rules.index.uses(index::OWNER) || self.routes.index.uses(index::OWNER)
    }

    /// Who answers a name, which is lower-case A-labels without the last dot. Takes a few
    /// hundred nanoseconds however many names the policy holds.
    pub fn resolution(&self, name: &str) -> Resolution<'_> {
        self.resolutions.of(name)
    }

    /// The resolvers that the policy was loaded with.
    pub fn resolvers(&self) -> &Resolvers {
        &self.resolvers
    }

    /// The names of some of them.
    pub fn resolver_names(&self, set: ResolverSet) -> Vec<Arc<str>> {
        set.iter().filter_map(|id| self.resolvers.name(id).cloned()).collect()
    }

    /// How much the policy holds.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    fn judge_question(&self, question: &Question<'_>) -> Judgement {
        let answers = self.rules.index.answers(question);
        match self.rules.index.lowest(&answers) {
            Some(lowest) if lowest.waits_for & index::OWNER != 0 => Judgement::Needs(Need::Owner),
            Some(lowest) if lowest.waits_for & !index::NAME != 0 => Judgement::Needs(Need::Source),
            Some(lowest) if lowest.waits_for != 0 => self.judge_unnamed(&answers),
            Some(lowest) => Judgement::Decided(self.decision(Some(lowest.rule))),
            None => Judgement::Decided(self.decision(None)),
        }
    }

    fn decision(&self, rule: Option<u32>) -> Decision {
        match rule.and_then(|rule| Some((rule, self.rules.rules.get(rule as usize)?))) {
            Some((id, rule)) => Decision { verdict: rule.verdict, rule: RuleId(id) },
            None => Decision { verdict: self.default, rule: RuleId::DEFAULT },
        }
    }
}

/// Reads the grammar of sources alone: no sets' files, no users, no tests.
///
/// # Errors
/// Everything that is wrong with it, in the order of the text.
pub fn check_syntax(sources: &[Source]) -> Result<(), Vec<Diagnostic>> {
    let mut texts = Sources::default();
    let mut findings = Findings::new();
    compile::parse_all(sources, &mut texts, &mut findings);
    if findings.has_errors() { Err(findings.into_diagnostics(&texts)) } else { Ok(()) }
}

/// Why a word is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotAName {
    message: String,
}

/// A name as facts have it: lower-case A-labels without the last dot.
///
/// # Errors
/// It is none, as the language sees it.
pub fn name(word: &str) -> Result<Arc<str>, NotAName> {
    match item::domain(word) {
        Ok(domain) if !domain.below => Ok((*domain.name).into()),
        Ok(_) => Err(NotAName { message: "a flow has one name".to_owned() }),
        Err(error) => Err(NotAName { message: error.message }),
    }
}

/// The diagnostic for bytes that are not UTF-8, from byte `at` on; `text` is what can
/// be read of them.
pub fn not_text(name: &str, text: &str, at: usize) -> Diagnostic {
    let mut sources = Sources::default();
    let source = sources.add(name, text.into());
    let mut findings = Findings::new();
    let span = Span::new(at, at + 1);
    findings
        .error(code::NOT_TEXT, Site { source, span }, format!("byte {at} is not UTF-8 text"))
        .help("a policy is UTF-8 text");
    findings.into_diagnostics(&sources).remove(0)
}
