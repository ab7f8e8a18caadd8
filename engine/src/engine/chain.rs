//! Chains: flows that lead through a proxy of this host to the proxy again.
//!
//! What a proxy of this host connects to leaves by the device like all else. Where its socket is
//! known to be the proxy's it goes directly ([`Owner::of_proxy`](crate::Owner)). Where it is not,
//! because nobody can see who listens there, or who does passes it on to another program, the
//! routes lead it to the proxy, which connects again, and so on without an end. All flows of
//! such a chain have one destination and none of them is answered, so where [`LONGEST`] wait
//! already, the next is refused: then the one before fails, and so back to the first.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::engine::Engine;
use crate::engine::own::{Own, Whose};
use crate::flow::{FlowId, Opening};
use crate::{Facts, NameFrom, Protocol, WayId};

/// So many flows may wait for one destination through one proxy of this host. A browser opens
/// six connections to a server at once.
pub(super) const LONGEST: u32 = 64;

/// What the flows of a chain have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Chain {
    via: WayId,
    protocol: Protocol,
    /// What the proxy is told: it may know another address by a name.
    name: Option<Arc<str>>,
    to: SocketAddr,
}

impl Chain {
    fn of(opening: &Opening) -> Option<Self> {
        let facts = &opening.facts;
        let name = told(facts);
        let mut to = facts.destination();
        if name.is_some() {
            to.set_ip(std::net::Ipv4Addr::UNSPECIFIED.into());
        }
        Some(Self { via: facts.via?, protocol: facts.protocol, name, to })
    }
}

/// The name that a proxy is told of a destination. What the first bytes claim chooses no other
/// host than the app did.
pub(super) fn told(facts: &Facts) -> Option<Arc<str>> {
    let asked = facts.name.known().filter(|name| name.from == NameFrom::Dns);
    asked.map(|name| Arc::clone(&name.text))
}

impl Engine {
    /// Whether that is an address of the host that the flows come from, where these are only
    /// some of them: what a proxy there connects to may come as a flow, too.
    pub fn is_of_this_host(&self, address: IpAddr) -> bool {
        match &self.config.own {
            Own::Every => false,
            own @ Own::Addresses { .. } => {
                address.is_loopback() || own.whose(address) != Whose::Forwarded
            }
        }
    }

    /// To be called when ways out or addresses have changed.
    pub(super) fn find_own_proxies(&mut self) {
        let mut proxies = self.ways.proxies();
        self.own_proxies = proxies.any(|proxy| self.is_of_this_host(proxy.ip()));
    }

    /// Counts a flow that a proxy of this host is asked for; `false`: there is a chain.
    pub(super) fn join_chain(&mut self, id: FlowId) -> bool {
        let Some(flow) = self.table.get_mut(id) else { return true };
        let Some(chain) = Chain::of(&flow.opening) else { return true };
        let waiting = self.chains.entry(chain).or_insert(0);
        if *waiting >= LONGEST {
            return false;
        }
        *waiting += u32::from(!flow.opening.chained);
        flow.opening.chained = true;
        true
    }

    /// The far side of a flow has answered.
    pub(super) fn leave_chain(&mut self, id: FlowId) {
        if let Some(flow) = self.table.get_mut(id)
            && flow.opening.chained
        {
            flow.opening.chained = false;
            let chain = Chain::of(&flow.opening);
            self.uncount(chain);
        }
    }

    /// A flow is over.
    pub(super) fn end_chain(&mut self, opening: &Opening) {
        if opening.chained {
            self.uncount(Chain::of(opening));
        }
    }

    fn uncount(&mut self, chain: Option<Chain>) {
        let Some(chain) = chain else { return };
        if let Some(waiting) = self.chains.get_mut(&chain) {
            *waiting -= 1;
            if *waiting == 0 {
                self.chains.remove(&chain);
            }
        }
    }
}
