//! Names by hand, of a daemon that runs: real servers, whose logs say who saw which name.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::endpoints::{Authority, Unbound, Valid};
use tests::lab::daemon::Daemon;
use tests::lab::scratch::Scratch;
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

const NAME: &str = "who.corp.example";

/// Knows [`NAME`] by another address than others do.
fn unbound(
    lab: &Lab,
    address: std::net::IpAddr,
    signed: Option<&tests::endpoints::dns_trust::Signed>,
    data: &str,
) -> Result<Unbound> {
    let more = format!(" local-data: \"{NAME}. 300 A {data}\"\n");
    Unbound::with(&lab.server, address, signed, &more)
}

fn data(answer: &Value) -> Vec<&str> {
    let records = answer["records"].as_array().map_or(&[][..], Vec::as_slice).iter();
    records.filter_map(|record| record["data"].as_str()).collect()
}

/// Both answers stand side by side, with the plan's verdict; a certificate at fault is named, and
/// no server sees a name but those that are asked.
#[test]
fn resolvers_are_asked_side_by_side() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    let ca = Authority::new("ours")?;
    let signed = ca.sign(&["dns.corp.example"], Valid::Now)?;
    let corp = unbound(&lab, plan::GOOD4, Some(&signed), "10.1.2.9")?;
    let network = unbound(&lab, plan::GOOD4_SECOND, None, "203.0.113.9")?;
    let files = Scratch::new()?;
    let ca = files.write("ca.pem", &ca.pem())?;
    let resolver = |name: &str, more: &str| {
        let server = format!("tls://{}#dns.corp.example", plan::GOOD4);
        format!("[[resolver]]\nname = \"{name}\"\nservers = [\"{server}\"]\n{more}\n")
    };
    let config = format!(
        "[dns]\ntakeover = \"none\"\nupstream = [\"{}\"]\n{}{}",
        plan::GOOD4_SECOND,
        resolver("corp", &format!("ca = \"{}\"", ca.display())),
        resolver("stranger", ""),
    );
    let policy = "policy 1\nresolve *.corp.example using corp\ndefault allow\n";
    let daemon = Daemon::start(&lab.host, policy, &config)?;
    let query = |more: &[&str]| daemon.json(&[&["dns", "query", NAME], more].concat());

    // What an app gets is the plan's, and then the cache's.
    let place = format!("{}:853", plan::GOOD4);
    for from in ["servers", "cache"] {
        let told = query(&[])?;
        let [plan, answer] = &told[..] else { anyhow::bail!("{told:?}") };
        ensure!(plan["resolvers"] == json!(["corp"]) && plan["rule"] == "test.policy:2", "{plan}");
        ensure!(data(answer) == ["10.1.2.9"] && answer["from"] == from, "{answer}");
        let by = &answer["answered_by"][0];
        let (server, transport) = match from {
            "servers" => (json!(place), json!("tls")),
            _ => (Value::Null, Value::Null),
        };
        ensure!(answer["server"] == server && answer["transport"] == transport, "{answer}");
        ensure!(by["server"] == server && by["transport"] == transport, "{answer}");
        ensure!(by.is_null() || by["resolver"] == "corp", "{answer}");
        let took = |object: &Value| object["took_us"].as_u64().unwrap_or_default();
        ensure!(by.is_null() || (1..=took(answer)).contains(&took(by)), "{answer}");
    }
    ensure!(daemon.json(&["dns", "flush"])?[0]["count"] == 1);
    for want in [&*format!("server   {place} tls"), "server   none: from the cache"] {
        let done = daemon.verb(&["dns", "query", NAME])?;
        ensure!(done.stdout.contains(want), "{want}: {done:?}");
    }
    ensure!((corp.asked(NAME)?, network.asked(NAME)?) == (2, 0), "the plan names corp alone");

    let told = query(&["--using", "corp", "--using", "upstream"])?;
    let [_, first, second] = &told[..] else { anyhow::bail!("{told:?}") };
    ensure!(data(first) == ["10.1.2.9"] && first["transport"] == "tls", "{first}");
    ensure!(data(second) == ["203.0.113.9"] && second["transport"] == "udp", "{second}");
    ensure!(first["server"] == place && first["answered_by"][0]["server"] == place, "{first}");
    ensure!((corp.asked(NAME)?, network.asked(NAME)?) == (3, 1), "each once");

    let done = daemon.verb(&["dns", "query", NAME, "--using", "corp", "--using", "upstream"])?;
    ensure!(done.code() == 0, "{done:?}");
    let line = done.stdout.lines().find(|line| line.starts_with("answer")).context("answers")?;
    ensure!(line.contains("A 10.1.2.9 (") && line.contains("A 203.0.113.9 ("), "{done:?}");
    ensure!(done.stdout.contains("corp, by test.policy:2"), "{done:?}");
    ensure!(done.stdout.lines().all(|line| line.chars().count() <= 80), "{done:?}");

    // The host's roots don't know this authority.
    let before = corp.asked(NAME)?;
    let told = query(&["--using", "stranger"])?;
    ensure!(told[1]["tries"][0]["fault"] == "certificate-unknown-issuer", "{told:?}");
    ensure!(daemon.verb(&["dns", "query", NAME, "--using", "stranger"])?.code() == 1);
    ensure!(corp.asked(NAME)? == before, "a server that is not trusted saw the name");

    let servers = daemon.json(&["dns", "servers"])?;
    let state = |name: &str| servers.iter().find(|s| s["resolver"] == name).map(|s| &s["state"]);
    ensure!(state("corp") == Some(&json!("answers")), "{servers:?}");
    ensure!(state("upstream") == Some(&json!("answers")), "{servers:?}");
    ensure!(state("stranger") == Some(&json!("fails")), "{servers:?}");

    // What was kept is forgotten when told.
    ensure!(query(&[])?[1]["from"] == "cache");
    ensure!(daemon.json(&["dns", "flush", "--using", "corp"])?[0]["count"] == 1);
    ensure!(query(&[])?[1]["from"] == "servers");

    // Of an answer that several made, each.
    let done = daemon.reload(&policy.replace("using corp", "using corp and upstream"))?;
    ensure!(done.code() == 0, "{done:?}");
    let told = query(&[])?;
    ensure!(told[1]["server"].is_null() && told[1]["from"] == "servers", "{told:?}");
    let by = told[1]["answered_by"].as_array().context("who")?;
    let by: Vec<_> = by.iter().map(|by| (&by["resolver"], &by["transport"])).collect();
    ensure!(by == [(&json!("corp"), &json!("tls")), (&json!("upstream"), &json!("udp"))], "{by:?}");

    let told = daemon.json(&["explain", "udp", "any", "198.18.0.2:53"])?;
    ensure!(told[0]["via"] == "dns" && told[0]["egress"].is_null(), "{told:?}");
    let stopped = daemon_stop(daemon)?;
    ensure!(stopped == 0, "it ended with {stopped}");
    Ok(())
}

fn daemon_stop(mut daemon: Daemon) -> Result<i32> {
    Ok(daemon.stop()?.code())
}
