//! What systemd-resolved says, over D-Bus (org.freedesktop.resolve1(5)).

use std::collections::BTreeMap;
use std::net::IpAddr;

use zbus::names::OwnedUniqueName;
use zbus::{Connection, OwnedObjectPath, Proxy};

use super::belief::Heard;
use super::server::{self, Named};
use super::{Domain, Provenance};
use crate::bus::{self, RESOLVED, RESOLVED_PATH};

/// A link, the address family, the address, the port, and the name for TLS.
type Server = (i32, i32, Vec<u8>, u16, String);
/// Older ones have neither port nor name.
type OldServer = (i32, i32, Vec<u8>);
/// A link, the domain, and whether it only routes.
type LinkDomain = (i32, String, bool);

/// A host has a handful of links with servers.
const MOST_LINKS: usize = 64;

/// Asks for all servers. `None`: it doesn't run.
pub(super) async fn ask(bus: &Connection) -> zbus::Result<Option<Vec<Heard>>> {
    let Some(owner) = bus::owner(bus, RESOLVED).await? else { return Ok(None) };
    let manager =
        bus::object(bus, &owner, RESOLVED_PATH, "org.freedesktop.resolve1.Manager").await?;
    let servers: Vec<Server> = match manager.get_property("DNSEx").await {
        Ok(servers) => servers,
        // One that gives no answer gives none to the next question either.
        Err(error @ zbus::Error::InputOutput(_)) => return Err(error),
        Err(_) => {
            let old: Vec<OldServer> = manager.get_property("DNS").await?;
            let empty = String::new;
            old.into_iter().map(|(link, family, ip)| (link, family, ip, 0, empty())).collect()
        }
    };
    let domains: Vec<LinkDomain> = manager.get_property("Domains").await?;
    let mut links: BTreeMap<u32, Said> = BTreeMap::new();
    for server in &servers {
        said(&mut links, server.0).servers.push(server);
    }
    for domain in &domains {
        said(&mut links, domain.0).domains.push(domain);
    }
    let mut heard = Vec::new();
    for (link, said) in links.into_iter().take(MOST_LINKS) {
        let of_link = of_link(bus, &owner, &manager, link).await;
        heard.push(said.heard(link, &of_link));
    }
    Ok(Some(heard))
}

/// What it has said of one link.
#[derive(Debug, Default)]
struct Said<'a> {
    servers: Vec<&'a Server>,
    domains: Vec<&'a LinkDomain>,
}

fn said<'a, 'b>(links: &'b mut BTreeMap<u32, Said<'a>>, link: i32) -> &'b mut Said<'a> {
    links.entry(u32::try_from(link).unwrap_or(0)).or_default()
}

/// A link's settings.
#[derive(Debug)]
struct OfLink {
    default_route: bool,
    tls: bool,
}

/// Asks for a link's settings; one that went meanwhile has the default ones.
async fn of_link(
    bus: &Connection,
    owner: &OwnedUniqueName,
    manager: &Proxy<'_>,
    link: u32,
) -> OfLink {
    let asked = async {
        if link == 0 {
            let tls: String = manager.get_property("DNSOverTLS").await?;
            return zbus::Result::Ok(OfLink { default_route: true, tls: tls == "yes" });
        }
        let index = i32::try_from(link).unwrap_or(0);
        let path: OwnedObjectPath = manager.call("GetLink", &index).await?;
        let link = bus::object(bus, owner, path.as_str(), "org.freedesktop.resolve1.Link").await?;
        let tls: String = link.get_property("DNSOverTLS").await?;
        let default_route = link.get_property("DefaultRoute").await?;
        Ok(OfLink { default_route, tls: tls == "yes" })
    };
    asked.await.unwrap_or(OfLink { default_route: true, tls: false })
}

impl Said<'_> {
    fn heard(&self, link: u32, settings: &OfLink) -> Heard {
        let of = (link > 0).then_some(link);
        let named = |(_, _, octets, port, name): &&Server| {
            Some(Named {
                address: server::address(address(octets)?, *port, settings.tls, of),
                tls: settings.tls,
                name: (!name.is_empty()).then(|| name.clone()),
            })
        };
        let domain = |(_, name, route_only): &&LinkDomain| {
            let mark = if *route_only { "~" } else { "" };
            server::domain(&format!("{mark}{name}"))
        };
        let domains: Vec<Domain> = self.domains.iter().filter_map(domain).collect();
        Heard {
            from: Provenance::Resolved { link },
            link: of,
            servers: self.servers.iter().filter_map(named).collect(),
            domains,
            default_route: settings.default_route,
        }
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => octets.first_chunk::<4>().map(|octets| (*octets).into()),
        16 => octets.first_chunk::<16>().map(|octets| (*octets).into()),
        _ => None,
    }
}
