//! The proxies among the ways out.

use std::collections::BTreeMap;
use std::time::SystemTime;

use engine::{Leads, Link, LinkId, WayId, WayOut};
use tokio::time::Instant;

use super::Keeper;
use crate::ways::proxy::{Beneath, News, Proxy};
use crate::ways::wireguard::Tunnel;
use crate::ways::{Wanted, told};

impl Keeper {
    /// The proxies as a configuration wants them: those that are as they were go on.
    pub(super) fn proxies_of(
        &mut self,
        wanted: &Wanted,
        links: Vec<(LinkId, Link)>,
    ) -> BTreeMap<WayId, Proxy> {
        let now = Instant::now();
        let mut beneath = Beneath { routes: self.routes.as_mut(), mark: self.mark, links };
        let mut proxies = BTreeMap::new();
        for loaded in &wanted.proxies {
            let Some(way) = wanted.names.id(&loaded.config.name) else { continue };
            let kept = self.proxies.get(&way).and_then(|proxy| proxy.reloaded(loaded));
            let proxy = kept.unwrap_or_else(|| {
                self.editions += 1;
                let via = loaded.config.via.and_then(|via| wanted.names.id(via.as_str()));
                let behind = via.map(LinkId::of);
                let edition = self.editions;
                let mut proxy = Proxy::new(way, edition, loaded.clone(), behind, &self.orders, now);
                proxy.follow_path(&mut beneath, now);
                proxy
            });
            proxies.insert(way, proxy.routed(wanted.routed.contains(&way)));
        }
        proxies
    }

    /// The tunnels that are usable, with some that are about to be there.
    pub(super) fn links(&self, opened: &[Tunnel]) -> Vec<(LinkId, Link)> {
        let tunnels = self.tunnels.values().map(|tunnel| &**tunnel).chain(opened);
        tunnels.filter_map(|tunnel| usable_link(tunnel.link, &tunnel.out())).collect()
    }

    /// Has a proxy take something in, and tells what is new of it. Of one that is another by now
    /// nothing is.
    pub(super) async fn at_proxy(
        &mut self,
        way: WayId,
        edition: u32,
        take: impl FnOnce(&mut Proxy, Instant) -> News,
    ) {
        let proxy = self.proxies.get_mut(&way).filter(|proxy| proxy.edition() == edition);
        let news = proxy.and_then(|proxy| take(proxy, Instant::now()));
        self.tell_news().await;
        self.say_of_proxies(news.map(|what| (way, what)).as_slice());
    }

    /// Looks how connections to proxies leave now, and asks those again that are not usable. With
    /// `behind` only of those that are behind such a tunnel.
    pub(super) async fn follow_proxies(&mut self, behind: Option<&[WayId]>) {
        let (now, mut news) = (Instant::now(), Vec::new());
        let links = self.links(&[]);
        let mut beneath = Beneath { routes: self.routes.as_mut(), mark: self.mark, links };
        for (way, proxy) in &mut self.proxies {
            if behind.is_none_or(|links| links.iter().any(|link| proxy.is_behind(*link))) {
                let found = proxy.follow_path(&mut beneath, now);
                news.extend(found.map(|what| (*way, what)));
            }
        }
        self.tell_news().await;
        self.say_of_proxies(&news);
    }

    /// Says to whoever watches what has become of proxies.
    pub(super) fn say_of_proxies(&self, news: &[(WayId, &str)]) {
        let Some(events) = self.events.as_ref().filter(|events| events.watchers() > 0) else {
            return;
        };
        let now = SystemTime::now();
        for (way, what) in news {
            if let Some(proxy) = self.proxies.get(way) {
                events.send(told::event("proxy", what, &proxy.told().object, now));
            }
        }
    }
}

/// A tunnel, where it is usable.
pub(super) fn usable_link(id: LinkId, out: &WayOut) -> Option<(LinkId, Link)> {
    match &out.leads {
        Leads::Link(link) if out.usable => Some((id, link.clone())),
        Leads::Direct | Leads::Link(_) | Leads::Proxy(_) => None,
    }
}
