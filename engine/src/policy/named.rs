//! When the result depends on a name that nobody knows.
//!
//! A name that no answer told of can be had only from the flow's first bytes, and for these
//! the app has to be told that it is connected: the one fact whose question an app can see. So
//! it is needed only where it could change the verdict or the way out, while a rule with
//! another name and the same result is as good; and it is needed last, when nothing else that
//! is left to ask for could settle the matter.
//!
//! What a name could change is found without going through names: all rules that some name
//! could make match, up to the first that matches whatever the name is. Where they agree, no
//! name matters.

use std::sync::Arc;

use super::hypothesis::SourceClasses;
use super::index::{self, Answers, Question};
use super::{
    AssumedSource, Decision, Hypothesis, Judgement, Need, Policy, Routing, Verdict, choose,
};
use crate::{Fact, Facts, Protocol, WayId, WayKind};

impl Policy {
    /// Whether any rule or route asks for a flow's name.
    pub fn needs_name(&self) -> bool {
        self.rules.index.uses(index::NAME) || self.routes.index.uses(index::NAME)
    }

    /// The verdict that a flow gets in any case, whatever its name, its way out and the facts
    /// are that were not asked for; `None`: it depends.
    pub fn foregone(&self, facts: &Facts) -> Option<Verdict> {
        let question = Question { via: Fact::Unasked, ..Question::of(facts) };
        self.settled(&self.rules.index.answers(&question))
    }

    /// What is decided where only the name of the flow is missing for the lowest rule.
    pub(super) fn judge_unnamed(&self, answers: &Answers) -> Judgement {
        let index = &self.rules.index;
        if self.settled(answers).is_some() {
            let unnamed = index.without_name(answers);
            // Other facts may be missing for a rule that this leaves as the lowest.
            return match index.lowest(&unnamed) {
                Some(lowest) if lowest.waits_for != 0 => Judgement::Needs(asked_first(&unnamed)),
                lowest => Judgement::Decided(self.decision(lowest.map(|lowest| lowest.rule))),
            };
        }
        Judgement::Needs(asked_first(answers))
    }

    /// The same for the way out.
    pub(super) fn route_unnamed(&self, answers: &Answers) -> Routing<'_> {
        if answers.unasked(index::OWNER) {
            return Routing::Needs(Need::Owner);
        }
        let index = &self.routes.index;
        let sure = index.lowest_sure(answers);
        let ways = self.ways_of(sure);
        let limit = sure.unwrap_or(u32::MAX);
        if index.all_waiting(answers, limit, |route| self.ways_of(Some(route)) == ways) {
            Routing::Ways(ways)
        } else {
            Routing::Needs(Need::Name)
        }
    }

    /// The verdict of every rule that may turn out to be the one that decides, where they agree.
    fn settled(&self, answers: &Answers) -> Option<Verdict> {
        let index = &self.rules.index;
        let sure = index.lowest_sure(answers);
        let Decision { verdict, .. } = self.decision(sure);
        let limit = sure.unwrap_or(u32::MAX);
        let same = |rule| self.decision(Some(rule)).verdict == verdict;
        index.all_waiting(answers, limit, same).then_some(verdict)
    }

    /// Whether the result of a made-up flow depends on its name, of which the question says
    /// nothing. What else is not given counts as unknown.
    pub(super) fn wants_name(&self, question: Question<'_>) -> bool {
        if !self.needs_name() {
            return false;
        }
        let question = nameless(question);
        let answers = self.routes.index.answers(&question);
        if matches!(self.route_unnamed(&answers), Routing::Needs(Need::Name)) {
            return !self.refuses_all(question);
        }
        self.settled(&self.rules.index.answers(&question)).is_none()
    }

    /// Whether the names that lead to a made-up flow's destination give different results, so
    /// that its first bytes are looked at to know which of them it is for.
    pub fn names_disagree(&self, flow: &Hypothesis, usable: impl Fn(WayId) -> bool) -> bool {
        let served = flow.source == AssumedSource::Nothing;
        if flow.name.is_none() || served || flow.protocol != Protocol::Tcp {
            return false;
        }
        let (via, has_way) = choose(self.supposed_route(flow).ways, &usable);
        let verdict = |flow: &Hypothesis| {
            let supposed = self.suppose_via(flow, Some(via), &SourceClasses::default());
            supposed.ok().map(|(decision, _)| decision.verdict)
        };
        let differs = |name: &Arc<str>| {
            let other = Hypothesis { name: Some(Arc::clone(name)), ..flow.clone() };
            self.supposed_route(&other).ways != self.supposed_route(flow).ways
                || has_way && verdict(&other) != verdict(flow)
        };
        if !flow.others.iter().any(differs) {
            return false;
        }
        let unnamed = flow.clone().unnamed();
        let (via, _) = choose(self.supposed_route(&unnamed).ways, &usable);
        let into_tunnel = self.ways.kind(via) == Some(WayKind::Link);
        let question = unnamed.question(unnamed.versions()[0], Some(via));
        !into_tunnel && !self.refuses_all(nameless(question))
    }

    /// Whether a flow is refused whatever its name and its way out are.
    fn refuses_all(&self, nameless: Question<'_>) -> bool {
        let anyhow = Question { via: Fact::Unasked, ..nameless };
        let verdict = self.settled(&self.rules.index.answers(&anyhow));
        matches!(verdict, Some(Verdict::Block | Verdict::Drop))
    }
}

/// Of a made-up flow whose name was not asked for. What else is not given is unknown.
fn nameless(question: Question<'_>) -> Question<'_> {
    let known = |fact| if fact == Fact::Unasked { Fact::Unknown } else { fact };
    Question {
        name: Fact::Unasked,
        source: known(question.source),
        egress_address: known(question.egress_address),
        ..question
    }
}

/// What to ask for before a name.
fn asked_first(answers: &Answers) -> Need {
    if answers.unasked(index::OWNER) {
        Need::Owner
    } else if answers.unasked(!index::NAME) {
        Need::Source
    } else {
        Need::Name
    }
}
