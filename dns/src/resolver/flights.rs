//! Questions in flight: equal ones are asked once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use tokio::sync::oneshot;

use crate::cache::Key;
use crate::ready::Ready;

/// Gets the answer; an error when the question was given up.
pub(super) type Waiter = oneshot::Receiver<Arc<Ready>>;

/// So many askers for each question that may be in flight, on average.
const WAITERS: usize = 4;

#[derive(Debug)]
pub(super) struct Flights {
    board: Arc<Mutex<Board>>,
    most: usize,
}

#[derive(Debug, Default)]
struct Board {
    flights: HashMap<(Key, u64), Vec<oneshot::Sender<Arc<Ready>>>, RandomState>,
    waiting: usize,
}

/// A question in flight. Dropped without an answer, its waiters get none.
#[derive(Debug)]
pub(super) struct Flight {
    key: (Key, u64),
    board: Arc<Mutex<Board>>,
    /// The key may be another flight's by now.
    landed: bool,
}

impl Flights {
    /// At most `most` different questions.
    pub(super) fn new(most: usize) -> Self {
        Self { board: Arc::default(), most }
    }

    /// Waits for the answer to a question, of this epoch of the cache. With a [`Flight`]:
    /// the caller is to ask it. None: too much in flight.
    pub(super) fn join(&self, key: &Key, epoch: u64) -> Option<(Waiter, Option<Flight>)> {
        let mut board = lock(&self.board);
        let board = &mut *board;
        if board.waiting >= self.most * WAITERS {
            return None;
        }
        let count = board.flights.len();
        let (answer, waiter) = oneshot::channel();
        let flight = match board.flights.entry((key.clone(), epoch)) {
            Entry::Occupied(mut flight) => {
                flight.get_mut().push(answer);
                None
            }
            Entry::Vacant(_) if count >= self.most => return None,
            Entry::Vacant(flight) => {
                let key = flight.key().clone();
                flight.insert(vec![answer]);
                Some(Flight { key, board: Arc::clone(&self.board), landed: false })
            }
        };
        board.waiting += 1;
        Some((waiter, flight))
    }
}

impl Flight {
    /// Gives every waiter the answer.
    pub(super) fn land(mut self, ready: &Arc<Ready>) {
        for waiter in self.take() {
            // An asker that no longer waits is no fault.
            let _ = waiter.send(Arc::clone(ready));
        }
    }

    fn take(&mut self) -> Vec<oneshot::Sender<Arc<Ready>>> {
        if std::mem::replace(&mut self.landed, true) {
            return vec![];
        }
        let mut board = lock(&self.board);
        let waiters = board.flights.remove(&self.key).unwrap_or_default();
        board.waiting -= waiters.len();
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

    #[test]
    fn a_flight_ends_once() {
        let flights = Flights::new(1);
        let failure = Ready::failure(&asked("a", RecordType::A), &[]).expect("short");
        let failure = Arc::new(failure);
        let (mut first, flight) = flights.join(&key("a"), 0).expect("room");
        let mut flight = flight.expect("the first");
        assert!(flights.join(&key("b"), 0).is_none(), "no room for another question");
        assert!(flights.join(&key("a"), 0).is_some_and(|(_, flight)| flight.is_none()));
        assert_eq!(flight.take().len(), 2);
        assert!(first.try_recv().is_err());

        let (mut second, next) = flights.join(&key("a"), 0).expect("room");
        drop(flight);
        assert!(second.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty));
        next.expect("asked again").land(&failure);
        assert!(second.try_recv().is_ok());
        assert_eq!(lock(&flights.board).waiting, 0);
    }

    #[test]
    fn those_who_wait_are_bounded() {
        let flights = Flights::new(2);
        let mut joined: Vec<_> = (0..2 * WAITERS).map(|_| flights.join(&key("a"), 0)).collect();
        assert!(joined.iter().all(Option::is_some));
        assert!(flights.join(&key("a"), 0).is_none());
        let (_, flight) = joined.swap_remove(0).expect("room");
        drop(flight);
        assert!(flights.join(&key("a"), 0).is_some());
    }

    #[test]
    fn an_epoch_does_not_join_another() {
        let flights = Flights::new(9);
        let old = flights.join(&key("a"), 0).expect("room");
        let new = flights.join(&key("a"), 1).expect("room");
        assert!(old.1.is_some() && new.1.is_some());
    }
}
