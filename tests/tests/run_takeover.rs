//! `run` leads the host's own programs to it, and puts the host's resolver back: each test has
//! files of its own, as `/etc` is this whole host's.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dns::takeover::{KEPT, RESOLV_CONF};
use tests::endpoints::DnsServer;
use tests::lab::daemon::Daemon;
use tests::lab::own_files::with_own_files;
use tests::lab::{Lab, Netns, plan};
use tests::{require_root, require_tunneld};

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
        std::thread::sleep(Duration::from_millis(20));
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
            std::thread::sleep(Duration::from_millis(500));
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
        tests::lab::own_files::run("mount", &["-o", "remount,bind,ro", "/etc"], "")?;
        let mut daemon = Daemon::start(&lab.host, POLICY, "[dns]\ntakeover = \"file\"\n")?;
        let ended = daemon.stop()?;
        ensure!(ended.code() == 0 && ended.stderr.contains("resolver-not-taken"), "{ended:?}");
        is_put_back(&before)
    })
}
