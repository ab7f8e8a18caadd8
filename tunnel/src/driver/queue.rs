//! How requests come to a shard, and how many of which kind at once.
//!
//! Most wait in a queue of bounded length. What goes over all flows takes a turn as well, held
//! from the asking to the answer: a shard never has more of it than [`WALKS`] and [`KILLS`],
//! whoever asks. A reload waits beside the queue in a place of its own, where the last one
//! counts: so it finds no queue full, and several shards can be told as one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::driver::Unasked;
use crate::driver::request::{Reload, Request};

/// Requests that may wait in the queue.
pub(super) const REQUESTS: usize = 64;
/// Lists and comparisons at once: each keeps up to a report a flow.
pub(super) const WALKS: usize = 8;
/// Orders to end a flow at once, which search for it.
pub(super) const KILLS: usize = 16;

/// A request on its way, with its turn where it takes one.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) request: Request,
    pub(super) turn: Option<Turn>,
}

/// Turns that are taken.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns {
    walks: Arc<AtomicUsize>,
    kills: Arc<AtomicUsize>,
}

/// One of them, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<AtomicUsize>);

impl Turns {
    /// A turn for this request, if it takes one.
    pub(super) fn take(&self, request: &Request) -> Result<Option<Turn>, Unasked> {
        let (taken, most) = match request {
            Request::Flows { .. } | Request::Compare { .. } | Request::Hits { .. } => {
                (&self.walks, WALKS)
            }
            Request::Kill { .. } => (&self.kills, KILLS),
            Request::Reload(_)
            | Request::Status { .. }
            | Request::Learn { .. }
            | Request::Names { .. }
            | Request::Ways { .. }
            | Request::Probe { .. }
            | Request::Link(_)
            | Request::Own(_) => return Ok(None),
        };
        let one_more = |taken| (taken < most).then_some(taken + 1);
        match taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more) {
            Ok(_) => Ok(Some(Turn(Arc::clone(taken)))),
            Err(_) => Err(Unasked::Busy),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The place of a reload that the shard has not taken yet. It is the shard's: others hold it
/// weakly, and it goes with the shard.
#[derive(Debug, Default)]
pub(super) struct Place(Mutex<Option<Reload>>);

impl Place {
    /// Puts a reload there. One that waited there has never begun, and is answered so.
    pub(super) fn put(place: &Weak<Self>, reload: Reload) -> Result<(), Unasked> {
        // Where the shard ends just now the last one to let go drops the reload.
        let place = place.upgrade().ok_or(Unasked::Gone)?;
        if let Some(earlier) = place.replace(Some(reload)) {
            (earlier.answer)(Vec::new());
        }
        Ok(())
    }

    pub(super) fn take(&self) -> Option<Reload> {
        self.replace(None)
    }

    fn replace(&self, reload: Option<Reload>) -> Option<Reload> {
        // Nobody panics while holding the lock.
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *place, reload)
    }
}
