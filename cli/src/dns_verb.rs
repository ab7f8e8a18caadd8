//! `tunneld dns`: names by hand.

mod columns;
mod query;
mod servers;

use clap::{Args, Subcommand};

use crate::client::{Client, Target, encoded};
use crate::diagnostics;
use crate::error::code;
use crate::shown::word;

/// Ask resolvers, list their servers, forget answers
///
/// Exit: 0 done, 1 a finding, 2 wrong usage, 3 the daemon does not run, 4 not permitted,
/// 5 failed.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct DnsArgs {
    #[command(subcommand)]
    verb: DnsVerb,
}

#[derive(Debug, Subcommand)]
enum DnsVerb {
    Query(query::QueryArgs),
    Servers(servers::ServersArgs),
    Flush(FlushArgs),
}

/// Forget answers that were kept
///
/// What is asked next goes to servers again. Flows keep the names that they have.
///
/// Exit: 0 done, 2 there is no such resolver, 3 the daemon does not run, 4 not permitted,
/// 5 failed.
#[derive(Debug, Args)]
struct FlushArgs {
    /// Only what this resolver answered, alone or with others
    #[arg(long, value_name = "RESOLVER")]
    using: Option<String>,
    #[command(flatten)]
    daemon: Target,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// The daemon gives no answer.
pub(crate) fn run(args: &DnsArgs, json: bool) -> anyhow::Result<u8> {
    match &args.verb {
        DnsVerb::Query(args) => query::run(args, json),
        DnsVerb::Servers(args) => servers::run(args, json),
        DnsVerb::Flush(args) => flush(args, json),
    }
}

fn flush(args: &FlushArgs, json: bool) -> anyhow::Result<u8> {
    let mut client = Client::connect("dns flush", &args.daemon, json)?;
    let using = args.using.as_deref().map(|using| format!("?using={}", encoded(using)));
    let path = format!("/v1/dns/flush{}", using.unwrap_or_default());
    let flushed = client.post(&path, &serde_json::Value::Null)?;
    if json {
        diagnostics::line(flushed);
    } else {
        let count = word(&flushed["count"]);
        let answers = if count == "1" { "answer" } else { "answers" };
        diagnostics::line(format_args!("{count} {answers} forgotten"));
    }
    Ok(code::DONE)
}
