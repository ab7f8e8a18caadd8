//! Memory has a limit that no number of connections passes, and at the limit
//! new flows still come through.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::endpoints::TcpServer;
use tests::endpoints::tcp::echo;
use tests::lab::{Lab, Way, Who, plan, process};
use tests::require_root;

#[test]
fn heavy_seventy_thousand_syns_to_a_black_hole_fit_the_limit() -> Result<()> {
    require_root!();
    const LIMIT_KIB: u64 = 128 * 1024;
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, echo)?;
    // The process itself, before it holds a flow.
    let base = if Way::of_this_run() == Way::Tunneld {
        let idle = lab.exec("sh").args(["-c", "echo ready; sleep 60"]).spawn()?;
        idle.running.wait_for("ready")?;
        process::cost(&idle.tunneld_pids()).rss_kib
    } else {
        0
    };
    for who in Who::ALL {
        let script = format!(
            "\"$PROBE\" syns {} 10000 70000; \"$PROBE\" connect {} {} 5000; echo done; sleep 30",
            plan::SILENT4,
            plan::GOOD4,
            server.port()
        );
        let run = lab
            .exec("sh")
            .who(who)
            .config("[limits]\nmemory = \"128MiB\"\n")
            .args(["-c", &script])
            .limit(Duration::from_secs(90))
            .spawn()?;
        run.running.wait_for("done")?;
        let cost = process::cost(&run.tunneld_pids());
        let stdout = run.running.stdout();
        let mut lines = stdout.lines();
        let mut next =
            || -> Result<Value> { Ok(serde_json::from_str(lines.next().unwrap_or(""))?) };
        let syns = next()?;
        ensure!(syns["sent"] == 70_000, "{who:?}: {syns}");
        let connect = next()?;
        ensure!(connect["connected"] == true, "{who:?}: a new flow must connect: {connect}");
        ensure!(connect["micros"].as_u64() < Some(2_000_000), "{who:?}: {connect}");
        ensure!(
            cost.peak_kib < base + LIMIT_KIB,
            "{who:?}: at most {base} + {LIMIT_KIB} KiB expected: {cost:?}"
        );
    }
    Ok(())
}

#[test]
fn heavy_flows_that_end_give_back_what_they_held() -> Result<()> {
    require_root!();
    let lab = Lab::new()?;
    let server = TcpServer::start(&lab.server, 0, echo)?;
    let script = format!(
        "echo before; read line; \"$PROBE\" outcomes {to} {port} 3000; echo after; sleep 30",
        to = plan::GOOD4,
        port = server.port()
    );
    let run = lab.exec("sh").args(["-c", &script]).spawn_with_open_input()?;
    run.running.wait_for("before")?;
    let before = process::cost(&run.tunneld_pids());
    run.running.close_input();
    run.running.wait_for("after")?;
    // TIME-WAIT of the stack is ten seconds; descriptors go with the far side's end.
    std::thread::sleep(Duration::from_secs(1));
    let after = process::cost(&run.tunneld_pids());
    ensure!(run.running.stdout().contains("{\"connected\":3000}"), "{}", run.running.stdout());
    ensure!(
        after.descriptors <= before.descriptors + 8,
        "descriptors were {} and are {}",
        before.descriptors,
        after.descriptors
    );
    ensure!(
        after.rss_kib <= before.rss_kib + 24 * 1024,
        "memory was {} and is {} KiB",
        before.rss_kib,
        after.rss_kib
    );
    Ok(())
}
