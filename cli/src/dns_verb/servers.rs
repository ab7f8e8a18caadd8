//! `tunneld dns servers`: who answers names, and how each came to be known.

use clap::Args;
use serde_json::Value;

use crate::client::{Client, Target};
use crate::diagnostics;
use crate::error::code;
use crate::shown::{Flowing, word};

/// List the servers of every resolver and where each was learned
///
/// With the device that leads to it, the domains that its network named, and whether it
/// answers.
///
/// Exit: 0 done, 3 the daemon does not run, 4 not permitted, 5 failed.
#[derive(Debug, Args)]
pub(super) struct ServersArgs {
    #[command(flatten)]
    daemon: Target,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// The daemon gives no answer.
pub(super) fn run(args: &ServersArgs, json: bool) -> anyhow::Result<u8> {
    let mut client = Client::connect("dns servers", &args.daemon, json)?;
    let mut above = None;
    client.lines("/v1/dns/servers", |server| {
        if json {
            diagnostics::line(server);
            return Ok(());
        }
        let resolver = word(&server["resolver"]);
        if above.as_ref() != Some(&resolver) {
            diagnostics::line(heading(server));
            above = Some(resolver);
        }
        diagnostics::line(text(server));
        Ok(())
    })?;
    Ok(code::DONE)
}

/// The resolver.
fn heading(server: &Value) -> String {
    let mut out = Flowing::new(8);
    out.add(word(&server["resolver"])).add(format!("asked {},", word(&server["resolver_asked"])));
    out.add(format!("{} in vain", word(&server["resolver_failed"])));
    out.end()
}

fn text(server: &Value) -> String {
    let mut out = Flowing::new(8);
    out.add("   ");
    if server["server"].is_null() {
        out.add("no server is known");
        return out.end();
    }
    out.add(word(&server["server"])).add(word(&server["state"]));
    out.add(format!("by {}", word(&server["from"])));
    if !server["device"].is_null() {
        out.add(format!("on {}", word(&server["device"])));
    }
    let domains = server["domains"].as_array().map_or(&[][..], Vec::as_slice);
    for domain in domains {
        let name = word(&domain["name"]);
        let name = if name.is_empty() { ".".to_owned() } else { name };
        let mark = if domain["route_only"] == true { "~" } else { "" };
        out.add(format!("{mark}{name}"));
    }
    if server["default_route"] == false {
        out.add("for these domains alone");
    }
    out.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn servers_to_be_read() {
        let server = json!({
            "event": "server", "resolver": "upstream", "server": "192.0.2.53", "transport": "udp",
            "from": "systemd-resolved (link 2)", "device": "eth0",
            "domains": [{ "name": "corp.example", "route_only": true }], "default_route": false,
            "state": "answers", "resolver_asked": 12, "resolver_failed": 1,
        });
        assert_eq!(heading(&server), "upstream asked 12, 1 in vain");
        assert_eq!(
            text(&server),
            "    192.0.2.53 answers by systemd-resolved (link 2) on eth0 ~corp.example\n        \
             for these domains alone"
        );
        assert_eq!(text(&json!({ "server": null })), "    no server is known");
    }
}
