//! Whether a server is worth asking first. Pure: time is an argument.
//!
//! A server is dead once it has refused, or was silent to a question and has answered nothing
//! since: one lost packet among answers says nothing. A dead server is asked last, and after a
//! pause that doubles one question goes to it as well as to the others, whose answer is taken.

use std::time::{Duration, Instant};

/// Before a dead server is tried again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// No longer than this goes by before it is noticed that it is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is known of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Health {
    last_answer: Option<Instant>,
    dead: Option<Dead>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dead {
    pause: Duration,
    probe_at: Instant,
}

/// What was last seen of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It has not been asked since the start, or since the way there changed.
    Untried,
    /// It has refused, or is silent.
    Fails,
    /// It has answered.
    Answers,
}

impl State {
    /// A word for it, for reports: it stays the same.
    pub fn word(self) -> &'static str {
        match self {
            Self::Untried => "untried",
            Self::Fails => "fails",
            Self::Answers => "answers",
        }
    }
}

/// How a server failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// It, or the kernel for it, said no.
    Told,
    /// It said nothing to a question asked then.
    Silent(Instant),
}

impl Health {
    pub(crate) fn is_alive(&self) -> bool {
        self.dead.is_none()
    }

    pub(crate) fn state(&self) -> State {
        match (self.dead, self.last_answer) {
            (Some(_), _) => State::Fails,
            (None, Some(_)) => State::Answers,
            (None, None) => State::Untried,
        }
    }

    /// Whether it has answered anything since `then`.
    pub(crate) fn answered_since(&self, then: Instant) -> bool {
        self.last_answer.is_some_and(|answer| answer >= then)
    }

    pub(crate) fn answered(&mut self, now: Instant) {
        *self = Self { last_answer: Some(now), dead: None };
    }

    pub(crate) fn failed(&mut self, how: Failed, now: Instant) {
        if let Failed::Silent(asked) = how
            && self.answered_since(asked)
        {
            return;
        }
        if self.dead.is_none() {
            self.dead = Some(Dead { pause: FIRST_PAUSE, probe_at: now + FIRST_PAUSE });
        }
    }

    /// Whether this question should go to a dead server too. Asked again, it says no until the
    /// next pause is over.
    pub(crate) fn wants_probe(&mut self, now: Instant) -> bool {
        match &mut self.dead {
            Some(dead) if now >= dead.probe_at => {
                dead.pause = (dead.pause * 2).min(LONGEST_PAUSE);
                dead.probe_at = now + dead.pause;
                true
            }
            Some(_) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_among_answers_is_a_lost_packet() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut health = Health::default();
        assert_eq!(health.state(), State::Untried);
        health.answered(at(10));
        health.failed(Failed::Silent(at(5)), at(405));
        assert!(health.is_alive(), "it has answered since");
        assert_eq!(health.state(), State::Answers);
        health.failed(Failed::Silent(at(20)), at(420));
        assert!(!health.is_alive());
        assert_eq!(health.state(), State::Fails);
        health.answered(at(500));
        assert!(health.is_alive(), "a late answer is one");
        health.failed(Failed::Told, at(501));
        assert!(!health.is_alive(), "told is told");
    }

    #[test]
    fn the_pause_doubles_and_has_an_end() {
        let start = Instant::now();
        let mut health = Health::default();
        assert!(!health.wants_probe(start), "alive");
        health.failed(Failed::Told, start);
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let before = now;
            while !health.wants_probe(now) {
                now += Duration::from_millis(500);
                // Others fail meanwhile: that is no reason to wait longer.
                health.failed(Failed::Told, now);
            }
            assert!(!health.wants_probe(now), "one probe a pause");
            pauses.push((now - before).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        health.answered(now);
        health.failed(Failed::Told, now);
        assert!(health.wants_probe(now + FIRST_PAUSE), "it starts again");
    }
}
