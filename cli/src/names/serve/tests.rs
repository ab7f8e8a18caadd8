//! Answers and shards that learn of them, late or not at all.

use std::net::SocketAddr;
use std::sync::Mutex;

use engine::FlowId;
use engine::policy::Policy;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tunnel::driver::service::Over;

use super::*;
use crate::config::Config;
use crate::names::standin::{Server, question};
use crate::names::{Names, QUEUE, Waiting};

/// What a shard does with what it is to learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// It does.
    Learns,
    /// It takes it and never gets to it.
    Hangs,
    /// It is at too much else to take it.
    Busy,
    /// It is over.
    Gone,
}

#[derive(Clone)]
struct Pupil {
    number: usize,
    manner: Arc<Mutex<Manner>>,
    /// Names in the order in which it learned them.
    knows: Arc<Mutex<Vec<String>>>,
    /// What it never got to.
    waits: Arc<Mutex<Vec<Request>>>,
    replies: UnboundedSender<(usize, Reply)>,
}

impl Shard for Pupil {
    fn ask(&self, request: Request) -> Result<(), Unasked> {
        match *self.manner.lock().expect("no panic") {
            Manner::Learns => {
                let Request::Learn { learned, answer } = request else { panic!("{request:?}") };
                let names = learned.iter().map(|learned| learned.name.to_string());
                self.knows.lock().expect("no panic").extend(names);
                answer(());
                Ok(())
            }
            Manner::Hangs => {
                self.waits.lock().expect("no panic").push(request);
                Ok(())
            }
            Manner::Busy => Err(Unasked::Busy),
            Manner::Gone => Err(Unasked::Gone),
        }
    }

    fn reply(&self, reply: Reply) -> Result<(), Unasked> {
        self.replies.send((self.number, reply)).expect("the test listens");
        Ok(())
    }
}

const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

/// The code of an answer, which there always is, with its question.
fn code(reply: &Reply) -> u8 {
    assert!(reply.bytes.len() > 12 && reply.bytes[5] == 1, "{:?}", reply.bytes);
    reply.bytes[3] & 15
}

/// Two shards, whose questions are answered of a server of their own.
struct School {
    runtime: Runtime,
    queue: Sender<Query>,
    shards: [Pupil; 2],
    replies: UnboundedReceiver<(usize, Reply)>,
    tickets: u32,
    _server: Option<Server>,
}

impl School {
    fn start() -> Self {
        let server =
            Server::start(&[("one.example", [203, 0, 113, 1]), ("two.example", [203, 0, 113, 2])]);
        let school = Self::asking(server.address);
        Self { _server: Some(server), ..school }
    }

    fn asking(server: SocketAddr) -> Self {
        let plain = dns::server::Server::plain(server);
        let mut config = Config::default();
        config.dns.upstream = Some(vec![plain]);
        let policy = Arc::new(Policy::allow_all());
        let waiting = Waiting::new(&config, &policy, None).expect("nothing can be wrong");
        let Waiting { names: Names { resolver, queue, .. }, queries, runtime } = waiting;
        let (sender, replies) = unbounded_channel();
        let shards = [0, 1].map(|number| Pupil {
            number,
            manner: Arc::new(Mutex::new(Manner::Learns)),
            knows: Arc::default(),
            waits: Arc::default(),
            replies: sender.clone(),
        });
        let told = Told { servers: Arc::clone(&resolver), events: None };
        runtime.spawn(serve(resolver, queries, shards.to_vec(), told));
        Self { runtime, queue, shards, replies, tickets: 0, _server: None }
    }

    fn becomes(&self, shard: usize, manner: Manner) {
        *self.shards[shard].manner.lock().expect("no panic") = manner;
    }

    fn knows(&self, shard: usize) -> Vec<String> {
        std::mem::take(&mut *self.shards[shard].knows.lock().expect("no panic"))
    }

    /// A question of shard 0, and its ticket.
    fn question(&mut self, name: &str) -> Query {
        self.tickets += 1;
        let end = SocketAddr::from(([198, 18, 0, 1], 5353));
        let asker = Asker {
            shard: 0,
            flow: FlowId::from_bits(7),
            ticket: self.tickets,
            over: Over::Udp,
            client: end,
            destination: end,
        };
        Query { asker, bytes: question(name), since: std::time::Instant::now() }
    }

    /// What comes of a question, and after how long.
    fn ask(&mut self, name: &str) -> (Reply, Duration) {
        let question = self.question(name);
        let (ticket, began) = (question.asker.ticket, Instant::now());
        self.queue.try_send(question).expect("room");
        let replies = &mut self.replies;
        let reply = async { timeout(Duration::from_secs(5), replies.recv()).await };
        let (shard, reply) =
            self.runtime.block_on(reply).expect("in time").expect("a shard is there");
        assert_eq!((shard, reply.ticket), (0, ticket), "{name}");
        (reply, began.elapsed())
    }
}

#[test]
fn no_answer_is_released_that_a_shard_does_not_know_of() {
    for (manner, released) in [
        (Manner::Learns, true),
        (Manner::Hangs, false),
        (Manner::Busy, false),
        // One that has ended judges nothing any more.
        (Manner::Gone, true),
    ] {
        let mut school = School::start();
        school.becomes(1, manner);
        for name in ["one.example", "one.example", "two.example"] {
            // From a server, from the cache, and another.
            let (reply, took) = school.ask(name);
            assert_eq!(code(&reply), if released { 0 } else { SERVFAIL }, "{manner:?}: {name}");
            assert_eq!(reply.learned, None, "several shards learn before: {manner:?}");
            let waited = if released { took < PATIENCE } else { took >= PATIENCE };
            assert!(waited && took < 2 * PATIENCE, "{manner:?}: {name}: {took:?}");
            assert_eq!(school.knows(0), [name], "{manner:?}");
        }
        // What tells no address needs nobody to know.
        let (reply, took) = school.ask("no.example");
        assert!(code(&reply) == NXDOMAIN && took < PATIENCE, "{manner:?}: {took:?}");

        school.knows(1);
        school.becomes(1, Manner::Learns);
        for name in ["one.example", "two.example"] {
            let (reply, took) = school.ask(name);
            assert!(code(&reply) == 0 && took < PATIENCE, "{manner:?}, later: {took:?}");
            assert_eq!((school.knows(0), school.knows(1)), (vec![name.into()], vec![name.into()]));
        }
    }
}

#[test]
fn answers_that_wait_are_bounded() {
    const MORE: usize = 1_000;
    let mut school = School::start();
    assert_eq!(code(&school.ask("one.example").0), 0);
    school.becomes(1, Manner::Hangs);
    let all = OPEN + MORE;
    let began = Instant::now();
    let questions: Vec<Query> = (0..all).map(|_| school.question("one.example")).collect();
    let queue = school.queue.clone();
    school.runtime.block_on(async {
        let mut taken = 0;
        for question in questions {
            queue.send(question).await.expect("it is served");
            taken += 1;
            if taken % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
        // All that can be answered at once is by now, and waits for the shard.
        sleep(PATIENCE / 4).await;
    });
    assert!(began.elapsed() < PATIENCE, "a machine too slow for this test");
    let waits = QUEUE - queue.capacity();
    assert!(waits >= MORE - BATCH - 1 && waits < all, "{waits} are not taken on");
    assert!(school.replies.try_recv().is_err(), "none is released");

    // The batch that was under way is lost, and what has waited as long as that; what comes behind
    // them isn't.
    school.becomes(1, Manner::Learns);
    let (mut released, mut lost) = (0, 0);
    school.runtime.block_on(async {
        for _ in 0..all {
            let next = timeout(Duration::from_secs(5), school.replies.recv()).await;
            let (_, reply) = next.expect("in time").expect("a shard is there");
            match code(&reply) {
                0 => released += 1,
                SERVFAIL => lost += 1,
                other => panic!("{other}"),
            }
        }
    });
    assert!((1..=OPEN + BATCH).contains(&lost) && released == all - lost, "{released} and {lost}");
    assert!(began.elapsed() < 3 * PATIENCE, "they do not wait one behind the other");
}

/// Time that a question has waited in a queue counts.
#[test]
fn five_seconds_are_five_from_the_question_on() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let mut school = School::asking(silent.local_addr().expect("its address"));
    let waited = Duration::from_secs(4);
    let mut question = school.question("silent.example");
    question.since -= waited;
    let began = Instant::now();
    school.queue.try_send(question).expect("room");
    let replies = &mut school.replies;
    let reply = async { timeout(Duration::from_secs(5), replies.recv()).await };
    let (_, reply) = school.runtime.block_on(reply).expect("in time").expect("a shard");
    assert_eq!(code(&reply), SERVFAIL);
    assert!(began.elapsed() + waited < Duration::from_secs(5), "{:?}", began.elapsed());
}
