//! `tunneld schema`: the JSON Schema of `tunneld.toml`, for editors and generators.

use clap::Args;

use crate::config;
use crate::diagnostics;
use crate::error::code;

/// Print the JSON Schema of tunneld.toml
///
/// It is of draft 7 and has every key that this version honours, with its default. A key of a later version is not in it, as tunneld refuses it. With
/// --json the schema is one line.
///
/// Exit: 0 done, 2 wrong usage.
#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {}

/// Runs the verb and gives its exit code.
pub(crate) fn run(SchemaArgs {}: &SchemaArgs, json: bool) -> u8 {
    let schema = config::schema();
    if json {
        diagnostics::line(schema);
    } else {
        diagnostics::line(format_args!("{schema:#}"));
    }
    code::DONE
}
