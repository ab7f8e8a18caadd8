//! The ways out beside `direct`: who opens them, watches over them, and tells the shards which
//! of them are usable.
//!
//! # Theory of operation
//!
//! One task, the *keeper*, has all ways out ([`keeper`]). It alone makes [`engine::Ways`] and
//! orders tunnels; whatever changes comes to it as an order and is done one after the other:
//!
//! ```text
//! configuration ─▶ Prepare ─▶ new ones open, ports changed ─▶ Prepared: what the shards are told
//!   ─▶ they are told, with the policy ─▶ commit ─▶ keys, peers and MTU changed
//!   ─▶ every flow was judged ─▶ Committed is dropped ─▶ those that are gone closed
//! shard: usable or not any more ─▶ Health ─▶ the shards are told, an event, a warning
//! addresses, routes, a suspend  ─▶ Path   ─▶ sockets anew where the way to a peer is another
//! name of an endpoint answered  ─▶ Named  ─▶ the peer is there
//! shard: a proxy's own fault    ─▶ Fault  ─▶ the shards are told, an event, a warning, a probe
//! shard: what the probe showed  ─▶ Probed ─▶ the shards are told, or another probe later
//! ```
//!
//! Between `Prepare` and what becomes of it the keeper does nothing else, so that what the
//! shards are told with a policy is not older than what they know. A preparation that is dropped
//! is undone. The keeper lives on the runtime of the resolver, which it asks for the names of
//! endpoints; `exec` has it like `run`.
//!
//! A configuration is compared with the configuration before, never with what a tunnel has become:
//! a peer that has roamed stays where it is.
//!
//! A tunnel belongs to the first shard.

mod endpoint;
mod host;
mod keeper;
mod proxy;
mod told;
mod wireguard;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use engine::policy::Policy;
use engine::{DeviceName, LinkId, WayId, WayNames, Ways};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tunnel::driver::Handle;
use tunnel::driver::request::LinkFailure;
use tunnel::egress::proxy::{Fault, Proxies};
use tunnel::host::Mark;
use tunnel::link::wireguard::LinkError;

use crate::config::{Config, WireGuard};
use crate::daemon::{Events, Shard, Unanswered};
use crate::error::Refusal;
use crate::names::Names;
use crate::proxies::{self, Loaded, Unloaded};

use endpoint::Named;
use keeper::Keeper;
pub(crate) use proxy::ToldProxy;
pub(crate) use told::Told;

/// The keeper, from outside.
#[derive(Debug, Clone)]
pub(crate) struct WaysOut {
    orders: UnboundedSender<Order>,
    known: watch::Receiver<Arc<Ways>>,
}

/// What a keeper is made of.
pub(crate) struct Parts {
    /// In the order of their numbers; at least one.
    pub(crate) shards: Vec<Box<dyn Shard>>,
    /// Who is asked for the names of endpoints, and whose runtime it is.
    pub(crate) names: Names,
    /// Of our own sockets.
    pub(crate) mark: Option<Mark>,
    pub(crate) events: Option<Arc<Events>>,
    /// The first shard, where `wg` is to show and change its tunnels.
    pub(crate) shown: Option<Handle>,
}

/// What the configuration wants, and the numbers of its ways.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) tunnels: Vec<WireGuard>,
    pub(crate) names: WayNames,
    pub(crate) proxies: Vec<Loaded>,
    /// Those that some `route` names.
    pub(crate) routed: BTreeSet<WayId>,
}

impl Wanted {
    /// What a configuration wants, by the numbers that a policy has of it.
    pub(crate) fn of(config: &Config, policy: &Policy) -> Result<Self, Unopened> {
        let proxies = proxies::load(config)?;
        let (names, routed) = (policy.ways().clone(), policy.routed().collect());
        Ok(Self { tunnels: config.wireguard.clone(), names, proxies, routed })
    }

    /// Whether there is nothing but `direct`.
    pub(crate) fn is_nothing(&self) -> bool {
        self.tunnels.is_empty() && self.proxies.is_empty()
    }
}

/// Why a way out is not there. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unopened {
    /// A tunnel could not be opened.
    #[error("cannot open the tunnel {name}: {error}")]
    Open { name: DeviceName, error: LinkError },
    /// A tunnel could not be changed.
    #[error("cannot change the tunnel {name}: {error}")]
    Change { name: DeviceName, error: LinkFailure },
    /// A proxy's files can't be used.
    #[error("{0}")]
    Proxy(#[from] Unloaded),
    /// The shard that has them says nothing.
    #[error("{0}")]
    Unanswered(#[from] Unanswered),
    /// The keeper has ended.
    #[error("who watches over the ways out has ended")]
    Gone,
}

impl Unopened {
    /// What helps.
    pub(crate) fn help(&self) -> Option<&'static str> {
        let error = match self {
            Self::Open { error, .. } | Self::Change { error: LinkFailure::Link(error), .. } => {
                error
            }
            Self::Change { error: LinkFailure::NoSuchLink, .. }
            | Self::Proxy(_)
            | Self::Unanswered(_)
            | Self::Gone => return None,
        };
        match error {
            LinkError::Bind { port: 0, .. } | LinkError::Socket(_) | LinkError::Random => None,
            LinkError::Bind { .. } => {
                Some("another interface or program has that port: leave `ListenPort` out for any")
            }
            LinkError::Mark(_) => Some("`FwMark` takes root: leave it out"),
        }
    }
}

/// Something to do.
enum Order {
    /// Open and change what the configuration wants, as far as that can fail.
    Prepare { wanted: Wanted, answer: oneshot::Sender<Result<Prepared, Unopened>> },
    /// Say what the shards would be told of it; nothing is changed.
    Rehearse { wanted: Wanted, answer: oneshot::Sender<Arc<Ways>> },
    /// Tell of every tunnel and proxy.
    Tell { answer: oneshot::Sender<(Vec<Told>, Vec<ToldProxy>)> },
    /// Close tunnels that no flow has any more.
    Close(Vec<LinkId>),
    /// Say when the first answer to the name of each endpoint has come, or none will.
    Settle { answer: oneshot::Sender<()> },
    /// Packets of ours may leave another way, or this host has slept.
    Path { slept: bool },
    /// Take the sockets of `wg` away.
    Hide { answer: oneshot::Sender<()> },
    /// A tunnel has begun or ceased to be usable.
    Health,
    /// The name of an endpoint was asked for.
    Named(Named),
    /// A shard has met with a fault of a proxy.
    Fault { way: WayId, edition: u32, fault: Fault },
    /// The name of a proxy was asked for.
    ProxyNamed { way: WayId, edition: u32, addresses: Vec<IpAddr> },
    /// A probe of a proxy has shown how it fares.
    Probed { way: WayId, edition: u32, seen: Result<(), Fault> },
}

/// New ways out are open, and the shards know of none of them yet. Undone when it is dropped.
pub(crate) struct Prepared {
    ways: (Arc<Ways>, Arc<Proxies>),
    gone: Vec<LinkId>,
    decided: oneshot::Sender<Decision>,
    orders: UnboundedSender<Order>,
}

/// What becomes of what is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// It is in force, and the shards were told.
    Told,
    /// It is in force, and the shards are to be told.
    Tell,
}

/// They are in force. Those that are gone are closed when this is dropped.
pub(crate) struct Committed {
    gone: Vec<LinkId>,
    orders: UnboundedSender<Order>,
}

impl Prepared {
    /// What every shard is to be told, with the policy that names them.
    pub(crate) fn ways(&self) -> (Arc<Ways>, Arc<Proxies>) {
        self.ways.clone()
    }

    /// The shards were told.
    pub(crate) fn commit(self) -> Committed {
        self.decide(Decision::Told)
    }

    fn decide(self, decision: Decision) -> Committed {
        // Without a keeper the daemon is about to end.
        let _ = self.decided.send(decision);
        Committed { gone: self.gone, orders: self.orders }
    }
}

impl Drop for Committed {
    fn drop(&mut self) {
        if !self.gone.is_empty() {
            let _ = self.orders.send(Order::Close(std::mem::take(&mut self.gone)));
        }
    }
}

impl WaysOut {
    /// Starts a keeper that has no way out yet, on the runtime of the resolver. `held` is
    /// dropped when it ends.
    pub(crate) fn start(parts: Parts, held: impl Send + 'static) -> Self {
        let (orders, received) = unbounded_channel();
        let (told, known) = watch::channel(Arc::default());
        let runtime = parts.names.runtime().clone();
        let keeper = Keeper::new(parts, orders.clone(), told);
        runtime.spawn(keep(keeper, received, held));
        Self { orders, known }
    }

    /// Opens the first ones and tells the shards: before anything leaves. Blocks.
    pub(crate) fn open(&self, wanted: Wanted) -> Result<(), Unopened> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Prepare { wanted, answer })?;
        let prepared = answered.blocking_recv().map_err(|_| Unopened::Gone)??;
        drop(prepared.decide(Decision::Tell));
        Ok(())
    }

    /// Waits until every endpoint's name was answered or is not going to be at once. Blocks.
    pub(crate) fn settle(&self) {
        let (answer, answered) = oneshot::channel();
        if self.order(Order::Settle { answer }).is_ok() {
            // One that has ended has nothing to wait for.
            let _ = answered.blocking_recv();
        }
    }

    /// Takes the sockets of `wg` away: the daemon ends. Blocks.
    pub(crate) fn hide(&self) {
        let (answer, answered) = oneshot::channel();
        if self.order(Order::Hide { answer }).is_ok() {
            let _ = answered.blocking_recv();
        }
    }

    /// The first half of a reload: what can go wrong.
    pub(crate) async fn prepare(&self, wanted: Wanted) -> Result<Prepared, Unopened> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Prepare { wanted, answer })?;
        answered.await.map_err(|_| Unopened::Gone)?
    }

    /// What the shards would be told after such a reload.
    pub(crate) async fn rehearse(&self, wanted: Wanted) -> Result<Arc<Ways>, Unopened> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Rehearse { wanted, answer })?;
        answered.await.map_err(|_| Unopened::Gone)
    }

    /// Every tunnel and every proxy at this moment, in the order of their numbers; none where
    /// nobody is left to ask.
    pub(crate) async fn tell(&self) -> (Vec<Told>, Vec<ToldProxy>) {
        let (answer, answered) = oneshot::channel();
        if self.order(Order::Tell { answer }).is_err() {
            return Default::default();
        }
        answered.await.unwrap_or_default()
    }

    /// What the shards know of each way out.
    pub(crate) fn known(&self) -> Arc<Ways> {
        Arc::clone(&self.known.borrow())
    }

    fn order(&self, order: Order) -> Result<(), Unopened> {
        self.orders.send(order).map_err(|_| Unopened::Gone)
    }
}

/// For who starts something.
pub(crate) fn refuse(error: &Unopened, code: u8) -> anyhow::Error {
    let refusal = Refusal::new(code, error);
    match error.help() {
        Some(help) => refusal.help(help).into(),
        None => refusal.into(),
    }
}

async fn keep(mut keeper: Keeper, mut orders: UnboundedReceiver<Order>, held: impl Send + 'static) {
    let _held = held;
    keeper.watch().await;
    let _following = host::follow(keeper.orders());
    loop {
        let due = keeper.due();
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => keeper.obey(order).await,
                None => return,
            },
            () = sleep_until(due) => keeper.on_time().await,
        }
    }
}

async fn sleep_until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare { .. } => "Prepare",
            Self::Rehearse { .. } => "Rehearse",
            Self::Tell { .. } => "Tell",
            Self::Close(_) => "Close",
            Self::Settle { .. } => "Settle",
            Self::Path { .. } => "Path",
            Self::Hide { .. } => "Hide",
            Self::Health => "Health",
            Self::Named(_) => "Named",
            Self::Fault { .. } => "Fault",
            Self::ProxyNamed { .. } => "ProxyNamed",
            Self::Probed { .. } => "Probed",
        })
    }
}
