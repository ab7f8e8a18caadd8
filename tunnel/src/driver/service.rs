//! The far side that is no socket: a DNS resolver on the shard's own thread.
//!
//! A [`Service`] is asked one message at a time and must not block. What it knows it answers
//! at once, and the answer goes back in the same turn. For the rest it says [`Asked::Later`],
//! hands the question on, and whoever finds the answer gives it to [`Handle::reply`].
//!
//! A datagram is a message. Over TCP (RFC 7766) each message is led by its length in two
//! bytes; questions may follow each other unanswered, and answers come in any order. A
//! connection has at most [`OPEN`] open questions and [`OUTBOX`] bytes of answers that its
//! asker has not read; beyond that it is not read either, so that the asker's window closes.
//! Where all of them together hold more than [`OUTBOXES`] such bytes, whoever leaves its
//! answers unread is reset.
//! When the asker has ended its half, what is open is still answered, and then the
//! connection ends.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use engine::{Engine, Failure, FlowId, Input, Instant, Learned, ResolverSet};

use crate::device::Device;
use crate::driver::Driver;
#[cfg(doc)]
use crate::driver::Handle;
use crate::rings::Pool;

/// What answers the messages of flows to [`engine::Services::resolver`].
pub trait Service: fmt::Debug + Send {
    /// Takes one message, of any bytes and at least [`HEADER`] of them. Called on the shard's
    /// thread, whose packets wait meanwhile: it must not block. `room` is empty and gets the
    /// answer, a whole DNS message without a length in front. A panic ends the asking flow.
    fn ask(&mut self, asker: Asker, query: &[u8], names: &dyn Names, room: &mut Vec<u8>) -> Asked;
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The answer is in the room.
    Answered,
    /// A [`Reply`] with the asker's flow and ticket will come.
    Later,
    /// There will be no answer: the message is no question, or there are too many.
    Refused,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The shard: its [`Handle`] takes the reply.
    pub shard: usize,
    /// The flow.
    pub flow: FlowId,
    /// The question's number, for the reply.
    pub ticket: u32,
    /// How it came.
    pub over: Over,
    /// The app's address as its packets carry it.
    pub client: SocketAddr,
    /// Whom the app asked.
    pub destination: SocketAddr,
}

/// How a message came, and its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Over {
    /// As a datagram: the service keeps its answer to what the asker takes and sets TC where
    /// that cuts it.
    Udp,
    /// In a connection: up to 65,535 bytes.
    Tcp,
}

/// An answer that comes later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// [`Asker::flow`].
    pub flow: FlowId,
    /// [`Asker::ticket`].
    pub ticket: u32,
    /// The answer, as in [`Service::ask`]; empty: there will be none.
    pub bytes: Vec<u8>,
    /// What this shard is to know before the app has the answer. Where there are other shards
    /// they are told first ([`Request::Learn`](crate::driver::request::Request::Learn)).
    pub learned: Option<Arc<[Learned]>>,
}

/// What the shard knows of names.
pub trait Names {
    /// Whether each of these addresses was last asked for under that name, and told by those
    /// resolvers, and the name still counts: then an answer that says so teaches the shard
    /// nothing.
    fn is_newest(&self, name: &str, addresses: &[(IpAddr, ResolverSet)]) -> bool;
}

struct Known<'a> {
    engine: &'a Engine,
    now: Instant,
}

impl Names for Known<'_> {
    fn is_newest(&self, name: &str, addresses: &[(IpAddr, ResolverSet)]) -> bool {
        self.engine.is_newest(name, addresses, self.now)
    }
}

/// Bytes of a DNS message's header (RFC 1035 4.1.1): the least that can be asked.
pub const HEADER: usize = 12;
/// Open questions of one connection.
pub const OPEN: usize = 64;
/// Bytes of answers that a connection's asker has not read, beside those in its ring. The last
/// answer may exceed it.
pub const OUTBOX: usize = 64 * 1024;
/// Bytes of answers that nobody has read, of all connections of a shard.
pub const OUTBOXES: usize = 16 * 1024 * 1024;
/// Questions of a connection that are asked before others have their turn.
const ASKS: usize = 64;
/// Bytes taken from a connection's ring at once.
const INBOX: usize = 16 * 1024;
/// Late answers taken before others have their turn.
const REPLIES: usize = 256;

/// The connections to the service, by their flows' places.
#[derive(Debug, Default)]
pub(super) struct Conversations {
    all: Vec<Option<Box<Conversation>>>,
    /// Bytes in all outboxes, as far as they are counted.
    held: usize,
    /// The last ticket.
    ticket: u32,
    /// One query and one answer; kept for their allocations.
    query: Vec<u8>,
    room: Vec<u8>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Conversation {
    id: FlowId,
    /// What came and was not asked, from `read` on.
    inbox: Vec<u8>,
    read: usize,
    /// Answers with their lengths, which the ring has no room for.
    outbox: VecDeque<u8>,
    /// Its bytes that [`Conversations::held`] counts.
    counted: usize,
    /// Tickets of open questions.
    open: Vec<u32>,
    /// The asker has ended its half.
    ended: bool,
    /// Our half is over as well.
    over: bool,
}

/// What a turn of a connection came to.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// There is more to do at once.
    pub(super) more: bool,
    /// What the engine is to be told.
    pub(super) over: Option<Input>,
}

/// What the inbox holds next.
#[derive(Debug, PartialEq, Eq)]
enum Frame {
    /// A message is in there.
    Whole(std::ops::Range<usize>),
    /// Not a whole one.
    Partial,
    /// No message has that length.
    Garbage,
}

impl Conversations {
    /// A flow's connection.
    pub(super) fn of(&mut self, id: FlowId) -> Option<&mut Conversation> {
        self.all.get_mut(id.slot())?.as_deref_mut().filter(|it| it.id == id)
    }

    fn begin(&mut self, id: FlowId) {
        if self.all.len() <= id.slot() {
            self.all.resize_with(id.slot() + 1, || None);
        }
        let begun = Box::new(Conversation::new(id));
        if let Some(before) = self.all[id.slot()].replace(begun) {
            self.held -= before.counted;
        }
    }

    /// Forgets a flow's connection.
    pub(super) fn end(&mut self, id: FlowId) {
        if self.of(id).is_some()
            && let Some(ended) = self.all[id.slot()].take()
        {
            self.held -= ended.counted;
        }
    }

    /// Counts what a flow's outbox holds now.
    fn recount(&mut self, id: FlowId) {
        let held = self.held;
        let Some(conversation) = self.of(id) else { return };
        let others = held - conversation.counted;
        conversation.counted = conversation.outbox.len();
        self.held = others + conversation.counted;
    }
}

impl Conversation {
    fn new(id: FlowId) -> Self {
        Self {
            id,
            inbox: Vec::new(),
            read: 0,
            outbox: VecDeque::new(),
            counted: 0,
            open: Vec::new(),
            ended: false,
            over: false,
        }
    }

    /// The asker will ask nothing more.
    pub(super) fn asker_ended(&mut self) {
        self.ended = true;
    }

    /// Whether another question may be asked.
    fn may_ask(&self) -> bool {
        self.open.len() < OPEN && self.outbox.len() < OUTBOX
    }

    /// Takes the next message off the inbox.
    fn frame(&mut self) -> Frame {
        let rest = &self.inbox[self.read..];
        let Some((&[high, low], rest)) = rest.split_first_chunk() else { return Frame::Partial };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < HEADER {
            return Frame::Garbage;
        }
        if rest.len() < length {
            return Frame::Partial;
        }
        let start = self.read + 2;
        self.read = start + length;
        Frame::Whole(start..self.read)
    }

    /// Fetches bytes from the ring; whether there were any.
    fn fetch(&mut self, engine: &mut Engine, now: Instant) -> bool {
        self.inbox.drain(..self.read);
        self.read = 0;
        if self.inbox.is_empty() {
            self.inbox.shrink_to(INBOX);
        }
        let inbox = &mut self.inbox;
        let fetched = engine.with_app_data(self.id, now, |data| {
            let lent = data.len().min(INBOX);
            inbox.extend_from_slice(&data[..lent]);
            (lent, ())
        });
        fetched.is_some()
    }

    fn answer(&mut self, bytes: &[u8]) {
        // An answer that has no length is none.
        if let Ok(length) = u16::try_from(bytes.len())
            && length > 0
        {
            self.outbox.extend(&length.to_be_bytes());
            self.outbox.extend(bytes);
        }
    }

    /// Closes a question; whether it was open.
    fn close(&mut self, ticket: u32) -> bool {
        let before = self.open.len();
        self.open.retain(|open| *open != ticket);
        self.open.len() < before
    }

    /// Moves answers to the ring, as many as it has room for.
    fn write(&mut self, engine: &mut Engine, now: Instant) {
        while !self.outbox.is_empty() {
            let (front, _) = self.outbox.as_slices();
            let written = engine.with_room(self.id, now, |room| {
                let lent = room.len().min(front.len());
                room[..lent].copy_from_slice(&front[..lent]);
                (lent, lent)
            });
            let Some(written) = written else { return };
            self.outbox.drain(..written);
        }
        self.outbox.shrink_to(INBOX);
    }
}

impl<D: Device> Driver<D> {
    /// Becomes the far side of a connection.
    pub(super) fn join_service(&mut self, id: FlowId, now: Instant) -> Input {
        if self.service.is_none() {
            return Input::Failed(id, Failure::Refused);
        }
        match self.rings_for(id, Pool::take_least, now) {
            Some(rings) => {
                self.conversations.begin(id);
                Input::Connected(id, 0, rings)
            }
            None => Input::Failed(id, Failure::Exhausted),
        }
    }

    /// Has the service answer the datagrams that wait for it.
    pub(super) fn serve_queries(&mut self, now: Instant) {
        let Conversations { ticket, query, room, .. } = &mut self.conversations;
        let Some(service) = &mut self.service else { return };
        while let Some(flow) = self.sockets.next_query(query) {
            self.engine.carry(Some(flow));
            if query.len() < HEADER {
                continue;
            }
            // A flow ends between its datagram and this only by a panic.
            let Some((client, destination)) = self.engine.ends(flow) else { continue };
            *ticket = ticket.wrapping_add(1);
            let (shard, over) = (self.shard, Over::Udp);
            let asker = Asker { shard, flow, ticket: *ticket, over, client, destination };
            room.clear();
            let names = Known { engine: &self.engine, now };
            match service.ask(asker, query, &names, room) {
                Asked::Answered => {
                    self.engine.handle_answer(flow, room, now, &mut self.sockets);
                }
                Asked::Later => self.engine.await_answer(flow, now),
                Asked::Refused => {}
            }
        }
    }

    /// Moves a connection's messages both ways.
    pub(super) fn converse(&mut self, id: FlowId, now: Instant) -> Turn {
        let mut turn = self.exchange(id, now);
        self.conversations.recount(id);
        let too_much = self.conversations.held > OUTBOXES;
        if let Some(conversation) = self.conversations.of(id)
            && too_much
            && !conversation.outbox.is_empty()
        {
            conversation.outbox = VecDeque::new();
            conversation.over = true;
            turn = Turn { more: false, over: Some(Input::FarFailed(id, Failure::Exhausted)) };
            self.conversations.recount(id);
        }
        turn
    }

    fn exchange(&mut self, id: FlowId, now: Instant) -> Turn {
        let mut turn = Turn::default();
        let Some(service) = &mut self.service else { return turn };
        let Conversations { all, ticket, room, .. } = &mut self.conversations;
        let conversation = all.get_mut(id.slot()).and_then(Option::as_deref_mut);
        let Some(conversation) = conversation.filter(|it| it.id == id && !it.over) else {
            return turn;
        };
        let Some((client, destination)) = self.engine.ends(id) else { return turn };
        let mut asks = 0;
        let mut waits_for_more = false;
        conversation.write(&mut self.engine, now);
        while conversation.may_ask() {
            match conversation.frame() {
                Frame::Whole(message) => {
                    *ticket = ticket.wrapping_add(1);
                    let (shard, over) = (self.shard, Over::Tcp);
                    let asker =
                        Asker { shard, flow: id, ticket: *ticket, over, client, destination };
                    room.clear();
                    let names = Known { engine: &self.engine, now };
                    match service.ask(asker, &conversation.inbox[message], &names, room) {
                        Asked::Answered => conversation.answer(room),
                        Asked::Later => conversation.open.push(*ticket),
                        Asked::Refused => {}
                    }
                    conversation.write(&mut self.engine, now);
                    asks += 1;
                    if asks == ASKS {
                        turn.more = true;
                        return turn;
                    }
                }
                Frame::Partial => {
                    if !conversation.fetch(&mut self.engine, now) {
                        waits_for_more = true;
                        break;
                    }
                }
                Frame::Garbage => {
                    conversation.over = true;
                    turn.over = Some(Input::FarFailed(id, Failure::Reset));
                    return turn;
                }
            }
        }
        let answered = conversation.open.is_empty() && conversation.outbox.is_empty();
        if conversation.ended && waits_for_more && answered {
            conversation.over = true;
            turn.over = Some(Input::FarEnded(id));
        }
        turn
    }

    /// Takes answers that came later.
    pub(super) fn take_replies(&mut self, now: Instant) {
        self.more_replies = true;
        for _ in 0..REPLIES {
            let Ok(reply) = self.replies.try_recv() else {
                self.more_replies = false;
                break;
            };
            self.guard(now, |driver| driver.take_reply(&reply, now));
        }
        self.answer(now);
    }

    fn take_reply(&mut self, reply: &Reply, now: Instant) {
        let Reply { flow, ticket, bytes, learned } = reply;
        self.engine.carry(Some(*flow));
        if let Some(learned) = learned {
            self.engine.learn(learned, now);
        }
        if let Some(conversation) = self.conversations.of(*flow) {
            if conversation.close(*ticket) && !conversation.over {
                conversation.answer(bytes);
                self.engine.mark_dirty(*flow);
            }
            return self.conversations.recount(*flow);
        }
        if !bytes.is_empty() {
            self.engine.handle_answer(*flow, bytes, now, &mut self.sockets);
        }
        self.engine.close_question(*flow, now);
    }
}
