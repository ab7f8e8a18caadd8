//! The servers of every resolver: those of the configuration, and the network's own, which
//! change while we run.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use dns::ask::{Failure, Question, Reply, ResolverId, Upstreams};
use dns::discover::{Found, FoundServer};
use dns::name::is_within;
use dns::own::OwnQueries;
use dns::server::Server;
use dns::socket::{Direct, Way};
use dns::tls::Trust;
use dns::upstream::{ConfigError, Pool, Settings};
use engine::Resolvers;

use crate::config::Config;

/// Who is asked, by resolver.
#[derive(Debug)]
pub(crate) struct Servers {
    way: Arc<Direct>,
    own: OwnQueries,
    configured: RwLock<Arc<Configured>>,
    network: RwLock<Arc<Network>>,
}

/// The resolvers of one configuration, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Configured {
    names: Resolvers,
    pools: Vec<Option<Arc<Pool>>>,
}

/// The network's own servers.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// What was found.
    pub(crate) found: Found,
    /// Those that the configuration names instead.
    pub(crate) fixed: Vec<Server>,
    /// Those that any name may be asked of.
    general: Option<Arc<Pool>>,
    /// Those of links that are for some domains, the longest domain first.
    domains: Vec<(String, Arc<Pool>)>,
}

impl Servers {
    pub(super) fn new(mark: Option<u32>, own: OwnQueries) -> Self {
        Self {
            way: Arc::new(Direct::new(mark)),
            own,
            configured: RwLock::default(),
            network: RwLock::default(),
        }
    }

    /// Sets up the resolvers of a configuration; those that are as they were stay, connections
    /// and all.
    pub(super) fn prepare(
        &self,
        config: &Config,
        names: &Resolvers,
    ) -> Result<Configured, ConfigError> {
        let before = self.configured();
        let mut pools = Vec::new();
        for resolver in &config.resolvers {
            let Some(id) = names.id(&resolver.name) else { continue };
            let place = usize::from(id.number());
            let settings = resolver.settings.clone();
            let kept = before.pools.get(place).cloned().flatten();
            let pool = match kept.filter(|pool| *pool.settings() == settings) {
                Some(pool) => pool,
                None => Arc::new(self.pool(settings)?),
            };
            if pools.len() <= place {
                pools.resize(place + 1, None);
            }
            pools[place] = Some(pool);
        }
        Ok(Configured { names: names.clone(), pools })
    }

    /// Puts them in force: which resolvers have other servers now.
    pub(super) fn put_in_force(&self, configured: Configured) -> Vec<ResolverId> {
        let mut place = self.configured.write().unwrap_or_else(PoisonError::into_inner);
        let of = |pools: &[Option<Arc<Pool>>], at: usize| pools.get(at).cloned().flatten();
        let same = |a: &Option<Arc<Pool>>, b: &Option<Arc<Pool>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let changed = (0..place.pools.len().max(configured.pools.len()))
            .filter(|&at| !same(&of(&place.pools, at), &of(&configured.pools, at)))
            .filter_map(|at| u8::try_from(at).ok().map(ResolverId))
            .collect();
        *place = Arc::new(configured);
        changed
    }

    /// Takes servers that stand for the network's whatever it names.
    pub(super) fn set_fixed(&self, servers: Vec<Server>) {
        let settings = Settings { servers: servers.clone(), trust: Trust::default() };
        let general = self.pool(settings).ok().map(Arc::new);
        let network = Network { fixed: servers, general, ..Network::default() };
        *self.network.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(network);
    }

    /// Takes other servers of the network. `false`: they are the same.
    pub(super) fn set_found(&self, found: &Found) -> bool {
        let before = self.network();
        if before.found == *found {
            return false;
        }
        let network = Network {
            general: self.group(found.servers.iter().filter(|server| server.default_route)),
            domains: self.domains(found),
            found: found.clone(),
            fixed: Vec::new(),
        };
        *self.network.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(network);
        true
    }

    fn domains(&self, found: &Found) -> Vec<(String, Arc<Pool>)> {
        let mut names: Vec<&str> = found
            .servers
            .iter()
            .flat_map(|server| &server.domains)
            .map(|domain| &*domain.name)
            .filter(|name| !name.is_empty())
            .collect();
        names.sort_unstable_by_key(|name| (std::cmp::Reverse(name.len()), *name));
        names.dedup();
        let pools = names.into_iter().filter_map(|name| {
            let knows = |server: &&FoundServer| server.domains.iter().any(|d| d.name == name);
            let pool = self.group(found.servers.iter().filter(knows))?;
            Some((name.to_owned(), pool))
        });
        pools.collect()
    }

    fn group<'f>(&self, servers: impl Iterator<Item = &'f FoundServer>) -> Option<Arc<Pool>> {
        let servers: Vec<Server> = servers.map(as_written).collect();
        if servers.is_empty() {
            return None;
        }
        // Servers with addresses and without files of their own: nothing can be wrong.
        self.pool(Settings { servers, trust: Trust::default() }).ok().map(Arc::new)
    }

    fn pool(&self, settings: Settings) -> Result<Pool, ConfigError> {
        Pool::watched(settings, Arc::clone(&self.way) as Arc<dyn Way>, &self.own)
    }

    fn configured(&self) -> Arc<Configured> {
        Arc::clone(&self.configured.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The network's own servers as they are known now.
    pub(crate) fn network(&self) -> Arc<Network> {
        Arc::clone(&self.network.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The resolvers' names and numbers.
    pub(crate) fn names(&self) -> Resolvers {
        self.configured().names.clone()
    }

    /// The servers of a configured resolver.
    pub(crate) fn of(&self, resolver: ResolverId) -> Option<Arc<Pool>> {
        self.configured().pools.get(usize::from(resolver.0)).cloned().flatten()
    }

    /// Who is asked for this name.
    pub(crate) fn pool_for(&self, resolver: ResolverId, name: &str) -> Option<Arc<Pool>> {
        if resolver != ResolverId::UPSTREAM {
            return self.of(resolver);
        }
        let network = self.network();
        let of_domain = network.domains.iter().find(|(domain, _)| is_within(name, domain));
        of_domain.map(|(_, pool)| pool).or(network.general.as_ref()).cloned()
    }
}

impl Network {
    /// All of its servers in groups that are asked together; some are in several.
    pub(super) fn pools(&self) -> impl Iterator<Item = &Pool> {
        let pools = self.domains.iter().map(|(_, pool)| pool).chain(&self.general);
        pools.map(|pool| &**pool)
    }
}

impl Upstreams for Servers {
    async fn ask(
        &self,
        resolver: ResolverId,
        question: &Question,
        within: Duration,
    ) -> Result<Reply, Failure> {
        let name = question.name.to_ascii();
        let pool = self.pool_for(resolver, name.trim_end_matches('.'));
        let pool = pool.ok_or(Failure::NoServers)?;
        pool.ask(&question.query(), within).await.map_err(|failure| Failure::from(&failure))
    }

    fn is_tunnel(&self, resolver: ResolverId) -> bool {
        self.of(resolver).is_some_and(|pool| pool.is_tunnel())
    }
}

/// A server of the network as it would stand in a configuration.
pub(crate) fn as_written(found: &FoundServer) -> Server {
    let server = if found.tls {
        Server::tls(found.address, found.name.as_deref())
    } else {
        Server::plain(found.address)
    };
    // Whatever routing says: a link's server is asked over that link.
    match found.link.and_then(device_name) {
        Some(device) => server.behind(&device),
        None => server,
    }
}

fn device_name(index: u32) -> Option<String> {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    rustix::net::netdevice::index_to_name(socket.ok()?, index).ok()
}
