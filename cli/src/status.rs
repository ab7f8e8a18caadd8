//! `tunneld status`: what the daemon is at.

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::client::{Client, Target};
use crate::diagnostics;
use crate::error::code;
use crate::shown::{Flowing, bytes, word};

/// Show what the daemon is at
///
/// Policy, flows, memory, and where packets ended.
///
/// Exit: 0 done, 3 the daemon does not run, 4 not permitted, 5 failed.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Show it every second until interrupted
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    daemon: Target,
}

/// How often `--watch` looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// To the top left, and nothing below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Runs the verb and gives its exit code.
///
/// # Errors
/// The daemon gives no answer.
pub(crate) fn run(args: &StatusArgs, json: bool) -> anyhow::Result<u8> {
    let mut client = Client::connect("status", &args.daemon, json)?;
    loop {
        let status = client.get("/v1/status")?;
        if json {
            diagnostics::line(&status);
        } else if args.watch && io::stdout().is_terminal() {
            diagnostics::line(format_args!("{CLEAR}{}", text(&status)));
        } else {
            diagnostics::line(text(&status));
        }
        if !args.watch {
            return Ok(code::DONE);
        }
        std::thread::sleep(INTERVAL);
    }
}

fn text(status: &Value) -> String {
    const LABEL: usize = 12;
    let mut lines = Vec::new();
    let mut line = |label: &str, parts: Vec<String>| {
        let mut out = Flowing::new(LABEL);
        out.add(format!("{label:<width$}", width = LABEL - 1));
        for part in parts {
            out.add(part);
        }
        lines.push(out.end());
    };
    let w = |key: &str| word(&status[key]);
    line(
        "daemon",
        vec![format!("pid {}", w("pid")), format!("since {}", w("started")), w("version")],
    );
    line("policy", vec![format!("generation {},", w("generation")), rules(status), w("policy")]);
    line("flows", vec![format!("{} live,", w("flows")), format!("{} opened", w("flows_opened"))]);
    line("memory", vec![format!("{} of rings", bytes(&status["memory"]))]);
    line(
        "packets",
        vec![
            format!("{} from apps:", w("packets_in")),
            format!("{} out,", w("to_egress")),
            format!("{} answered,", w("to_app")),
            format!("{} held", w("held")),
        ],
    );
    for (label, key) in [("dropped", "dropped"), ("replies", "replies_dropped")] {
        let causes = status[key].as_object();
        let causes = causes.into_iter().flatten().filter(|(_, count)| **count != 0);
        let causes: Vec<_> = causes.map(|(cause, count)| format!("{cause} {count}")).collect();
        if !causes.is_empty() {
            line(label, vec![causes.join(", ")]);
        }
    }
    for (key, what) in [
        ("panics", "flows ended by a fault of tunneld"),
        ("reports_lost", "reports lost"),
        ("older", "segments of connections older than the capture"),
        ("watchers", "watching"),
    ] {
        if status[key].as_u64().is_some_and(|count| count > 0) {
            line("", vec![format!("{} {what}", w(key))]);
        }
    }
    let shards = status["shards"].as_array().map_or(0, Vec::len);
    if shards > 1 {
        line("shards", vec![shards.to_string()]);
    }
    lines.join("\n")
}

fn rules(status: &Value) -> String {
    let count = status["rules"].as_u64().unwrap_or_default();
    format!("{count} rule{},", if count == 1 { "" } else { "s" })
}
