//! Every server of every resolver, and where each was learned.

use dns::ask::ResolverId;
use dns::discover::{Domain, FoundServer, Provenance};
use dns::resolver::ResolverStatistics;
use dns::server::{Device, Server};
use dns::upstream::State;
use rustix::net::netdevice::index_to_name;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde_json::{Value, json};

use super::Names;
use super::servers::{Network, as_written};

/// A server of a resolver.
struct Listed<'s> {
    server: Server,
    from: Provenance,
    state: State,
    domains: &'s [Domain],
    /// Whether names of no link's domains may be asked there.
    default_route: bool,
}

impl Names {
    /// The objects of `docs/json.md`, in the order of the resolvers and then in that of asking.
    /// A resolver without a server has one all the same.
    pub(crate) fn servers(&self) -> Vec<Value> {
        let (names, servers) = (self.resolvers(), self.resolver.upstreams());
        let (network, statistics) = (servers.network(), self.statistics());
        let mut objects = Vec::new();
        for name in names.names() {
            let Some(id) = names.id(name).map(|id| ResolverId(id.number())) else { continue };
            let pool = servers.of(id);
            let listed = if id == ResolverId::UPSTREAM {
                of_network(&network)
            } else {
                let servers = pool.iter().flat_map(|pool| pool.servers());
                servers.map(|(server, state)| configured(server, state)).collect()
            };
            let counted = statistics.resolvers.iter().find(|counted| counted.resolver == id);
            if listed.is_empty() {
                objects.push(object(name, None, counted));
            }
            objects.extend(listed.iter().map(|listed| object(name, Some(listed), counted)));
        }
        objects
    }
}

fn of_network(network: &Network) -> Vec<Listed<'_>> {
    let state = |server: &Server| {
        let states = network.pools().flat_map(|pool| pool.servers());
        let states = states.filter(|(of, _)| *of == server).map(|(_, state)| state);
        // One server may serve several domains: it answers if it has answered for one.
        states.max().unwrap_or(State::Untried)
    };
    if let Some(fixed) = &network.fixed {
        return fixed.servers().map(|(server, state)| configured(server, state)).collect();
    }
    let found = network.found.servers.iter().map(|found: &FoundServer| {
        let server = as_written(found);
        Listed {
            state: state(&server),
            server,
            from: found.from.clone(),
            domains: &found.domains,
            default_route: found.default_route,
        }
    });
    found.collect()
}

fn configured(server: &Server, state: State) -> Listed<'_> {
    let (server, from) = (server.clone(), Provenance::Configured);
    Listed { server, from, state, domains: &[], default_route: true }
}

fn object(name: &str, listed: Option<&Listed<'_>>, counted: Option<&ResolverStatistics>) -> Value {
    let domains = listed.map(|listed| {
        let domains = listed.domains.iter();
        domains
            .map(|domain| json!({ "name": domain.name, "route_only": domain.route_only }))
            .collect::<Vec<_>>()
    });
    let device = listed.and_then(|listed| listed.server.device.as_ref()).map(device_name);
    let server = listed.map(|listed| Server {
        device: device.as_deref().map(|name| Device::Named(name.into())),
        ..listed.server.clone()
    });
    json!({
        "event": "server",
        "resolver": name,
        "server": server.map(|server| server.to_string()),
        "transport": listed.map(|listed| listed.server.transport.scheme()),
        "from": listed.map(|listed| listed.from.to_string()),
        "device": device,
        "domains": domains.unwrap_or_default(),
        "default_route": listed.map(|listed| listed.default_route),
        "state": listed.map(|listed| listed.state.word()),
        "resolver_asked": counted.map_or(0, |counted| counted.asked),
        "resolver_failed": counted.map_or(0, |counted| counted.failed),
    })
}

/// The name that a device has now; the number of one that is gone.
fn device_name(device: &Device) -> String {
    let now = |index: u32| {
        let socket =
            socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        index_to_name(socket.ok()?, index).ok()
    };
    match device {
        Device::Named(name) => name.to_string(),
        Device::Index(index) => now(*index).unwrap_or_else(|| index.to_string()),
    }
}
