//! `tunneld diff`: which live flows would a policy cut?

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::client::{Client, Target};
use crate::diagnostics;
use crate::error::{Refusal, code};
use crate::policy_files::{self, PolicyFiles};
use crate::policy_sent::PolicySent;
use crate::reload;

/// List the live flows that a policy would cut
///
/// Nothing is changed. The policy is read with your own rights.
///
/// Exit: 0 none, 1 some, or the policy has errors, 3 the daemon does not run, 4 not permitted,
/// 5 failed.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A policy file, or a directory of *.policy files; else that of the configuration
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    #[command(flatten)]
    daemon: Target,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// It was refused.
pub(crate) fn run(args: &DiffArgs, json: bool) -> anyhow::Result<u8> {
    let path = match &args.path {
        Some(path) => path.clone(),
        None => args.daemon.policy()?.unwrap_or_else(|| policy_files::DIRECTORY.into()),
    };
    let files = PolicyFiles::read(&[path])?;
    let sent = PolicySent::of(&files).map_err(|found| {
        if json {
            found.iter().for_each(|d| diagnostics::line(diagnostics::object(d, &files)));
        } else {
            diagnostics::print(&found, &files);
        }
        Refusal::new(code::FINDING, format!("policy: {}", diagnostics::count(&found)))
    })?;
    let mut client = Client::connect("diff", &args.daemon, json)?;
    let told = client.post("/v1/diff", &json!(sent))?;
    reload::show(&told, json);
    let cuts = told["cut"].as_array().is_some_and(|cut| !cut.is_empty());
    Ok(if cuts { code::FINDING } else { code::DONE })
}
