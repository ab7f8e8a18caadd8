//! The servers of every resolver: those of the configuration, and the network's own, which
//! change while we run.

use std::cmp::Reverse;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use dns::ask::{Failure, Question, Reply, ResolverId, Upstreams};
use dns::discover::{Found, FoundServer};
use dns::name::is_within;
use dns::own::OwnQueries;
use dns::server::{Device, Server};
use dns::socket::{Direct, Way};
use dns::tls::Trust;
use dns::upstream::{ConfigError, Pool, Settings};
use engine::policy::Policy;
use engine::{LinkId, Resolvers};
use tracing::warn;
use tunnel::driver::Handle;

use super::paths::Paths;
use super::tunnelled::{Shard, Tunnelled};
use crate::config::Config;

/// Who is asked, by resolver.
#[derive(Debug)]
pub(crate) struct Servers {
    direct: Arc<Direct>,
    paths: Arc<Paths>,
    /// The shard that has the tunnels.
    shard: Shard,
    own: OwnQueries,
    configured: RwLock<Arc<Configured>>,
    network: RwLock<Arc<Network>>,
}

/// The resolvers of one configuration, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Configured {
    names: Resolvers,
    pools: Vec<Option<Arc<Pool>>>,
    /// The tunnel through which each of them is asked; `None`: `direct`.
    links: Vec<Option<LinkId>>,
    /// `dns.upstream`.
    fixed: Option<Arc<Pool>>,
}

/// The network's own servers.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// What was found, whether it counts or not.
    pub(crate) found: Found,
    /// Those that the configuration names instead.
    pub(crate) fixed: Option<Arc<Pool>>,
    /// Those that any name may be asked of.
    general: Option<Arc<Pool>>,
    /// Those of links that are for some domains, the longest domain first. The root is one: where
    /// a link has it (`~.`), nobody else is asked what is in no other domain.
    domains: Vec<(String, Option<Arc<Pool>>)>,
}

impl Servers {
    pub(super) fn new(mark: Option<u32>, own: OwnQueries) -> Self {
        let paths = Arc::new(Paths::new(mark));
        let of = Arc::clone(&paths);
        Self {
            direct: Arc::new(Direct::new(mark).bound(Box::new(move |target| of.uplink(target)))),
            paths,
            shard: Shard::default(),
            own,
            configured: RwLock::default(),
            network: RwLock::default(),
        }
    }

    /// The shard that has the tunnels is there: until then nothing is asked through one.
    pub(super) fn set_shard(&self, shard: Handle) {
        // It is told once.
        let _ = self.shard.set(shard);
    }

    /// The way through a tunnel has changed: its sockets are given up, and who was silent is asked
    /// again.
    pub(super) fn reset_through(&self, link: LinkId) {
        let configured = self.configured();
        let pools = configured.pools.iter().zip(&configured.links);
        let through = pools.filter(|(_, via)| **via == Some(link));
        through.filter_map(|(pool, _)| pool.as_ref()).for_each(|pool| pool.reset());
    }

    /// Sets up the resolvers of a configuration, by the numbers that a policy has of them and of
    /// the ways to them; those that are as they were stay, connections and all.
    pub(super) fn prepare(
        &self,
        config: &Config,
        policy: &Policy,
    ) -> Result<Configured, ConfigError> {
        let (before, names) = (self.configured(), policy.resolvers());
        let pool = |kept: Option<&Arc<Pool>>, settings: &Settings, via| match kept
            .filter(|pool| pool.settings() == settings)
        {
            Some(pool) => Ok(Arc::clone(pool)),
            None => self.pool(settings.clone(), via).map(Arc::new),
        };
        let (mut pools, mut links) = (Vec::new(), Vec::new());
        for resolver in &config.resolvers {
            let via = match resolver.via {
                Some(name) => match policy.ways().id(name.as_str()) {
                    Some(way) => Some(LinkId::of(way)),
                    // It has no servers then: never others by another way.
                    None => continue,
                },
                None => None,
            };
            let Some(id) = names.id(&resolver.name) else { continue };
            let place = usize::from(id.number());
            let same_way = before.links.get(place) == Some(&via);
            let kept = before.pools.get(place).filter(|_| same_way).and_then(Option::as_ref);
            if pools.len() <= place {
                pools.resize(place + 1, None);
                links.resize(place + 1, None);
            }
            pools[place] = Some(pool(kept, &resolver.settings, via)?);
            links[place] = via;
        }
        let fixed = config.dns.upstream.as_ref().map(|servers| {
            let settings = Settings { servers: servers.clone(), trust: Trust::default() };
            pool(before.fixed.as_ref(), &settings, None)
        });
        Ok(Configured { names: names.clone(), pools, links, fixed: fixed.transpose()? })
    }

    /// Puts them in force: which resolvers have other servers now.
    pub(super) fn put_in_force(&self, configured: Configured) -> Vec<ResolverId> {
        let mut changed = Vec::new();
        if self.set_network(None, Some(configured.fixed.clone())) {
            changed.push(ResolverId::UPSTREAM);
        }
        let mut place = self.configured.write().unwrap_or_else(PoisonError::into_inner);
        let of = |pools: &[Option<Arc<Pool>>], at: usize| pools.get(at).cloned().flatten();
        let others = (0..place.pools.len().max(configured.pools.len()))
            .filter(|&at| !is_same(&of(&place.pools, at), &of(&configured.pools, at)))
            .filter_map(|at| u8::try_from(at).ok().map(ResolverId));
        changed.extend(others);
        *place = Arc::new(configured);
        changed
    }

    /// Takes other servers of the network. `false`: the same are asked as before.
    pub(super) fn set_found(&self, found: &Found) -> bool {
        self.set_network(Some(found), None)
    }

    /// Takes what was found, or what the configuration names instead. Whoever is found counts
    /// where nobody is named.
    fn set_network(&self, found: Option<&Found>, fixed: Option<Option<Arc<Pool>>>) -> bool {
        let mut place = self.network.write().unwrap_or_else(PoisonError::into_inner);
        let fixed = fixed.unwrap_or_else(|| place.fixed.clone());
        let found = found.unwrap_or(&place.found);
        let changes = !is_same(&fixed, &place.fixed)
            || fixed.is_none() && found.servers != place.found.servers;
        if !changes && *found == place.found {
            return false;
        }
        let found = found.clone();
        let (general, domains) = if !changes {
            (place.general.clone(), place.domains.clone())
        } else if fixed.is_some() {
            (fixed.clone(), Vec::new())
        } else {
            let general = found.servers.iter().filter(|server| server.default_route);
            (self.group(general), self.domains(&found))
        };
        *place = Arc::new(Network { found, fixed, general, domains });
        changes
    }

    fn domains(&self, found: &Found) -> Vec<(String, Option<Arc<Pool>>)> {
        let all = found.servers.iter().flat_map(|server| &server.domains);
        let mut names: Vec<&str> = all.map(|domain| &*domain.name).collect();
        names.sort_unstable_by_key(|name| (Reverse(name.len()), *name));
        names.dedup();
        let pools = names.into_iter().map(|name| {
            let knows = |server: &&FoundServer| server.domains.iter().any(|d| d.name == name);
            // One that can't be asked is nobody's: its names are not for others.
            (name.to_owned(), self.group(found.servers.iter().filter(knows)))
        });
        pools.collect()
    }

    fn group<'f>(&self, servers: impl Iterator<Item = &'f FoundServer>) -> Option<Arc<Pool>> {
        let servers: Vec<Server> = servers.map(as_written).collect();
        if servers.is_empty() {
            return None;
        }
        match self.pool(Settings { servers, trust: Trust::default() }, None) {
            Ok(pool) => Some(Arc::new(pool)),
            Err(error) => {
                let help = error.help().map(|help| format!("; {help}")).unwrap_or_default();
                warn!(
                    code = "servers-unusable",
                    "the network's own servers are not asked: {error}{help}"
                );
                None
            }
        }
    }

    fn pool(&self, settings: Settings, via: Option<LinkId>) -> Result<Pool, ConfigError> {
        let way: Arc<dyn Way> = match via {
            Some(link) => Arc::new(Tunnelled::new(Arc::clone(&self.shard), link)),
            None => Arc::clone(&self.direct) as _,
        };
        Pool::watched(settings, way, &self.own)
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
        match network.domains.iter().find(|(domain, _)| is_within(name, domain)) {
            Some((_, pool)) => pool.clone(),
            None => network.general.clone(),
        }
    }

    /// Gives up the sockets of all whose way leads elsewhere now: whose they are.
    pub(super) fn follow_paths(&self) -> Vec<ResolverId> {
        let moved = self.paths.moved();
        let leads_elsewhere = |pool: &Pool| {
            let mut places = pool.places();
            places.any(|place| moved.contains(&place))
        };
        let (configured, network) = (self.configured(), self.network());
        let configured = configured.pools.iter().enumerate().filter_map(|(number, pool)| {
            let id = u8::try_from(number).ok().map(ResolverId);
            id.zip(pool.as_deref())
        });
        let network = network.pools().map(|pool| (ResolverId::UPSTREAM, pool));
        let mut changed: Vec<ResolverId> = configured
            .chain(network)
            .filter(|(_, pool)| leads_elsewhere(pool))
            .map(|(id, pool)| {
                pool.reset();
                id
            })
            .collect();
        changed.dedup();
        changed
    }
}

fn is_same(a: &Option<Arc<Pool>>, b: &Option<Arc<Pool>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

impl Network {
    /// All of its servers in groups that are asked together; some are in several.
    pub(super) fn pools(&self) -> impl Iterator<Item = &Pool> {
        let domains = self.domains.iter().filter_map(|(_, pool)| pool.as_deref());
        domains.chain(self.general.as_deref())
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

/// A server of the network, as it is asked.
pub(crate) fn as_written(found: &FoundServer) -> Server {
    let server = if found.tls {
        Server::tls(found.address, found.name.as_deref())
    } else {
        Server::plain(found.address)
    };
    // Whatever routing says: a link's server is asked over that link, by whatever name.
    match found.link {
        Some(link) => server.behind(Device::Index(link)),
        None => server,
    }
}
