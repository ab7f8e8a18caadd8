//! The thread that finds answers: each query on its own, each answer told to every shard
//! before the app has it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use dns::resolver::{Answer, Resolver};
use engine::{Learned, ResolverSet};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
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
/// An answer that a shard has not learned of by then is dropped: its asker asks again, and a flow
/// to an address is never judged without the name that led there.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers `queries` until no desk is left.
pub(super) async fn serve(
    resolver: Arc<Resolver<Servers>>,
    mut queries: Receiver<Query>,
    shards: Vec<Handle>,
    told: Told,
) {
    let mut open = FuturesUnordered::new();
    let mut found: Vec<(Asker, Answer)> = Vec::new();
    let mut telling: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
    loop {
        if telling.is_none() && !found.is_empty() {
            let batch = found.drain(..found.len().min(BATCH)).collect();
            telling = Some(Box::pin(tell(batch, shards.clone())));
        }
        tokio::select! {
            query = queries.recv(), if open.len() + found.len() < OPEN => {
                let Some(query) = query else { return };
                open.push(answer(&resolver, query));
                while open.len() + found.len() < OPEN && let Ok(query) = queries.try_recv() {
                    open.push(answer(&resolver, query));
                }
            }
            Some((asker, answer)) = open.next(), if !open.is_empty() => {
                let mut answers = vec![(asker, answer)];
                while let Some(Some(answer)) = open.next().now_or_never() {
                    answers.push(answer);
                }
                for (asker, mut answer) in answers {
                    told.events(std::mem::take(&mut answer.events));
                    found.push((asker, answer));
                }
            }
            () = async { if let Some(telling) = &mut telling { telling.await } }, if telling.is_some() => {
                telling = None;
            }
        }
    }
}

fn answer(
    resolver: &Arc<Resolver<Servers>>,
    Query { asker, bytes }: Query,
) -> impl Future<Output = (Asker, Answer)> + use<> {
    let resolver = Arc::clone(resolver);
    async move { (asker, resolver.resolve(bytes, over(asker)).await) }
}

/// Every shard learns the names, then the askers have their answers. A shard that is alone learns
/// with the answer; several learn all in one order, so that the name asked last is the same.
async fn tell(batch: Vec<(Asker, Answer)>, shards: Vec<Handle>) {
    let learned: Vec<Option<Learned>> =
        batch.iter().map(|(_, answer)| answer.learned.as_ref().map(learned)).collect();
    let all: Arc<[Learned]> = learned.iter().flatten().cloned().collect();
    let alone = shards.len() == 1;
    let mut known = true;
    if !alone && !all.is_empty() {
        let teach = shards.iter().map(|shard| teach(shard, &all));
        known = futures_util::future::join_all(teach).await.into_iter().all(|learned| learned);
    }
    for ((asker, answer), learned) in batch.into_iter().zip(learned) {
        let Some(shard) = shards.get(asker.shard) else { continue };
        let reply = Reply {
            flow: asker.flow,
            ticket: asker.ticket,
            // Empty: there will be none.
            bytes: if learned.is_none() || known { answer.bytes } else { Vec::new() },
            learned: learned.filter(|_| alone).map(|learned| Arc::from([learned])),
        };
        // One that is full has more questions than it can take answers: they ask again.
        let _ = shard.reply(reply);
    }
}

/// Whether a shard has learned. One that has ended needs to know nothing.
async fn teach(shard: &Handle, learned: &Arc<[Learned]>) -> bool {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let (taken, has) = oneshot::channel();
        let answer = Box::new(move |()| {
            // Whoever waits no longer needs no word.
            let _ = taken.send(());
        });
        match shard.ask(Request::Learn { learned: Arc::clone(learned), answer }) {
            Ok(()) => {
                // One that ends drops the question.
                return timeout(PATIENCE, has).await.is_ok();
            }
            Err(Unasked::Gone) => return true,
            Err(Unasked::Busy) => sleep(RETRY).await,
        }
    }
    false
}

fn learned(learned: &dns::resolver::Learned) -> Learned {
    let bits = |&(address, bits)| (address, ResolverSet::from_bits(bits));
    Learned {
        name: Arc::clone(&learned.name),
        addresses: learned.addresses.iter().map(bits).collect(),
        ttl: learned.ttl,
    }
}
