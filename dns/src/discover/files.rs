//! What lies in files below `/run`, `/var/lib` and `/etc`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::belief::Heard;
use super::links::Links;
use super::server::{self, Named};
use super::{Domain, Provenance, ResolvConf, Settings, dhclient, networkd, resolv_conf};
use crate::inotify::Place;
use crate::takeover::{KEPT, RECORD, RESOLV_CONF, below};

/// Of a longer file only the end is read: leases are appended.
const MOST_BYTES: u64 = 1 << 20;
/// Of a fuller directory only as many files, by name.
const MOST_FILES: usize = 256;

const RESOLVED: &str = "run/systemd/resolve/resolv.conf";
const NETWORK_MANAGER: &str = "run/NetworkManager/no-stub-resolv.conf";
/// Where records lie: Debian's resolvconf, openresolv to 3.12, openresolv from 3.13.
const RECORDS: [&str; 3] =
    ["run/resolvconf/interface", "run/resolvconf/interfaces", "run/resolvconf/keys"];
/// Links know more than leases.
const NETWORKD: [&str; 2] = ["run/systemd/netif/links", "run/systemd/netif/leases"];
/// Debian's and Fedora's.
const DHCLIENT: [&str; 2] = ["var/lib/dhcp", "var/lib/dhclient"];
/// All that is read here, to be watched.
pub(super) fn places(root: &Path) -> Vec<Place> {
    let files = [RESOLVED, NETWORK_MANAGER]
        .map(|file| root.join(file))
        .into_iter()
        .chain([below(root, RESOLV_CONF), below(root, KEPT)]);
    let directories = RECORDS
        .iter()
        .chain(&NETWORKD)
        .chain(&DHCLIENT)
        .map(|directory| Place::Directory(root.join(directory)));
    files.map(Place::File).chain(directories).collect()
}

/// Reads all of it. The second is when the first of what was read ends by itself.
pub(super) fn read(
    settings: &Settings,
    links: &Links,
    now: SystemTime,
) -> (Vec<Heard>, Option<SystemTime>) {
    let root = &settings.root;
    let mut heard = Vec::new();
    let whole =
        [(RESOLVED, Provenance::ResolvedFile), (NETWORK_MANAGER, Provenance::NetworkManagerFile)];
    for (file, from) in whole {
        heard.extend(text(&root.join(file)).map(|text| of_resolv_conf(&text, from, None, links)));
    }
    for (path, name) in RECORDS.iter().flat_map(|directory| list(&root.join(directory))) {
        // `eth0.dhclient`: the interface, and who has said so.
        let interface = name.split('.').next().unwrap_or(&name);
        if name == RECORD || settings.tun.as_deref() == Some(interface) {
            continue;
        }
        let link = links.index(interface);
        let from = Provenance::Resolvconf { name: name.clone() };
        heard.extend(text(&path).map(|text| of_resolv_conf(&text, from, link, links)));
    }
    for (path, name) in NETWORKD.iter().flat_map(|directory| list(&root.join(directory))) {
        let Ok(link) = name.parse() else { continue };
        heard.extend(text(&path).map(|text| networkd::parse(&text, link, links)));
    }
    let (leases, until) = leases(root, links, now);
    heard.extend(leases);
    heard.extend(before_us(settings, links));
    (heard, until)
}

/// The newest lease of each interface and IP version, while it holds.
fn leases(root: &Path, links: &Links, now: SystemTime) -> (Vec<Heard>, Option<SystemTime>) {
    let mut newest: HashMap<(String, bool), (dhclient::Lease, PathBuf)> = HashMap::new();
    let files = DHCLIENT.iter().flat_map(|directory| list(&root.join(directory)));
    for (path, _) in files.filter(|(_, name)| name.ends_with(".leases") || name.ends_with(".lease"))
    {
        for lease in text(&path).map(|text| dhclient::parse(&text)).unwrap_or_default() {
            let key = (lease.interface.clone(), lease.servers.iter().any(|s| s.is_ipv6()));
            match newest.get(&key) {
                // Within a file what stands later is newer, whatever its time.
                Some((known, of)) if *of != path && !lease.outlasts(known) => {}
                Some(_) | None => drop(newest.insert(key, (lease, path.clone()))),
            }
        }
    }
    let mut holding: Vec<_> =
        newest.into_iter().filter(|(_, (lease, _))| lease.holds(now)).collect();
    holding.sort_by(|(a, _), (b, _)| a.cmp(b));
    let until = holding.iter().filter_map(|(_, (lease, _))| lease.expires).min();
    let heard = holding.into_iter().filter_map(|(_, (lease, path))| {
        // A lease of an interface that is gone says nothing.
        let link = links.index(&lease.interface)?;
        let named = |ip: &std::net::IpAddr| Named {
            address: server::address(*ip, 0, false, Some(link)),
            tls: false,
            name: None,
        };
        Some(Heard {
            from: Provenance::DhclientLease { path },
            link: Some(link),
            servers: lease.servers.iter().map(named).collect(),
            domains: lease.domains.iter().filter_map(|d| server::domain(d)).collect(),
            default_route: true,
        })
    });
    (heard.collect(), until)
}

/// `/etc/resolv.conf` where it isn't ours, or the one that we have put aside.
fn before_us(settings: &Settings, links: &Links) -> Option<Heard> {
    let path = below(&settings.root, RESOLV_CONF);
    let now = text(&path).unwrap_or_default();
    let is_ours = ResolvConf::parse(&now).nameservers.iter().any(|ip| settings.own.contains(ip));
    let (path, text) = if is_ours {
        let kept = below(&settings.root, KEPT);
        let text = text(&kept)?;
        (kept, text)
    } else {
        (path, now)
    };
    Some(of_resolv_conf(&text, Provenance::ResolvConf { path }, None, links))
}

fn of_resolv_conf(text: &str, from: Provenance, link: Option<u32>, links: &Links) -> Heard {
    let servers =
        resolv_conf::nameservers(text).filter_map(|word| server::parse(word, link, links));
    let conf = ResolvConf::parse(text);
    let domains: Vec<Domain> = conf.search().into_iter().filter_map(server::domain).collect();
    Heard { from, link, servers: servers.collect(), domains, default_route: true }
}

/// The files of a directory by name; empty where there is none.
fn list(directory: &Path) -> Vec<(PathBuf, String)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.path(), entry.file_name().into_string().ok()?))
        })
        .filter(|(_, name)| !name.starts_with('.'))
        .collect();
    files.sort();
    files.truncate(MOST_FILES);
    files
}

/// A file's text; `None` where there is none, or it is no regular file.
fn text(path: &Path) -> Option<String> {
    // A pipe would keep us waiting.
    let metadata = std::fs::metadata(path).ok().filter(|metadata| metadata.is_file())?;
    let mut file = File::open(path).ok()?;
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(MOST_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
