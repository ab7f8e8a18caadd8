//! Requests to a running shard: what is answered at once, and what goes over its flows.
//!
//! At most one reload runs, and a few other walks in turn ([`WALKS`], [`KILLS`]). Each turn of
//! the loop does one piece of the reload and one piece of one walk; packets have the rest.
//!
//! [`WALKS`]: crate::driver::queue::WALKS
//! [`KILLS`]: crate::driver::queue::KILLS

use std::collections::VecDeque;
use std::sync::Arc;

use engine::policy::Policy;
use engine::{Cut, Instant, PIECE, Report, ResolverService, Walk, Ways};

use crate::device::Device;
use crate::driver::Driver;
use crate::driver::queue::{Queued, REQUESTS, Turn};
use crate::driver::request::{self, Answer, Changed, Hits, Killed, Request, Status};

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    reload: Option<Reload>,
    walks: VecDeque<(Job, Option<Turn>)>,
    /// The queue of requests was not emptied.
    more: bool,
}

struct Reload {
    walk: Walk,
    cut: Vec<Cut>,
    answer: Answer<Vec<Cut>>,
}

enum Job {
    Compare {
        policy: Arc<Policy>,
        resolver: Option<ResolverService>,
        ways: Option<Arc<Ways>>,
        walk: Walk,
        changed: Vec<Changed>,
        answer: Answer<Vec<Changed>>,
    },
    Flows {
        walk: Walk,
        flows: Vec<Report>,
        answer: Answer<Vec<Report>>,
    },
    Kill {
        number: u64,
        of: Option<u32>,
        walk: Walk,
        killed: Killed,
        answer: Answer<Killed>,
    },
    Ways {
        walk: Walk,
        answer: Answer<()>,
    },
    Hits {
        policy: Arc<Policy>,
        counts: Vec<u64>,
        hits: Hits,
        answer: Answer<Hits>,
    },
}

impl<D: Device> Driver<D> {
    /// Takes a reload that waits: the first thing of each turn, and before each request, so
    /// that whatever is asked after a reload was ordered is answered after it began.
    pub(super) fn take_reload(&mut self, now: Instant) {
        let Some(reload) = self.reload.take() else { return };
        self.guard(now, |driver| driver.begin(reload));
    }

    /// Takes what waits in the queue of requests.
    pub(super) fn take_requests(&mut self, now: Instant) {
        self.jobs.more = true;
        for _ in 0..REQUESTS {
            let Ok(queued) = self.requests.try_recv() else {
                self.jobs.more = false;
                return;
            };
            self.take_reload(now);
            self.guard(now, |driver| driver.take_request(queued, now));
        }
    }

    /// Does a piece of what is under way; whether there is more.
    pub(super) fn work(&mut self, now: Instant) -> bool {
        if self.jobs.more {
            self.take_requests(now);
        }
        if let Some(mut reload) = self.jobs.reload.take() {
            self.guard(now, |driver| {
                let Reload { walk, cut, .. } = &mut reload;
                driver.engine.rejudge(walk, cut, now, &mut driver.sockets);
            });
            self.answer(now);
            if reload.walk.is_over() {
                self.guard(now, |_| (reload.answer)(reload.cut));
            } else {
                self.jobs.reload = Some(reload);
            }
        }
        if let Some((mut job, turn)) = self.jobs.walks.pop_front() {
            let over = self.guard(now, |driver| driver.piece(&mut job, now));
            self.answer(now);
            if over == Some(true) {
                // Who has the answer may ask again at once.
                drop(turn);
                self.guard(now, |_| job.finish());
            } else {
                self.jobs.walks.push_back((job, turn));
            }
        }
        self.jobs.more || self.jobs.reload.is_some() || !self.jobs.walks.is_empty()
    }

    fn begin(&mut self, reload: request::Reload) {
        let request::Reload { policy, generation, limits, resolver, ways, answer } = reload;
        if let Some(resolver) = resolver {
            self.engine.set_resolver(resolver);
        }
        // With the policy that names them: none of its ways is ever unknown to it.
        if let Some((ways, proxies)) = ways {
            self.set_ways(ways, proxies);
        }
        self.engine.reload(policy, generation);
        self.engine.set_limit(limits.flows);
        self.rings.set_budget(limits.memory);
        let reload = Reload { walk: Walk::default(), cut: Vec::new(), answer };
        if let Some(earlier) = self.jobs.reload.replace(reload) {
            (earlier.answer)(earlier.cut);
        }
    }

    fn take_request(&mut self, Queued { request, turn }: Queued, now: Instant) {
        let walk = Walk::default();
        let job = match request {
            // It never waits in the queue.
            Request::Reload(reload) => return self.begin(reload),
            Request::Status { answer } => return answer(self.status()),
            Request::Learn { learned, answer } => {
                self.engine.learn(&learned, now);
                return answer(());
            }
            Request::Names { address, answer } => {
                return answer(self.engine.names_of(address, now));
            }
            Request::Ways { ways, proxies, answer } => {
                self.set_ways(ways, proxies);
                Job::Ways { walk, answer }
            }
            Request::Probe { proxy, fault, answer } => {
                return self.probe(&proxy, fault, answer, now);
            }
            Request::Link(order) => return self.order(order),
            Request::Own(addresses) => return self.set_host_addresses(addresses),
            Request::Compare { policy, resolver, ways, answer } => {
                Job::Compare { policy, resolver, ways, walk, changed: Vec::new(), answer }
            }
            Request::Flows { answer } => Job::Flows { walk, flows: Vec::new(), answer },
            Request::Kill { number, of, answer } => {
                Job::Kill { number, of, walk, killed: Killed::NoSuchFlow, answer }
            }
            Request::Hits { answer } => Job::Hits {
                policy: Arc::clone(self.engine.policy()),
                counts: self.engine.hits().to_vec(),
                hits: Hits { generation: self.engine.generation(), rules: Vec::new() },
                answer,
            },
        };
        self.jobs.walks.push_back((job, turn));
    }

    fn status(&self) -> Status {
        let counters = self.engine.counters().clone();
        Status {
            generation: self.engine.generation(),
            flows: self.engine.live(),
            flows_opened: self.engine.flows_opened(),
            memory: self.rings.usage().promised,
            panics: self.totals.panics,
            reports_lost: self.totals.reports_lost,
            older: counters.older,
            counters,
        }
    }

    /// Does one piece of a job; whether it was the last.
    fn piece(&mut self, job: &mut Job, now: Instant) -> bool {
        match job {
            Job::Compare { policy, resolver, ways, walk, changed, .. } => {
                self.engine.compare(
                    policy,
                    resolver.as_ref(),
                    ways.as_deref(),
                    walk,
                    now,
                    |flow, decision, moved| {
                        changed.push(Changed {
                            flow,
                            moved,
                            verdict: decision.verdict,
                            rule: policy.rule_name(decision.rule).to_owned(),
                        });
                    },
                );
                walk.is_over()
            }
            Job::Ways { walk, .. } => {
                self.engine.leave_links(walk, now, &mut self.sockets);
                walk.is_over()
            }
            Job::Flows { walk, flows, .. } => {
                self.engine.list(walk, now, flows);
                walk.is_over()
            }
            Job::Kill { number, of, walk, killed, .. } => {
                let Some(id) = self.engine.seek(*number, walk) else { return walk.is_over() };
                if of.is_some_and(|uid| !self.engine.is_of(id, uid)) {
                    *killed = Killed::NotYours;
                } else {
                    *killed = Killed::Done;
                    self.engine.kill(id, now, &mut self.sockets);
                }
                true
            }
            Job::Hits { policy, counts, hits, .. } => {
                let from = hits.rules.len();
                let piece = counts.iter().enumerate().skip(from).take(PIECE * NAMES_A_FLOW);
                let named = piece.map(|(at, count)| (policy.name_at(at).to_owned(), *count));
                hits.rules.extend(named);
                hits.rules.len() == counts.len()
            }
        }
    }
}

/// A rule's name costs about that much less than a flow's report.
const NAMES_A_FLOW: usize = 8;

impl Job {
    fn finish(self) {
        match self {
            Self::Compare { changed, answer, .. } => answer(changed),
            Self::Flows { flows, answer, .. } => answer(flows),
            Self::Ways { answer, .. } => answer(()),
            Self::Kill { killed, answer, .. } => answer(killed),
            Self::Hits { hits, answer, .. } => answer(hits),
        }
    }
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload").field("walk", &self.walk).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Compare { .. } => "Compare",
            Self::Flows { .. } => "Flows",
            Self::Ways { .. } => "Ways",
            Self::Kill { .. } => "Kill",
            Self::Hits { .. } => "Hits",
        })
    }
}
