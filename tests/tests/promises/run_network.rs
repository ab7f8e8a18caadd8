//! The network's own name servers under a running daemon: whose names they are asked for, and
//! what is kept when the way to them changes. The servers' logs say who was asked.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use dns::takeover::RESOLV_CONF;
use tests::both::kdig;
use tests::endpoints::Unbound;
use tests::lab::daemon::Daemon;
use tests::lab::own_files::{run, with_own_files};
use tests::lab::{Lab, Netns, plan};
use tests::{require_root, require_tunneld};

use crate::dns_host::advertise;

const POLICY: &str = "policy 1\ndefault allow\n";
/// Every name there is.
const ALL: &str = " local-zone: \"example.\" redirect\n local-data: \"example. 300 A 203.0.113.1\"";
/// The server of the second link.
const FAR: &str = "192.0.2.130";

/// What systemd-networkd leaves of a link.
fn link_says(lab: &Lab, link: &str, text: &str) -> Result<()> {
    let told = lab.host.output("ip", &["-o", "link", "show", "dev", link])?;
    let index = told.split(':').next().unwrap_or_default();
    fs::create_dir_all("/run/systemd/netif/links")?;
    // In one step, as it does.
    fs::write("/run/systemd/netif/new", text)?;
    Ok(fs::rename("/run/systemd/netif/new", format!("/run/systemd/netif/links/{index}"))?)
}

fn wait_for(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_so()? {
        ensure!(began.elapsed() < Duration::from_secs(10), "{what} never came");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits until `dns servers` has these lines, each `SERVER DEVICE DOMAIN…`.
fn wait_for_servers(daemon: &Daemon, want: &[&str]) -> Result<()> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    wait_for(&format!("{want:?}"), || {
        let servers = daemon.json(&["dns", "servers"])?;
        let lines = servers.iter().map(|server| {
            let domains = server["domains"].as_array().into_iter().flatten();
            let domains = domains.map(|domain| text(&domain["name"]));
            let words = [text(&server["server"]), text(&server["device"])];
            words.into_iter().chain(domains).collect::<Vec<_>>().join(" ")
        });
        Ok(lines.collect::<Vec<_>>() == want)
    })
}

#[test]
fn each_links_servers_see_the_names_of_its_domains_alone() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    with_own_files(&lab.host, None, || {
        let first = Unbound::with(&lab.server, plan::NEAR4, None, ALL)?;
        let second = Unbound::with(&lab.server, FAR.parse()?, None, ALL)?;
        link_says(&lab, "up0", "DNS=192.0.2.2\nDOMAINS=home.example\n")?;
        link_says(&lab, "up1", "DNS=192.0.2.130\n")?;
        let daemon = Daemon::start(&lab.host, POLICY, "")?;
        let mut number = 0;
        // Who is asked for a name, of the two.
        let mut asked = |domain: &str| -> Result<(bool, bool)> {
            number += 1;
            let name = format!("n{number}.{domain}");
            let seen = kdig(&lab, &name)?;
            ensure!(seen.contains("203.0.113.1\n"), "{seen}");
            Ok((first.asked(&name)? > 0, second.asked(&name)? > 0))
        };
        let (up0, up1) = ((true, false), (false, true));
        wait_for_servers(&daemon, &["192.0.2.2 up0 home.example", "192.0.2.130 up1"])?;
        ensure!(asked("home.example")? == up0);
        ensure!(asked("other.example")? == up0, "the first one, of two for all");

        // One link is for all that is nobody's: the other one sees no more than its own.
        link_says(&lab, "up1", "DNS=192.0.2.130\nROUTE_DOMAINS=. lab.home.example\n")?;
        let both = ["192.0.2.2 up0 home.example", "192.0.2.130 up1  lab.home.example"];
        wait_for_servers(&daemon, &both)?;
        ensure!(asked("other.example")? == up1, "`~.`");
        ensure!(asked("home.example")? == up0);
        ensure!(asked("lab.home.example")? == up1, "the longest one");
        ensure!(asked("xhome.example")? == up1, "no name below it");

        // It is renamed, which none who names servers tells.
        lab.host.ip("link set up1 down\nlink set up1 name up9\nlink set up9 up\n")?;
        wait_for_servers(&daemon, &[both[0], "192.0.2.130 up9  lab.home.example"])?;
        ensure!(asked("other.example")? == up1, "by whatever name");

        // And a link for nothing but its domains.
        link_says(&lab, "up9", "DNS=192.0.2.130\nDOMAINS=lab.example\nDNS_DEFAULT_ROUTE=no\n")?;
        link_says(&lab, "up0", "DNS=192.0.2.2\n")?;
        wait_for_servers(&daemon, &["192.0.2.2 up0", "192.0.2.130 up9 lab.example"])?;
        ensure!(asked("other.example")? == up0);
        ensure!(asked("lab.example")? == up1);
        Ok(())
    })
}

/// Two networks whose servers have one address: each of them is asked over its own link.
#[test]
fn one_address_of_two_links_is_two_servers() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    with_own_files(&lab.host, None, || {
        lab.server.ip("address add 198.51.100.53/32 dev lo\n")?;
        lab.host.ip("route add 198.51.100.53/32 via 192.0.2.2 dev up0\n\
             route add 198.51.100.53/32 via 192.0.2.130 dev up1 metric 100\n")?;
        let server = Unbound::with(&lab.server, "198.51.100.53".parse()?, None, ALL)?;
        link_says(&lab, "up0", "DNS=198.51.100.53\nDOMAINS=home.example\n")?;
        link_says(&lab, "up1", "DNS=198.51.100.53\nROUTE_DOMAINS=lab.example\n")?;
        let daemon = Daemon::start(&lab.host, POLICY, "")?;
        let both = ["198.51.100.53 up0 home.example", "198.51.100.53 up1 lab.example"];
        wait_for_servers(&daemon, &both)?;
        for (name, from) in [
            ("www.home.example", plan::HOST4),
            ("www.lab.example", plan::HOST4_SECOND),
            ("www.example", plan::HOST4),
        ] {
            known(&lab, name)?;
            ensure!(server.clients(name)? == [from], "{name}: {:?}", server.clients(name)?);
        }
        Ok(())
    })
}

/// A link whose servers are asked over TLS alone, on a host that trusts nobody: it is said, and
/// the names of that link are asked of nobody, neither in the clear nor elsewhere.
#[test]
fn servers_that_can_not_be_trusted_are_not_asked() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    with_own_files(&lab.host, None, || {
        let first = Unbound::with(&lab.server, plan::NEAR4, None, ALL)?;
        let second = Unbound::with(&lab.server, FAR.parse()?, None, ALL)?;
        let tls = |of: &str| format!("DNS=192.0.2.2#dns.example\nDNS_OVER_TLS={of}\n");
        let alone = "DOMAINS=home.example\nDNS_DEFAULT_ROUTE=no\n";
        link_says(&lab, "up0", &format!("{}{alone}", tls("yes")))?;
        link_says(&lab, "up1", "DNS=192.0.2.130\n")?;
        fs::remove_dir_all("/etc/ssl")?;
        let daemon = Daemon::start(&lab.host, POLICY, "")?;
        let listed = ["tls://192.0.2.2#dns.example up0 home.example", "192.0.2.130 up1"];
        wait_for_servers(&daemon, &listed)?;
        let said = daemon.running()?.stderr();
        ensure!(said.contains("servers-unusable") && said.contains("root certificates"), "{said}");
        let seen = kdig(&lab, "nas.home.example")?;
        ensure!(seen.contains("status: SERVFAIL"), "{seen}");
        for server in [&first, &second] {
            ensure!(server.asked("nas.home.example")? == 0, "{:?}", server.log()?);
        }
        let seen = kdig(&lab, "www.example")?;
        ensure!(seen.contains("203.0.113.1\n") && second.asked("www.example")? == 1, "{seen}");

        // Where the clear will do it is asked.
        link_says(&lab, "up0", &format!("{}{alone}", tls("opportunistic")))?;
        wait_for_servers(&daemon, &["192.0.2.2 up0 home.example", "192.0.2.130 up1"])?;
        let seen = kdig(&lab, "nas.home.example")?;
        ensure!(seen.contains("203.0.113.1\n") && first.asked("nas.home.example")? == 1, "{seen}");
        Ok(())
    })
}

/// The network's server behind the default route, another resolver's beside it, and what both
/// have answered.
struct Routed {
    network: Unbound,
    other: Unbound,
    _daemon: Daemon,
    lab: Lab,
}

impl Routed {
    fn start(scheme: &str) -> Result<Self> {
        let lab = Lab::new()?;
        lab.server.ip("address add 198.51.100.53/32 dev lo\n")?;
        lab.host.ip("route add default via 192.0.2.2 dev up0\n")?;
        let network = Unbound::with(&lab.server, "198.51.100.53".parse()?, None, ALL)?;
        let other = Unbound::with(&lab.server, plan::GOOD4, None, ALL)?;
        let config = format!(
            "[dns]\nupstream = [\"{scheme}198.51.100.53\"]\n\
             [[resolver]]\nname = \"other\"\nservers = [\"{scheme}203.0.113.1\"]\n"
        );
        let policy = "policy 1\nresolve *.other.example using other\ndefault allow\n";
        let daemon = Daemon::start(&lab.host, policy, &config)?;
        for name in ["kept.example", "kept.other.example"].repeat(2) {
            known(&lab, name)?;
        }
        Ok(Self { network, other, _daemon: daemon, lab })
    }
}

/// Asks us for a name that there is.
fn known(lab: &Lab, name: &str) -> Result<()> {
    let seen = kdig(lab, name)?;
    ensure!(seen.contains("203.0.113.1\n"), "{seen}");
    Ok(())
}

/// The default route goes over the other uplink: whoever is reached by it is asked anew and over
/// new connections, whoever isn't is not.
#[test]
fn another_uplink_is_another_network() -> Result<()> {
    require_root!();
    require_tunneld!();
    for scheme in ["", "tcp://"] {
        let Routed { network, other, lab, .. } = &Routed::start(scheme)?;
        let ask = |name: &str| known(lab, name).context(scheme);
        ensure!(network.clients("kept.example")? == [plan::HOST4], "{scheme}: kept");
        ensure!(other.clients("kept.other.example")? == [plan::HOST4], "{scheme}: kept");
        lab.host.ip("route replace default via 192.0.2.130 dev up1\n")?;
        wait_for("the other uplink", || {
            ask("kept.example")?;
            Ok(network.clients("kept.example")? == [plan::HOST4, plan::HOST4_SECOND])
        })?;
        for name in ["kept.example", "new.example", "kept.other.example", "new.other.example"] {
            ask(name)?;
        }
        ensure!(network.clients("new.example")? == [plan::HOST4_SECOND], "{scheme}");
        ensure!(network.clients("kept.example")?.len() == 2, "{scheme}: kept again");
        ensure!(other.clients("new.other.example")? == [plan::HOST4], "{scheme}");
        ensure!(other.clients("kept.other.example")?.len() == 1, "{scheme}: not its way");
    }
    Ok(())
}

/// The default route goes to another router of the same link, and this host has the address that
/// it had: another network all the same.
#[test]
fn another_router_is_another_network() -> Result<()> {
    require_root!();
    require_tunneld!();
    for scheme in ["", "tcp://"] {
        let Routed { network, other, lab, .. } = &Routed::start(scheme)?;
        let ask = |name: &str| known(lab, name).context(scheme);
        lab.server.ip("address add 192.0.2.3/25 dev far0\n")?;
        ensure!(network.asked("kept.example")? == 1, "{scheme}: kept");
        // A route beside that one changes nothing.
        lab.host.ip("route add 198.51.100.128/25 via 192.0.2.3 dev up0\n")?;
        std::thread::sleep(Duration::from_millis(300));
        ask("kept.example")?;
        ensure!(network.asked("kept.example")? == 1, "{scheme}: still kept");
        lab.host.ip("route replace default via 192.0.2.3 dev up0\n")?;
        wait_for("the other router", || {
            ask("kept.example")?;
            Ok(network.asked("kept.example")? == 2)
        })?;
        ask("kept.other.example")?;
        ensure!(other.asked("kept.other.example")? == 1, "{scheme}: not its way");
        ensure!(network.clients("kept.example")? == [plan::HOST4; 2], "{scheme}: the same address");
    }
    Ok(())
}

/// What is popular is asked for again before its time is over.
#[test]
fn a_popular_name_is_asked_for_before_it_is_over() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let more = " local-data: \"popular.example. 10 A 203.0.113.1\"\n \
                local-data: \"rare.example. 10 A 203.0.113.1\"";
    let network = Unbound::with(&lab.server, plan::GOOD4, None, more)?;
    let config = format!("[dns]\nupstream = [\"{}\"]\n", plan::GOOD4);
    let _daemon = Daemon::start(&lab.host, POLICY, &config)?;
    let ask = |name: &str| known(&lab, name);
    let began = Instant::now();
    ask("rare.example")?;
    for _ in 0..4 {
        ask("popular.example")?;
    }
    ensure!(network.asked("popular.example")? == 1);
    // In the last tenth of its time an app asks, and so do we.
    std::thread::sleep(Duration::from_millis(9_400).saturating_sub(began.elapsed()));
    ask("popular.example")?;
    ask("rare.example")?;
    wait_for("the prefetch", || Ok(network.asked("popular.example")? == 2))?;
    ensure!(network.asked("rare.example")? == 1, "few have asked for it");
    std::thread::sleep(Duration::from_millis(10_800).saturating_sub(began.elapsed()));
    ask("popular.example")?;
    ensure!(network.asked("popular.example")? == 2, "it was there in time");
    Ok(())
}

/// A name within the network's search domains is the network's, whatever it looks like, for as
/// long as the network says so.
#[test]
fn search_domains_are_the_networks() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let more = " local-data: \"nas.lan.local. 300 A 203.0.113.1\"";
    with_own_files(&lab.host, None, || {
        let network = Unbound::with(&lab.server, plan::NEAR4, None, more)?;
        fs::write("/etc/nsswitch.conf", "hosts: files dns\n")?;
        fs::write(RESOLV_CONF, format!("nameserver {}\nsearch lan.local\n", plan::NEAR4))?;
        let daemon = Daemon::start(&lab.host, POLICY, "[dns]\ntakeover = \"file\"\n")?;
        wait_for_servers(&daemon, &["192.0.2.2 - lan.local"])?;
        let found = lab.host.command("getent").args(["ahostsv4", "nas"]).run()?;
        ensure!(found.stdout.contains("203.0.113.1"), "{found:?}");
        ensure!(network.asked("nas.lan.local")? > 0 && network.asked("nas")? == 0);
        // Others of that kind are nobody's (RFC 6762).
        let seen = kdig(&lab, "nas.other.local")?;
        ensure!(seen.contains("status: REFUSED"), "{seen}");
        ensure!(network.asked("nas.other.local")? == 0);

        // Another network, which has no such domain.
        fs::write(RESOLV_CONF, format!("nameserver {}\n", plan::NEAR4))?;
        wait_for("another network", || Ok(kdig(&lab, "nas.lan.local")?.contains("status: REFUSED")))
    })
}

/// A search domain that a router advertises completes the short names of the host's programs, as
/// systemd-resolved would; the server is the one that it advertises.
#[test]
fn an_advertised_search_domain_completes_names() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let at: Ipv6Addr = "2001:db8:1::53".parse()?;
    lab.server.ip(&format!("address add {at}/64 dev far0 nodad\n"))?;
    with_own_files(&lab.host, None, || {
        fs::write("/etc/nsswitch.conf", "hosts: files dns\n")?;
        let before = "# nobody\n";
        fs::write(RESOLV_CONF, before)?;
        let more = " local-data: \"nas.corp.example. 300 A 203.0.113.1\"";
        let network = Unbound::with(&lab.server, at.into(), None, more)?;
        let mut daemon = Daemon::start(&lab.host, POLICY, "[dns]\ntakeover = \"file\"\n")?;
        wait_for("our file", || Ok(fs::read_to_string(RESOLV_CONF)?.contains("198.18.0.2")))?;
        let search = || -> Result<Option<String>> {
            let text = fs::read_to_string(RESOLV_CONF)?;
            Ok(text.lines().find(|line| line.starts_with("search")).map(str::to_owned))
        };
        ensure!(search()?.is_none(), "{:?}", search()?);
        wait_for("the domain", || {
            // Until the router's own address was tried out the kernel has no source for it.
            let _ = lab.server.run(|| advertise(at, 600));
            std::thread::sleep(Duration::from_millis(100));
            Ok(search()?.as_deref() == Some("search corp.example"))
        })?;
        let servers = daemon.json(&["dns", "servers"])?;
        let from = servers[0]["from"].as_str().unwrap_or_default();
        ensure!(from.starts_with("router advertisement (link "), "{servers:?}");
        let found = lab.host.command("getent").args(["ahostsv4", "nas"]).run()?;
        ensure!(found.stdout.contains("203.0.113.1"), "{found:?}");
        ensure!(network.asked("nas.corp.example")? > 0 && network.asked("nas")? == 0);
        // It takes it back.
        wait_for("the end of it", || {
            let _ = lab.server.run(|| advertise(at, 0));
            std::thread::sleep(Duration::from_millis(100));
            Ok(search()?.is_none())
        })?;
        let ended = daemon.stop()?;
        ensure!(ended.code() == 0, "{ended:?}");
        ensure!(fs::read_to_string(RESOLV_CONF)? == before);
        Ok(())
    })
}

/// Every part of the host that can name a server, the least believed first: each one's is asked as
/// soon as it says so, and `dns servers` tells who it was.
#[test]
fn each_source_is_followed_and_named() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let at = |number: u8| -> IpAddr { [192, 0, 2, 60 + number].into() };
    for number in 0..6 {
        lab.server.ip(&format!("address add {}/25 dev far0\n", at(number)))?;
    }
    with_own_files(&lab.host, None, || {
        // A directory that is the host's own elsewhere.
        run("mount", &["-t", "tmpfs", "lab", "/var/lib"], "")?;
        let told = lab.host.output("ip", &["-o", "link", "show", "dev", "up0"])?;
        let index = told.split(':').next().unwrap_or_default();
        let later = SystemTime::now() + Duration::from_secs(600);
        let later = later.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let nameserver = |number| format!("nameserver {}\n", at(number));
        let sources = [
            (RESOLV_CONF.to_owned(), nameserver(0), RESOLV_CONF.to_owned()),
            (
                "/var/lib/dhcp/dhclient.leases".to_owned(),
                format!(
                    "lease {{ interface \"up0\"; option domain-name-servers {}; \
                     expire epoch {later}; }}\n",
                    at(1)
                ),
                "dhclient (/var/lib/dhcp/dhclient.leases)".to_owned(),
            ),
            (
                format!("/run/systemd/netif/leases/{index}"),
                format!("DNS={}\n", at(2)),
                format!("systemd-networkd (link {index})"),
            ),
            (
                "/run/resolvconf/interface/up0.dhclient".to_owned(),
                nameserver(3),
                "resolvconf (up0.dhclient)".to_owned(),
            ),
            (
                "/run/NetworkManager/no-stub-resolv.conf".to_owned(),
                nameserver(4),
                "/run/NetworkManager/no-stub-resolv.conf".to_owned(),
            ),
            (
                "/run/systemd/resolve/resolv.conf".to_owned(),
                nameserver(5),
                "/run/systemd/resolve/resolv.conf".to_owned(),
            ),
        ];
        let daemon = Daemon::start(&lab.host, POLICY, "")?;
        for (number, (file, text, from)) in (0..).zip(&sources) {
            let server = Unbound::with(&lab.server, at(number), None, ALL)?;
            fs::create_dir_all(Path::new(file).parent().context("a directory")?)?;
            fs::write(file, text)?;
            wait_for(from, || {
                let servers = daemon.json(&["dns", "servers"])?;
                let is_it = |server: &serde_json::Value| {
                    server["server"] == at(number).to_string() && server["from"] == **from
                };
                Ok(servers.len() == 1 && is_it(&servers[0]))
            })?;
            let name = format!("n{number}.example");
            known(&lab, &name)?;
            ensure!(server.asked(&name)? == 1, "{from}: {:?}", server.log()?);
        }
        Ok(())
    })
}

/// `dns.upstream` from one list to another, and to what the network names: in force when the
/// reload has answered.
#[test]
fn other_servers_count_from_the_reload_on() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    with_own_files(&lab.host, None, || {
        let server = |at| Unbound::with(&lab.server, at, None, ALL);
        let (one, two) = (server(plan::GOOD4)?, server(plan::GOOD4_SECOND)?);
        let found = server(plan::NEAR4)?;
        let list = |at: &str| format!("upstream = [\"{at}\"]");
        let (first, second) = (list("203.0.113.1"), list("203.0.113.129"));
        let auto = "upstream = \"auto\"".to_owned();
        let daemon = Daemon::start(&lab.host, POLICY, &format!("[dns]\n{first}\n"))?;
        let change = |from: &str, to: &str| -> Result<tests::lab::Finished> {
            let text = fs::read_to_string(daemon.config())?;
            ensure!(text.contains(from), "no `{from}` in {text}");
            daemon.files().write("tunneld.toml", &text.replace(from, to))?;
            daemon.verb(&["reload"])
        };
        // Which of the servers have seen a name by now.
        let asked = |name: &str| -> Result<[usize; 3]> {
            kdig(&lab, name)?;
            Ok([one.asked(name)?, two.asked(name)?, found.asked(name)?])
        };
        ensure!(asked("same.example")? == [1, 0, 0]);
        let done = change(&first, &second)?;
        ensure!(done.code() == 0, "{done:?}");
        ensure!(asked("same.example")? == [1, 1, 0], "at once");

        // Of nobody: the old ones are not asked on.
        let done = change(&second, &auto)?;
        ensure!(done.code() == 0, "{done:?}");
        ensure!(asked("nobody.example")? == [0, 0, 0], "no servers");
        ensure!(kdig(&lab, "same.example")?.contains("SERVFAIL"), "nor what they said");

        fs::write(RESOLV_CONF, format!("nameserver {}\n", plan::NEAR4))?;
        let from = |want: &str| -> Result<bool> {
            let servers = daemon.json(&["dns", "servers"])?;
            Ok(servers.len() == 1 && servers[0]["server"] == want)
        };
        wait_for("the network's", || from(&plan::NEAR4.to_string()))?;
        ensure!(asked("found.example")? == [0, 0, 1]);
        let done = change(&auto, &first)?;
        ensure!(done.code() == 0, "{done:?}");
        ensure!(from("203.0.113.1")? && asked("found.example")? == [1, 0, 1]);
        let done = change(&first, &auto)?;
        ensure!(done.code() == 0, "{done:?}");
        ensure!(from(&plan::NEAR4.to_string())?, "what was found meanwhile");
        ensure!(asked("again.example")? == [0, 0, 1]);

        // A certificate can't be judged without anybody whom this host trusts.
        fs::remove_dir_all("/etc/ssl")?;
        let refused = change(&auto, &list("tls://203.0.113.1"))?;
        let why = "root certificates";
        ensure!(refused.code() != 0 && refused.stderr.contains(why), "{refused:?}");
        ensure!(asked("still.example")? == [0, 0, 1], "all is as it was");
        drop(daemon);
        let config = "[dns]\nupstream = [\"tls://203.0.113.1\"]\n";
        let daemon = Daemon::new(&Netns::new("elsewhere")?, POLICY, config)?;
        let refused = daemon.program()?.run()?;
        ensure!(refused.code() == 2 && refused.stderr.contains(why), "{refused:?}");
        Ok(())
    })
    .context("own files")
}
