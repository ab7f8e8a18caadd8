//! How the resolvers of a rule are asked: `A`, `A else B`, `A or B`, `A and B` as one
//! state machine. Pure: time is an argument, and what was said is a [`Kind`].
//!
//! The caller repeats [`Asking::next`] and does what it says: ask, wait until a resolver
//! answers (then [`Asking::heard`]) or the time comes, or take the outcome.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::split::Form;

/// From the question to the answer or SERVFAIL: POLICY allows 5 s, and what is left is the
/// way back to the app.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(4_800);

/// `A and B` waits this long for the slower after the first positive answer.
pub const SLOWER_WITHIN: Duration = Duration::from_secs(1);

/// What a resolver said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No answer: silence, SERVFAIL, REFUSED and the like.
    Failed,
    /// NOERROR without data of the type.
    NoData,
    /// NXDOMAIN.
    NoName,
    /// Data of the type.
    Positive,
}

/// Positions in the rule's list of resolvers.
pub type Positions = SmallVec<[usize; 8]>;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Ask these now; then call again.
    Ask(Positions),
    /// The end.
    Done(Outcome),
    /// Wait for a resolver, or until then.
    Wait(Instant),
}

/// What becomes of the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// This resolver's answer, as it is.
    Answer(usize),
    /// `and`: these gave data, in written order, at least one.
    Combine(Positions),
    /// Nobody answered.
    Failed,
    /// This resolver's negative answer. `held`: others failed, so it lives at most 5 s.
    Negative {
        /// Whose.
        of: usize,
        /// Somebody else failed.
        held: bool,
    },
}

impl Outcome {
    /// Whose answers it is made of.
    pub(crate) fn positions(&self) -> Positions {
        match self {
            Self::Answer(of) | Self::Negative { of, .. } => Positions::from_slice(&[*of]),
            Self::Combine(of) => of.clone(),
            Self::Failed => Positions::new(),
        }
    }
}

/// One question on its way.
#[derive(Debug)]
pub struct Asking {
    form: Form,
    /// One for each resolver; None: nothing heard.
    heard: SmallVec<[Option<Kind>; 8]>,
    /// How many have been asked, from the first.
    asked: usize,
    /// The whole question's end.
    until: Instant,
    /// `else`: when the next is asked although this one has not failed.
    turn: Instant,
    /// `and`: when a positive answer no longer waits for the slower.
    settle: Option<Instant>,
}

impl Asking {
    /// `count` resolvers in written order, asked from `now` on.
    pub fn new(form: Form, count: usize, now: Instant) -> Self {
        Self {
            form,
            heard: SmallVec::from_elem(None, count),
            asked: 0,
            until: now + ANSWER_WITHIN,
            turn: now,
            settle: None,
        }
    }

    /// Resolver `position` said this. What comes twice or from one that was not asked is
    /// ignored.
    pub fn heard(&mut self, position: usize, kind: Kind, now: Instant) {
        let Some(heard) = self.heard.get_mut(position) else { return };
        if position >= self.asked || heard.is_some() {
            return;
        }
        *heard = Some(kind);
        if kind == Kind::Positive && self.settle.is_none() {
            self.settle = Some(now + SLOWER_WITHIN);
        }
    }

    /// What is to be done at `now`. The answer changes after [`Asking::heard`] and when
    /// the time of a [`Next::Wait`] has come.
    #[must_use]
    pub fn next(&mut self, now: Instant) -> Next {
        match self.form {
            Form::One | Form::Else => self.next_in_turn(now),
            Form::Or => self.next_of_all(now, Self::first_positive),
            Form::And => self.next_of_all(now, Self::combined),
            Form::None => Next::Done(Outcome::Failed),
        }
    }

    /// One after the other. Each gets an even share of the time that is left, so that the
    /// last is asked in time whatever the ones before do; the late answer of an earlier one
    /// counts when it comes first.
    fn next_in_turn(&mut self, now: Instant) -> Next {
        let answer = self.heard.iter().position(|kind| kind.is_some_and(|k| k != Kind::Failed));
        if let Some(of) = answer {
            return Next::Done(match self.heard[of] {
                Some(Kind::NoData | Kind::NoName) => Outcome::Negative { of, held: false },
                Some(Kind::Positive | Kind::Failed) | None => Outcome::Answer(of),
            });
        }
        let all_failed = self.heard.iter().all(|kind| *kind == Some(Kind::Failed));
        if all_failed || now >= self.until {
            return Next::Done(Outcome::Failed);
        }
        let asked_all_failed = self.heard[..self.asked].iter().all(Option::is_some);
        let left = self.heard.len() - self.asked;
        if left > 0 && (asked_all_failed || now >= self.turn) {
            let shares = u32::try_from(left).unwrap_or(u32::MAX);
            self.turn = now + self.until.duration_since(now) / shares;
            self.asked += 1;
            return Next::Ask(Positions::from_slice(&[self.asked - 1]));
        }
        Next::Wait(if left > 0 { self.turn } else { self.until })
    }

    /// All at once; `early` says whether the outcome is known before all have spoken.
    fn next_of_all(
        &mut self,
        now: Instant,
        positive: fn(&Self, now: Instant) -> Option<Outcome>,
    ) -> Next {
        if self.asked < self.heard.len() {
            self.asked = self.heard.len();
            return Next::Ask((0..self.asked).collect());
        }
        if let Some(outcome) = positive(self, now) {
            return Next::Done(outcome);
        }
        if !self.is_over(now) {
            let settle = if self.form == Form::And { self.settle } else { None };
            return Next::Wait(settle.map_or(self.until, |settle| settle.min(self.until)));
        }
        // The name exists for the app when it exists on one side: no data before no name.
        let negative = [Kind::NoData, Kind::NoName]
            .into_iter()
            .find_map(|kind| self.heard.iter().position(|heard| *heard == Some(kind)));
        Next::Done(negative.map_or(Outcome::Failed, |of| Outcome::Negative {
            of,
            held: self.heard.iter().any(|kind| matches!(kind, None | Some(Kind::Failed))),
        }))
    }

    fn is_over(&self, now: Instant) -> bool {
        now >= self.until || self.heard.iter().all(Option::is_some)
    }

    fn first_positive(&self, _: Instant) -> Option<Outcome> {
        let first = self.heard.iter().position(|kind| *kind == Some(Kind::Positive));
        first.map(Outcome::Answer)
    }

    fn combined(&self, now: Instant) -> Option<Outcome> {
        let settle = self.settle?;
        if now < settle && !self.is_over(now) {
            return None;
        }
        let positive = self.heard.iter().enumerate();
        let positive = positive.filter(|(_, kind)| **kind == Some(Kind::Positive));
        Some(Outcome::Combine(positive.map(|(position, _)| position).collect()))
    }
}

#[cfg(test)]
mod tests;
