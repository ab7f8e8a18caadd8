//! What the engine counted in one run.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Every packet from the app side ended in exactly one counted outcome, and nothing panicked.
pub fn adds_up(counters: &Value) -> Result<()> {
    let number = |name: &str| {
        counters[name].as_u64().with_context(|| format!("no number `{name}`: {counters:#}"))
    };
    let outcomes = number("to_app")?
        + number("to_egress")?
        + number("to_link")?
        + number("held")?
        + sum(&counters["dropped"])?;
    let packets = number("packets_in")?;
    ensure!(outcomes == packets, "{outcomes} outcomes of {packets} packets: {counters:#}");
    ensure!(number("panics")? == 0, "a panic: {counters:#}");
    Ok(())
}

/// All that was dropped, whatever the cause.
pub fn sum(dropped: &Value) -> Result<u64> {
    let dropped = dropped.as_object().context("`dropped` is an object")?;
    dropped
        .iter()
        .map(|(reason, count)| count.as_u64().with_context(|| format!("dropped.{reason}")))
        .sum()
}
