//! What changes on a host whose plan is in force, beside what its devices ask for.

use super::change::{self, Change};
use super::error::{HostError, Unrestored};
use super::plan::Plan;
use super::seen::Seen;
use super::{Host, undo};

impl Host {
    /// The directory of lock and journal: what this daemon is told from others by.
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    /// Makes one more change, wholly or not at all, as a route is.
    pub(super) fn apply_live(&mut self, change: Change) -> Result<(), HostError> {
        self.note(&change)?;
        if let Err(why) = self.make(&change) {
            self.stale = true;
            self.tidy();
            return Err(HostError::Apply { change: Box::new(change), why, left: Vec::new() });
        }
        self.keep(change);
        self.tidy();
        Ok(())
    }

    /// Undoes those changes in force that are `which`, the last one first, and takes them off the
    /// journal. Goes on after a failure; what could not be undone stays in force.
    pub fn release(&mut self, which: impl Fn(&Change) -> bool) -> Result<Vec<Change>, HostError> {
        let (mut undone, mut left) = (Vec::new(), Vec::new());
        for change in self.applied.iter().rev().filter(|change| which(change)) {
            match undo(change, &self.lock) {
                Ok(()) => undone.push(change.clone()),
                Err(why) => left.push(Unrestored { change: change.clone(), why }),
            }
        }
        self.applied.retain(|applied| !undone.contains(applied));
        self.stale |= !undone.is_empty();
        self.tidy();
        if left.is_empty() { Ok(undone) } else { Err(HostError::Restore { undone, left }) }
    }

    /// Leads what `plan` captures into the device, beside what is led there already: routes alone,
    /// so a plan that captures an IP version of which nothing was captured needs a new start.
    /// All of them, or none.
    pub fn lead(&mut self, plan: &Plan) -> Result<(), HostError> {
        let mut wanted = change::all_routes(plan, &Seen::look_at_links()?);
        wanted.retain(|route| !self.applied.contains(route));
        for (made, route) in wanted.iter().enumerate() {
            if let Err(error) = self.apply_live(route.clone()) {
                // What stays leads into a device that is there.
                let _ = self.release(|change| wanted[..made].contains(change));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Leads what `before` has captured and `plan` does not where it went without us.
    pub fn lead_no_more(&mut self, before: &Plan, plan: &Plan) -> Result<(), HostError> {
        let seen = Seen::look_at_links()?;
        let (before, wanted) = (change::all_routes(before, &seen), change::all_routes(plan, &seen));
        self.release(|change| before.contains(change) && !wanted.contains(change)).map(drop)
    }

    /// Writes the journal anew where it names what is not in force. That does no harm where it
    /// fails: to undo what isn't there is nothing.
    pub(super) fn tidy(&mut self) {
        if self.stale
            && let Some(journal) = &mut self.journal
        {
            self.stale = journal.rewrite(&self.applied).is_err();
        }
    }
}
