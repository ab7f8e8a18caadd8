//! The split resolver in `run`: the host's own questions, and what changes under them.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::endpoints::page::page;
use tests::endpoints::{TcpServer, Unbound};
use tests::lab::daemon::Daemon;
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

const ZONE: &str = "\
 local-zone: \"short.example.\" static
 local-data: \"short.example. 2 A 203.0.113.1\"
 local-data: \"one.example. 300 A 203.0.113.1\"
 local-data: \"two.example. 300 A 203.0.113.1\"
 local-data: \"private.example. 300 A 10.9.9.9\"";

fn config(more: &str) -> String {
    format!("[dns]\ntakeover = \"none\"\nupstream = [\"203.0.113.129\"]\n{more}")
}

const CORP: &str = "[[resolver]]\nname = \"corp\"\nservers = [\"203.0.113.1\"]\n";

fn kdig(lab: &Lab, args: &str) -> Result<String> {
    let base = ["@198.18.0.2", "+timeout=8", "+retry=0", "+edns"];
    let done = lab.host.command("kdig").args(base).args(args.split(' ')).run()?;
    Ok(done.stdout)
}

#[test]
fn a_reload_changes_rules_and_resolvers_under_the_hosts_questions() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let corp = Unbound::with(&lab.server, plan::GOOD4, None, ZONE)?;
    let more = " local-data: \"one.example. 300 A 203.0.113.129\"";
    let upstream = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, more)?;
    let daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", &config(CORP))?;
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
    let watch = lab.host.command(tests::lab::exec::built_tunneld()?);
    let watch = watch.args(["--json", "watch", "--socket"]).args([daemon.socket()]).spawn()?;
    std::thread::sleep(Duration::from_millis(300));
    let done =
        daemon.reload("policy 1\nresolve *.example using corp and upstream\ndefault allow\n")?;
    ensure!(done.code() == 0, "{done:?}");
    let seen = kdig(&lab, "+tcp one.example")?;
    ensure!(seen.contains("203.0.113.1\n") && seen.contains("203.0.113.129\n"), "{seen}");
    ensure!(upstream.asked("one.example")? == asked + 1);
    watch.wait_for("\"disagreement\"")?;
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

/// Every shard has the name before the app has the answer; the name last asked wins.
#[test]
fn a_flow_right_behind_the_answer_has_its_name_on_any_shard() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let _upstream = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, ZONE)?;
    let server = TcpServer::start(&lab.server, 0, page)?;
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
            let connected = TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_ok();
            ensure!(connected == (turn % 2 == 0), "turn {turn}: connected: {connected}");
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

/// A resolver whose server is our own front: the question does not go round for ever.
#[test]
fn a_forwarder_back_to_us_ends() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    // In the host's own namespace, forwarding to where we answer.
    let ours: IpAddr = plan::HOST4;
    let listen = format!("--listen-address={ours}");
    let dnsmasq = lab.host.command("dnsmasq").args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--user=root",
        "--pid-file=",
        "--log-facility=-",
        "--log-queries",
        "--server=198.18.0.2",
        &listen,
    ]);
    let dnsmasq = dnsmasq.spawn()?;
    let limit = Instant::now() + Duration::from_secs(10);
    while !dnsmasq.stderr().contains("started") {
        ensure!(Instant::now() < limit, "dnsmasq: {}", dnsmasq.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    let config = format!("[dns]\ntakeover = \"none\"\nupstream = [\"{ours}\"]\n");
    let daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", &config)?;
    let began = Instant::now();
    let seen = kdig(&lab, "round.example")?;
    ensure!(seen.contains("status: SERVFAIL"), "{seen}");
    ensure!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    daemon.status()?;
    let said = dnsmasq.stderr().to_ascii_lowercase();
    let rounds = said.matches("forwarded round.example to 198.18.0.2").count();
    ensure!((1..10).contains(&rounds), "{rounds} rounds: {said}");
    dnsmasq.signal(rustix::process::Signal::TERM)?;
    dnsmasq.wait()?;
    Ok(())
}

#[test]
fn resolvers_come_and_go_with_a_reload() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let corp = Unbound::with(&lab.server, plan::GOOD4, None, ZONE)?;
    let more = " local-data: \"one.example. 300 A 203.0.113.129\"";
    let other = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, more)?;
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
