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
//! argue help nobody. What fails is tried as often, and then left for a while as well.
//!
//! What others have taken away of the rest is made again (`standing`) for as long as they do,
//! because without it the host isn't captured: beyond some times a minute only after a pause.
//!
//! Of some settings (`src_valid_mark`, `tcp_fwmark_accept`, `fwmark_reflect`) the kernel doesn't
//! tell that they were set, so all are looked at every minute too ([`Plan::untold`]).
//!
//! The TUN itself gets its name back. Where that is another's by now, or the device is gone, there
//! is nothing to follow any more: packets are led to where nobody reads them, or their answers
//! pass for a stranger's.

use std::mem;
use std::time::{Duration, Instant};

use engine::DeviceName;
use rustix::io::Errno;

use super::astray::{Astray, astray};
use super::change::Change;
use super::error::{HostError, Refusal, Unrestored};
use super::plan::Plan;
use super::seen::Seen;
use super::standing::There;
use super::watch::Changed;
use super::{Host, links, nft, undo};

/// What there was to do.
#[derive(Debug)]
pub struct Followed {
    /// Changes that were made.
    pub made: Vec<Change>,
    /// Changes that were undone, their device being gone.
    pub undone: Vec<Change>,
    /// What could not be done; of one change this is said once an hour.
    pub failed: Vec<HostError>,
    /// Settings that somebody else keeps changing, so that they are left for now; likewise.
    pub contested: Vec<Change>,
    /// What somebody else had taken away of the rest, and was made again.
    pub restored: Vec<Change>,
    /// What of that could not be made, twice in turn; likewise.
    pub unrestored: Vec<HostError>,
    /// What of that is taken away again and again, so that it is made with pauses; likewise.
    pub taken_away: Vec<Change>,
    /// Routes of others that lead our own packets back into the TUN; each is said once.
    pub astray: Vec<Astray>,
    /// Why there is no going on: the TUN isn't ours any more.
    pub lost: Option<Lost>,
    /// When to follow again even where nobody tells of a change.
    pub again: Duration,
}

/// What has become of the TUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Deleted, or moved to another network namespace.
    #[error("the device {0} is not there any more")]
    Gone(DeviceName),
    /// It has another name, and can't have its own back: what is made for the host knows it by
    /// that.
    #[error("the device {ours} is called {now} by now, and cannot have its name back")]
    Renamed {
        /// Its name.
        ours: DeviceName,
        /// The one that it has.
        now: DeviceName,
    },
}

impl Followed {
    fn until(again: Duration) -> Self {
        Self {
            made: Vec::new(),
            undone: Vec::new(),
            failed: Vec::new(),
            contested: Vec::new(),
            restored: Vec::new(),
            unrestored: Vec::new(),
            taken_away: Vec::new(),
            astray: Vec::new(),
            lost: None,
            again,
        }
    }

    fn again_after(&mut self, time: Duration) {
        self.again = self.again.min(time);
    }
}

impl Host {
    /// Makes the changes that are due by now, for devices that have come and settings that others
    /// have changed, and undoes those of devices that are gone; then makes again what others have
    /// taken away. Of devices that went by what has `changed` nothing is put back, should one have
    /// come back.
    pub fn follow(&mut self, plan: &Plan, changed: &Changed) -> Result<Followed, HostError> {
        self.forget(&changed.went);
        self.emptied |= changed.emptied;
        let mut seen = Seen::look_at_links()?;
        let mut followed = Followed::until(plan.untold);
        let now = Instant::now();
        self.tries.tidy(now);
        let link =
            self.applied.iter().find(|change| matches!(change, Change::Link { .. })).cloned();
        if let Some(link) = &link
            && let Change::Link { device, .. } = *link
        {
            // First of all: by another name it would be taken for an uplink.
            if seen.name(device.index).is_some_and(|name| name != device.name) {
                self.make_paused(link, now, &mut followed);
                seen = Seen::look_at_links()?;
            }
            match seen.name(device.index) {
                Some(name) if name == device.name => {}
                Some(name) => {
                    // Who is still renaming may have come between the look and this.
                    let renamed = Lost::Renamed { ours: device.name, now: name };
                    followed.lost = (self.tries.of(link, now).fails > 1).then_some(renamed);
                    return Ok(followed);
                }
                None => {
                    followed.lost = Some(Lost::Gone(device.name));
                    return Ok(followed);
                }
            }
        }
        let due = links::due(plan, &seen, &self.applied);
        for change in due.gone {
            match self.tries.leave(&change, now) {
                None => self.undo_live(change, now, &mut followed),
                Some(left) => followed.again_after(left),
            }
        }
        if let Some(change) = due.renewed {
            self.keep(change);
        }
        for change in due.new {
            match self.tries.leave(&change, now) {
                None => self.make_live(change, now, &mut followed),
                Some(left) => {
                    followed.again_after(left);
                    if self.tries.is_news(&change, now) {
                        followed.contested.push(change);
                    }
                }
            }
        }
        let looked = There::look(&seen, &self.applied, self.table.as_ref(), self.emptied);
        let missing = looked.map(|there| there.missing(&self.applied));
        for change in missing.as_deref().unwrap_or_default() {
            self.make_paused(change, now, &mut followed);
        }
        if changed.led
            && let Some(device) = seen.index(plan.device)
        {
            self.look_astray(plan, device, &mut followed);
        }
        self.write_anew(&mut followed);
        missing.map(|_| followed).map_err(HostError::Look)
    }

    /// Makes again what others have taken away, unless they do so all the time.
    fn make_paused(&mut self, change: &Change, now: Instant, followed: &mut Followed) {
        match self.tries.pause(change, now) {
            None => self.make_again(change, now, followed),
            Some(left) => {
                followed.again_after(left);
                if self.tries.is_news(change, now) {
                    followed.taken_away.push(change.clone());
                }
            }
        }
    }

    /// Tells of routes of others into the TUN. Where they can't be listed nothing is told.
    fn look_astray(&mut self, plan: &Plan, device: u32, followed: &mut Followed) {
        for route in astray(plan, device).unwrap_or_default() {
            if self.astray.len() < MOST && !self.astray.contains(&route) {
                self.astray.push(route);
                followed.astray.push(route);
            }
        }
    }

    /// Whether the nftables table is as it was made.
    pub(super) fn table_stands(&self) -> Result<bool, Errno> {
        let now = nft::Standing::look()?;
        Ok(self.table.as_ref().is_some_and(|made| made.is_within(now.as_ref())))
    }

    /// Forgets what the devices were like that `went`: one that is back has got everything anew,
    /// though it may have its index again.
    fn forget(&mut self, went: &[u32]) {
        let before = self.applied.len();
        self.applied.retain(|change| {
            !matches!(change, Change::ReversePath { device, .. } if went.contains(&device.index))
        });
        self.stale |= self.applied.len() < before;
        for change in &mut self.applied {
            if let Change::LaterReversePath { known, .. } = change {
                let before = known.len();
                known.retain(|index| !went.contains(index));
                self.stale |= known.len() < before;
            }
        }
    }

    /// Takes off the journal what is not applied any more.
    fn write_anew(&mut self, followed: &mut Followed) {
        let Some(journal) = self.journal.as_mut().filter(|_| self.stale) else { return };
        let done = journal.rewrite(&self.applied);
        self.stale = done.is_err();
        let again = mem::replace(&mut self.cannot_rewrite, done.is_err());
        if let Err(error) = done {
            followed.again_after(if again { WITHIN } else { RETRY });
            if !again {
                followed.failed.push(error);
            }
        }
    }

    fn undo_live(&mut self, change: Change, now: Instant, followed: &mut Followed) {
        match undo(&change, &self.lock) {
            Ok(()) => {
                self.applied.retain(|applied| *applied != change);
                self.tries.forget(&change);
                self.stale = true;
                followed.undone.push(change);
            }
            Err(why) => {
                let left = vec![Unrestored { change: change.clone(), why }];
                let error = HostError::Restore { undone: Vec::new(), left };
                self.fail(&change, error, now, followed);
            }
        }
    }

    fn make_live(&mut self, change: Change, now: Instant, followed: &mut Followed) {
        if let Err(error) = self.note(&change) {
            return self.fail(&change, error, now, followed);
        }
        match self.make(&change) {
            Ok(()) => {
                // Others may give it another value again, which a device that comes and goes is
                // not to be taken for.
                if change.is_setting() {
                    self.tries.count(&change, now);
                }
                self.keep(change.clone());
                followed.made.push(change);
            }
            Err(why) => {
                self.stale = true;
                let mut left = Vec::new();
                // What is there already isn't ours to remove; all else may be half done.
                if why != Refusal::Kernel(Errno::EXIST)
                    && let Err(why) = undo(&change, &self.lock)
                {
                    self.keep(change.clone());
                    left.push(Unrestored { change: change.clone(), why });
                }
                let error = HostError::Apply { change: Box::new(change.clone()), why, left };
                self.fail(&change, error, now, followed);
            }
        }
    }

    /// Makes a change that is in force and was taken away: it is in the journal.
    fn make_again(&mut self, change: &Change, now: Instant, followed: &mut Followed) {
        self.tries.count(change, now);
        let mut made = self.make(change);
        if made == Err(Refusal::Kernel(Errno::EXIST)) {
            // Not it, but one in its place: the kernel takes the source out of routes whose address
            // is gone.
            made = undo(change, &self.lock).and_then(|()| self.make(change));
        }
        if made.is_ok()
            && matches!(change, Change::NftTable { .. })
            && self.applied.contains(&Change::Accepted)
        {
            made = self.make(&Change::Accepted);
        }
        match made {
            Ok(()) => {
                self.tries.of(change, now).fails = 0;
                followed.restored.push(change.clone());
            }
            Err(why) => {
                followed.again_after(RETRY);
                // Who is still removing may have come between the look and this.
                let tried = self.tries.of(change, now);
                tried.fails += 1;
                if tried.fails > 1 && self.tries.is_news(change, now) {
                    let (change, left) = (Box::new(change.clone()), Vec::new());
                    followed.unrestored.push(HostError::Apply { change, why, left });
                }
            }
        }
    }

    fn fail(&mut self, change: &Change, error: HostError, now: Instant, followed: &mut Followed) {
        self.tries.count(change, now);
        followed.again_after(RETRY);
        if self.tries.is_news(change, now) {
            followed.failed.push(error);
        }
    }

    /// Puts a change that was made where its undoing belongs: settings are put back last, when
    /// nothing is captured any more. Of two values to put back the later one counts.
    pub(super) fn keep(&mut self, change: Change) {
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

/// How often changes were tried of late that failed, or that others may take back.
#[derive(Debug, Default)]
pub(super) struct Tries(Vec<Tried>);

#[derive(Debug)]
struct Tried {
    change: Change,
    times: u32,
    since: Instant,
    last: Instant,
    told: Option<Instant>,
    /// How many of the last tries to make it again failed.
    fails: u32,
}

impl Tries {
    /// Counts one more try.
    fn count(&mut self, change: &Change, now: Instant) {
        let tried = self.of(change, now);
        (tried.times, tried.last) = (tried.times + 1, now);
    }

    /// How long a change is left out; `None`: it may be tried.
    fn leave(&mut self, change: &Change, now: Instant) -> Option<Duration> {
        let at = self.position(change)?;
        let tried = &mut self.0[at];
        let left =
            WITHIN.checked_sub(now.duration_since(tried.since)).filter(|left| !left.is_zero());
        if left.is_none() {
            (tried.times, tried.since) = (0, now);
        }
        left.filter(|_| tried.times >= TIMES)
    }

    /// How long a change is left out that the capture can't be without; `None`: it may be tried.
    fn pause(&mut self, change: &Change, now: Instant) -> Option<Duration> {
        let left = self.leave(change, now)?;
        let last = self.of(change, now).last;
        PAUSE
            .checked_sub(now.duration_since(last))
            .filter(|pause| !pause.is_zero())
            .map(|pause| pause.min(left))
    }

    /// Whether it is to be said: it was not for an hour.
    fn is_news(&mut self, change: &Change, now: Instant) -> bool {
        let tried = self.of(change, now);
        let is_news = tried.told.is_none_or(|told| now.duration_since(told) >= QUIET);
        if is_news {
            tried.told = Some(now);
        }
        is_news
    }

    /// Forgets a change, its device being gone.
    fn forget(&mut self, change: &Change) {
        if let Some(at) = self.position(change) {
            self.0.swap_remove(at);
        }
    }

    /// Forgets what is past.
    fn tidy(&mut self, now: Instant) {
        let is_within =
            |since: Option<Instant>, time| since.is_some_and(|at| now.duration_since(at) < time);
        self.0.retain(|tried| is_within(Some(tried.since), WITHIN) || is_within(tried.told, QUIET));
    }

    fn of(&mut self, change: &Change, now: Instant) -> &mut Tried {
        let at = self.position(change).unwrap_or_else(|| {
            if self.0.len() >= MOST {
                // The oldest.
                self.0.remove(0);
            }
            self.0.push(Tried {
                change: change.clone(),
                times: 0,
                since: now,
                last: now,
                told: None,
                fails: 0,
            });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    #[cfg(test)]
    pub(super) fn number(&self) -> usize {
        self.0.len()
    }

    fn position(&self, change: &Change) -> Option<usize> {
        let is_it = |tried: &Tried| tried.change == *change || tried.change.sets_the_same(change);
        self.0.iter().position(is_it)
    }
}

/// After what may pass.
const RETRY: Duration = Duration::from_secs(1);
/// A device's own start takes one or two: udev sets what the kernel has set.
const TIMES: u32 = 5;
/// Between two tries beyond, where there is no leaving.
const PAUSE: Duration = Duration::from_secs(2);
/// The time that they are counted in.
const WITHIN: Duration = Duration::from_secs(60);
/// What was said is news again.
const QUIET: Duration = Duration::from_secs(3600);
/// Routes that are told of, and changes that are counted; beyond, no route is told of, and the
/// oldest changes are forgotten, and tried once more than they would.
const MOST: usize = 1024;

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
            assert_eq!(tries.leave(&change, at(second)), None, "{second}");
            tries.count(&change, at(second));
        }
        let (change, other) = (set("a", "2"), set("b", "2"));
        assert_eq!(tries.leave(&change, at(10)), Some(Duration::from_secs(50)));
        assert!(tries.is_news(&change, at(10)));
        assert!(!tries.is_news(&change, at(11)));
        assert_eq!(tries.leave(&other, at(12)), None, "another setting");
        assert_eq!(tries.leave(&change, at(60)), None, "a minute later");
        assert!(!tries.is_news(&change, at(61)));
        assert_eq!(tries.0.len(), 1);
    }

    /// Its absence would leave the host uncaptured.
    #[test]
    fn what_others_remove_is_made_again_with_pauses() {
        let start = Instant::now();
        let change = set("a", "1");
        let mut tries = Tries::default();
        let mut made = Vec::new();
        for tenth in 0..200 {
            let now = start + Duration::from_millis(100) * tenth;
            if tries.pause(&change, now).is_none() {
                tries.count(&change, now);
                made.push(tenth);
            }
        }
        assert_eq!(made, [0, 1, 2, 3, 4, 24, 44, 64, 84, 104, 124, 144, 164, 184]);
    }

    /// Somebody who never stops is named every hour.
    #[test]
    fn what_is_contested_for_long_is_said_once_an_hour() {
        let start = Instant::now();
        let mut tries = Tries::default();
        let change = set("a", "1");
        let mut said = Vec::new();
        for second in 0..3 * 3600 {
            let now = start + Duration::from_secs(second);
            tries.tidy(now);
            match tries.leave(&change, now) {
                None => tries.count(&change, now),
                Some(_) if tries.is_news(&change, now) => said.push(second),
                Some(_) => {}
            }
        }
        assert_eq!(said, [5, 3605, 7205]);
    }

    #[test]
    fn what_is_past_is_forgotten() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut tries = Tries::default();
        let (quiet, said, gone) = (set("a", "1"), set("b", "1"), set("c", "1"));
        for change in [&quiet, &said, &gone] {
            tries.count(change, at(0));
        }
        assert!(tries.is_news(&said, at(30)));
        tries.forget(&gone);
        for (second, expected) in [(59, 2), (60, 1), (3629, 1), (3630, 0)] {
            tries.tidy(at(second));
            assert_eq!(tries.0.len(), expected, "after {second} s");
        }
        for number in 0..2 * MOST {
            tries.count(&set(&number.to_string(), "1"), at(4000));
        }
        assert_eq!(tries.0.len(), MOST);
        assert!(tries.position(&set("2047", "1")).is_some());
    }
}
