//! When a peer needs a tick, so that an idle one needs none.
//!
//! # Theory of operation
//!
//! `Tunn` has WireGuard's timers, but acts on them only when [`Tunn::update_timers`] is called,
//! and tells nobody when that should be. Its authors call it four times a second for ever. It
//! also takes the time of an event from its last tick. So a peer is ticked in two cases:
//!
//! * something happens after a second or more without a tick ([`Clock::stale`]): right before,
//!   so that the event gets a true time;
//! * a timer of WireGuard's can have run out ([`Clock::due`]). The events that start timers
//!   are noted here too; each timer asks for one tick, and only an unanswered handshake asks
//!   again and again, until it is given up.
//!
//! # Signs of death
//!
//! WireGuard itself takes 15 s to doubt a peer, and 90 to give it up. To know within five
//! whether another way should be taken, a peer is asked for a handshake before that:
//!
//! * data was sent for a while, and for [`PROBE_AFTER`] nothing authentic has come. A healthy peer
//!   answers at once, whatever its applications do. One that then still sends no data is spoken
//!   to one way only: from time to time it is asked half as often, and in the end never;
//! * the network says that nobody is there (`refused`). Anybody can forge that, so it is a reason to
//!   ask, and to wait less long, but never an answer;
//! * a handshake that isn't answered is tried once more soon ([`AGAIN_AFTER`]): one lost message is
//!   chance.
//!
//! How long the asking has met with silence is the peer's health; anything authentic ends it. An idle
//! peer is asked nothing, and a single message that gets no answer wakes nobody.
//!
//! A session of which nobody makes use therefore costs two wake-ups in its life: one when its
//! keys are too old, and one when the last secrets of it are wiped.
//!
//! [`Tunn::update_timers`]: boringtun::noise::Tunn::update_timers

use std::time::Duration;

use engine::Instant;

/// WireGuard's own timers (section 6 of its paper).
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REJECT_AFTER: Duration = Duration::from_secs(180);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_ATTEMPT: Duration = Duration::from_secs(90);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Events closer together than this share a time.
const STALE: Duration = Duration::from_secs(1);
/// How long after a tick that came too early, by the other's clock, the next one comes.
const AGAIN: Duration = Duration::from_millis(250);
/// Data without an answer for that long, and it is asked whether the peer is there.
const PROBE_AFTER: Duration = Duration::from_secs(2);
/// ... if that was more than one batch of packets.
const FLOWING: Duration = Duration::from_millis(100);
/// Doubled that often the time is more than WireGuard's own.
const PROBES: u32 = 3;
/// A handshake without an answer for that long is tried a second time.
const AGAIN_AFTER: Duration = Duration::from_millis(1250);
/// `Tunn` counts from its last tick: its session may be younger than ours by a tick's age.
const LATE: Duration = Duration::from_secs(1);

/// The times of one peer.
#[derive(Debug, Default)]
pub(super) struct Clock {
    ticked: Option<Instant>,
    /// Our handshake that is not answered.
    asked: Option<Asked>,
    /// The first initiation since something authentic came.
    silence: Option<Instant>,
    /// The network said, since something authentic came, that nobody is there.
    refused: bool,
    /// Probes since data came.
    probes: u32,
    jitter: Duration,
    session: Option<Session>,
    /// The first data since something authentic came, and the last.
    unanswered: Option<(Instant, Instant)>,
    /// The first data that came since anything was sent.
    unreplied: Option<Instant>,
    /// When anything authentic was last sent or came.
    traversed: Option<Instant>,
    /// Silence after which an empty packet is sent.
    keepalive: Option<Duration>,
    gave_up: bool,
}

#[derive(Debug)]
struct Asked {
    first: Instant,
    last: Instant,
    again: bool,
}

#[derive(Debug)]
struct Session {
    since: Instant,
    initiator: bool,
    sent: bool,
    received: bool,
}

impl Clock {
    /// Whether a tick is needed before something happens.
    pub(super) fn stale(&self, now: Instant) -> bool {
        self.ticked.is_none_or(|ticked| now.since(ticked) >= STALE)
    }

    /// When the next tick is needed; `None`: not before something happens.
    pub(super) fn due(&self) -> Option<Instant> {
        let ticked = self.ticked.unwrap_or_default();
        let mut due: Option<Instant> = None;
        let mut add = |at: Instant| due = Some(due.map_or(at, |due| due.min(at)));
        if let Some(asked) = &self.asked {
            add((asked.last + REKEY_TIMEOUT + self.jitter).max(ticked + AGAIN));
        }
        if let Some(at) = self.ask_at() {
            add(at.max(ticked + AGAIN));
        }
        if let Some(session) = &self.session {
            let ages = [
                (session.initiator && session.sent).then_some(REKEY_AFTER),
                (session.initiator && session.received)
                    .then_some(REJECT_AFTER - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT),
                Some(REJECT_AFTER + LATE),
                Some(REJECT_AFTER * 3 + LATE),
            ];
            // A tick at or after a time has done what there was to do.
            ages.into_iter()
                .flatten()
                .map(|age| session.since + age)
                .filter(|&at| at > ticked)
                .for_each(&mut add);
        }
        if let Some((since, _)) = self.unanswered {
            add(since + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT);
        }
        if let Some(since) = self.unreplied {
            add(since + KEEPALIVE_TIMEOUT);
        }
        if let Some(keepalive) = self.keepalive {
            add(self.traversed.map_or(Instant::ZERO, |at| at + keepalive));
        }
        due
    }

    /// `Tunn` was ticked.
    pub(super) fn ticked(&mut self, now: Instant) {
        self.ticked = Some(now);
        let over = |since: &Instant, limit| now.since(*since) >= limit;
        self.unanswered.take_if(|(since, _)| over(since, KEEPALIVE_TIMEOUT + REKEY_TIMEOUT));
        self.unreplied.take_if(|since| over(since, KEEPALIVE_TIMEOUT));
        // The session is kept for its last deadline: it is over long before.
        self.session.take_if(|session| over(&session.since, REJECT_AFTER * 3 + LATE));
    }

    /// Whether the peer is to get an empty packet for silence.
    pub(super) fn wants_keepalive(&self, now: Instant) -> bool {
        self.keepalive.is_some_and(|keepalive| {
            self.traversed.is_none_or(|traversed| now.since(traversed) >= keepalive)
        })
    }

    pub(super) fn set_keepalive(&mut self, seconds: Option<u16>) {
        let keepalive = seconds.filter(|&s| s > 0).map(|s| Duration::from_secs(s.into()));
        if self.keepalive.is_none() && keepalive.is_some() {
            self.traversed = None; // the first one at once, as `wg` does
        }
        self.keepalive = keepalive;
    }

    /// When to ask for a handshake before `Tunn` would.
    fn ask_at(&self) -> Option<Instant> {
        if let Some(asked) = &self.asked {
            return (!asked.again).then_some(asked.first + AGAIN_AFTER);
        }
        let (first, last) = self.unanswered?;
        let flowing = last.since(first) >= FLOWING && self.probes < PROBES;
        flowing.then(|| first + PROBE_AFTER * (1 << self.probes))
    }

    /// Whether it is time to.
    pub(super) fn wants_handshake(&self, now: Instant) -> bool {
        self.ask_at().is_some_and(|at| at <= now)
    }

    /// The network says that nobody is there; whether to ask the peer itself.
    pub(super) fn refused(&mut self) -> bool {
        self.refused = true;
        self.asked.is_none() && !self.gave_up
    }

    /// How long ago the last initiation of a handshake under way was made.
    pub(super) fn asked_ago(&self, now: Instant) -> Option<Duration> {
        self.asked.as_ref().map(|asked| now.since(asked.last))
    }

    /// The peer is said to be somewhere else: what was found out about it no longer counts.
    /// Whether it was found to be silent.
    pub(super) fn elsewhere(&mut self) -> bool {
        self.refused = false;
        self.probes = 0;
        let gave_up = std::mem::take(&mut self.gave_up);
        self.silence.take().is_some() || gave_up
    }

    /// A handshake initiation was made. `jitter` is any byte: retries of several peers part.
    pub(super) fn initiated(&mut self, now: Instant, jitter: u8) {
        match &mut self.asked {
            Some(asked) => (asked.last, asked.again) = (now, true),
            None => {
                self.probes += u32::from(self.unanswered.is_some() && self.probes < PROBES);
                self.asked = Some(Asked { first: now, last: now, again: false });
            }
        }
        self.silence.get_or_insert(now);
        self.jitter = Duration::from_millis(u64::from(jitter) * 333 / 255);
        self.traversed = Some(now);
        self.unreplied = None;
    }

    /// There is a new session.
    pub(super) fn established(&mut self, now: Instant, initiator: bool) {
        self.session = Some(Session { since: now, initiator, sent: false, received: false });
        self.asked = None;
        self.gave_up = false;
    }

    /// `Tunn` has given up, or has forgotten everything. `true`: also a handshake that was
    /// still young. The end of an old session takes it along.
    pub(super) fn expired(&mut self, now: Instant) -> bool {
        let asking = self.asked.as_ref().map(|asked| now.since(asked.first));
        let tried = asking.is_some_and(|since| since + LATE >= REKEY_ATTEMPT);
        self.gave_up |= tried;
        self.asked = None;
        self.session = None;
        self.unanswered = None;
        self.unreplied = None;
        asking.is_some() && !tried
    }

    pub(super) fn sent(&mut self, now: Instant, data: bool) {
        self.traversed = Some(now);
        self.unreplied = None;
        if data {
            self.unanswered.get_or_insert((now, now)).1 = now;
            if let Some(session) = &mut self.session {
                session.sent = true;
            }
        }
    }

    pub(super) fn received(&mut self, now: Instant, data: bool) {
        self.traversed = Some(now);
        self.unanswered = None;
        self.silence = None;
        self.refused = false;
        if data {
            self.probes = 0;
            self.unreplied.get_or_insert(now);
            if let Some(session) = &mut self.session {
                session.received = true;
            }
        }
    }

    /// Whether there is or should be a session, or a handshake under way.
    pub(super) fn active(&self) -> bool {
        self.asked.is_some() || self.session.is_some() || self.keepalive.is_some() || self.gave_up
    }

    /// How long ago the last session began.
    pub(super) fn session_age(&self, now: Instant) -> Option<Duration> {
        self.session.as_ref().map(|session| now.since(session.since))
    }

    /// For how long handshakes have met with silence.
    pub(super) fn silence(&self, now: Instant) -> Option<Duration> {
        self.silence.map(|since| now.since(since))
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }

    pub(super) fn gave_up(&self) -> bool {
        self.gave_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    /// Runs the clock until nothing is due any more and says when it ticked.
    fn ticks(clock: &mut Clock) -> Vec<u64> {
        let mut ticks = Vec::new();
        while let Some(due) = clock.due() {
            ticks.push(due.micros() / 1_000_000);
            clock.ticked(due);
            assert!(ticks.len() < 100, "{ticks:?}");
        }
        ticks
    }

    #[test]
    fn an_unused_session_costs_two_ticks() {
        for (name, initiator, sent, received, want) in [
            ("nothing", true, false, false, vec![281, 641]),
            ("sent", true, true, false, vec![116, 220, 281, 641]),
            ("received", true, false, true, vec![111, 265, 281, 641]),
            ("responder", false, true, true, vec![111, 281, 641]),
        ] {
            let mut clock = Clock::default();
            clock.ticked(at(100));
            clock.established(at(100), initiator);
            if sent {
                clock.sent(at(101), true);
            }
            if received {
                clock.received(at(101), true);
            }
            assert_eq!(ticks(&mut clock), want, "{name}");
            assert!(!clock.active(), "{name}");
        }
    }

    #[test]
    fn a_handshake_is_asked_for_until_it_is_given_up() {
        let mut clock = Clock::default();
        assert_eq!(clock.due(), None);
        assert!(clock.stale(at(0)));
        clock.ticked(at(100));
        clock.initiated(at(100), 0);
        let soon = Duration::from_millis(1250);
        assert_eq!(clock.due(), Some(at(100) + soon), "a second time soon");
        clock.ticked(at(100) + soon);
        assert!(clock.wants_handshake(at(100) + soon));
        clock.initiated(at(100) + soon, 0);
        assert!(!clock.wants_handshake(at(104)));
        assert_eq!(clock.due(), Some(at(105) + soon));
        clock.initiated(at(100), 0); // as if it had not been
        // A tick that found it too early asks for another one soon.
        clock.ticked(at(105));
        assert_eq!(clock.due(), Some(at(105) + AGAIN));
        clock.initiated(at(105), 255);
        assert_eq!(clock.due(), Some(at(110) + Duration::from_millis(333)));
        assert_eq!(clock.silence(at(109)), Some(Duration::from_secs(9)));
        assert!(clock.expired(at(120)), "too early to give up");
        assert_eq!((clock.due(), clock.gave_up()), (None, false));
        clock.initiated(at(121), 0);
        assert!(!clock.expired(at(211)));
        assert_eq!((clock.due(), clock.gave_up()), (None, true));
        clock.established(at(200), true);
        assert!(!clock.gave_up());
    }

    /// A peer with a session to which data goes at these tenths of a second; when it is asked.
    fn probed(sent: &[u64], answers: bool) -> Vec<u64> {
        let tenth = |tenth: u64| Instant::from_micros(100_000_000 + tenth * 100_000);
        let mut clock = Clock::default();
        clock.ticked(tenth(0));
        clock.established(tenth(0), false);
        let mut asked = Vec::new();
        for now in 0..400 {
            if sent.contains(&now) {
                clock.sent(tenth(now), true);
            }
            if clock.due().is_some_and(|due| due <= tenth(now)) {
                clock.ticked(tenth(now));
                if clock.wants_handshake(tenth(now)) {
                    clock.initiated(tenth(now), 0);
                    asked.push(now);
                    if answers {
                        clock.received(tenth(now), false);
                        clock.established(tenth(now), true);
                    }
                }
            }
        }
        asked
    }

    #[test]
    fn silence_is_asked_about_while_data_flows() {
        let flow: Vec<u64> = (1..400).collect();
        for (name, sent, answers, want) in [
            ("nothing is sent", &[][..], false, &[][..]),
            ("one message", &[1], false, &[]),
            ("one that is sent again", &[1, 11, 31], false, &[21, 34]),
            ("a flow to nobody", &flow, false, &[21, 34]),
            ("a flow to one who is there", &flow, true, &[21, 62, 143]),
        ] {
            assert_eq!(probed(sent, answers), want, "{name}");
        }
    }

    #[test]
    fn keepalives() {
        let mut clock = Clock::default();
        clock.set_keepalive(Some(25));
        assert!(clock.wants_keepalive(at(100)), "the first one at once");
        clock.sent(at(100), false);
        assert!(!clock.wants_keepalive(at(124)));
        assert_eq!(clock.due(), Some(at(125)));
        clock.received(at(110), false);
        assert_eq!(clock.due(), Some(at(135)), "any traffic counts");
        clock.set_keepalive(Some(0));
        assert_eq!(clock.due(), None);
    }
}
