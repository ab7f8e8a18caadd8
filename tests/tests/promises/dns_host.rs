//! The host's own resolver: its servers are found, its queries led to us, and all of it put back.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dns::discover::{self, Found, Provenance, ResolvConf};
use dns::takeover::{self, Follow, KEPT, RECORD, RESOLV_CONF, Todo, Wanted, Way, Whose};
use tests::endpoints::DnsServer;
use tests::lab::own_files::{run, with_own_files};
use tests::lab::resolved::{self, stub_knows};
use tests::lab::scratch::Scratch;
use tests::lab::{Lab, Netns, link, plan, skipped};
use tests::{require_package, require_root, require_tunneld};
use tunnel::host::{Change, Host, resolv_conf};

/// Where we answer.
const OURS: &str = "198.18.0.2";

fn ours() -> IpAddr {
    OURS.parse().expect("an address")
}

fn settings() -> discover::Settings {
    discover::Settings::of_this_host(vec![ours()], Some("tun9".to_owned()))
}

/// Each server and who named it.
fn shown(found: &Found) -> String {
    let servers = found.servers.iter().map(|server| format!("{} {}", server.address, server.from));
    servers.collect::<Vec<_>>().join(", ")
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// What the daemon does with the file: the change that takes it.
fn take_file(host: &mut Host) -> Result<()> {
    let before = ResolvConf::parse(&fs::read_to_string(RESOLV_CONF).unwrap_or_default());
    let text = takeover::text(&[ours()], &takeover::Search::default(), &before);
    let holder = host.directory().to_owned();
    let change = Change::ResolvConf { path: RESOLV_CONF.into(), kept: KEPT.into(), text, holder };
    Ok(host.begin(change)?.make()?)
}

/// There is one daemon, and its lock doesn't matter.
fn whose(bytes: &[u8]) -> Whose {
    match resolv_conf::whose(bytes, Path::new("/")) {
        resolv_conf::Whose::Theirs => Whose::Theirs,
        resolv_conf::Whose::Ours
        | resolv_conf::Whose::Orphaned
        | resolv_conf::Whose::Anothers(_) => Whose::Ours,
    }
}

async fn next(follow: &mut Follow) -> Option<Todo> {
    tokio::time::timeout(Duration::from_secs(10), follow.next()).await.ok()
}

/// Whether there is nothing to be done for a while.
async fn quiet(follow: &mut Follow) -> bool {
    tokio::time::timeout(Duration::from_secs(1), follow.next()).await.is_err()
}

fn names_us() -> bool {
    let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    ResolvConf::parse(&text).nameservers.first() == Some(&ours())
}

#[test]
fn the_file_is_taken_rewritten_and_put_back() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let state = Scratch::new()?;
    with_own_files(&lab.host, None, || {
        fs::write(RESOLV_CONF, "nameserver 192.0.2.1\nsearch corp.example\n")?;
        let (mut host, undone) = Host::open(&state.join("run"))?;
        ensure!(undone.is_empty(), "{undone:?}");
        block_on(async {
            let mut found = discover::watch(settings()).await;
            ensure!(shown(&found.borrow()) == "192.0.2.1:53 /etc/resolv.conf", "{found:?}");
            let (mut follow, _) = Follow::new(Wanted::Auto, Path::new("/"), None, whose).await?;
            ensure!(next(&mut follow).await == Some(Todo::Take(Way::File)));
            take_file(&mut host)?;
            ensure!(names_us() && fs::read_to_string(RESOLV_CONF)?.contains("search corp.example"));
            ensure!(quiet(&mut follow).await, "our own write is nobody's");

            // As dhclient does.
            fs::write("/etc/resolv.conf.dhclient-new.7", "nameserver 192.0.2.9\n")?;
            fs::rename("/etc/resolv.conf.dhclient-new.7", RESOLV_CONF)?;
            ensure!(next(&mut follow).await == Some(Todo::Take(Way::File)), "a rewrite");
            take_file(&mut host)?;
            ensure!(names_us());
            let theirs = format!("192.0.2.9:53 {KEPT}");
            let wait = found.wait_for(|found| shown(found) == theirs);
            tokio::time::timeout(Duration::from_secs(5), wait).await.context("their server")??;
            Ok(())
        })?;
        // As a crash does.
        drop(host);
        ensure!(names_us());
        let (mut host, undone) = Host::open(&state.join("run"))?;
        ensure!(undone.len() == 1, "one in the place of the other: {undone:?}");
        ensure!(fs::read_to_string(RESOLV_CONF)? == "nameserver 192.0.2.9\n");
        ensure!(!Path::new(KEPT).exists());

        // As a loss of power does: the journal was in memory.
        take_file(&mut host)?;
        drop(host);
        fs::remove_file(state.join("run/journal"))?;
        let (mut host, undone) = Host::open(&state.join("run"))?;
        ensure!(undone.is_empty() && names_us(), "{undone:?}");
        host.put_back_resolv_conf(Path::new(RESOLV_CONF), Path::new(KEPT))?.context("a change")?;
        ensure!(fs::read_to_string(RESOLV_CONF)? == "nameserver 192.0.2.9\n");
        ensure!(host.put_back_resolv_conf(Path::new(RESOLV_CONF), Path::new(KEPT))?.is_none());

        // What somebody has written behind a dead daemon's back stays.
        take_file(&mut host)?;
        drop(host);
        fs::write(RESOLV_CONF, "nameserver 192.0.2.10\n")?;
        let (_host, _) = Host::open(&state.join("run"))?;
        ensure!(fs::read_to_string(RESOLV_CONF)? == "nameserver 192.0.2.10\n");
        ensure!(!Path::new(KEPT).exists());
        Ok(())
    })
}

/// In a container the file is one of the container's host, mounted, and rewritten from there.
#[test]
fn a_file_that_is_a_mount_is_followed() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let state = Scratch::new()?;
    with_own_files(&lab.host, None, || {
        let outside = Path::new("/srv/outside.conf");
        fs::write(outside, "nameserver 192.0.2.1\n")?;
        fs::write(RESOLV_CONF, "")?;
        run("mount", &["--bind", "/srv/outside.conf", RESOLV_CONF], "")?;
        let (mut host, _) = Host::open(&state.join("run"))?;
        block_on(async {
            let (mut follow, _) = Follow::new(Wanted::File, Path::new("/"), None, whose).await?;
            ensure!(next(&mut follow).await == Some(Todo::Take(Way::File)));
            take_file(&mut host)?;
            ensure!(names_us());
            ensure!(quiet(&mut follow).await);
            fs::write(outside, "nameserver 192.0.2.9\n")?;
            ensure!(next(&mut follow).await == Some(Todo::Take(Way::File)));
            take_file(&mut host)?;
            Ok(())
        })?;
        ensure!(names_us());
        host.restore()?;
        ensure!(fs::read_to_string(outside)? == "nameserver 192.0.2.9\n");
        ensure!(!Path::new(KEPT).exists());
        Ok(())
    })
}

/// The record is the first that programs ask, and with openresolv the only one.
fn a_record(lab: &Lab, package: &Path, prepare: &str, only: bool) -> Result<()> {
    let state = Scratch::new()?;
    with_own_files(&lab.host, Some(package), || {
        run("sh", &["-ec", prepare], "")?;
        // Of Debian's one of the programs that it tells fails, which says nothing of the record.
        let _ = run(
            "resolvconf",
            &["-a", "up0.dhclient"],
            "nameserver 192.0.2.1\nsearch corp.example\n",
        );
        let before = fs::read_to_string(RESOLV_CONF)?;
        ensure!(before.contains("nameserver 192.0.2.1\n"), "{before}");
        let (mut host, _) = Host::open(&state.join("run"))?;
        block_on(async {
            let (mut follow, _) = Follow::new(Wanted::Auto, Path::new("/"), None, whose).await?;
            ensure!(next(&mut follow).await == Some(Todo::Take(Way::Record)), "{before}");
            let text = format!("nameserver {OURS}\n");
            host.begin(Change::ResolvconfRecord { record: RECORD.to_owned(), text })?.make()?;
            ensure!(quiet(&mut follow).await);
            let servers = ResolvConf::parse(&fs::read_to_string(RESOLV_CONF)?).nameservers;
            ensure!(
                servers.first() == Some(&ours()) && (!only || servers.len() == 1),
                "{servers:?}"
            );
            let found = discover::once(&settings()).await;
            ensure!(shown(&found) == "192.0.2.1:53 resolvconf (up0.dhclient)", "{found:?}");
            Ok(())
        })?;
        // As a crash does.
        drop(host);
        let (_host, undone) = Host::open(&state.join("run"))?;
        ensure!(undone.len() == 1, "{undone:?}");
        let after = fs::read_to_string(RESOLV_CONF)?;
        ensure!(before == after, "{before} became {after}");
        Ok(())
    })
}

#[test]
fn a_record_of_openresolv() -> Result<()> {
    require_root!();
    require_tunneld!();
    let package = require_package!("openresolv");
    a_record(&Lab::new()?, &package, "mkdir -p /run/resolvconf; echo > /etc/resolv.conf", true)
}

#[test]
fn a_record_of_debians_resolvconf() -> Result<()> {
    require_root!();
    require_tunneld!();
    let package = require_package!("resolvconf");
    let prepare = "mkdir -p /run/resolvconf/interface; touch /run/resolvconf/enable-updates
                   printf '#!/bin/sh\\nexit 1\\n' > /etc/resolvconf/update.d/broken
                   chmod +x /etc/resolvconf/update.d/broken
                   ln -s ../run/resolvconf/resolv.conf /etc/resolv.conf";
    a_record(&Lab::new()?, &package, prepare, false)
}

/// The real systemd-resolved, on a system bus of its own, with a network's server on one link and
/// ours on another: whom it asks, before, while it is held, and after.
#[test]
fn systemd_resolved_is_found_and_asks_us() -> Result<()> {
    require_root!();
    require_tunneld!();
    let package = require_package!("systemd-resolved");
    let lab = Lab::new()?;
    let tun = Netns::new("tun")?;
    link(&lab.host, "tun9", &tun, "far9", plan::MTU)?;
    lab.host.ip("address add 198.18.0.1/30 dev tun9\n")?;
    tun.ip("address add 198.18.0.2/30 dev far9\n")?;
    let addresses = |names: &[&'static str]| -> Vec<(&'static str, IpAddr)> {
        names.iter().map(|name| (*name, plan::GOOD4)).collect()
    };
    let theirs = DnsServer::start(
        &lab.server,
        plan::NEAR4,
        &addresses(&["before.example", "after.example", "only.theirs.example"]),
    )?;
    let us = DnsServer::start(&tun, ours(), &addresses(&["held.example", "again.example"]))?;
    let index = |name: &str| -> Result<u32> {
        let told = lab.host.output("ip", &["-o", "link", "show", "dev", name])?;
        Ok(told.split(':').next().unwrap_or_default().parse()?)
    };
    let (tun9, up0) = (index("tun9")?, index("up0")?);
    with_own_files(&lab.host, Some(&package), || {
        let (_bus, mut service) = match resolved::start() {
            Ok(started) => started,
            Err(error) => {
                skipped(module_path!(), &format!("systemd-resolved does not run here: {error:#}"));
                return Ok(());
            }
        };
        let near = plan::NEAR4.to_string();
        run("resolvectl", &["dns", "up0", &near], "")?;
        run("resolvectl", &["domain", "up0", "corp.example", "~lab.example"], "")?;
        run("resolvectl", &["default-route", "up0", "yes"], "")?;
        block_on(async {
            let mut found = discover::watch(settings()).await;
            let from_link = format!("{near}:53 systemd-resolved (link {up0})");
            ensure!(shown(&found.borrow()) == from_link, "{found:?}");
            let first = found.borrow().clone();
            ensure!(
                first.search == ["corp.example"] && first.servers[0].domains.len() == 2,
                "{first:?}"
            );
            ensure!(first.servers[0].from == Provenance::Resolved { link: up0 });

            ensure!(stub_knows("before.example")? && theirs.queries() > 0, "the control");
            let (mut follow, held) = Follow::new(Wanted::Auto, Path::new("/"), None, whose).await?;
            ensure!(held && quiet(&mut follow).await, "the stub is all that is needed");
            let of_tun =
                takeover::resolved::Link { index: tun9, servers: vec![ours()], search: Vec::new() };
            let hold = takeover::resolved::hold(None, of_tun).await;
            ensure!(hold.is_set());
            let before = theirs.queries();
            ensure!(stub_knows("held.example")? && us.queries() > 0);
            ensure!(theirs.queries() == before, "the network's server has seen a name");
            // What is said of our link never comes back as the network's.
            ensure!(shown(&discover::once(&settings()).await) == from_link);

            // It is restarted, and forgets what it was told of no link.
            drop(service);
            service = resolved::start_service()?;
            let mut set = hold.watch();
            let wait = set.wait_for(|set| *set);
            tokio::time::timeout(Duration::from_secs(10), wait).await.context("set again")??;
            run("resolvectl", &["dns", "up0", &near], "")?;
            ensure!(stub_knows("again.example")?);

            // A server that comes while we listen.
            run("resolvectl", &["dns", "up0", &near, "192.0.2.99"], "")?;
            let more = format!("{from_link}, 192.0.2.99:53 systemd-resolved (link {up0})");
            let wait = found.wait_for(|found| shown(found) == more);
            tokio::time::timeout(Duration::from_secs(5), wait).await.context("a server more")??;
            run("resolvectl", &["dns", "up0", &near], "")?;

            hold.release().await;
            let before = us.queries();
            ensure!(stub_knows("after.example")?);
            ensure!(us.queries() == before, "we have seen a name behind our end");
            drop(service);
            Ok(())
        })
    })
}

/// An advertisement with one server and one search domain in it (RFC 4861 section 4.2, RFC 8106
/// section 5.1).
pub(super) fn advertise(server: Ipv6Addr, seconds: u32) -> Result<()> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_multicast_hops_v6(255)?;
    let name = std::ffi::CString::new("far0")?;
    // SAFETY: a C string that outlives the call.
    socket.set_multicast_if_v6(unsafe { libc::if_nametoindex(name.as_ptr()) })?;
    let mut packet = vec![134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    packet.extend([25, 3, 0, 0]);
    packet.extend(seconds.to_be_bytes());
    packet.extend(server.octets());
    // A search list (section 5.2).
    packet.extend([31, 3, 0, 0]);
    packet.extend(seconds.to_be_bytes());
    packet.extend(b"\x04corp\x07example\0\0\0");
    let all_nodes: SocketAddr = "[ff02::1]:0".parse()?;
    socket.send_to(&packet, &all_nodes.into())?;
    Ok(())
}

#[test]
fn servers_of_a_routers_advertisement() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server: Ipv6Addr = "2001:db8:1::53".parse()?;
    with_own_files(&lab.host, None, || {
        block_on(async {
            let mut found = discover::watch(settings()).await;
            ensure!(shown(&found.borrow()).is_empty(), "{found:?}");
            for (seconds, expected) in [(600, 1), (0, 0), (2, 1)] {
                let began = Instant::now();
                // The router's own address is not used before it was tried out.
                while found.borrow().servers.len() != expected {
                    ensure!(began.elapsed() < Duration::from_secs(10), "{seconds}: {found:?}");
                    // Until then the kernel has no source for it.
                    let _ = lab.server.run(|| advertise(server, seconds));
                    let _ = tokio::time::timeout(Duration::from_millis(500), found.changed()).await;
                }
                if let Some(server) = found.borrow().servers.first() {
                    ensure!(server.address == "[2001:db8:1::53]:53".parse()?, "{server:?}");
                    ensure!(matches!(server.from, Provenance::RouterAdvertisement { .. }));
                }
                let search: &[&str] = if expected > 0 { &["corp.example"] } else { &[] };
                ensure!(found.borrow().search == search, "{seconds}: {found:?}");
            }
            // Its time is over.
            let wait = found.wait_for(|found| found.servers.is_empty());
            tokio::time::timeout(Duration::from_secs(5), wait).await.context("the end")??;
            Ok(())
        })
    })
}
