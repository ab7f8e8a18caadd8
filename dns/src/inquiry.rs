//! A question that somebody asks by hand, and an answer to be read: names, types and data as
//! zone files write them (RFC 1035 section 5.1; RFC 3597 section 5 for what is not known).
#![expect(clippy::wildcard_enum_match_arm, reason = "record types are an open set")]

use std::fmt::Write as _;
use std::net::IpAddr;
use std::str::FromStr as _;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, RecordType};
use thiserror::Error;

use crate::ask::Question;
use crate::message::u16_at;

/// Why nothing can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unaskable {
    /// No type has this name.
    #[error("no such type")]
    UnknownType,
    /// ANY, OPT, and the types of a transfer or transaction are not resolved.
    #[error("this type is not resolved")]
    NotResolved,
    /// DNS has no such name.
    #[error("no name of DNS")]
    NoName,
}

/// A question for a name and a type as they are written: `AAAA`, `aaaa`, `TYPE28`.
///
/// # Errors
/// There is no such question, or none that a resolver answers.
pub fn question(name: &str, kind: &str) -> Result<Question, Unaskable> {
    let kind = kind.to_ascii_uppercase();
    let number = kind.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok());
    let kind = match number {
        Some(number) => RecordType::from(number),
        None => RecordType::from_str(&kind).map_err(|_| Unaskable::UnknownType)?,
    };
    if matches!(u16::from(kind), 0 | 41 | 249..=255) {
        return Err(Unaskable::NotResolved);
    }
    let mut name = Name::from_ascii(name).map_err(|_| Unaskable::NoName)?.to_lowercase();
    name.set_fqdn(true);
    Ok(Question { name, kind, dnssec_ok: false, checking_disabled: false })
}

/// The name that stands for an address (RFC 1035 section 3.5, RFC 3596 section 2.5).
pub fn reverse(address: IpAddr) -> String {
    Name::from(address).to_ascii().trim_end_matches('.').to_owned()
}

/// A type's name.
pub fn type_name(kind: RecordType) -> String {
    match kind {
        RecordType::Unknown(number) => format!("TYPE{number}"),
        RecordType::ZERO => "TYPE0".to_owned(),
        kind => kind.to_string(),
    }
}

/// A response code's name (IANA's table of DNS RCODEs).
pub fn code_name(code: ResponseCode) -> String {
    match u16::from(code) {
        0 => "NOERROR".to_owned(),
        1 => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        4 => "NOTIMP".to_owned(),
        5 => "REFUSED".to_owned(),
        6 => "YXDOMAIN".to_owned(),
        7 => "YXRRSET".to_owned(),
        8 => "NXRRSET".to_owned(),
        9 => "NOTAUTH".to_owned(),
        10 => "NOTZONE".to_owned(),
        16 => "BADVERS".to_owned(),
        23 => "BADCOOKIE".to_owned(),
        other => format!("RCODE{other}"),
    }
}

/// What an answer says, to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its response code.
    pub code: ResponseCode,
    /// The server says that it validated.
    pub authentic: bool,
    /// The records of the answer section.
    pub records: Vec<SeenRecord>,
    /// Extended errors (RFC 8914): INFO-CODE and EXTRA-TEXT.
    pub extended: Vec<(u16, String)>,
}

/// One record, to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRecord {
    /// Whose, without the last dot but for the root.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// Seconds.
    pub ttl: u32,
    /// What it says.
    pub data: String,
}

impl Seen {
    /// Of a message.
    pub fn of(message: &Message) -> Self {
        let records = message.answers.iter().map(|record| SeenRecord {
            name: without_dot(record.name.to_ascii()),
            kind: type_name(record.record_type()),
            ttl: record.ttl,
            data: data(&record.data),
        });
        let options = message.edns.iter().flat_map(|edns| edns.options().as_ref());
        let extended = options.filter_map(|(code, option)| match (code, option) {
            (EdnsCode::Unknown(15), EdnsOption::Unknown(_, data)) => {
                let text = String::from_utf8_lossy(data.get(2..).unwrap_or_default());
                u16_at(data, 0).map(|code| (code, text.trim_end_matches('\0').to_owned()))
            }
            _ => None,
        });
        Self {
            code: message.response_code,
            authentic: message.metadata.authentic_data,
            records: records.collect(),
            extended: extended.collect(),
        }
    }

    /// Of a message on the wire; None: it is none.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Message::from_vec(bytes).ok().map(|message| Self::of(&message))
    }
}

fn without_dot(name: String) -> String {
    match name.strip_suffix('.') {
        Some(front) if !front.is_empty() => front.to_owned(),
        Some(_) | None => name,
    }
}

fn data(data: &RData) -> String {
    let bytes = match data {
        RData::Unknown { rdata, .. } => Some(&*rdata.anything),
        RData::NULL(null) => Some(&*null.anything),
        _ => None,
    };
    let mut text = String::new();
    if let Some(bytes) = bytes {
        let _ = write!(text, "\\# {}", bytes.len());
        for (at, byte) in bytes.iter().enumerate() {
            let space = if at == 0 { " " } else { "" };
            let _ = write!(text, "{space}{byte:02x}");
        }
        return text;
    }
    // Some have no text: what they have written so far is all that there is.
    let _ = write!(text, "{data}");
    text
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{MessageType, OpCode};
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, NULL, TXT};

    use super::*;

    #[test]
    fn questions_as_they_are_written() {
        for (name, kind, expected) in [
            ("www.example", "A", Ok(("www.example.", 1))),
            ("WWW.Example.", "aaaa", Ok(("www.example.", 28))),
            ("example", "TYPE28", Ok(("example.", 28))),
            ("example", "type65400", Ok(("example.", 65_400))),
            ("example", "https", Ok(("example.", 65))),
            (".", "NS", Ok((".", 2))),
            ("example", "TYPE65536", Err(Unaskable::UnknownType)),
            ("example", "TYPE", Err(Unaskable::UnknownType)),
            ("example", "B", Err(Unaskable::UnknownType)),
            ("example", "", Err(Unaskable::UnknownType)),
            ("example", "ANY", Err(Unaskable::NotResolved)),
            ("example", "AXFR", Err(Unaskable::NotResolved)),
            ("example", "TYPE41", Err(Unaskable::NotResolved)),
            ("example", "TYPE0", Err(Unaskable::NotResolved)),
            ("a..b", "A", Err(Unaskable::NoName)),
        ] {
            let asked = question(name, kind);
            let asked = asked.map(|asked| (asked.name.to_ascii(), u16::from(asked.kind)));
            let expected = expected.map(|(name, kind)| (name.to_owned(), kind));
            assert_eq!(asked, expected, "{name} {kind}");
        }
    }

    #[test]
    fn the_names_of_addresses() {
        for (address, expected) in [
            ("192.0.2.1", "1.2.0.192.in-addr.arpa"),
            (
                "2001:db8::1",
                "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            ),
        ] {
            assert_eq!(reverse(address.parse().unwrap()), expected);
        }
    }

    #[test]
    fn answers_to_be_read() {
        let name = Name::from_ascii("www.example.").unwrap();
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.metadata.authentic_data = true;
        let unknown =
            RData::Unknown { code: RecordType::Unknown(65_400), rdata: NULL::with(vec![1, 0xab]) };
        for data in [
            RData::A(A::new(192, 0, 2, 1)),
            RData::TXT(TXT::new(vec!["a b".to_owned()])),
            RData::NULL(NULL::with(vec![0])),
            unknown,
        ] {
            message.add_answer(Record::from_rdata(name.clone(), 300, data));
        }
        let seen = Seen::of(&message);
        assert_eq!((seen.code, seen.authentic), (ResponseCode::NoError, true));
        let told: Vec<_> = seen
            .records
            .iter()
            .map(|r| format!("{} {} {} {}", r.name, r.ttl, r.kind, r.data))
            .collect();
        assert_eq!(
            told,
            [
                "www.example 300 A 192.0.2.1",
                "www.example 300 TXT a b",
                "www.example 300 NULL \\# 1 00",
                "www.example 300 TYPE65400 \\# 2 01ab",
            ]
        );
        assert_eq!(Seen::read(&message.to_vec().unwrap()), Some(seen));
        assert_eq!(Seen::read(b"no message"), None);
    }

    #[test]
    fn what_has_no_text_has_none() {
        assert_eq!(data(&RData::OPT(hickory_proto::rr::rdata::OPT::default())), "");
    }

    #[test]
    fn codes_have_names() {
        for (code, expected) in
            [(0_u16, "NOERROR"), (3, "NXDOMAIN"), (5, "REFUSED"), (16, "BADVERS"), (99, "RCODE99")]
        {
            assert_eq!(code_name(u16::into(code)), expected);
        }
    }
}
