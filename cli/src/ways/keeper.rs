//! Who has the ways out.

mod proxies;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::{DeviceName, LinkId, WayId, Ways};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use tunnel::driver::Handle;
use tunnel::driver::request::{Answer, LinkFailure, LinkOrder, Request};
use tunnel::host::Mark;
use tunnel::link::wireguard::{Change, PeerChange, PeerHealth};
use tunnel::source::{Query, Routes};

use proxies::usable_link;

use super::endpoint::{self, Endpoint, Named};
use super::proxy::{self, Beneath, Proxy, listed};
use super::told::{self, Told};
use super::wireguard::{self, Path, Tunnel};
use super::{Decision, Order, Parts, Prepared, Unopened, Wanted};
use crate::daemon::{Events, Shard, Unanswered, ask};
use crate::names::Names;
use crate::wireguard::Interface;
use crate::wireguard::uapi_server::{DIRECTORY, Listener, serve};

/// How often a tunnel that is not usable is asked whether it is again: a handshake's pause
/// (WireGuard's REKEY_TIMEOUT).
const PROBE: Duration = Duration::from_secs(5);
/// The shard that has the tunnels.
const FIRST: usize = 0;

/// All ways out, and what they are ordered by.
pub(super) struct Keeper {
    shards: Vec<Box<dyn Shard>>,
    names: Names,
    mark: Option<Mark>,
    events: Option<Arc<Events>>,
    orders: UnboundedSender<Order>,
    told: watch::Sender<Arc<Ways>>,
    /// `None`: the kernel gave no socket; nothing is known of paths then.
    routes: Option<Routes>,
    tunnels: BTreeMap<WayId, Box<Tunnel>>,
    proxies: BTreeMap<WayId, Proxy>,
    /// How many proxies there have been.
    editions: u32,
    /// Where `wg` asks, by tunnel.
    shown: Option<Handle>,
    sockets: BTreeMap<WayId, JoinSet<()>>,
    /// When those that are down are asked again.
    probe: Option<Instant>,
    settling: Vec<oneshot::Sender<()>>,
}

/// What is prepared: how the ways are to be, and how to get back.
#[derive(Default)]
struct Next {
    opened: Vec<Tunnel>,
    /// What of the sockets has changed already, and back.
    changed: Vec<(WayId, Interface)>,
    gone: Vec<LinkId>,
    /// Those of them that have let go of their ports.
    released: Vec<LinkId>,
    proxies: BTreeMap<WayId, Proxy>,
}

impl Keeper {
    pub(super) fn new(
        parts: Parts,
        orders: UnboundedSender<Order>,
        told: watch::Sender<Arc<Ways>>,
    ) -> Self {
        let Parts { shards, names, mark, events, shown } = parts;
        Self {
            shards,
            names,
            mark,
            events,
            orders,
            told,
            routes: Routes::open().ok(),
            tunnels: BTreeMap::new(),
            proxies: BTreeMap::new(),
            editions: 0,
            shown,
            sockets: BTreeMap::new(),
            probe: None,
            settling: Vec::new(),
        }
    }

    /// Where orders are put.
    pub(super) fn orders(&self) -> UnboundedSender<Order> {
        self.orders.clone()
    }

    /// Has the shard say when a tunnel begins or ceases to be usable.
    pub(super) async fn watch(&self) {
        let watch = |(): ()| {
            let orders = self.orders.clone();
            // A keeper that has ended needs to know nothing.
            let told = Box::new(move |_| drop(orders.send(Order::Health)));
            Request::Link(LinkOrder::Watch { told })
        };
        if let Some(shard) = self.shards.get(FIRST)
            && shard.ask(watch(())).is_err()
        {
            debug!("the shard of the tunnels has ended");
        }
    }

    pub(super) async fn obey(&mut self, order: Order) {
        match order {
            Order::Prepare { wanted, answer } => self.prepare(&wanted, answer).await,
            Order::Rehearse { wanted, answer } => {
                // Whoever asked may have given up.
                let _ = answer.send(Arc::new(self.rehearse(&wanted)));
            }
            Order::Tell { answer } => {
                let proxies = self.proxies.values().map(Proxy::told).collect();
                let _ = answer.send((self.tell().await, proxies));
            }
            Order::Close(links) => {
                for link in links {
                    self.close(link);
                }
            }
            Order::Settle { answer } => self.settling.push(answer),
            Order::Path { slept } => self.follow_paths(slept).await,
            Order::Hide { answer } => {
                for (_, mut socket) in std::mem::take(&mut self.sockets) {
                    socket.shutdown().await;
                }
                let _ = answer.send(());
            }
            Order::Health => self.look().await,
            Order::Fault { way, edition, fault } => {
                self.at_proxy(way, edition, |proxy, now| proxy.failed(fault, now)).await;
            }
            Order::ProxyNamed { way, edition, mut addresses } => {
                // What a proxy on this host connects to would be led to it again.
                addresses.retain(|ip| self.mark.is_none() || !ip.is_loopback());
                let links = self.links(&[]);
                let (mut routes, mark) = (self.routes.take(), self.mark);
                self.at_proxy(way, edition, |proxy, now| {
                    let mut beneath = Beneath { routes: routes.as_mut(), mark, links };
                    let news = proxy.named(&addresses, now);
                    proxy.follow_name(&mut beneath, now).or(news)
                })
                .await;
                self.routes = routes;
            }
            Order::Probed { way, edition, seen } => {
                self.at_proxy(way, edition, |proxy, now| proxy.probed(seen, now)).await;
            }
            Order::Named(named) => self.named(named).await,
        }
        self.settle();
    }

    /// When [`Keeper::on_time`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let tunnels = self.tunnels.values().flat_map(|tunnel| tunnel.endpoints.values());
        let names = tunnels.filter_map(Endpoint::due);
        let proxies = self.proxies.values().flat_map(|it| [it.due(), it.name_due()]).flatten();
        names.chain(self.probe).chain(proxies).min()
    }

    /// Does what time has come for.
    pub(super) async fn on_time(&mut self) {
        let now = Instant::now();
        for (id, tunnel) in &mut self.tunnels {
            for (peer, endpoint) in &mut tunnel.endpoints {
                if endpoint.due().is_some_and(|due| due <= now) {
                    endpoint.asked();
                    let (orders, names) = (self.orders.clone(), self.names.clone());
                    let (way, peer, name) = (*id, *peer, endpoint.name().to_owned());
                    tokio::spawn(async move {
                        let addresses = endpoint::addresses(&names, &name).await;
                        let named = Named { way, peer, name, addresses };
                        // A keeper that has ended needs to know nothing.
                        let _ = orders.send(Order::Named(named));
                    });
                }
            }
        }
        if self.probe.is_some_and(|at| at <= now) {
            for tunnel in self.tunnels.values().filter(|tunnel| !tunnel.usable) {
                self.tell_first(Request::Link(LinkOrder::Probe { link: tunnel.link }));
            }
            self.look().await;
        }
        for proxy in self.proxies.values_mut() {
            if proxy.due().is_some_and(|due| due <= now) {
                let asked = self.shards.get(FIRST).zip(proxy.probe());
                if asked.is_none_or(|(shard, probe)| shard.ask(probe).is_err()) {
                    proxy.put_off(now);
                }
            }
            if proxy.name_due().is_some_and(|due| due <= now)
                && let Some(name) = proxy.ask_for_name()
            {
                let (orders, names) = (self.orders.clone(), self.names.clone());
                let (way, edition) = (proxy.way(), proxy.edition());
                tokio::spawn(async move {
                    let addresses = endpoint::addresses(&names, &name).await;
                    // A keeper that has ended needs to know nothing.
                    let _ = orders.send(Order::ProxyNamed { way, edition, addresses });
                });
            }
        }
        self.settle();
    }

    async fn prepare(
        &mut self,
        wanted: &Wanted,
        answer: oneshot::Sender<Result<Prepared, Unopened>>,
    ) {
        let mut next = Next::default();
        if let Err(error) = self.open_all(wanted, &mut next).await {
            self.undo(next).await;
            let _ = answer.send(Err(error));
            return;
        }
        let links = self.links(&next.opened);
        next.proxies = self.proxies_of(wanted, links);
        let (decided, decision) = oneshot::channel();
        let ways = Arc::new(self.after(&next.proxies, &next));
        let (gone, orders) = (next.gone.clone(), self.orders.clone());
        let told = (Arc::clone(&ways), listed(&next.proxies));
        // Not taken, it is dropped, and so is what would decide.
        let _ = answer.send(Ok(Prepared { ways: told, gone, decided, orders }));
        match decision.await {
            Ok(decision) => {
                let before = self.told.send_replace(ways);
                self.commit(next).await;
                match decision {
                    Decision::Told => {}
                    Decision::Tell => self.tell_shards().await,
                }
                self.reset_resolvers(&before);
                self.look().await;
            }
            Err(_) => self.undo(next).await,
        }
    }

    /// Opens what is new, and changes the sockets of what is there.
    async fn open_all(&mut self, wanted: &Wanted, next: &mut Next) -> Result<(), Unopened> {
        let now = Instant::now();
        let kept: Vec<WayId> = numbered(wanted).map(|(id, _)| id).collect();
        let gone = self.tunnels.keys().filter(|id| !kept.contains(id));
        next.gone = gone.map(|id| LinkId::of(*id)).collect();
        self.release(wanted, next).await?;
        for (id, wanted) in numbered(wanted) {
            if let Some(tunnel) = self.tunnels.get(&id) {
                let (link, name) = (tunnel.link, tunnel.device);
                let change = wireguard::socket_change(&tunnel.interface, &wanted.interface);
                if let Some(change) = change {
                    self.change(link, change)
                        .await?
                        .map_err(|error| Unopened::Change { name, error })?;
                }
                if self.tunnels.get(&id).is_some_and(|t| t.interface != wanted.interface) {
                    next.changed.push((id, wanted.interface.clone()));
                }
                continue;
            }
            let link = LinkId::of(id);
            let mut tunnel = Tunnel::new(link, wanted.name, wanted.interface.clone(), now);
            self.find_path(&mut tunnel);
            let settings = tunnel.settings(self.mark);
            let opened = self.ask(|answer| {
                let settings = Box::new(settings.clone());
                Request::Link(LinkOrder::Open { link, settings, answer })
            });
            opened.await?.map_err(|error| Unopened::Open { name: wanted.name, error })?;
            next.opened.push(tunnel);
        }
        let health = self.ask(|answer| Request::Link(LinkOrder::Health { answer })).await?;
        for tunnel in &mut next.opened {
            let found = health.iter().find(|(link, _)| *link == tunnel.link);
            tunnel.health = found.map(|(_, health)| health.clone()).unwrap_or_default();
            tunnel.usable = tunnel.is_usable();
        }
        Ok(())
    }

    /// Has tunnels that are gone let go of the ports that others are to have. What their flows send
    /// until they end is lost.
    async fn release(&self, wanted: &Wanted, next: &mut Next) -> Result<(), Unopened> {
        let ports = wanted.tunnels.iter().filter_map(|tunnel| tunnel.interface.listen_port);
        let ports: HashSet<u16> = ports.filter(|port| *port != 0).collect();
        for &link in next.gone.iter().filter(|_| !ports.is_empty()) {
            // `wg` may have given it another one than the configuration.
            let state = self.ask(|answer| Request::Link(LinkOrder::State { link, answer })).await?;
            if state.is_some_and(|(state, _)| ports.contains(&state.listen_port)) {
                self.tell_first(Request::Link(LinkOrder::Release { link }));
                next.released.push(link);
            }
        }
        Ok(())
    }

    /// Takes back what was prepared.
    async fn undo(&mut self, next: Next) {
        for tunnel in next.opened {
            self.close(tunnel.link);
        }
        for (id, interface) in next.changed {
            let Some(tunnel) = self.tunnels.get(&id) else { continue };
            let (link, name) = (tunnel.link, tunnel.device);
            let Some(back) = wireguard::socket_change(&interface, &tunnel.interface) else {
                continue;
            };
            if let Err(error) = self.change_or_say(link, back).await {
                warn!(code = "tunnel-unchanged", %name, "its port or mark is not as before: {error}");
            }
        }
        for link in next.released {
            self.rebind(link).await;
        }
    }

    async fn commit(&mut self, next: Next) {
        let mut news = Vec::new();
        for tunnel in next.opened {
            info!(name = %tunnel.device, "a tunnel was opened");
            news.push((tunnel.link.way(), "opened"));
            self.show(tunnel.link, tunnel.device);
            self.tunnels.insert(tunnel.link.way(), Box::new(tunnel));
        }
        for link in next.gone {
            self.say(&[(link.way(), "closed")]).await;
            if let Some(mut socket) = self.sockets.remove(&link.way()) {
                socket.shutdown().await;
            }
            if let Some(tunnel) = self.tunnels.remove(&link.way()) {
                info!(name = %tunnel.device, "a tunnel is no longer configured");
            }
        }
        for (id, interface) in next.changed {
            let Some(tunnel) = self.tunnels.get_mut(&id) else { continue };
            let (link, name, mtu) = (tunnel.link, tunnel.device, tunnel.mtu());
            news.push((id, "changed"));
            let change = wireguard::change(&tunnel.interface, &interface);
            tunnel.reconfigure(interface, Instant::now());
            let mut change = change.unwrap_or_default();
            change.mtu = Some(tunnel.mtu()).filter(|new| *new != mtu);
            if change.mtu.is_none() && change.key.is_none() && change.peers.is_empty() {
                continue;
            }
            if let Err(error) = self.change_or_say(link, change).await {
                warn!(code = "tunnel-unchanged", %name, "it is not as configured: {error}");
            }
        }
        self.say(&news).await;
        let [gone, others] = proxy::changes(&self.proxies, &next.proxies);
        self.say_of_proxies(&gone);
        self.proxies = next.proxies;
        self.say_of_proxies(&others);
    }

    /// Opens the socket on which `wg` asks for a tunnel. Without it all else goes on.
    fn show(&mut self, link: LinkId, name: DeviceName) {
        let Some(shard) = self.shown.clone() else { return };
        match Listener::bind(DIRECTORY.as_ref(), name.as_str()) {
            Ok(listener) => {
                let orders = self.orders.clone();
                // A keeper that has ended needs to know nothing.
                let changed = move || drop(orders.send(Order::Health));
                let mut socket = JoinSet::new();
                socket.spawn(serve(listener, shard, link, changed));
                self.sockets.insert(link.way(), socket);
            }
            Err(error) => {
                warn!(code = "wireguard-socket", %name, "wg can't ask for the tunnel: {error}");
            }
        }
    }

    /// What the shards are to know after this.
    fn after(&self, proxies: &BTreeMap<WayId, Proxy>, next: &Next) -> Ways {
        let mut ways = Ways::default();
        for (id, proxy) in proxies {
            if let Some(out) = proxy.out() {
                ways.set(*id, out);
            }
        }
        for (id, tunnel) in &self.tunnels {
            if next.gone.contains(&tunnel.link) {
                continue;
            }
            let changed = next.changed.iter().find(|(changed, _)| changed == id);
            ways.set(
                *id,
                match changed {
                    Some((_, interface)) => tunnel.out_with(interface),
                    None => tunnel.out(),
                },
            );
        }
        for tunnel in &next.opened {
            ways.set(tunnel.link.way(), tunnel.out());
        }
        ways
    }

    /// The same without opening anything: a new one is taken for usable.
    fn rehearse(&mut self, wanted: &Wanted) -> Ways {
        let (mut ways, mut links) = (Ways::default(), Vec::new());
        for (id, wanted) in numbered(wanted) {
            let out = match self.tunnels.get(&id) {
                Some(tunnel) => tunnel.out_with(&wanted.interface),
                None => {
                    let interface = wanted.interface.clone();
                    let link = LinkId::of(id);
                    let mut tunnel = Tunnel::new(link, wanted.name, interface, Instant::now());
                    tunnel.usable = true;
                    self.find_path(&mut tunnel);
                    tunnel.out()
                }
            };
            links.extend(usable_link(LinkId::of(id), &out));
            ways.set(id, out);
        }
        for (id, proxy) in self.proxies_of(wanted, links) {
            if let Some(out) = proxy.out() {
                ways.set(id, out);
            }
        }
        ways
    }

    fn close(&self, link: LinkId) {
        self.tell_first(Request::Link(LinkOrder::Close { link }));
    }

    /// Looks how every tunnel fares, and says what is new.
    async fn look(&mut self) {
        let health = self.ask(|answer| Request::Link(LinkOrder::Health { answer })).await;
        let Ok(health) = health else { return };
        let (now, mut news, mut roamed) = (Instant::now(), Vec::new(), Vec::new());
        for (id, tunnel) in &mut self.tunnels {
            // One that is closed by a fault has no peers.
            let found = health.iter().find(|(link, _)| *link == tunnel.link);
            let peers = found.map(|(_, peers)| peers.clone()).unwrap_or_default();
            for peer in &peers {
                if let Some(endpoint) = tunnel.endpoints.get_mut(&peer.key) {
                    if is_silent(peer) {
                        endpoint.silent(now);
                    } else if peer.session {
                        endpoint.heard();
                    }
                }
            }
            tunnel.health = peers;
            if !tunnel.path.is_to(&tunnel.places()) {
                roamed.push(*id);
            }
            let usable = tunnel.is_usable();
            if std::mem::replace(&mut tunnel.usable, usable) != usable {
                let name = tunnel.device;
                news.push((tunnel.link.way(), if usable { "usable" } else { "unusable" }));
                if usable {
                    info!(%name, "the tunnel is usable");
                } else {
                    warn!(code = "tunnel-down", %name, "no peer of the tunnel answers: new flows take the next way out, or none");
                }
            }
        }
        let down = self.tunnels.values().any(|tunnel| !tunnel.usable);
        self.probe = down.then(|| now + PROBE);
        for id in roamed {
            self.follow_path(id).await;
        }
        self.tell_news().await;
        self.say(&news).await;
        if !news.is_empty() {
            let changed: Vec<WayId> = news.iter().map(|(way, _)| *way).collect();
            self.follow_proxies(Some(&changed)).await;
        }
    }

    /// An endpoint's name was asked for.
    async fn named(&mut self, named: Named) {
        let Named { way, peer, name, addresses } = named;
        let (routes, mark) = (&mut self.routes, self.mark);
        let Some(tunnel) = self.tunnels.get_mut(&way) else { return };
        let Some(endpoint) = tunnel.endpoints.get_mut(&peer) else { return };
        if endpoint.name() != name {
            return;
        }
        let reachable: Vec<_> = addresses
            .iter()
            .copied()
            .filter(|ip| {
                routes.as_mut().is_none_or(|routes| routes.lookup(query(*ip, mark)).is_ok())
            })
            .collect();
        let Some(place) = endpoint.answered(&reachable, Instant::now()) else {
            if endpoint.is_news() {
                let why = if addresses.is_empty() {
                    "its name has no address"
                } else {
                    "there is no route to it"
                };
                warn!(code = "endpoint-unknown", name = %tunnel.device, "a peer can't be reached: {why}");
            }
            return;
        };
        // It has answered meanwhile, from wherever it is.
        let fares = tunnel.health.iter().find(|health| health.key == peer);
        if fares.is_some_and(|fares| fares.endpoint.is_some() && !is_silent(fares)) {
            return;
        }
        let (link, device) = (tunnel.link, tunnel.device);
        let there =
            PeerChange { update_only: true, endpoint: Some(place), ..PeerChange::new(peer) };
        let change = Change { peers: vec![there], ..Change::default() };
        if let Err(error) = self.change_or_say(link, change).await {
            warn!(code = "tunnel-unchanged", name = %device, "a peer's address is not known to it: {error}");
        }
        self.look().await;
        self.follow_path(way).await;
    }

    /// Opens the sockets anew of every tunnel whose datagrams leave another way now, or, where
    /// this host has slept, of all of them: what a middle box knew of them may be gone. What was
    /// out of reach is asked for at once.
    async fn follow_paths(&mut self, slept: bool) {
        let ids: Vec<WayId> = self.tunnels.keys().copied().collect();
        for id in ids {
            let Some(mut tunnel) = self.tunnels.remove(&id) else { continue };
            let before = tunnel.path.clone();
            self.find_path(&mut tunnel);
            let path = std::mem::replace(&mut tunnel.path, before);
            let moved = path.leaves_otherwise(&tunnel.path);
            let (link, name) = (tunnel.link, tunnel.device);
            self.tunnels.insert(id, tunnel);
            if moved || slept {
                debug!(%name, "the path of the tunnel is another");
                self.rebind(link).await;
            }
            self.follow_path(id).await;
            let down = self.tunnels.get(&id).is_some_and(|tunnel| !tunnel.usable);
            if down && (moved || slept) {
                self.tell_first(Request::Link(LinkOrder::Probe { link }));
            }
        }
        let now = Instant::now();
        for tunnel in self.tunnels.values_mut() {
            tunnel.endpoints.values_mut().for_each(|name| name.elsewhere(now));
        }
        self.look().await;
        self.follow_proxies(None).await;
    }

    /// Opens a tunnel's sockets anew.
    async fn rebind(&self, link: LinkId) {
        let rebound = self.ask(|answer| Request::Link(LinkOrder::Rebind { link, answer }));
        let name = self.tunnels.get(&link.way()).map(|tunnel| tunnel.device.as_str());
        match rebound.await {
            Ok(Ok(())) => self.names.reset_through(link),
            Ok(Err(error)) => {
                warn!(code = "tunnel-unbound", name, "its sockets can't be opened anew: {error}");
            }
            Err(error) => debug!("a tunnel was not told to open its sockets: {error}"),
        }
    }

    /// Looks how a tunnel's datagrams leave now; what they leave room for may be another.
    async fn follow_path(&mut self, id: WayId) {
        let Some(mut tunnel) = self.tunnels.remove(&id) else { return };
        let mtu = tunnel.mtu();
        self.find_path(&mut tunnel);
        let (link, new) = (tunnel.link, tunnel.mtu());
        self.tunnels.insert(id, tunnel);
        if new != mtu {
            let change = Change { mtu: Some(new), ..Change::default() };
            if let Err(error) = self.change_or_say(link, change).await {
                debug!("a tunnel's MTU is as before: {error}");
            }
        }
        self.tell_news().await;
    }

    fn find_path(&mut self, tunnel: &mut Tunnel) {
        if let Some(routes) = &mut self.routes {
            tunnel.path = Path::to(&tunnel.places(), routes, self.mark);
        }
    }

    /// Tells the shards what they don't know.
    async fn tell_news(&mut self) {
        let ways = Arc::new(self.after(&self.proxies, &Next::default()));
        if *self.told.borrow() != ways {
            let before = self.told.send_replace(ways);
            self.tell_shards().await;
            self.reset_resolvers(&before);
        }
    }

    /// Resolvers that are asked through a tunnel begin anew where it is another than before.
    fn reset_resolvers(&self, before: &Ways) {
        let now = Arc::clone(&self.told.borrow());
        for id in self.tunnels.keys().filter(|id| before.way(**id) != now.way(**id)) {
            self.names.reset_through(LinkId::of(*id));
        }
    }

    async fn tell_shards(&mut self) {
        let ways = Arc::clone(&self.told.borrow());
        let proxies = listed(&self.proxies);
        for (number, shard) in self.shards.iter().enumerate() {
            let request = |answer| {
                let (ways, proxies) = (Arc::clone(&ways), Arc::clone(&proxies));
                Request::Ways { ways, proxies, answer }
            };
            if let Err(error) = ask(&**shard, number, request).await {
                warn!(
                    code = "ways-untold",
                    "a shard does not know which ways out are usable: {error}"
                );
            }
        }
    }

    /// Every tunnel at this moment.
    async fn tell(&self) -> Vec<Told> {
        let mut told = Vec::with_capacity(self.tunnels.len());
        for tunnel in self.tunnels.values() {
            told.extend(self.told(tunnel).await);
        }
        told
    }

    async fn told(&self, tunnel: &Tunnel) -> Option<Told> {
        let link = tunnel.link;
        let state = self.ask(|answer| Request::Link(LinkOrder::State { link, answer })).await;
        let (state, totals) = state.ok()??;
        Some(Told::of(tunnel, &state, totals, SystemTime::now()))
    }

    /// Says to whoever watches what has become of tunnels.
    async fn say(&self, news: &[(WayId, &str)]) {
        let Some(events) = self.events.as_ref().filter(|events| events.watchers() > 0) else {
            return;
        };
        for (id, what) in news {
            let Some(tunnel) = self.tunnels.get(id) else { continue };
            if let Some(told) = self.told(tunnel).await {
                events.send(told::event("tunnel", what, &told.object, SystemTime::now()));
            }
        }
    }

    /// Answers those who wait for the first answers.
    fn settle(&mut self) {
        let mut endpoints = self.tunnels.values().flat_map(|tunnel| tunnel.endpoints.values());
        let waits = endpoints.any(Endpoint::is_new) || self.proxies.values().any(Proxy::is_new);
        if !waits {
            for answer in self.settling.drain(..) {
                let _ = answer.send(());
            }
        }
    }

    async fn change(
        &self,
        link: LinkId,
        change: Change,
    ) -> Result<Result<(), LinkFailure>, Unanswered> {
        self.ask(|answer| {
            let change = Box::new(change.clone());
            Request::Link(LinkOrder::Change { link, change, answer })
        })
        .await
    }

    async fn change_or_say(&self, link: LinkId, change: Change) -> Result<(), anyhow::Error> {
        Ok(self.change(link, change).await??)
    }

    async fn ask<T: Send + 'static>(
        &self,
        request: impl Fn(Answer<T>) -> Request,
    ) -> Result<T, Unanswered> {
        let shard = self.shards.get(FIRST).ok_or(Unanswered::Gone(FIRST))?;
        ask(&**shard, FIRST, request).await
    }

    /// Tells the first shard what has no answer.
    fn tell_first(&self, request: Request) {
        if let Some(shard) = self.shards.get(FIRST)
            && let Err(error) = shard.ask(request)
        {
            debug!("a tunnel was not ordered: {error}");
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("tunnels", &self.tunnels).finish_non_exhaustive()
    }
}

/// Whether a peer doesn't answer.
fn is_silent(peer: &PeerHealth) -> bool {
    peer.endpoint.is_some() && !peer.usable()
}

/// What is wanted, by its numbers.
fn numbered(wanted: &Wanted) -> impl Iterator<Item = (WayId, &crate::config::WireGuard)> {
    let numbered = |tunnel: &'_ crate::config::WireGuard| wanted.names.id(tunnel.name.as_str());
    wanted.tunnels.iter().filter_map(move |tunnel| Some((numbered(tunnel)?, tunnel)))
}

fn query(destination: IpAddr, mark: Option<Mark>) -> Query {
    Query {
        destination,
        source: None,
        device: None,
        protocol: engine::Protocol::Udp,
        destination_port: 0,
        uid: None,
        mark: mark.map(|mark| mark.value),
    }
}
