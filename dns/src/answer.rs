//! What a server's reply says about the question, and nothing else it holds.
//!
//! Of the answer section only the chain from the question by CNAME and DNAME to the data is
//! kept, in that order; of the authority section the SOA of a zone above the name and, for
//! an app that wants DNSSEC, the proofs; of the additional section nothing. So a server can
//! say nothing about names that it was not asked (bailiwick). Several answers are merged
//! here too.
#![expect(clippy::wildcard_enum_match_arm, reason = "record types are an open set")]

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::rdata::{A, AAAA, SVCB};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use smallvec::SmallVec;

use crate::ask::{Failure, Question, ResolverSet};
use crate::event::{Said, TOLD};
use crate::message::{Extended, u16_at};
use crate::query::Kind;
use crate::rebinding::is_near;

/// No TTL is longer (unbound's `cache-max-ttl`), in seconds.
const LONGEST_TTL: u32 = 86_400;

/// No negative TTL is longer (unbound's `cache-max-negative-ttl`), in seconds.
const LONGEST_NEGATIVE_TTL: u32 = 3_600;

/// A negative answer without SOA, which says for how long it holds (unbound's choice), and
/// one that others could not confirm; in seconds.
pub(crate) const UNSURE_TTL: u32 = 5;

/// The longest chain of aliases; unbound and BIND follow 11 and 16.
const LONGEST_CHAIN: usize = 16;

/// A checked answer of one resolver, or several merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// NOERROR or NXDOMAIN.
    pub(crate) code: ResponseCode,
    /// The chain and the data.
    pub(crate) answers: Vec<Record>,
    /// SOA and proofs.
    pub(crate) authorities: Vec<Record>,
    /// The server says that it validated.
    pub(crate) authentic: bool,
    /// Extended errors, the server's and ours.
    pub(crate) extended: SmallVec<[Extended; 2]>,
    /// Addresses of the answer, hints of HTTPS and SVCB included, with who gave each.
    pub(crate) addresses: Vec<(IpAddr, ResolverSet)>,
    /// How long it holds, in seconds.
    pub(crate) ttl: u32,
    pub(crate) kind: Kind,
}

/// A resolver that did not answer, with what its server said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    pub(crate) extended: SmallVec<[Extended; 2]>,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, extended: SmallVec::new() }
    }
}

impl Answer {
    /// Reads the reply of the resolvers `from` (one, as a set).
    pub(crate) fn read(
        message: Message,
        question: &Question,
        from: ResolverSet,
    ) -> Result<Self, Failed> {
        let extended = extended_errors(&message);
        let failed = |failure| Failed { failure, extended: extended.clone() };
        let code = message.metadata.response_code;
        if message.metadata.message_type != MessageType::Response
            || message.metadata.truncation
            || !matches!(message.queries.as_slice(), [asked] if asked.name() == &question.name
                && asked.query_type() == question.kind && asked.query_class() == DNSClass::IN)
        {
            return Err(failed(Failure::Malformed));
        }
        if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return Err(failed(Failure::Code(code)));
        }
        let Message { metadata, answers, authorities, .. } = message;
        let (answers, end) = chain(answers, question).ok_or_else(|| failed(Failure::Malformed))?;
        let positive = answers.iter().any(|record| record.record_type() == question.kind);
        if !positive && code == ResponseCode::NoError && is_referral(&authorities) {
            return Err(failed(Failure::NotRecursive));
        }
        let authorities = proofs(authorities, question, &end, !positive);
        let kind = match (positive, code) {
            (true, _) => Kind::Positive,
            (false, ResponseCode::NXDomain) => Kind::NoName,
            (false, _) => Kind::NoData,
        };
        let code = if positive { ResponseCode::NoError } else { code };
        let authentic = metadata.authentic_data;
        let mut answer = Self {
            code,
            answers,
            authorities,
            authentic,
            extended,
            addresses: vec![],
            ttl: 0,
            kind,
        };
        answer.limit_ttls();
        answer.know_addresses(from);
        Ok(answer)
    }

    fn know_addresses(&mut self, from: ResolverSet) {
        self.addresses = self.addresses_in().map(|address| (address, from)).collect();
        self.addresses.sort_unstable();
        self.addresses.dedup();
    }

    fn addresses_in(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.answers.iter().flat_map(addresses)
    }

    /// Caps the records' TTLs and finds how long the answer holds.
    fn limit_ttls(&mut self) {
        let negative = self.kind != Kind::Positive;
        let mut ttl = LONGEST_TTL;
        for record in self.answers.iter_mut().chain(&mut self.authorities) {
            // RFC 2181 section 8: a TTL with the top bit set is zero.
            record.ttl = if record.ttl > i32::MAX as u32 { 0 } else { record.ttl };
            record.ttl = record.ttl.min(LONGEST_TTL);
            if let (true, RData::SOA(soa)) = (negative, &record.data) {
                // RFC 2308 sections 3 and 5.
                record.ttl = record.ttl.min(soa.minimum).min(LONGEST_NEGATIVE_TTL);
            }
            ttl = ttl.min(record.ttl);
        }
        let has_soa = self.authorities.iter().any(|r| r.record_type() == RecordType::SOA);
        self.ttl = if negative && !has_soa { ttl.min(UNSURE_TTL) } else { ttl };
    }

    /// A negative answer that others could not confirm: it holds a few seconds.
    pub(crate) fn hold_briefly(&mut self) {
        for record in self.answers.iter_mut().chain(&mut self.authorities) {
            record.ttl = record.ttl.min(UNSURE_TTL);
        }
        self.ttl = self.ttl.min(UNSURE_TTL);
    }

    /// Takes records with near addresses out (DNS rebinding), and says which addresses those
    /// were. An answer that loses something is no longer signed, and may become NODATA.
    pub(crate) fn filter_near(&mut self, question: &Question) -> Vec<IpAddr> {
        let mut filtered: Vec<IpAddr> = vec![];
        self.answers.retain(|record| {
            let before = filtered.len();
            filtered.extend(addresses(record).filter(|address| is_near(*address)));
            filtered.len() == before
        });
        if filtered.is_empty() {
            return filtered;
        }
        self.unsign();
        self.extended.push(Extended::FILTERED);
        let from = self.addresses.first().map_or(0, |(_, from)| *from);
        self.know_addresses(from);
        if !self.answers.iter().any(|record| record.record_type() == question.kind) {
            self.kind = Kind::NoData;
        }
        filtered
    }

    fn unsign(&mut self) {
        self.authentic = false;
        self.answers.retain(|record| !is_dnssec(record.record_type()));
        self.authorities.retain(|record| !is_dnssec(record.record_type()));
    }

    /// Merges positive answers about addresses in written order, or takes the first for
    /// other types. Not empty.
    pub(crate) fn combine(answers: Vec<Self>, question: &Question) -> Option<Self> {
        let mut answers = answers.into_iter();
        let mut merged = answers.next()?;
        if !matches!(question.kind, RecordType::A | RecordType::AAAA) {
            return Some(merged);
        }
        merged.unsign();
        merged.authorities.clear();
        for mut other in answers {
            other.unsign();
            merged.merge(other, question);
        }
        // RFC 2181 section 5.2: one TTL in a set of records.
        let ttl = merged.ttl;
        for record in &mut merged.answers {
            record.ttl = ttl;
        }
        Some(merged)
    }

    fn merge(&mut self, other: Self, question: &Question) {
        self.ttl = self.ttl.min(other.ttl);
        self.extended.extend(other.extended.iter().copied());
        let aliases = |answer: &Self| {
            let records = answer.answers.iter().filter(|r| r.record_type() != question.kind);
            records.map(|r| (r.name.clone(), r.data.clone())).collect::<Vec<_>>()
        };
        if aliases(self) != aliases(&other) {
            // A name with an alias can't have other data (RFC 1034 section 3.6.2), so two
            // chains become addresses of the name that was asked.
            self.flatten(question);
        }
        let owner = self.answers.iter().rfind(|record| record.record_type() == question.kind);
        let owner = owner.map_or_else(|| question.name.clone(), |record| record.name.clone());
        let mut known: HashSet<RData> = self.data(question.kind).cloned().collect();
        for mut record in other.answers {
            if record.record_type() == question.kind && known.insert(record.data.clone()) {
                record.name.clone_from(&owner);
                self.answers.push(record);
            }
        }
        let mut resolvers: HashMap<IpAddr, ResolverSet> = self.addresses.drain(..).collect();
        for (address, from) in other.addresses {
            *resolvers.entry(address).or_default() |= from;
        }
        self.addresses = resolvers.into_iter().collect();
        self.addresses.sort_unstable();
    }

    fn flatten(&mut self, question: &Question) {
        self.answers.retain(|record| record.record_type() == question.kind);
        for record in &mut self.answers {
            record.name.clone_from(&question.name);
        }
    }

    /// Whether two positive answers give the same data, in whatever order.
    pub(crate) fn agrees(&self, other: &Self, kind: RecordType) -> bool {
        let (ours, theirs): (HashSet<&RData>, HashSet<&RData>) =
            (self.data(kind).collect(), other.data(kind).collect());
        ours == theirs
    }

    /// The data of the type asked.
    fn data(&self, kind: RecordType) -> impl Iterator<Item = &RData> {
        let records = self.answers.iter().filter(move |record| record.record_type() == kind);
        records.map(|record| &record.data)
    }

    /// In short, for an event.
    pub(crate) fn said(&self, kind: RecordType) -> Said {
        match self.kind {
            Kind::NoName => Said::NoName,
            Kind::NoData | Kind::Failed => Said::NoData,
            Kind::Positive if matches!(kind, RecordType::A | RecordType::AAAA) => {
                Said::Addresses(self.addresses_in().take(TOLD).collect())
            }
            Kind::Positive => {
                Said::Records(self.data(kind).take(TOLD).map(ToString::to_string).collect())
            }
        }
    }
}

/// The records from the question to the data, and the name where they end. None: aliases
/// that go round, or too many.
fn chain(answers: Vec<Record>, question: &Question) -> Option<(Vec<Record>, Name)> {
    let kind = question.kind;
    let signed = question.dnssec_ok;
    let mut kept = Vec::with_capacity(answers.len());
    let mut answers: Vec<Option<Record>> =
        answers.into_iter().filter(|r| r.dns_class == DNSClass::IN).map(Some).collect();
    let mut at = question.name.clone();
    for _ in 0..LONGEST_CHAIN {
        let mut alias = None;
        let mut found = false;
        for slot in &mut answers {
            let Some(record) = slot else { continue };
            let own = record.name == at;
            let kept_kind = match record.record_type() {
                own_kind if own_kind == kind => own,
                RecordType::CNAME => own && alias.is_none(),
                RecordType::RRSIG => {
                    let covered = covered(record);
                    let of_data = own && [Some(kind), Some(RecordType::CNAME)].contains(&covered);
                    let of_dname = covered == Some(RecordType::DNAME) && above(record, &at);
                    signed && (of_data || of_dname)
                }
                RecordType::DNAME => above(record, &at),
                _ => false,
            };
            if !kept_kind {
                continue;
            }
            found |= own && record.record_type() == kind;
            if let (true, RData::CNAME(target)) = (kind != RecordType::CNAME, &record.data) {
                alias = Some(target.0.clone());
            }
            // Where a server spelled the name in the question's random case, it stands in
            // ours again, and compresses.
            if own {
                record.name.clone_from(&at);
            }
            kept.extend(slot.take());
        }
        match alias {
            Some(target) if !found && kept.iter().any(|r: &Record| r.name == target) => {
                return None;
            }
            Some(target) if !found => at = target,
            Some(_) | None => return Some((kept, at)),
        }
    }
    None
}

fn above(record: &Record, name: &Name) -> bool {
    record.name != *name && record.name.zone_of(name)
}

/// NS without SOA where data should be.
fn is_referral(authorities: &[Record]) -> bool {
    let has = |kind| authorities.iter().any(|record| record.record_type() == kind);
    has(RecordType::NS) && !has(RecordType::SOA)
}

/// What is kept of the authority section: of a zone above the name where the chain ended,
/// the SOA when the answer is negative, and the proofs when the app wants them.
fn proofs(
    mut authorities: Vec<Record>,
    question: &Question,
    end: &Name,
    negative: bool,
) -> Vec<Record> {
    let mut soa = None;
    authorities.retain(|record| {
        let kind = record.record_type();
        match if kind == RecordType::RRSIG { covered(record) } else { Some(kind) } {
            _ if record.dns_class != DNSClass::IN => false,
            Some(RecordType::SOA) if kind == RecordType::SOA => {
                let wanted = negative && soa.is_none() && record.name.zone_of(end);
                if wanted {
                    soa = Some(record.name.clone());
                }
                wanted
            }
            Some(RecordType::SOA) => negative && question.dnssec_ok && record.name.zone_of(end),
            // No addresses, and worth nothing without a signature that the app checks.
            Some(RecordType::NSEC | RecordType::NSEC3) => question.dnssec_ok,
            _ => false,
        }
    });
    authorities
}

/// Which type a signature covers (RFC 4034 section 3.1.1).
fn covered(signature: &Record) -> Option<RecordType> {
    match &signature.data {
        RData::Unknown { rdata, .. } => u16_at(&rdata.anything, 0).map(RecordType::from),
        _ => None,
    }
}

fn is_dnssec(kind: RecordType) -> bool {
    matches!(kind, RecordType::RRSIG | RecordType::NSEC | RecordType::NSEC3)
}

/// Addresses in a record: A, AAAA, and the hints of HTTPS and SVCB (RFC 9460 section 7.3).
fn addresses(record: &Record) -> impl Iterator<Item = IpAddr> + '_ {
    let (one, service): (Option<IpAddr>, Option<&SVCB>) = match &record.data {
        RData::A(A(address)) => (Some(IpAddr::V4(*address)), None),
        RData::AAAA(AAAA(address)) => (Some(IpAddr::V6(*address)), None),
        RData::HTTPS(https) => (None, Some(&https.0)),
        RData::SVCB(service) => (None, Some(service)),
        _ => (None, None),
    };
    let hints = service.into_iter().flat_map(|service| &service.svc_params);
    let hints = hints.flat_map(|(_, value)| -> SmallVec<[IpAddr; 4]> {
        match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().map(|a| IpAddr::V4(a.0)).collect(),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().map(|a| IpAddr::V6(a.0)).collect(),
            _ => SmallVec::new(),
        }
    });
    one.into_iter().chain(hints)
}

/// The extended errors of a message; at most two.
fn extended_errors(message: &Message) -> SmallVec<[Extended; 2]> {
    let Some(edns) = &message.edns else { return SmallVec::new() };
    let options = edns.options().options.iter();
    let codes = options.filter_map(|(code, option)| match (code, option) {
        (EdnsCode::Unknown(15), EdnsOption::Unknown(_, data)) => u16_at(data, 0).map(Extended),
        _ => None,
    });
    codes.take(2).collect()
}

#[cfg(test)]
pub(crate) mod tests;
