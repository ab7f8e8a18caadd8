//! An app's query, read from the wire without a copy, and the answers that need no server.
//!
//! The hit path reads a query in some tens of nanoseconds, so the few fields that matter
//! are read here; whole messages are hickory-proto's. RFC 1035 section 4, RFC 6891 (EDNS),
//! RFC 8914 (extended errors).

pub use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::name::{self, Text};

/// What we say we take over UDP, and the most that we send: fits any link of the Internet
/// unfragmented (DNS flag day 2020).
pub const UDP_SIZE: u16 = 1_232;

/// An answer over UDP to an app that said nothing about sizes (RFC 1035 section 4.2.1).
const PLAIN_UDP_SIZE: u16 = 512;

const HEADER: usize = 12;
const QUERY_RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const AUTHENTIC: u16 = 0x0020;
const CHECKING_DISABLED: u16 = 0x0010;
const DNSSEC_OK: u16 = 0x8000;

/// How an app asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Over {
    /// The answer has a length field of 16 bits.
    Tcp,
    /// The answer is cut at what the app said it takes.
    Udp,
}

/// An extended error (RFC 8914 section 4): its INFO-CODE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extended(pub u16);

impl Extended {
    /// The answer is older than its TTL (RFC 8767).
    pub const STALE: Self = Self(3);
    /// A rule says `using none`.
    pub const BLOCKED: Self = Self(15);
    /// Addresses were filtered out.
    pub const FILTERED: Self = Self(17);
    /// An NXDOMAIN that is older than its TTL.
    pub const STALE_NO_NAME: Self = Self(19);
    /// No server answered.
    pub const NO_REACHABLE: Self = Self(22);
}

/// Why bytes are no query to be resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// No answer at all: too short for a header, or itself an answer.
    Ignored,
    /// Answered with this code.
    Refused(ResponseCode),
}

/// What the app said of EDNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edns {
    size: u16,
    dnssec_ok: bool,
}

/// A query of an app that is to be resolved: one question of class IN.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    bytes: &'a [u8],
    flags: u16,
    /// Bytes of the question's name as the app wrote it.
    name_length: usize,
    name: Text,
    kind: RecordType,
    edns: Option<Edns>,
}

impl<'a> Query<'a> {
    /// Reads a query.
    ///
    /// # Errors
    /// [`Unfit`]; [`refuse`] makes its answer.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Unfit> {
        let malformed = Unfit::Refused(ResponseCode::FormErr);
        let flags = u16_at(bytes, 2).filter(|_| bytes.len() >= HEADER).ok_or(Unfit::Ignored)?;
        if flags & QUERY_RESPONSE != 0 {
            return Err(Unfit::Ignored);
        }
        if flags & OPCODE != 0 {
            return Err(Unfit::Refused(ResponseCode::NotImp));
        }
        let count = |at| u16_at(bytes, at).unwrap_or_default();
        if count(4) != 1 {
            return Err(malformed);
        }
        let (name, name_length) = Text::read(&bytes[HEADER..]).ok_or(malformed)?;
        let at = HEADER + name_length;
        let kind = u16_at(bytes, at).ok_or(malformed)?;
        let class = u16_at(bytes, at + 2).ok_or(malformed)?;
        match kind {
            // OPT, and the types of a transaction or transfer: TKEY, TSIG, IXFR, AXFR,
            // MAILB, MAILA; ANY by RFC 8482's leave.
            41 | 249..=255 => return Err(Unfit::Refused(ResponseCode::NotImp)),
            _ if class != 1 => return Err(Unfit::Refused(ResponseCode::Refused)),
            _ => {}
        }
        if count(6) != 0 || count(8) != 0 {
            return Err(malformed);
        }
        let edns = read_edns(bytes, at + 4, count(10))?;
        let kind = RecordType::from(kind);
        Ok(Self { bytes, flags, name_length, name, kind, edns })
    }

    /// The name asked, as the plan knows it.
    pub fn name(&self) -> &Text {
        &self.name
    }

    /// The name asked as the app wrote it.
    pub fn wire_name(&self) -> &'a [u8] {
        &self.bytes[HEADER..HEADER + self.name_length]
    }

    /// The type asked.
    pub fn kind(&self) -> RecordType {
        self.kind
    }

    /// Whether the app wants DNSSEC records (DO).
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// Whether the app wants no validation (CD).
    pub fn checking_disabled(&self) -> bool {
        self.flags & CHECKING_DISABLED != 0
    }

    /// Whether AD means something to the app (RFC 6840 section 5.7).
    fn authentic_wanted(&self) -> bool {
        self.flags & AUTHENTIC != 0 || self.dnssec_ok()
    }

    /// The id that the app chose.
    pub(crate) fn id(&self) -> u16 {
        u16_at(self.bytes, 0).unwrap_or_default()
    }

    /// The bytes behind the header that are the question.
    fn question(&self) -> &'a [u8] {
        &self.bytes[HEADER..HEADER + self.name_length + 4]
    }

    /// An answer without records.
    pub fn answer_empty(
        &self,
        code: ResponseCode,
        extended: &[Extended],
        over: Over,
        room: &mut Vec<u8>,
    ) {
        room.clear();
        room.extend_from_slice(&[0; HEADER]);
        room.extend_from_slice(self.question());
        let options = Options::new(extended);
        self.finish(code, false, [1, 0, 0, 0], options.as_bytes(), over, room);
    }

    /// Makes of `room`, a header and sections without OPT, the answer to this query: id,
    /// flags, the question as the app wrote it, OPT, and no longer than the app takes.
    /// `counts`: questions, answers, authorities, additionals. `options`: as in an OPT.
    pub(crate) fn finish(
        &self,
        code: ResponseCode,
        authentic: bool,
        counts: [u16; 4],
        options: &[u8],
        over: Over,
        room: &mut Vec<u8>,
    ) {
        let question_end = HEADER + self.name_length + 4;
        if room.len() < question_end {
            room.clear();
            return;
        }
        let mut flags = QUERY_RESPONSE | RECURSION_AVAILABLE | u16::from(code.low());
        flags |= self.flags & (RECURSION_DESIRED | CHECKING_DISABLED);
        if authentic && self.authentic_wanted() {
            flags |= AUTHENTIC;
        }
        room[HEADER..question_end].copy_from_slice(self.question());
        let opt = if self.edns.is_some() { 11 + options.len() } else { 0 };
        let mut counts = counts;
        if room.len() + opt > self.limit(over) {
            // The app asks again over TCP: RFC 2181 section 9 has it discard what we'd send.
            room.truncate(question_end);
            counts = [1, 0, 0, 0];
            flags |= TRUNCATED;
        }
        if let Some(edns) = self.edns {
            room.extend_from_slice(&[0, 0, 41]);
            room.extend_from_slice(&UDP_SIZE.to_be_bytes());
            room.extend_from_slice(&[code.high(), 0]);
            let edns_flags = if edns.dnssec_ok { DNSSEC_OK } else { 0 };
            room.extend_from_slice(&edns_flags.to_be_bytes());
            let length = u16::try_from(options.len()).unwrap_or_default();
            room.extend_from_slice(&length.to_be_bytes());
            room.extend_from_slice(&options[..usize::from(length)]);
            counts[3] += 1;
        }
        room[..2].copy_from_slice(&self.bytes[..2]);
        room[2..4].copy_from_slice(&flags.to_be_bytes());
        for (place, count) in room[4..HEADER].chunks_exact_mut(2).zip(counts) {
            place.copy_from_slice(&count.to_be_bytes());
        }
    }

    /// The most bytes of an answer.
    fn limit(&self, over: Over) -> usize {
        let limit = match over {
            Over::Tcp => u16::MAX,
            Over::Udp => {
                self.edns.map_or(PLAIN_UDP_SIZE, |edns| edns.size.clamp(PLAIN_UDP_SIZE, UDP_SIZE))
            }
        };
        usize::from(limit)
    }
}

/// The answer to bytes that [`Query::read`] refused with `code`: the header, and an OPT when
/// the code needs one. Nothing for bytes without a header.
pub fn refuse(bytes: &[u8], code: ResponseCode, room: &mut Vec<u8>) {
    room.clear();
    let (Some(id), Some(flags)) = (bytes.get(..2), u16_at(bytes, 2)) else { return };
    let flags = QUERY_RESPONSE
        | (flags & (OPCODE | RECURSION_DESIRED | CHECKING_DISABLED))
        | RECURSION_AVAILABLE
        | u16::from(code.low());
    room.extend_from_slice(id);
    room.extend_from_slice(&flags.to_be_bytes());
    room.extend_from_slice(&[0; 7]);
    room.push(u8::from(code.high() != 0));
    if code.high() != 0 {
        room.extend_from_slice(&[0, 0, 41]);
        room.extend_from_slice(&UDP_SIZE.to_be_bytes());
        room.extend_from_slice(&[code.high(), 0, 0, 0, 0, 0]);
    }
}

/// The answer to a query that could not be resolved: SERVFAIL, with its question, without which
/// some take it for another's. What is no query is refused as such.
pub fn fail(bytes: &[u8], over: Over, room: &mut Vec<u8>) {
    match Query::read(bytes) {
        Ok(query) => query.answer_empty(ResponseCode::ServFail, &[], over, room),
        Err(Unfit::Refused(code)) => refuse(bytes, code, room),
        Err(Unfit::Ignored) => room.clear(),
    }
}

/// The OPT among the `count` records at `at`. Other records of a query (TSIG, SIG(0)) mean
/// nothing to a forwarder and are skipped.
fn read_edns(bytes: &[u8], mut at: usize, count: u16) -> Result<Option<Edns>, Unfit> {
    let malformed = Unfit::Refused(ResponseCode::FormErr);
    let mut edns = None;
    for _ in 0..count {
        let end = name::end(bytes, at).ok_or(malformed)?;
        let field = |offset| u16_at(bytes, end + offset).ok_or(malformed);
        let length = usize::from(field(8)?);
        if field(0)? == 41 {
            // RFC 6891 section 6.1.1: one OPT, its name the root.
            if edns.is_some() || end != at + 1 {
                return Err(malformed);
            }
            let version = field(4)? & 0xff;
            if version != 0 {
                return Err(Unfit::Refused(ResponseCode::BADVERS));
            }
            edns = Some(Edns { size: field(2)?, dnssec_ok: field(6)? & DNSSEC_OK != 0 });
        }
        at = end + 10 + length;
        if at > bytes.len() {
            return Err(malformed);
        }
    }
    Ok(edns)
}

/// Extended errors as options of an OPT, without their text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options(smallvec::SmallVec<[u8; 12]>);

impl Options {
    /// At most four, none twice.
    pub(crate) fn new(extended: &[Extended]) -> Self {
        let mut options = Self::default();
        for (position, error) in extended.iter().take(4).enumerate() {
            if !extended[..position].contains(error) {
                options.0.extend_from_slice(&[0, 15, 0, 2]);
                options.0.extend_from_slice(&error.0.to_be_bytes());
            }
        }
        options
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests;
