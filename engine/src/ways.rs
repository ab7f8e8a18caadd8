//! The ways out of this host: their numbers, and what is known of each at the moment.
//!
//! A *way out* is `direct`, a tunnel (a *link*) or a proxy. The configuration names them
//! ([`WayNames`]), the policy chooses by these names, and whoever watches over links and
//! proxies tells the engine which of them are usable ([`Ways`]).

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::sync::Arc;

use ipnet::IpNet;

use crate::DeviceName;

/// A way out's number, the same over all reloads. Kept one higher, so that an optional one is
/// as small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WayId(NonZeroU8);

impl WayId {
    /// A socket of this host.
    pub const DIRECT: Self = Self(NonZeroU8::MIN);
    /// How many there may be, counted with those that were removed since the start.
    pub const MOST: usize = 64;

    /// `None` where there can be no such number.
    pub fn new(number: u8) -> Option<Self> {
        let known = usize::from(number) < Self::MOST;
        NonZeroU8::new(number + u8::from(known)).filter(|_| known).map(Self)
    }

    /// As a number.
    pub fn number(self) -> u8 {
        self.0.get() - 1
    }

    fn place(self) -> usize {
        usize::from(self.number())
    }
}

/// A tunnel's number: that of its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(WayId);

impl LinkId {
    /// The tunnel of a way out, which has to be one.
    pub fn of(way: WayId) -> Self {
        Self(way)
    }

    /// Its way out.
    pub fn way(self) -> WayId {
        self.0
    }
}

/// What a way out is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WayKind {
    /// A socket of this host.
    Direct,
    /// A tunnel.
    Link,
    /// A proxy.
    Proxy,
}

/// There would be more than [`WayId::MOST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {most} ways out, with those that were removed since the start", most = WayId::MOST)]
pub struct TooManyWays;

/// The names of ways out and their numbers.
///
/// A number is never given to another name, nor to a way of another kind: a flow whose way a
/// reload has removed still has its name in reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WayNames {
    list: Vec<Slot>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Slot {
    name: Arc<str>,
    kind: WayKind,
    configured: bool,
}

impl Default for WayNames {
    /// `direct` alone.
    fn default() -> Self {
        let direct = Slot { name: Self::DIRECT.into(), kind: WayKind::Direct, configured: true };
        Self { list: vec![direct] }
    }
}

impl WayNames {
    /// The name of [`WayId::DIRECT`].
    pub const DIRECT: &str = "direct";

    /// After a reload: `direct` and exactly these are configured, under the numbers that they
    /// had, or under new ones.
    ///
    /// # Errors
    /// The numbers are used up.
    pub fn configured<'n>(
        &self,
        ways: impl IntoIterator<Item = (&'n str, WayKind)>,
    ) -> Result<Self, TooManyWays> {
        let mut list = self.list.clone();
        list.iter_mut().skip(1).for_each(|slot| slot.configured = false);
        for (name, kind) in ways {
            match list.iter().position(|slot| &*slot.name == name && slot.kind == kind) {
                Some(at) => list[at].configured = true,
                None if list.len() == WayId::MOST => return Err(TooManyWays),
                None => list.push(Slot { name: name.into(), kind, configured: true }),
            }
        }
        Ok(Self { list })
    }

    /// The way out of this name, if it is configured.
    pub fn id(&self, name: &str) -> Option<WayId> {
        let at = self.list.iter().position(|slot| slot.configured && &*slot.name == name)?;
        u8::try_from(at).ok().and_then(WayId::new)
    }

    /// The name of a way out, also of one that was removed.
    pub fn name(&self, way: WayId) -> Option<&Arc<str>> {
        self.list.get(way.place()).map(|slot| &slot.name)
    }

    /// What a way out is, also one that was removed.
    pub fn kind(&self, way: WayId) -> Option<WayKind> {
        self.list.get(way.place()).map(|slot| slot.kind)
    }

    /// Those that are configured, with their names and kinds, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (WayId, &str, WayKind)> {
        let numbered = (0..).map_while(WayId::new).zip(&self.list);
        numbered.filter(|(_, slot)| slot.configured).map(|(id, slot)| (id, &*slot.name, slot.kind))
    }
}

/// What is known of each way out at the moment. `direct` is always there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ways {
    /// By number; `None`: there is no such way (any more).
    list: Vec<Option<WayOut>>,
}

/// One way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WayOut {
    /// Whether new flows may take it.
    pub usable: bool,
    /// Where it leads.
    pub leads: Leads,
}

/// Where a way out leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leads {
    /// Out of a socket of this host.
    Direct,
    /// Into a tunnel.
    Link(Link),
    /// To a proxy.
    Proxy(Proxy),
}

/// What the engine knows of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    /// The tunnel that it is reached through; `None`: as the routes of this host have it.
    pub behind: Option<LinkId>,
    /// With another number it is another proxy, though its name is the same: flows over the
    /// one before are ended.
    pub edition: u32,
}

/// What the engine knows of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name: the egress device of its flows.
    pub device: DeviceName,
    /// Its own addresses, each with the prefix that is on the link. It carries no IP version that
    /// it has none of.
    pub addresses: Arc<[IpNet]>,
    /// The longest packet that it takes, in bytes.
    pub mtu: u16,
    /// The device that its own datagrams leave by, for reports.
    pub underlay: Option<DeviceName>,
}

impl Link {
    /// Its own address with which packets leave for `to`, as the kernel would have it: of those
    /// whose prefix holds `to` the one with the longest, else the first of that IP version.
    pub fn address(&self, to: IpAddr) -> Option<IpAddr> {
        let of_version =
            || self.addresses.iter().filter(move |net| net.addr().is_ipv4() == to.is_ipv4());
        // Of equal ones the first.
        let nearest = of_version().rev().filter(|net| net.contains(&to));
        let nearest = nearest.max_by_key(|net| net.prefix_len());
        nearest.or_else(|| of_version().next()).map(IpNet::addr)
    }

    /// Whether an address is its own.
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.addr() == address)
    }
}

impl Default for Ways {
    fn default() -> Self {
        Self { list: vec![Some(WayOut { usable: true, leads: Leads::Direct })] }
    }
}

impl Ways {
    /// Says what is known of a way out.
    pub fn set(&mut self, id: WayId, way: WayOut) {
        let at = id.place();
        if self.list.len() <= at {
            self.list.resize(at + 1, None);
        }
        self.list[at] = Some(way);
    }

    /// What is known of a way out; `None`: it is not there.
    pub fn way(&self, id: WayId) -> Option<&WayOut> {
        self.list.get(id.place())?.as_ref()
    }

    /// Says that new flows may take a way out no more; without effect where it is not there.
    pub fn set_unusable(&mut self, id: WayId) {
        if let Some(Some(way)) = self.list.get_mut(id.place()) {
            way.usable = false;
        }
    }

    /// Whether new flows may take it.
    pub fn is_usable(&self, id: WayId) -> bool {
        self.way(id).is_some_and(|way| way.usable)
    }

    /// Where the proxies listen that are reached as the routes of this host have it.
    pub fn proxies(&self) -> impl Iterator<Item = SocketAddr> {
        self.list.iter().flatten().filter_map(|way| match &way.leads {
            Leads::Proxy(proxy) => proxy.behind.is_none().then_some(proxy.address),
            Leads::Direct | Leads::Link(_) => None,
        })
    }

    /// The tunnel of that number, while it is there.
    pub fn link(&self, id: LinkId) -> Option<&Link> {
        match &self.way(id.0)?.leads {
            Leads::Link(link) => Some(link),
            Leads::Direct | Leads::Proxy(_) => None,
        }
    }

    /// The tunnel that a way out leads through, while it is there: itself, or what its proxy is
    /// behind.
    pub fn first_link(&self, id: WayId) -> Option<&Link> {
        match &self.way(id)?.leads {
            Leads::Direct => None,
            Leads::Link(link) => Some(link),
            Leads::Proxy(proxy) => self.link(proxy.behind?),
        }
    }

    /// The proxy of that way out, while it is there.
    pub fn proxy(&self, id: WayId) -> Option<&Proxy> {
        match &self.way(id)?.leads {
            Leads::Proxy(proxy) => Some(proxy),
            Leads::Direct | Leads::Link(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> WayId {
        WayId::new(number).expect("few")
    }

    #[test]
    fn a_number_belongs_to_one_name_and_kind() {
        use WayKind::{Link, Proxy};
        let at = |number| WayId::new(number);
        let first = WayNames::default().configured([("wg0", Link), ("office", Proxy)]);
        let first = first.expect("few");
        assert_eq!((first.id("wg0"), first.id("office"), first.id("x")), (at(1), at(2), None));
        let second = first.configured([("wg1", Link), ("office", Link)]).expect("few");
        for (name, number) in [("direct", at(0)), ("wg0", None), ("wg1", at(3)), ("office", at(4))]
        {
            assert_eq!(second.id(name), number, "{name}");
        }
        assert_eq!(second.name(id(1)).map(|name| &**name), Some("wg0"));
        assert_eq!(second.kind(id(2)), Some(Proxy));
        let listed: Vec<_> = second.iter().map(|(_, name, _)| name).collect();
        assert_eq!(listed, ["direct", "wg1", "office"]);
        let names: Vec<String> = (1..WayId::MOST).map(|n| format!("w{n}")).collect();
        let all = WayNames::default().configured(names.iter().map(|name| (&**name, Link)));
        assert_eq!(all.expect("as many as can be").configured([("x", Link)]), Err(TooManyWays));
    }

    #[test]
    fn what_is_not_said_is_not_there() {
        let mut ways = Ways::default();
        let link = Link {
            device: DeviceName::new("wg0").expect("a name"),
            addresses: ["10.0.0.2/32".parse().expect("a prefix")].into(),
            mtu: 1420,
            underlay: None,
        };
        ways.set(id(2), WayOut { usable: false, leads: Leads::Link(link.clone()) });
        assert!(ways.is_usable(WayId::DIRECT) && !ways.is_usable(id(1)));
        assert!(!ways.is_usable(id(2)) && !ways.is_usable(id(9)));
        ways.set(id(3), WayOut { usable: true, leads: Leads::Direct });
        for id in [id(3), id(4), id(9)] {
            ways.set_unusable(id);
        }
        assert!(ways.way(id(3)).is_some() && !ways.is_usable(id(3)) && ways.way(id(4)).is_none());
        assert_eq!(ways.link(LinkId(id(2))), Some(&link));
        assert_eq!(ways.link(LinkId(WayId::DIRECT)), None);
    }

    #[test]
    fn a_link_speaks_from_the_address_nearest_to_the_far_side() {
        let nets = "10.0.0.2/32 10.1.0.2/16 10.1.7.2/24 10.1.0.3/16 fd00::2/64 fd01::2/64";
        let link = Link {
            device: DeviceName::new("wg0").expect("a name"),
            addresses: nets.split(' ').map(|net| net.parse().expect("a prefix")).collect(),
            mtu: 1420,
            underlay: None,
        };
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        for (name, to, from) in [
            ("behind it", "203.0.113.1", "10.0.0.2"),
            ("on the link", "10.1.9.9", "10.1.0.2"),
            ("nearer", "10.1.7.9", "10.1.7.2"),
            ("behind it, IPv6", "2001:db8::1", "fd00::2"),
            ("on the link, IPv6", "fd01::9", "fd01::2"),
        ] {
            assert_eq!(link.address(ip(to)), Some(ip(from)), "{name}");
        }
        assert!(link.has(ip("10.1.0.3")) && !link.has(ip("10.1.0.4")));
        let v6 = Link { addresses: link.addresses[4..].into(), ..link };
        assert_eq!(v6.address(ip("203.0.113.1")), None, "it carries no IPv4");
    }
}
