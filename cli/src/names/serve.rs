//! The thread that finds answers: each query on its own, each answer told to every shard
//! before the app has it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use dns::message;
use dns::resolver::{Answer, RESOLVED_WITHIN, Resolver};
use engine::{Learned, ResolverSet};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tunnel::driver::request::Request;
use tunnel::driver::service::{Asker, Reply};
use tunnel::driver::{Handle, Unasked};

use super::Told;
use super::desk::{Query, over};
use super::servers::Servers;

/// Queries that are answered at once; more wait in the desks' queue.
const OPEN: usize = 4_096;
/// Answers that are told of together.
const BATCH: usize = 256;
/// A shard that is asked again.
const RETRY: Duration = Duration::from_millis(1);
/// An answer that a shard has not learned of by then becomes SERVFAIL: its asker asks again, and a
/// flow to an address is never judged without the name that led there.
const PATIENCE: Duration = Duration::from_secs(1);
/// Whoever asked has an answer by then, or the word that there is none, wherever the time went.
const WITHIN: Duration = RESOLVED_WITHIN;
/// How often it is looked whose time is over.
const TICK: Duration = Duration::from_millis(50);

/// A shard, to whoever answers it.
pub(super) trait Shard: Clone + Send + Sync + 'static {
    /// [`Handle::ask`].
    fn ask(&self, request: Request) -> Result<(), Unasked>;
    /// [`Handle::reply`].
    fn reply(&self, reply: Reply) -> Result<(), Unasked>;
}

impl Shard for Handle {
    fn ask(&self, request: Request) -> Result<(), Unasked> {
        Self::ask(self, request)
    }

    fn reply(&self, reply: Reply) -> Result<(), Unasked> {
        Self::reply(self, reply)
    }
}

/// An answer that the shards are to learn of first.
struct Held {
    asker: Asker,
    query: Vec<u8>,
    answer: Answer,
    /// Then it is none any more.
    until: Instant,
}

type Telling = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Answers `queries` until no desk is left.
pub(super) async fn serve(
    resolver: Arc<Resolver<Servers>>,
    mut queries: Receiver<Query>,
    shards: Vec<impl Shard>,
    told: Told,
) {
    let mut open = FuturesUnordered::new();
    // A query for which there is no room yet: those behind it are younger.
    let mut next: Option<Query> = None;
    let mut held: VecDeque<Held> = VecDeque::new();
    let mut telling: Option<(VecDeque<Held>, Telling)> = None;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if telling.is_none() && !held.is_empty() {
            let batch: VecDeque<Held> = held.drain(..held.len().min(BATCH)).collect();
            let learned = batch.iter().filter_map(|held| held.answer.learned.as_ref());
            let learned = learned.map(learned_of).collect();
            telling = Some((batch, Box::pin(teach_all(learned, shards.clone()))));
        }
        let has_room = open.len() + held.len() < OPEN;
        if has_room && let Some(query) = next.take() {
            open.push(answer(&resolver, query));
            continue;
        }
        tokio::select! {
            query = queries.recv(), if next.is_none() => {
                let Some(query) = query else { return };
                next = Some(query);
                while open.len() + held.len() < OPEN && let Some(query) = next.take() {
                    open.push(answer(&resolver, query));
                    next = queries.try_recv().ok();
                }
            }
            Some(answered) = open.next(), if !open.is_empty() => {
                let mut answered = vec![answered];
                while let Some(Some(one)) = open.next().now_or_never() {
                    answered.push(one);
                }
                for mut one in answered {
                    told.events(std::mem::take(&mut one.answer.events));
                    // A shard that is alone learns with the answer.
                    if one.answer.learned.is_none() || shards.len() == 1 {
                        release(one, &shards);
                    } else {
                        held.push_back(one);
                    }
                }
            }
            has_learned = learn(&mut telling), if telling.is_some() => {
                let batch = telling.take().map(|(batch, _)| batch).unwrap_or_default();
                for one in batch {
                    if has_learned { release(one, &shards) } else { fail(one, &shards) }
                }
            }
            _ = tick.tick(), if telling.is_some() || next.is_some() => {
                let now = Instant::now();
                if let Some(query) = next.take_if(|query| now >= of_std(query.since) + WITHIN) {
                    refuse(query.asker, &query.bytes, &shards);
                }
                let batch = telling.iter_mut().map(|(batch, _)| batch);
                for waiting in batch.chain([&mut held]) {
                    // Not in order: one may have waited for its servers much longer.
                    if waiting.iter().any(|one| now >= one.until) {
                        let over = |one: &Held| now >= one.until;
                        let (over, left): (VecDeque<_>, _) = waiting.drain(..).partition(over);
                        *waiting = left;
                        over.into_iter().for_each(|one| fail(one, &shards));
                    }
                }
            }
        }
    }
}

async fn learn(telling: &mut Option<(VecDeque<Held>, Telling)>) -> bool {
    match telling {
        Some((_, telling)) => telling.await,
        None => std::future::pending().await,
    }
}

fn of_std(time: std::time::Instant) -> Instant {
    Instant::from_std(time)
}

fn answer(
    resolver: &Arc<Resolver<Servers>>,
    Query { asker, bytes, since }: Query,
) -> impl Future<Output = Held> + use<> {
    let resolver = Arc::clone(resolver);
    let limit = of_std(since) + WITHIN;
    async move {
        let answer = resolver.resolve_by(bytes.clone(), over(asker), limit).await;
        Held { asker, query: bytes, answer, until: limit.min(Instant::now() + PATIENCE) }
    }
}

/// The app has its answer, and a shard that is alone learns with it.
fn release(Held { asker, answer, .. }: Held, shards: &[impl Shard]) {
    let learned = answer.learned.filter(|_| shards.len() == 1);
    let learned = learned.map(|learned| Arc::from([learned_of(&learned)]));
    reply(asker, answer.bytes, learned, shards);
}

/// A shard does not know of it.
fn fail(Held { asker, query, .. }: Held, shards: &[impl Shard]) {
    refuse(asker, &query, shards);
}

fn refuse(asker: Asker, query: &[u8], shards: &[impl Shard]) {
    let mut bytes = Vec::new();
    message::fail(query, over(asker), &mut bytes);
    reply(asker, bytes, None, shards);
}

fn reply(asker: Asker, bytes: Vec<u8>, learned: Option<Arc<[Learned]>>, shards: &[impl Shard]) {
    let Some(shard) = shards.get(asker.shard) else { return };
    // One that is full has more questions than it can take answers: they ask again.
    let _ = shard.reply(Reply { flow: asker.flow, ticket: asker.ticket, bytes, learned });
}

/// Whether every shard has learned, all of them in one order, so that the name asked last is the
/// same.
async fn teach_all(learned: Arc<[Learned]>, shards: Vec<impl Shard>) -> bool {
    let taught = shards.iter().map(|shard| teach(shard, &learned));
    futures_util::future::join_all(taught).await.into_iter().all(|learned| learned)
}

/// Whether a shard has learned. One that has ended needs to know nothing.
async fn teach(shard: &impl Shard, learned: &Arc<[Learned]>) -> bool {
    let limit = Instant::now() + PATIENCE;
    while Instant::now() < limit {
        let (taken, has) = oneshot::channel();
        let answer = Box::new(move |()| {
            // Whoever waits no longer needs no word.
            let _ = taken.send(());
        });
        match shard.ask(Request::Learn { learned: Arc::clone(learned), answer }) {
            Ok(()) => {
                // One that ends drops the question.
                return timeout_at(limit, has).await.is_ok();
            }
            Err(Unasked::Gone) => return true,
            Err(Unasked::Busy) => sleep(RETRY).await,
        }
    }
    false
}

fn learned_of(learned: &dns::resolver::Learned) -> Learned {
    let bits = |&(address, bits)| (address, ResolverSet::from_bits(bits));
    Learned {
        name: Arc::clone(&learned.name),
        addresses: learned.addresses.iter().map(bits).collect(),
        ttl: learned.ttl,
    }
}

#[cfg(test)]
mod tests;
