//! `tunneld exec`: a real program prints a page, as root and as nobody; exit
//! codes and signals are the program's; the host is the same before and after.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use tests::endpoints::TcpServer;
use tests::endpoints::page::{PAGE, page};
use tests::lab::{Lab, Netns, Tun, Way, Who, plan, process};
use tests::{require_root, require_tunneld};

fn url(address: IpAddr, port: u16) -> String {
    format!("http://{}/", std::net::SocketAddr::new(address, port))
}

const CURL: [&str; 4] = ["-sS", "--max-time", "10", "-g"];

#[test]
fn curl_prints_a_page() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    for who in Who::ALL {
        for address in [plan::GOOD4, plan::GOOD6, plan::NEAR4, plan::NEAR6] {
            let seen = lab
                .exec("curl")
                .who(who)
                .args(CURL)
                .arg(url(address, server.port()))
                .run()?
                .success()?;
            ensure!(seen.stdout() == PAGE, "{who:?} {address}: {seen:#?}");
        }
    }
    Ok(())
}

#[test]
fn the_host_s_own_addresses_are_reached() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.host, 0, page)?;
    for address in [plan::HOST4, plan::HOST6] {
        let curl = lab.exec("curl").args(CURL).arg(url(address, server.port()));
        let seen = curl.run()?.success()?;
        ensure!(seen.stdout() == PAGE, "{address}: {seen:#?}");
    }
    Ok(())
}

#[test]
fn the_exit_code_is_the_programs() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    for who in Who::ALL {
        let shell = |script: &str| lab.exec("sh").who(who).args(["-c", script]).run();
        shell("exit 0")?.code(0)?;
        shell("exit 7")?.code(7)?;
        shell("kill -KILL $$")?.code(137)?;
        shell("kill -TERM $$")?.code(143)?;
    }
    Ok(())
}

#[test]
fn a_program_that_cannot_be_run_has_its_own_codes() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    for who in Who::ALL {
        lab.exec("no-such-program").who(who).run()?.code(127)?;
        lab.exec("/no/such/program").who(who).run()?.code(127)?;
        lab.exec("/etc/passwd").who(who).run()?.code(126)?;
        lab.exec("/etc").who(who).run()?.code(126)?;
    }
    Ok(())
}

#[test]
fn a_device_that_cannot_be_opened_is_told_with_help() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    for tun in [Tun::Closed, Tun::Missing] {
        let seen = lab.exec("true").who(Who::Nobody).tun(tun).run()?.code(125)?;
        let stderr = &seen.finished.stderr;
        let lines = |start| stderr.lines().filter(|line| line.starts_with(start)).count();
        ensure!(lines("error: ") == 1 && lines("help: ") == 1, "{tun:?}: {stderr}");
        ensure!(stderr.contains("/dev/net/tun"), "{tun:?}: {stderr}");
    }
    Ok(())
}

#[test]
fn a_bad_policy_or_configuration_starts_nothing() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let seen = lab.exec("echo").arg("ran").policy("alow tcp\ndefault allow").run()?.code(125)?;
    ensure!(seen.stdout().is_empty(), "{seen:#?}");
    ensure!(seen.finished.stderr.contains("alow"), "{seen:#?}");
    let seen = lab.exec("echo").arg("ran").config("[limits]\nflowz = 3\n").run()?.code(125)?;
    ensure!(seen.stdout().is_empty(), "{seen:#?}");
    ensure!(seen.finished.stderr.contains("flowz"), "{seen:#?}");
    Ok(())
}

/// One file serves the sandbox and the daemon.
#[test]
fn the_keys_of_the_daemon_are_checked_and_do_nothing() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let config = "\
[device]
name = \"tun7\"
queues = 4
capture = \"none\"
forward = false
[guard]
mode = \"open\"
[control]
socket = \"sock\"
admins = [\"root\"]
";
    let seen = lab.exec("cat").arg("/proc/net/route").config(config).run()?.success()?;
    ensure!(seen.stdout().contains("tun7\t00000000"), "everything leads into it: {seen:#?}");
    for (key, value) in [("guard", "mode = \"closed\""), ("host", "mark = \"0/0\"")] {
        let config = format!("[{key}]\n{value}\n");
        let seen = lab.exec("echo").arg("ran").config(&config).run()?.code(125)?;
        ensure!(seen.stdout().is_empty(), "{seen:#?}");
        ensure!(seen.finished.stderr.contains(":2:8: "), "{seen:#?}");
    }
    Ok(())
}

#[test]
fn the_program_keeps_its_user_and_its_input() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let seen = lab.exec("cat").input("a line\n").run()?.success()?;
    ensure!(seen.stdout() == "a line\n", "{seen:#?}");
    for (who, uid) in [(Who::Root, "0"), (Who::Nobody, "65534")] {
        let seen = lab.exec("sh").who(who).args(["-c", "id -u; id -g"]).run()?.success()?;
        ensure!(seen.stdout() == format!("{uid}\n{uid}\n"), "{who:?}: {seen:#?}");
    }
    let seen = lab
        .exec("sh")
        .who(Who::Nobody)
        .args(["-c", "grep -E 'Cap(Prm|Eff|Amb)' /proc/self/status"])
        .run()?
        .success()?;
    let none = |line: &str| line.ends_with("0000000000000000");
    ensure!(seen.stdout().lines().count() == 3, "{seen:#?}");
    ensure!(seen.stdout().lines().all(none), "no capability expected: {seen:#?}");
    Ok(())
}

#[test]
fn signals_are_passed_on() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    for who in Who::ALL {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            let name = match signal {
                Signal::TERM => "TERM",
                Signal::INT => "INT",
                _ => "HUP",
            };
            let script = format!(
                "trap 'echo got {name}; exit 3' {name}; echo ready; while :; do sleep 0.02; done"
            );
            let shell = lab.exec("sh").who(who).args(["-c", &script]).spawn()?;
            shell.running.wait_for("ready")?;
            shell.running.signal(signal)?;
            let seen = shell.wait()?.code(3)?;
            ensure!(seen.stdout().contains(&format!("got {name}")), "{who:?}: {seen:#?}");
        }
    }
    Ok(())
}

#[test]
fn a_killed_tunneld_takes_its_child_along() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    for who in Who::ALL {
        let shell = lab.exec("sh").who(who).args(["-c", "echo ready; exec sleep 300"]).spawn()?;
        shell.running.wait_for("ready")?;
        let all = process::descendants(shell.running.pid());
        // tunneld and the program at least.
        ensure!(all.len() >= 2, "{all:?}");
        shell.running.signal(Signal::KILL)?;
        let limit = Instant::now() + Duration::from_secs(3);
        loop {
            let left: Vec<_> = all.iter().filter(|&&pid| process::alive(pid)).collect();
            if left.is_empty() {
                break;
            }
            ensure!(Instant::now() < limit, "{who:?}: {left:?} of {all:?} outlived tunneld");
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

#[test]
fn the_hosts_loopback_is_reached_by_its_name_alone() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.host, 0, page)?;
    let get = |options: &[&str], address: &str| -> Result<_> {
        let url = url(address.parse()?, server.port());
        lab.exec("curl").option(options).args(CURL).arg(url).run()
    };
    for (inside, loopback) in [("198.51.100.1", "127.0.0.1"), ("2001:db8:dead::1", "::1")] {
        let seen = get(&["--host-loopback", inside], inside)?.success()?;
        ensure!(seen.stdout() == PAGE, "{inside}: {seen:#?}");
        // Not without the option, and its own loopback is inside's own.
        ensure!(get(&[], inside)?.finished.code() == 7, "{inside} without the option");
        let seen = get(&["--host-loopback", inside], loopback)?;
        ensure!(seen.finished.code() == 7, "{loopback}: {seen:#?}");
    }
    Ok(())
}

#[test]
fn the_host_is_the_same_before_and_after() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let before = Host::of(&lab.host)?;
    for who in Who::ALL {
        lab.exec("curl")
            .who(who)
            .args(CURL)
            .arg(url(plan::GOOD4, server.port()))
            .run()?
            .success()?;
        before.demand(&Host::of(&lab.host)?, "after a run")?;

        let sleep = lab.exec("sh").who(who).args(["-c", "echo ready; exec sleep 300"]).spawn()?;
        sleep.running.wait_for("ready")?;
        before.demand(&Host::of(&lab.host)?, "while one runs")?;
        sleep.running.signal(Signal::KILL)?;
        drop(sleep);
        before.demand(&Host::of(&lab.host)?, "after one was killed")?;
    }
    Ok(())
}

/// What of a host a run must not change.
#[derive(Debug, PartialEq)]
struct Host {
    network: BTreeMap<String, String>,
    etc: BTreeMap<String, (u64, i64, i64, u32, u64)>,
    mounts: String,
}

impl Host {
    fn of(netns: &Netns) -> Result<Self> {
        let mut network = BTreeMap::new();
        for family in ["-4", "-6"] {
            for object in ["address", "rule", "route"] {
                let table: &[&str] = if object == "route" { &["table", "all"] } else { &[] };
                let args = [&[family, object, "show"], table].concat();
                network.insert(args.join(" "), netns.output("ip", &args)?);
            }
        }
        network.insert("link".into(), netns.output("ip", &["link", "show"])?);
        let mut etc = BTreeMap::new();
        walk(Path::new("/etc"), &mut etc);
        Ok(Self { network, etc, mounts: fs::read_to_string("/proc/self/mountinfo")? })
    }

    fn demand(&self, now: &Self, when: &str) -> Result<()> {
        for (what, before) in &self.network {
            let after = &now.network[what];
            ensure!(before == after, "ip {what} {when}: was\n{before}\nis\n{after}");
        }
        let changed: Vec<_> = self
            .etc
            .keys()
            .chain(now.etc.keys())
            .filter(|path| self.etc.get(*path) != now.etc.get(*path))
            .collect();
        ensure!(changed.is_empty(), "/etc {when}: {changed:?}");
        ensure!(self.mounts == now.mounts, "mounts {when}: {}\n{}", self.mounts, now.mounts);
        Ok(())
    }
}

fn walk(directory: &Path, into: &mut BTreeMap<String, (u64, i64, i64, u32, u64)>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(facts) = fs::symlink_metadata(entry.path()) else {
            continue;
        };
        if facts.is_dir() {
            walk(&entry.path(), into);
        }
        let facts = (facts.size(), facts.mtime(), facts.mtime_nsec(), facts.mode(), facts.ino());
        into.insert(entry.path().display().to_string(), facts);
    }
}

/// The control of this file: `--report` and the like exist for tunneld only, so
/// the two ways of a run must be told apart.
#[test]
fn the_way_of_a_run_is_known() {
    let way = Way::of_this_run();
    let asked = std::env::var("TUNNELD_TEST_WAY").is_ok_and(|way| way == "kernel");
    assert_eq!(way == Way::Kernel, asked);
}
