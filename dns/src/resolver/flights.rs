//! Questions in flight: equal ones are asked once.
//!
//! Whoever waits for a resolver that is dead waits for seconds, and his place is nobody else's.
//! So those who wait for the same resolvers have a part of the places, and those who wait for one
//! resolver, alone or with others, have half: names of other resolvers find room.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use tokio::sync::oneshot;

use crate::ask::{By, ResolverId, ResolverSet};
use crate::cache::Key;
use crate::ready::Ready;

/// What a question came to.
#[derive(Debug, Clone)]
pub(super) struct Landed {
    pub(super) ready: Arc<Ready>,
    /// Whose answers are in it.
    pub(super) by: Arc<[By]>,
}

/// Gets the answer; an error when the question was given up.
pub(super) type Waiter = oneshot::Receiver<Landed>;

/// Of the places, those for who waits for the same resolvers: a quarter.
const SAME: usize = 4;
/// And for who waits for one of them, among others: half.
const ONE: usize = 2;

#[derive(Debug)]
pub(super) struct Flights {
    board: Arc<Mutex<Board>>,
    most: usize,
}

#[derive(Debug, Default)]
struct Board {
    flights: HashMap<(Key, u64), Vec<oneshot::Sender<Landed>>, RandomState>,
    /// How many wait for which resolvers; few sets of them are named by rules.
    waiting: HashMap<ResolverSet, usize, RandomState>,
}

impl Board {
    /// Whether one more may wait for these.
    fn has_room(&self, of: ResolverSet, most: usize) -> bool {
        let waiting = || self.waiting.iter();
        let all: usize = waiting().map(|(_, count)| count).sum();
        let same = self.waiting.get(&of).copied().unwrap_or(0);
        let one = |bit: ResolverSet| -> usize {
            waiting().filter(|(set, _)| *set & bit != 0).map(|(_, count)| count).sum()
        };
        let mut bits = (0..ResolverSet::BITS).map(|bit| 1 << bit).filter(|bit| of & bit != 0);
        all < most && same < most.div_ceil(SAME) && bits.all(|bit| one(bit) < most.div_ceil(ONE))
    }
}

/// A question in flight. Dropped without an answer, its waiters get none.
#[derive(Debug)]
pub(super) struct Flight {
    key: (Key, u64),
    of: ResolverSet,
    board: Arc<Mutex<Board>>,
    /// The key may be another flight's by now.
    landed: bool,
}

impl Flights {
    /// At most `most` who wait.
    pub(super) fn new(most: usize) -> Self {
        Self { board: Arc::default(), most }
    }

    /// Waits for the answer to a question for these resolvers, of this epoch of the cache. With a
    /// [`Flight`]: the caller is to ask it. None: too much in flight.
    pub(super) fn join(
        &self,
        key: &Key,
        epoch: u64,
        resolvers: &[ResolverId],
    ) -> Option<(Waiter, Option<Flight>)> {
        let of = resolvers.iter().fold(0, |set, id| set | id.set());
        let mut board = lock(&self.board);
        let board = &mut *board;
        if !board.has_room(of, self.most) {
            return None;
        }
        let (answer, waiter) = oneshot::channel();
        let flight = match board.flights.entry((key.clone(), epoch)) {
            Entry::Occupied(mut flight) => {
                flight.get_mut().push(answer);
                None
            }
            Entry::Vacant(flight) => {
                let key = flight.key().clone();
                flight.insert(vec![answer]);
                Some(Flight { key, of, board: Arc::clone(&self.board), landed: false })
            }
        };
        *board.waiting.entry(of).or_default() += 1;
        Some((waiter, flight))
    }
}

impl Flight {
    /// Gives every waiter the answer.
    pub(super) fn land(mut self, landed: &Landed) {
        for waiter in self.take() {
            // An asker that no longer waits is no fault.
            let _ = waiter.send(landed.clone());
        }
    }

    fn take(&mut self) -> Vec<oneshot::Sender<Landed>> {
        if std::mem::replace(&mut self.landed, true) {
            return vec![];
        }
        let mut board = lock(&self.board);
        let waiters = board.flights.remove(&self.key).unwrap_or_default();
        if let Some(waiting) = board.waiting.get_mut(&self.of) {
            *waiting = waiting.saturating_sub(waiters.len());
            if *waiting == 0 {
                board.waiting.remove(&self.of);
            }
        }
        waiters
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        drop(self.take());
    }
}

fn lock(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::tests::asked;
    use crate::message::Query;
    use crate::message::tests::query;
    use crate::split::Rule;
    use hickory_proto::rr::RecordType;

    fn key(name: &str) -> Key {
        Key::new(&Query::read(&query(1, name, 1)).expect("a query"), &Rule::default())
    }

    const A: &[ResolverId] = &[ResolverId(1)];

    #[test]
    fn a_flight_ends_once() {
        let flights = Flights::new(8);
        let failure = Ready::failure(&asked("a", RecordType::A), &[]).expect("short");
        let failure = Landed { ready: Arc::new(failure), by: Arc::default() };
        let (mut first, flight) = flights.join(&key("a"), 0, A).expect("room");
        let mut flight = flight.expect("the first");
        assert!(flights.join(&key("a"), 0, A).is_some_and(|(_, flight)| flight.is_none()));
        assert!(flights.join(&key("b"), 0, A).is_none(), "no room for one more");
        assert_eq!(flight.take().len(), 2);
        assert!(first.try_recv().is_err());

        let (mut second, next) = flights.join(&key("a"), 0, A).expect("room");
        drop(flight);
        assert!(second.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty));
        next.expect("asked again").land(&failure);
        assert!(second.try_recv().is_ok());
        assert!(lock(&flights.board).waiting.is_empty());
    }

    #[test]
    fn a_dead_resolver_leaves_room_for_others() {
        let [b, a_and_b, c_and_a] = [&[2][..], &[1, 2], &[3, 1]]
            .map(|set| set.iter().map(|id| ResolverId(*id)).collect::<Vec<_>>());
        let flights = Flights::new(16);
        let mut joined = Vec::new();
        let mut join = |of: &[ResolverId], same: bool| {
            let mut count = 0;
            loop {
                // One name, or each another.
                let name = if same { "a".to_owned() } else { format!("n{}", joined.len()) };
                let Some(flight) = flights.join(&key(&name), 0, of) else { return count };
                joined.push(flight);
                count += 1;
            }
        };
        assert_eq!(join(A, true), 4, "a quarter for the same");
        assert_eq!(join(&a_and_b, false), 4);
        assert_eq!(join(&c_and_a, false), 0, "half for one");
        assert_eq!(join(&b, false), 4, "and others have theirs");
        drop(joined);
        assert!(lock(&flights.board).waiting.is_empty());
        assert!(flights.join(&key("a"), 0, A).is_some());
    }

    #[test]
    fn an_epoch_does_not_join_another() {
        let flights = Flights::new(16);
        let old = flights.join(&key("a"), 0, A).expect("room");
        let new = flights.join(&key("a"), 1, A).expect("room");
        assert!(old.1.is_some() && new.1.is_some());
    }
}
