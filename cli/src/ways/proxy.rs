//! A proxy as a way out: whether it is usable, and when one that is not is asked again.
//!
//! It is usable until something speaks against it: a shard has met with a fault of its own
//! (`tunnel::egress::proxy`), or no route leads to it. Then a shard is told to probe it, at once,
//! after 1 s, 2 s and so on up to every [`LONGEST_PAUSE`], until nothing speaks against it. Where
//! there is no route it is not probed: the kernel says when there is one. One behind a tunnel is as
//! usable as that. One that no `route` of the policy names is of no interest, and is probed when a
//! reload names it. Nobody is woken for a proxy that is usable, but where a shard doubts it: it has
//! answered nothing for long, for which the far side may be to blame. It is asked then for a
//! destination that is none, and is down only when it leaves that without an answer too.
//!
//! One that the configuration knows by its name is usable when the name was answered ([`Endpoint`]).
//! When it has failed its addresses are probed in turn, and its name is asked for again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use engine::{DeviceName, Leads, Link, LinkId, Protocol, WayId, WayNames, WayOut};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use tunnel::driver::request::Request;
use tunnel::egress::proxy::{self, Fault, Proxies, Speaks, Standing};
use tunnel::host::Mark;
use tunnel::source::{LookupError, Query, Routes};

use super::Order;
use super::endpoint::Endpoint;
use crate::proxies::Loaded;
use crate::wireguard;

/// The pause after the second probe that failed, and the longest one.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A proxy.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    way: WayId,
    /// Its number among all that there have been.
    edition: u32,
    loaded: Loaded,
    /// The tunnel in front of it.
    behind: Option<LinkId>,
    standing: Standing,
    orders: UnboundedSender<Order>,
    /// Its name, where it is known by one.
    name: Option<Endpoint>,
    /// Where it may be; none: nobody knows.
    addresses: Vec<SocketAddr>,
    /// The one that is taken.
    at: usize,
    /// Some `route` of the policy names it.
    routed: bool,
    state: State,
    /// Of one that is usable and doubted; `None`: it isn't.
    check: Option<Probe>,
    /// When the last doubt was settled.
    checked: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Usable,
    Down { against: Against, probe: Probe, pause: Duration },
}

/// What speaks against a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Against {
    #[error("{0}")]
    Fault(Fault),
    #[error("no route leads to it")]
    NoRoute,
    #[error("the tunnel in front of it is not usable")]
    NoTunnel,
    #[error("its name has no address")]
    NoAddress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    Due(Instant),
    UnderWay,
    /// It would be of no use.
    Useless,
}

/// What has become of a proxy, where that is news.
pub(super) type News = Option<&'static str>;

impl Proxy {
    /// One that nothing speaks against, once it is known where it is.
    pub(super) fn new(
        way: WayId,
        edition: u32,
        loaded: Loaded,
        behind: Option<LinkId>,
        orders: &UnboundedSender<Order>,
        now: Instant,
    ) -> Self {
        let told = orders.clone();
        // A keeper that has ended needs to know nothing.
        let standing = Standing::new(move |fault| {
            drop(told.send(Order::Fault { way, edition, fault }));
        });
        let (name, addresses) = match &loaded.config.place {
            wireguard::Endpoint::Address(address) => (None, vec![*address]),
            wireguard::Endpoint::Name(name, port) => {
                (Some(Endpoint::new(name, *port, now)), Vec::new())
            }
        };
        let (against, probe) = (Against::NoAddress, Probe::Useless);
        let state = match &name {
            None => State::Usable,
            Some(_) => State::Down { against, probe, pause: Duration::ZERO },
        };
        let orders = orders.clone();
        Self {
            way,
            edition,
            loaded,
            behind,
            standing,
            orders,
            name,
            addresses,
            at: 0,
            routed: true,
            state,
            check: None,
            checked: None,
        }
    }

    /// The same after a reload, with what its files hold now; `None`: it would be another one.
    pub(super) fn reloaded(&self, loaded: &Loaded) -> Option<Self> {
        let same = self.loaded.config == loaded.config;
        same.then(|| Self { loaded: loaded.clone(), ..self.clone() })
    }

    /// The same where some `route` names it, or none does.
    pub(super) fn routed(self, routed: bool) -> Self {
        Self { routed, ..self }
    }

    pub(super) fn way(&self) -> WayId {
        self.way
    }

    /// Whether it is reached through the tunnel of that way out.
    pub(super) fn is_behind(&self, tunnel: WayId) -> bool {
        self.behind == Some(LinkId::of(tunnel))
    }

    pub(super) fn edition(&self) -> u32 {
        self.edition
    }

    fn is_usable(&self) -> bool {
        self.state == State::Usable
    }

    fn address(&self) -> Option<SocketAddr> {
        self.addresses.get(self.at).copied()
    }

    /// What the engine is told; `None`: nobody knows where it is.
    pub(super) fn out(&self) -> Option<WayOut> {
        let (address, edition) = (self.address()?, self.edition);
        let leads = Leads::Proxy(engine::Proxy { address, behind: self.behind, edition });
        Some(WayOut { usable: self.is_usable(), leads })
    }

    /// What the shards talk to.
    fn listed(&self) -> Option<Arc<proxy::Proxy>> {
        let config = &self.loaded.config;
        Some(Arc::new(proxy::Proxy {
            name: config.name.as_str().into(),
            address: self.address()?,
            behind: self.behind,
            speaks: config.speaks,
            login: config.login.clone(),
            tls: self.loaded.tls.clone(),
            standing: self.standing.clone(),
        }))
    }

    /// When its name is to be asked for.
    pub(super) fn name_due(&self) -> Option<Instant> {
        self.name.as_ref().and_then(Endpoint::due)
    }

    /// Whether nobody knows yet what the first answer to its name is.
    pub(super) fn is_new(&self) -> bool {
        self.name.as_ref().is_some_and(Endpoint::is_new)
    }

    /// Its name is asked for; which it is.
    pub(super) fn ask_for_name(&mut self) -> Option<String> {
        let name = self.name.as_mut()?;
        name.asked();
        Some(name.name().to_owned())
    }

    /// Its name was asked for. Whoever says so looks next whether there is a way to it.
    pub(super) fn named(&mut self, addresses: &[IpAddr], now: Instant) -> News {
        let name = self.name.as_mut()?;
        name.answered(addresses, now);
        if addresses.is_empty() {
            // What was known before is better than nothing.
            if self.addresses.is_empty() && name.is_news() {
                let name = &self.loaded.config.name;
                warn!(
                    code = "proxy-failed",
                    name, "the proxy is not usable: its name has no address"
                );
            }
            return None;
        }
        let port = name.port();
        let before = self.address();
        self.addresses = addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        let kept = self.addresses.iter().position(|address| Some(*address) == before);
        self.at = kept.unwrap_or(0);
        match &mut self.state {
            State::Down { against: Against::NoAddress, .. } => Some(self.rise()),
            State::Down { probe: probe @ Probe::Due(_), .. } if kept.is_none() => {
                *probe = Probe::Due(now);
                None
            }
            State::Usable | State::Down { .. } => None,
        }
    }

    /// A shard has met with a fault.
    pub(super) fn failed(&mut self, fault: Fault, now: Instant) -> News {
        match (self.state, fault) {
            (State::Down { .. }, _) => None,
            (State::Usable, Fault::Mute) => {
                // Who asks again and again for what nobody answers makes no more of them.
                let at = self.checked.map_or(now, |last| now.max(last + LONGEST_PAUSE));
                self.check.get_or_insert(Probe::Due(at));
                None
            }
            (State::Usable, _) => self.fall(Against::Fault(fault), Probe::Due(now)),
        }
    }

    fn rise(&mut self) -> &'static str {
        info!(name = self.loaded.config.name, "the proxy is usable");
        self.state = State::Usable;
        "usable"
    }

    fn fall(&mut self, against: Against, probe: Probe) -> News {
        let name = &self.loaded.config.name;
        warn!(
            code = "proxy-failed",
            name, "new flows take the next way out than the proxy, or none: {against}"
        );
        self.state = State::Down { against, probe, pause: Duration::ZERO };
        self.check = None;
        Some("unusable")
    }

    /// Looks whether there is a way to it, after that may have changed. Where there is one it is
    /// asked again what speaks against it: the network is another.
    pub(super) fn follow_path(&mut self, beneath: &mut Beneath<'_>, now: Instant) -> News {
        let is_there = self.find_path(beneath)?;
        self.found_path(is_there, now)
    }

    /// The same after its name was answered, which is no other network.
    pub(super) fn follow_name(&mut self, beneath: &mut Beneath<'_>, now: Instant) -> News {
        match self.find_path(beneath)? {
            true => None,
            false => self.found_path(false, now),
        }
    }

    /// Takes an address that there is a way to, the one that it has before others; whether there
    /// is one. `None`: nothing is known.
    fn find_path(&mut self, beneath: &mut Beneath<'_>) -> Option<bool> {
        let behind = self.behind;
        let mut leads = |address: &SocketAddr| beneath.leads_to(behind, *address);
        let there = match self.address()? {
            address if leads(&address)? => Some(self.at),
            _ => self.addresses.iter().position(|address| leads(address) == Some(true)),
        };
        self.at = there.unwrap_or(self.at);
        Some(there.is_some())
    }

    fn found_path(&mut self, is_there: bool, now: Instant) -> News {
        let no_way = if self.behind.is_some() { Against::NoTunnel } else { Against::NoRoute };
        match (&mut self.state, is_there) {
            (State::Usable, true) => None,
            (State::Usable, false) => self.fall(no_way, Probe::Useless),
            (State::Down { against, probe, .. }, false) => {
                (*against, *probe) = (no_way, Probe::Useless);
                None
            }
            (State::Down { probe: Probe::UnderWay, .. }, true) => None,
            (State::Down { probe, pause, .. }, true) => {
                (*probe, *pause) = (Probe::Due(now), Duration::ZERO);
                None
            }
        }
    }

    /// When it is to be probed.
    pub(super) fn due(&self) -> Option<Instant> {
        let probe = match self.state {
            State::Usable => self.check?,
            State::Down { probe, .. } => probe,
        };
        match probe {
            Probe::Due(at) => Some(at).filter(|_| self.routed),
            Probe::UnderWay | Probe::Useless => None,
        }
    }

    /// The probe that is next or under way.
    fn next_probe(&mut self) -> Option<&mut Probe> {
        match &mut self.state {
            State::Usable => self.check.as_mut(),
            State::Down { probe, .. } => Some(probe),
        }
    }

    /// Begins a probe: what a shard is to be asked.
    pub(super) fn probe(&mut self) -> Option<Request> {
        let proxy = self.listed()?;
        let fault = match self.state {
            State::Usable => Fault::Mute,
            State::Down { against: Against::Fault(fault), .. } => fault,
            State::Down { .. } => Fault::Silent,
        };
        *self.next_probe()? = Probe::UnderWay;
        let (way, edition, orders) = (self.way, self.edition, self.orders.clone());
        // A keeper that has ended needs to know nothing.
        let answer = Box::new(move |seen| drop(orders.send(Order::Probed { way, edition, seen })));
        Some(Request::Probe { proxy, fault, answer })
    }

    /// The shard could not take it.
    pub(super) fn put_off(&mut self, now: Instant) {
        if let Some(probe) = self.next_probe() {
            *probe = Probe::Due(now + PAUSE);
        }
    }

    /// A probe has shown how it fares.
    pub(super) fn probed(&mut self, seen: Result<(), Fault>, now: Instant) -> News {
        if self.state == State::Usable {
            self.check.take_if(|check| *check == Probe::UnderWay)?;
            self.checked = Some(now);
            return match seen {
                Ok(()) => {
                    self.standing.trusted();
                    None
                }
                Err(fault) => self.fall(Against::Fault(fault), Probe::Due(now + PAUSE)),
            };
        }
        let State::Down { against, probe: probe @ Probe::UnderWay, pause } = &mut self.state else {
            return None;
        };
        match seen {
            Ok(()) => {
                self.standing.recovered();
                if let Some(name) = &mut self.name {
                    name.heard();
                }
                Some(self.rise())
            }
            Err(fault) => {
                debug!(name = self.loaded.config.name, "the proxy is not usable: {fault}");
                *against = Against::Fault(fault);
                self.at = (self.at + 1) % self.addresses.len().max(1);
                if self.at == 0 {
                    *pause = (*pause * 2).clamp(PAUSE, LONGEST_PAUSE);
                    *probe = Probe::Due(now + *pause);
                } else {
                    // The next one of its addresses.
                    *probe = Probe::Due(now);
                }
                if let Some(name) = &mut self.name {
                    name.silent(now);
                }
                None
            }
        }
    }

    /// What is told of it.
    pub(super) fn told(&self) -> ToldProxy {
        let config = &self.loaded.config;
        let (usable, fault) = match self.state {
            State::Usable => (true, None),
            State::Down { against, .. } => (false, Some(against.to_string())),
        };
        let kind = match (config.speaks, &config.tls) {
            (Speaks::Socks5, _) => "socks5",
            (Speaks::Http, None) => "http",
            (Speaks::Http, Some(_)) => "https",
        };
        let object = json!({
            "name": config.name,
            "kind": kind,
            "usable": usable,
            "via": config.via.as_ref().map_or(WayNames::DIRECT, DeviceName::as_str),
            "host": self.name.as_ref().map(Endpoint::name),
            "address": self.address().map(|address| address.to_string()),
            "fault": fault,
        });
        ToldProxy { name: config.name.clone(), usable, object }
    }
}

/// What connections to proxies leave by.
pub(super) struct Beneath<'a> {
    /// `None`: nothing is known of routes.
    pub(super) routes: Option<&'a mut Routes>,
    pub(super) mark: Option<Mark>,
    /// The tunnels that are usable.
    pub(super) links: Vec<(LinkId, Link)>,
}

impl Beneath<'_> {
    /// `None`: nothing is known.
    fn leads_to(&mut self, behind: Option<LinkId>, address: SocketAddr) -> Option<bool> {
        if let Some(behind) = behind {
            let link = self.links.iter().find(|(link, _)| *link == behind);
            return Some(link.is_some_and(|(_, link)| link.address(address.ip()).is_some()));
        }
        let found = self.routes.as_mut()?.lookup(Query {
            destination: address.ip(),
            source: None,
            device: None,
            protocol: Protocol::Tcp,
            destination_port: address.port(),
            uid: None,
            mark: self.mark.map(|mark| mark.value),
        });
        Some(!found.is_err_and(is_no_route))
    }
}

/// Whether the kernel has said so. Where it said nothing nothing is known.
fn is_no_route(error: LookupError) -> bool {
    matches!(error, LookupError::NoRoute(_) | LookupError::NeedsDevice | LookupError::NoSource)
}

/// As the shards take them.
pub(super) fn listed(proxies: &BTreeMap<WayId, Proxy>) -> Arc<Proxies> {
    Arc::new(proxies.iter().filter_map(|(way, proxy)| Some((*way, proxy.listed()?))).collect())
}

/// What a reload makes of those that are there before it, and of those that are after it.
pub(super) fn changes(
    before: &BTreeMap<WayId, Proxy>,
    after: &BTreeMap<WayId, Proxy>,
) -> [Vec<(WayId, &'static str)>; 2] {
    let gone = before.keys().filter(|way| !after.contains_key(way));
    let change = |(way, proxy): (&WayId, &Proxy)| match before.get(way) {
        None => Some((*way, "opened")),
        Some(before) if before.edition != proxy.edition => Some((*way, "changed")),
        Some(_) => None,
    };
    [gone.map(|way| (*way, "closed")).collect(), after.iter().filter_map(change).collect()]
}

/// A proxy at one moment.
#[derive(Debug, Clone)]
pub(crate) struct ToldProxy {
    pub(crate) name: String,
    pub(crate) usable: bool,
    /// The object of `docs/json.md`, without `event`.
    pub(crate) object: Value,
}

#[cfg(test)]
mod tests {
    use engine::Failure;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::config;

    const SECOND: Duration = Duration::from_secs(1);
    const REFUSED: Fault = Fault::Unreachable(Failure::Refused);

    fn loaded(url: &str) -> Loaded {
        let text = format!("[[proxy]]\nname = \"office\"\nurl = \"{url}\"\n");
        let config = config::parse("t.toml".as_ref(), &text).expect("a good one");
        crate::proxies::load(&config).expect("no files").remove(0)
    }

    fn office(url: &str, edition: u32) -> Proxy {
        let (orders, _) = unbounded_channel();
        let way = WayId::new(1).expect("few");
        Proxy::new(way, edition, loaded(url), None, &orders, Instant::now())
    }

    #[test]
    fn one_that_is_down_is_probed_at_once_and_then_less_and_less_often() {
        let mut now = Instant::now();
        let mut proxy = office("socks5://192.0.2.1", 1);
        assert_eq!((proxy.due(), proxy.is_usable()), (None, true), "nobody is woken");
        assert_eq!(proxy.failed(REFUSED, now), Some("unusable"));
        assert_eq!(proxy.failed(Fault::Login, now), None, "said once");
        assert!(!proxy.is_usable());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let due = proxy.due().expect("a probe");
            pauses.push((due - now).as_secs());
            now = due;
            let Some(Request::Probe { fault, .. }) = proxy.probe() else { panic!("a probe") };
            assert_eq!((fault, proxy.due()), (REFUSED, None), "one at a time");
            assert_eq!(proxy.probed(Err(REFUSED), now), None);
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(proxy.told().object["fault"], "it cannot be reached: refused");
        proxy.probe();
        assert_eq!(proxy.probed(Ok(()), now), Some("usable"));
        assert_eq!((proxy.due(), proxy.is_usable()), (None, true));
        assert_eq!(proxy.probed(Ok(()), now), None, "a probe that nobody waits for");
        // And from the beginning.
        proxy.failed(REFUSED, now);
        assert_eq!(proxy.due(), Some(now));
        proxy.put_off(now);
        assert_eq!(proxy.due(), Some(now + SECOND), "no shard took it");
    }

    #[test]
    fn one_that_answers_nothing_is_asked_before_it_is_left() {
        let mut now = Instant::now();
        let mut proxy = office("http://192.0.2.1", 1);
        assert_eq!((proxy.failed(Fault::Mute, now), proxy.is_usable()), (None, true));
        assert_eq!(proxy.due(), Some(now));
        let Some(Request::Probe { fault, .. }) = proxy.probe() else { panic!("a probe") };
        assert_eq!((fault, proxy.due()), (Fault::Mute, None));
        assert_eq!(proxy.failed(Fault::Mute, now), None, "one at a time");
        assert_eq!((proxy.probed(Ok(()), now), proxy.due()), (None, None));
        assert_eq!(proxy.probed(Err(Fault::Mute), now), None, "nobody waits for it");
        // It was the far side. The next doubt waits for a while.
        proxy.failed(Fault::Mute, now);
        assert_eq!(proxy.due(), Some(now + LONGEST_PAUSE));
        now += LONGEST_PAUSE;
        proxy.probe().expect("a probe");
        assert_eq!(proxy.probed(Err(Fault::Mute), now), Some("unusable"));
        assert_eq!((proxy.due(), proxy.is_usable()), (Some(now + SECOND), false));
        assert_eq!(proxy.told().object["fault"], "it answers nothing that it is asked");
        let Some(Request::Probe { fault, .. }) = proxy.probe() else { panic!("a probe") };
        assert_eq!(fault, Fault::Mute, "it has to answer");
        assert_eq!(proxy.probed(Ok(()), now), Some("usable"));
        // What is worse comes before a doubt.
        now += LONGEST_PAUSE;
        proxy.failed(Fault::Mute, now);
        assert_eq!(proxy.failed(REFUSED, now), Some("unusable"));
        let Some(Request::Probe { fault, .. }) = proxy.probe() else { panic!("a probe") };
        assert_eq!(fault, REFUSED);
        assert_eq!(proxy.probed(Ok(()), now), Some("usable"));
        assert_eq!(proxy.due(), None, "the doubt is settled as well");
    }

    #[test]
    fn one_that_no_route_names_is_not_probed() {
        let now = Instant::now();
        let mut proxy = office("http://192.0.2.1", 1).routed(false);
        proxy.failed(REFUSED, now);
        assert_eq!((proxy.due(), proxy.is_usable()), (None, false));
        let mut proxy = proxy.routed(true);
        assert_eq!(proxy.due(), Some(now), "a reload names it");
        proxy.probe().expect("a probe");
        let mut proxy = proxy.routed(false);
        assert_eq!(proxy.probed(Err(REFUSED), now), None);
        assert_eq!(proxy.due(), None);
        assert_eq!(proxy.routed(true).due(), Some(now + SECOND));
    }

    #[test]
    fn where_no_route_leads_it_is_not_probed_until_there_is_one() {
        let now = Instant::now();
        let mut proxy = office("http://192.0.2.1", 1);
        assert_eq!(proxy.found_path(true, now), None);
        assert_eq!(proxy.found_path(false, now), Some("unusable"));
        assert_eq!((proxy.due(), proxy.found_path(false, now)), (None, None));
        assert_eq!(proxy.found_path(true, now), None);
        assert_eq!(proxy.due(), Some(now), "it may have gone meanwhile");
        proxy.probe();
        assert_eq!(proxy.probed(Err(REFUSED), now), None);
        // Another network: at once again.
        assert_eq!(proxy.due(), Some(now + SECOND));
        assert_eq!(proxy.found_path(true, now), None);
        assert_eq!(proxy.due(), Some(now));
        proxy.probe();
        assert_eq!(proxy.found_path(true, now), None);
        assert_eq!(proxy.due(), None, "one is under way");
        // The way is gone while it is.
        assert_eq!(proxy.found_path(false, now), None);
        assert_eq!(proxy.probed(Ok(()), now), None);
        assert!(!proxy.is_usable());
    }

    #[test]
    fn one_known_by_its_name_is_looked_for_at_each_of_its_addresses() {
        let mut now = Instant::now();
        let mut proxy = office("socks5://proxy.example", 1);
        assert!(proxy.out().is_none() && proxy.is_new() && proxy.name_due().is_some());
        assert_eq!(proxy.ask_for_name().as_deref(), Some("proxy.example"));
        assert_eq!((proxy.named(&[], now), proxy.out()), (None, None));
        assert!(!proxy.is_new() && proxy.due().is_none(), "there is nothing to probe");
        let ip = |last| IpAddr::from([192, 0, 2, last]);
        proxy.ask_for_name();
        assert_eq!(proxy.named(&[ip(1), ip(2)], now), Some("usable"));
        let at = |proxy: &Proxy| proxy.address().expect("one").ip();
        assert_eq!((at(&proxy), proxy.name_due(), proxy.due()), (ip(1), None, None));
        // The addresses in turn, and then after a pause.
        proxy.failed(REFUSED, now);
        let mut probed = Vec::new();
        for _ in 0..5 {
            let due = proxy.due().expect("a probe");
            probed.push((at(&proxy), (due - now).as_secs()));
            now = due;
            proxy.probe().expect("a probe");
            proxy.probed(Err(REFUSED), now);
        }
        assert_eq!(probed, [(ip(1), 0), (ip(2), 0), (ip(1), 1), (ip(2), 0), (ip(1), 2)]);
        assert!(proxy.name_due().is_some(), "the name may have another by now");
        proxy.ask_for_name();
        assert_eq!(proxy.named(&[ip(3)], now), None);
        assert_eq!((at(&proxy), proxy.due()), (ip(3), Some(now)));
        // No answer is no news of where it is.
        proxy.ask_for_name();
        assert_eq!((proxy.named(&[], now), at(&proxy)), (None, ip(3)));
        proxy.probe();
        assert_eq!(proxy.probed(Ok(()), now), Some("usable"));
        assert_eq!((at(&proxy), proxy.due()), (ip(3), None));
    }

    #[test]
    fn one_behind_a_tunnel_is_down_where_that_is() {
        let now = Instant::now();
        let (orders, _) = unbounded_channel();
        let (way, wg0) = (WayId::new(2).expect("few"), LinkId::of(WayId::new(1).expect("few")));
        let link = Link {
            device: DeviceName::new("wg0").expect("a name"),
            addresses: ["10.0.0.2/32".parse().expect("a prefix")].into(),
            mtu: 1420,
            underlay: None,
        };
        let beneath = |links: &[LinkId]| Beneath {
            routes: None,
            mark: None,
            links: links.iter().map(|id| (*id, link.clone())).collect(),
        };
        let mut proxy = Proxy::new(way, 1, loaded("socks5://10.0.0.1"), Some(wg0), &orders, now);
        assert_eq!(proxy.follow_path(&mut beneath(&[wg0]), now), None);
        assert!(proxy.is_usable());
        let other = LinkId::of(way);
        assert_eq!(proxy.follow_path(&mut beneath(&[other]), now), Some("unusable"));
        assert_eq!(proxy.told().object["fault"], "the tunnel in front of it is not usable");
        assert_eq!((proxy.due(), proxy.follow_path(&mut beneath(&[wg0]), now)), (None, None));
        assert_eq!(proxy.due(), Some(now));
        // A tunnel carries what it has an address of.
        let mut proxy = Proxy::new(way, 1, loaded("socks5://[fd00::1]"), Some(wg0), &orders, now);
        assert_eq!(proxy.follow_path(&mut beneath(&[wg0]), now), Some("unusable"));
    }

    #[test]
    fn a_reload_keeps_what_it_does_not_change() {
        let mut proxy = office("socks5://192.0.2.1", 1);
        proxy.failed(REFUSED, Instant::now());
        let same = proxy.reloaded(&loaded("socks5://192.0.2.1:1080")).expect("the same");
        assert_eq!((same.edition(), same.is_usable()), (1, false));
        for url in ["socks5://192.0.2.2", "http://192.0.2.1:1080", "socks5://a:b@192.0.2.1"] {
            assert!(proxy.reloaded(&loaded(url)).is_none(), "{url}");
        }
        let way = |number| WayId::new(number).expect("few");
        let of = |ways: &[(u8, u32)]| -> BTreeMap<WayId, Proxy> {
            let proxy = |edition| office("socks5://192.0.2.1", edition);
            ways.iter().map(|(number, edition)| (way(*number), proxy(*edition))).collect()
        };
        let [gone, others] =
            changes(&of(&[(1, 1), (2, 2), (3, 3)]), &of(&[(1, 1), (2, 4), (5, 5)]));
        assert_eq!(gone, [(way(3), "closed")]);
        assert_eq!(others, [(way(2), "changed"), (way(5), "opened")]);
    }
}
