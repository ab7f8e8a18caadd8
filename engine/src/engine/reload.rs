//! Another policy while flows live.
//!
//! From [`Engine::reload`] on every new flow is judged by the new policy. What lives is judged
//! again by a walk ([`Engine::rejudge`]), on the facts that it kept: nobody is asked, and a fact
//! that nobody asked for before counts as unknown.
//!
//! | the flow | same verdict | another |
//! | --- | --- | --- |
//! | held for owner or source | the new policy judges it anyway | |
//! | held for the far side's answer | goes on | its socket goes; refused in the way of a first verdict |
//! | open TCP | goes on | RST to both sides |
//! | open UDP, echo | goes on | its socket goes; ICMP, or nothing where the verdict is `drop` |
//! | asks the service | goes on | the same; answers that are owed are dropped |
//! | answered by a verdict | forgotten: the next packet, or the app's next SYN, is judged | |
//! | answered for a failure | stays: no verdict is behind it | |
//!
//! Each flow keeps the policy that judged it last, so its rule has the right name at every
//! moment of the walk. After it no flow refers to an earlier policy. (Freeing a large one takes
//! milliseconds, so whoever has loaded it should hold it longer than that.)

use std::borrow::Cow;
use std::sync::Arc;

use crate::engine::walk::{PIECE, Walk, stage};
use crate::engine::{Engine, Output, report};
use crate::flow::{Held, State, Waiting};
use crate::packet::icmp::{Answer, Cause};
use crate::policy::{Decision, Judgement, Need, Policy, Verdict};
use crate::report::Stage;
use crate::{Fact, Facts, FlowId, Instant, Reason, Report, Sink};

/// A policy and its number.
#[derive(Debug)]
pub(crate) struct Edition {
    pub(crate) policy: Arc<Policy>,
    pub(crate) generation: u64,
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
        cut: &mut Vec<Report>,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        self.rejudge_some(PIECE, walk, cut, now, sink);
    }

    pub(super) fn rejudge_some(
        &mut self,
        most: usize,
        walk: &mut Walk,
        cut: &mut Vec<Report>,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        for _ in 0..most {
            let Some(id) = walk.step(&self.table) else { return };
            self.carried = Some(id);
            cut.extend(self.judge_again(id, now, sink));
        }
    }

    /// Tells of each flow in the next piece whose verdict would be another under `policy`, as
    /// [`Engine::rejudge`] would find it, and changes nothing.
    pub fn compare(
        &self,
        policy: &Policy,
        walk: &mut Walk,
        now: Instant,
        mut changed: impl FnMut(Report, Decision),
    ) {
        for _ in 0..PIECE {
            let Some(id) = walk.step(&self.table) else { return };
            let Some(flow) = self.table.get(id) else { continue };
            // A flow without a decision waits for its first one.
            let (Some(stage), Some((verdict, _))) = (stage(flow), flow.opening.decision) else {
                continue;
            };
            let decision = judge_kept(policy, &flow.opening.facts);
            if decision.verdict != verdict {
                changed(report(flow, stage, None, now), decision);
            }
        }
    }

    /// Judges one flow by the policy in force; its last report if that ends it.
    fn judge_again(&mut self, id: FlowId, now: Instant, sink: &mut impl Sink) -> Option<Report> {
        let flow = self.table.get_mut(id)?;
        if Arc::ptr_eq(&flow.opening.edition, &self.edition) {
            return None;
        }
        // Whatever follows: nobody is told any more of what the policy before said.
        flow.opening.edition = Arc::clone(&self.edition);
        let connecting = match &flow.state {
            State::Held(Held { waiting: Waiting::Owner | Waiting::Source, .. }) => return None,
            State::Held(Held { waiting: Waiting::Egress(_), .. }) => true,
            State::Stream(_)
            | State::Datagrams(_)
            | State::Echo { .. }
            | State::Questions { .. } => false,
            State::Answered(answered) => {
                // A SYN is remembered without an answer for a verdict alone.
                let dropped = answered.answer == Answer::Silence && answered.syn.is_some();
                if answered.lasting || dropped {
                    self.finish(id, Reason::PolicyChanged, now);
                }
                return None;
            }
        };
        let decision = judge_kept(&self.edition.policy, &flow.opening.facts);
        let before = flow.opening.decision.replace((decision.verdict, decision.rule));
        if before.is_some_and(|(verdict, _)| verdict == decision.verdict) {
            return None;
        }
        let reason = Reason::PolicyChanged;
        let last = report(flow, Stage::Closed, Some(reason), now);
        let silent = decision.verdict == Verdict::Drop;
        if !connecting {
            self.cut(id, reason, silent, now, sink);
            return Some(last);
        }
        if matches!(&flow.state, State::Held(held) if held.waiting == Waiting::Egress(None)) {
            self.outputs.push_back(Output::Close(id));
        }
        if silent {
            self.drop_silently(id, reason, now);
        } else {
            self.refuse(id, Cause::Blocked, reason, now, sink);
        }
        Some(last)
    }
}

/// What a policy says about kept facts, without asking anybody.
fn judge_kept(policy: &Policy, facts: &Facts) -> Decision {
    let mut facts = Cow::Borrowed(facts);
    loop {
        match policy.judge(&facts) {
            Judgement::Decided(decision) => return decision,
            Judgement::Needs(Need::Owner) => facts.to_mut().owner = Fact::Unknown,
            Judgement::Needs(Need::Source) => facts.to_mut().egress = Fact::Unknown,
        }
    }
}
