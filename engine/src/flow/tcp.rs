//! A TCP connection that both sides have accepted.
//!
//! Two half-duplex pipes meet in the endpoint's rings. Each half ends in its own time:
//! the app's FIN is passed on once the far side's socket has taken every byte before it,
//! the far side's end becomes our FIN behind the last byte in the ring. A reset of one
//! side is a reset of the other, never a FIN; bytes that came before the far side's reset
//! are given to the app first, as its own kernel would.

use std::time::Duration;

use crate::flow::{RingId, SERVED_IDLE, TCP_HALF_IDLE, TCP_IDLE};
use crate::stack::{Endpoint, LINGER, Phase};
use crate::{Failure, Instant, Reason};

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) endpoint: Endpoint,
    pub(crate) rings: RingId,
    pub(crate) far: Far,
    /// The far side is the service.
    served: bool,
    /// The app's FIN was seen.
    pub(crate) app_ended: bool,
    /// The app's FIN was passed on.
    pub(crate) app_done: bool,
    /// Our FIN was queued.
    closed: bool,
    /// Which side ended first.
    ended_by: Option<Reason>,
    /// Since when both halves are done towards the app.
    done_since: Option<Instant>,
    /// When the endpoint's own timers want to run.
    pub(crate) stack_at: Option<Instant>,
    /// Bytes that went through the rings since they were last trimmed.
    pub(crate) moved: usize,
}

/// Where the far side's half stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Far {
    Open,
    /// It ended its half in order.
    Ended,
    /// It reset the connection, or the path to it failed.
    Failed(Failure, Instant),
}

/// What follows from where both halves stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Stay,
    /// Pass the app's FIN on.
    ShutdownFar,
    /// Both halves are done.
    Finish(Reason),
    /// The app has reset: so must we.
    ResetFar(Reason),
    /// The far side has reset and the app has its bytes: reset the app.
    ResetApp(Reason),
}

impl Stream {
    pub(crate) fn new(endpoint: Endpoint, rings: RingId, served: bool) -> Self {
        Self {
            endpoint,
            rings,
            far: Far::Open,
            served,
            app_ended: false,
            app_done: false,
            closed: false,
            ended_by: None,
            done_since: None,
            stack_at: None,
            moved: 0,
        }
    }

    /// Queues our FIN behind the far side's last byte. Called before the endpoint runs, so
    /// that both leave in one segment: an app that sees the byte alone closes first, and
    /// its port then rests in TIME-WAIT.
    pub(crate) fn end_with_far(&mut self) {
        if self.far == Far::Ended && !self.closed && self.endpoint.phase() != Phase::Opening {
            self.closed = true;
            self.endpoint.close();
        }
    }

    /// Looks at both halves and says what has to happen. Call until [`Step::Stay`] or an
    /// end; each step is given once.
    pub(crate) fn step(&mut self, now: Instant) -> Step {
        let phase = self.endpoint.phase();
        if matches!(phase, Phase::AppDone | Phase::Done) && !self.app_ended {
            self.app_ended = true;
            self.ended_by.get_or_insert(Reason::AppClosed);
        }
        if self.far == Far::Ended {
            self.ended_by.get_or_insert(Reason::FarClosed);
        }
        if phase == Phase::Done {
            self.done_since.get_or_insert(now);
        }
        if phase == Phase::Closed && !(self.app_ended && self.far == Far::Ended) {
            return match self.far {
                Far::Failed(..) => Step::ResetApp(Reason::FarReset),
                Far::Open | Far::Ended => Step::ResetFar(Reason::AppReset),
            };
        }
        if let Far::Failed(failure, since) = self.far {
            let waited = now.since(since) >= LINGER;
            if self.endpoint.unacknowledged() == 0 || waited {
                return Step::ResetApp(match failure {
                    Failure::TimedOut => Reason::TimedOut,
                    Failure::Refused
                    | Failure::Reset
                    | Failure::NetUnreachable
                    | Failure::HostUnreachable
                    | Failure::Prohibited
                    | Failure::TooBig { .. }
                    | Failure::Exhausted => Reason::FarReset,
                });
            }
            return Step::Stay;
        }
        if self.app_ended && !self.app_done && self.endpoint.unread() == 0 {
            self.app_done = true;
            // With both halves over, closing the socket sends the FIN as well.
            if !(self.far == Far::Ended && matches!(phase, Phase::Done | Phase::Closed)) {
                return Step::ShutdownFar;
            }
        }
        if self.app_done && matches!(phase, Phase::Done | Phase::Closed) {
            return Step::Finish(self.ended_by.unwrap_or(Reason::AppClosed));
        }
        Step::Stay
    }

    /// Whether the endpoint may run. smoltcp empties the ring when its TIME-WAIT of 10 s
    /// ends, and the far side may not have taken everything yet; until half of it has
    /// passed the last ACK is out.
    pub(crate) fn may_flush(&self, now: Instant) -> bool {
        self.done_since.is_none_or(|since| now.since(since) < Duration::from_secs(5))
    }

    /// Whether the rings hold memory for nothing: they are empty and used more than the page
    /// that each keeps anyway.
    pub(crate) fn is_worth_a_trim(&self) -> bool {
        const PAGE: usize = 4096;
        self.moved > PAGE && self.endpoint.unread() == 0 && self.endpoint.unacknowledged() == 0
    }

    /// Ends the service's half of an idle connection; whether that was still to do. A
    /// connection to anybody else is not ours to end in order.
    pub(crate) fn end_idle(&mut self) -> bool {
        let ends = self.served && self.far == Far::Open;
        if ends {
            self.far = Far::Ended;
            self.ended_by.get_or_insert(Reason::Idle);
        }
        ends
    }

    /// How long the connection may be silent.
    pub(crate) fn idle(&self) -> Duration {
        match self.far {
            Far::Open if self.served => SERVED_IDLE,
            Far::Ended if self.served => LINGER,
            Far::Open => TCP_IDLE,
            Far::Ended => TCP_HALF_IDLE,
            Far::Failed(..) => LINGER,
        }
    }
}
