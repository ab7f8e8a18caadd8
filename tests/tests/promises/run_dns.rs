//! `[dns]` changes while `run` runs, by a reload: where names are answered, of whom, how the
//! host's programs are led there, and how much is kept.

use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dns::takeover::{KEPT, RESOLV_CONF};
use tests::endpoints::{DnsServer, TcpServer, Unbound};
use tests::lab::daemon::Daemon;
use tests::lab::own_files::with_own_files;
use tests::lab::{Lab, host_state, plan};
use tests::{require_root, require_tunneld};

/// Names that we answer ourselves, and nobody else denies.
const POLICY: &str = "policy 1\nresolve *.blocked.example using none\ndefault allow\n";

fn kdig(lab: &Lab, server: IpAddr, name: &str, more: &[&str]) -> Result<String> {
    let at = format!("@{server}");
    let base = [&at, "+timeout=2", "+retry=0", name];
    Ok(lab.host.command("kdig").args(base).args(more).run()?.stdout)
}

/// Replaces lines of the configuration and reloads.
fn change(daemon: &Daemon, from: &str, to: &str) -> Result<tests::lab::Finished> {
    let text = fs::read_to_string(daemon.config())?;
    ensure!(text.contains(from), "no `{from}` in {text}");
    daemon.files().write("tunneld.toml", &text.replace(from, to))?;
    daemon.verb(&["reload"])
}

fn changed(daemon: &Daemon, from: &str, to: &str) -> Result<()> {
    let done = change(daemon, from, to)?;
    ensure!(done.code() == 0, "{to}: {done:?}");
    Ok(())
}

/// Whether the other side has ended a connection.
fn is_cut(stream: &mut TcpStream) -> Result<bool> {
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    match stream.read(&mut [0; 1]) {
        Ok(length) => Ok(length == 0),
        Err(error) => Ok(!matches!(
            error.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        )),
    }
}

#[test]
fn every_port_53_is_ours_and_then_not() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let theirs = DnsServer::start(&lab.server, plan::GOOD4, &[("n.blocked.example", plan::NEAR4)])?;
    let quiet = TcpServer::start(&lab.server, 0, |stream| {
        let mut byte = [0];
        // Until the other side ends it.
        stream.read(&mut byte).map(|length| length as u64)
    })?;
    let config = "[dns]\ntakeover = \"none\"\nintercept = \"none\"\n";
    let mut daemon = Daemon::start(&lab.host, POLICY, config)?;
    let connect = |port: u16| -> Result<TcpStream> {
        let to = SocketAddr::new(plan::GOOD4, port);
        Ok(lab.host.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?)
    };
    let mut other = connect(quiet.port())?;
    for (intercept, is_ours) in [("none", false), ("all", true), ("none", false)] {
        if daemon.status().is_ok() && fs::read_to_string(daemon.config())?.contains("intercept") {
            let now = if is_ours { "none" } else { "all" };
            let from = format!("intercept = \"{now}\"");
            let to = format!("intercept = \"{intercept}\"");
            let mut open = connect(53)?;
            if fs::read_to_string(daemon.config())?.contains(&from) {
                let text = fs::read_to_string(daemon.config())?.replace(&from, &to);
                daemon.files().write("tunneld.toml", &text)?;
                // Asked first, it says what it will do, and does nothing.
                let would = daemon.verb(&["reload", "--dry-run"])?;
                ensure!(would.code() == 1, "{would:?}");
                ensure!(!is_cut(&mut open)?, "{intercept}: a dry run");
                let done = daemon.verb(&["reload"])?;
                ensure!(done.code() == 0, "{done:?}");
                ensure!(is_cut(&mut open)?, "{intercept}: a connection that leads elsewhere");
            }
        }
        let before = theirs.queries();
        for more in [&[][..], &["+tcp"]] {
            let seen = kdig(&lab, plan::GOOD4, "n.blocked.example", more)?;
            ensure!(seen.contains("NXDOMAIN") == is_ours, "{intercept} {more:?}: {seen}");
        }
        let asked = theirs.queries() - before;
        ensure!(asked == u64::from(!is_ours), "{intercept}: {asked} over UDP");
    }
    ensure!(!is_cut(&mut other)?, "a flow that has nothing to do with it");
    drop(other);
    daemon.stop()?;
    Ok(())
}

#[test]
fn names_are_answered_at_another_address() -> Result<()> {
    require_root!();
    require_tunneld!();
    let (old, new): (IpAddr, IpAddr) = ("198.18.0.2".parse()?, "198.18.7.7".parse()?);
    for capture in ["\"all\"", "[\"203.0.113.0/24\"]"] {
        let lab = Lab::new()?;
        let _theirs = DnsServer::start(&lab.server, plan::NEAR4, &[("page.example", plan::GOOD4)])?;
        with_own_files(&lab.host, None, || {
            fs::write("/etc/nsswitch.conf", "hosts: files dns\n")?;
            let original = format!("nameserver {}\n", plan::NEAR4);
            fs::write(RESOLV_CONF, &original)?;
            let before = host_state::read(&lab.host)?;
            let config = format!(
                "[device]\ncapture = {capture}\n\
                 [dns]\ntakeover = \"file\"\naddress = [\"{old}\"]\n"
            );
            let mut daemon = Daemon::start(&lab.host, POLICY, &config)?;
            let is_at = |ours: IpAddr, other: IpAddr| -> Result<()> {
                let file = fs::read_to_string(RESOLV_CONF)?;
                ensure!(file.contains(&format!("nameserver {ours}\n")), "{ours}: {file}");
                ensure!(!file.contains(&other.to_string()), "{ours}: {file}");
                let seen = kdig(&lab, ours, "n.blocked.example", &[])?;
                ensure!(seen.contains("NXDOMAIN"), "{ours}: {seen}");
                let seen = kdig(&lab, other, "n.blocked.example", &[])?;
                ensure!(!seen.contains("NXDOMAIN"), "{ours}: {seen}");
                let found = lab.host.command("getent").args(["ahostsv4", "page.example"]).run()?;
                ensure!(found.stdout.contains(&plan::GOOD4.to_string()), "{ours}: {found:?}");
                if capture != "\"all\"" {
                    let routes = lab.host.output("ip", &["route", "show", "table", "29806"])?;
                    ensure!(routes.contains(&format!("{ours} dev tunneld0")), "{routes}");
                    ensure!(!routes.contains(&other.to_string()), "{routes}");
                }
                let servers = daemon.json(&["dns", "servers"])?;
                let text = format!("{servers:?}");
                ensure!(!text.contains(&ours.to_string()), "{text}");
                ensure!(text.contains(&plan::NEAR4.to_string()), "{text}");
                Ok(())
            };
            is_at(old, new)?;
            let to = |ip: IpAddr| format!("address = [\"{ip}\"]");
            changed(&daemon, &to(old), &to(new))?;
            is_at(new, old)?;
            // Whoever comes after a kill knows of it.
            daemon.kill()?;
            let cleaned = daemon.verb(&["cleanup"])?;
            ensure!(cleaned.code() == 0, "{cleaned:?}");
            ensure!(fs::read_to_string(RESOLV_CONF)? == original);
            ensure!(host_state::read(&lab.host)? == before, "behind a kill");
            daemon.run()?;
            let daemon_is_at = |text: &str| -> Result<()> {
                let file = fs::read_to_string(RESOLV_CONF)?;
                ensure!(file.contains(text), "{file}");
                Ok(())
            };
            daemon_is_at("198.18.7.7")?;
            changed(&daemon, &to(new), &to(old))?;
            daemon_is_at("198.18.0.2")?;
            if capture != "\"all\"" {
                let refused = change(&daemon, &to(old), "address = [\"2001:2::7\"]")?;
                ensure!(
                    refused.code() == 5 && refused.stderr.contains("dns.address"),
                    "{refused:?}"
                );
                daemon_is_at("198.18.0.2")?;
            }
            let ended = daemon.stop()?;
            ensure!(ended.code() == 0, "{ended:?}");
            ensure!(fs::read_to_string(RESOLV_CONF)? == original && !Path::new(KEPT).exists());
            let after = host_state::read(&lab.host)?;
            ensure!(after == before, "{before}\nbecame {after}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_hosts_programs_are_led_to_us_and_then_not() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let names = [("n.blocked.example", plan::GOOD4), ("page.example", plan::GOOD4)];
    let _theirs = DnsServer::start(&lab.server, plan::NEAR4, &names)?;
    with_own_files(&lab.host, None, || {
        fs::write("/etc/nsswitch.conf", "hosts: files dns\n")?;
        let original = format!("nameserver {}\noptions timeout:1\n", plan::NEAR4);
        fs::write(RESOLV_CONF, &original)?;
        let mut daemon = Daemon::start(&lab.host, POLICY, "[dns]\ntakeover = \"none\"\n")?;
        let blocked = || -> Result<bool> {
            let found = lab.host.command("getent").args(["ahostsv4", "n.blocked.example"]).run()?;
            Ok(found.stdout.is_empty())
        };
        let text = || fs::read_to_string(RESOLV_CONF).context(RESOLV_CONF);
        ensure!(!blocked()? && text()? == original, "the control");
        let key = |way: &str| format!("takeover = \"{way}\"");
        for (from, to) in [("none", "file"), ("file", "auto"), ("auto", "none"), ("none", "auto")] {
            changed(&daemon, &key(from), &key(to))?;
            ensure!(blocked()? == (to != "none"), "{to}: {}", text()?);
            ensure!((text()? == original) == (to == "none"), "{to}: {}", text()?);
            ensure!(Path::new(KEPT).exists() == (to != "none"), "{to}");
        }
        // A way that isn't there is refused, and all is as it was.
        let ours = text()?;
        for way in ["resolved", "resolvconf"] {
            let refused = change(&daemon, &key("auto"), &key(way))?;
            ensure!(refused.code() == 5 && refused.stderr.contains(way), "{refused:?}");
            ensure!(text()? == ours && blocked()?, "{way}");
            let text = fs::read_to_string(daemon.config())?.replace(&key(way), &key("auto"));
            daemon.files().write("tunneld.toml", &text)?;
        }
        // What follows it is the new way's: a rewrite is answered.
        fs::write(RESOLV_CONF, &original)?;
        let began = Instant::now();
        while !text()?.contains("198.18.0.2") {
            ensure!(began.elapsed() < Duration::from_secs(5), "{}", text()?);
            std::thread::sleep(Duration::from_millis(20));
        }
        changed(&daemon, &key("auto"), &key("none"))?;
        fs::write(RESOLV_CONF, "nameserver 192.0.2.9\n")?;
        std::thread::sleep(Duration::from_millis(600));
        ensure!(text()? == "nameserver 192.0.2.9\n", "it is nobody's business: {}", text()?);
        let ended = daemon.stop()?;
        ensure!(ended.code() == 0, "{ended:?}");
        ensure!(text()? == "nameserver 192.0.2.9\n" && !Path::new(KEPT).exists());
        Ok(())
    })
}

#[test]
fn a_cache_of_another_size_keeps_what_fits() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let more = " local-zone: \"many.example.\" redirect\n \
                local-data: \"many.example. 300 A 203.0.113.1\"";
    let upstream = Unbound::with(&lab.server, plan::GOOD4_SECOND, None, more)?;
    let config = format!(
        "[dns]\ntakeover = \"none\"\nupstream = [\"{}\"]\ncache = 100\n",
        plan::GOOD4_SECOND
    );
    let daemon = Daemon::start(&lab.host, POLICY, &config)?;
    let ask = |name: &str| -> Result<usize> {
        let before = upstream.asked(name)?;
        let seen = kdig(&lab, "198.18.0.2".parse()?, name, &[])?;
        ensure!(seen.contains("203.0.113.1\n"), "{name}: {seen}");
        Ok(upstream.asked(name)? - before)
    };
    for name in ["a.many.example", "b.many.example"] {
        ensure!(ask(name)? == 1 && ask(name)? == 0, "{name}");
    }
    for size in ["5000", "100", "64"] {
        let now = fs::read_to_string(daemon.config())?;
        let now = now.lines().find(|line| line.starts_with("cache")).context("a size")?.to_owned();
        changed(&daemon, &now, &format!("cache = {size}"))?;
        ensure!(ask("a.many.example")? == 0 && ask("b.many.example")? == 0, "{size}");
    }
    changed(&daemon, "cache = 64", "cache = 0")?;
    ensure!(ask("a.many.example")? == 1 && ask("a.many.example")? == 1, "nothing is kept");
    changed(&daemon, "cache = 0", "cache = 10")?;
    ensure!(ask("b.many.example")? == 1 && ask("b.many.example")? == 0, "kept again");
    Ok(())
}

/// `exec` asks whom a program outside would ask, also when that changes.
#[test]
fn exec_follows_the_hosts_resolv_conf() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let zones = |before: &str, after: &str| {
        format!(
            " local-zone: \"before.example.\" static\n local-zone: \"after.corp.\" static\n\
             {before}{after}"
        )
    };
    let has = |name: &str| format!(" local-data: \"{name}. 300 A {}\"\n", plan::GOOD4);
    let _before =
        Unbound::with(&lab.server, plan::NEAR4, None, &zones(&has("before.example"), ""))?;
    let after =
        Unbound::with(&lab.server, plan::GOOD4_SECOND, None, &zones("", &has("after.corp")))?;
    // resolved's file, behind a link, and then a file in the link's place.
    for (name, replaced) in [("written", false), ("replaced", true)] {
        with_own_files(&lab.host, None, || {
            fs::write("/etc/nsswitch.conf", "hosts: files dns\n")?;
            fs::create_dir_all("/run/systemd/resolve")?;
            let file = "/run/systemd/resolve/resolv.conf";
            fs::write(file, format!("nameserver {}\n", plan::NEAR4))?;
            std::os::unix::fs::symlink(format!("..{file}"), RESOLV_CONF)?;
            let script = "getent ahostsv4 before.example; echo asked
                n=0
                until getent ahostsv4 after.corp || [ $n = 80 ]; do sleep 0.1; n=$((n + 1)); done
                getent ahostsv4 before.example || echo gone";
            let inside = lab.exec("sh").args(["-c", script]).spawn()?;
            inside.running.wait_for("asked")?;
            let before = inside.running.stdout();
            ensure!(before.contains(&plan::GOOD4.to_string()), "{name}: {before}");
            let text = format!("nameserver {}\n", plan::GOOD4_SECOND);
            if replaced {
                fs::write("/etc/resolv.conf.new", text)?;
                fs::rename("/etc/resolv.conf.new", RESOLV_CONF)?;
            } else {
                fs::write(file, text)?;
            }
            let outcome = inside.wait()?.success()?;
            let (_, later) = outcome.stdout().split_once("asked").context("asked")?;
            ensure!(later.contains(&plan::GOOD4.to_string()), "{name}: {later}");
            ensure!(later.contains("gone"), "{name}: the old one is asked still: {later}");
            Ok(())
        })?;
    }
    ensure!(after.asked("after.corp")? > 0);
    Ok(())
}
