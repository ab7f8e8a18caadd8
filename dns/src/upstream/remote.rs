//! One server: what is known of it, and one question to it.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::time::Instant;

use super::fault::Fault;
use super::health::{Failed, Health, State};
use super::stream::{Connection, Tls};
use super::udp::{Came, Udp};
use super::{Asked, is_good};
use crate::own::OwnQueries;
use crate::server::{Endpoint, Server, Transport};
use crate::socket::{Target, Way};
use crate::tls::{Credentials, TrustError};

/// Answers in a row without the case of the question after which a server is taken for one that
/// does not keep it. Each was on a port of its own: nobody guesses three.
const CASE_LOST: u8 = 3;
/// How long a server is asked without EDNS before it is tried again: another one may be there by
/// then, and whoever has forged the one answer has not changed everything.
pub(super) const NO_EDNS_LIVES: Duration = Duration::from_secs(300);
/// Connections to one server at once: four times what one carries.
const CONNECTIONS: usize = 4;
/// A server's own address is asked again after this at the soonest, and at the latest.
const ADDRESS_LIVES: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(86_400));

/// One server.
pub(super) struct Remote {
    pub(super) server: Arc<Server>,
    udp: Option<Udp>,
    /// The first one alone, until it is full.
    connections: [Connection; CONNECTIONS],
    health: Mutex<Health>,
    /// Until then it is taken for one that does not know EDNS.
    no_edns: Mutex<Option<Instant>>,
    case_lost: AtomicU8,
    address: Mutex<Option<(SocketAddr, Instant)>>,
}

/// An answer of one server.
pub(super) struct Answer {
    pub(super) message: Message,
    pub(super) server: SocketAddr,
    pub(super) transport: Transport,
}

impl Remote {
    pub(super) fn new(
        server: &Server,
        way: &Arc<dyn Way>,
        own: &OwnQueries,
        credentials: Option<&Credentials>,
    ) -> Result<Self, TrustError> {
        let tls = match (&server.name, credentials) {
            (Some(name), Some(credentials)) if server.transport.is_encrypted() => {
                let (config, verdict) = credentials.config()?;
                Some(Tls { config, verdict, name: Arc::clone(name) })
            }
            _ => None,
        };
        let udp = match (server.transport, &server.endpoint) {
            (Transport::Udp, Endpoint::Address(address)) => {
                let target = Target { address: *address, device: server.device.clone() };
                Some(Udp::new(Arc::clone(way), target, own.clone()))
            }
            _ => None,
        };
        Ok(Self {
            server: Arc::new(server.clone()),
            udp,
            connections: std::array::from_fn(|_| {
                Connection::new(Arc::clone(way), server, server.transport, tls.clone())
            }),
            health: Mutex::default(),
            no_edns: Mutex::default(),
            case_lost: AtomicU8::new(0),
            address: Mutex::default(),
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        self.health().is_alive()
    }

    pub(super) fn state(&self) -> State {
        self.health().state()
    }

    pub(super) fn wants_probe(&self, now: Instant) -> bool {
        self.health().wants_probe(now.into_std())
    }

    /// A question has failed there.
    pub(super) fn failed(&self, fault: &Fault) {
        if *fault != Fault::Busy {
            self.health().failed(Failed::Told, std::time::Instant::now());
            *lock(&self.address) = None;
        }
    }

    /// A question asked `since` has no answer yet.
    pub(super) fn silent(&self, since: Instant) {
        self.health().failed(Failed::Silent(since.into_std()), std::time::Instant::now());
        self.connections.iter().for_each(|connection| connection.silent(since));
    }

    pub(super) fn reset(&self) {
        if let Some(udp) = &self.udp {
            udp.reset();
        }
        self.connections.iter().for_each(Connection::reset);
        *self.health() = Health::default();
        *lock(&self.address) = None;
        *lock(&self.no_edns) = None;
        self.case_lost.store(0, Ordering::Relaxed);
    }

    /// Of a server with a name: its address, while that lives.
    pub(super) fn known_address(&self) -> Option<SocketAddr> {
        let known = *lock(&self.address);
        known.filter(|(_, until)| Instant::now() < *until).map(|(address, _)| address)
    }

    pub(super) fn learn_address(&self, address: SocketAddr, ttl: Duration) -> SocketAddr {
        let (least, most) = ADDRESS_LIVES;
        *lock(&self.address) = Some((address, Instant::now() + ttl.clamp(least, most)));
        address
    }

    /// Asks, and waits as long as it is polled.
    pub(super) async fn ask(&self, address: SocketAddr, asked: &Asked) -> Result<Answer, Fault> {
        let plain;
        let mut asked = asked;
        let with_edns = lock(&self.no_edns).is_none_or(|until| Instant::now() >= until);
        if !with_edns {
            plain = asked.without_edns().ok_or(Fault::Garbage)?;
            asked = &plain;
        }
        let answer = self.ask_once(address, asked).await?;
        if with_edns && knows_no_edns(&answer.message) {
            // RFC 6891 7: it may know the query without.
            let plain = asked.without_edns().ok_or(Fault::Garbage)?;
            let again = self.ask_once(address, &plain).await?;
            if is_good(&again.message) {
                *lock(&self.no_edns) = Some(Instant::now() + NO_EDNS_LIVES);
            }
            return Ok(again);
        }
        Ok(answer)
    }

    async fn ask_once(&self, address: SocketAddr, asked: &Asked) -> Result<Answer, Fault> {
        let answer = match &self.udp {
            Some(udp) => self.ask_udp(udp, address, asked).await?,
            None => self.ask_connected(address, asked).await?,
        };
        self.health().answered(std::time::Instant::now());
        Ok(answer)
    }

    async fn ask_udp(
        &self,
        udp: &Udp,
        address: SocketAddr,
        asked: &Asked,
    ) -> Result<Answer, Fault> {
        loop {
            let turn_case = self.case_lost.load(Ordering::Relaxed) < CASE_LOST;
            match udp.ask(&asked.bytes, asked.question_end, turn_case).await {
                Ok(Came::Answer(bytes)) => {
                    if turn_case {
                        self.case_lost.store(0, Ordering::Relaxed);
                    }
                    let message = Message::from_vec(&bytes).map_err(|_| Fault::Garbage)?;
                    if message.truncation {
                        return self.ask_connected(address, asked).await;
                    }
                    let message = checked(message, asked)?;
                    return Ok(Answer { message, server: address, transport: Transport::Udp });
                }
                Ok(Came::CaseLost) => {
                    // Forged, or of a server that does not keep it: TCP has the truth.
                    self.case_lost.fetch_add(1, Ordering::Relaxed);
                    if let Ok(answer) = self.ask_connected(address, asked).await {
                        return Ok(answer);
                    }
                }
                Err(Fault::Forged) => return self.ask_connected(address, asked).await,
                Err(fault) => return Err(fault),
            }
        }
    }

    async fn ask_connected(&self, address: SocketAddr, asked: &Asked) -> Result<Answer, Fault> {
        let [first, ..] = &self.connections;
        let connection = self.connections.iter().find(|c| c.has_room()).unwrap_or(first);
        let answer = connection.ask(address, &asked.message).await;
        let answer = answer.and_then(|message| checked(message, asked));
        if answer == Err(Fault::Garbage) {
            // Whoever says what was not asked may go on with it for ever.
            connection.reset();
        }
        let message = answer?;
        if message.truncation {
            // Nothing is left that could carry the whole.
            return Err(Fault::Garbage);
        }
        let transport = match self.server.transport {
            Transport::Udp | Transport::Tcp => Transport::Tcp,
            encrypted @ (Transport::Tls | Transport::Https | Transport::Quic) => encrypted,
        };
        Ok(Answer { message, server: address, transport })
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        lock(&self.health)
    }
}

/// The answer to this query, its names in the query's case.
fn checked(mut message: Message, asked: &Asked) -> Result<Message, Fault> {
    let question = asked.message.queries.first().ok_or(Fault::Garbage)?;
    let fits = match &*message.queries {
        // hickory compares names without their case.
        [one] => one == question,
        [] => message.response_code != ResponseCode::NoError,
        _ => false,
    };
    if !fits || message.message_type != MessageType::Response {
        return Err(Fault::Garbage);
    }
    message.queries = asked.message.queries.clone();
    for record in &mut message.answers {
        if record.name == *question.name() {
            record.name = question.name().clone();
        }
    }
    Ok(message)
}

/// RFC 6891 6.1.3 and 7: FORMERR or NOTIMP of those who have never heard of it, BADVERS. Who has
/// heard of it answers with an OPT (6.1.1), and means something else.
fn knows_no_edns(answer: &Message) -> bool {
    let code = answer.response_code;
    let refuses = code == ResponseCode::FormErr || code == ResponseCode::NotImp;
    // Its number is BADSIG's too, as which hickory reads it.
    let bad_version = u16::from(code) == u16::from(ResponseCode::BADVERS);
    refuses && answer.edns.is_none() || bad_version
}

/// What to ask for the addresses of a host.
pub(super) fn host_questions(host: &str) -> Option<[Message; 2]> {
    let mut name = Name::from_ascii(host).ok()?;
    name.set_fqdn(true);
    Some([RecordType::A, RecordType::AAAA].map(|kind| {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name.clone(), kind));
        message
    }))
}

/// The first address of an answer, and its TTL.
pub(super) fn first_address(answer: &Message) -> Option<(IpAddr, Duration)> {
    answer.answers.iter().find_map(|record| {
        #[expect(clippy::wildcard_enum_match_arm, reason = "another crate's, and it grows")]
        let address = match &record.data {
            RData::A(address) => IpAddr::V4(address.0),
            RData::AAAA(address) => IpAddr::V6(address.0),
            _ => return None,
        };
        Some((address, Duration::from_secs(record.ttl.into())))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
