//! `tunneld run`: a whole host's traffic judged, its connections from outside left alone, and
//! everything put back, whatever ends the daemon.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::endpoints::TcpServer;
use tests::endpoints::page::{PAGE, page};
use tests::lab::capture::Capture;
use tests::lab::command::Program;
use tests::lab::daemon::Daemon;
use tests::lab::exec::{built_tunneld, promised};
use tests::lab::scratch::Scratch;
use tests::lab::{Lab, Netns, Tun, Who, host_state, plan, track_connections};
use tests::{require_root, require_tunneld};

const ALLOW: &str = "policy 1\ndefault allow\n";

/// How long a daemon may take to start again.
const RESTART: Duration = Duration::from_secs(1);

/// Whether these are the tests of `run_host_tracked`.
const TRACKED: bool = matches!(module_path!().as_bytes(), b"promises::run_host_tracked");

/// A host that nobody else tracks connections on, or one that somebody does.
fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    if TRACKED {
        track_connections(&lab.host)?;
    }
    Ok(lab)
}

#[test]
fn a_host_is_captured_judged_and_put_back() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let before = host_state::read(&lab.host)?;
    let policy = format!(
        "policy 1\nblock tcp from {} to {} id secret\nallow egress up0 id first\ndefault allow\n",
        plan::HOST4_SECOND,
        plan::GOOD4_SECOND
    );
    let mut daemon = Daemon::start(&lab.host, &policy, "")?;
    for address in [plan::GOOD4, plan::GOOD6] {
        let page = curl(&lab.host, SocketAddr::new(address, server.port()))?;
        ensure!(page.stdout == PAGE, "{address}: {page:?}");
    }
    let refused = curl(&lab.host, SocketAddr::new(plan::GOOD4_SECOND, server.port()))?;
    ensure!(refused.code() == 7, "refused expected: {refused:?}");
    let rules = daemon.json(&["rules", "--hits"])?;
    let hits = |name: &str| {
        let rule = rules.iter().find(|rule| rule["rule"] == name);
        rule.and_then(|rule| rule["hits"].as_u64()).with_context(|| format!("{name}: {rules:?}"))
    };
    ensure!(hits("first")? == 2 && hits("secret")? == 1, "{rules:?}");
    let status = daemon.json(&["status"])?;
    ensure!(status[0]["tracking"].as_bool() == Some(TRACKED), "{status:?}");
    let left = daemon.stop()?;
    ensure!(left.code() == 0, "{left:?}");
    let after = host_state::read(&lab.host)?;
    ensure!(before == after, "left behind:\n{}", difference(&before, &after));
    Ok(())
}

/// The promise of the product, for a whole host: of a blocked flow not even an ARP request.
#[test]
fn a_source_rule_blocks_before_any_byte() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let policy =
        format!("policy 1\nblock from {} to {}\ndefault allow\n", plan::HOST4, plan::GOOD4);
    let _daemon = Daemon::start(&lab.host, &policy, "")?;
    let control = Capture::start(&lab.server, "far0", |frame| frame.seeks(plan::NEAR4))?;
    let _ = lab.host.run(|| TcpStream::connect((plan::NEAR4, plan::CLOSED_PORT)));
    control.wait_for_one()?;
    let capture = Capture::start(&lab.server, "far0", |frame| frame.seeks(plan::GOOD4))?;
    for _ in 0..200 {
        let error = lab
            .host
            .run(|| TcpStream::connect((plan::GOOD4, plan::CLOSED_PORT)))
            .err()
            .context("blocked")?;
        ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{error}");
    }
    let captured = capture.finish()?;
    ensure!(captured.matched == 0, "{captured:?}");
    Ok(())
}

/// No route, refused, unreachable: the app's call fails at once, with the daemon alive and dead.
#[test]
fn local_failure_is_immediate() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let mut daemon = Daemon::start(&lab.host, ALLOW, "")?;
    let errno = |address: IpAddr| -> Result<(Option<i32>, Duration)> {
        lab.host.run(|| {
            let began = Instant::now();
            let to = SocketAddr::new(address, plan::CLOSED_PORT);
            let error = TcpStream::connect_timeout(&to, Duration::from_secs(3)).err();
            Ok((error.context("no connection")?.raw_os_error(), began.elapsed()))
        })
    };
    let quick = Duration::from_millis(500);
    for (address, expected) in [
        (plan::UNROUTED4, libc::ENETUNREACH),
        (plan::UNROUTED6, libc::ENETUNREACH),
        (plan::HOST_UNREACHABLE4, libc::EHOSTUNREACH),
        (plan::GOOD4, libc::ECONNREFUSED),
    ] {
        let (errno, took) = errno(address)?;
        ensure!(errno == Some(expected) && took < quick, "{address}: {errno:?} after {took:?}");
    }
    let unrouted = lab.host.run(|| -> Result<Option<i32>> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((plan::UNROUTED4, plan::CLOSED_PORT))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let sent = socket.send(b"x").and_then(|_| socket.recv(&mut [0; 8]));
        Ok(sent.err().context("no answer")?.raw_os_error())
    })?;
    ensure!(unrouted == Some(libc::ENETUNREACH), "{unrouted:?}");
    daemon.kill()?;
    for address in [plan::GOOD4, plan::GOOD6, plan::UNROUTED4] {
        let (errno, took) = errno(address)?;
        let known = [Some(libc::EHOSTUNREACH), Some(libc::ENETUNREACH)].contains(&errno);
        ensure!(known && took < quick, "dead, {address}: {errno:?} after {took:?}");
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let (unsent, took) = lab.host.run(|| -> Result<(Option<i32>, Duration)> {
            let socket = UdpSocket::bind(any)?;
            let began = Instant::now();
            let unsent = socket.send_to(b"x", (address, plan::CLOSED_PORT)).err();
            Ok((unsent.context("it was sent")?.raw_os_error(), began.elapsed()))
        })?;
        let known = [Some(libc::EHOSTUNREACH), Some(libc::ENETUNREACH)].contains(&unsent);
        ensure!(known && took < quick, "dead, {address}: {unsent:?} after {took:?}");
    }
    Ok(())
}

/// An inbound session that stays open, like an SSH login.
struct Login {
    outside: TcpStream,
    host: thread::JoinHandle<()>,
}

impl Login {
    fn open(lab: &Lab) -> Result<Self> {
        let listener = lab.host.run(|| TcpListener::bind(SocketAddr::new(plan::HOST4, 0)))?;
        let address = listener.local_addr()?;
        let host = lab.host.spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut buffer = [0; 1024];
            // Ends with the other side.
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
        });
        let outside = lab.server.run(|| TcpStream::connect(address))?;
        outside.set_read_timeout(Some(Duration::from_secs(5)))?;
        outside.set_nodelay(true)?;
        let mut login = Self { outside, host };
        login.types("hello")?;
        Ok(login)
    }

    fn types(&mut self, line: &str) -> Result<()> {
        self.outside.write_all(line.as_bytes())?;
        let mut echo = vec![0; line.len()];
        self.outside.read_exact(&mut echo).with_context(|| format!("the echo of `{line}`"))?;
        ensure!(echo == line.as_bytes());
        Ok(())
    }

    fn close(self) -> Result<()> {
        drop(self.outside);
        self.host.join().map_err(|_| anyhow::anyhow!("the session's thread panicked"))
    }
}

#[test]
fn connections_from_outside_keep_their_path() -> Result<()> {
    require_root!();
    require_tunneld!();
    for rp_filter in ["0", "1", "2"] {
        let lab = lab()?;
        lab.host.sysctl("net/ipv4/conf/all/rp_filter", rp_filter)?;
        let before = host_state::read(&lab.host)?;
        let mut old = Login::open(&lab)?;
        let mut daemon = Daemon::start(&lab.host, "policy 1\ndefault block\n", "")?;
        old.types("after the start").with_context(|| format!("rp_filter {rp_filter}"))?;
        let mut new = Login::open(&lab).with_context(|| format!("rp_filter {rp_filter}"))?;
        ping(&lab.server, plan::HOST4)?;
        ping(&lab.server, plan::HOST6)?;
        daemon.reload("policy 1\ndefault drop\n")?;
        old.types("after a reload")?;
        daemon.kill()?;
        old.types("with the daemon dead")?;
        new.types("with the daemon dead")?;
        let third = Login::open(&lab).context("a login with the daemon dead")?;
        ping(&lab.server, plan::HOST4).context("dead")?;
        ping(&lab.server, plan::HOST6).context("dead")?;
        daemon.run()?;
        old.types("after the restart")?;
        new.types("after the restart")?;
        daemon.stop()?;
        old.types("after the stop")?;
        for login in [old, new, third] {
            login.close()?;
        }
        let after = host_state::read(&lab.host)?;
        ensure!(before == after, "rp_filter {rp_filter}:\n{}", difference(&before, &after));
    }
    Ok(())
}

#[test]
fn an_own_connection_older_than_the_capture_is_reset_once_and_counted() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let server = TcpServer::hold(&lab.server, 0)?;
    let mut old = Vec::new();
    for address in [plan::GOOD4, plan::GOOD6] {
        let stream = lab.host.run(|| TcpStream::connect((address, server.port())))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        old.push(stream);
    }
    let daemon = Daemon::start(&lab.host, ALLOW, "")?;
    for (number, stream) in old.iter_mut().enumerate() {
        stream.write_all(b"x")?;
        let error = stream.read(&mut [0; 8]).err().context("a reset")?;
        ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
        let status = daemon.json(&["status"])?;
        ensure!(status[0]["older"].as_u64() == Some(number as u64 + 1), "{status:?}");
    }
    Ok(())
}

#[test]
fn killed_at_any_moment_nothing_is_left_after_the_next_stop() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    lab.host.sysctl("net/ipv4/conf/default/rp_filter", "2")?;
    let before = host_state::read(&lab.host)?;
    let mut daemon = Daemon::new(&lab.host, ALLOW, "")?;
    let began = Instant::now();
    daemon.run()?;
    let start = began.elapsed();
    daemon.stop()?;
    let mut moment = 0x2545_f491_u64;
    for round in 0..20 {
        let running = daemon.program()?.limit(Duration::from_secs(60)).spawn()?;
        if round % 4 == 1 {
            lab.host.ip("link add late0 type veth peer name late1\n")?;
        }
        moment ^= moment << 13;
        moment ^= moment >> 7;
        moment ^= moment << 17;
        // From before its first change to well after it is ready.
        let moment = Duration::from_micros(moment % (2 * start.as_micros() as u64));
        thread::sleep(moment);
        running.signal(rustix::process::Signal::KILL)?;
        running.wait()?;
        if round % 4 == 3 {
            let cleaned = daemon.verb(&["cleanup"])?;
            ensure!(cleaned.code() == 0, "{cleaned:?}");
            let late = lab.host.output("sysctl", &["-n", "net.ipv4.conf.late0.rp_filter"])?;
            ensure!(late.trim() == "2", "a device that came meanwhile has {late}");
            lab.host.ip("link del late0\n")?;
        } else if round % 4 == 0 {
            let began = Instant::now();
            daemon.run()?;
            let took = began.elapsed();
            ensure!(took < promised(RESTART), "round {round}: a restart took {took:?}");
            daemon.stop()?;
        } else {
            // Several crashes in a row.
            continue;
        }
        let after = host_state::read(&lab.host)?;
        ensure!(
            before == after,
            "round {round}, killed after {moment:?} of {start:?}:\n{}",
            difference(&before, &after)
        );
    }
    daemon.run()?;
    daemon.kill()?;
    let began = Instant::now();
    daemon.run()?;
    ensure!(began.elapsed() < promised(RESTART), "a restart took {:?}", began.elapsed());
    let ours = host_state::read(&lab.host)?;
    let second = daemon.program()?.run()?;
    ensure!(second.code() == 5 && second.stderr.lines().count() <= 2, "{second:?}");
    let still = host_state::read(&lab.host)?;
    ensure!(ours == still, "a second daemon changed:\n{}", difference(&ours, &still));
    daemon.stop()?;
    let after = host_state::read(&lab.host)?;
    ensure!(before == after, "left behind:\n{}", difference(&before, &after));
    Ok(())
}

/// Others restart their firewall or network manager, or take a device down: within a moment all is
/// as it was.
#[test]
fn what_others_remove_is_made_again() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let before = host_state::read(&lab.host)?;
    let mut old = Login::open(&lab)?;
    let policy =
        format!("policy 1\nblock to {}\nblock to {}\ndefault allow\n", plan::GOOD4, plan::GOOD6);
    let mut daemon = Daemon::start(&lab.host, &policy, "")?;
    let mut ours = host_state::read(&lab.host)?;
    let blocked = [plan::GOOD4, plan::GOOD6].map(|to| SocketAddr::new(to, server.port()));
    #[rustfmt::skip]
    let cases = [
        ("the rules", "ip rule flush; ip rule add pref 32766 lookup main; \
            ip rule add pref 32767 lookup default; \
            ip -6 rule flush; ip -6 rule add pref 32766 lookup main"),
        ("the routes", "ip route flush table 29806; ip -6 route flush table 29806"),
        ("down and up", "ip link set tunneld0 down; ip link set tunneld0 up"),
        ("down", "ip link set tunneld0 down"),
        ("the addresses", "ip address flush dev tunneld0"),
        ("nftables", "nft flush ruleset"),
        ("the name", "ip link set tunneld0 name other0"),
        ("asleep", "nft add table inet tunneld '{ flags dormant; }'"),
        ("the lists", "nft flush set inet tunneld accepted4; nft flush set inet tunneld accepted6"),
    ];
    let mut said = String::new();
    for (turn, (name, lines)) in cases.into_iter().enumerate() {
        if turn == 3 {
            // What is removed more than five times a minute is called contested.
            said += &daemon.stop()?.stderr;
            daemon.run()?;
            ours = host_state::read(&lab.host)?;
        }
        lab.host.output("sh", &["-ec", lines])?;
        if TRACKED && lines.contains("flush ruleset") {
            track_connections(&lab.host)?;
        }
        let began = Instant::now();
        while sorted(&host_state::read(&lab.host)?) != sorted(&ours) {
            let now = host_state::read(&lab.host)?;
            let late = began.elapsed() > Duration::from_secs(5);
            ensure!(!late, "{name}:\n{}", difference(&ours, &now));
        }
        for to in blocked {
            let refused = curl(&lab.host, to)?;
            ensure!(refused.code() == 7, "{name}, {to}: {refused:?}");
        }
        let allowed = curl(&lab.host, SocketAddr::new(plan::GOOD4_SECOND, server.port()))?;
        ensure!(allowed.stdout == PAGE, "{name}: {allowed:?}");
        old.types(name)?;
        Login::open(&lab).context(name)?.close()?;
        ping(&lab.server, plan::HOST4).context(name)?;
        ping(&lab.server, plan::HOST6).context(name)?;
    }
    old.close()?;
    let left = daemon.stop()?;
    said += &left.stderr;
    let complains = ["host-unrestored", "removal-contested"].map(|code| said.contains(code));
    ensure!(left.code() == 0 && complains == [false; 2], "{said}");
    let after = host_state::read(&lab.host)?;
    ensure!(before == after, "left behind:\n{}", difference(&before, &after));
    Ok(())
}

/// The order of rules of one priority, and of tables, is nobody's business.
fn sorted(state: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = state.lines().collect();
    lines.sort_unstable();
    lines
}

/// A service manager may change its mind while the daemon starts.
#[test]
fn told_to_end_at_any_moment_it_puts_everything_back() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let before = host_state::read(&lab.host)?;
    let daemon = Daemon::new(&lab.host, ALLOW, "")?;
    for moment in 0..12 {
        let running = daemon.program()?.limit(Duration::from_secs(60)).spawn()?;
        thread::sleep(Duration::from_millis(5 * moment));
        running.signal(rustix::process::Signal::TERM)?;
        let ended = running.wait()?;
        // Before it has changed anything it may end like any program.
        ensure!([0, 143].contains(&ended.code()), "{ended:?}");
        let after = host_state::read(&lab.host)?;
        ensure!(before == after, "after {moment}:\n{}", difference(&before, &after));
    }
    Ok(())
}

/// Somebody deletes the device, or takes it away: nobody reads the host's packets any more, or their
/// answers pass for a stranger's. Until the end nothing is let out.
#[test]
fn without_its_device_the_daemon_puts_everything_back_and_ends() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let elsewhere = Netns::new("elsewhere")?;
    let away = format!("link set tunneld0 netns {}\n", elsewhere.path());
    let stolen = "link set tunneld0 name other0\nlink add tunneld0 type bridge\n";
    for (how, lines, said) in [
        ("deleted", "link del tunneld0\n", "device"),
        ("moved", &away, "the device tunneld0 is not there any more"),
        ("its name taken", stolen, "the device tunneld0 is called other0 by now"),
    ] {
        let before = host_state::read(&lab.host)?;
        let mut daemon = Daemon::start(&lab.host, ALLOW, "")?;
        // It would have the name back before it is taken.
        daemon.running()?.signal(rustix::process::Signal::STOP)?;
        lab.host.ip(lines)?;
        let to = SocketAddr::new(plan::GOOD4, plan::CLOSED_PORT);
        let quick = Duration::from_millis(100);
        let out = lab.host.run(|| TcpStream::connect_timeout(&to, quick)).err().context("shut")?;
        ensure!(out.kind() != std::io::ErrorKind::ConnectionRefused, "{how}: it got out: {out}");
        daemon.running()?.signal(rustix::process::Signal::CONT)?;
        let ended = daemon.ended()?;
        ensure!(ended.code() == 5 && ended.stderr.contains(said), "{how}: {ended:?}");
        let last = ended.stderr.lines().last().unwrap_or_default();
        ensure!(last.starts_with("error: ") && last.contains("device"), "{how}: {ended:?}");
        if how == "its name taken" {
            lab.host.ip("link del tunneld0\n")?;
        }
        let after = host_state::read(&lab.host)?;
        ensure!(before == after, "{how}, left behind:\n{}", difference(&before, &after));
    }
    Ok(())
}

#[test]
fn what_hinders_a_start_is_one_line_and_changes_nothing() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let daemon = Daemon::new(&lab.host, ALLOW, "")?;
    lab.host.ip("tuntap add tunneld0 mode tun\n")?;
    let before = host_state::read(&lab.host)?;
    let refused = daemon.program()?.run()?;
    ensure!(refused.code() == 5 && refused.stderr.starts_with("error: "), "{refused:?}");
    ensure!(refused.stderr.contains("tunneld0"), "{refused:?}");
    lab.host.ip("tuntap del tunneld0 mode tun\n")?;
    lab.host.ip("rule add priority 100 lookup 7\n")?;
    let foreign = daemon.program()?.run()?;
    ensure!(foreign.code() == 5 && foreign.stderr.contains("100"), "{foreign:?}");
    lab.host.ip("rule del priority 100 lookup 7\n")?;
    lab.host.ip("tuntap add tunneld0 mode tun\n")?;
    // What closes this host is for a later version.
    let open = std::fs::read_to_string(daemon.config())?;
    daemon.files().write_secret("tunneld.toml", &open.replace("\"open\"", "\"closed\""))?;
    let closed = daemon.program()?.run()?;
    ensure!(closed.code() == 2 && closed.stderr.contains("guard.mode"), "{closed:?}");
    ensure!(closed.stderr.contains("not in this version"), "{closed:?}");
    let after = host_state::read(&lab.host)?;
    ensure!(numberless(&before) == numberless(&after), "{}", difference(&before, &after));
    Ok(())
}

#[test]
fn without_root_or_the_device_it_says_so_and_changes_nothing() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let daemon = Daemon::new(&lab.host, ALLOW, "")?;
    let before = host_state::read(&lab.host)?;
    let built = built_tunneld()?;
    let nobody = lab
        .host
        .command(Program::staged(Who::Nobody, &built))
        .who(Who::Nobody)
        .stage(&built)
        .args(["run", "--config"])
        .args([daemon.config()])
        .run()?;
    let missing = daemon.program()?.tun(Tun::Missing).run()?;
    for (refused, why, help) in
        [(nobody, "root", "tunneld exec"), (missing, "/dev/net/tun does not exist", "modprobe tun")]
    {
        let lines: Vec<&str> = refused.stderr.lines().collect();
        ensure!(refused.code() == 5 && lines.len() == 2, "{refused:?}");
        ensure!(lines[0].starts_with("error: ") && lines[0].contains(why), "{refused:?}");
        ensure!(lines[1].starts_with("help: ") && lines[1].contains(help), "{refused:?}");
        let after = host_state::read(&lab.host)?;
        ensure!(before == after, "{why}:\n{}", difference(&before, &after));
    }
    Ok(())
}

/// A namespace that is gone has taken all that the journal names with it.
#[test]
fn what_was_left_in_a_namespace_that_is_gone_hinders_nobody() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let mut daemon = Daemon::start(&lab.host, ALLOW, "")?;
    daemon.kill()?;
    let files = Scratch::new()?;
    let journal = files.write("run/journal", "")?;
    std::fs::copy(daemon.files().join("run/journal"), &journal)?;
    let elsewhere = Netns::new("another")?;
    let clean_up = || {
        let program = elsewhere.command(built_tunneld()?).args(["cleanup", "--socket"]);
        program.args([files.join("run/control.sock")]).run()
    };
    let refused = clean_up()?;
    ensure!(refused.code() == 5 && refused.stderr.contains("namespace"), "{refused:?}");
    ensure!(journal.exists());
    // Nothing else holds it.
    drop((daemon, lab));
    let began = Instant::now();
    while clean_up()?.code() != 0 {
        ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", clean_up()?);
    }
    ensure!(!journal.exists() && files.join("run/journal.gone").exists());
    Ok(())
}

/// What a dead daemon left is undone by a start that is refused for its policy, and by no
/// cleanup of another host's.
#[test]
fn what_a_dead_daemon_left_is_found_by_who_can_undo_it() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let before = host_state::read(&lab.host)?;
    let mut daemon = Daemon::start(&lab.host, ALLOW, "")?;
    daemon.kill()?;
    let elsewhere = lab
        .server
        .command(built_tunneld()?)
        .args(["cleanup", "--socket"])
        .args([daemon.socket()])
        .run()?;
    ensure!(elsewhere.code() == 5 && elsewhere.stderr.contains("namespace"), "{elsewhere:?}");
    daemon.files().write("policy.d/test.policy", "policy 1\nalow tcp\n")?;
    let refused = daemon.program()?.run()?;
    ensure!(refused.code() == 5, "{refused:?}");
    let after = host_state::read(&lab.host)?;
    ensure!(before == after, "left behind:\n{}", difference(&before, &after));
    Ok(())
}

/// Interface numbers count on when a device is made anew.
fn numberless(state: &str) -> String {
    state.lines().map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit())).collect()
}

#[test]
fn only_the_prefixes_that_were_named() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let config = format!("[device]\ncapture = [\"{}/32\"]\n", plan::GOOD4);
    let daemon = Daemon::start(&lab.host, "policy 1\ndefault block\n", &config)?;
    let captured = curl(&lab.host, SocketAddr::new(plan::GOOD4, server.port()))?;
    ensure!(captured.code() == 7, "{captured:?}");
    let beside = curl(&lab.host, SocketAddr::new(plan::GOOD4_SECOND, server.port()))?;
    ensure!(beside.stdout == PAGE, "{beside:?}");
    drop(daemon);
    Ok(())
}

/// A device that whoever wants to may use: nothing is led there.
#[test]
fn nothing_at_all() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = lab()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let before = host_state::read(&lab.host)?;
    let config = "[device]\ncapture = \"none\"\n";
    let mut daemon = Daemon::start(&lab.host, "policy 1\ndefault block\n", config)?;
    let device = |state: &str| -> Vec<String> {
        let others = |line: &&str| !line.contains("tunneld0") && !line.contains("198.18.0.1");
        state.lines().filter(others).map(str::to_owned).collect()
    };
    let ours = host_state::read(&lab.host)?;
    ensure!(device(&ours) == device(&before), "{}", difference(&before, &ours));
    let to = SocketAddr::new(plan::GOOD4, server.port());
    let beside = curl(&lab.host, to)?;
    ensure!(beside.stdout == PAGE, "{beside:?}");
    let args = ["-sS", "--max-time", "5", "--interface", "tunneld0", &format!("http://{to}/")];
    let bound = lab.host.command("curl").args(args).run()?;
    ensure!(bound.code() == 7, "{bound:?}");
    daemon.stop()?;
    let after = host_state::read(&lab.host)?;
    ensure!(before == after, "left behind:\n{}", difference(&before, &after));
    Ok(())
}

fn curl(netns: &Netns, to: SocketAddr) -> Result<tests::lab::Finished> {
    netns.command("curl").args(["-sS", "--max-time", "5"]).args([format!("http://{to}/")]).run()
}

fn ping(netns: &Netns, to: IpAddr) -> Result<()> {
    let done = netns
        .command("ping")
        .args(["-c", "2", "-i", "0.05", "-W", "2", "-n"])
        .args([to.to_string()])
        .run()?;
    ensure!(done.code() == 0, "ping {to}: {done:?}");
    Ok(())
}

fn difference(before: &str, after: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
    let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("- {line}\n"));
    let come = new.iter().filter(|line| !old.contains(line)).map(|line| format!("+ {line}\n"));
    gone.chain(come).collect()
}
