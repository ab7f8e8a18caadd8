//! `tunneld reload`: configuration and policy again, all or nothing.

use clap::Args;
use serde_json::Value;

use crate::client::{Client, Target, print_diagnostics};
use crate::diagnostics;
use crate::error::code;
use crate::shown;

/// Put a changed configuration and policy in force
///
/// The daemon reads both again. Live flows are judged again
/// and exactly those whose verdict changed are cut. If anything is wrong nothing changes.
///
/// Exit: 0 done, 1 configuration or policy have errors (--dry-run: or a flow would be cut),
/// 3 the daemon does not run, 4 not permitted, 5 failed.
#[derive(Debug, Args)]
pub(crate) struct ReloadArgs {
    /// Change nothing; list the flows that would be cut
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    daemon: Target,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// It was refused.
pub(crate) fn run(args: &ReloadArgs, json: bool) -> anyhow::Result<u8> {
    let mut client = Client::connect("reload", &args.daemon, json)?;
    let path = if args.dry_run { "/v1/reload?dry_run=1" } else { "/v1/reload" };
    let told = client.post(path, &Value::Null)?;
    show(&told, json);
    let cuts = told["cut"].as_array().is_some_and(|cut| !cut.is_empty());
    Ok(if args.dry_run && cuts { code::FINDING } else { code::DONE })
}

/// Prints what a reload did or a policy would do.
pub(crate) fn show(told: &Value, json: bool) {
    if json {
        return diagnostics::line(told);
    }
    print_diagnostics(&told["diagnostics"], false);
    for line in shown::cut(told) {
        diagnostics::line(line);
    }
    let count = told["cut"].as_array().map_or(0, Vec::len);
    let flows = if count == 1 { "flow" } else { "flows" };
    let generation = &told["generation"];
    if told["dry_run"] == true {
        diagnostics::line(format_args!(
            "generation {generation} stays, {count} {flows} would be cut"
        ));
    } else {
        diagnostics::line(format_args!("generation {generation}, {count} {flows} cut"));
    }
}
