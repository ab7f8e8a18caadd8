//! `explain` on the live daemon: the policy in force, and the source that the kernel would
//! choose. Nothing is sent.

use std::net::IpAddr;
use std::sync::Arc;

use engine::policy::{AssumedSource, Hypothesis, HypothesisError, Policy};
use engine::{Egress, Protocol};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tunnel::source::{LookupError, Query, Routes};

use super::Daemon;
use crate::explain;

/// A flow that somebody asks about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    pub(crate) protocol: AskedProtocol,
    /// `None`: whatever the kernel chooses.
    #[serde(default)]
    pub(crate) source: Option<IpAddr>,
    pub(crate) destination: IpAddr,
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
        let (in_force, mark) = (self.in_force(), self.mark);
        let look = move || {
            let policy = Arc::clone(&in_force.policy);
            look(&policy, &asked, mark).map(|mut object| {
                object["generation"] = json!(in_force.generation);
                object
            })
        };
        tokio::task::spawn_blocking(look).await.unwrap_or(Err(Unexplained::Crashed))
    }
}

fn look(policy: &Policy, asked: &Asked, mark: Option<u32>) -> Result<Value, Unexplained> {
    let mut flow = Hypothesis {
        protocol: match asked.protocol {
            AskedProtocol::Tcp => Protocol::Tcp,
            AskedProtocol::Udp => Protocol::Udp,
            AskedProtocol::Icmp => Protocol::Icmp,
        },
        source: asked
            .source
            .map_or(AssumedSource::Any, |source| AssumedSource::Address(source.to_canonical())),
        destination: asked.destination.to_canonical(),
        port: asked.port,
        client: asked.client.map(|client| client.to_canonical()),
        uid: asked.uid,
        egress: None,
    };
    flow.check()?;
    let found = route(&flow, mark);
    flow.egress = found.as_ref().ok().copied();
    match (policy.explain(&flow), found) {
        (Ok(told), found) => {
            let mut object = explain::object(&flow, &told);
            object["unresolved"] = json!(found.err().map(|error| error.to_string()));
            Ok(object)
        }
        (Err(_), Err(error)) => Err(Unexplained::Source(error)),
        // With a source nothing depends on it.
        (Err(_), Ok(_)) => Err(Unexplained::Crashed),
    }
}

/// What it would leave with.
fn route(flow: &Hypothesis, mark: Option<u32>) -> Result<Egress, LookupError> {
    let source = match (flow.client, flow.source) {
        // A forwarded flow leaves with an address of this host.
        (Some(_), _) | (None, AssumedSource::Any) => None,
        (None, AssumedSource::Address(source)) => Some(source),
    };
    let query = Query {
        destination: flow.destination,
        source,
        device: None,
        protocol: flow.protocol,
        destination_port: flow.port.unwrap_or(0),
        uid: flow.uid,
        mark,
    };
    Routes::open()?.lookup(query).map(|answer| answer.egress)
}
