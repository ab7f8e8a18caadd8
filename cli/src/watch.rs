//! `tunneld watch`: what happens, as it happens.

use clap::Args;
use serde_json::Value;

use crate::client::{Client, Target};
use crate::diagnostics;
use crate::error::{Refusal, code};
use crate::shown::{self, Flowing, word};

/// Show flows as they open and end, and what goes wrong with names
///
/// Until interrupted. Names are told of where resolvers disagree or fail, where private
/// addresses were filtered out, and where a question comes back to us.
///
/// Exit: 3 the daemon does not run or went away, 4 not permitted, 5 failed.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    daemon: Target,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// The daemon gives no answer, or ends.
pub(crate) fn run(args: &WatchArgs, json: bool) -> anyhow::Result<u8> {
    let mut client = Client::connect("watch", &args.daemon, json)?;
    client.lines("/v1/watch", |event| {
        if json {
            diagnostics::line(event);
        } else {
            diagnostics::line(text(event));
        }
        Ok(())
    })?;
    Err(Refusal::new(code::NO_DAEMON, "watch: the daemon has gone away").into())
}

fn text(event: &Value) -> String {
    match event["event"].as_str() {
        Some("flow") => shown::flow(event),
        Some("disagreement") => disagreement(event),
        Some("dns") => dns(event),
        Some("lost") => format!("{} events lost: too slow", word(&event["count"])),
        Some(_) | None => crate::explain::clipped(&event.to_string()),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn words(value: &Value) -> String {
    list(value).iter().map(word).collect::<Vec<_>>().join(", ")
}

fn disagreement(event: &Value) -> String {
    let mut out = Flowing::new(8);
    out.add("names").add(word(&event["name"])).add(word(&event["type"])).add("disagreement:");
    for answer in list(&event["answers"]) {
        out.add(format!("{} says", word(&answer["resolver"])));
        out.add(match answer["status"].as_str() {
            Some("data") => format!("{};", words(&answer["data"])),
            Some("no-data") => "no data of this type;".to_owned(),
            Some("no-name") => "no such name;".to_owned(),
            Some(_) | None => format!("nothing: {};", word(&answer["error"])),
        });
    }
    out.end().trim_end_matches(';').to_owned()
}

fn dns(event: &Value) -> String {
    let mut out = Flowing::new(8);
    out.add("names").add(word(&event["name"])).add(word(&event["type"]));
    match event["what"].as_str() {
        Some("failed") => {
            out.add("failed:");
            for resolver in list(&event["resolvers"]) {
                let (name, error) = (word(&resolver["resolver"]), word(&resolver["error"]));
                out.add(format!("{name}: {error};"));
            }
        }
        Some("loop") => {
            out.add("loop:").add("a server of a resolver asks us");
        }
        Some("rebinding") => {
            out.add("rebinding:").add(format!("{} said", word(&event["resolver"])));
            out.add(words(&event["addresses"])).add("(filtered out)");
        }
        Some(_) | None => {
            out.add(word(&event["what"]));
        }
    }
    out.end().trim_end_matches(';').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostics::COLUMNS;
    use serde_json::json;

    #[test]
    fn events_of_names() {
        for (event, want) in [
            (
                json!({ "event": "disagreement", "name": "x.example", "type": "A", "answers": [
                    { "resolver": "corp", "status": "data", "data": ["10.1.2.3"], "error": null },
                    { "resolver": "lab", "status": "no-name", "data": [], "error": null },
                ]}),
                "names x.example A disagreement: corp says 10.1.2.3; lab says no such name",
            ),
            (
                json!({ "event": "dns", "what": "failed", "name": "x.example", "type": "A",
                        "resolvers": [{ "resolver": "corp", "error": "timed out" }] }),
                "names x.example A failed: corp: timed out",
            ),
            (
                json!({ "event": "dns", "what": "loop", "name": "x.example", "type": "A" }),
                "names x.example A loop: a server of a resolver asks us",
            ),
            (
                json!({ "event": "dns", "what": "rebinding", "name": "x.example", "type": "A",
                        "resolver": "upstream", "addresses": ["10.0.0.1", "127.0.0.1"] }),
                "names x.example A rebinding: upstream said 10.0.0.1, 127.0.0.1 (filtered out)",
            ),
        ] {
            assert_eq!(text(&event), want);
            assert!(text(&event).lines().all(|line| line.chars().count() <= COLUMNS));
        }
    }
}
