//! The `tunneld` program: verbs, configuration, and the joining of engine, tunnel and dns.
#![deny(unsafe_code)]

mod args;
mod check;
mod cleanup;
mod client;
mod completions;
mod config;
mod control;
mod daemon;
mod demo;
mod diagnostics;
mod diff;
mod dns_verb;
mod error;
mod exec;
mod explain;
mod flows;
mod fmt;
mod import;
mod man;
mod names;
mod policy_files;
mod policy_sent;
mod proxies;
mod reload;
mod report;
mod rules;
mod run;
pub mod sandbox;
mod schema;
mod secrets;
mod shards;
mod shown;
mod status;
mod watch;
mod ways;
pub mod wireguard;

use std::io::IsTerminal;

use args::{Cli, Verb};
use clap::Parser;
use error::{Refusal, code};
use tracing_subscriber::EnvFilter;

/// Runs the program and gives its exit code.
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let json = cli.json;
    log();
    let done = match cli.verb {
        Verb::Exec(args) => exec::run(&args),
        Verb::Demo => demo::run(json),
        Verb::Check(args) => check::run(&args, json),
        Verb::Fmt(args) => fmt::run(&args, json),
        Verb::Explain(args) => explain::run(&args, json),
        Verb::Run(args) => run::run(&args),
        Verb::Status(args) => status::run(&args, json),
        Verb::Flows(args) => flows::run(&args, json),
        Verb::Rules(args) => rules::run(&args, json),
        Verb::Watch(args) => watch::run(&args, json),
        Verb::Reload(args) => reload::run(&args, json),
        Verb::Diff(args) => diff::run(&args, json),
        Verb::Dns(args) => dns_verb::run(&args, json),
        Verb::Import(args) => import::run(&args, json),
        Verb::Cleanup(args) => cleanup::run(&args, json),
        Verb::Man(args) => man::run(&args, json),
        Verb::Completions(args) => Ok(completions::run(&args, json)),
        Verb::Schema(args) => Ok(schema::run(&args, json)),
        Verb::Other(words) => {
            let verb = words.first().map(|w| w.to_string_lossy()).unwrap_or_default();
            Err(if args::LATER.contains(&&*verb) { later(&verb) } else { unknown(&verb) })
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => error::report(&error, json),
    }
}

/// Prints what is wrong with the command line, or the help that was asked for, and gives the
/// exit code: of `exec` never one that could be CMD's own.
fn refuse(error: &clap::Error) -> u8 {
    // Where standard error is closed the code is all that is left to say.
    let _ = error.print();
    let verb = std::env::args_os().skip(1).find(|word| word != "--json");
    match error.exit_code() {
        0 => code::DONE,
        _ if verb.is_some_and(|verb| verb == "exec") => code::EXEC_FAILED,
        _ => code::USAGE,
    }
}

/// What is logged where nobody says otherwise. boringtun tells of every handshake that is not
/// answered, of each peer, without a code; what matters of that we tell ourselves.
const LOGGED: &str = "warn,boringtun=off";

/// Logs go to standard error: warnings, or what `TUNNELD_LOG` (else `RUST_LOG`) asks for.
fn log() {
    let filter = EnvFilter::try_from_env("TUNNELD_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let stderr = std::io::stderr();
    let colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .without_time()
        .init();
}

fn later(verb: &str) -> anyhow::Error {
    Refusal::new(code::USAGE, format!("`tunneld {verb}`: not in this version")).into()
}

fn unknown(verb: &str) -> anyhow::Error {
    Refusal::new(code::USAGE, format!("unknown verb `{verb}`"))
        .help("`tunneld --help` lists the verbs")
        .into()
}
