//! `tunneld check`: is this policy right, and do its tests hold? And would a daemon take this
//! configuration?

use std::path::{Path, PathBuf};

use clap::Args;
use engine::policy::Summary;
use serde_json::json;

use crate::config::{self, Config, Named};
use crate::diagnostics::{self, Told};
use crate::error::code;
use crate::policy_files::{self, PolicyFiles};

/// Check a policy, or a configuration with its policy
///
/// A policy is parsed, compiled, and its expectations run: `expect` statements are the
/// tests. With --config the configuration is checked as `run` and `reload` read it, and the
/// policy of the directory that it names. All errors of all files are shown at once.
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
    /// Check a configuration, and the policy that it names
    #[arg(long, value_name = "FILE", conflicts_with_all = ["path", "syntax"])]
    config: Option<PathBuf>,
}

/// What was found.
#[derive(Default)]
struct Found {
    told: Vec<Told>,
    /// Policy files that were looked at.
    files: usize,
    /// What the policy consists of; `None`: it was not compiled, or has errors.
    summary: Option<Summary>,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// A file cannot be read.
pub(crate) fn run(args: &CheckArgs, json: bool) -> anyhow::Result<u8> {
    let mut found = Found::default();
    let (policy, named) = match &args.config {
        Some(file) => found.configuration(file)?,
        None => (Some(args.path.clone()), Named::default()),
    };
    let read = policy.map_or(Ok(()), |path| found.policy(path, named, args.syntax));
    for told in found.told.iter().filter(|_| json) {
        diagnostics::line(told.object());
    }
    if !json {
        diagnostics::print_told(&found.told);
    }
    // What else is wrong was said.
    read?;
    found.sum_up(args, json);
    Ok(if found.is_valid() { code::DONE } else { code::FINDING })
}

impl Found {
    /// Looks at a configuration; gives the path of its policy, where it says one, and what
    /// a policy may name.
    fn configuration(&mut self, file: &Path) -> anyhow::Result<(Option<PathBuf>, Named)> {
        let text = config::text_of(file)?;
        let (config, faults) = config::look(file, &text);
        self.told.extend(Told::of_faults(&faults));
        Ok((policy_of(&config, &text), config.named()?))
    }

    fn policy(&mut self, path: PathBuf, named: Named, syntax: bool) -> anyhow::Result<()> {
        let files = PolicyFiles::read(&[path])?.with_names(named);
        self.files = files.count();
        let loaded = if syntax {
            files.check_syntax().map(|()| Vec::new())
        } else {
            files.load().map(|(policy, warnings)| {
                self.summary = Some(policy.summary());
                warnings
            })
        };
        let (Ok(found) | Err(found)) = loaded;
        self.told.extend(found.iter().map(|d| Told::of(d, &|source| files.path_of(source))));
        Ok(())
    }

    fn errors(&self) -> usize {
        self.told.iter().filter(|told| told.is_error()).count()
    }

    fn is_valid(&self) -> bool {
        self.errors() == 0
    }

    fn sum_up(&self, args: &CheckArgs, json: bool) {
        let (errors, files, summary) = (self.errors(), self.files, self.summary);
        let warnings = self.told.len() - errors;
        if json {
            return diagnostics::line(json!({
                "event": "check", "valid": self.is_valid(), "config": args.config,
                "files": files, "rules": summary.map(|s| s.rules),
                "routes": summary.map(|s| s.routes), "resolves": summary.map(|s| s.resolves),
                "sets": summary.map(|s| s.sets),
                "expects": summary.map(|s| s.expects), "errors": errors, "warnings": warnings,
            }));
        }
        let mut places = vec![count(files, "file")];
        if let Some(config) = &args.config {
            places.insert(0, config.display().to_string());
        }
        let mut counted = vec![count(errors, "error"), count(warnings, "warning")];
        counted.retain(|counted| !counted.starts_with("0 "));
        match summary {
            _ if !self.is_valid() => eprintln!("{} in {}", counted.join(", "), places.join(", ")),
            None => diagnostics::line(format_args!("valid grammar: {}", places.join(", "))),
            Some(s) => {
                places.push(count(s.rules + s.routes + s.resolves, "rule"));
                places.push(count(s.sets, "set"));
                places.push(format!("{} passed", count(s.expects, "expect")));
                places.extend(counted);
                diagnostics::line(format_args!("valid: {}", places.join(", ")));
            }
        }
    }
}

fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Where the policy of a configuration is. `None`: what it says of that is wrong.
fn policy_of(config: &Config, text: &str) -> Option<PathBuf> {
    // Without the key, or the whole table, it is the default; a fault there was told already.
    let is_silent = || {
        toml::from_str::<toml::Table>(text).is_ok_and(|root| {
            let policy = root.get("policy").map(toml::Value::as_table);
            policy.is_none_or(|keys| keys.is_some_and(|keys| keys.is_empty()))
        })
    };
    (config.policy.is_some() || is_silent()).then(|| policy_files::directory(config))
}
