//! An answer that is ready for anyone who asks: the wire message, with the places of its
//! TTLs. Giving it is a copy and a few patches.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, Query as Asked, ResponseCode};

use crate::answer::Answer;
use crate::ask::{Question, ResolverSet};
use crate::message::{Extended, Options, Over, Query, u16_at, u32_at};
use crate::name;
use crate::query::Kind;

/// A stale answer's TTL (RFC 8767 section 5), in seconds.
pub(crate) const STALE_TTL: u32 = 30;

/// A failure is asked about again after this (RFC 9520 section 3.2: at least 1 s).
const FAILURE_TTL: u32 = 1;

/// A name and the addresses that its answer gave, for the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The name asked, never a CNAME target: lower case, no last dot.
    pub name: Arc<str>,
    /// Each address once, with the resolvers that gave it.
    pub addresses: Vec<(IpAddr, ResolverSet)>,
}

/// How old an answer is when it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    /// Within its TTL: so many seconds of it have gone.
    Fresh(u32),
    /// Past it, because the servers fail.
    Stale,
}

/// A ready answer.
#[derive(Debug)]
pub(crate) struct Ready {
    /// Id and flags zero, the question in lower case, no OPT.
    wire: Box<[u8]>,
    /// Where the TTLs are.
    ttls: Box<[u16]>,
    code: ResponseCode,
    authentic: bool,
    options: Options,
    counts: [u16; 3],
    /// How long it holds, in seconds.
    pub(crate) ttl: u32,
    pub(crate) kind: Kind,
    /// None without addresses.
    pub(crate) known: Option<Arc<Known>>,
}

impl Ready {
    /// Makes an answer ready. None: it is longer than a message can be.
    pub(crate) fn new(answer: Answer, question: &Question, name: &str) -> Option<Self> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.add_query(Asked::query(question.name.clone(), question.kind));
        message.answers = answer.answers;
        message.authorities = answer.authorities;
        let wire = message.to_vec().ok()?;
        if u16_at(&wire, 2)? & 0x0200 != 0 {
            return None;
        }
        let known = (!answer.addresses.is_empty())
            .then(|| Arc::new(Known { name: name.into(), addresses: answer.addresses }));
        Some(Self {
            ttls: ttls(&wire)?,
            counts: [u16_at(&wire, 4)?, u16_at(&wire, 6)?, u16_at(&wire, 8)?],
            wire: wire.into_boxed_slice(),
            code: answer.code,
            authentic: answer.authentic,
            options: Options::new(&answer.extended),
            ttl: answer.ttl,
            kind: answer.kind,
            known,
        })
    }

    /// SERVFAIL.
    pub(crate) fn failure(question: &Question, extended: &[Extended]) -> Option<Self> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.add_query(Asked::query(question.name.clone(), question.kind));
        Some(Self {
            wire: message.to_vec().ok()?.into_boxed_slice(),
            ttls: Box::new([]),
            code: ResponseCode::ServFail,
            authentic: false,
            options: Options::new(extended),
            counts: [1, 0, 0],
            ttl: FAILURE_TTL,
            kind: Kind::Failed,
            known: None,
        })
    }

    /// Writes the answer to `query`, which asks this question, into `room`.
    pub(crate) fn write(&self, query: &Query<'_>, over: Over, age: Age, room: &mut Vec<u8>) {
        room.clear();
        room.extend_from_slice(&self.wire);
        for place in &self.ttls {
            let at = usize::from(*place);
            let ttl = match age {
                Age::Fresh(gone) => u32_at(room, at).unwrap_or_default().saturating_sub(gone),
                Age::Stale => STALE_TTL,
            };
            if let Some(place) = room.get_mut(at..at + 4) {
                place.copy_from_slice(&ttl.to_be_bytes());
            }
        }
        let [questions, answers, authorities] = self.counts;
        let counts = [questions, answers, authorities, 0];
        let finish = |options: &Options, room: &mut Vec<u8>| {
            let options = options.as_bytes();
            query.finish(self.code, self.authentic, counts, options, over, room);
        };
        match age {
            Age::Fresh(_) => finish(&self.options, room),
            Age::Stale if self.kind == Kind::NoName => {
                finish(&Options::new(&[Extended::STALE_NO_NAME]), room);
            }
            Age::Stale => finish(&Options::new(&[Extended::STALE]), room),
        }
    }

    /// Bytes on the heap, about.
    pub(crate) fn size(&self) -> usize {
        let known = self.known.as_ref().map_or(0, |known| {
            64 + known.name.len() + known.addresses.capacity() * size_of::<(IpAddr, ResolverSet)>()
        });
        size_of::<Self>() + self.wire.len() + 2 * self.ttls.len() + known
    }
}

/// Where the TTLs of a message's records are.
fn ttls(wire: &[u8]) -> Option<Box<[u16]>> {
    let mut at = name::end(wire, 12)? + 4;
    let count: u32 = [6, 8].iter().filter_map(|at| u16_at(wire, *at)).map(u32::from).sum();
    let mut ttls = Vec::with_capacity(usize::try_from(count).ok()?);
    for _ in 0..count {
        let end = name::end(wire, at)?;
        ttls.push(u16::try_from(end + 4).ok()?);
        at = end + 10 + usize::from(u16_at(wire, end + 8)?);
    }
    Some(ttls.into_boxed_slice())
}
