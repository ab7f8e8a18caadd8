//! Names inside `exec`: port 53 is answered by tunneld, which asks the host's
//! own name server, whatever shape the host's resolv.conf has.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::endpoints::page::{PAGE, page};
use tests::endpoints::{DnsServer, TcpServer};
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

/// Puts a copy of /etc in place of the host's, to be changed at will.
const OWN_ETC: &str = "mount -t tmpfs lab /srv; cp -a /etc/. /srv/; mount --move /srv /etc; \
                       rm -f /etc/resolv.conf /etc/nsswitch.conf; \
                       echo 'hosts: files dns' > /etc/nsswitch.conf; ";

fn names(lab: &Lab) -> Result<DnsServer> {
    DnsServer::start(
        &lab.server,
        plan::GOOD4,
        &[
            ("page.example", plan::GOOD4),
            ("page.example", plan::GOOD6),
            ("six.example", plan::GOOD6),
        ],
    )
}

#[test]
fn a_name_of_the_hosts_own_server_is_found() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    let dns = names(&lab)?;
    let own = |text: &str| format!("{OWN_ETC} {text}");
    let shapes = [
        ("a file", own("echo 'nameserver 203.0.113.1' > /etc/resolv.conf")),
        (
            "a link",
            own(
                "mkdir -p /etc/elsewhere; echo 'nameserver 203.0.113.1' > /etc/elsewhere/resolv.conf; \
                 ln -s elsewhere/resolv.conf /etc/resolv.conf",
            ),
        ),
        (
            "a link to where no directory is inside",
            own("mount -t tmpfs lab /run; mkdir -p /run/lab; \
                 echo 'nameserver 203.0.113.1' > /run/lab/resolv.conf; \
                 ln -s /run/lab/resolv.conf /etc/resolv.conf"),
        ),
    ];
    for (shape, script) in shapes {
        for name in ["page.example", "six.example"] {
            let before = dns.queries();
            let seen = lab
                .exec("curl")
                .prepare(&script)
                .args(["-sS", "--max-time", "10"])
                .arg(format!("http://{name}:{}/", server.port()))
                .run()?
                .success()?;
            ensure!(seen.stdout() == PAGE, "{shape}: {name}: {seen:#?}");
            ensure!(dns.queries() > before, "{shape}: {name}: the host's server was not asked");
        }
        let seen = lab.exec("getent").prepare(&script).args(["hosts", "none.example"]).run()?;
        ensure!(seen.finished.code() == 2, "{shape}: a name that does not exist: {seen:#?}");
    }
    Ok(())
}

#[test]
fn a_host_without_a_name_server_still_runs_programs() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, page)?;
    for (shape, script) in [
        ("missing", ""),
        ("dangling", "ln -s /run/no/such/resolv.conf /etc/resolv.conf"),
        ("empty", ": > /etc/resolv.conf"),
    ] {
        let seen = lab
            .exec("curl")
            .prepare(&format!("{OWN_ETC} {script}"))
            .args(["-sS", "--max-time", "10"])
            .arg(format!("http://203.0.113.1:{}/", server.port()))
            .run()?
            .success()?;
        ensure!(seen.stdout() == PAGE, "{shape}: {seen:#?}");
    }
    Ok(())
}

#[test]
fn a_host_that_renames_its_file_takes_nothing_away() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let dns = names(&lab)?;
    // The shell's input is closed once the host has renamed its file.
    let shell = lab
        .exec("sh")
        .prepare(&format!("{OWN_ETC} echo 'nameserver 203.0.113.1' > /etc/resolv.conf"))
        .args(["-c", "echo ready; read line; cat /etc/resolv.conf; getent hosts six.example"])
        .limit(Duration::from_secs(20))
        .spawn_with_open_input()?;
    shell.running.wait_for("ready")?;
    lab.host.output(
        "nsenter",
        &[
            "--mount",
            "--target",
            &shell.running.pid().to_string(),
            "sh",
            "-ec",
            "echo 'nameserver 203.0.113.1' > /etc/resolv.conf.new; \
             mv /etc/resolv.conf.new /etc/resolv.conf",
        ],
    )?;
    shell.running.close_input();
    let seen = shell.wait()?.success()?;
    ensure!(seen.stdout().contains("2001:db8:f1::1"), "{seen:#?}");
    ensure!(dns.queries() > 0, "{seen:#?}");
    Ok(())
}

#[test]
fn names_are_answered_on_the_usual_loopback_stub_too() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let dns = names(&lab)?;
    // A program that reads no resolv.conf but asks systemd-resolved's address.
    let seen = lab
        .exec("probe")
        .prepare(&format!("{OWN_ETC} echo 'nameserver 203.0.113.1' > /etc/resolv.conf"))
        .args(["dns", "127.0.0.53", "53", "page.example"])
        .run()?
        .success()?
        .json()?;
    ensure!(seen["address"] == plan::GOOD4.to_string(), "{seen}");
    ensure!(dns.queries() > 0);
    Ok(())
}
