//! A resolver through a tunnel: it is asked from inside the tunnel, whatever the routes of the
//! kernel are. The far end is Debian's wireguard-go, and the server is unbound behind it, with a
//! front of its own for QUIC.

use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dns::takeover::RESOLV_CONF;
use rustix::process::Signal;
use tests::both::{kdig_at, kdig_in};
use tests::endpoints::dns_trust::{Authority, Valid};
use tests::endpoints::page::{PAGE, page};
use tests::endpoints::wireguard::{End, WireguardGo, base64, ends, everything, interface};
use tests::endpoints::{DoqServer, TcpServer, Unbound};
use tests::lab::capture::Capture;
use tests::lab::daemon::Daemon;
use tests::lab::frame::Frame;
use tests::lab::own_files::{run, with_own_files};
use tests::lab::resolved;
use tests::lab::scratch::Scratch;
use tests::lab::{Exec, Netns, Who, skipped};
use tests::{require_package, require_root, require_tunneld};

/// The server behind the far end, and a host beside it that the server names.
const SERVER: &str = "203.0.113.53";
const SERVER6: &str = "2001:db8:f::53";
const PAGES: &str = "203.0.113.9";

const RULES: &str = "resolve *.corp.example using corp\ndefault allow";

/// The near end without WireGuard, and the far one with it and the server.
struct Behind {
    near: End,
    theirs: WireguardGo,
    unbound: Unbound,
    quic: DoqServer,
    ca: String,
    far: End,
    _files: Scratch,
}

impl Behind {
    fn start(server: &str) -> Result<Self> {
        let (near, far) = ends()?;
        let theirs = WireguardGo::start(&far, &[near.peer(None, None)])?;
        far.netns.ip(&format!(
            "addr add {SERVER}/32 dev lo\naddr add {SERVER6}/128 dev lo nodad\n\
             addr add {PAGES}/32 dev lo\n"
        ))?;
        let authority = Authority::new("ours")?;
        let signed = authority.sign(&["dns.corp.example"], Valid::Now)?;
        let page = format!(" local-data: \"page.corp.example. 300 A {PAGES}\"\n");
        let wildcard = " local-zone: \"many.corp.example.\" redirect\n\
                        \x20local-data: \"many.corp.example. 300 A 10.1.2.4\"\n\
                        \x20local-zone: \"ad.local.\" redirect\n\
                        \x20local-data: \"ad.local. 300 A 10.1.2.5\"\n";
        let more = format!("{page}{wildcard}");
        let unbound = Unbound::with(&far.netns, server.parse()?, Some(&signed), &more)?;
        let behind = SocketAddr::new(server.parse()?, 53);
        let idle = Duration::from_secs(10);
        let quic = DoqServer::start(&far.netns, behind.ip(), behind, &signed, idle)?;
        let files = Scratch::new()?;
        let ca = files.write("ca.pem", &authority.pem())?;
        fs::set_permissions(&ca, Permissions::from_mode(0o644))?;
        let ca = format!("ca = \"{}\"\n", ca.display());
        Ok(Self { near, theirs, unbound, quic, ca, far, _files: files })
    }

    /// The configuration: the tunnel, and `corp` at these servers by this way.
    fn config(&self, servers: &str, via: &str) -> String {
        let peer = everything(self.far.peer(Some(self.far.outer(false)), None));
        let ca = if servers.contains("#dns.corp.example") { &self.ca } else { "" };
        format!(
            "{}[[resolver]]\nname = \"corp\"\nservers = [{servers}]\nvia = \"{via}\"\n{ca}",
            interface("wg0", &self.near, "", &[peer])
        )
    }

    fn exec(&self, program: &str, config: &str, rules: &str) -> Exec<'_> {
        Exec::new(&self.near.netns, program).who(Who::Root).policy(rules).config_of_owner(config)
    }

    /// Leads the kernel to a host behind the far end, beside the tunnel.
    fn lead(&self, to: &str) -> Result<()> {
        lead(&self.near.netns, &self.far, to, true)
    }
}

/// Leads the kernel to a host beside the tunnel, or not any more.
fn lead(netns: &Netns, far: &End, to: &str, beside: bool) -> Result<()> {
    let act = if beside { "replace" } else { "del" };
    netns.ip(&format!("route {act} {to}/32 via {} dev u0\n", far.outer(false).ip()))
}

/// A question that leaves in the open.
fn is_dns(frame: &Frame) -> bool {
    let asks = |port: u16| [53, 853, 443, DoqServer::PORT].contains(&port);
    matches!(frame, Frame::Ip { ports: Some((a, b)), .. } if asks(*a) || asks(*b))
}

/// The beginning of a connection for one, or a datagram: not the end of a connection that was.
fn begins(frame: &Frame) -> bool {
    const SYN: u8 = 0x02;
    matches!(frame, Frame::Ip { flags, .. } if flags.is_none_or(|flags| flags & SYN != 0))
        && is_dns(frame)
}

#[test]
fn every_transport_goes_through_the_tunnel() -> Result<()> {
    require_root!();
    require_tunneld!();
    for server in [SERVER, SERVER6] {
        let behind = Behind::start(server)?;
        let bracketed =
            if server.contains(':') { format!("[{server}]") } else { server.to_owned() };
        let seen = Capture::start(&behind.far.netns, "u0", is_dns)?;
        for (servers, question, want) in [
            (format!("\"{server}\""), "www.corp.example", "10.1.2.3"),
            // Cut as a datagram, it is asked for again over TCP.
            (format!("\"{server}\""), "+tcp big.corp.example TXT", "ANSWER: 20"),
            (format!("\"tls://{bracketed}#dns.corp.example\""), "www.corp.example AAAA", "fd00::3"),
            (
                format!("\"https://{bracketed}/dns-query#dns.corp.example\""),
                "big.corp.example TXT",
                "ANSWER: 20",
            ),
            (
                format!("\"quic://{bracketed}:{}#dns.corp.example\"", DoqServer::PORT),
                "odd.corp.example TYPE65280",
                "0A000001",
            ),
        ] {
            let config = behind.config(&servers, "wg0");
            let name = question.split(' ').find(|word| word.contains('.')).context("a name")?;
            let before = behind.unbound.asked(name)?;
            let (said, _) = kdig_in(behind.exec("kdig", &config, RULES), question)?;
            ensure!(said.contains(want), "{servers}, {question}:\n{said}");
            ensure!(behind.unbound.asked(name)? > before, "{question}: the server was asked");
        }
        ensure!(behind.quic.questions() == 1, "{}", behind.quic.questions());
        let seen = seen.finish()?;
        ensure!(seen.matched == 0, "{server}: in the open: {seen:#?}");
    }
    Ok(())
}

/// `via` from one way to another and back, each in force when the reload has answered: what is
/// asked then, and what was asked before, goes the new way alone.
#[test]
fn another_way_counts_from_the_reload_on() -> Result<()> {
    require_root!();
    require_tunneld!();
    let behind = Behind::start(SERVER)?;
    behind.lead(SERVER)?;
    let near = &behind.near.netns;
    let policy = format!("policy 1\n{RULES}\n");
    for scheme in ["", "tcp://"] {
        let config = |via: &str| behind.config(&format!("\"{scheme}{SERVER}\""), via);
        let mut daemon = Daemon::start(near, &policy, &config("direct"))?;
        let (outer, inner) = (behind.near.outer(false).ip(), behind.near.inner(false));
        let mut before: Vec<IpAddr> = Vec::new();
        for (step, (via, from)) in
            [("direct", outer), ("wg0", inner), ("direct", outer), ("wg0", inner)]
                .iter()
                .enumerate()
        {
            daemon.configure(&config(via))?;
            let done = daemon.verb(&["reload"])?;
            ensure!(done.code() == 0, "{done:?}");
            let seen = Capture::start(&behind.far.netns, "u0", begins)?;
            // The same name again, and a new one.
            let (same, new) = (format!("s{}", scheme.len()), format!("{step}x{}", scheme.len()));
            for label in [&same, &new, &same] {
                let said = kdig_at(near, &format!("{label}.many.corp.example"))?;
                ensure!(said.contains("10.1.2.4"), "{scheme} {via}: {said}");
            }
            before.push(*from);
            let clients = behind.unbound.clients(&format!("{same}.many.corp.example"))?;
            ensure!(clients == before, "{scheme} {via}, the same name: {clients:?}");
            let clients = behind.unbound.clients(&format!("{new}.many.corp.example"))?;
            ensure!(clients == [*from], "{scheme} {via}, a new name: {clients:?}");
            let seen = seen.finish()?;
            ensure!((seen.matched == 0) == (*via == "wg0"), "{scheme} {via}: {seen:#?}");
        }
        daemon.stop()?;
    }
    Ok(())
}

/// `DNS =` of a file of wg-quick(8) is a resolver behind that tunnel, which changes as the file
/// does.
#[test]
fn the_servers_of_a_file_are_behind_its_tunnel() -> Result<()> {
    require_root!();
    require_tunneld!();
    let behind = Behind::start(SERVER)?;
    behind.lead(SERVER)?;
    let near = &behind.near.netns;
    let file = |dns: &str| {
        format!(
            "[Interface]\nPrivateKey = {}\nAddress = {}/32\nDNS = {dns}, corp.example\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = 0.0.0.0/0\nEndpoint = {}\n",
            base64(behind.near.key.as_bytes()),
            behind.near.inner(false),
            base64(behind.far.key.public().as_bytes()),
            behind.far.outer(false),
        )
    };
    let policy = "policy 1\nresolve *.corp.example using wg0\ndefault allow\n";
    let config = "[[wireguard]]\nname = \"wg0\"\nfile = \"wg0.conf\"\n";
    let mut daemon = Daemon::new(near, policy, config)?;
    daemon.files().write_secret("wg0.conf", &file(SERVER))?;
    daemon.run()?;
    let seen = Capture::start(&behind.far.netns, "u0", is_dns)?;
    let said = kdig_at(near, "www.corp.example")?;
    ensure!(said.contains("10.1.2.3"), "{said}");
    ensure!(behind.unbound.clients("www.corp.example")? == [behind.near.inner(false)]);
    let listed = daemon.json(&["dns", "servers"])?;
    let listed = listed.iter().find(|it| it["resolver"] == "wg0").context("a resolver")?;
    ensure!(listed["server"] == SERVER && listed["from"] == "configuration", "{listed:#}");

    // Nobody is there, and nobody else is asked.
    daemon.files().write_secret("wg0.conf", &file("203.0.113.54"))?;
    let done = daemon.verb(&["reload"])?;
    ensure!(done.code() == 0, "{done:?}");
    let said = kdig_at(near, "www.corp.example")?;
    ensure!(said.contains("SERVFAIL"), "{said}");
    ensure!(behind.unbound.asked("www.corp.example")? == 1, "not the one before");
    let seen = seen.finish()?;
    ensure!(seen.matched == 0, "in the open: {seen:#?}");
    Ok(())
}

#[test]
fn routes_that_move_lead_no_question_beside_the_tunnel() -> Result<()> {
    require_root!();
    require_tunneld!();
    let behind = Behind::start(SERVER)?;
    let servers = format!("\"{SERVER}\"");
    behind.lead(SERVER)?;
    // The control: by that route a question is seen.
    let control = Capture::start(&behind.far.netns, "u0", is_dns)?;
    let direct = behind.config(&servers, "direct");
    let (said, _) = kdig_in(behind.exec("kdig", &direct, RULES), "www.corp.example")?;
    ensure!(said.contains("10.1.2.3"), "{said}");
    control.wait_for_one()?;
    drop(control);

    let seen = Capture::start(&behind.far.netns, "u0", is_dns)?;
    let config = behind.config(&servers, "wg0");
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do \
                  kdig +timeout=8 +retry=0 +short @198.18.0.2 n$i.many.corp.example; \
                  kdig +timeout=8 +retry=0 +short @198.18.0.2 t$i.big.corp.example TXT; sleep 0.1; \
                  done; kdig +timeout=8 +retry=0 +tcp @198.18.0.2 big.corp.example TXT";
    let over = AtomicBool::new(false);
    let (netns, far) = (&behind.near.netns, &behind.far);
    let said = thread::scope(|scope| -> Result<String> {
        let moves = scope.spawn(|| -> Result<u32> {
            let mut moved = 0;
            while !over.load(Ordering::Relaxed) {
                moved += 1;
                lead(netns, far, SERVER, moved % 2 == 0)?;
                thread::sleep(Duration::from_millis(7));
            }
            Ok(moved)
        });
        let said = behind.exec("sh", &config, RULES).args(["-c", script]).run();
        over.store(true, Ordering::Relaxed);
        let moved = moves.join().expect("it doesn't panic")?;
        ensure!(moved > 20, "the routes moved {moved} times");
        Ok(said?.success()?.stdout().to_owned())
    })?;
    ensure!(said.matches("10.1.2.4").count() == 12, "each has its answer:\n{said}");
    ensure!(said.contains("ANSWER: 20"), "{said}");
    let seen = seen.finish()?;
    ensure!(seen.matched == 0, "in the open: {seen:#?}");
    Ok(())
}

#[test]
fn a_tunnel_without_an_answer_is_a_failure_and_no_other_way() -> Result<()> {
    require_root!();
    require_tunneld!();
    let behind = Behind::start(SERVER)?;
    behind.lead(SERVER)?;
    behind.theirs.process().signal(Signal::KILL)?;
    let seen = Capture::start(&behind.far.netns, "u0", is_dns)?;
    let config = behind.config(&format!("\"{SERVER}\""), "wg0");
    let began = Instant::now();
    let exec = behind.exec("kdig", &config, RULES);
    let (said, _) = kdig_in(exec, "www.corp.example")?;
    ensure!(said.contains("status: SERVFAIL"), "{said}");
    // Of which 5 s are the resolver's: the rest is the start.
    ensure!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    let took = said.lines().find_map(|line| line.split_once(" in ")?.1.split(' ').next());
    let took: f64 = took.context("how long it took")?.parse()?;
    ensure!(took < 5200.0, "{took} ms");
    let seen = seen.finish()?;
    ensure!(seen.matched == 0, "in the open: {seen:#?}");
    Ok(())
}

#[test]
fn what_the_tunnels_resolver_names_goes_the_same_way() -> Result<()> {
    require_root!();
    require_tunneld!();
    let behind = Behind::start(SERVER)?;
    let server = TcpServer::start(&behind.far.netns, 80, page)?;
    // Both lead there: only the rule tells them apart.
    behind.lead(PAGES)?;
    let config = behind.config(&format!("\"{SERVER}\""), "wg0");
    let rules = "resolve *.corp.example using corp\nroute resolver corp via wg0\ndefault allow";
    let named = "http://page.corp.example/";
    for (rules, url, via) in [
        (rules, named, "wg0"),
        (rules, &format!("http://{PAGES}/")[..], "direct"),
        // Nothing follows a resolver by itself.
        (RULES, named, "direct"),
    ] {
        let curl = ["-sS", "--max-time", "10", url];
        let seen = behind.exec("curl", &config, rules).args(curl).run()?.success()?;
        ensure!(seen.stdout() == PAGE, "{url}: {seen:#?}");
        let flow = seen.flow_to(PAGES.parse()?, 80)?;
        ensure!(flow["via"] == *via, "{url}: {flow:#}");
        if url == named {
            ensure!(flow["resolvers"] == serde_json::json!(["corp"]), "{flow:#}");
        }
    }
    let peers: Vec<IpAddr> = server.sessions(3)?.iter().map(|it| it.peer.ip()).collect();
    let (inner, outer) = (behind.near.inner(false), behind.near.outer(false).ip());
    ensure!(peers == [inner, outer, outer], "{peers:?}");
    // Private addresses are what a tunnel's servers are for, whatever names the rule is about.
    let all = "resolve * using corp\ndefault allow";
    let (said, _) = kdig_in(behind.exec("kdig", &config, all), "www.corp.example")?;
    ensure!(said.contains("10.1.2.3") && !said.contains("EDE"), "{said}");
    Ok(())
}

/// A tunnel whose `DNS` has search domains, of a daemon's configuration.
fn with_search_domains(behind: &Behind, takeover: &str, policy: &str) -> Result<Daemon> {
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = {}/32\n\
         DNS = {SERVER}, corp.example, ad.local\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 0.0.0.0/0\nEndpoint = {}\n",
        base64(behind.near.key.as_bytes()),
        behind.near.inner(false),
        base64(behind.far.key.public().as_bytes()),
        behind.far.outer(false),
    );
    let config = format!(
        "[[wireguard]]\nname = \"wg0\"\nfile = \"wg0.conf\"\n[dns]\ntakeover = \"{takeover}\"\n"
    );
    let policy = format!("policy 1\n{policy}\ndefault allow\n");
    let mut daemon = Daemon::new(&behind.near.netns, &policy, &config)?;
    daemon.files().write_secret("wg0.conf", &text)?;
    daemon.run()?;
    Ok(daemon)
}

fn wait_for(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_so()? {
        ensure!(began.elapsed() < Duration::from_secs(10), "{what} never came");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The search domains of a tunnel complete the short names of the host's programs while the policy
/// has names in them asked behind it: no name of the company's is told to anybody else.
#[test]
fn short_names_are_completed_by_the_tunnels_domains() -> Result<()> {
    require_root!();
    require_tunneld!();
    let behind = Behind::start(SERVER)?;
    let near = &behind.near.netns.clone();
    let behind = with_own_files(near, None, move || {
        fs::write("/etc/nsswitch.conf", "hosts: files dns\n")?;
        // The network's server is dead at once.
        let before = "nameserver 192.0.2.2\nsearch lan.example\n";
        fs::write(RESOLV_CONF, before)?;
        let found = |name: &str| -> Result<String> {
            let done = near.command("getent").args(["ahostsv4", name]).run()?;
            Ok(done.stdout.split_whitespace().next().unwrap_or_default().to_owned())
        };
        let one = "resolve *.corp.example using wg0";
        let mut daemon = with_search_domains(&behind, "file", one)?;
        for (rule, search, names) in [
            (one, "corp.example lan.example", &[("www", "10.1.2.3"), ("dc", "")][..]),
            (
                "resolve * using wg0",
                "corp.example ad.local lan.example",
                &[("www", "10.1.2.3"), ("dc", "10.1.2.5"), ("dc.ad.local", "10.1.2.5")],
            ),
            ("", "lan.example", &[("www", ""), ("dc.ad.local", "")]),
            (one, "corp.example lan.example", &[("www", "10.1.2.3")]),
        ] {
            let done = daemon.reload(&format!("policy 1\n{rule}\ndefault allow\n"))?;
            ensure!(done.code() == 0, "{rule}: {done:?}");
            wait_for(&format!("{rule}: {search}"), || {
                let text = fs::read_to_string(RESOLV_CONF)?;
                Ok(text.lines().any(|line| line == format!("search {search}")))
            })?;
            let asked = behind.unbound.log()?.len();
            for (name, address) in names {
                ensure!(found(name)? == *address, "{rule}: {name}: {}", found(name)?);
            }
            let asked = behind.unbound.log()?.len() - asked;
            ensure!(!rule.is_empty() || asked == 0, "asked {asked} times");
        }
        // What is no domain of anybody's stays nobody's (RFC 6762).
        let done = daemon.reload("policy 1\nresolve * using wg0\ndefault allow\n")?;
        ensure!(done.code() == 0, "{done:?}");
        let said = kdig_at(near, "dc.other.local")?;
        ensure!(said.contains("status: REFUSED"), "{said}");
        let ended = daemon.stop()?;
        ensure!(ended.code() == 0 && !ended.stderr.contains("resolv-conf"), "{ended:?}");
        ensure!(fs::read_to_string(RESOLV_CONF)? == before, "it is put back");
        Ok(behind)
    })?;
    // In `exec` likewise.
    let peer = everything(behind.far.peer(Some(behind.far.outer(false)), None));
    let dns = format!("dns = [\"{SERVER}\", \"corp.example\"]\n");
    let config = interface("wg0", &behind.near, &dns, &[peer]);
    let script = "cat /etc/resolv.conf; getent ahostsv4 page";
    for (rule, completes) in [("resolve *.corp.example using wg0", true), ("", false)] {
        let rules = format!("{rule}\ndefault allow");
        let etc = "mount -t tmpfs lab /srv; cp -a /etc/. /srv/; mount --move /srv /etc; \
                   rm -f /etc/resolv.conf; echo 'hosts: files dns' > /etc/nsswitch.conf; \
                   printf 'nameserver 192.0.2.2\\nsearch lan.example\\n' > /etc/resolv.conf";
        let seen = behind.exec("sh", &config, &rules).prepare(etc).args(["-c", script]).run()?;
        let said = seen.stdout();
        let search =
            if completes { "search corp.example lan.example" } else { "search lan.example" };
        ensure!(said.lines().any(|line| line == search), "{rule}: {said}");
        ensure!(said.contains(PAGES) == completes, "{rule}: {said}");
    }
    Ok(())
}

/// systemd-resolved completes names by its links' domains: our link has the tunnel's.
#[test]
fn systemd_resolved_completes_short_names_by_the_tunnels_domains() -> Result<()> {
    require_root!();
    require_tunneld!();
    let package = require_package!("systemd-resolved");
    let behind = Behind::start(SERVER)?;
    let near = behind.near.netns.clone();
    with_own_files(&near, Some(&package), move || {
        let (_bus, _service) = match resolved::start() {
            Ok(started) => started,
            Err(error) => {
                skipped(module_path!(), &format!("no systemd-resolved: {error:#}"));
                return Ok(());
            }
        };
        let one = "resolve *.corp.example using wg0";
        let mut daemon = with_search_domains(&behind, "auto", one)?;
        let domains = |want: &str| {
            let is_so = || -> Result<bool> {
                let told = run("resolvectl", &["domain", "tunneld0"], "")?;
                let mut words: Vec<&str> =
                    told.rsplit(':').next().unwrap_or_default().split_whitespace().collect();
                words.sort_unstable();
                Ok(words.join(" ") == want)
            };
            wait_for(want, is_so)
        };
        domains("corp.example ~.")?;
        let query = ["query", "-4", "--legend=no", "www"];
        let told = run("resolvectl", &query, "")?;
        ensure!(told.contains("10.1.2.3"), "{told}");
        let done = daemon.reload("policy 1\ndefault allow\n")?;
        ensure!(done.code() == 0, "{done:?}");
        domains("~.")?;
        let asked = behind.unbound.asked("www.corp.example")?;
        ensure!(run("resolvectl", &query, "").is_err(), "it is completed by nothing");
        ensure!(behind.unbound.asked("www.corp.example")? == asked);
        let done = daemon.reload("policy 1\nresolve * using wg0\ndefault allow\n")?;
        ensure!(done.code() == 0, "{done:?}");
        domains("ad.local corp.example ~.")?;
        daemon.stop()?;
        Ok(())
    })
}
