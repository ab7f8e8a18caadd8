//! `tunneld rules`: the rules in force, and how often each decided.

use clap::Args;
use serde_json::Value;

use crate::client::{Client, Target};
use crate::diagnostics;
use crate::error::code;
use crate::explain::clipped;
use crate::shown::word;

/// List the rules in force and how often each decided
///
/// In the order in which they are asked, the default last.
///
/// Exit: 0 done, 3 the daemon does not run, 4 not permitted, 5 failed.
#[derive(Debug, Args)]
pub(crate) struct RulesArgs {
    /// Show how often each decided since the policy was loaded
    #[arg(long)]
    hits: bool,
    /// Only rules that never decided
    #[arg(long)]
    unused: bool,
    #[command(flatten)]
    daemon: Target,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// The daemon gives no answer.
pub(crate) fn run(args: &RulesArgs, json: bool) -> anyhow::Result<u8> {
    let mut client = Client::connect("rules", &args.daemon, json)?;
    client.lines("/v1/rules", |rule| {
        if args.unused && rule["hits"] != 0 {
            return Ok(());
        }
        if json {
            diagnostics::line(rule);
        } else {
            diagnostics::line(text(rule, args.hits));
        }
        Ok(())
    })?;
    Ok(code::DONE)
}

fn text(rule: &Value, hits: bool) -> String {
    let hits = if hits { format!("{:>12}  ", word(&rule["hits"])) } else { String::new() };
    let text = word(&rule["text"]);
    let name = word(&rule["rule"]);
    // The default's text says its name.
    let name = if rule["line"].is_null() { String::new() } else { format!("{name}  ") };
    clipped(&format!("{hits}{name}{text}"))
}
