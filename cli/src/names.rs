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
mod paths;
mod plan;
mod search;
mod serve;
mod servers;
#[cfg(test)]
pub(crate) mod standin;
pub(crate) mod told;
mod tunnelled;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use anyhow::Context;
use dns::ask::ResolverId;
use dns::discover::{self, Found, FoundServer, Provenance, ResolvConf};
use dns::event::Event;
use dns::own::OwnQueries;
use dns::resolver::{self, Resolver};
use dns::upstream::ConfigError;
use engine::policy::Policy;
use engine::{LinkId, Resolvers};
use tokio::runtime::Handle as Runtime;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::watch;
use tunnel::driver::Handle;
use tunnel::driver::service::Service;

use crate::config::Config;
use crate::daemon::Events;

pub(crate) use asking::{Asked, Deaf};
pub(crate) use search::{Search, of_tunnels};
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
    /// Addresses that are ours: no server is there.
    own: Arc<watch::Sender<Vec<IpAddr>>>,
    search: search::Told,
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
    /// From a resolv.conf(5) alone, again and again: those that a program asks, this host's own
    /// resolver too.
    File(PathBuf),
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
        let configured = servers.prepare(config, policy).map_err(refuse)?;
        servers.put_in_force(configured);
        let settings =
            resolver::Settings { cache: config.dns.cache, own, ..resolver::Settings::default() };
        let plan = Arc::new(ByPolicy(Arc::clone(policy)));
        let (queue, queries) = channel(QUEUE);
        let names = Names {
            resolver: Resolver::new(settings, plan, servers),
            queue,
            own: Arc::new(watch::Sender::new(own_addresses(config))),
            search: search::Told::default(),
            runtime: runtime.handle().clone(),
        };
        names.set_search(config, policy);
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
        policy: &Policy,
    ) -> Result<Configured, ConfigError> {
        // Sockets of servers belong to the runtime.
        let _entered = self.runtime.enter();
        self.resolver.upstreams().prepare(config, policy)
    }

    /// The second half: other rules and resolvers count from now on.
    pub(crate) fn put_in_force(
        &self,
        configured: Configured,
        config: &Config,
        policy: &Arc<Policy>,
    ) {
        self.resolver.set_cache(config.dns.cache);
        let changed = {
            let _entered = self.runtime.enter();
            self.resolver.upstreams().put_in_force(configured)
        };
        self.resolver.set_plan(Arc::new(ByPolicy(Arc::clone(policy))));
        self.set_search(config, policy);
        for resolver in changed {
            self.resolver.flush(Some(resolver));
        }
    }

    /// The way through a tunnel has changed, or it is usable no longer, or again.
    pub(crate) fn reset_through(&self, link: LinkId) {
        self.resolver.upstreams().reset_through(link);
    }

    /// The search domains of this policy's tunnels count from now on.
    fn set_search(&self, config: &Config, policy: &Policy) {
        self.search.set_tunnels(of_tunnels(config, policy), |all| self.resolver.set_search(all));
    }

    /// The search domains, as they change.
    pub(crate) fn search(&self) -> watch::Receiver<Search> {
        self.search.subscribe()
    }

    /// The runtime that asks servers.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The addresses that are ours, as they change.
    pub(crate) fn own(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.own.subscribe()
    }

    /// Others are ours from now on: those of these configurations. Who leads the host's programs
    /// elsewhere says so before it does, and before it doesn't any more.
    pub(crate) fn set_own(&self, of: &[&Config]) {
        let own: Vec<IpAddr> = of.iter().flat_map(|config| own_addresses(config)).collect();
        self.own.send_if_modified(|known| {
            let is_new = *known != own;
            *known = own;
            is_new
        });
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
        held: impl Send + 'static,
    ) -> std::io::Result<()> {
        let Self { names, queries, runtime } = self;
        let (resolver, search) = (names.resolver, names.search);
        // The first one has the tunnels.
        if let Some(shard) = shards.first() {
            resolver.upstreams().set_shard(shard.clone());
        }
        // Whoever asks holds a sender of its own.
        drop(names.queue);
        thread::Builder::new().name("names".to_owned()).spawn(move || {
            let _held = held;
            runtime.block_on(async {
                tokio::spawn(follow(Arc::clone(&resolver), search, network));
                tokio::spawn(paths::follow(Arc::clone(&resolver)));
                let told = Told { servers: Arc::clone(&resolver), events };
                serve::serve(resolver, queries, shards, told).await;
            });
        })?;
        Ok(())
    }
}

/// Tells the resolver of the network's own servers, now and when they change.
async fn follow(resolver: Arc<Resolver<Servers>>, search: search::Told, network: Network) {
    match network {
        Network::Followed(settings) => {
            let mut found = discover::watch(settings).await;
            loop {
                let now = Arc::clone(&found.borrow_and_update());
                take(&resolver, &search, &now);
                if found.changed().await.is_err() {
                    return;
                }
            }
        }
        Network::File(path) => {
            let mut file = discover::follow(&path);
            loop {
                let now = Arc::clone(&file.borrow_and_update());
                take(&resolver, &search, &named(&now, &path));
                if file.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The servers that programs would ask, and their search domains.
fn named(file: &ResolvConf, path: &Path) -> Found {
    // Without a server glibc asks this host's own (resolv.conf(5)).
    let nobody = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let named = &file.nameservers;
    let servers = if named.is_empty() { &nobody[..] } else { named };
    let server = |ip: &IpAddr| FoundServer {
        address: SocketAddr::new(*ip, 53),
        link: None,
        tls: false,
        name: None,
        from: Provenance::ResolvConf { path: path.to_owned() },
        domains: Vec::new(),
        default_route: true,
    };
    let search = file.search().into_iter().map(str::to_owned).collect();
    Found { servers: servers.iter().map(server).collect(), search }
}

fn take(resolver: &Resolver<Servers>, search: &search::Told, found: &Found) {
    // Search domains are the network's, whoever answers.
    search.set_network(&found.search, |all| resolver.set_search(all));
    if resolver.upstreams().set_found(found) {
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
fn own_addresses(config: &Config) -> Vec<IpAddr> {
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
