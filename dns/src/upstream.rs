//! The servers of one resolver, and how they are asked.
//!
//! A question goes to one server at a time, in written order, those last that have failed;
//! each has a while to answer, then the next one is asked too, and the first
//! good answer is taken, a late one included. What a server or the kernel refuses moves on at
//! once; when nobody is left the question has failed. A pool never asks a server that is not its
//! own, and an encrypted server is never asked in the clear.
//!
//! An answer is good that is NXDOMAIN, or NOERROR and no referral. Any other is given only when no server has a
//! better one: it may say why.
//!
//! Over UDP: a connected socket with a port from the kernel's CSPRNG, a random id, and letters in
//! random case, until a server has lost the case three times; EDNS with 1,232 bytes, until a
//! server does not know it; TCP for what is cut short.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;
use smallvec::SmallVec;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

pub use self::fault::{Failure, Fault, Try};
pub use self::health::State;
use self::remote::Remote;
use crate::own::OwnQueries;
use crate::server::{Endpoint, Server, Transport};
use crate::socket::{Target, Way};
use crate::tls::{Credentials, Trust, TrustError};

mod fault;
mod health;
mod remote;
mod stream;
#[cfg(test)]
mod tests;
mod udp;
mod wire;

/// Questions that are open at one resolver at once.
const MOST_OPEN: usize = 4096;
/// Longer no question is kept open.
pub const LONGEST: Duration = Duration::from_millis(4500);
/// What a UDP server may take before another is asked too, or the same again; twice that in the
/// next round.
const PATIENCE: Duration = Duration::from_millis(400);
/// The same for a connection, which may have to be opened: three round trips.
const PATIENCE_TO_CONNECT: Duration = Duration::from_millis(1200);
/// What fits into any path's packets (DNS flag day 2020).
const PAYLOAD: u16 = 1232;

/// What a resolver is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// In the order of asking.
    pub servers: Vec<Server>,
    /// For those that are encrypted.
    pub trust: Trust,
}

/// Why a resolver can't be.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Its servers can't be trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A server's name has to be asked of a server with an address, and there is none.
    #[error("`{server}` has a name, and no other server has an address to ask for it")]
    NobodyKnows {
        /// The server.
        server: Box<Server>,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Trust(error) => error.help(),
            Self::NobodyKnows { server } => Some(format!("write \"{server}#ADDRESS\"")),
        }
    }
}

/// An answer and where it came from.
#[derive(Debug, Clone)]
pub struct Reply {
    /// As it came, but for the id and the question, which are the query's.
    pub message: Message,
    /// Who answered.
    pub server: SocketAddr,
    /// How.
    pub transport: Transport,
    /// From the question to the answer.
    pub took: Duration,
}

/// The servers of one resolver.
pub struct Pool {
    settings: Settings,
    way: Arc<dyn Way>,
    remotes: Vec<Arc<Remote>>,
    room: Semaphore,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("settings", &self.settings)
            .field("way", &self.way)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Sets up the servers; connects to none.
    ///
    /// # Errors
    /// The files of its trust are at fault, or a server's name can't be asked.
    pub fn new(settings: Settings, way: Arc<dyn Way>) -> Result<Self, ConfigError> {
        Self::watched(settings, way, &OwnQueries::default())
    }

    /// The same; what it asks over UDP is registered in `own`, so that a loop is seen.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn watched(
        settings: Settings,
        way: Arc<dyn Way>,
        own: &OwnQueries,
    ) -> Result<Self, ConfigError> {
        let servers = &settings.servers;
        if servers.iter().all(|server| server.address().is_none())
            && let Some(server) = servers.first()
        {
            return Err(ConfigError::NobodyKnows { server: Box::new(server.clone()) });
        }
        let encrypted = servers.iter().any(|server| server.transport.is_encrypted());
        // Files that are named are read, used or not: what is wrong with them is said now.
        let named = settings.trust != Trust::default();
        let credentials =
            (encrypted || named).then(|| Credentials::load(&settings.trust)).transpose()?;
        let remotes = servers
            .iter()
            .map(|server| Ok(Arc::new(Remote::new(server, &way, own, credentials.as_ref())?)))
            .collect::<Result<_, TrustError>>()?;
        Ok(Self { settings, way, remotes, room: Semaphore::new(MOST_OPEN) })
    }

    /// What it was made from.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its servers in the order of asking, and what was last seen of each.
    pub fn servers(&self) -> impl Iterator<Item = (&Server, State)> {
        self.remotes.iter().map(|remote| (&*remote.server, remote.state()))
    }

    /// Where its servers are, as far as that is known without asking.
    pub fn places(&self) -> impl Iterator<Item = Target> {
        self.remotes.iter().filter_map(|remote| {
            let address = remote.server.address().or_else(|| remote.known_address())?;
            Some(Target { address, device: remote.server.device.clone() })
        })
    }

    /// Whether its servers are reached through a tunnel.
    pub fn is_tunnel(&self) -> bool {
        self.way.is_tunnel()
    }

    /// The way out has changed: sockets and connections are given up, and the dead are alive.
    pub fn reset(&self) {
        for remote in &self.remotes {
            remote.reset();
        }
    }

    /// Asks a query with one question. Its id, its payload size and the case of its letters are
    /// not what is sent; DO, CD, AD, RD and the options of its OPT are.
    ///
    /// # Errors
    /// No server has answered within `limit`, or within [`LONGEST`].
    pub async fn ask(&self, query: &Message, limit: Duration) -> Result<Reply, Failure> {
        let Some(asked) = Asked::new(query) else { return Err(failure(&[], &Fault::Garbage)) };
        let Ok(_room) = self.room.try_acquire() else {
            return Err(failure(&self.remotes, &Fault::Busy));
        };
        self.ask_some(&Arc::new(asked), &self.remotes, limit.min(LONGEST)).await
    }

    async fn ask_some(
        &self,
        asked: &Arc<Asked>,
        remotes: &[Arc<Remote>],
        limit: Duration,
    ) -> Result<Reply, Failure> {
        let started = Instant::now();
        let deadline = started + limit;
        let mut turns = Turns::new(remotes, started);
        let mut open = FuturesUnordered::new();
        // Who was asked last, and when: what if nothing comes.
        let mut last: Option<(usize, Instant)> = None;
        let mut best: Option<Reply> = None;
        for (index, remote) in remotes.iter().enumerate() {
            if turns.wants_probe(index) {
                self.probe(asked, remote);
            }
        }
        let mut next = started;
        loop {
            // What is still open is a question to a server that has failed to another.
            if !turns.any_left() {
                break;
            }
            // Not by the timer below, which has milliseconds.
            let now = Instant::now();
            if now >= next {
                if let Some((index, since)) = last {
                    remotes[index].silent(since);
                }
                let Some((index, patience)) = turns.next() else { break };
                let (of, remote, asked) = (self, &remotes[index], &asked);
                open.push(async move { (index, of.attempt(remote, asked).await) });
                last = Some((index, now));
                next = now + patience;
            }
            tokio::select! {
                biased;
                Some((index, result)) = open.next(), if !open.is_empty() => {
                    let index: usize = index;
                    let remote = &remotes[index];
                    match result {
                        Ok(answer) => {
                            let answer: remote::Answer = answer;
                            let reply = Reply {
                                message: answer.message,
                                server: answer.server,
                                transport: answer.transport,
                                took: started.elapsed(),
                            };
                            if is_good(&reply.message) {
                                return Ok(reply);
                            }
                            best.get_or_insert(reply);
                            turns.spent(index, None);
                        }
                        Err(fault) => {
                            remote.failed(&fault);
                            turns.spent(index, Some(fault));
                        }
                    }
                    // The one waited for was not silent, and the next is asked at once.
                    if last.is_some_and(|(waited_for, _)| waited_for == index) {
                        (next, last) = (Instant::now(), None);
                    }
                }
                () = sleep_until(next.min(deadline)) => {
                    if Instant::now() < deadline {
                        continue;
                    }
                    if let Some((index, since)) = last {
                        remotes[index].silent(since);
                    }
                    break;
                }
            }
        }
        drop(open);
        best.ok_or_else(|| turns.failure())
    }

    /// One server, until it answers or fails.
    async fn attempt(&self, remote: &Remote, asked: &Asked) -> Result<remote::Answer, Fault> {
        let address = match &remote.server.endpoint {
            Endpoint::Address(address) => *address,
            Endpoint::Named { host, port } => {
                if let Some(address) = remote.known_address() {
                    address
                } else {
                    let (address, ttl) = self.look_up(host).await?;
                    remote.learn_address(SocketAddr::new(address, *port), ttl)
                }
            }
        };
        remote.ask(address, asked).await
    }

    /// The address of one of our own servers, asked of those of them that have one.
    async fn look_up(&self, host: &str) -> Result<(std::net::IpAddr, Duration), Fault> {
        let known: Vec<Arc<Remote>> = self
            .remotes
            .iter()
            .filter(|remote| remote.server.address().is_some())
            .cloned()
            .collect();
        for question in remote::host_questions(host).ok_or(Fault::NoAddress)? {
            let asked = Arc::new(Asked::new(&question).ok_or(Fault::NoAddress)?);
            // Each of the two has a part of the time; the recursion ends here, at addresses.
            let answer = Box::pin(self.ask_some(&asked, &known, LONGEST / 3)).await;
            if let Ok(reply) = answer
                && let Some(found) = remote::first_address(&reply.message)
            {
                return Ok(found);
            }
        }
        Err(Fault::NoAddress)
    }

    /// Asks a dead server the same as the others, to learn whether it is back.
    fn probe(&self, asked: &Arc<Asked>, remote: &Arc<Remote>) {
        let Some(address) = remote.server.address().or_else(|| remote.known_address()) else {
            return;
        };
        let (remote, asked) = (Arc::clone(remote), Arc::clone(asked));
        tokio::spawn(async move {
            // An answer marks it alive by itself.
            let _ = timeout(LONGEST, remote.ask(address, &asked)).await;
        });
    }
}

/// Each server's faults, and whose turn it is.
struct Turns<'a> {
    remotes: &'a [Arc<Remote>],
    order: SmallVec<[usize; 4]>,
    spent: SmallVec<[bool; 4]>,
    faults: SmallVec<[Option<Fault>; 4]>,
    probes: SmallVec<[bool; 4]>,
    at: usize,
}

impl<'a> Turns<'a> {
    fn new(remotes: &'a [Arc<Remote>], now: Instant) -> Self {
        let alive: SmallVec<[bool; 4]> = remotes.iter().map(|remote| remote.is_alive()).collect();
        let all = || 0..remotes.len();
        let order: SmallVec<[usize; 4]> =
            all().filter(|i| alive[*i]).chain(all().filter(|i| !alive[*i])).collect();
        let any_alive = alive.contains(&true);
        // Without anybody alive the dead are asked anyway.
        let probes = remotes
            .iter()
            .zip(&alive)
            .map(|(remote, alive)| any_alive && !alive && remote.wants_probe(now))
            .collect();
        Self {
            remotes,
            order,
            spent: smallvec::smallvec![false; remotes.len()],
            faults: smallvec::smallvec![None; remotes.len()],
            probes,
            at: 0,
        }
    }

    fn wants_probe(&self, index: usize) -> bool {
        self.probes[index]
    }

    fn any_left(&self) -> bool {
        self.spent.contains(&false)
    }

    /// A server has failed, or has answered what is worth no more than that.
    fn spent(&mut self, index: usize, fault: Option<Fault>) {
        self.spent[index] = true;
        self.faults[index] = fault;
    }

    /// Who is next, and how long before somebody else is.
    fn next(&mut self) -> Option<(usize, Duration)> {
        for _ in 0..self.order.len() {
            let round = self.at / self.order.len();
            let index = self.order[self.at % self.order.len()];
            self.at += 1;
            if !self.spent[index] {
                let patience = match self.remotes[index].server.transport {
                    Transport::Udp => PATIENCE,
                    Transport::Tcp | Transport::Tls | Transport::Https | Transport::Quic => {
                        PATIENCE_TO_CONNECT
                    }
                };
                return Some((index, patience * (1 << round.min(4))));
            }
        }
        None
    }

    fn failure(self) -> Failure {
        let asked = self.at.min(self.order.len());
        let tries = self.order[..asked]
            .iter()
            .map(|&index| Try {
                server: Arc::clone(&self.remotes[index].server),
                fault: self.faults[index].clone().unwrap_or(Fault::TimedOut),
            })
            .collect();
        Failure { tries }
    }
}

/// A query, ready to be sent.
struct Asked {
    message: Message,
    bytes: Vec<u8>,
    question_end: usize,
}

impl Asked {
    fn new(query: &Message) -> Option<Self> {
        let mut message = query.clone();
        message.metadata.id = 0;
        message.metadata.message_type = MessageType::Query;
        message.metadata.op_code = OpCode::Query;
        message.edns.get_or_insert_with(Edns::new).set_max_payload(PAYLOAD);
        let bytes = message.to_vec().ok()?;
        let question_end = wire::question_end(&bytes)?;
        Some(Self { message, bytes, question_end })
    }

    /// The same for a server that does not know EDNS.
    fn without_edns(&self) -> Option<Self> {
        let mut message = self.message.clone();
        message.edns = None;
        let bytes = message.to_vec().ok()?;
        Some(Self { message, bytes, question_end: self.question_end })
    }
}

/// Whether an answer ends the search. A referral doesn't: that server does not recurse.
fn is_good(message: &Message) -> bool {
    let code = message.response_code;
    let has = |kind| message.authorities.iter().any(|record| record.record_type() == kind);
    let nothing = message.answers.is_empty() && !message.recursion_available;
    let referral = nothing && has(RecordType::NS) && !has(RecordType::SOA);
    code == ResponseCode::NXDomain || code == ResponseCode::NoError && !referral
}

fn failure(remotes: &[Arc<Remote>], fault: &Fault) -> Failure {
    let tries = remotes
        .iter()
        .map(|remote| Try { server: Arc::clone(&remote.server), fault: fault.clone() })
        .collect();
    Failure { tries }
}
