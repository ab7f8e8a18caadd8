//! Where a shard brings its queries.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use dns::message;
use dns::resolver::{Known, Resolver};
use engine::ResolverSet;
use smallvec::SmallVec;
use tokio::sync::mpsc::Sender;
use tunnel::driver::service::{Asked, Asker, Names, Over, Service};

use super::servers::Servers;

/// One shard's place: what is known is answered here and now, the rest is handed on.
pub(super) struct Desk {
    pub(super) resolver: Arc<Resolver<Servers>>,
    pub(super) queue: Sender<Query>,
}

/// A query that takes a server, or that teaches the shards something.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) asker: Asker,
    pub(super) bytes: Vec<u8>,
    /// When it came.
    pub(super) since: Instant,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Service for Desk {
    fn ask(&mut self, asker: Asker, query: &[u8], names: &dyn Names, room: &mut Vec<u8>) -> Asked {
        let since = Instant::now();
        if let Some(warm) = self.resolver.cached(query, over(asker), since, room) {
            // An answer that makes another name the newest of an address goes the long way:
            // every shard hears of it before the app does.
            let is_newest = |known: Arc<Known>| {
                let bits = |&(address, bits)| (address, ResolverSet::from_bits(bits));
                let addresses: SmallVec<[_; 8]> = known.addresses.iter().map(bits).collect();
                names.is_newest(&known.name, &addresses)
            };
            if warm.known.is_none_or(is_newest) {
                return Asked::Answered;
            }
            room.clear();
        }
        match self.queue.try_send(Query { asker, bytes: query.to_vec(), since }) {
            Ok(()) => Asked::Later,
            Err(_) => {
                message::fail(query, over(asker), room);
                if room.is_empty() { Asked::Refused } else { Asked::Answered }
            }
        }
    }
}

pub(super) fn over(asker: Asker) -> message::Over {
    match asker.over {
        Over::Udp => message::Over::Udp,
        Over::Tcp => message::Over::Tcp,
    }
}
