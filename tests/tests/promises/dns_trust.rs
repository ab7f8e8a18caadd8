//! Servers that prove who they are, through the program's configuration: over TLS, HTTPS and QUIC,
//! with a `ca` of one's own, and with an `identity` for those that ask for one. A fault sends no
//! question, and is named.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::both::kdig_in;
use tests::endpoints::dns_trust::{Signed, wants_certificates};
use tests::endpoints::{Authority, DoqServer, Unbound, Valid};
use tests::lab::daemon::Daemon;
use tests::lab::own_files::with_own_files;
use tests::lab::scratch::Scratch;
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

const NAME: &str = "www.corp.example";
const IDLE: Duration = Duration::from_secs(30);

/// The three ways to ask a server at an address, and the words for them.
fn servers(address: impl std::fmt::Display) -> [(&'static str, String); 3] {
    [
        ("tls", format!("tls://{address}#dns.corp.example")),
        ("https", format!("https://{address}/dns-query#dns.corp.example")),
        ("quic", format!("quic://{address}:{}#dns.corp.example", DoqServer::PORT)),
    ]
}

/// A server that is asked in all three ways.
struct All {
    unbound: Unbound,
    quic: DoqServer,
}

impl All {
    fn start(lab: &Lab, address: std::net::IpAddr, signed: &Signed) -> Result<Self> {
        let unbound = Unbound::start(&lab.server, address, Some(signed))?;
        let behind = SocketAddr::new(address, 53);
        let quic = DoqServer::start(&lab.server, address, behind, signed, IDLE)?;
        Ok(Self { unbound, quic })
    }
}

/// Lines of tunneld.toml.
fn resolver(name: &str, server: &str, more: &str) -> String {
    format!("[[resolver]]\nname = \"{name}\"\nservers = [\"{server}\"]\n{more}\n")
}

/// What a daemon says when each of its resolvers is asked.
fn side_by_side(lab: &Lab, names: &[String], config: &str) -> Result<Vec<Value>> {
    let mut daemon = Daemon::start(&lab.host, "policy 1\ndefault allow\n", config)?;
    let mut args = vec!["dns", "query", NAME];
    names.iter().for_each(|name| args.extend(["--using", name.as_str()]));
    let mut told = daemon.json(&args)?;
    // It lets the host go: `exec` comes next.
    ensure!(daemon.stop()?.code() == 0);
    ensure!(told.len() == names.len() + 1, "{told:?}");
    Ok(told.split_off(1))
}

fn is_answered(answer: &Value, transport: &str) -> bool {
    answer["records"][0]["data"] == "10.1.2.3"
        && answer["transport"] == transport
        && answer["answered_by"][0]["transport"] == transport
}

/// What `exec` answers with this resolver.
fn in_exec(lab: &Lab, config: &str) -> Result<String> {
    let exec = lab.exec("kdig").config(config);
    let exec = exec.policy("resolve *.corp.example using corp\ndefault allow");
    Ok(kdig_in(exec, NAME)?.0)
}

#[test]
fn a_server_is_asked_only_with_a_right_certificate() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let (ours, stranger) = (Authority::new("ours")?, Authority::new("a stranger")?);
    let files = Scratch::new()?;
    let ca = format!("ca = \"{}\"", files.write("ca.pem", &ours.pem())?.display());

    let right = ours.sign(&["dns.corp.example"], Valid::Now)?;
    let right = All::start(&lab, plan::GOOD4, &right)?;
    let expired = ours.sign(&["dns.corp.example"], Valid::Before)?;
    let expired = All::start(&lab, plan::GOOD4_SECOND, &expired)?;
    let other = ours.sign(&["other.example"], Valid::Now)?;
    let other = All::start(&lab, plan::NEAR4, &other)?;
    let unknown = stranger.sign(&["dns.corp.example"], Valid::Now)?;
    let unknown = All::start(&lab, "192.0.2.130".parse()?, &unknown)?;

    // Whom, with which roots, and the fault.
    let (mut config, mut names, mut wanted) = (String::new(), Vec::new(), Vec::new());
    for (what, address, ca, fault) in [
        ("right", plan::GOOD4, ca.as_str(), None),
        ("host", plan::GOOD4, "", Some("certificate-unknown-issuer")),
        ("expired", plan::GOOD4_SECOND, ca.as_str(), Some("certificate-expired")),
        ("other", plan::NEAR4, ca.as_str(), Some("certificate-wrong-name")),
        ("unknown", "192.0.2.130".parse()?, ca.as_str(), Some("certificate-unknown-issuer")),
    ] {
        for (transport, server) in servers(address) {
            names.push(format!("{what}-{transport}"));
            config += &resolver(&format!("{what}-{transport}"), &server, ca);
            wanted.push((transport, server, fault));
        }
    }
    let told = side_by_side(&lab, &names, &config)?;
    for (answer, (transport, server, fault)) in told.iter().zip(&wanted) {
        match fault {
            None => ensure!(is_answered(answer, transport), "{answer}"),
            Some(fault) => {
                let tried = &answer["tries"][0];
                ensure!(tried["fault"] == *fault, "{server}: {answer}");
                ensure!(tried["server"] == **server && answer["code"].is_null(), "{answer}");
                ensure!(answer["answered_by"] == serde_json::json!([]), "{answer}");
            }
        }
    }
    // In `exec` the same, for an app.
    for (transport, server) in servers(plan::GOOD4) {
        let seen = in_exec(&lab, &resolver("corp", &server, &ca))?;
        ensure!(seen.contains("10.1.2.3"), "{transport}: {seen}");
    }
    for address in [plan::GOOD4_SECOND, plan::NEAR4] {
        for (transport, server) in servers(address) {
            let seen = in_exec(&lab, &resolver("corp", &server, &ca))?;
            ensure!(
                seen.contains("status: SERVFAIL") && seen.contains("EDE: 22"),
                "{transport}: {seen}"
            );
        }
    }
    // Three transports in `run`, and in `exec`; what comes over QUIC comes to unbound over TCP.
    ensure!(right.unbound.asked(NAME)? == 6, "{:?}", right.unbound.log()?);
    ensure!(right.quic.questions() == 2, "{}", right.quic.questions());
    for (what, server) in [("expired", expired), ("name", other), ("issuer", unknown)] {
        let log = server.unbound.log()?;
        ensure!(log.is_empty() && server.quic.questions() == 0, "{what} saw a name: {log:?}");
    }
    Ok(())
}

/// Without a `ca` it is the host's roots that count, and those of the network's own servers too.
#[test]
fn whom_the_host_trusts_is_asked() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = &Lab::new()?;
    let ours = Authority::new("ours")?;
    let signed = ours.sign(&["dns.corp.example"], Valid::Now)?;
    let server = All::start(lab, plan::GOOD4, &signed)?;
    with_own_files(&lab.host, None, move || {
        for (trusted, asked) in [(false, 0), (true, 4)] {
            if trusted {
                let roots = Path::new("/etc/ssl/certs/ca-certificates.crt");
                let before = std::fs::read_to_string(roots).unwrap_or_default();
                std::fs::write(roots, format!("{before}\n{}", ours.pem()))?;
            }
            let (mut config, mut names) = (String::new(), vec!["upstream".to_owned()]);
            for (transport, server) in servers(plan::GOOD4) {
                config += &resolver(transport, &server, "");
                names.push(transport.to_owned());
            }
            let upstream = &servers(plan::GOOD4)[0].1;
            config += &format!("[dns]\nupstream = [\"{upstream}\"]\n");
            let told = side_by_side(lab, &names, &config)?;
            for (answer, transport) in told.iter().zip(["tls", "tls", "https", "quic"]) {
                let fault = &answer["tries"][0]["fault"];
                let unknown = *fault == "certificate-unknown-issuer";
                ensure!(is_answered(answer, transport) == trusted, "{trusted}: {answer}");
                ensure!(unknown != trusted, "{trusted}: {answer}");
            }
            ensure!(server.unbound.asked(NAME)? == asked, "{:?}", server.unbound.log()?);
        }
        Ok(())
    })
}

#[test]
fn a_server_that_asks_who_we_are_is_shown_our_identity() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let (ours, stranger) = (Authority::new("ours")?, Authority::new("a stranger")?);
    let files = Scratch::new()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = files.write(name, text)?;
        // A key that others may read is refused.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(path.display().to_string())
    };
    let ca = format!("ca = \"{}\"", file("ca.pem", &ours.pem())?);
    let known = file("known.pem", &ours.sign(&["client"], Valid::Now)?.whole())?;
    let unknown = file("unknown.pem", &stranger.sign(&["client"], Valid::Now)?.whole())?;

    // unbound speaks HTTP/2 in the clear at 8080; who a client is others ask.
    let plain = " http-notls-downstream: yes\n https-port: 8080\n interface: 203.0.113.1@8080\n \
                 http-endpoint: \"/dns-query\"";
    let unbound = Unbound::with(&lab.server, plan::GOOD4, None, plain)?;
    let signed = ours.sign(&["dns.corp.example"], Valid::Now)?;
    let at = |port| SocketAddr::new(plan::GOOD4, port);
    let _tls = wants_certificates(&lab.server, at(853), at(53), &signed, &ours)?;
    let _https = wants_certificates(&lab.server, at(443), at(8080), &signed, &ours)?;
    let quic = DoqServer::start_for(&lab.server, plan::GOOD4, at(53), &signed, IDLE, Some(&ours))?;

    let (mut config, mut names) = (String::new(), Vec::new());
    for (who, identity) in [("known", Some(&known)), ("unknown", Some(&unknown)), ("nobody", None)]
    {
        for (transport, server) in servers(plan::GOOD4) {
            let identity =
                identity.map(|path| format!("identity = \"{path}\"")).unwrap_or_default();
            names.push(format!("{who}-{transport}"));
            config +=
                &resolver(&format!("{who}-{transport}"), &server, &format!("{ca}\n{identity}"));
        }
    }
    let told = side_by_side(&lab, &names, &config)?;
    for (name, answer) in names.iter().zip(&told) {
        let (who, transport) = name.split_once('-').context("a name")?;
        if who == "known" {
            ensure!(is_answered(answer, transport), "{name}: {answer}");
        } else {
            // They turn us away: no fault of their certificate.
            let fault = answer["tries"][0]["fault"].as_str().unwrap_or_default();
            ensure!(["tls", "closed"].contains(&fault), "{name}: {answer}");
            ensure!(answer["code"].is_null(), "{name}: {answer}");
        }
    }
    ensure!(unbound.asked(NAME)? == 3, "{:?}", unbound.log()?);
    for (transport, server) in servers(plan::GOOD4) {
        let with = resolver("corp", &server, &format!("{ca}\nidentity = \"{known}\""));
        let seen = in_exec(&lab, &with)?;
        ensure!(seen.contains("10.1.2.3"), "{transport}: {seen}");
        let seen = in_exec(&lab, &resolver("corp", &server, &ca))?;
        ensure!(seen.contains("status: SERVFAIL"), "{transport}: {seen}");
    }
    ensure!(unbound.asked(NAME)? == 6, "{:?}", unbound.log()?);
    ensure!(quic.questions() == 2, "{}", quic.questions());

    std::fs::set_permissions(Path::new(&known), Permissions::from_mode(0o644))?;
    let with = resolver("corp", &servers(plan::GOOD4)[0].1, &format!("identity = \"{known}\""));
    let mut daemon = Daemon::new(&lab.host, "policy 1\ndefault allow\n", &with)?;
    let done = daemon.program()?.run()?;
    ensure!(done.code() == 2 && done.stderr.contains("others may read"), "{done:?}");
    ensure!(daemon.run().is_err());
    Ok(())
}
