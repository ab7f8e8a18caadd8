//! `tunneld watch`: what happens, as it happens.

use clap::Args;
use serde_json::Value;

use crate::client::{Client, Target};
use crate::diagnostics;
use crate::error::{Refusal, code};
use crate::shown::{self, word};

/// Show flows as they open and end
///
/// Until interrupted.
///
/// Exit: 3 the daemon does not run or went away, 4 not permitted, 5 failed.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    daemon: Target,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// The daemon gives no answer, or ends.
pub(crate) fn run(args: &WatchArgs, json: bool) -> anyhow::Result<u8> {
    let mut client = Client::connect("watch", &args.daemon, json)?;
    client.lines("/v1/watch", |event| {
        if json {
            diagnostics::line(event);
        } else {
            diagnostics::line(text(event));
        }
        Ok(())
    })?;
    Err(Refusal::new(code::NO_DAEMON, "watch: the daemon has gone away").into())
}

fn text(event: &Value) -> String {
    match event["event"].as_str() {
        Some("flow") => shown::flow(event),
        Some("lost") => format!("{} events lost: too slow", word(&event["count"])),
        Some(_) | None => crate::explain::clipped(&event.to_string()),
    }
}
