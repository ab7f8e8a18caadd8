//! Any bytes on the TUN are a counted drop and nothing to the flows beside them.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::endpoints::TcpServer;
use tests::endpoints::tcp::{echo, source};
use tests::lab::{Lab, plan};
use tests::{require_root, require_tunneld};

#[test]
fn flows_live_on_beside_broken_packets() -> Result<()> {
    require_root!();
    require_tunneld!();
    let lab = Lab::new()?;
    const LENGTH: u64 = 30_000_000;
    let down = TcpServer::start(&lab.server, 0, source(LENGTH))?;
    let echo = TcpServer::start(&lab.server, 0, echo)?;
    for seed in 1..=3 {
        let script = format!(
            "\"$PROBE\" download {good} {down} > \"$1\" &
             \"$PROBE\" bad-packets {seed} 20000 && wait && cat \"$1\" &&
             \"$PROBE\" connect {good} {echo}",
            good = plan::GOOD4,
            down = down.port(),
            echo = echo.port(),
        );
        let scratch = tests::lab::scratch::Scratch::new()?;
        let file = scratch.join("download");
        let seen = lab
            .exec("sh")
            .args(["-c", &script, "sh"])
            .arg(file.display())
            .run()?
            .success()
            .with_context(|| format!("seed {seed}"))?;
        let lines: Vec<Value> =
            seen.stdout().lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let [bad, download, connect] = &lines[..] else {
            anyhow::bail!("three answers expected: {seen:#?}");
        };
        ensure!(bad["sent"].as_u64() > Some(20_000), "seed {seed}: {bad}");
        ensure!(download["received"] == LENGTH, "seed {seed}: {download}");
        ensure!(connect["connected"] == true, "seed {seed}: {connect}");
        ensure!(
            !seen.finished.stderr.contains("panicked"),
            "seed {seed}: {}",
            seen.finished.stderr
        );
    }
    Ok(())
}
