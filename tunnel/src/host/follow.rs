//! The host as it changes under a daemon that runs.
//!
//! # Theory of operation
//!
//! Whatever it was that changed, all devices and settings are looked at again, and what is due
//! (pure, `links`) is journaled and made like the changes of the start; one that fails ends
//! nothing. What hung on a device that is gone is taken off the journal, which is written anew
//! then: it never grows with the devices that have been.
//!
//! Whoever gives a setting another value again and again has it for a while: two programs that
//! argue help nobody.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::change::Change;
use super::error::{HostError, Refusal, Unrestored};
use super::plan::Plan;
use super::seen::Seen;
use super::{Host, do_it, links, undo};

/// What there was to do.
#[derive(Debug, Default)]
pub struct Followed {
    /// Changes that were made.
    pub made: Vec<Change>,
    /// Changes that were undone, their device being gone.
    pub undone: Vec<Change>,
    /// What could not be done; of one change this is said once an hour.
    pub failed: Vec<HostError>,
    /// Settings that somebody else keeps changing, so that they are left for now; likewise.
    pub contested: Vec<Change>,
    /// When to follow again even where nobody tells of a change.
    pub again: Option<Duration>,
}

impl Host {
    /// Makes the changes that are due by now, for devices that have come and settings that others
    /// have changed, and undoes those of devices that are gone.
    pub fn follow(&mut self, plan: &Plan) -> Result<Followed, HostError> {
        let due = links::due(plan, &Seen::look_at_links()?, &self.applied);
        let now = Instant::now();
        let was_stale = self.stale;
        let mut followed = Followed::default();
        for change in due.gone {
            self.undo_live(change, now, &mut followed);
        }
        for change in due.new {
            match self.tries.of(&change, now).leave(now) {
                None => self.make_live(change, now, &mut followed),
                Some(left) => {
                    followed.again_after(left);
                    if self.tries.of(&change, now).is_news() {
                        followed.contested.push(change);
                    }
                }
            }
        }
        if self.stale
            && let Some(journal) = &mut self.journal
        {
            match journal.rewrite(&self.applied) {
                Ok(()) => self.stale = false,
                Err(error) if !was_stale => followed.failed.push(error),
                Err(_) => {}
            }
        }
        Ok(followed)
    }

    fn undo_live(&mut self, change: Change, now: Instant, followed: &mut Followed) {
        match undo(&change) {
            Ok(()) => {
                self.applied.retain(|applied| *applied != change);
                self.stale = true;
                followed.undone.push(change);
            }
            Err(why) => {
                let tried = self.tries.of(&change, now);
                let left = vec![Unrestored { change, why }];
                followed.fail(tried, HostError::Restore { undone: Vec::new(), left });
            }
        }
    }

    fn make_live(&mut self, change: Change, now: Instant, followed: &mut Followed) {
        if let Err(error) = self.note(&change) {
            return followed.fail(self.tries.of(&change, now), error);
        }
        match do_it(&change) {
            Ok(()) => {
                if change.is_setting() {
                    self.tries.of(&change, now).times += 1;
                }
                self.keep(change.clone());
                followed.made.push(change);
            }
            Err(why) => {
                self.stale = true;
                let mut left = Vec::new();
                // What is there already isn't ours to remove; all else may be half done.
                if why != Refusal::Kernel(Errno::EXIST)
                    && let Err(why) = undo(&change)
                {
                    self.keep(change.clone());
                    left.push(Unrestored { change: change.clone(), why });
                }
                let tried = self.tries.of(&change, now);
                followed.fail(tried, HostError::Apply { change: Box::new(change), why, left });
            }
        }
    }

    /// Puts a change that was made where its undoing belongs: settings are put back last, when
    /// nothing is captured any more. Of two values to put back the later one counts.
    fn keep(&mut self, change: Change) {
        let settings = self.applied.iter().take_while(|applied| applied.is_setting()).count();
        if let Some(older) = self.applied.iter_mut().find(|older| older.sets_the_same(&change)) {
            *older = change;
            self.stale = true;
        } else if change.is_setting() {
            self.applied.insert(settings, change);
        } else {
            self.applied.push(change);
        }
    }
}

impl Followed {
    fn fail(&mut self, tried: &mut Tried, error: HostError) {
        tried.times += 1;
        self.again_after(RETRY);
        if tried.is_news() {
            self.failed.push(error);
        }
    }

    fn again_after(&mut self, time: Duration) {
        self.again = Some(self.again.map_or(time, |sooner| sooner.min(time)));
    }
}

/// How often changes were tried of late.
#[derive(Debug, Default)]
pub(super) struct Tries(Vec<Tried>);

#[derive(Debug)]
struct Tried {
    change: Change,
    times: u32,
    since: Instant,
    told: bool,
}

impl Tries {
    fn of(&mut self, change: &Change, now: Instant) -> &mut Tried {
        self.0.retain(|tried| now.duration_since(tried.since) < QUIET);
        let of_it = |tried: &Tried| tried.change == *change || tried.change.sets_the_same(change);
        let at = self.0.iter().position(of_it).unwrap_or_else(|| {
            self.0.push(Tried { change: change.clone(), times: 0, since: now, told: false });
            self.0.len() - 1
        });
        &mut self.0[at]
    }
}

impl Tried {
    /// How long the change is left out; `None`: it may be tried.
    fn leave(&mut self, now: Instant) -> Option<Duration> {
        let left =
            WITHIN.checked_sub(now.duration_since(self.since)).filter(|left| !left.is_zero());
        if left.is_none() {
            (self.times, self.since) = (0, now);
        }
        left.filter(|_| self.times >= TIMES)
    }

    /// Whether it was not said before.
    fn is_news(&mut self) -> bool {
        !std::mem::replace(&mut self.told, true)
    }
}

/// After what may pass.
const RETRY: Duration = Duration::from_secs(1);
/// A device's own start takes one or two: udev sets what the kernel has set.
const TIMES: u32 = 5;
/// The time that they are counted in.
const WITHIN: Duration = Duration::from_secs(60);
/// What was said is news again when there was peace that long.
const QUIET: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, before: &str) -> Change {
        let (key, value) = (key.to_owned(), "0".to_owned());
        Change::Sysctl { key, value, before: before.to_owned() }
    }

    #[test]
    fn a_setting_is_left_to_who_insists() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut tries = Tries::default();
        for second in 0..5 {
            // Whatever value it had: it is one setting.
            let change = set("a", &second.to_string());
            assert_eq!(tries.of(&change, at(second)).leave(at(second)), None, "{second}");
            tries.of(&change, at(second)).times += 1;
        }
        let (change, other) = (set("a", "2"), set("b", "2"));
        let left = Duration::from_secs(50);
        assert_eq!(tries.of(&change, at(10)).leave(at(10)), Some(left));
        assert!(tries.of(&change, at(10)).is_news());
        assert!(!tries.of(&change, at(11)).is_news());
        assert_eq!(tries.of(&other, at(12)).leave(at(12)), None, "another setting");
        assert_eq!(tries.of(&change, at(60)).leave(at(60)), None, "a minute later");
        assert!(!tries.of(&change, at(61)).is_news());
        assert!(tries.of(&change, at(60 + 3600)).is_news());
        assert_eq!(tries.0.len(), 1);
    }
}
