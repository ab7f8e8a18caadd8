//! Who is connected, and who gives way.
//!
//! A place is taken at the connect and kept until the end. Where all are taken, or all that
//! one user may have, the oldest connection that asks nothing at the moment is closed for the
//! new one: half a request and an idle connection can't keep others out. A connection whose
//! request is there as a whole and is being answered is never closed for another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::UnixStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tunnel::peer::{self, Peer};

use super::denial::Denial;

/// All connections. One takes up to twice the longest head of a request.
const CONNECTIONS: usize = 128;
/// Those of one user.
const OF_ONE_USER: usize = 64;
/// Event streams of one user.
const WATCHES_OF_ONE_USER: usize = 16;
/// Orders of one user to end a flow that are under way.
const KILLS_OF_ONE_USER: usize = 4;
/// Names that are asked for one user at once.
const INQUIRIES_OF_ONE_USER: usize = 8;
/// Long answers to one user that are being made or were not read yet.
const LISTS_OF_ONE_USER: usize = 4;
/// Policies that are received from one user at once: each may be as long as a body may be.
const POLICIES_OF_ONE_USER: usize = 2;

/// All that are connected, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Connections {
    places: Mutex<Vec<Place>>,
    /// Places given so far: no number is given twice.
    given: AtomicU64,
}

#[derive(Debug)]
struct Place {
    number: u64,
    uid: u32,
    /// Answers under way to requests that are there as a whole.
    busy: usize,
    task: Task,
    kick: Arc<Notify>,
    /// One for all places of a user.
    lists: Arc<Semaphore>,
}

/// What one user may not do as often as there are places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Nothing of that kind.
    Short,
    /// Events are sent.
    Watch,
    /// A policy is received.
    Policy,
    /// A flow is looked for to end it.
    Kill,
    /// A name is asked.
    Inquiry,
}

impl Task {
    /// How many of one user may do it.
    fn limit(self) -> usize {
        match self {
            Self::Short => OF_ONE_USER,
            Self::Watch => WATCHES_OF_ONE_USER,
            Self::Policy => POLICIES_OF_ONE_USER,
            Self::Kill => KILLS_OF_ONE_USER,
            Self::Inquiry => INQUIRIES_OF_ONE_USER,
        }
    }
}

/// A connection's place among them, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    connections: Arc<Connections>,
    number: u64,
    kick: Arc<Notify>,
    lists: Arc<Semaphore>,
    peer: Peer,
}

/// While it lives its connection does not give way.
#[derive(Debug)]
pub(super) struct Busy(Arc<Seat>);

/// While it lives its connection does this.
#[derive(Debug)]
pub(super) struct Doing(Arc<Seat>);

impl Connections {
    /// A place for a new connection.
    pub(super) fn admit(connections: &Arc<Self>, stream: &UnixStream) -> Result<Seat, Denial> {
        let peer = peer::of(stream).map_err(|_| Denial::stranger())?;
        Self::seat(connections, peer).ok_or_else(Denial::crowded)
    }

    fn seat(connections: &Arc<Self>, peer: Peer) -> Option<Seat> {
        let mut places = connections.lock();
        let of_user = |uid| places.iter().filter(|place| place.uid == uid).count();
        let gives_way = if of_user(peer.uid) >= OF_ONE_USER {
            Some(peer.uid)
        } else if places.len() >= CONNECTIONS {
            // Of whoever has most.
            places.iter().map(|place| place.uid).max_by_key(|uid| of_user(*uid))
        } else {
            None
        };
        if let Some(uid) = gives_way {
            let at = places.iter().position(|place| place.busy == 0 && place.uid == uid)?;
            places.remove(at).kick.notify_one();
        }
        // Under the lock, so that the list stays sorted.
        let number = connections.given.fetch_add(1, Ordering::Relaxed);
        let kick = Arc::new(Notify::new());
        let (uid, busy, task) = (peer.uid, 0, Task::Short);
        let another = places.iter().find(|place| place.uid == uid);
        let lists = another.map_or_else(
            || Arc::new(Semaphore::new(LISTS_OF_ONE_USER)),
            |place| Arc::clone(&place.lists),
        );
        let (kicked, listed) = (Arc::clone(&kick), Arc::clone(&lists));
        places.push(Place { number, uid, busy, task, kick: kicked, lists: listed });
        drop(places);
        Some(Seat { connections: Arc::clone(connections), number, kick, lists, peer })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Place>> {
        // What is done under the lock does not panic, and leaves the list whole.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut Place)) {
        let mut places = self.lock();
        if let Ok(at) = places.binary_search_by_key(&number, |place| place.number) {
            change(&mut places[at]);
        }
    }
}

impl Seat {
    /// Who is connected.
    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Ready when another took the place.
    pub(super) async fn kicked(&self) {
        self.kick.notified().await;
    }

    /// A request is there as a whole and is being answered.
    pub(super) fn busy(seat: &Arc<Self>) -> Busy {
        seat.connections.change(seat.number, |place| place.busy += 1);
        Busy(Arc::clone(seat))
    }

    /// Waits until this user has room for one more long answer.
    pub(super) async fn list(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.lists).acquire_owned().await.ok()
    }

    /// Whether events are sent to it: nobody need read those at once.
    pub(super) fn watches(&self) -> bool {
        let mut watches = false;
        self.connections.change(self.number, |place| watches = place.task == Task::Watch);
        watches
    }

    /// Something else than a short answer begins; `None` where this user does it often enough.
    pub(super) fn begin(seat: &Arc<Self>, task: Task) -> Option<Doing> {
        let mut places = seat.connections.lock();
        let same = |place: &&Place| place.uid == seat.peer.uid && place.task == task;
        if places.iter().filter(same).count() >= task.limit() {
            return None;
        }
        if let Ok(at) = places.binary_search_by_key(&seat.number, |place| place.number) {
            places[at].task = task;
        }
        drop(places);
        Some(Doing(Arc::clone(seat)))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.connections.change(self.0.number, |place| place.busy -= 1);
    }
}

impl Drop for Doing {
    fn drop(&mut self) {
        self.0.connections.change(self.0.number, |place| place.task = Task::Short);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut places = self.connections.lock();
        if let Ok(at) = places.binary_search_by_key(&self.number, |place| place.number) {
            places.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(connections: &Arc<Connections>, uid: u32) -> Option<Arc<Seat>> {
        Connections::seat(connections, Peer { uid, groups: Vec::new() }).map(Arc::new)
    }

    #[test]
    fn the_oldest_idle_one_gives_way() {
        let connections = Arc::default();
        let mut alice: Vec<_> = (0..OF_ONE_USER).map(|_| enter(&connections, 1)).collect();
        let busy = alice[0].as_ref().map(Seat::busy);
        // Her next one takes her second, the oldest that asks nothing.
        let next = enter(&connections, 1).expect("a place");
        assert_eq!(connections.lock().len(), OF_ONE_USER);
        let numbers: Vec<_> = connections.lock().iter().map(|p| p.number).take(2).collect();
        assert_eq!(numbers, [0, 2]);
        // The one that had to go leaves nobody else's place behind.
        alice[1] = None;
        assert_eq!(connections.lock().len(), OF_ONE_USER);
        drop((busy, next));
        assert_eq!(connections.lock().len(), OF_ONE_USER - 1);
    }

    #[test]
    fn one_user_leaves_room_for_others() {
        let connections = Arc::default();
        let seats: Vec<_> = (0..1000).map(|_| enter(&connections, 1)).collect();
        let busy: Vec<_> = seats.iter().flatten().map(Seat::busy).collect();
        assert!(enter(&connections, 1).is_none(), "all of them are being answered");
        assert!(enter(&connections, 2).is_some());
        drop((seats, busy));
        assert_eq!(connections.lock().len(), 0);
    }

    #[test]
    fn who_has_most_gives_way() {
        let connections = Arc::default();
        let seats: Vec<_> = [1, 2, 3]
            .iter()
            .flat_map(|uid| std::iter::repeat_n(*uid, OF_ONE_USER - 10 * uid))
            .filter_map(|uid| enter(&connections, u32::try_from(uid).expect("small")))
            .collect();
        assert_eq!(seats.len(), 3 * OF_ONE_USER - 60);
        assert_eq!(connections.lock().len(), CONNECTIONS);
        let of = |uid| connections.lock().iter().filter(|place| place.uid == uid).count();
        assert!(of(1) <= 54 && of(2) <= 44 && of(3) == 34, "{} {} {}", of(1), of(2), of(3));
    }

    #[test]
    fn watches_are_counted() {
        let connections = Arc::default();
        let seats: Vec<_> = (0..20).filter_map(|_| enter(&connections, 1)).collect();
        let watches: Vec<_> = seats.iter().map(|seat| Seat::begin(seat, Task::Watch)).collect();
        assert_eq!(watches.iter().flatten().count(), WATCHES_OF_ONE_USER);
        drop(watches);
        assert!(Seat::begin(&seats[19], Task::Watch).is_some());
    }
}
