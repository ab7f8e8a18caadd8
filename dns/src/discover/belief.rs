//! Whom to believe, pure.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::server::Named;
use super::{Domain, Found, FoundServer, Provenance};

/// What one source has said, of one link or of none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) from: Provenance,
    pub(super) link: Option<u32>,
    pub(super) servers: Vec<Named>,
    pub(super) domains: Vec<Domain>,
    pub(super) default_route: bool,
}

/// What is nobody's server.
#[derive(Debug, Clone, Default)]
pub(super) struct Never {
    /// Our addresses.
    pub(super) own: Vec<IpAddr>,
    /// Our TUN's link.
    pub(super) tun: Option<u32>,
}

/// The sources, the most believed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Configured,
    Resolved,
    NetworkManager,
    ResolvedFile,
    NetworkManagerFile,
    Resolvconf,
    Networkd,
    Dhclient,
    RouterAdvertisement,
    ResolvConf,
}

impl Provenance {
    fn source(&self) -> Source {
        match self {
            Self::Configured => Source::Configured,
            Self::Resolved { .. } => Source::Resolved,
            Self::NetworkManager { .. } => Source::NetworkManager,
            Self::ResolvedFile => Source::ResolvedFile,
            Self::NetworkManagerFile => Source::NetworkManagerFile,
            Self::Resolvconf { .. } => Source::Resolvconf,
            Self::NetworkdLease { .. } => Source::Networkd,
            Self::DhclientLease { .. } => Source::Dhclient,
            Self::RouterAdvertisement { .. } => Source::RouterAdvertisement,
            Self::ResolvConf { .. } => Source::ResolvConf,
        }
    }
}

/// Judges what was heard. Of one source the order stays.
pub(super) fn believe(mut heard: Vec<Heard>, never: &Never) -> Found {
    heard.sort_by_key(|heard| heard.from.source());
    let mut found = Found::default();
    let mut by_link: HashMap<u32, Source> = HashMap::new();
    let mut for_all: Option<Source> = None;
    for mut heard in heard {
        if heard.link.is_some() && heard.link == never.tun {
            continue;
        }
        heard.servers.retain(|server| may_be_asked(server.address, heard.link, never));
        heard.domains.truncate(MOST_DOMAINS);
        let source = heard.from.source();
        let taken = match heard.link {
            Some(link) => by_link.get(&link).copied(),
            None => by_link.values().copied().find(|other| *other != source),
        };
        if taken.or(for_all).is_some_and(|other| other != source) {
            continue;
        }
        for domain in heard.domains.iter().filter(|domain| !domain.route_only) {
            if !found.search.contains(&domain.name) {
                found.search.push(domain.name.clone());
            }
        }
        if heard.servers.is_empty() {
            continue;
        }
        match heard.link {
            Some(link) => drop(by_link.insert(link, source)),
            None => for_all = Some(source),
        }
        for server in heard.servers {
            // What two links name may be two hosts: each network has its own.
            let same =
                |known: &FoundServer| (known.address, known.link) == (server.address, heard.link);
            if found.servers.iter().any(same) || found.servers.len() == Found::MOST {
                continue;
            }
            found.servers.push(FoundServer {
                address: server.address,
                link: heard.link,
                tls: server.tls,
                name: server.name,
                from: heard.from.clone(),
                domains: heard.domains.clone(),
                default_route: heard.default_route,
            });
        }
    }
    found
}

/// Of one link; resolv.conf(5) knows six.
const MOST_DOMAINS: usize = 256;

fn may_be_asked(address: SocketAddr, link: Option<u32>, never: &Never) -> bool {
    const STUBS: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];
    let ip = address.ip();
    let scoped = match address {
        // Nowhere to ask without its link, and on our own link there is nobody.
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
            v6.scope_id() != 0 && never.tun != Some(v6.scope_id())
        }
        SocketAddr::V6(_) | SocketAddr::V4(_) => true,
    };
    // What a source says of a link that has no number means nothing.
    let of_a_link = link != Some(0);
    let nobodys = ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    let ours = STUBS.contains(&ip) || never.own.contains(&ip);
    scoped && of_a_link && !nobodys && !ours
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(from: Provenance, link: Option<u32>, servers: &[&str], domains: &[&str]) -> Heard {
        let named = |server: &&str| Named {
            address: server.parse().or_else(|_| format!("{server}:53").parse()).unwrap(),
            tls: false,
            name: None,
        };
        Heard {
            from,
            link,
            servers: servers.iter().map(named).collect(),
            domains: domains.iter().map(|d| super::super::server::domain(d).unwrap()).collect(),
            default_route: true,
        }
    }

    fn resolved(link: u32, servers: &[&str]) -> Heard {
        let of = (link > 0).then_some(link);
        heard(Provenance::Resolved { link }, of, servers, &[])
    }

    fn lease(link: u32, servers: &[&str]) -> Heard {
        heard(Provenance::NetworkdLease { link }, Some(link), servers, &["lease.example"])
    }

    fn file(servers: &[&str]) -> Heard {
        let path = "/etc/resolv.conf".into();
        heard(Provenance::ResolvConf { path }, None, servers, &["file.example"])
    }

    #[test]
    fn whom_to_believe() {
        #[rustfmt::skip]
        let cases = [
            ("nothing", vec![], "", ""),
            ("a file", vec![file(&["192.0.2.1", "192.0.2.2"])], "192.0.2.1 192.0.2.2", "file.example"),
            ("the order of asking is not that of belief", vec![file(&["192.0.2.1"]), resolved(2, &["192.0.2.9"])], "192.0.2.9", ""),
            ("a link's first source wins", vec![resolved(2, &["192.0.2.9"]), lease(2, &["192.0.2.8"])], "192.0.2.9", ""),
            ("another link has its own", vec![resolved(2, &["192.0.2.9"]), lease(3, &["192.0.2.8"])], "192.0.2.9 192.0.2.8", "lease.example"),
            ("who names no link speaks for all", vec![resolved(0, &["192.0.2.9"]), lease(3, &["192.0.2.8"])], "192.0.2.9", ""),
            ("global and links of one source", vec![resolved(0, &["192.0.2.9"]), resolved(2, &["192.0.2.8"])], "192.0.2.9 192.0.2.8", ""),
            ("a source without servers claims nothing", vec![resolved(2, &[]), lease(2, &["192.0.2.8"])], "192.0.2.8", "lease.example"),
            ("a source of stubs alone claims nothing", vec![resolved(0, &["127.0.0.53", "127.0.0.54"]), file(&["192.0.2.1"])], "192.0.2.1", "file.example"),
            ("our own addresses", vec![file(&["198.18.0.2", "192.0.2.1"])], "192.0.2.1", "file.example"),
            ("our own link", vec![resolved(7, &["192.0.2.66"]), lease(7, &["192.0.2.67"])], "", ""),
            ("a zone of our own link", vec![file(&["[fe80::1%7]:53"])], "", "file.example"),
            ("link-local with and without its link", vec![file(&["[fe80::1]:53", "[fe80::2%2]:53"])], "[fe80::2%2]:53", "file.example"),
            ("none twice", vec![resolved(2, &["192.0.2.9", "192.0.2.9"]), resolved(2, &["192.0.2.9"])], "192.0.2.9", ""),
            ("one address of two links", vec![resolved(2, &["192.0.2.9"]), resolved(3, &["192.0.2.9", "192.0.2.8"])], "192.0.2.9 192.0.2.9 192.0.2.8", ""),
            ("another port is another server", vec![file(&["192.0.2.1", "192.0.2.1:5353"])], "192.0.2.1 192.0.2.1:5353", "file.example"),
            ("nobody's addresses", vec![file(&["0.0.0.0", "[::]:53", "224.0.0.1", "255.255.255.255", "127.0.0.1"])], "127.0.0.1", "file.example"),
        ];
        let never = Never { own: vec!["198.18.0.2".parse().unwrap()], tun: Some(7) };
        for (name, said, servers, search) in cases {
            let found = believe(said, &never);
            let shown: Vec<String> = found
                .servers
                .iter()
                .map(|server| {
                    let text = server.address.to_string();
                    match server.address {
                        SocketAddr::V4(_) => text.strip_suffix(":53").unwrap_or(&text).to_owned(),
                        SocketAddr::V6(_) => text,
                    }
                })
                .collect();
            assert_eq!(shown.join(" "), servers, "{name}");
            assert_eq!(found.search.join(" "), search, "{name}");
        }
        // Each with where it was learned, and what it is for.
        let of = |link, domain| {
            heard(Provenance::Resolved { link }, Some(link), &["192.0.2.9"], &[domain])
        };
        let found = believe(vec![of(2, "home.example"), of(3, "~corp.example")], &never).servers;
        let told = found.iter().map(|it| (it.from.clone(), it.link, &*it.domains[0].name));
        let want = [(2, "home.example"), (3, "corp.example")];
        let want = want.map(|(link, name)| (Provenance::Resolved { link }, Some(link), name));
        assert_eq!(told.collect::<Vec<_>>(), want);
        let many: Vec<String> = (0..200).map(|n| format!("192.0.2.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(believe(vec![file(&many)], &never).servers.len(), Found::MOST);
    }
}
