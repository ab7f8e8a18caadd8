//! What the control socket asks of the resolver. All of it runs where the sockets are, on the
//! resolver's own thread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dns::ask::{Failure, Question, ResolverId};
use dns::inquiry::Seen;
use dns::message::Over;
use dns::resolver::{Source, Statistics};
use dns::server::Transport;
use dns::split::Choice;
use dns::upstream::{LONGEST, Try};
use engine::Resolvers;
use tokio::time::timeout;

use super::{Names, Told};
use crate::daemon::Events;

/// Whatever is asked is answered before that.
const PATIENCE: Duration = Duration::from_secs(6);

/// The resolver's thread has ended, or is at too much else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the resolver does not answer")]
pub(crate) struct Deaf;

/// What an app would get.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) source: Source,
    pub(crate) seen: Seen,
    pub(crate) took: Duration,
}

/// What one resolver's servers said.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) resolver: ResolverId,
    pub(crate) took: Duration,
    pub(crate) said: Result<Said, Unsaid>,
}

/// An answer of a server.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) server: SocketAddr,
    pub(crate) transport: Transport,
    pub(crate) seen: Seen,
}

/// No answer, in a word, and each server that was asked in vain.
#[derive(Debug)]
pub(crate) struct Unsaid {
    pub(crate) failure: Failure,
    pub(crate) tries: Vec<Try>,
}

impl Names {
    /// Who would be asked, if anybody.
    pub(crate) fn choose(&self, name: &str, question: &Question) -> Choice {
        self.resolver.choose(name, question.kind)
    }

    /// The resolvers' names and numbers.
    pub(crate) fn resolvers(&self) -> Resolvers {
        self.resolver.upstreams().names()
    }

    pub(crate) fn statistics(&self) -> Statistics {
        self.resolver.statistics()
    }

    /// Forgets what a resolver answered, or everything: how many answers that were.
    pub(crate) fn flush(&self, resolver: Option<ResolverId>) -> usize {
        let before = self.statistics().entries;
        self.resolver.flush(resolver);
        before.saturating_sub(self.statistics().entries)
    }

    /// Asks as an app does. What happens meanwhile goes to `events`.
    pub(crate) async fn resolve(
        &self,
        question: &Question,
        events: &Arc<Events>,
    ) -> Result<Resolved, Deaf> {
        let query = question.query().to_vec().map_err(|_| Deaf)?;
        let resolver = Arc::clone(&self.resolver);
        let told = Told { servers: Arc::clone(&resolver), events: Some(Arc::clone(events)) };
        let resolved = self.there(async move {
            let began = Instant::now();
            let mut bytes = Vec::new();
            let source = match resolver.cached(&query, Over::Tcp, began, &mut bytes) {
                Some(warm) if warm.stale => Source::Stale,
                Some(_) => Source::Cache,
                None => {
                    let answer = resolver.resolve(query, Over::Tcp).await;
                    told.events(answer.events);
                    bytes = answer.bytes;
                    answer.source
                }
            };
            Some(Resolved { source, seen: Seen::read(&bytes)?, took: began.elapsed() })
        });
        resolved.await?.ok_or(Deaf)
    }

    /// Asks the servers of these resolvers, past rules and cache, all at once.
    pub(crate) async fn ask(
        &self,
        resolvers: Vec<ResolverId>,
        name: &str,
        question: &Question,
    ) -> Result<Vec<Asked>, Deaf> {
        let query = question.query();
        let servers = self.resolver.upstreams();
        let pools = resolvers.into_iter().map(|id| (id, servers.pool_for(id, name)));
        let asked = pools.map(|(resolver, pool)| {
            let query = query.clone();
            async move {
                let began = Instant::now();
                let said = match pool {
                    None => Err(Unsaid { failure: Failure::NoServers, tries: Vec::new() }),
                    Some(pool) => match pool.ask(&query, LONGEST).await {
                        Ok(reply) => Ok(Said {
                            server: reply.server,
                            transport: reply.transport,
                            seen: Seen::of(&reply.message),
                        }),
                        Err(failure) => Err(Unsaid {
                            failure: Failure::from(&failure),
                            tries: failure.tries.into_iter().collect(),
                        }),
                    },
                };
                Asked { resolver, took: began.elapsed(), said }
            }
        });
        self.there(futures_util::future::join_all(asked.collect::<Vec<_>>())).await
    }

    async fn there<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Deaf> {
        let task = self.runtime.spawn(work);
        timeout(PATIENCE, task).await.ok().and_then(Result::ok).ok_or(Deaf)
    }
}
