//! `tunneld dns query`: what an app would get, or what resolvers say, side by side.

use clap::Args;
use serde_json::{Value, json};

use super::columns::{Column, side_by_side};
use crate::client::{Client, Target};
use crate::daemon::Inquiry;
use crate::diagnostics;
use crate::error::code;
use crate::shown::{Flowing, word};

/// Ask for a name, and say who the plan asks
///
/// Without --using it is what an app would get, by the rules and out of the cache; with it
/// the servers of those resolvers are asked, past rules and cache, and of no other.
///
/// Exit: 0 all answers say NOERROR, 1 one of them does not, or nobody answered, 2 wrong usage,
/// 3 the daemon does not run, 4 not permitted, 5 failed.
#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// A name, in ASCII
    #[arg(value_name = "NAME")]
    name: String,
    /// A type, such as AAAA or TYPE28
    #[arg(long = "type", value_name = "TYPE", default_value = "A")]
    kind: String,
    /// Ask this resolver; may be given more than once
    #[arg(long, value_name = "RESOLVER")]
    using: Vec<String>,
    #[command(flatten)]
    daemon: Target,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// There is no such question, or the daemon gives no answer.
pub(super) fn run(args: &QueryArgs, json: bool) -> anyhow::Result<u8> {
    let mut client = Client::connect("dns query", &args.daemon, json)?;
    let inquiry = Inquiry {
        name: args.name.clone(),
        kind: Some(args.kind.clone()),
        using: args.using.clone(),
    };
    let mut objects = Vec::new();
    client.post_lines("/v1/dns/query", &json!(inquiry), |object| {
        if json {
            diagnostics::line(object);
        }
        objects.push(object.clone());
        Ok(())
    })?;
    if !json {
        diagnostics::line(text(&objects));
    }
    let well = answers(&objects).all(|answer| answer["code"] == "NOERROR");
    Ok(if well { code::DONE } else { code::FINDING })
}

fn answers(objects: &[Value]) -> impl Iterator<Item = &Value> {
    objects.iter().filter(|object| object["event"] == "dns-answer")
}

fn text(objects: &[Value]) -> String {
    let plan = objects.iter().find(|object| object["event"] == "dns-plan");
    let columns: Vec<Column> = answers(objects).map(column).collect();
    let labels = ["", "server", "time", "code", "answer", "error", "tried"];
    let plan = plan.map(plan_text).unwrap_or_default();
    format!("{plan}\n\n{}", side_by_side(&labels, &columns))
}

/// The verdict of the plan.
fn plan_text(plan: &Value) -> String {
    let name = Some(word(&plan["name"])).filter(|name| !name.is_empty());
    let mut out = Flowing::new(9);
    out.add(format!("{} {}", name.as_deref().unwrap_or("."), word(&plan["type"])));
    let mut rule = Flowing::new(9);
    rule.add(format!("{:<8}", "plan"));
    let by = match plan["rule"].as_str() {
        Some(_) => format!("by {}", word(&plan["rule"])),
        None => "as no rule names it".to_owned(),
    };
    match (plan["here"].as_str(), plan["form"].as_str()) {
        (Some("localhost"), _) => {
            rule.add("nobody is asked:").add("this host itself");
        }
        (Some("refused"), _) => {
            rule.add("nobody is asked:").add("only a rule that names it, or a search domain,");
            rule.add("leads it to servers");
        }
        (Some(_), _) => {
            rule.add("nobody is asked:").add("a zone that is empty here,");
            rule.add("as no rule names it");
        }
        (None, Some("none")) => {
            rule.add("nobody is asked,").add(by);
        }
        (None, form) => {
            let names = plan["resolvers"].as_array().map_or(&[][..], Vec::as_slice);
            let names: Vec<String> = names.iter().map(word).collect();
            let between = form.filter(|form| *form != "one").unwrap_or("and");
            rule.add(format!("{},", names.join(&format!(" {between} ")))).add(by);
            if plan["private"] == true || plan["specific"] == true {
                rule.add("(private addresses pass)");
            }
        }
    }
    format!("{}\n{}", out.end(), rule.end())
}

/// An answer, row by row.
fn column(answer: &Value) -> Column {
    let list = |key: &str| answer[key].as_array().map_or(&[][..], Vec::as_slice).iter();
    let head = match answer["resolver"].as_str() {
        Some(_) => word(&answer["resolver"]),
        None => "an app gets".to_owned(),
    };
    let place = |by: &Value| format!("{} {}", word(&by["server"]), word(&by["transport"]));
    let by: Vec<&Value> = list("answered_by").collect();
    let server = match (&*by, answer["from"].as_str()) {
        ([one], _) => vec![place(one)],
        ([], Some("here")) => vec!["none".to_owned()],
        ([], Some("cache")) => vec!["none: from the cache".to_owned()],
        ([], Some("stale")) => vec!["none: from the cache, past its time".to_owned()],
        ([], Some(_) | None) => vec!["none answered".to_owned()],
        (several, _) => several
            .iter()
            .map(|by| format!("{}: {} in {}", word(&by["resolver"]), place(by), time(by)))
            .collect(),
    };
    let code = match answer["failure"].as_str() {
        Some(_) => format!("none: {}", word(&answer["failure"])),
        None if answer["authentic"] == true => format!("{}, validated", word(&answer["code"])),
        None => word(&answer["code"]),
    };
    let records = list("records");
    let records = records.map(|record| {
        format!("{} {} ({} s)", word(&record["type"]), word(&record["data"]), word(&record["ttl"]))
    });
    let extended = list("extended");
    let extended = extended.map(|e| format!("{} {}", word(&e["code"]), word(&e["text"])));
    let tries = list("tries");
    let tries = tries.map(|tried| format!("{}: {}", word(&tried["server"]), word(&tried["error"])));
    vec![
        vec![head],
        server,
        vec![time(answer)],
        vec![code],
        records.collect(),
        extended.map(|text| text.trim_end().to_owned()).collect(),
        tries.collect(),
    ]
}

/// How long it took.
fn time(object: &Value) -> String {
    let micros = object["took_us"].as_u64().unwrap_or_default();
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostics::COLUMNS;

    fn plan(form: &str, resolvers: &[&str], rule: Value) -> Value {
        json!({
            "event": "dns-plan", "name": "www.corp.example", "type": "A", "rule": rule,
            "form": form, "resolvers": resolvers, "private": false, "specific": true,
            "here": null, "generation": 1,
        })
    }

    fn answer(resolver: &str, data: &str) -> Value {
        json!({
            "event": "dns-answer", "name": "www.corp.example", "type": "A", "resolver": resolver,
            "from": "servers", "server": "10.20.0.53:53", "transport": "udp",
            "answered_by": [by(resolver, "10.20.0.53:53")], "took_us": 1250,
            "code": "NOERROR", "authentic": false,
            "records": [{ "name": "www.corp.example", "type": "A", "ttl": 300, "data": data }],
            "extended": [], "failure": null, "tries": [],
        })
    }

    #[test]
    fn two_answers_side_by_side() {
        let failed = json!({
            "event": "dns-answer", "resolver": "upstream", "from": "servers", "server": null,
            "transport": null, "took_us": 90, "code": null, "authentic": null, "records": [],
            "extended": [], "failure": "the certificate has expired",
            "tries": [{ "server": "tls://192.0.2.53", "fault": "certificate-expired",
                        "error": "the certificate has expired" }],
        });
        let plan = plan("and", &["corp", "upstream"], json!("a.policy:2"));
        let text = text(&[plan, answer("corp", "10.1.2.3"), failed]);
        let want = "\
www.corp.example A
plan     corp and upstream, by a.policy:2 (private addresses pass)

         corp                                upstream
server   10.20.0.53:53 udp                   none answered
time     1.2 ms                              0.0 ms
code     NOERROR                             none: the certificate has expired
answer   A 10.1.2.3 (300 s)
tried                                        tls://192.0.2.53: the certificate
                                               has expired";
        assert_eq!(text, want);
    }

    fn by(resolver: &str, server: &str) -> Value {
        json!({ "resolver": resolver, "server": server, "transport": "udp", "took_us": 990 })
    }

    /// What an app gets: whose it is, or why it is nobody's.
    #[test]
    fn who_answered() {
        for (from, by, want) in [
            ("servers", vec![by("corp", "10.20.0.53:53")], &["10.20.0.53:53 udp"][..]),
            (
                "servers",
                vec![by("corp", "10.20.0.53:53"), by("upstream", "192.0.2.53:53")],
                &["corp: 10.20.0.53:53 udp in 0.9 ms", "upstream: 192.0.2.53:53 udp in 0.9 ms"],
            ),
            ("servers", vec![], &["none answered"]),
            ("cache", vec![], &["none: from the cache"]),
            ("stale", vec![], &["none: from the cache, past its time"]),
            ("here", vec![], &["none"]),
        ] {
            let answer = json!({ "from": from, "answered_by": by, "took_us": 1250 });
            let column = column(&answer);
            assert_eq!(
                (&*column[1], &*column[2]),
                (
                    &*want.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(),
                    &["1.2 ms".to_owned()][..]
                )
            );
        }
    }

    #[test]
    fn plans_to_be_read() {
        let here = |word: &str| json!({ "name": "x", "type": "A", "here": word, "rule": null });
        for (plan, want) in [
            (plan("one", &["upstream"], Value::Null), "upstream, as no rule names it"),
            (plan("else", &["a", "b"], json!("p:1")), "a else b, by p:1"),
            (plan("none", &[], json!("p:1")), "nobody is asked, by p:1"),
            (here("localhost"), "nobody is asked: this host itself"),
            (here("no-name"), "nobody is asked: a zone that is empty here, as no rule names it"),
            (here("refused"), "nobody is asked: only a rule"),
        ] {
            let text = plan_text(&plan);
            assert!(text.contains(&format!("\nplan     {want}")), "{text}");
        }
    }

    #[test]
    fn eighty_columns() {
        let long = answer(&"r".repeat(64), &"Q".repeat(300));
        let plan = plan("and", &["r"; 40], json!("f".repeat(200)));
        let shown = text(&[plan, long.clone(), long.clone(), long.clone(), long]);
        for line in shown.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
        assert_eq!(shown.matches('Q').count(), 1200, "nothing is cut: {shown}");
    }
}
