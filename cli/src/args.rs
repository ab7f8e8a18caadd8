//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub(crate) const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("TUNNELD_COMMIT"), ")");

/// A userspace packet tunnel, flow filter and split resolver
///
/// A flow is held until its owner, its source and its way out are known, then judged by the
/// policy. What is blocked fails at once.
#[derive(Debug, Parser)]
#[command(name = "tunneld", version = VERSION, disable_help_subcommand = true)]
#[command(max_term_width = 80)]
pub(crate) struct Cli {
    /// Print JSON: one object, or one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What to do. The first line of a verb's arguments says what it does; `tunneld VERB --help`
/// and its manual page say the rest.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Exec(ExecArgs),
    /// Show the filter at work on loopback, in seconds
    Demo,
    Check(crate::check::CheckArgs),
    Fmt(crate::fmt::FmtArgs),
    Explain(crate::explain::ExplainArgs),
    Run(crate::run::RunArgs),
    Status(crate::status::StatusArgs),
    Flows(crate::flows::FlowsArgs),
    Rules(crate::rules::RulesArgs),
    Watch(crate::watch::WatchArgs),
    Reload(crate::reload::ReloadArgs),
    Diff(crate::diff::DiffArgs),
    Dns(crate::dns_verb::DnsArgs),
    Import(crate::import::ImportArgs),
    Cleanup(crate::cleanup::CleanupArgs),
    Man(crate::man::ManArgs),
    Completions(crate::completions::CompletionsArgs),
    Schema(crate::schema::SchemaArgs),
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// Run a command whose only way out is the filter; no root needed
///
/// CMD runs in fresh namespaces; nothing of the host is touched. Without --policy
/// everything is allowed.
///
/// Exit: CMD's own; 125 tunneld failed, 126 CMD not executable, 127 not found, 128+N killed
/// by signal N.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// A policy file, or a directory of *.policy files; may be given more than once
    #[arg(long, value_name = "PATH")]
    pub(crate) policy: Vec<PathBuf>,
    /// A configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Write one JSON object a line for every flow that opens or ends
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// ADDR inside is 127.0.0.1 (or ::1) of the host; may be given more than once
    #[arg(long, value_name = "ADDR")]
    pub(crate) host_loopback: Vec<std::net::IpAddr>,
    /// Leave the host's resolver and D-Bus sockets in place inside: names asked through
    /// them pass no filter
    #[arg(long)]
    pub(crate) keep_sockets: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    #[arg(value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// Verbs of the stable interface that later versions bring.
pub(crate) const LATER: &[&str] = &[
    "top", "set", "paths", "leaks", "doctor", "capture", "up", "down", "lock", "unlock", "portal",
    "fleet",
];
