//! `tunneld check`: is this policy right, and do its tests hold?

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::diagnostics;
use crate::error::code;
use crate::policy_files::{self, PolicyFiles};

/// Check a policy: parse, compile, run its expectations
///
/// All errors of all files are shown at once. `expect` statements are the tests.
///
/// Exit: 0 valid, 1 errors found, 2 wrong usage, 5 a file cannot be read.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// A policy file, or a directory of *.policy files
    #[arg(value_name = "PATH", default_value = policy_files::DIRECTORY)]
    path: PathBuf,
    /// Check only the grammar: no users, no files of sets, no tests
    #[arg(long)]
    syntax: bool,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// A file cannot be read.
pub(crate) fn run(args: &CheckArgs, json: bool) -> anyhow::Result<u8> {
    let files = PolicyFiles::read(std::slice::from_ref(&args.path))?;
    let loaded = if args.syntax {
        files.check_syntax().map(|()| (None, Vec::new()))
    } else {
        files.load().map(|(policy, warnings)| (Some(policy.summary()), warnings))
    };
    let (valid, summary, found) = match loaded {
        Ok((summary, found)) => (true, summary, found),
        Err(found) => (false, None, found),
    };
    let counted = diagnostics::count(&found);
    if json {
        for diagnostic in &found {
            diagnostics::line(diagnostics::object(diagnostic, &files));
        }
        let of = |severity: &str| found.iter().filter(|d| d.severity.as_str() == severity).count();
        diagnostics::line(json!({
            "event": "check", "valid": valid, "files": files.count(),
            "rules": summary.map(|s| s.rules), "routes": summary.map(|s| s.routes),
            "sets": summary.map(|s| s.sets), "expects": summary.map(|s| s.expects),
            "errors": of("error"), "warnings": of("warning"),
        }));
    } else {
        diagnostics::print(&found, &files);
        let count = |count: usize, what: &str| {
            format!("{count} {what}{}", if count == 1 { "" } else { "s" })
        };
        let in_files = count(files.count(), "file");
        match summary {
            Some(s) => {
                let warnings =
                    if found.is_empty() { String::new() } else { format!(", {counted}") };
                diagnostics::line(format_args!(
                    "valid: {in_files}, {}, {}, {} passed{warnings}",
                    count(s.rules + s.routes, "rule"),
                    count(s.sets, "set"),
                    count(s.expects, "expect"),
                ));
            }
            None if valid => diagnostics::line(format_args!("valid grammar: {in_files}")),
            None => eprintln!("{counted} in {in_files}"),
        }
    }
    Ok(if valid { code::DONE } else { code::FINDING })
}
