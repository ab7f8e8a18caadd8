//! `tunneld cleanup`: undoes what a dead daemon has left on the host.

use std::path::Path;

use clap::Args;
use dns::takeover::{KEPT, RESOLV_CONF};
use rustix::process::geteuid;
use serde_json::json;
use tunnel::host::Host;

use crate::client::Target;
use crate::diagnostics;
use crate::error::{Refusal, code};
use crate::run::{directory, refuse};

/// Undo what a dead daemon has left on the host
///
/// Exit: 0 done, 4 not permitted, 5 a daemon runs, or something could not be undone.
#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    #[command(flatten)]
    daemon: Target,
}

pub(crate) fn run(args: &CleanupArgs, json: bool) -> anyhow::Result<u8> {
    if !geteuid().is_root() {
        return Err(Refusal::new(code::NOT_PERMITTED, "cleanup: not permitted")
            .help("root may")
            .into());
    }
    let socket = args.daemon.path()?;
    let (mut host, mut undone) = Host::open(directory(&socket)).map_err(refuse)?;
    // It outlives a loss of power, and the journal does not.
    let put_back = host.put_back_resolv_conf(Path::new(RESOLV_CONF), Path::new(KEPT));
    undone.extend(put_back.map_err(refuse)?);
    for change in &undone {
        if json {
            diagnostics::line(json!({ "event": "undone", "change": change }));
        } else {
            diagnostics::line(format!("undone: {change}"));
        }
    }
    if undone.is_empty() && !json {
        diagnostics::line("nothing was left behind");
    }
    Ok(code::DONE)
}
