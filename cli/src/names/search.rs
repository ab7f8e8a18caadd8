//! Search domains: what a name without a dot is completed with, and whose the result is.
//!
//! It is completed by the app's own library, or by systemd-resolved, with what they were told; we
//! tell them. The domains of a tunnel (`DNS` of its file) count where the policy has names in them
//! asked of that tunnel's servers: elsewhere every short name that somebody types would be told to
//! servers that have nothing to do with it. Those of the network always count, and come last.

use std::collections::BTreeSet;
use std::sync::Arc;

use dns::ask::ResolverId;
use dns::split::SearchDomain;
use dns::takeover;
use engine::policy::Policy;
use tokio::sync::watch;

use crate::config::Config;

/// The domains in the order in which names are tried in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Search {
    /// Those of tunnels.
    tunnels: Vec<SearchDomain>,
    /// Those of the network, but for those that tunnels have or had: these it may have from us.
    network: Vec<String>,
    /// All that tunnels have had.
    ours: BTreeSet<String>,
}

impl Search {
    /// Those of tunnels alone.
    pub(crate) fn tunnels(&self) -> impl Iterator<Item = &str> {
        self.tunnels.iter().map(|(domain, _)| &**domain)
    }

    /// Beside what the host's own file says.
    pub(crate) fn around_the_hosts(&self) -> takeover::Search {
        let first = self.tunnels().map(str::to_owned).collect();
        takeover::Search { first, last: self.network.clone() }
    }

    /// The domains, and whose they are.
    fn owned(&self) -> Vec<SearchDomain> {
        let network = self.network.iter().map(|domain| (domain.clone(), ResolverId::UPSTREAM));
        self.tunnels.iter().cloned().chain(network).collect()
    }

    fn set_tunnels(&mut self, tunnels: Vec<SearchDomain>) {
        self.ours.extend(tunnels.iter().map(|(domain, _)| domain.clone()));
        self.tunnels = tunnels;
        self.network.retain(|domain| !self.ours.contains(domain));
    }

    fn set_network(&mut self, network: &[String]) {
        let theirs = network.iter().filter(|domain| !self.ours.contains(*domain));
        self.network = theirs.cloned().collect();
    }
}

/// The domains that count now, and who waits for others.
#[derive(Debug, Clone, Default)]
pub(super) struct Told(Arc<watch::Sender<Search>>);

impl Told {
    pub(super) fn subscribe(&self) -> watch::Receiver<Search> {
        self.0.subscribe()
    }

    /// Tunnels have others. `put` is told of all, in the order in which they come to be.
    pub(super) fn set_tunnels(&self, of: Vec<SearchDomain>, put: impl FnOnce(&[SearchDomain])) {
        self.change(|search| search.set_tunnels(of), put);
    }

    /// The network has others.
    pub(super) fn set_network(&self, network: &[String], put: impl FnOnce(&[SearchDomain])) {
        self.change(|search| search.set_network(network), put);
    }

    fn change(&self, change: impl FnOnce(&mut Search), put: impl FnOnce(&[SearchDomain])) {
        self.0.send_if_modified(|search| {
            let before = search.clone();
            change(search);
            put(&search.owned());
            *search != before
        });
    }
}

/// The domains of tunnels in whose names the policy asks the tunnel's own servers, each once.
pub(crate) fn of_tunnels(config: &Config, policy: &Policy) -> Vec<SearchDomain> {
    let mut found: Vec<SearchDomain> = Vec::new();
    for tunnel in &config.wireguard {
        let Some(id) = policy.resolvers().id(tunnel.name.as_str()) else { continue };
        for domain in &tunnel.interface.search {
            // Of any host in it: no rule is about this one alone.
            let asked = policy.resolution(&format!("_any-host_.{domain}"));
            let is_new = found.iter().all(|(known, _)| known != domain);
            if is_new && asked.resolvers.contains(&id) {
                found.push((domain.clone(), ResolverId(id.number())));
            }
        }
    }
    found
}
