//! A flow that passes into a tunnel packet by packet, and TCP seen from between.
//!
//! Nothing is terminated here: the two sides talk to each other, and the tracker follows them
//! just far enough to know when the connection is over, whether a reset or an error is the
//! work of somebody who sees it, and with which numbers to reset both sides.
//!
//! | phase | until | what ends it |
//! | --- | --- | --- |
//! | `Opening` | the far side's SYN-ACK | its RST: refused; [`UNANSWERED`] |
//! | `Open` | a FIN of the far side | a RST in its window; [`TCP_IDLE`] |
//! | `Ended` | both FINs are acknowledged | the same; [`TCP_HALF_IDLE`] |
//! | `Lingering` | | [`LINGER`] of silence: what is repeated meanwhile still passes |

use std::net::IpAddr;
use std::time::Duration;

use crate::Reason;
use crate::flow::{TCP_HALF_IDLE, TCP_IDLE};
use crate::packet::Tcp;
use crate::ways::LinkId;

/// The app's own retries end after about 127 s (Linux `tcp_syn_retries` = 6).
pub(crate) const UNANSWERED: Duration = Duration::from_secs(130);
/// How long a connection that is over on both sides is remembered.
pub(crate) const LINGER: Duration = Duration::from_secs(10);

/// A flow that passes at layer 3.
#[derive(Debug)]
pub(crate) struct Crossing {
    pub(crate) link: LinkId,
    /// What the far side sees: the link's address, and this port or identifier.
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) life: Life,
}

impl Crossing {
    /// Whether it is a connection, and not datagrams.
    pub(crate) fn is_connection(&self) -> bool {
        matches!(&self.life, Life::Tcp(_))
    }

    /// Whether it is a connection that is over on both sides.
    pub(crate) fn is_over(&self) -> bool {
        matches!(&self.life, Life::Tcp(tracker) if tracker.is_over())
    }

    /// Whether it is a connection that the far side has not answered.
    pub(crate) fn is_opening(&self) -> bool {
        matches!(&self.life, Life::Tcp(tracker) if tracker.is_opening())
    }
}

/// What is followed of a flow.
#[derive(Debug)]
pub(crate) enum Life {
    Tcp(Tracker),
    Udp,
    Echo {
        /// Of the last request, for errors that name none.
        sequence: u16,
    },
}

/// A TCP connection between two others.
#[derive(Debug)]
pub(crate) struct Tracker {
    app: Side,
    far: Side,
    phase: Phase,
    /// Which side ended first.
    ended_by: Option<From>,
}

/// Which side a segment comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    App,
    Far,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    Open,
    Ended,
    Lingering,
}

/// What one side has sent and may send.
#[derive(Debug, Clone, Copy, Default)]
struct Side {
    /// The number behind the last one that it sent.
    end: u32,
    /// The first number that the other side has not acknowledged.
    acked: u32,
    /// The number behind the last one that the other side has had room for.
    limit: u32,
    /// By how much the windows that it tells are shifted (RFC 7323 2.2).
    scale: u8,
    /// The number behind its FIN.
    fin: Option<u32>,
}

/// What a segment means for the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    Nothing,
    /// The far side has accepted.
    Opened,
    /// The connection has to end sooner if nothing moves.
    Sooner,
    /// It is over at once.
    Over(Reason),
}

impl Tracker {
    /// A connection whose app has sent this SYN.
    pub(crate) fn new(syn: &Tcp<'_>) -> Self {
        let start = syn.sequence();
        let app = Side {
            end: start.wrapping_add(length(syn)),
            acked: start,
            limit: start.wrapping_add(length(syn)),
            scale: syn.window_scale().unwrap_or(0),
            fin: None,
        };
        Self { app, far: Side::default(), phase: Phase::Opening, ended_by: None }
    }

    /// Whether the far side has not answered yet.
    pub(crate) fn is_opening(&self) -> bool {
        self.phase == Phase::Opening
    }

    /// Whether both sides are done: a SYN may begin another connection.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Lingering
    }

    /// How long nothing may move.
    pub(crate) fn idle(&self) -> Duration {
        match self.phase {
            Phase::Opening => UNANSWERED,
            Phase::Open => TCP_IDLE,
            Phase::Ended => TCP_HALF_IDLE,
            Phase::Lingering => LINGER,
        }
    }

    /// Why it ended if nothing moved for that long.
    pub(crate) fn silence(&self) -> Reason {
        match (self.phase, self.ended_by) {
            (Phase::Opening, _) => Reason::TimedOut,
            (Phase::Lingering, Some(From::App)) => Reason::AppClosed,
            (Phase::Lingering, _) => Reason::FarClosed,
            (Phase::Open | Phase::Ended, _) => Reason::Idle,
        }
    }

    /// Whether an error that quotes this number of the app's may be about what is under way
    /// (RFC 5927 4.1).
    pub(crate) fn is_under_way(&self, sequence: u32) -> bool {
        within(sequence, self.app.acked, self.app.end)
    }

    /// The numbers of a reset that the side opposite of `from` accepts, as if `from` had sent
    /// it: sequence and acknowledgement.
    pub(crate) fn reset(&self, from: From) -> (u32, u32) {
        match from {
            From::App => (self.app.end, self.far.end),
            From::Far => (self.far.end, self.app.end),
        }
    }

    /// Follows a segment.
    pub(crate) fn follow(&mut self, from: From, segment: &Tcp<'_>) -> News {
        if self.phase == Phase::Opening {
            return self.open(from, segment);
        }
        let (this, other) = match from {
            From::App => (&mut self.app, &mut self.far),
            From::Far => (&mut self.far, &mut self.app),
        };
        let start = segment.sequence();
        let end = start.wrapping_add(length(segment));
        if segment.rst() {
            // RFC 5961 3.2 asks the receiver for more; it answers for itself.
            let accepted = within(start, this.acked, this.limit.max_seq(this.end));
            return match (accepted, from) {
                (false, _) => News::Nothing,
                (true, From::App) => News::Over(Reason::AppReset),
                (true, From::Far) => News::Over(Reason::FarReset),
            };
        }
        // A probe of a closed window is one byte long.
        if segment.syn() || !end.is_at_most(this.limit.wrapping_add(1)) {
            return News::Nothing;
        }
        this.end = this.end.max_seq(end);
        if segment.fin() {
            this.fin = Some(end);
        }
        if segment.ack() && segment.acknowledgement().is_at_most(other.end) {
            let window = u32::from(segment.window()) << this.scale;
            let acked = segment.acknowledgement();
            other.acked = other.acked.max_seq(acked);
            other.limit = other.limit.max_seq(acked.wrapping_add(window));
        }
        self.advance(from, segment.fin())
    }

    fn advance(&mut self, from: From, fin: bool) -> News {
        if fin && self.ended_by.is_none() {
            self.ended_by = Some(from);
        }
        let done = |side: &Side| side.fin.is_some_and(|fin| fin.is_at_most(side.acked));
        let phase = if done(&self.app) && done(&self.far) {
            Phase::Lingering
        } else if self.far.fin.is_some() {
            Phase::Ended
        } else {
            Phase::Open
        };
        if phase == self.phase {
            return News::Nothing;
        }
        self.phase = phase;
        News::Sooner
    }

    fn open(&mut self, from: From, segment: &Tcp<'_>) -> News {
        if from == From::App {
            if segment.rst() {
                return News::Over(Reason::AppReset);
            }
            if segment.syn() {
                // Repeated, or of another connect() that took the same port.
                *self = Self::new(segment);
            }
            return News::Nothing;
        }
        let acknowledges = segment.ack() && {
            let first = self.app.acked.wrapping_add(1);
            within(segment.acknowledgement(), first, self.app.end)
        };
        match (acknowledges, segment.rst(), segment.syn()) {
            (true, true, _) => News::Over(Reason::Refused),
            (true, false, true) => {
                let start = segment.sequence();
                let end = start.wrapping_add(length(segment));
                let scale = segment.window_scale();
                // RFC 7323 2.2: shifted only where both have said so.
                if scale.is_none() {
                    self.app.scale = 0;
                }
                self.far = Side {
                    end,
                    acked: start,
                    limit: end.wrapping_add(u32::from(u16::MAX)),
                    scale: scale.unwrap_or(0),
                    fin: None,
                };
                self.app.acked = segment.acknowledgement();
                let window = u32::from(segment.window());
                self.app.limit = segment.acknowledgement().wrapping_add(window);
                self.phase = Phase::Open;
                News::Opened
            }
            (true, false, false) | (false, _, _) => News::Nothing,
        }
    }
}

/// How many numbers a segment takes (RFC 9293 3.4).
fn length(segment: &Tcp<'_>) -> u32 {
    let payload = u32::try_from(segment.payload).unwrap_or(u32::MAX);
    payload.wrapping_add(u32::from(segment.syn())).wrapping_add(u32::from(segment.fin()))
}

/// Sequence numbers, which wrap (RFC 9293 3.4).
trait Sequence: Copy {
    fn is_at_most(self, other: Self) -> bool;
    fn max_seq(self, other: Self) -> Self;
}

impl Sequence for u32 {
    fn is_at_most(self, other: Self) -> bool {
        other.wrapping_sub(self) < 1 << 31
    }

    fn max_seq(self, other: Self) -> Self {
        if self.is_at_most(other) { other } else { self }
    }
}

/// Whether a number is from `first` to `last`.
fn within(number: u32, first: u32, last: u32) -> bool {
    number.wrapping_sub(first) <= last.wrapping_sub(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    fn segment(flags: u8, sequence: u32, acknowledgement: u32, scale: Option<u8>) -> Vec<u8> {
        let mut header = vec![0u8; 20];
        header[4..8].copy_from_slice(&sequence.to_be_bytes());
        header[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
        header[13] = flags;
        header[14..16].copy_from_slice(&1000u16.to_be_bytes());
        header.extend(scale.into_iter().flat_map(|scale| [1, 3, 3, scale]));
        header[12] = (header.len() as u8 / 4) << 4;
        header
    }

    struct Play(Tracker);

    impl Play {
        fn open(start: u32, scale: Option<u8>) -> Self {
            let syn = segment(SYN, start, 0, scale);
            let mut play = Self(Tracker::new(&Tcp::of(&syn, &[])));
            let next = start.wrapping_add(1);
            assert_eq!(play.far(SYN | ACK, 5000, next, scale, 0), News::Opened);
            assert_eq!(play.app(ACK, next, 5001, 0), News::Nothing);
            play
        }

        fn app(&mut self, flags: u8, sequence: u32, ack: u32, payload: usize) -> News {
            let header = segment(flags, sequence, ack, None);
            self.0.follow(From::App, &Tcp::of(&header, &vec![0; payload]))
        }

        fn far(
            &mut self,
            flags: u8,
            sequence: u32,
            ack: u32,
            scale: Option<u8>,
            payload: usize,
        ) -> News {
            let header = segment(flags, sequence, ack, scale);
            self.0.follow(From::Far, &Tcp::of(&header, &vec![0; payload]))
        }
    }

    #[test]
    fn both_ends_close() {
        // Numbers wrap on the way.
        for start in [1000, u32::MAX - 3] {
            let mut play = Play::open(start, Some(7));
            let next = start.wrapping_add(1);
            assert_eq!(play.0.idle(), TCP_IDLE);
            assert_eq!(play.app(ACK, next, 5001, 10), News::Nothing);
            let next = next.wrapping_add(10);
            assert_eq!(play.app(FIN | ACK, next, 5001, 0), News::Nothing);
            let next = next.wrapping_add(1);
            assert_eq!(play.far(ACK, 5001, next, None, 500), News::Nothing);
            assert_eq!(play.far(FIN | ACK, 5501, next, None, 0), News::Sooner);
            assert_eq!(play.0.idle(), TCP_HALF_IDLE);
            assert!(!play.0.is_over());
            assert_eq!(play.app(ACK, next, 5502, 0), News::Sooner);
            assert!(play.0.is_over());
            assert_eq!((play.0.idle(), play.0.silence()), (LINGER, Reason::AppClosed));
        }
        let mut play = Play::open(7, None);
        play.far(FIN | ACK, 5001, 8, None, 0);
        play.app(FIN | ACK, 8, 5002, 0);
        assert_eq!(play.far(ACK, 5002, 9, None, 0), News::Sooner);
        assert_eq!(play.0.silence(), Reason::FarClosed);
    }

    #[test]
    fn resets() {
        let opening = || Play(Tracker::new(&Tcp::of(&segment(SYN, 10, 0, None), &[])));
        assert_eq!(opening().far(RST | ACK, 0, 11, None, 0), News::Over(Reason::Refused));
        assert_eq!(opening().far(RST | ACK, 0, 12, None, 0), News::Nothing, "of another SYN");
        assert_eq!(opening().far(RST, 0, 0, None, 0), News::Nothing, "acknowledges nothing");
        assert_eq!(opening().app(RST, 11, 0, 0), News::Over(Reason::AppReset));
        for (name, sequence, want) in [
            ("the next number", 5001, News::Over(Reason::FarReset)),
            ("in the window", 5001 + 999, News::Over(Reason::FarReset)),
            ("before", 5000, News::Nothing),
            ("far behind", 5001 + 70_000, News::Nothing),
        ] {
            let mut play = Play::open(10, None);
            assert_eq!(play.far(RST, sequence, 0, None, 0), want, "{name}");
        }
        let mut play = Play::open(10, None);
        assert_eq!(play.app(RST | ACK, 11, 5001, 0), News::Over(Reason::AppReset));
    }

    #[test]
    fn numbers_of_our_own_resets_and_of_errors() {
        let mut play = Play::open(10, Some(4));
        play.app(ACK, 11, 5001, 100);
        play.far(ACK, 5001, 11, None, 50);
        assert_eq!(play.0.reset(From::App), (111, 5051));
        assert_eq!(play.0.reset(From::Far), (5051, 111));
        for (sequence, want) in [(11, true), (111, true), (10, false), (112, false)] {
            assert_eq!(play.0.is_under_way(sequence), want, "{sequence}");
        }
        // What is far outside of the window moves nothing.
        play.far(ACK, 900_000, 11, None, 50);
        assert_eq!(play.0.reset(From::Far), (5051, 111));
    }

    #[test]
    fn another_syn_is_another_connect() {
        let mut play = Play(Tracker::new(&Tcp::of(&segment(SYN, 10, 0, None), &[])));
        assert_eq!(play.app(SYN, 900, 0, 0), News::Nothing);
        assert_eq!(play.far(SYN | ACK, 5000, 11, None, 0), News::Nothing);
        assert_eq!(play.far(SYN | ACK, 5000, 901, None, 0), News::Opened);
        assert!(!play.0.is_opening());
    }
}
