//! The resolver: an app's query in, an answer out, within five seconds, whatever the
//! servers do.
//!
//! [`Resolver::cached`] answers warm names on the caller's thread. The rest goes to
//! [`Resolver::resolve`]: equal questions in flight are one, a stale answer stands in when
//! the servers fail or take 1.8 s (RFC 8767), and what is popular is asked again before its
//! TTL ends.

mod flights;
mod local;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use smallvec::SmallVec;
use tokio::time::{timeout, timeout_at};

use crate::answer::{Answer as Checked, Failed};
use crate::ask::{
    By, Failure, MOST_RESOLVERS, Question, Reply, ResolverId, ResolverSet, Upstreams,
};
use crate::cache::{Cache, Found, Key};
use crate::event::Event;
use crate::message::{self, Extended, Over, Query, Unfit};
use crate::own::OwnQueries;
use crate::query::{ANSWER_WITHIN, Asking, Kind, Next, Outcome};
pub use crate::ready::Known;
use crate::ready::{Age, Ready};
use crate::split::{Choice, Form, Plan, Rule, SearchDomain, Split};
use flights::{Flight, Flights, Landed};

/// An app that waits this long gets the stale answer while the servers are still asked
/// (RFC 8767 section 5, client response timer).
const STALE_AFTER: Duration = Duration::from_millis(1_800);

/// Longer no app waits for an answer, or for the word that there is none.
pub const RESOLVED_WITHIN: Duration = ANSWER_WITHIN.saturating_add(Duration::from_millis(100));

/// Events that wait for an answer to go with; more are counted and dropped.
const MOST_EVENTS: usize = 64;

/// What a resolver is made with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Answers kept (`[dns] cache`); 0: none.
    pub cache: usize,
    /// Those who wait for servers; one more gets SERVFAIL at once. For the same resolvers a quarter
    /// of them may wait, for one resolver half, so that a dead one leaves room for others.
    pub in_flight: usize,
    /// Where the transports register what they send, so that a loop is seen.
    pub own: OwnQueries,
}

impl Default for Settings {
    fn default() -> Self {
        Self { cache: 10_000, in_flight: 4_096, own: OwnQueries::default() }
    }
}

/// What the filter learns from an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// The name asked, never a CNAME target: lower case, no last dot.
    pub name: Arc<str>,
    /// Each address once, with the resolvers that gave it.
    pub addresses: Vec<(IpAddr, ResolverSet)>,
    /// What is left of the answer's TTL.
    pub ttl: Duration,
}

/// Where an answer is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody is asked for such a name, or such a query.
    Here,
    /// The cache, within the answer's TTL.
    Cache,
    /// The cache, past it: the servers failed or are slow.
    Stale,
    /// Servers: each whose answer is in it. None: nobody answered.
    Servers(Arc<[By]>),
}

impl Source {
    /// In a word, as reports have it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Cache => "cache",
            Self::Stale => "stale",
            Self::Servers(_) => "servers",
        }
    }
}

/// An answer for an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The whole message, without length field; empty: nothing is to be sent.
    pub bytes: Vec<u8>,
    /// Where it is from.
    pub source: Source,
    /// What the filter must know before the app has the answer.
    pub learned: Option<Learned>,
    /// What happened since the last answer, refreshes that nobody waited for included.
    pub events: Vec<Event>,
}

/// An answer from the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    /// The addresses in it; None: none. If the filter no longer knows them as this name's,
    /// the query is to go to [`Resolver::resolve`], whose answer tells it.
    pub known: Option<Arc<Known>>,
    /// It is past its TTL: the servers failed a moment ago.
    pub stale: bool,
}

/// Counters since the start, and what is held now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Answers from the cache within their TTL.
    pub hits: u64,
    /// Questions that went to servers.
    pub misses: u64,
    /// Questions that joined an equal one in flight.
    pub joined: u64,
    /// Answers given past their TTL because the servers failed or were slow.
    pub stale: u64,
    /// Popular answers that were asked for again before their TTL ended.
    pub prefetched: u64,
    /// SERVFAIL because too much was in flight.
    pub overloaded: u64,
    /// Events that were dropped.
    pub events_lost: u64,
    /// Answers in the cache.
    pub entries: usize,
    /// Bytes of the cache, about.
    pub bytes: usize,
    /// Resolvers that were asked.
    pub resolvers: Vec<ResolverStatistics>,
}

/// One resolver's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResolverStatistics {
    /// Which.
    pub resolver: ResolverId,
    /// Questions it was asked.
    pub asked: u64,
    /// Of these, without an answer.
    pub failed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    joined: AtomicU64,
    stale: AtomicU64,
    prefetched: AtomicU64,
    overloaded: AtomicU64,
    events_lost: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// The split resolver.
#[derive(Debug)]
pub struct Resolver<U> {
    upstreams: U,
    split: RwLock<Split>,
    cache: Cache,
    flights: Flights,
    own: OwnQueries,
    /// Grows with each flush: what was asked before is not kept and not joined.
    epoch: AtomicU64,
    counters: Counters,
    asked: [AtomicU64; MOST_RESOLVERS as usize],
    failed: [AtomicU64; MOST_RESOLVERS as usize],
    events: Mutex<Vec<Event>>,
    has_events: AtomicBool,
}

/// One question on its way to the servers.
struct Errand {
    key: Key,
    epoch: u64,
    rule: Rule,
    question: Question,
    name: Arc<str>,
}

impl<U: Upstreams> Resolver<U> {
    /// A resolver with an empty cache.
    pub fn new(settings: Settings, plan: Arc<dyn Plan>, upstreams: U) -> Arc<Self> {
        Arc::new(Self {
            upstreams,
            split: RwLock::new(Split::new(plan, &[])),
            cache: Cache::new(settings.cache),
            flights: Flights::new(settings.in_flight),
            own: settings.own,
            epoch: AtomicU64::new(0),
            counters: Counters::default(),
            asked: [const { AtomicU64::new(0) }; MOST_RESOLVERS as usize],
            failed: [const { AtomicU64::new(0) }; MOST_RESOLVERS as usize],
            events: Mutex::new(Vec::new()),
            has_events: AtomicBool::new(false),
        })
    }

    /// The transports.
    pub fn upstreams(&self) -> &U {
        &self.upstreams
    }

    /// Puts other rules in force. The cache stays: its keys hold the resolvers.
    pub fn set_plan(&self, plan: Arc<dyn Plan>) {
        let mut split = self.split.write().unwrap_or_else(PoisonError::into_inner);
        *split = split.with_plan(plan);
    }

    /// The search domains, each with the resolver whose servers know it.
    pub fn set_search(&self, search: &[SearchDomain]) {
        let mut split = self.split.write().unwrap_or_else(PoisonError::into_inner);
        *split = split.with_search(search);
    }

    /// Forgets what this resolver answered, alone or with others; None: everything. Answers
    /// on their way reach their askers and are not kept.
    pub fn flush(&self, resolver: Option<ResolverId>) {
        self.epoch.fetch_add(1, Relaxed);
        self.cache.flush(resolver);
    }

    /// Keeps so many answers from now on (`[dns] cache`). Those that are there stay, as far as
    /// they fit.
    pub fn set_cache(&self, entries: usize) {
        self.cache.resize(entries, Instant::now());
    }

    /// Where a question goes. `name`: lower case, no last dot.
    pub fn choose(&self, name: &str, kind: RecordType) -> Choice {
        let split = self.split.read().unwrap_or_else(PoisonError::into_inner);
        split.choose(name, kind)
    }

    /// Answers a query into `room` if that takes no server and no waiting. For the packet
    /// path: no allocation but what `room` needs to grow (and for a name above 90 bytes),
    /// one lock held for one copy.
    /// `now` is at most a loop turn old.
    pub fn cached(
        &self,
        query: &[u8],
        over: Over,
        now: Instant,
        room: &mut Vec<u8>,
    ) -> Option<Warm> {
        let query = Query::read(query).ok()?;
        let Choice::Ask(rule) = self.choose(query.name(), query.kind()) else { return None };
        if rule.form == Form::None {
            query.answer_empty(ResponseCode::NXDomain, &[Extended::BLOCKED], over, room);
            return Some(Warm { known: None, stale: false });
        }
        self.cache.give(&Key::new(&query, &rule), now, |ready, age| {
            ready.write(&query, over, age, room);
            Warm { known: ready.known.clone(), stale: age == Age::Stale }
        })
    }

    /// Answers a query. Called on a tokio runtime with time; ends within five seconds.
    pub async fn resolve(self: &Arc<Self>, query: Vec<u8>, over: Over) -> Answer {
        self.resolve_by(query, over, tokio::time::Instant::now() + RESOLVED_WITHIN).await
    }

    /// The same; ends at `limit`, if it is sooner.
    pub async fn resolve_by(
        self: &Arc<Self>,
        query: Vec<u8>,
        over: Over,
        limit: tokio::time::Instant,
    ) -> Answer {
        let mut bytes = Vec::with_capacity(512);
        let (learned, source) = match Query::read(&query) {
            Ok(query) => self.resolve_query(&query, over, limit, &mut bytes).await,
            Err(Unfit::Refused(code)) => {
                message::refuse(&query, code, &mut bytes);
                (None, Source::Here)
            }
            Err(Unfit::Ignored) => (None, Source::Here),
        };
        Answer { bytes, source, learned, events: self.take_events() }
    }

    async fn resolve_query(
        self: &Arc<Self>,
        query: &Query<'_>,
        over: Over,
        limit: tokio::time::Instant,
        room: &mut Vec<u8>,
    ) -> (Option<Learned>, Source) {
        let Some(question) = question(query) else { return (None, Source::Here) };
        let rule = match self.choose(query.name(), query.kind()) {
            Choice::Here(special) => {
                local::answer(special, query, &question, over, room);
                return (None, Source::Here);
            }
            Choice::Ask(rule) => rule,
        };
        if rule.form == Form::None || rule.resolvers.is_empty() {
            query.answer_empty(ResponseCode::NXDomain, &[Extended::BLOCKED], over, room);
            return (None, Source::Here);
        }
        let now = tokio::time::Instant::now().into_std();
        let name: Arc<str> = (&**query.name()).into();
        if self.own.is_own(query) {
            self.tell(Event::Loop { name, kind: query.kind() });
            query.answer_empty(ResponseCode::ServFail, &[], over, room);
            return (None, Source::Here);
        }
        let left = limit.saturating_duration_since(tokio::time::Instant::now());
        let key = Key::new(query, &rule);
        let found = self.cache.look(&key, now);
        let epoch = self.epoch.load(Relaxed);
        let errand = Errand { key, epoch, rule, question, name };
        let (ready, age, source) = match found {
            Found::Fresh { ready, gone, refresh } => {
                count(&self.counters.hits);
                if refresh {
                    count(&self.counters.prefetched);
                    drop(self.start(errand));
                }
                (ready, Age::Fresh(gone), Source::Cache)
            }
            Found::Revived(ready) => {
                count(&self.counters.stale);
                (ready, Age::Stale, Source::Stale)
            }
            Found::Stale(stale) => match self.wait(errand, STALE_AFTER.min(left)).await {
                Some(Landed { ready, by }) if ready.kind != Kind::Failed => {
                    (ready, Age::Fresh(0), Source::Servers(by))
                }
                Some(_) | None => {
                    count(&self.counters.stale);
                    (stale, Age::Stale, Source::Stale)
                }
            },
            Found::Miss => match self.wait(errand, RESOLVED_WITHIN.min(left)).await {
                Some(Landed { ready, by }) => (ready, Age::Fresh(0), Source::Servers(by)),
                None => {
                    let errors = [Extended::NO_REACHABLE];
                    query.answer_empty(ResponseCode::ServFail, &errors, over, room);
                    return (None, Source::Servers(Arc::default()));
                }
            },
        };
        ready.write(query, over, age, room);
        (learned(&ready, age), source)
    }

    /// Waits for the answer of a question in flight, started here unless it is already.
    /// None: too much in flight, or not in time.
    async fn wait(self: &Arc<Self>, errand: Errand, within: Duration) -> Option<Landed> {
        let Some(waiter) = self.start(errand) else {
            count(&self.counters.overloaded);
            return None;
        };
        timeout(within, waiter).await.ok()?.ok()
    }

    fn start(self: &Arc<Self>, errand: Errand) -> Option<flights::Waiter> {
        match self.flights.join(&errand.key, errand.epoch, &errand.rule.resolvers)? {
            (waiter, None) => {
                count(&self.counters.joined);
                Some(waiter)
            }
            (waiter, Some(flight)) => {
                count(&self.counters.misses);
                tokio::spawn(Arc::clone(self).run(errand, flight));
                Some(waiter)
            }
        }
    }

    async fn run(self: Arc<Self>, errand: Errand, flight: Flight) {
        if let Some(landed) = self.ask(&errand).await {
            // Kept before the flight ends, so that nobody asks in between.
            if self.epoch.load(Relaxed) == errand.epoch {
                let now = tokio::time::Instant::now().into_std();
                self.cache.insert(&errand.key, &landed.ready, now);
            }
            flight.land(&landed);
        }
    }

    /// Asks the rule's resolvers in its form.
    async fn ask(&self, errand: &Errand) -> Option<Landed> {
        let rule = &errand.rule;
        let now = || tokio::time::Instant::now().into_std();
        let started = now();
        let mut asking = Asking::new(rule.form, rule.resolvers.len(), started);
        let mut heard: SmallVec<[Option<Result<Checked, Failed>>; 4]> = SmallVec::new();
        heard.resize_with(rule.resolvers.len(), || None);
        let mut whose: SmallVec<[Option<By>; 4]> = smallvec::smallvec![None; heard.len()];
        let mut asked = FuturesUnordered::new();
        let outcome = loop {
            match asking.next(now()) {
                Next::Ask(positions) => {
                    let within = ANSWER_WITHIN.saturating_sub(now() - started);
                    asked.extend(positions.into_iter().map(|position| {
                        let resolver = rule.resolvers[position];
                        async move { (position, self.ask_one(resolver, errand, within).await) }
                    }));
                }
                Next::Wait(until) => {
                    let next = timeout_at(until.into(), asked.next()).await;
                    if let Ok(Some((position, answer))) = next {
                        let answer = answer.map(|(answer, by)| {
                            whose[position] = Some(by);
                            answer
                        });
                        let kind = answer.as_ref().map_or(Kind::Failed, |answer| answer.kind);
                        asking.heard(position, kind, now());
                        heard[position] = Some(answer);
                    }
                }
                Next::Done(outcome) => break outcome,
            }
        };
        drop(asked);
        let by = outcome.positions().iter().filter_map(|position| whose[*position]).collect();
        let ready = Arc::new(self.conclude(errand, heard, &outcome)?);
        Some(Landed { ready, by })
    }

    /// One resolver's checked answer, without near addresses if the rule does not let them
    /// pass.
    async fn ask_one(
        &self,
        resolver: ResolverId,
        errand: &Errand,
        within: Duration,
    ) -> Result<(Checked, By), Failed> {
        let Errand { rule, question, .. } = errand;
        let index = usize::from(resolver.0 % MOST_RESOLVERS);
        count(&self.asked[index]);
        let reply = self.upstreams.ask(resolver, question, within).await.map_err(Failed::from);
        let answer = reply.and_then(|Reply { message, server, transport, took }| {
            let by = By { resolver, server, transport, took };
            Ok((Checked::read(message, question, resolver.set())?, by))
        });
        let (mut answer, by) = answer.inspect_err(|_| count(&self.failed[index]))?;
        if !(rule.private || rule.specific || self.upstreams.is_tunnel(resolver)) {
            let mut addresses = answer.filter_near(question);
            if !addresses.is_empty() {
                addresses.truncate(crate::event::TOLD);
                let name = Arc::clone(&errand.name);
                self.tell(Event::Rebinding { name, kind: question.kind, resolver, addresses });
            }
        }
        Ok((answer, by))
    }

    /// Makes the answer of what was heard.
    fn conclude(
        &self,
        errand: &Errand,
        mut heard: SmallVec<[Option<Result<Checked, Failed>>; 4]>,
        outcome: &Outcome,
    ) -> Option<Ready> {
        let question = &errand.question;
        if errand.rule.form == Form::And {
            self.tell_disagreement(errand, &heard);
        }
        let filtered = heard
            .iter()
            .flatten()
            .flatten()
            .any(|answer| answer.extended.contains(&Extended::FILTERED));
        let mut take = |position: usize| heard.get_mut(position)?.take()?.ok();
        let answer = match outcome {
            Outcome::Answer(of) => take(*of),
            Outcome::Negative { of, held } => take(*of).map(|mut answer| {
                if *held {
                    answer.hold_briefly();
                }
                answer
            }),
            Outcome::Combine(of) => {
                Checked::combine(of.iter().filter_map(|of| take(*of)).collect(), question)
            }
            Outcome::Failed => return self.conclude_failed(errand, &heard),
        };
        let mut answer = answer?;
        if filtered && !answer.extended.contains(&Extended::FILTERED) {
            answer.extended.push(Extended::FILTERED);
        }
        Ready::new(answer, question, &errand.name)
            .or_else(|| Ready::failure(question, &[Extended::NO_REACHABLE]))
    }

    fn conclude_failed(
        &self,
        errand: &Errand,
        heard: &[Option<Result<Checked, Failed>>],
    ) -> Option<Ready> {
        let mut extended: SmallVec<[Extended; 4]> = SmallVec::from_slice(&[Extended::NO_REACHABLE]);
        let mut failures = vec![];
        for (resolver, heard) in errand.rule.resolvers.iter().zip(heard) {
            let failure = match heard {
                Some(Err(failed)) => {
                    extended.extend(failed.extended.iter().copied());
                    failed.failure.clone()
                }
                Some(Ok(_)) | None => {
                    count(&self.failed[usize::from(resolver.0 % MOST_RESOLVERS)]);
                    Failure::TimedOut
                }
            };
            failures.push((*resolver, failure));
        }
        let name = Arc::clone(&errand.name);
        self.tell(Event::Failed { name, kind: errand.question.kind, failures });
        Ready::failure(&errand.question, &extended)
    }

    /// `and`: tells when one has data that another lacks.
    fn tell_disagreement(&self, errand: &Errand, heard: &[Option<Result<Checked, Failed>>]) {
        let kind = errand.question.kind;
        let answers = || heard.iter().flatten().flatten();
        let Some(first) = answers().find(|answer| answer.kind == Kind::Positive) else { return };
        if answers().all(|answer| answer.kind == Kind::Positive && answer.agrees(first, kind)) {
            return;
        }
        let said = errand.rule.resolvers.iter().zip(heard).map(|(resolver, heard)| {
            let said = match heard {
                Some(Ok(answer)) => answer.said(kind),
                Some(Err(failed)) => crate::event::Said::Failed(failed.failure.clone()),
                None => crate::event::Said::Failed(Failure::TimedOut),
            };
            (*resolver, said)
        });
        let name = Arc::clone(&errand.name);
        self.tell(Event::Disagreement { name, kind, answers: said.collect() });
    }

    fn tell(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() < MOST_EVENTS {
            events.push(event);
            self.has_events.store(true, Relaxed);
        } else {
            count(&self.counters.events_lost);
        }
    }

    fn take_events(&self) -> Vec<Event> {
        if !self.has_events.load(Relaxed) {
            return vec![];
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_events.store(false, Relaxed);
        std::mem::take(&mut events)
    }

    /// Counters since the start, and what is held now.
    pub fn statistics(&self) -> Statistics {
        let held = self.cache.held();
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let resolvers = (0..MOST_RESOLVERS).map(|resolver| ResolverStatistics {
            resolver: ResolverId(resolver),
            asked: read(&self.asked[usize::from(resolver)]),
            failed: read(&self.failed[usize::from(resolver)]),
        });
        Statistics {
            hits: read(&self.counters.hits) + held.given,
            misses: read(&self.counters.misses),
            joined: read(&self.counters.joined),
            stale: read(&self.counters.stale),
            prefetched: read(&self.counters.prefetched),
            overloaded: read(&self.counters.overloaded),
            events_lost: read(&self.counters.events_lost),
            entries: held.entries,
            bytes: held.bytes,
            resolvers: resolvers.filter(|resolver| resolver.asked > 0).collect(),
        }
    }
}

/// The question for the servers; None only for a name that hickory-proto does not take.
fn question(query: &Query<'_>) -> Option<Question> {
    let name = Name::read(&mut BinDecoder::new(query.wire_name())).ok()?;
    Some(Question {
        name: name.to_lowercase(),
        kind: query.kind(),
        dnssec_ok: query.dnssec_ok(),
        checking_disabled: query.checking_disabled(),
    })
}

fn learned(ready: &Ready, age: Age) -> Option<Learned> {
    let known = ready.known.as_ref()?;
    let ttl = match age {
        Age::Fresh(gone) => ready.ttl.saturating_sub(gone),
        Age::Stale => crate::ready::STALE_TTL,
    };
    Some(Learned {
        name: Arc::clone(&known.name),
        addresses: known.addresses.clone(),
        ttl: Duration::from_secs(ttl.into()),
    })
}

#[cfg(test)]
mod tests;
