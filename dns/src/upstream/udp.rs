//! Questions and answers over UDP with one server.
//!
//! A socket here carries a few questions and lives a second, so that its source port says little
//! to somebody who wants to guess the next one; under load that is a hundredth of a socket a
//! question. Each socket has a task that reads it. An answer is one whose id, question and case
//! are those of an open question; everything else is dropped and counted, and a socket with too
//! many strangers' answers is given up (RFC 5452 9).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use hashbrown::HashMap;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::fault::Fault;
use super::wire::{self, Fit, HEADER};
use crate::own::OwnQueries;
use crate::socket::{Datagrams, Target, Way};

/// Questions that one socket carries in its life.
const MOST_ASKED: u32 = 128;
/// Questions that are open on one socket at once.
const MOST_OPEN: usize = 32;
/// How long a socket takes new questions.
const LIFE: Duration = Duration::from_secs(1);
/// Datagrams on one socket that answer nothing. A network that sends each twice stays below;
/// somebody who guesses ids has had a chance of 1 in 256, the letters' case aside.
const MOST_STRAYS: u32 = 256;
/// More than the 1,232 bytes that our queries allow.
const ROOM: usize = 4096;
/// Datagrams read before others have their turn.
const TURN: u32 = 64;

/// What came of a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// Its answer, the question in it as it was given to us.
    Answer(Vec<u8>),
    /// An answer whose question has lost the case of its letters.
    CaseLost,
}

/// One server's sockets.
#[derive(Debug)]
pub(crate) struct Udp {
    way: Arc<dyn Way>,
    target: Target,
    own: OwnQueries,
    ports: Arc<Mutex<Vec<Arc<Port>>>>,
}

impl Udp {
    pub(crate) fn new(way: Arc<dyn Way>, target: Target, own: OwnQueries) -> Self {
        Self { way, target, own, ports: Arc::default() }
    }

    /// Gives up all sockets: the way has changed.
    pub(crate) fn reset(&self) {
        lock(&self.ports).clear();
    }

    /// Asks, and waits for the answer as long as it is polled. The caller sets no id.
    ///
    /// # Errors
    /// What the kernel knows of the server, or that forgers are at work.
    pub(crate) async fn ask(
        &self,
        query: &[u8],
        question_end: usize,
        turn_case: bool,
    ) -> Result<Came, Fault> {
        let mut asked = query.to_vec();
        if turn_case {
            wire::turn_case(&mut asked, question_end, &rand::random());
        }
        let port = self.port()?;
        let (answer, waits) = oneshot::channel();
        let _closes = port.open(&mut asked, question_end, answer);
        let _ours = self.own.sent(&asked);
        match port.datagrams.try_send(&asked) {
            Ok(()) => {}
            // As lost as any other: it will be asked again.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // It may be the answer to an earlier one, taken from the reader.
                let fault = Fault::from(&error);
                port.give_up(&fault, &self.ports);
                return Err(fault);
            }
        }
        match waits.await {
            Ok(Ok(Came::Answer(mut bytes))) => {
                // Names that point to the question get its case back with it.
                if bytes.len() >= question_end && bytes[4..6] == [0, 1] {
                    bytes[HEADER..question_end].copy_from_slice(&query[HEADER..question_end]);
                }
                Ok(Came::Answer(bytes))
            }
            Ok(came) => came,
            Err(_) => Err(Fault::Closed),
        }
    }

    /// A socket with room for one more question.
    fn port(&self) -> Result<Arc<Port>, Fault> {
        let mut ports = lock(&self.ports);
        let now = Instant::now();
        ports.retain(|port| port.takes(now));
        if let Some(port) = ports.iter().find(|port| lock(&port.open).waiting.len() < MOST_OPEN) {
            return Ok(Arc::clone(port));
        }
        let datagrams = self.way.bind_udp(&self.target).map_err(|error| Fault::from(&error))?;
        let port = Arc::new(Port {
            datagrams: Arc::clone(&datagrams),
            until: now + LIFE,
            open: Mutex::default(),
            reader: OnceLock::new(),
        });
        let reader = read(datagrams, Arc::downgrade(&port), Arc::clone(&self.ports));
        // Set once, here.
        let _ = port.reader.set(tokio::spawn(reader).abort_handle());
        ports.push(Arc::clone(&port));
        Ok(port)
    }
}

/// One socket. It ends when no list and no question holds it.
#[derive(Debug)]
struct Port {
    datagrams: Arc<dyn Datagrams>,
    until: Instant,
    open: Mutex<Open>,
    reader: OnceLock<AbortHandle>,
}

#[derive(Debug, Default)]
struct Open {
    waiting: HashMap<u16, Waiting, foldhash::fast::RandomState>,
    asked: u32,
    strays: u32,
    given_up: bool,
}

#[derive(Debug)]
struct Waiting {
    /// Which question of this socket it is: ids come again.
    number: u32,
    /// Header and question as they were sent.
    question: Box<[u8]>,
    answer: oneshot::Sender<Result<Came, Fault>>,
}

impl Port {
    fn takes(&self, now: Instant) -> bool {
        let open = lock(&self.open);
        now < self.until && open.asked < MOST_ASKED && !open.given_up
    }

    /// Opens a question: gives it an id that no other has here.
    fn open(
        &self,
        asked: &mut [u8],
        question_end: usize,
        answer: oneshot::Sender<Result<Came, Fault>>,
    ) -> Closes<'_> {
        let mut open = lock(&self.open);
        open.asked += 1;
        let number = open.asked;
        let id = loop {
            let id = rand::random();
            if !open.waiting.contains_key(&id) {
                break id;
            }
        };
        wire::set_id(asked, id);
        let question = asked[..question_end].into();
        open.waiting.insert(id, Waiting { number, question, answer });
        Closes { port: self, id, number }
    }

    /// Takes a datagram. `Err`: too many are nobody's.
    fn deliver(&self, datagram: &[u8]) -> Result<(), Fault> {
        let mut open = lock(&self.open);
        let id = wire::id(datagram);
        let fit = id.and_then(|id| open.waiting.get(&id)).map_or(Fit::Other, |waiting| {
            wire::fit(&waiting.question, waiting.question.len(), datagram)
        });
        let came = match fit {
            Fit::Same => Came::Answer(datagram.to_vec()),
            Fit::CaseLost => Came::CaseLost,
            Fit::Other => {
                open.strays += 1;
                return if open.strays < MOST_STRAYS { Ok(()) } else { Err(Fault::Forged) };
            }
        };
        if let Some(waiting) = id.and_then(|id| open.waiting.remove(&id)) {
            // Who asked may be gone.
            let _ = waiting.answer.send(Ok(came));
        }
        Ok(())
    }

    /// All open questions fail.
    fn give_up(self: &Arc<Self>, fault: &Fault, ports: &Mutex<Vec<Arc<Self>>>) {
        let waiting = {
            let mut open = lock(&self.open);
            open.given_up = true;
            std::mem::take(&mut open.waiting)
        };
        for (_, waiting) in waiting {
            let _ = waiting.answer.send(Err(fault.clone()));
        }
        lock(ports).retain(|port| !Arc::ptr_eq(port, self));
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.get() {
            reader.abort();
        }
    }
}

/// Closes a question that is answered, or that nobody waits for any more.
struct Closes<'a> {
    port: &'a Port,
    id: u16,
    number: u32,
}

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        let mut open = lock(&self.port.open);
        if open.waiting.get(&self.id).is_some_and(|waiting| waiting.number == self.number) {
            open.waiting.remove(&self.id);
        }
    }
}

/// Reads a socket until it fails or is dropped.
async fn read(datagrams: Arc<dyn Datagrams>, port: Weak<Port>, ports: Arc<Mutex<Vec<Arc<Port>>>>) {
    let mut room = vec![0; ROOM];
    let mut life = std::pin::pin!(sleep_until(Instant::now() + LIFE));
    let mut retired = false;
    loop {
        for _ in 0..TURN {
            let Some(port) = port.upgrade() else { return };
            let fault = match datagrams.try_recv(&mut room) {
                Ok(length) => match port.deliver(&room[..length]) {
                    Ok(()) => continue,
                    Err(fault) => fault,
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => Fault::from(&error),
            };
            port.give_up(&fault, &ports);
            return;
        }
        tokio::select! {
            ready = datagrams.ready() => if let Err(error) = ready {
                if let Some(port) = port.upgrade() {
                    port.give_up(&Fault::from(&error), &ports);
                }
                return;
            },
            // Open questions keep it; new ones find another.
            () = &mut life, if !retired => {
                retired = true;
                let this = port.as_ptr();
                lock(&ports).retain(|port| !std::ptr::eq(Arc::as_ptr(port), this));
            }
        }
        tokio::task::coop::consume_budget().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
