//! `tunneld flows`: live flows, and the end of one.

use clap::Args;

use crate::client::{Client, Target, encoded};
use crate::daemon::FlowId;
use crate::diagnostics;
use crate::error::code;
use crate::shown;

/// List live flows, or end one
///
/// EXPR is made of the policy language's clauses, such as
/// `tcp to 10.0.0.0/8 port 443 user alice`. A clause about what is not known of a flow does
/// not hold.
///
/// Exit: 0 done, 2 EXPR is wrong, 3 the daemon does not run, 4 not permitted, 5 failed.
#[derive(Debug, Args)]
pub(crate) struct FlowsArgs {
    /// Only flows for which all clauses of EXPR hold
    #[arg(long = "match", value_name = "EXPR")]
    expression: Option<String>,
    /// End the flow with this id: TCP by a reset to both sides
    #[arg(long, value_name = "ID", conflicts_with = "expression")]
    kill: Option<FlowId>,
    #[command(flatten)]
    daemon: Target,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// The daemon gives no answer.
pub(crate) fn run(args: &FlowsArgs, json: bool) -> anyhow::Result<u8> {
    let mut client = Client::connect("flows", &args.daemon, json)?;
    if let Some(id) = args.kill {
        let killed = client.delete(&format!("/v1/flows/{id}"))?;
        if json {
            diagnostics::line(killed);
        } else {
            diagnostics::line(format_args!("killed {id}"));
        }
        return Ok(code::DONE);
    }
    let path = match &args.expression {
        None => "/v1/flows".to_owned(),
        Some(expression) => format!("/v1/flows?match={}", encoded(expression)),
    };
    client.lines(&path, |flow| {
        if json {
            diagnostics::line(flow);
        } else {
            diagnostics::line(shown::flow(flow));
        }
        Ok(())
    })?;
    Ok(code::DONE)
}
