//! Names: where the shards' queries are answered.
//!
//! # Theory of operation
//!
//! ```text
//! shard ─▶ desk: known? ─▶ answered in the same turn
//!            └▶ queue ─▶ this thread: dns's resolver asks servers ─▶ every shard learns the
//!               name ─▶ the shard that asked has the answer, and then the app
//! ```
//!
//! One thread with a runtime of its own asks servers and follows the network's; the control
//! socket does not wait for it. What is in force is changed by a reload, with the policy.

mod asking;
mod desk;
mod listing;
mod plan;
mod serve;
mod servers;
pub(crate) mod told;

use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use anyhow::Context;
use dns::ask::ResolverId;
use dns::discover::{self, Found};
use dns::event::Event;
use dns::own::OwnQueries;
use dns::resolver::{self, Resolver};
use dns::server::Server;
use dns::upstream::ConfigError;
use engine::Resolvers;
use engine::policy::Policy;
use tokio::runtime::Handle as Runtime;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::watch;
use tunnel::driver::Handle;
use tunnel::driver::service::Service;

use crate::config::Config;
use crate::daemon::Events;

pub(crate) use asking::{Asked, Deaf, Origin};
pub(crate) use servers::{Configured, Servers};

use desk::{Desk, Query};
use plan::ByPolicy;

/// Queries that wait for this thread; one more is answered SERVFAIL.
const QUEUE: usize = 4_096;

/// The resolver in this process.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    resolver: Arc<Resolver<Servers>>,
    queue: Sender<Query>,
    /// `dns.upstream`.
    upstream: Arc<watch::Sender<Option<Vec<Server>>>>,
    runtime: Runtime,
}

/// A thread that has not begun.
pub(crate) struct Waiting {
    names: Names,
    queries: Receiver<Query>,
    runtime: tokio::runtime::Runtime,
}

/// Where the network's own servers are learned.
pub(crate) enum Network {
    /// These, and their search domains.
    Fixed(Vec<Server>, Vec<String>),
    /// By looking, again and again.
    Followed(discover::Settings),
}

impl Waiting {
    /// Sets up the resolvers of `config`. Nothing is asked yet.
    ///
    /// # Errors
    /// A resolver's files are at fault.
    pub(crate) fn new(
        config: &Config,
        policy: &Arc<Policy>,
        mark: Option<u32>,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the resolver")?;
        let own = OwnQueries::default();
        let servers = Servers::new(mark, own.clone());
        let configured = servers.prepare(config, policy.resolvers()).map_err(refuse)?;
        servers.put_in_force(configured);
        let settings =
            resolver::Settings { cache: config.dns.cache, own, ..resolver::Settings::default() };
        let plan = Arc::new(ByPolicy(Arc::clone(policy)));
        let (queue, queries) = channel(QUEUE);
        let names = Names {
            resolver: Resolver::new(settings, plan, servers),
            queue,
            upstream: Arc::new(watch::Sender::new(config.dns.upstream.clone())),
            runtime: runtime.handle().clone(),
        };
        Ok(Self { names, queries, runtime })
    }
}

impl Names {
    /// A shard's way to ask.
    pub(crate) fn desk(&self) -> Box<dyn Service> {
        Box::new(Desk { resolver: Arc::clone(&self.resolver), queue: self.queue.clone() })
    }

    /// The first half of a reload: what can go wrong.
    ///
    /// # Errors
    /// A resolver's files are at fault.
    pub(crate) fn prepare(
        &self,
        config: &Config,
        names: &Resolvers,
    ) -> Result<Configured, ConfigError> {
        // Sockets of servers belong to the runtime.
        let _entered = self.runtime.enter();
        self.resolver.upstreams().prepare(config, names)
    }

    /// The second half: other rules and resolvers count from now on.
    pub(crate) fn put_in_force(
        &self,
        configured: Configured,
        config: &Config,
        policy: &Arc<Policy>,
    ) {
        self.upstream.send_if_modified(|upstream| {
            let changes = *upstream != config.dns.upstream;
            upstream.clone_from(&config.dns.upstream);
            changes
        });
        let changed = self.resolver.upstreams().put_in_force(configured);
        self.resolver.set_plan(Arc::new(ByPolicy(Arc::clone(policy))));
        for resolver in changed {
            self.resolver.flush(Some(resolver));
        }
    }
}

impl Waiting {
    /// The resolver that will answer.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Begins to answer what the shards ask, in a thread that ends with the process.
    ///
    /// # Errors
    /// There can be no more threads.
    pub(crate) fn start(
        self,
        shards: Vec<Handle>,
        network: Network,
        events: Option<Arc<Events>>,
    ) -> std::io::Result<()> {
        let Self { names, queries, runtime } = self;
        let (resolver, upstream) = (names.resolver, names.upstream.subscribe());
        // Whoever asks holds a sender of its own.
        drop(names.queue);
        thread::Builder::new().name("names".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::spawn(follow(Arc::clone(&resolver), network, upstream));
                let told = Told { servers: Arc::clone(&resolver), events };
                serve::serve(resolver, queries, shards, told).await;
            });
        })?;
        Ok(())
    }
}

/// Tells the resolver of the network's own servers, now and when they change. Those that are
/// `wanted` by the configuration count instead.
async fn follow(
    resolver: Arc<Resolver<Servers>>,
    network: Network,
    mut wanted: watch::Receiver<Option<Vec<Server>>>,
) {
    let mut found = None;
    loop {
        let fixed = match (wanted.borrow_and_update().clone(), &network) {
            (Some(servers), _) => Some(servers),
            (None, Network::Fixed(servers, search)) => {
                resolver.set_search(search);
                Some(servers.clone())
            }
            (None, Network::Followed(_)) => None,
        };
        if let Some(servers) = fixed {
            resolver.upstreams().set_fixed(servers);
            resolver.flush(Some(ResolverId::UPSTREAM));
        }
        if let Network::Followed(settings) = &network {
            // Search domains are the network's, whoever answers.
            let found = match &mut found {
                Some(found) => found,
                none => none.insert(discover::watch(settings.clone()).await),
            };
            let is_wanted = wanted.borrow().is_some();
            let now = Arc::clone(&found.borrow_and_update());
            if is_wanted {
                resolver.set_search(&now.search);
            } else {
                take(&resolver, &now);
            }
            tokio::select! {
                changed = found.changed() => if changed.is_err() { return },
                changed = wanted.changed() => if changed.is_err() { return },
            }
        } else if wanted.changed().await.is_err() {
            return;
        }
    }
}

fn take(resolver: &Resolver<Servers>, found: &Found) {
    if resolver.upstreams().set_found(found) {
        resolver.set_search(&found.search);
        // Another network may know other names, and other addresses of the same.
        resolver.flush(Some(ResolverId::UPSTREAM));
    }
}

/// Who hears of what happened.
#[derive(Clone)]
struct Told {
    servers: Arc<Resolver<Servers>>,
    events: Option<Arc<Events>>,
}

impl Told {
    fn events(&self, happened: Vec<Event>) {
        let Some(events) = self.events.as_ref().filter(|events| events.watchers() > 0) else {
            return;
        };
        if happened.is_empty() {
            return;
        }
        let names = self.servers.upstreams().names();
        let name_of = |id: ResolverId| resolver_name(&names, id);
        for event in &happened {
            events.send(format!("{}\n", told::object(event, SystemTime::now(), &name_of)));
        }
    }
}

/// A resolver's name.
pub(crate) fn resolver_name(names: &Resolvers, id: ResolverId) -> Arc<str> {
    let id = engine::ResolverId::new(id.0);
    id.and_then(|id| names.name(id).cloned()).unwrap_or_else(|| Resolvers::UPSTREAM.into())
}

/// Addresses that are ours: no server is there.
pub(crate) fn own_addresses(config: &Config) -> Vec<IpAddr> {
    let device = config.device.addresses.iter().map(ipnet::IpNet::addr);
    device.chain(config.dns.addresses.iter().copied()).collect()
}

fn refuse(error: ConfigError) -> anyhow::Error {
    let refusal = crate::error::Refusal::new(crate::error::code::USAGE, &error);
    match error.help() {
        Some(help) => refusal.help(help).into(),
        None => refusal.into(),
    }
}
