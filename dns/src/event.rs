//! What the operator is told about names.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::RecordType;

use crate::ask::{Failure, ResolverId};

/// Something that happened while a name was resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `A and B`: the resolvers gave different data, or one gave data and another none.
    Disagreement {
        /// The name asked.
        name: Arc<str>,
        /// The type asked.
        kind: RecordType,
        /// Who said what, in the rule's order.
        answers: Vec<(ResolverId, Said)>,
    },
    /// No resolver of the rule answered.
    Failed {
        /// The name asked.
        name: Arc<str>,
        /// The type asked.
        kind: RecordType,
        /// Who failed how, in the rule's order.
        failures: Vec<(ResolverId, Failure)>,
    },
    /// A question of our own came back to us: a server of a resolver asks us.
    Loop {
        /// The name asked.
        name: Arc<str>,
        /// The type asked.
        kind: RecordType,
    },
    /// Private addresses were filtered out of an answer.
    Rebinding {
        /// The name asked.
        name: Arc<str>,
        /// The type asked.
        kind: RecordType,
        /// Who gave them.
        resolver: ResolverId,
        /// What was filtered; at most 16 are told.
        addresses: Vec<IpAddr>,
    },
}

/// A resolver's answer in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Addresses; at most 16 are told.
    Addresses(Vec<IpAddr>),
    /// Other data as zone-file text; at most 16 records are told.
    Records(Vec<String>),
    /// The name exists, without data of this type.
    NoData,
    /// The name does not exist.
    NoName,
    /// No answer.
    Failed(Failure),
}

/// How many addresses or records of one answer an event tells.
pub(crate) const TOLD: usize = 16;
