//! Answers that this host gives itself.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use smallvec::SmallVec;

use crate::answer::Answer;
use crate::ask::Question;
use crate::message::{Over, Query};
use crate::query::Kind;
use crate::ready::{Age, Ready};
use crate::split::Special;

/// The TTL that RFC 6303 section 3 gives its empty zones, in seconds.
const TTL: u32 = 10_800;

/// Answers a special name.
pub(super) fn answer(
    special: Special,
    query: &Query<'_>,
    question: &Question,
    over: Over,
    room: &mut Vec<u8>,
) {
    let no_data = ResponseCode::NoError;
    let (code, data, zone) = match (special, question.kind) {
        (Special::Refused, _) => {
            query.answer_empty(ResponseCode::Refused, &[], over, room);
            return;
        }
        (Special::Localhost, RecordType::A) => (no_data, Some(RData::A(A(Ipv4Addr::LOCALHOST))), 1),
        (Special::Localhost, RecordType::AAAA) => {
            (no_data, Some(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))), 1)
        }
        (Special::Localhost, _) => (no_data, None, 1),
        (Special::LocalhostReverse, RecordType::PTR) => {
            let localhost = Name::from_ascii("localhost.").unwrap_or_default();
            (no_data, Some(RData::PTR(PTR(localhost))), 1)
        }
        (Special::LocalhostReverse, _) => (no_data, None, question.name.num_labels()),
        (Special::NoData { zone }, _) => (no_data, None, zone),
        (Special::NoName { zone }, _) => (ResponseCode::NXDomain, None, zone),
    };
    let kind = match (&data, code) {
        (Some(_), _) => Kind::Positive,
        (None, ResponseCode::NXDomain) => Kind::NoName,
        (None, _) => Kind::NoData,
    };
    let authorities = if data.is_none() { vec![soa(question, zone)] } else { vec![] };
    let answers = data.map(|data| Record::from_rdata(question.name.clone(), TTL, data));
    let answer = Answer {
        code,
        answers: answers.into_iter().collect(),
        authorities,
        authentic: false,
        extended: SmallVec::new(),
        addresses: vec![],
        ttl: TTL,
        kind,
    };
    match Ready::new(answer, question, query.name()) {
        Some(ready) => ready.write(query, over, Age::Fresh(0), room),
        None => query.answer_empty(ResponseCode::ServFail, &[], over, room),
    }
}

/// The SOA of an empty zone (RFC 6303 section 3) whose name is the question's last labels.
fn soa(question: &Question, zone: u8) -> Record {
    let zone = question.name.trim_to(zone.into());
    let nobody = Name::from_ascii("nobody.invalid.").unwrap_or_default();
    let soa = SOA::new(zone.clone(), nobody, 1, 3_600, 1_200, 604_800, TTL);
    Record::from_rdata(zone, TTL, RData::SOA(soa))
}
