//! Discovery on a directory of the test's own and a private bus, with stand-ins of the services.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use tokio::sync::watch::Receiver;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant, interface};

use super::*;
use crate::scratch::Scratch;

/// A private bus; killed when dropped.
pub(crate) struct TestBus(Child);

impl TestBus {
    /// Starts one at `path`. `None`, said loudly: there is no dbus-daemon here.
    pub(crate) fn start(scratch: &Scratch, path: &str) -> Option<Self> {
        scratch.write(
            "bus.conf",
            &format!(
                r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
                    "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
                <busconfig>
                  <listen>unix:path={path}</listen>
                  <auth>EXTERNAL</auth>
                  <policy context="default">
                    <allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/>
                  </policy>
                </busconfig>"#
            ),
        );
        let started = Command::new("dbus-daemon")
            .args(["--nofork", "--nopidfile", "--nosyslog", "--print-address", "--config-file"])
            .arg(scratch.path().join("bus.conf"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = started else {
            use std::io::Write as _;
            let _ =
                writeln!(std::io::stderr(), "SKIPPED: {}: dbus-daemon is missing", module_path!());
            return None;
        };
        // It prints its address once it listens.
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert!(line.starts_with("unix:path="), "{line}");
        Some(Self(child))
    }
}

impl Drop for TestBus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A stand-in of systemd-resolved's manager.
struct Resolved {
    servers: Vec<(i32, i32, Vec<u8>, u16, String)>,
    domains: Vec<(i32, String, bool)>,
}

#[interface(name = "org.freedesktop.resolve1.Manager")]
impl Resolved {
    #[zbus(property, name = "DNSEx")]
    fn dns_ex(&self) -> Vec<(i32, i32, Vec<u8>, u16, String)> {
        self.servers.clone()
    }

    /// The one that the real one tells changes of.
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> Vec<(i32, i32, Vec<u8>)> {
        self.servers.iter().map(|(link, family, ip, ..)| (*link, *family, ip.clone())).collect()
    }

    #[zbus(property)]
    fn domains(&self) -> Vec<(i32, String, bool)> {
        self.domains.clone()
    }

    #[zbus(property, name = "DNSOverTLS")]
    fn dns_over_tls(&self) -> &str {
        "opportunistic"
    }

    fn get_link(&self, link: i32) -> OwnedObjectPath {
        OwnedObjectPath::try_from(format!("/org/freedesktop/resolve1/link/_{link}")).unwrap()
    }
}

/// A stand-in of its links.
struct Link {
    default_route: bool,
    tls: &'static str,
}

#[interface(name = "org.freedesktop.resolve1.Link")]
impl Link {
    #[zbus(property)]
    fn default_route(&self) -> bool {
        self.default_route
    }

    #[zbus(property, name = "DNSOverTLS")]
    fn dns_over_tls(&self) -> &str {
        self.tls
    }
}

/// A stand-in of NetworkManager's.
struct DnsManager;

#[interface(name = "org.freedesktop.NetworkManager.DnsManager")]
impl DnsManager {
    #[zbus(property)]
    fn configuration(&self) -> Vec<HashMap<String, OwnedVariant>> {
        let owned = |value: Variant<'_>| value.try_to_owned().unwrap();
        let entry = |interface: Option<&str>, servers: Vec<&str>, domains: Vec<&str>| {
            let mut entry = HashMap::from([
                ("nameservers".to_owned(), owned(servers.into())),
                ("domains".to_owned(), owned(domains.into())),
                ("priority".to_owned(), owned(100_i32.into())),
                ("vpn".to_owned(), owned(false.into())),
            ]);
            if let Some(interface) = interface {
                entry.insert("interface".to_owned(), owned(interface.into()));
            }
            entry
        };
        vec![
            entry(
                Some("lo"),
                vec!["192.0.2.70", "dns+tls://192.0.2.71#dns.example"],
                vec!["nm.example"],
            ),
            entry(Some("gone0"), vec!["192.0.2.72"], vec![]),
        ]
    }
}

async fn resolved(address: &str) -> Connection {
    let server =
        |link, ip: [u8; 4], port, name: &str| (link, 2, ip.to_vec(), port, name.to_owned());
    let stand_in = Resolved {
        servers: vec![
            server(5, [192, 0, 2, 50], 0, ""),
            server(5, [192, 0, 2, 51], 5353, "dns.example"),
            server(6, [192, 0, 2, 60], 0, ""),
            server(0, [127, 0, 0, 53], 0, ""),
            (5, 10, vec![1, 2, 3], 0, String::new()),
        ],
        domains: vec![
            (5, "corp.example".to_owned(), false),
            (6, ".".to_owned(), true),
            (6, "lab.example".to_owned(), true),
        ],
    };
    zbus::connection::Builder::address(address)
        .name("org.freedesktop.resolve1")
        .serve_at("/org/freedesktop/resolve1", stand_in)
        .serve_at("/org/freedesktop/resolve1/link/_5", Link { default_route: false, tls: "no" })
        .serve_at("/org/freedesktop/resolve1/link/_6", Link { default_route: true, tls: "yes" })
        .build()
        .await
        .unwrap()
}

fn settings(scratch: &Scratch, bus: &str, tun: Option<&str>) -> Settings {
    Settings {
        own: vec!["198.18.0.2".parse().unwrap()].into(),
        tun: tun.map(str::to_owned),
        root: scratch.path().to_owned(),
        bus: Some(bus.to_owned()),
    }
}

/// Each server and who named it.
fn shown(found: &Found) -> String {
    let shown = found.servers.iter().map(|server| {
        let from = if let Provenance::ResolvConf { path } | Provenance::DhclientLease { path } =
            &server.from
        {
            path.file_name().unwrap().to_string_lossy().into_owned()
        } else {
            server.from.to_string()
        };
        format!("{} {from}", server.address)
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Waits until these servers are found.
async fn until(found: &mut Receiver<std::sync::Arc<Found>>, what: &str, expected: &str) {
    let wait = found.wait_for(|found| shown(found) == expected);
    let waited = tokio::time::timeout(Duration::from_secs(5), wait).await.map(|_| ());
    assert!(waited.is_ok(), "{what}: {} instead of {expected}", shown(&found.borrow()));
}

#[tokio::test]
async fn services_come_and_go() {
    let scratch = Scratch::new();
    let path = scratch.path().join("bus").to_string_lossy().into_owned();
    let address = format!("unix:path={path}");
    scratch.write("etc/resolv.conf", "nameserver 192.0.2.1\n");
    let mut found = watch(settings(&scratch, &address, None)).await;
    assert_eq!(shown(&found.borrow()), "192.0.2.1:53 resolv.conf", "no bus");

    let Some(bus) = TestBus::start(&scratch, &path) else { return };
    let service = resolved(&address).await;
    scratch.write("etc/resolv.conf", "nameserver 192.0.2.2\n");
    let all = "192.0.2.50:53 systemd-resolved (link 5), 192.0.2.51:5353 systemd-resolved (link 5), \
               192.0.2.60:853 systemd-resolved (link 6)";
    until(&mut found, "the bus is found at the next event", all).await;
    let now = found.borrow().clone();
    assert_eq!(now.search, ["corp.example"]);
    let facts: Vec<_> = now
        .servers
        .iter()
        .map(|s| (s.link, s.tls, s.name.as_deref(), s.default_route, s.domains.len()))
        .collect();
    assert_eq!(
        facts,
        [
            (Some(5), false, None, false, 1),
            (Some(5), false, Some("dns.example"), false, 1),
            (Some(6), true, None, true, 2),
        ]
    );

    let manager = service.object_server().interface("/org/freedesktop/resolve1").await;
    let manager: zbus::object_server::InterfaceRef<Resolved> = manager.unwrap();
    manager.get_mut().await.servers.truncate(1);
    manager.get().await.d_n_s_changed(manager.signal_emitter()).await.unwrap();
    until(&mut found, "a property", "192.0.2.50:53 systemd-resolved (link 5)").await;

    let network_manager = zbus::connection::Builder::address(address.as_str())
        .name("org.freedesktop.NetworkManager")
        .serve_at("/org/freedesktop/NetworkManager/DnsManager", DnsManager)
        .build()
        .await
        .unwrap();
    let of_nm = "192.0.2.70:53 NetworkManager (lo), 192.0.2.71:853 NetworkManager (lo)";
    let both = format!("192.0.2.50:53 systemd-resolved (link 5), {of_nm}");
    until(&mut found, "a link that resolved knows nothing of", &both).await;
    assert_eq!(found.borrow().search, ["corp.example", "nm.example"]);

    drop(manager);
    service.close().await.unwrap();
    until(&mut found, "resolved ends", of_nm).await;
    let service = resolved(&address).await;
    until(&mut found, "and begins again", &format!("{all}, {of_nm}")).await;

    // A service without its bus is none.
    drop(bus);
    until(&mut found, "the bus ends", "192.0.2.2:53 resolv.conf").await;
    drop((service, network_manager));
}

#[tokio::test]
async fn what_is_said_of_our_own_link() {
    let scratch = Scratch::new();
    let path = scratch.path().join("bus").to_string_lossy().into_owned();
    let address = format!("unix:path={path}");
    let Some(_bus) = TestBus::start(&scratch, &path) else { return };
    let _network_manager = zbus::connection::Builder::address(address.as_str())
        .name("org.freedesktop.NetworkManager")
        .serve_at("/org/freedesktop/NetworkManager/DnsManager", DnsManager)
        .build()
        .await
        .unwrap();
    scratch.write("run/resolvconf/interface/lo.tunneld", "nameserver 192.0.2.73\n");
    scratch.write("run/systemd/netif/leases/1", "DNS=192.0.2.74\n");
    scratch.write("etc/resolv.conf", "nameserver 198.18.0.2\n");
    let found = once(&settings(&scratch, &address, Some("lo"))).await;
    assert_eq!(found, Found::default());
    // What it was before us.
    scratch.write("etc/resolv.pre-tunneld.conf", "nameserver 192.0.2.1\nsearch corp.example\n");
    let found = once(&settings(&scratch, &address, Some("lo"))).await;
    assert_eq!(shown(&found), "192.0.2.1:53 resolv.pre-tunneld.conf");
    assert_eq!(found.search, ["corp.example"]);
}

/// A service that takes a name and says nothing costs seconds, not for ever.
#[tokio::test]
async fn a_service_that_hangs() {
    let scratch = Scratch::new();
    let path = scratch.path().join("bus").to_string_lossy().into_owned();
    let address = format!("unix:path={path}");
    let Some(_bus) = TestBus::start(&scratch, &path) else { return };
    struct Hangs;
    #[interface(name = "org.freedesktop.resolve1.Manager")]
    impl Hangs {
        #[zbus(property, name = "DNSEx")]
        async fn dns_ex(&self) -> Vec<(i32, i32, Vec<u8>, u16, String)> {
            std::future::pending().await
        }
    }
    let _service = zbus::connection::Builder::address(address.as_str())
        .name("org.freedesktop.resolve1")
        .serve_at("/org/freedesktop/resolve1", Hangs)
        .build()
        .await
        .unwrap();
    scratch.write("etc/resolv.conf", "nameserver 192.0.2.1\n");
    let began = std::time::Instant::now();
    let found = once(&settings(&scratch, &address, None)).await;
    assert_eq!(shown(&found), "192.0.2.1:53 resolv.conf");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn files_come_and_go() {
    let scratch = Scratch::new();
    let nowhere = format!("unix:path={}", scratch.path().join("nowhere").display());
    let mut found = watch(settings(&scratch, &nowhere, Some("tunneld0"))).await;
    assert_eq!(shown(&found.borrow()), "", "nothing at all");

    let lease = |seconds: u64, server: &str| {
        let at = SystemTime::now() + Duration::from_secs(seconds);
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        format!(
            "lease {{ interface \"lo\"; option domain-name-servers {server}; expire epoch {at}; }}\n"
        )
    };
    for (name, file, text, expected) in [
        (
            "a file",
            "etc/resolv.conf",
            "nameserver 192.0.2.1\nsearch .\n",
            "192.0.2.1:53 resolv.conf",
        ),
        (
            "a lease",
            "var/lib/dhcp/dhclient.leases",
            &*(lease(3600, "192.0.2.2") + &lease(4, "192.0.2.3")),
            "192.0.2.3:53 dhclient.leases",
        ),
        (
            "of the same interface, older",
            "var/lib/dhcp/dhclient.lo.leases",
            &lease(2, "192.0.2.4"),
            "192.0.2.3:53 dhclient.leases",
        ),
        (
            "networkd",
            "run/systemd/netif/leases/1",
            "DNS=192.0.2.5 fe80::5\n",
            "192.0.2.5:53 systemd-networkd (link 1), [fe80::5%1]:53 systemd-networkd (link 1)",
        ),
        (
            "a record",
            "run/resolvconf/interface/lo.dhclient",
            "nameserver 192.0.2.6\n",
            "192.0.2.6:53 resolvconf (lo.dhclient)",
        ),
        (
            "our own record",
            "run/resolvconf/interface/tunneld0.tunneld",
            "nameserver 192.0.2.66\n",
            "192.0.2.6:53 resolvconf (lo.dhclient)",
        ),
        (
            "NetworkManager's file",
            "run/NetworkManager/no-stub-resolv.conf",
            "nameserver 192.0.2.7\n",
            "192.0.2.7:53 /run/NetworkManager/no-stub-resolv.conf",
        ),
        (
            "resolved's file",
            "run/systemd/resolve/resolv.conf",
            "nameserver 198.18.0.2\nnameserver 192.0.2.8\n",
            "192.0.2.8:53 /run/systemd/resolve/resolv.conf",
        ),
    ] {
        scratch.write(file, text);
        until(&mut found, name, expected).await;
    }
    for directory in ["run/systemd", "run/NetworkManager", "run/resolvconf"] {
        std::fs::remove_dir_all(scratch.path().join(directory)).unwrap();
    }
    // The lease has ended, or does now: nothing but the clock tells.
    until(&mut found, "the lease ends", "192.0.2.1:53 resolv.conf").await;
}
