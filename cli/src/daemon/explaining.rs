//! `explain` on the live daemon: the policy in force, and the source that the kernel would
//! choose. Nothing is sent.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use engine::policy::{self, AssumedSource, Hypothesis, HypothesisError, NotAName, Policy, choose};
use engine::{DeviceName, Egress, Leads, Link, Protocol, ResolverSet, WayId, Ways};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tunnel::driver::request::Request;
use tunnel::source::{LookupError, Query, Routes};

use super::{Daemon, Unanswered};
use crate::explain;
use crate::ways::WaysOut;

/// A flow that somebody asks about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    pub(crate) protocol: AskedProtocol,
    /// `None`: whatever the kernel chooses.
    #[serde(default)]
    pub(crate) source: Option<IpAddr>,
    /// `None`: only the name is known.
    #[serde(default)]
    pub(crate) destination: Option<IpAddr>,
    /// The name that it was asked for with; `None`: what answers told.
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) port: Option<u16>,
    /// The client that it is forwarded for.
    #[serde(default)]
    pub(crate) client: Option<IpAddr>,
    #[serde(default)]
    pub(crate) uid: Option<u32>,
}

/// A transport's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AskedProtocol {
    Tcp,
    Udp,
    Icmp,
}

/// Why a flow cannot be explained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unexplained {
    /// There can be no such flow.
    #[error("{0}")]
    NoSuchFlow(#[from] HypothesisError),
    /// The name is none.
    #[error("{0}")]
    NotAName(#[from] NotAName),
    /// Neither an address nor a name.
    #[error("a destination or a name is needed")]
    Nowhere,
    /// The verdict depends on the source, and no kernel knows the way to a name.
    #[error("the verdict depends on the source, and a name alone has none")]
    NoAddress,
    /// A shard did not say which name an address has.
    #[error("{0}")]
    Unanswered(#[from] Unanswered),
    /// The verdict depends on the source, and the kernel names none.
    #[error("the verdict depends on the source, and the kernel names none: {0}")]
    Source(LookupError),
    /// The thread ended early.
    #[error("the flow could not be looked up")]
    Crashed,
}

impl Daemon {
    /// What the policy in force does with a flow.
    pub(crate) async fn explain(&self, asked: Asked) -> Result<Value, Unexplained> {
        let in_force = self.in_force();
        let leaving =
            Leaving { mark: self.mark, own: DeviceName::new(&in_force.config.device.name) };
        let destination = asked.destination.map(|address| address.to_canonical());
        let (names, resolvers) = match (&asked.name, destination) {
            (Some(name), _) => (vec![policy::name(name)?], ResolverSet::EMPTY),
            (None, Some(address)) => self.names_of(address).await?,
            (None, None) => return Err(Unexplained::Nowhere),
        };
        let mut names = names.into_iter();
        let mut flow = Hypothesis {
            protocol: match asked.protocol {
                AskedProtocol::Tcp => Protocol::Tcp,
                AskedProtocol::Udp => Protocol::Udp,
                AskedProtocol::Icmp => Protocol::Icmp,
            },
            source: asked
                .source
                .map_or(AssumedSource::Any, |source| AssumedSource::Address(source.to_canonical())),
            destination,
            name: names.next(),
            others: names.collect(),
            resolvers,
            port: asked.port,
            client: asked.client.map(|client| client.to_canonical()),
            uid: asked.uid,
            egress: None,
        };
        flow.check()?;
        let resolver = in_force.config.dns.service();
        let port = asked.port.unwrap_or(0);
        let served = destination.is_some_and(|to| resolver.takes(SocketAddr::new(to, port)));
        if served {
            flow.source = AssumedSource::Nothing;
        }
        let ways = self.ways.as_ref().map(WaysOut::known).unwrap_or_default();
        let look = move || {
            let policy = Arc::clone(&in_force.policy);
            let told =
                if served { serve(&policy, &flow) } else { look(&policy, flow, &ways, leaving) };
            told.map(|mut object| {
                object["generation"] = json!(in_force.generation);
                object
            })
        };
        tokio::task::spawn_blocking(look).await.unwrap_or(Err(Unexplained::Crashed))
    }
}

impl Daemon {
    /// The names that lead to this address, the one that a flow would have first, and who told
    /// of it. Each shard knows the same.
    async fn names_of(&self, address: IpAddr) -> Result<(Vec<Arc<str>>, ResolverSet), Unanswered> {
        let told = self.ask_all(|answer| Request::Names { address, answer }).await?;
        Ok(told.into_iter().next().unwrap_or_default())
    }
}

/// Of a flow to our own resolver: no route is asked, as nothing leaves.
fn serve(policy: &Policy, flow: &Hypothesis) -> Result<Value, Unexplained> {
    // Without a source to look for nothing depends on it.
    let told = policy.explain(flow).map_err(|_| Unexplained::Crashed)?;
    let mut object = explain::object(policy, flow, &told);
    object["via"] = "dns".into();
    object["routes"] = json!([]);
    Ok(object)
}

/// How the daemon's flows leave.
#[derive(Debug, Clone, Copy)]
struct Leaving {
    mark: Option<u32>,
    /// The TUN, by which none does.
    own: Option<DeviceName>,
}

fn look(
    policy: &Policy,
    mut flow: Hypothesis,
    ways: &Ways,
    leaving: Leaving,
) -> Result<Value, Unexplained> {
    let (mut via, mut found) = leave(policy, &mut flow, ways, leaving);
    if policy.names_disagree(&flow, |way| ways.is_usable(way)) {
        flow = flow.unnamed();
        (via, found) = leave(policy, &mut flow, ways, leaving);
    }
    match (policy.explain_with(&flow, |way| ways.is_usable(way)), found) {
        (Ok(told), found) => {
            let mut object = explain::object(policy, &flow, &told);
            if let (Some(link), true) = (ways.first_link(via), flow.egress.is_some()) {
                object["egress"]["underlay"] = json!(link.underlay.map(|d| d.as_str().to_owned()));
            }
            let unresolved = found.and_then(Result::err).map(|error| error.to_string());
            object["unresolved"] = json!(unresolved);
            Ok(object)
        }
        (Err(_), Some(Err(error))) => Err(Unexplained::Source(error)),
        (Err(_), None) => Err(Unexplained::NoAddress),
        // With a source nothing depends on it.
        (Err(_), Some(Ok(_))) => Err(Unexplained::Crashed),
    }
}

/// Which way out it would take, and what it would leave with by it.
fn leave(
    policy: &Policy,
    flow: &mut Hypothesis,
    ways: &Ways,
    leaving: Leaving,
) -> (WayId, Option<Result<Egress, LookupError>>) {
    let (via, _) = choose(policy.supposed_route(flow).ways, |way| ways.is_usable(way));
    let leads = ways.way(via).map(|way| &way.leads);
    let found = flow.destination.and_then(|destination| match leads {
        Some(Leads::Direct) => Some(route(flow, destination, leaving)),
        Some(Leads::Proxy(proxy)) => match proxy.behind {
            None => Some(route(flow, proxy.address.ip(), leaving)),
            Some(_) => Some(inside(ways.first_link(via), proxy.address.ip())),
        },
        Some(Leads::Link(link)) => Some(inside(Some(link), destination)),
        None => None,
    });
    flow.egress = found.as_ref().and_then(|found| found.as_ref().ok()).copied();
    (via, found)
}

/// What it would leave with into a tunnel.
fn inside(link: Option<&Link>, destination: IpAddr) -> Result<Egress, LookupError> {
    let link = link.ok_or(LookupError::NoSource)?;
    let address = link.address(destination).ok_or(LookupError::NoSource)?;
    Ok(Egress { address, device: link.device })
}

/// What the kernel would have it leave with.
fn route(flow: &Hypothesis, destination: IpAddr, leaving: Leaving) -> Result<Egress, LookupError> {
    let source = match (flow.client, flow.source) {
        // A forwarded flow leaves with an address of this host.
        (Some(_), _) | (None, AssumedSource::Any | AssumedSource::Nothing) => None,
        (None, AssumedSource::Address(source)) => Some(source),
    };
    let query = Query {
        destination,
        source,
        device: None,
        protocol: flow.protocol,
        destination_port: flow.port.unwrap_or(0),
        uid: flow.uid,
        mark: leaving.mark,
    };
    let mut routes = Routes::open()?;
    if let Some(own) = leaving.own {
        routes = routes.beside(own);
    }
    routes.lookup(query).map(|answer| answer.egress)
}
