//! Another policy while flows live.
//!
//! From [`Engine::reload`] on every new flow is judged by the new policy. What lives is judged
//! again by a walk ([`Engine::rejudge`]), on the facts that it kept: nobody is asked, and a fact
//! that nobody asked for before counts as unknown.
//!
//! | the flow | same verdict | another |
//! | --- | --- | --- |
//! | held for owner, source or first bytes | the new policy judges it anyway | |
//! | held for the far side's answer | goes on | its socket goes; refused in the way of a first verdict |
//! | open TCP | goes on | RST to both sides |
//! | open into a tunnel | goes on | TCP: RST to both sides; else ICMP, or nothing where the verdict is `drop` |
//! | open UDP, echo | goes on | its socket goes; ICMP, or nothing where the verdict is `drop` |
//! | asks the service | goes on | the same; answers that are owed are dropped |
//! | answered by a verdict | forgotten: the next packet, or the app's next SYN, is judged | |
//! | answered for a failure | stays: no verdict is behind it | |
//!
//! A flow that a `protected` rule has allowed goes on in every row, whatever the new policy
//! says of it. It ends only with the tunnel that it passes into.
//!
//! Another way out is as another verdict. A flow over a tunnel that is gone or has another
//! address, or over a proxy that is another one, ends as by [`Engine::leave_links`].
//!
//! Where our own resolver answers may change with it ([`Engine::set_resolver`]). A flow never
//! moves, so one whose destination has become the resolver's, or is no longer, ends whatever its
//! verdict: an open connection by RST, all others in silence, because the app's next packet is
//! the first of a flow that leads where it should.
//!
//! Each flow keeps the policy that judged it last, so its rule has the right name at every
//! moment of the walk. After it no flow refers to an earlier policy. (Freeing a large one takes
//! milliseconds, so whoever has loaded it should hold it longer than that.)

use std::borrow::Cow;
use std::sync::Arc;

use crate::engine::link::has_left;
use crate::engine::walk::{PIECE, Walk, stage};
use crate::engine::{Engine, Output, ResolverService, Services, report};
use crate::flow::{Flow, Held, Spared, State, Waiting};
use crate::packet::icmp::{Answer, Cause};
use crate::policy::{Decision, Judgement, Need, Policy, Routing, Verdict, choose};
use crate::report::Stage;
use crate::ways::Ways;
use crate::{Fact, Facts, FlowId, Instant, Reason, Report, Sink, WayId};

/// A policy and its number.
#[derive(Debug)]
pub(crate) struct Edition {
    pub(crate) policy: Arc<Policy>,
    pub(crate) generation: u64,
}

/// A flow that a reload has ended.
#[derive(Debug, Clone)]
pub struct Cut {
    /// As it ended.
    pub flow: Report,
    /// The way out that it would have to take now, where that is another than its own.
    pub moved: Option<WayId>,
}

impl Engine {
    /// The policy in force.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.edition.policy
    }

    /// Its number. An engine starts with 1.
    pub fn generation(&self) -> u64 {
        self.edition.generation
    }

    /// How many new flows each rule of the policy in force decided, by [`Policy::position`].
    /// A flow whose route changed before it was connected was decided more than once.
    pub fn hits(&self) -> &[u64] {
        &self.hits
    }

    /// Judges new flows by this policy from now on, and counts its hits from zero. To judge
    /// live flows follow with a new walk of [`Engine::rejudge`] to its end; another reload
    /// before that needs one new walk only.
    pub fn reload(&mut self, policy: Arc<Policy>, generation: u64) {
        self.hits = vec![0; policy.rules() + 1];
        self.edition = Arc::new(Edition { policy, generation });
    }

    /// Judges the next piece of live flows again. Those whose verdict is another end; they are
    /// added to `cut` as they ended.
    pub fn rejudge(
        &mut self,
        walk: &mut Walk,
        cut: &mut Vec<Cut>,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        self.rejudge_some(PIECE, walk, cut, now, sink);
    }

    pub(super) fn rejudge_some(
        &mut self,
        most: usize,
        walk: &mut Walk,
        cut: &mut Vec<Cut>,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        for _ in 0..most {
            let Some(id) = walk.step(&self.table) else { return };
            self.carried = Some(id);
            cut.extend(self.judge_again(id, now, sink));
        }
    }

    /// Tells of each flow in the next piece whose verdict or way out would be another under
    /// `policy`, as [`Engine::rejudge`] would find it, and changes nothing. The way out is given
    /// where it is another.
    /// `resolver`: where our own would answer then; `None`: where it does. `ways`: what would be
    /// known of each way out; `None`: what is.
    pub fn compare(
        &self,
        policy: &Policy,
        resolver: Option<&ResolverService>,
        ways: Option<&Ways>,
        walk: &mut Walk,
        now: Instant,
        mut changed: impl FnMut(Report, Decision, Option<WayId>),
    ) {
        let mut services = Cow::Borrowed(&self.config.services);
        if let Some(resolver) = resolver {
            services.to_mut().resolver = Some(resolver.clone());
        }
        let ways = ways.unwrap_or(&self.ways);
        for _ in 0..PIECE {
            let Some(id) = walk.step(&self.table) else { return };
            let Some(flow) = self.table.get(id) else { continue };
            // A flow without a decision waits for its first one.
            let (Some(stage), Some((verdict, _))) = (stage(flow), flow.opening.decision) else {
                continue;
            };
            let moved = moved(flow, policy, ways);
            let decision = judge_kept(policy, &flow.opening.facts, moved);
            let same = decision.verdict == verdict && moved.is_none() || flow.opening.protected;
            if !same || leads_elsewhere(&services, flow) || has_left(ways, flow) {
                changed(report(&self.ways, flow, stage, None, now), decision, moved);
            }
        }
    }

    /// Judges one flow by the policy in force; its last report if that ends it.
    fn judge_again(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) -> Option<Cut> {
        let flow = self.table.get(id)?;
        if Arc::ptr_eq(&flow.opening.edition, &self.edition) {
            return None;
        }
        let moved = moved(flow, &self.edition.policy, &self.ways);
        let flow = self.table.get_mut(id)?;
        // Whatever follows: nobody is told any more of what the policy before said.
        let edition = std::mem::replace(&mut flow.opening.edition, Arc::clone(&self.edition));
        let elsewhere = leads_elsewhere(&self.config.services, flow);
        let connecting = match &flow.state {
            State::Held(Held {
                waiting: Waiting::Owner | Waiting::Source | Waiting::Rings | Waiting::Bytes(_),
                ..
            }) => {
                if elsewhere {
                    self.evict(id, Reason::PolicyChanged, now, sink);
                }
                return None;
            }
            State::Held(Held { waiting: Waiting::Egress(_), .. }) => true,
            State::Stream(_)
            | State::Datagrams(_)
            | State::Link(_)
            | State::Echo { .. }
            | State::Questions { .. } => false,
            State::Answered(answered) => {
                // A SYN is remembered without an answer for a verdict alone.
                let dropped = answered.answer == Answer::Silence && answered.syn.is_some();
                if answered.lasting || dropped || elsewhere {
                    self.finish(id, Reason::PolicyChanged, now);
                }
                return None;
            }
        };
        let decision = judge_kept(&self.edition.policy, &flow.opening.facts, moved);
        if flow.opening.protected {
            return self.spare(id, &edition, decision, moved, now, sink);
        }
        let before = flow.opening.decision.replace((decision.verdict, decision.rule));
        let same = before.is_some_and(|(verdict, _)| verdict == decision.verdict);
        flow.opening.protected =
            same && self.edition.policy.protects(decision.rule) && !flow.opening.served;
        let left = same && moved.is_none() && has_left(&self.ways, flow);
        if same && moved.is_none() && !elsewhere && !left {
            return None;
        }
        let reason = if left { Reason::PathChanged } else { Reason::PolicyChanged };
        let last = Cut { flow: report(&self.ways, flow, Stage::Closed, Some(reason), now), moved };
        if elsewhere {
            self.cut(id, reason, true, now, sink);
            return Some(last);
        }
        if left {
            self.cut(id, reason, false, now, sink);
            return Some(last);
        }
        let silent = decision.verdict == Verdict::Drop;
        if !connecting {
            self.cut(id, reason, silent, now, sink);
            return Some(last);
        }
        if matches!(&flow.state, State::Held(held) if held.waiting == Waiting::Egress(None)) {
            self.outputs.push_back(Output::Close(id));
        }
        if silent {
            self.drop_silently(id, reason, now, sink);
        } else {
            self.refuse(id, Cause::Blocked, reason, now, sink);
        }
        Some(last)
    }
}

impl Engine {
    /// Judges a protected flow: it goes on whatever the policy in force says of it, and its
    /// reports name the rule that allowed it until another one does. What ends it is that
    /// nothing is there any more to carry it.
    fn spare(
        &mut self,
        id: FlowId,
        before: &Edition,
        decision: Decision,
        moved: Option<WayId>,
        now: Instant,
        sink: &mut impl Sink,
    ) -> Option<Cut> {
        let flow = self.table.get_mut(id)?;
        let opening = &mut *flow.opening;
        if decision.verdict == Verdict::Allow && moved.is_none() {
            opening.decision = Some((decision.verdict, decision.rule));
            opening.spared = None;
        } else if opening.spared.is_none()
            && let Some((_, rule)) = opening.decision
        {
            let rule = before.policy.rule_name(rule).to_owned();
            opening.spared = Some(Box::new(Spared { rule, generation: before.generation }));
        }
        if !has_left(&self.ways, flow) {
            return None;
        }
        let reason = Reason::PathChanged;
        let flow = report(&self.ways, flow, Stage::Closed, Some(reason), now);
        self.cut(id, reason, false, now, sink);
        Some(Cut { flow, moved })
    }
}

/// Whether a flow would be another one if it came now. A protected one would, and stays.
fn leads_elsewhere(services: &Services, flow: &Flow) -> bool {
    let opening = &flow.opening;
    !opening.protected
        && services.far_of(opening.facts.destination()) != Ok((opening.far, opening.served))
}

/// The way out that a flow would take under another policy, where that is another: its own
/// is not in the new route, or a usable one has come before it. What merely became usable
/// or unusable moves no flow.
fn moved(flow: &Flow, policy: &Policy, known: &Ways) -> Option<WayId> {
    let opening = &*flow.opening;
    let via = opening.facts.via?;
    if opening.far != opening.facts.destination() {
        return None;
    }
    let (old, new) =
        (ways_kept(&opening.edition.policy, &opening.facts), ways_kept(policy, &opening.facts));
    let before = |ways: &'_ [WayId]| ways.iter().position(|way| *way == via);
    let preferred = &old[..before(old).unwrap_or(0)];
    let usable = |way: WayId| known.is_usable(way) && !preferred.contains(&way);
    match before(new) {
        None => Some(choose(new, |way| known.is_usable(way)).0),
        Some(at) => new[..at].iter().copied().find(|way| usable(*way)),
    }
}

/// The ways out that a policy gives kept facts, without asking anybody.
fn ways_kept<'p>(policy: &'p Policy, facts: &Facts) -> &'p [WayId] {
    let mut facts = Cow::Borrowed(facts);
    loop {
        match policy.route(&facts) {
            Routing::Ways(ways) => return ways,
            Routing::Needs(Need::Owner) => facts.to_mut().owner = Fact::Unknown,
            Routing::Needs(Need::Source) => facts.to_mut().egress = Fact::Unknown,
            Routing::Needs(Need::Name) => facts.to_mut().name = Fact::Unknown,
        }
    }
}

/// What a policy says about kept facts, without asking anybody. Of a flow that takes another
/// way out nothing is known of its egress.
fn judge_kept(policy: &Policy, facts: &Facts, moved: Option<WayId>) -> Decision {
    let mut facts = Cow::Borrowed(facts);
    if moved.is_some() {
        let facts = facts.to_mut();
        (facts.via, facts.egress) = (moved, Fact::Unknown);
    }
    loop {
        match policy.judge(&facts) {
            Judgement::Decided(decision) => return decision,
            Judgement::Needs(Need::Owner) => facts.to_mut().owner = Fact::Unknown,
            Judgement::Needs(Need::Source) => facts.to_mut().egress = Fact::Unknown,
            Judgement::Needs(Need::Name) => facts.to_mut().name = Fact::Unknown,
        }
    }
}
