//! Our own questions on their way, so that one that comes back to us is known as a loop.
//!
//! A server that we ask and that asks us would go round until every queue is full. A
//! forwarder in between gives the question a new id but keeps its spelling, and our 0x20
//! spelling is random: a question is ours when id and spelling are those of one in flight,
//! or when a spelling with enough letters alone is. What remains (a forwarder that writes
//! lower case, a short name) joins its own question in flight and ends with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::fast::RandomState;

use crate::message::Query;

/// So many letters of both cases: a chance of 2⁻¹⁶ that an app spells it alike while ours
/// is in flight.
const LETTERS: usize = 16;

/// The questions in flight, by spelling and type.
#[derive(Debug, Clone, Default)]
pub struct OwnQueries(Arc<Mutex<InFlight>>);

/// Name and type as on the wire, to the ids in flight.
type InFlight = HashMap<Box<[u8]>, Vec<u16>, RandomState>;

/// A question in flight; dropped when it no longer is.
#[derive(Debug)]
pub struct OwnQuery {
    queries: OwnQueries,
    id: u16,
    question: Box<[u8]>,
}

impl OwnQueries {
    /// A message that goes to a server now, as it is on the wire. None: it holds no question.
    pub fn sent(&self, message: &[u8]) -> Option<OwnQuery> {
        let query = Query::read(message).ok()?;
        let question = spelling(&query).into_boxed_slice();
        let mut in_flight = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        in_flight.entry(question.clone()).or_default().push(query.id());
        Some(OwnQuery { queries: self.clone(), id: query.id(), question })
    }

    /// Whether an app's query is one of ours come back.
    pub fn is_own(&self, query: &Query<'_>) -> bool {
        let in_flight = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if in_flight.is_empty() {
            return false;
        }
        let spelling = spelling(query);
        in_flight
            .get(&*spelling)
            .is_some_and(|ids| ids.contains(&query.id()) || is_telling(query.wire_name()))
    }
}

impl Drop for OwnQuery {
    fn drop(&mut self) {
        let mut in_flight = self.queries.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ids) = in_flight.get_mut(&self.question) else { return };
        if let Some(position) = ids.iter().position(|id| *id == self.id) {
            ids.swap_remove(position);
        }
        if ids.is_empty() {
            in_flight.remove(&self.question);
        }
    }
}

fn spelling(query: &Query<'_>) -> smallvec::SmallVec<[u8; 96]> {
    let mut spelling = smallvec::SmallVec::from_slice(query.wire_name());
    spelling.extend_from_slice(&u16::from(query.kind()).to_be_bytes());
    spelling
}

/// Whether a spelling says by itself whose it is. A length byte is below 64, so no letter.
fn is_telling(name: &[u8]) -> bool {
    let letters = name.iter().filter(|byte| byte.is_ascii_alphabetic()).count();
    let capitals = name.iter().filter(|byte| byte.is_ascii_uppercase()).count();
    letters >= LETTERS && capitals > 0 && capitals < letters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests::query;

    #[test]
    fn a_question_that_comes_back_is_known() {
        let own = OwnQueries::default();
        let ours = query(77, "LoNgEnOuGhToTeLl.ExAmPlE", 1);
        let short = query(78, "wWw.a", 1);
        let sent = (own.sent(&ours), own.sent(&short));
        for (case, id, name, kind, expected) in [
            ("the same", 77, "LoNgEnOuGhToTeLl.ExAmPlE", 1, true),
            ("another id", 1, "LoNgEnOuGhToTeLl.ExAmPlE", 1, true),
            ("another spelling", 77, "longenoughtotell.example", 1, false),
            ("another type", 77, "LoNgEnOuGhToTeLl.ExAmPlE", 28, false),
            ("a short name", 78, "wWw.a", 1, true),
            ("a short name, another id", 79, "wWw.a", 1, false),
        ] {
            let bytes = query(id, name, kind);
            let query = Query::read(&bytes).expect("a query");
            assert_eq!(own.is_own(&query), expected, "{case}");
        }
        drop(sent);
        assert!(!own.is_own(&Query::read(&ours).expect("a query")));
        assert!(own.0.lock().expect("not poisoned").is_empty());
    }
}
