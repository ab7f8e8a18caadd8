//! `run` leads the host's own programs to it, and puts the host's resolver back: each test has
//! files of its own, as `/etc` is this whole host's.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dns::takeover::{KEPT, RESOLV_CONF, REWRITES};
use tests::endpoints::DnsServer;
use tests::lab::daemon::Daemon;
use tests::lab::own_files::{run, with_own_files};
use tests::lab::resolved::{self, stub_knows};
use tests::lab::{Lab, Netns, plan};
use tests::{require_package, require_root, require_tunneld};

const POLICY: &str = "policy 1\ndefault allow\n";
/// Where we answer.
const OURS: &str = "nameserver 198.18.0.2\n";

/// The network's server, which is all that knows the names.
fn server(lab: &Lab, address: IpAddr, name: &str) -> Result<DnsServer> {
    DnsServer::start(&lab.server, address, &[(name, plan::GOOD4)])
}

/// A file that names the network's server, with bytes that only the same file has.
fn original(address: IpAddr) -> String {
    format!("# by hand, \u{fc}\n\nsearch  corp.example\nnameserver {address}\noptions timeout:2\n")
}

/// What a program of the host finds.
fn address_of(host: &Netns, name: &str) -> Result<String> {
    let done = host.command("getent").args(["ahostsv4", name]).run()?;
    Ok(done.stdout.split_whitespace().next().unwrap_or_default().to_owned())
}

fn now() -> Result<String> {
    fs::read_to_string(RESOLV_CONF).context(RESOLV_CONF)
}

fn wait_for(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_so()? {
        ensure!(began.elapsed() < Duration::from_secs(10), "{what} never came: {}", now()?);
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// On a host without systemd-resolved and resolvconf, with `before` in the file.
fn on_a_host(before: &str, work: impl FnOnce(&Lab) -> Result<()> + Send) -> Result<()> {
    let lab = Lab::new()?;
    with_own_files(&lab.host, None, || {
        fs::write("/etc/nsswitch.conf", "hosts: files dns\n")?;
        fs::write(RESOLV_CONF, before)?;
        work(&lab)
    })
}

/// The file is ours while the daemon runs, and `before` when it has ended.
fn is_put_back(before: &str) -> Result<()> {
    let text = now()?;
    ensure!(text == before, "{before} became {text}");
    ensure!(!Path::new(KEPT).exists(), "{KEPT} is left");
    Ok(())
}

#[test]
fn programs_ask_us_and_the_file_is_put_back_byte_for_byte() -> Result<()> {
    require_root!();
    require_tunneld!();
    for takeover in ["auto", "file"] {
        let before = original(plan::NEAR4);
        on_a_host(&before, |lab| {
            let theirs = server(lab, plan::NEAR4, "page.example")?;
            let config = format!("[dns]\ntakeover = \"{takeover}\"\n");
            let mut daemon = Daemon::start(&lab.host, POLICY, &config)?;
            wait_for("our file", || Ok(now()?.contains(OURS)))?;
            let ours = now()?;
            ensure!(!ours.contains(&plan::NEAR4.to_string()), "{ours}");
            ensure!(ours.contains("corp.example") && ours.contains("timeout:2"), "{ours}");
            let found = address_of(&lab.host, "page.example")?;
            ensure!(found == plan::GOOD4.to_string(), "{takeover}: {found}");
            ensure!(theirs.queries() + theirs.connections() > 0, "the network's was not asked");

            // It is killed, and the next one takes what was before it.
            daemon.kill()?;
            ensure!(now()? == ours, "a killed daemon has put back something");
            daemon.run()?;
            wait_for("our file again", || Ok(now()?.contains(OURS)))?;
            ensure!(address_of(&lab.host, "page.example")? == plan::GOOD4.to_string());
            let ended = daemon.stop()?;
            ensure!(ended.code() == 0, "{ended:?}");
            is_put_back(&before)?;

            daemon.run()?;
            wait_for("our file, a third time", || Ok(now()?.contains(OURS)))?;
            daemon.kill()?;
            let cleaned = daemon.verb(&["cleanup"])?;
            ensure!(cleaned.code() == 0 && cleaned.stdout.contains("undone"), "{cleaned:?}");
            is_put_back(&before)?;

            // After a loss of power there is no journal.
            daemon.run()?;
            wait_for("our file, a fourth time", || Ok(now()?.contains(OURS)))?;
            daemon.kill()?;
            fs::remove_file(daemon.files().join("run/journal"))?;
            let cleaned = daemon.verb(&["cleanup"])?;
            ensure!(cleaned.code() == 0, "{cleaned:?}");
            is_put_back(&before)
        })?;
    }
    Ok(())
}

#[test]
fn a_rewrite_by_somebody_else_is_the_new_original() -> Result<()> {
    require_root!();
    require_tunneld!();
    on_a_host(&original(plan::NEAR4), |lab| {
        let _first = server(lab, plan::NEAR4, "page.example")?;
        let mut daemon = Daemon::start(&lab.host, POLICY, "[dns]\ntakeover = \"file\"\n")?;
        wait_for("our file", || Ok(now()?.contains(OURS)))?;

        // As a DHCP client does, of a network whose server knows nothing else.
        let after = original(plan::NEAR4).replace("corp.example", "other.example");
        fs::write("/etc/resolv.conf.new", &after)?;
        fs::rename("/etc/resolv.conf.new", RESOLV_CONF)?;
        wait_for("our file over theirs", || {
            let text = now()?;
            Ok(text.contains(OURS) && text.contains("other.example"))
        })?;
        ensure!(address_of(&lab.host, "page.example")? == plan::GOOD4.to_string());
        let ended = daemon.stop()?;
        ensure!(ended.code() == 0, "{ended:?}");
        ensure!(!ended.stderr.contains("resolv-conf-theirs"), "nobody else wrote: {ended:?}");
        is_put_back(&after)
    })
}

/// Whenever a program reads the file there is a whole one, of ours or of the host's.
#[test]
fn the_file_is_whole_at_every_moment() -> Result<()> {
    require_root!();
    require_tunneld!();
    let before = original(plan::NEAR4);
    on_a_host(&before, |lab| {
        let over = AtomicBool::new(false);
        let reads = thread::scope(|scope| -> Result<u32> {
            // On the files of this thread, which starts it.
            let reader = scope.spawn(|| -> Result<u32> {
                let mut reads = 0;
                while !over.load(Ordering::Relaxed) {
                    reads += 1;
                    let text = now()?;
                    let is_ours = text.contains(OURS) && text.contains("corp.example");
                    ensure!(is_ours || text == before, "read {reads}: {text:?}");
                }
                Ok(reads)
            });
            let takes = || -> Result<()> {
                for _ in 0..3 {
                    let file = "[dns]\ntakeover = \"file\"\n";
                    let mut daemon = Daemon::start(&lab.host, POLICY, file)?;
                    wait_for("our file", || Ok(now()?.contains(OURS)))?;
                    ensure!(daemon.stop()?.code() == 0);
                    is_put_back(&before)?;
                }
                Ok(())
            };
            let taken = takes();
            over.store(true, Ordering::Relaxed);
            let read = reader.join().expect("it doesn't panic");
            taken.and(read)
        })?;
        ensure!(reads > 1_000, "{reads} reads");
        Ok(())
    })
}

/// Whoever keeps writing the file has it in the end, until a reload wants it again.
#[test]
fn a_war_over_the_file_has_a_limit() -> Result<()> {
    require_root!();
    require_tunneld!();
    let before = original(plan::NEAR4);
    on_a_host(&before, |lab| {
        let theirs = server(lab, plan::NEAR4, "page.example")?;
        let mut daemon = Daemon::start(&lab.host, POLICY, "[dns]\ntakeover = \"file\"\n")?;
        for rewrite in 0..=REWRITES {
            wait_for("our file", || Ok(now()?.contains(OURS))).context(rewrite)?;
            fs::write(RESOLV_CONF, &before)?;
        }
        let said = |daemon: &Daemon| -> Result<usize> {
            Ok(daemon.running()?.stderr().matches("resolv-conf-left").count())
        };
        wait_for("the word of it", || Ok(said(&daemon)? == 1))?;
        // And once more, of which nothing is to come.
        fs::write(RESOLV_CONF, &before)?;
        thread::sleep(Duration::from_millis(700));
        ensure!(now()? == before && said(&daemon)? == 1, "{}", now()?);
        let asked = theirs.queries();
        ensure!(address_of(&lab.host, "page.example")? == plan::GOOD4.to_string());
        ensure!(theirs.queries() > asked, "asked of the network's own server");

        let text = fs::read_to_string(daemon.config())?.replace("\"file\"", "\"auto\"");
        daemon.files().write("tunneld.toml", &text)?;
        let done = daemon.verb(&["reload"])?;
        ensure!(done.code() == 0, "{done:?}");
        wait_for("our file again", || Ok(now()?.contains(OURS)))?;
        let ended = daemon.stop()?;
        ensure!(ended.code() == 0, "{ended:?}");
        is_put_back(&before)
    })
}

#[test]
fn what_must_be_left_alone_is() -> Result<()> {
    require_root!();
    require_tunneld!();
    let before = original(plan::NEAR4);
    for (name, config) in [
        ("none", "[dns]\ntakeover = \"none\"\n"),
        ("nothing leads to us", "[device]\ncapture = \"none\"\n[dns]\ntakeover = \"file\"\n"),
    ] {
        on_a_host(&before, |lab| {
            let mut daemon = Daemon::start(&lab.host, POLICY, config)?;
            // Twice as long as a rewrite is waited for.
            thread::sleep(Duration::from_millis(500));
            is_put_back(&before).context(name)?;
            daemon.stop()?;
            is_put_back(&before).context(name)
        })?;
    }
    Ok(())
}

#[test]
fn a_way_that_is_not_there_refuses_the_start() -> Result<()> {
    require_root!();
    require_tunneld!();
    let before = original(plan::NEAR4);
    for (takeover, said) in [("resolved", "systemd-resolved"), ("resolvconf", "resolvconf")] {
        on_a_host(&before, |lab| {
            let config = format!("[dns]\ntakeover = \"{takeover}\"\n");
            let daemon = Daemon::new(&lab.host, POLICY, &config)?;
            let refused = daemon.program()?.run()?;
            ensure!(refused.code() == 5 && refused.stderr.contains(said), "{refused:?}");
            ensure!(lab.host.output("ip", &["link"])?.find("tunneld0").is_none(), "a device");
            is_put_back(&before)
        })?;
    }
    Ok(())
}

/// A file that can't be written is a warning: flows are carried all the same.
#[test]
fn a_file_that_cannot_be_written_is_a_warning() -> Result<()> {
    require_root!();
    require_tunneld!();
    let before = original(plan::NEAR4);
    on_a_host(&before, |lab| {
        run("mount", &["-o", "remount,bind,ro", "/etc"], "")?;
        let mut daemon = Daemon::start(&lab.host, POLICY, "[dns]\ntakeover = \"file\"\n")?;
        // Nobody changes the file: it is tried again all the same.
        thread::sleep(Duration::from_millis(1_500));
        is_put_back(&before)?;
        run("mount", &["-o", "remount,bind,rw", "/etc"], "")?;
        wait_for("our file", || Ok(now()?.contains(OURS)))?;
        ensure!(address_of(&lab.host, "no.example")?.is_empty());
        let ended = daemon.stop()?;
        ensure!(ended.code() == 0, "{ended:?}");
        let said = ended.stderr.matches("resolver-not-taken").count();
        ensure!(said == 1, "said {said} times: {ended:?}");
        is_put_back(&before)
    })
}

/// Daemons of two network namespaces, with locks of their own, and one file.
#[test]
fn one_file_names_one_of_two_daemons() -> Result<()> {
    require_root!();
    require_tunneld!();
    let before = original(plan::NEAR4);
    let elsewhere = Netns::new("elsewhere")?;
    on_a_host(&before, |lab| {
        let _theirs = server(lab, plan::NEAR4, "page.example")?;
        let file = "[dns]\ntakeover = \"file\"\n";
        let mut first = Daemon::start(&lab.host, POLICY, file)?;
        wait_for("the first one's file", || Ok(now()?.contains(OURS)))?;
        let ours = now()?;
        let is_kept = || -> Result<()> {
            ensure!(now()? == ours && fs::read_to_string(KEPT)? == before, "{}", now()?);
            ensure!(address_of(&lab.host, "page.example")? == plan::GOOD4.to_string());
            Ok(())
        };
        // The other one leaves it, from its start to its end.
        let mut second = Daemon::start(&elsewhere, POLICY, file)?;
        is_kept()?;
        second.kill()?;
        let cleaned = second.verb(&["cleanup"])?;
        ensure!(cleaned.code() == 0, "{cleaned:?}");
        is_kept()?;
        second.run()?;
        let ended = second.stop()?;
        ensure!(ended.code() == 0, "{ended:?}");
        ensure!(ended.stderr.matches("resolv-conf-shared").count() == 1, "{ended:?}");
        is_kept()?;

        // The first one is killed: its file names nobody, and the other one takes its place.
        second.run()?;
        first.kill()?;
        let of_second = second.files().path().to_string_lossy().into_owned();
        wait_for("the second one's file", || Ok(now()?.contains(&of_second)))?;
        let theirs = now()?;
        first.run()?;
        ensure!(now()? == theirs && fs::read_to_string(KEPT)? == before, "{}", now()?);
        // And the other way round, when that one ends as it should.
        second.stop()?;
        wait_for("the first one's file again", || Ok(now()? == ours))?;
        let ended = first.stop()?;
        ensure!(ended.code() == 0, "{ended:?}");
        is_put_back(&before)
    })
}

/// Names that we answer ourselves, although the network's server has an address for them.
const BLOCKING: &str = "policy 1\nresolve *.blocked.example using none\ndefault allow\n";

fn blocked_names() -> Vec<String> {
    (0..20).map(|number| format!("n{number}.blocked.example")).collect()
}

/// The network's server with those names and one that is not blocked.
fn network(lab: &Lab) -> Result<DnsServer> {
    let blocked = blocked_names();
    let names = blocked.iter().map(String::as_str).chain(["page.example"]);
    let names: Vec<(&str, IpAddr)> = names.map(|name| (name, plan::GOOD4)).collect();
    DnsServer::start(&lab.server, plan::NEAR4, &names)
}

/// Whether a server is ours.
fn is_ours(server: &serde_json::Value) -> bool {
    let text = server["server"].as_str().unwrap_or_default();
    text.contains("198.18.0.2") || server["device"] == "tunneld0"
}

/// Where the network's servers were learned; ours are never among them.
fn learned(daemon: &Daemon) -> Result<String> {
    let servers = daemon.json(&["dns", "servers"])?;
    ensure!(!servers.iter().any(is_ours), "{servers:?}");
    Ok(servers[0]["from"].as_str().unwrap_or_default().to_owned())
}

/// Waits until resolved's link of ours has our server, or is gone.
fn wait_for_link(is_set: bool) -> Result<()> {
    let told = || {
        let asked = std::process::Command::new("resolvectl").args(["dns", "tunneld0"]).output();
        asked.is_ok_and(|asked| String::from_utf8_lossy(&asked.stdout).contains("198.18.0.2"))
    };
    wait_for("resolved's link", || Ok(told() == is_set))
}

/// The real systemd-resolved through the daemon's whole life.
#[test]
fn systemd_resolved_asks_us() -> Result<()> {
    require_root!();
    require_tunneld!();
    let package = require_package!("systemd-resolved");
    let lab = Lab::new()?;
    let theirs = network(&lab)?;
    with_own_files(&lab.host, Some(&package), || {
        let (_bus, service) = match resolved::start() {
            Ok(started) => started,
            Err(error) => {
                tests::lab::skipped(module_path!(), &format!("no systemd-resolved: {error:#}"));
                return Ok(());
            }
        };
        let mut service = Some(service);
        let near = plan::NEAR4.to_string();
        let set_up = || -> Result<()> {
            run("resolvectl", &["dns", "up0", &near], "")?;
            run("resolvectl", &["default-route", "up0", "yes"], "").map(drop)
        };
        set_up()?;
        let mut names = blocked_names().into_iter();
        // A name that nobody was asked for before.
        let mut blocked =
            || -> Result<bool> { Ok(!stub_knows(&names.next().context("names enough")?)?) };
        ensure!(!blocked()?, "the control");
        let stub = fs::read_link(RESOLV_CONF)?;
        let config = "[dns]\ntakeover = \"auto\"\n";
        let mut daemon = Daemon::start(&lab.host, BLOCKING, config)?;
        wait_for_link(true)?;
        ensure!(blocked()?, "taken at the start");
        ensure!(stub_knows("page.example")? && theirs.queries() > 0, "the network's is asked");
        ensure!(learned(&daemon)?.starts_with("systemd-resolved (link "), "{}", learned(&daemon)?);
        ensure!(fs::read_link(RESOLV_CONF)? == stub, "the stub is all that programs need");

        // It is restarted, and then somebody undoes what it was told.
        drop(service.take());
        service = Some(resolved::start_service()?);
        wait_for_link(true)?;
        set_up()?;
        ensure!(blocked()?, "taken from the new one");
        run("resolvectl", &["revert", "tunneld0"], "")?;
        wait_for_link(true)?;
        ensure!(blocked()?, "taken again");
        ensure!(learned(&daemon)?.starts_with("systemd-resolved (link "));
        // A war has a limit.
        for _ in 0..8 {
            run("resolvectl", &["revert", "tunneld0"], "")?;
            thread::sleep(Duration::from_millis(400));
        }
        wait_for_link(false)?;
        ensure!(!blocked()?, "left to whoever insists");
        let stderr = daemon.running()?.stderr();
        ensure!(stderr.matches("resolved-contested").count() == 1, "{stderr}");

        // Killed: the link is gone, and with it all that was set.
        daemon.kill()?;
        wait_for_link(false)?;
        ensure!(!blocked()?, "of a dead one");
        daemon.run()?;
        wait_for_link(true)?;
        ensure!(blocked()?, "taken by the next one");
        daemon.kill()?;
        let cleaned = daemon.verb(&["cleanup"])?;
        ensure!(cleaned.code() == 0, "{cleaned:?}");
        ensure!(!blocked()?, "cleaned up");

        daemon.run()?;
        wait_for_link(true)?;
        let ended = daemon.stop()?;
        ensure!(ended.code() == 0, "{ended:?}");
        ensure!(!blocked()?, "given back at the end");
        ensure!(fs::read_link(RESOLV_CONF)? == stub && !Path::new(KEPT).exists());
        drop(service);
        Ok(())
    })
}

/// A record of the real programs through the daemon's whole life.
fn a_record(package: &Path, prepare: &str, only: bool) -> Result<()> {
    let lab = Lab::new()?;
    let _theirs = network(&lab)?;
    with_own_files(&lab.host, Some(package), || {
        fs::write("/etc/nsswitch.conf", "hosts: files dns\n")?;
        run("sh", &["-ec", prepare], "")?;
        let near = plan::NEAR4;
        let record = format!("nameserver {near}\nsearch corp.example\n");
        // One of the programs that it tells may fail, which says nothing of the record.
        let _ = run("resolvconf", &["-a", "up0.dhclient"], &record);
        let before = now()?;
        ensure!(before.contains(&format!("nameserver {near}\n")), "{before}");
        let mut names = blocked_names().into_iter();
        let mut blocked = || -> Result<bool> {
            Ok(address_of(&lab.host, &names.next().context("names enough")?)?.is_empty())
        };
        ensure!(!blocked()?, "the control");
        for takeover in ["auto", "resolvconf"] {
            let config = format!("[dns]\ntakeover = \"{takeover}\"\n");
            let mut daemon = Daemon::start(&lab.host, BLOCKING, &config)?;
            let is_taken = || -> Result<()> {
                wait_for("our record", || {
                    let text = now()?;
                    let first = text.lines().find(|line| line.starts_with("nameserver"));
                    let is_first = first == Some(OURS.trim());
                    let completes = text.contains("search corp.example");
                    Ok(is_first && completes && text.contains(&near.to_string()) != only)
                })
            };
            is_taken()?;
            // A program behind a denial asks the next server of the file, if there is one.
            ensure!(!only || blocked()?, "{takeover}");
            ensure!(address_of(&lab.host, "page.example")? == plan::GOOD4.to_string());
            ensure!(learned(&daemon)? == "resolvconf (up0.dhclient)", "{}", learned(&daemon)?);

            daemon.kill()?;
            is_taken()?;
            daemon.run()?;
            is_taken()?;
            let ended = daemon.stop()?;
            ensure!(ended.code() == 0, "{ended:?}");
            ensure!(now()? == before, "{before} became {}", now()?);

            daemon.run()?;
            is_taken()?;
            daemon.kill()?;
            let cleaned = daemon.verb(&["cleanup"])?;
            ensure!(cleaned.code() == 0 && cleaned.stdout.contains("tun.tunneld"), "{cleaned:?}");
            ensure!(now()? == before, "{before} became {}", now()?);
            ensure!(!blocked()?, "{takeover}: put back");
        }
        Ok(())
    })
}

#[test]
fn a_record_of_openresolv_asks_us() -> Result<()> {
    require_root!();
    require_tunneld!();
    let package = require_package!("openresolv");
    a_record(&package, "mkdir -p /run/resolvconf; echo > /etc/resolv.conf", true)
}

#[test]
fn a_record_of_debians_resolvconf_asks_us() -> Result<()> {
    require_root!();
    require_tunneld!();
    let package = require_package!("resolvconf");
    let prepare = "mkdir -p /run/resolvconf/interface; touch /run/resolvconf/enable-updates
                   ln -s ../run/resolvconf/resolv.conf /etc/resolv.conf";
    a_record(&package, prepare, false)
}

/// Programs that resolvconf tells of the change may take their time: what else the daemon follows is
/// followed meanwhile.
#[test]
fn a_slow_resolvconf_holds_up_no_device() -> Result<()> {
    require_root!();
    require_tunneld!();
    let package = require_package!("resolvconf");
    let lab = Lab::new()?;
    with_own_files(&lab.host, Some(&package), || {
        let prepare = "mkdir -p /run/resolvconf/interface; touch /run/resolvconf/enable-updates
            printf '#!/bin/sh\\ntouch /run/began; sleep 3; touch /run/ended\\n' \
              > /etc/resolvconf/update.d/slow
            chmod +x /etc/resolvconf/update.d/slow
            ln -s ../run/resolvconf/resolv.conf /etc/resolv.conf";
        run("sh", &["-ec", prepare], "")?;
        // One of the programs that it tells fails here, which says nothing of the record.
        let _ = run("resolvconf", &["-a", "up0.dhclient"], "nameserver 192.0.2.1\n");
        for file in ["/run/began", "/run/ended"] {
            fs::remove_file(file)?;
        }
        let daemon = Daemon::new(&lab.host, POLICY, "[dns]\ntakeover = \"resolvconf\"\n")?;
        let running = daemon.program()?.limit(Duration::from_secs(60)).spawn()?;
        wait_for("resolvconf", || Ok(Path::new("/run/began").exists()))?;
        lab.host.ip("link add late0 type bridge\n")?;
        wait_for("a rule for the device", || {
            Ok(lab.host.output("ip", &["rule"])?.contains("oif late0"))
        })?;
        ensure!(!Path::new("/run/ended").exists(), "the device had to wait");
        ensure!(now()?.contains(OURS), "{}", now()?);
        running.signal(rustix::process::Signal::TERM)?;
        let ended = running.wait()?;
        ensure!(ended.code() == 0, "{ended:?}");
        ensure!(!now()?.contains(OURS), "{}", now()?);
        Ok(())
    })
}
