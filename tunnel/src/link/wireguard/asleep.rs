//! How long the host was suspended.
//!
//! Whoever drives an interface tells it the time of a clock that stands still in a suspend
//! (`CLOCK_MONOTONIC`). WireGuard's sessions age meanwhile, and `Tunn` counts by a clock that runs on
//! (`CLOCK_BOOTTIME`). So what is told is put right by what the two clocks have come apart since the
//! beginning: two reads of the vDSO where an interface wakes up, nothing a packet.

use std::time::Duration;

use engine::Instant;
use rustix::time::{ClockId, clock_gettime};

/// The suspends of the host since this was made.
#[derive(Debug)]
pub(super) struct Asleep {
    /// How far apart the two clocks were.
    apart: Duration,
    /// How much further they are now.
    slept: Duration,
    last: Instant,
}

impl Default for Asleep {
    fn default() -> Self {
        Self { apart: apart(), slept: Duration::ZERO, last: Instant::ZERO }
    }
}

impl Asleep {
    /// The time that `told` is, with every suspend counted, and looks for a new one.
    pub(super) fn wake(&mut self, told: Instant) -> Instant {
        self.look(apart());
        self.last = self.at(told);
        self.last
    }

    fn look(&mut self, apart: Duration) {
        let slept = apart.saturating_sub(self.apart);
        // Two clocks are never read at one instant.
        if slept >= self.slept + NOISE {
            self.slept = slept;
        }
    }

    /// The time that `told` is, with the suspends that are known.
    pub(super) fn at(&self, told: Instant) -> Instant {
        told + self.slept
    }

    /// The time of the last [`wake`](Self::wake).
    pub(super) fn last(&self) -> Instant {
        self.last
    }

    /// When the other clock will say that it is `at`.
    pub(super) fn told(&self, at: Instant) -> Instant {
        let slept = u64::try_from(self.slept.as_micros()).unwrap_or(u64::MAX);
        Instant::from_micros(at.micros().saturating_sub(slept))
    }
}

/// How far the clock that runs on is ahead of the one that stands still.
fn apart() -> Duration {
    let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    // In this order: whatever comes between the two makes it more, never less.
    let still = read(ClockId::Monotonic);
    read(ClockId::Boottime).saturating_sub(still)
}

/// Shorter suspends don't matter to any timer.
const NOISE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspend_is_added_and_noise_is_not() {
        let second = Duration::from_secs(1);
        let mut asleep = Asleep { apart: second * 50, slept: Duration::ZERO, last: Instant::ZERO };
        let told = Instant::from_micros(9_000_000);
        for (name, apart, slept) in [
            ("nothing", second * 50, 0),
            ("noise", second * 50 + NOISE / 2, 0),
            ("an hour", second * 3650, 3600),
            ("the same hour", second * 3650 + NOISE / 2, 3600),
            ("clocks don't come together again", second * 50, 3600),
            ("one more", second * 3651, 3601),
        ] {
            asleep.look(apart);
            let at = asleep.at(told);
            assert_eq!(at, told + second * slept, "{name}");
            assert_eq!(asleep.told(at), told, "{name}");
        }
        let mut real = Asleep::default();
        assert_eq!(real.wake(told), told, "this host was not suspended just now");
    }
}
