//! The split resolver in `run`: the host's own questions, and what changes under them.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::both::{Both, OURS, kdig};
use tests::endpoints::page::page;
use tests::endpoints::{Dnsmasq, TcpServer, UdpServer, Unbound};
use tests::lab::daemon::Daemon;
use tests::lab::exec::built_tunneld;
use tests::lab::side_by_side::side_by_side;
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

const ZONE: &str = "\
 local-zone: \"short.example.\" static
 local-data: \"short.example. 2 A 203.0.113.1\"
 local-data: \"one.example. 300 A 203.0.113.1\"
 local-data: \"two.example. 300 A 203.0.113.1\"
 local-data: \"private.example. 300 A 10.9.9.9\"";

/// The network's own data of a name that the company has, too.
const OTHER_ONE: &str = " local-data: \"one.example. 300 A 203.0.113.129\"";

fn config(more: &str) -> String {
    format!("[dns]\nupstream = [\"203.0.113.129\"]\n{more}")
}

const CORP: &str = "[[resolver]]\nname = \"corp\"\nservers = [\"203.0.113.1\"]\n";

#[test]
fn a_reload_changes_rules_and_resolvers_under_the_hosts_questions() -> Result<()> {
    require_root!();
    require_tunneld!();
    let Both { corp, upstream, lab } = Both::start(ZONE, OTHER_ONE)?;
    let daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", Both::CONFIG)?;
    let seen = kdig(&lab, "one.example")?;
    ensure!(seen.contains("203.0.113.129"), "{seen}");
    ensure!(corp.asked("one.example")? == 0);
    // Another rule counts for what is cached, too.
    let rule = "policy 1\nresolve *.example using corp\ndefault allow\n";
    let done = daemon.reload(rule)?;
    ensure!(done.code() == 0, "{done:?}");
    let seen = kdig(&lab, "one.example")?;
    ensure!(seen.contains("203.0.113.1\n"), "{seen}");
    let asked = upstream.asked("one.example")?;
    // A disagreement is told to whoever watches.
    let watch = lab.host.command(built_tunneld()?);
    let watch = watch.args(["--json", "watch", "--socket"]).args([daemon.socket()]).spawn()?;
    std::thread::sleep(Duration::from_millis(300));
    let done =
        daemon.reload("policy 1\nresolve *.example using corp and upstream\ndefault allow\n")?;
    ensure!(done.code() == 0, "{done:?}");
    let seen = kdig(&lab, "+tcp one.example")?;
    ensure!(seen.contains("203.0.113.1\n") && seen.contains("203.0.113.129\n"), "{seen}");
    ensure!(upstream.asked("one.example")? == asked + 1);
    watch.wait_for("\"disagreement\"")?;
    let lines = watch.stdout();
    let told = lines.lines().find(|line| line.contains("\"disagreement\"")).context("a line")?;
    let told: Value = serde_json::from_str(told)?;
    let said = |resolver: &str, data: &str| serde_json::json!({"resolver": resolver, "status": "data", "data": [data], "error": null});
    let answers = [said("corp", "203.0.113.1"), said("upstream", "203.0.113.129")];
    ensure!(told["name"] == "one.example" && told["type"] == "A", "{told}");
    ensure!(told["answers"] == serde_json::json!(answers), "{told}");
    let done = daemon.reload("policy 1\nresolve two.example using corp\ndefault allow\n")?;
    ensure!(done.code() == 0, "{done:?}");
    // What is private passes by a rule that names it, and no other.
    let done = daemon.reload("policy 1\nresolve * using corp\ndefault allow\n")?;
    ensure!(done.code() == 0, "{done:?}");
    let seen = kdig(&lab, "private.example")?;
    ensure!(!seen.contains("10.9.9.9") && seen.contains("EDE: 17"), "{seen}");
    watch.wait_for("\"rebinding\"")?;
    let done = daemon.reload("policy 1\nresolve * using corp private\ndefault allow\n")?;
    ensure!(done.code() == 0, "{done:?}");
    let seen = kdig(&lab, "private.example")?;
    ensure!(seen.contains("10.9.9.9"), "what was filtered was kept: {seen}");
    watch.signal(rustix::process::Signal::TERM)?;
    watch.wait()?;
    Ok(())
}

#[test]
fn answers_age_and_outlive_their_server() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let upstream = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, ZONE)?;
    let _daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", &config(""))?;
    let ttl = || -> Result<u32> {
        let seen = kdig(&lab, "+noall +answer one.example")?;
        let ttl = seen.split_whitespace().nth(1).with_context(|| seen.clone())?;
        Ok(ttl.parse()?)
    };
    ensure!(ttl()? == 300);
    let seen = kdig(&lab, "short.example")?;
    ensure!(seen.contains("203.0.113.1\n"), "{seen}");
    std::thread::sleep(Duration::from_millis(2_500));
    ensure!((295..300).contains(&ttl()?), "{}", ttl()?);
    ensure!(upstream.asked("one.example")? == 1);
    drop(upstream);
    let began = Instant::now();
    let seen = kdig(&lab, "short.example")?;
    ensure!(seen.contains("203.0.113.1\n") && seen.contains("EDE: 3"), "{seen}");
    ensure!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let seen = kdig(&lab, "never.example")?;
    ensure!(seen.contains("status: SERVFAIL"), "{seen}");
    Ok(())
}

/// Every shard has the name before the app has the answer; the name last asked wins. Of
/// datagrams, that is: a connection is asked itself where two names would differ.
#[test]
fn a_flow_right_behind_the_answer_has_its_name_on_any_shard() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let _upstream = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, ZONE)?;
    let server = UdpServer::echo(&lab.server, plan::GOOD4, 0)?;
    let rules = "policy 1\nallow port 53\nallow to one.example\ndefault block\n";
    let _daemon = Daemon::start(&lab.host, rules, &config("[device]\nqueues = 2\n"))?;
    let to = SocketAddr::new(plan::GOOD4, server.port());
    lab.host.run(|| -> Result<()> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect("198.18.0.2:53")?;
        let mut room = [0; 512];
        for turn in 0..200u16 {
            let name = if turn % 2 == 0 { b"\x03one" } else { b"\x03two" };
            let [high, low] = turn.to_be_bytes();
            let mut query = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            query.extend(name);
            query.extend(b"\x07example\x00\x00\x01\x00\x01");
            socket.send(&query)?;
            let length = socket.recv(&mut room)?;
            ensure!(length > query.len() && room[..2] == [high, low], "{turn}: {room:?}");
            // A new port is a new flow, on a shard of its own choice; the kernel might choose one
            // twice, whose flow would have kept its verdict.
            let flow = std::net::UdpSocket::bind(("0.0.0.0", 10_000 + turn))?;
            flow.set_read_timeout(Some(Duration::from_secs(5)))?;
            flow.connect(to)?;
            flow.send(b"x")?;
            let passed = match flow.recv(&mut room) {
                Ok(_) => true,
                Err(error) if error.raw_os_error() == Some(libc::EHOSTUNREACH) => false,
                Err(error) => anyhow::bail!("turn {turn}: {error}"),
            };
            ensure!(passed == (turn % 2 == 0), "turn {turn}: passed: {passed}");
        }
        Ok(())
    })
}

#[test]
fn a_thousand_questions_at_once_are_all_answered() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let more = " local-zone: \"many.example.\" redirect\n \
                local-data: \"many.example. 300 A 203.0.113.1\"";
    let upstream = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, more)?;
    let _daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", &config(""))?;
    let answers = lab.host.run(|| -> Result<usize> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20)?;
        socket.connect("198.18.0.2:53")?;
        for number in 0..1_000u16 {
            let [high, low] = number.to_be_bytes();
            let mut query = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4];
            query.extend(format!("{number:04}").as_bytes());
            query.extend(b"\x04many\x07example\x00\x00\x01\x00\x01");
            socket.send(&query)?;
        }
        let mut seen = std::collections::BTreeSet::new();
        let mut room = [0; 512];
        while seen.len() < 1_000 {
            let length = socket.recv(&mut room).with_context(|| format!("{}", seen.len()))?;
            ensure!(length > 12 && room[3] & 15 == 0 && room[7] == 1, "{:?}", &room[..length]);
            seen.insert([room[0], room[1]]);
        }
        Ok(seen.len())
    })?;
    ensure!(answers == 1_000);
    let asked = upstream.log()?.iter().filter(|line| line.contains("many.example")).count();
    ensure!((1_000..1_200).contains(&asked), "{asked}");
    Ok(())
}

/// A resolver whose server is our own front: the question does not go round for ever, over UDP or
/// over TCP.
#[test]
fn a_forwarder_back_to_us_ends() -> Result<()> {
    require_root!();
    require_tunneld!();
    side_by_side(&["192.0.2.1", "tcp://192.0.2.1"], |upstream| {
        let lab = Lab::new()?;
        // In the host's own namespace, forwarding to where we answer.
        let server = format!("--server={OURS}");
        let dnsmasq = Dnsmasq::start(&lab.host, plan::HOST4, &[&server])?;
        let config = format!("[dns]\nupstream = [\"{upstream}\"]\n");
        let daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", &config)?;
        // Names long and short: by their spelling a loop is seen, or not.
        for name in ["a.long.name.that.goes.round.example", "r.example"] {
            for over in ["+notcp", "+tcp"] {
                let began = Instant::now();
                let name = format!("{}.{name}", over.trim_start_matches('+'));
                let seen = kdig(&lab, &format!("{over} {name}"))?;
                ensure!(seen.contains("status: SERVFAIL"), "{upstream} {over}: {seen}");
                let took = began.elapsed();
                ensure!(took < Duration::from_secs(6), "{upstream} {over}: {took:?}");
                daemon.status()?;
                let rounds = dnsmasq.log().matches(&format!("forwarded {name} to {OURS}")).count();
                let log = dnsmasq.log();
                ensure!((1..10).contains(&rounds), "{upstream} {over}: {rounds} rounds: {log}");
            }
        }
        Ok(())
    })
}

/// Names are answered at both of our addresses, over UDP and TCP, and each flow there has a report,
/// although nothing of it leaves.
#[test]
fn each_address_answers_and_each_question_is_reported() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let _upstream = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, ZONE)?;
    let daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", &config(""))?;
    let watch = lab.host.command(built_tunneld()?);
    let watch = watch.args(["--json", "watch", "--socket"]).args([daemon.socket()]).spawn()?;
    std::thread::sleep(Duration::from_millis(200));
    for (address, at) in [(OURS, "198.18.0.2:53"), ("2001:2:0:756e::2", "[2001:2:0:756e::2]:53")] {
        for (over, protocol) in [("+notcp", "udp"), ("+tcp", "tcp")] {
            let seen = kdig(&lab, &format!("{over} @{address} one.example"))?;
            ensure!(seen.contains("203.0.113.1\n"), "{at} {over}: {seen}");
            let is_it = |flow: &Value| {
                flow["destination"] == at
                    && flow["protocol"] == protocol
                    && flow["via"] == "dns"
                    && flow["verdict"] == "allow"
                    && flow["source"].is_null()
                    && flow["egress"].is_null()
            };
            let limit = Instant::now() + Duration::from_secs(5);
            let lines = || watch.stdout();
            while !lines()
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .any(|f| is_it(&f))
            {
                ensure!(Instant::now() < limit, "{at} {over}: {}", lines());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    Ok(())
}

/// Nobody is asked who would ask us.
#[test]
fn a_server_that_is_us_is_refused() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let with = |servers: &str| format!("[[resolver]]\nname = \"r\"\nservers = [\"{servers}\"]\n");
    for (config, why) in [
        (with("198.18.0.2"), Some("in `dns.address`")),
        (with("tcp://198.18.0.2"), Some("in `dns.address`")),
        (with("198.18.0.2:5353"), Some("in `dns.address`")),
        (with("[2001:2:0:756e::2]:53"), Some("in `dns.address`")),
        (with("tls://198.18.0.2#dns.example"), Some("in `dns.address`")),
        (
            format!("[dns]\naddress = [\"192.0.2.77\"]\n{}", with("192.0.2.77")),
            Some("in `dns.address`"),
        ),
        (with("198.18.0.1"), Some("in `device.addresses`")),
        ("[dns]\nupstream = [\"198.18.0.2\"]\n".to_owned(), Some("in `dns.address`")),
        (format!("[dns]\ntakeover = \"auto\"\n{}", with("127.0.0.53")), Some("is led to us")),
        (
            "[dns]\ntakeover = \"file\"\nupstream = [\"127.0.0.54\"]\n".to_owned(),
            Some("is led to us"),
        ),
        // It is left alone, and asks others.
        (with("127.0.0.53"), None),
    ] {
        let mut daemon = Daemon::new(&lab.host, "policy 1\ndefault allow\n", &config)?;
        let Some(why) = why else {
            daemon.run()?;
            continue;
        };
        let done = daemon.program()?.run()?;
        ensure!(done.code() == 2 && done.stderr.contains(why), "{config}: {done:?}");
        // Nor does a reload let it in.
        let text = std::fs::read_to_string(daemon.config())?;
        let mut daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", "")?;
        daemon.files().write("tunneld.toml", &text)?;
        let done = daemon.verb(&["reload"])?;
        ensure!(done.code() != 0 && done.stderr.contains(why), "{config}: {done:?}");
        ensure!(daemon.stop()?.code() == 0);
    }
    Ok(())
}

/// Each address of an `and` is of those who gave it, and one side's verdict is not the other's.
#[test]
fn each_side_of_an_and_has_its_own_verdict() -> Result<()> {
    require_root!();
    require_tunneld!();
    let shared = " local-data: \"one.example. 300 A 192.0.2.2\"";
    let both = Both::start(&format!("{ZONE}\n{shared}"), &format!("{OTHER_ONE}\n{shared}"))?;
    let server = TcpServer::start(&both.lab.server, 0, page)?;
    let rules = |rules: &str| {
        format!("policy 1\nresolve one.example using corp and upstream\nallow port 53\n{rules}\n")
    };
    let daemon = Daemon::start(&both.lab.host, &rules("default block"), Both::CONFIG)?;
    let seen = kdig(&both.lab, "one.example")?;
    ensure!(seen.contains("ANSWER: 3;"), "{seen}");
    for (policy, passes) in [
        ("block to any resolver corp\ndefault allow", [false, true, false]),
        ("block to any resolver upstream\ndefault allow", [true, false, false]),
        ("allow to any resolver corp\ndefault block", [true, false, true]),
        ("allow to any resolver upstream\ndefault block", [false, true, true]),
    ] {
        let done = daemon.reload(&rules(policy))?;
        ensure!(done.code() == 0, "{done:?}");
        for (address, passes) in ["203.0.113.1", "203.0.113.129", "192.0.2.2"].iter().zip(passes) {
            let to = SocketAddr::new(address.parse()?, server.port());
            let connected = both
                .lab
                .host
                .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_ok());
            ensure!(connected == passes, "{policy}: {address}: {connected}");
        }
    }
    Ok(())
}

/// `dns.intercept`: whoever is asked at port 53, we answer; or they do, and are judged.
#[test]
fn every_port_53_is_ours_or_nobodys() -> Result<()> {
    require_root!();
    require_tunneld!();
    // Of an address with a server, of one that is silent, and of one that no way leads to.
    let [server, silent, unrouted] = ["203.0.113.129", "203.0.113.20", "198.51.100.77"];
    let theirs = "203.0.113.129\n";
    // dns.intercept, the policy's verdict, who is asked, what is in the answer, and the report of it.
    let cases = [
        ("all", "allow", server, "203.0.113.1\n", "dns", "allow"),
        ("all", "allow", silent, "203.0.113.1\n", "dns", "allow"),
        ("all", "allow", unrouted, "203.0.113.1\n", "dns", "allow"),
        ("all", "block", server, "", "dns", "block"),
        ("none", "allow", server, theirs, "direct", "allow"),
        ("none", "allow", unrouted, "", "direct", "none"),
        ("none", "block", server, "", "direct", "block"),
    ];
    side_by_side(&cases, |&(intercept, rule, at, want, via, verdict)| {
        let both = Both::start(ZONE, OTHER_ONE)?;
        let config =
            Both::CONFIG.replace("[dns]\n", &format!("[dns]\nintercept = \"{intercept}\"\n"));
        let policy = format!(
            "policy 1\nresolve one.example using corp\n{rule} to {at} port 53\ndefault allow\n"
        );
        let daemon = Daemon::start(&both.lab.host, &policy, &config)?;
        let watch = both.lab.host.command(built_tunneld()?);
        let watch = watch.args(["--json", "watch", "--socket"]).args([daemon.socket()]).spawn()?;
        std::thread::sleep(Duration::from_millis(200));
        for (over, protocol) in [("+notcp", "udp"), ("+tcp", "tcp")] {
            let case = format!("{intercept}, {rule}, {at} {over}");
            let before = both.asked("one.example")?;
            let seen = kdig(&both.lab, &format!("+timeout=2 {over} @{at} one.example"))?;
            ensure!(seen.contains(want), "{case}: {seen}");
            ensure!(!want.is_empty() || !seen.contains("203.0.113.1"), "{case}: {seen}");
            let now = both.asked("one.example")?;
            let asked = [now[0] - before[0], now[1] - before[1]];
            // The second time our cache knows it.
            let ours = usize::from(via == "dns" && !want.is_empty() && over == "+notcp");
            ensure!(asked == [ours, usize::from(want == theirs)], "{case}: {asked:?}");
            let is_it = |flow: &Value| {
                flow["destination"] == format!("{at}:53")
                    && flow["protocol"] == protocol
                    && flow["verdict"] == verdict
                    && flow["via"] == via
            };
            let limit = Instant::now() + Duration::from_secs(5);
            let report = || -> Vec<Value> {
                let lines = watch.stdout();
                lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
            };
            while !report().iter().any(is_it) {
                ensure!(Instant::now() < limit, "{case}: {:#?}", report());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    })
}

#[test]
fn resolvers_come_and_go_with_a_reload() -> Result<()> {
    require_root!();
    require_tunneld!();
    let Both { corp, upstream: other, lab } = Both::start(ZONE, OTHER_ONE)?;
    let with = "policy 1\nresolve one.example using corp\ndefault allow\n";
    let without = "policy 1\ndefault allow\n";
    let daemon = Daemon::start(&lab.host, without, &config(""))?;
    let plain = std::fs::read_to_string(daemon.config())?;
    for (case, text, policy, want) in [
        ("added", format!("{plain}{CORP}"), with, "203.0.113.1\n"),
        ("moved", format!("{plain}{}", CORP.replace(".1\"", ".129\"")), with, "203.0.113.129\n"),
        ("moved back", format!("{plain}{CORP}"), with, "203.0.113.1\n"),
        ("removed", plain.clone(), without, "203.0.113.129\n"),
    ] {
        daemon.files().write("tunneld.toml", &text)?;
        let done = daemon.reload(policy)?;
        ensure!(done.code() == 0, "{case}: {done:?}");
        let before = (corp.asked("one.example")?, other.asked("one.example")?);
        let seen = kdig(&lab, "one.example")?;
        ensure!(seen.contains(want), "{case}: {seen}");
        let asked = (corp.asked("one.example")? - before.0, other.asked("one.example")? - before.1);
        let to_corp = usize::from(want == "203.0.113.1\n");
        ensure!(asked == (to_corp, 1 - to_corp), "{case}: {asked:?}");
    }
    // A rule of one that is gone is refused.
    ensure!(daemon.reload(with)?.code() == 1);
    Ok(())
}
