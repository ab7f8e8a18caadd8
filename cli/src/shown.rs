//! What the daemon's objects look like to people, in 80 columns.

use std::collections::HashMap;

use serde_json::Value;

use crate::diagnostics::COLUMNS;

/// Words one after the other; a line that is full goes on below, indented.
#[derive(Debug)]
pub(crate) struct Flowing {
    text: String,
    column: usize,
    indent: usize,
    /// Nothing stands in this line yet.
    fresh: bool,
}

impl Flowing {
    /// Later lines begin `indent` columns in.
    pub(crate) fn new(indent: usize) -> Self {
        Self { text: String::new(), column: 0, indent, fresh: true }
    }

    /// Adds words that stay together where that is possible.
    pub(crate) fn add(&mut self, words: impl AsRef<str>) -> &mut Self {
        let words = words.as_ref();
        let length = words.chars().count();
        if length == 0 {
            return self;
        }
        if !self.fresh && self.column + 1 + length > COLUMNS {
            self.text.push('\n');
            self.text.push_str(&" ".repeat(self.indent));
            self.column = self.indent;
        } else if !self.fresh {
            self.text.push(' ');
            self.column += 1;
        }
        self.fresh = false;
        let room = COLUMNS.saturating_sub(self.column);
        if length > room {
            self.text.extend(words.chars().take(room.saturating_sub(1)));
            self.text.push('…');
            self.column = COLUMNS;
        } else {
            self.text.push_str(words);
            self.column += length;
        }
        self
    }

    pub(crate) fn end(self) -> String {
        self.text
    }
}

/// A value as a word; nothing where it is not known.
pub(crate) fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        Value::Null => String::new(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// A flow in two lines.
pub(crate) fn flow(flow: &Value) -> String {
    let mut out = Flowing::new(8);
    let source = &flow[if flow["source"].is_null() { "client" } else { "source" }];
    out.add(word(&flow["id"])).add(word(&flow["state"])).add(word(&flow["protocol"]));
    out.add(word(source)).add(format!("> {}", word(&flow["destination"])));
    if let Some(device) = flow["egress"]["device"].as_str() {
        out.add(format!("by {device}"));
    }
    out.add(format!("{} by {}", word(&flow["verdict"]), rule(&flow["rule"])));
    let owner = &flow["owner"];
    let owner = word(&owner[if owner["user"].is_null() { "uid" } else { "user" }]);
    out.add(owner);
    let (sent, received) = (bytes(&flow["sent"]), bytes(&flow["received"]));
    out.add(format!("{sent} sent,")).add(format!("{received} received"));
    out.add(word(&flow["reason"]));
    out.end()
}

/// A rule's name, or that there is none.
fn rule(rule: &Value) -> String {
    if rule.is_null() { "no rule".to_owned() } else { word(rule) }
}

/// What a reload cuts or a diff would cut.
pub(crate) fn cut(object: &Value) -> Vec<String> {
    let list = |key: &str| object[key].as_array().map_or(&[][..], Vec::as_slice);
    let via: HashMap<&str, &Value> = list("moved")
        .iter()
        .filter_map(|moved| Some((moved["flow"]["id"].as_str()?, &moved["via"])))
        .collect();
    let line = |cut: &Value| {
        let flow = &cut["flow"];
        let via = flow["id"].as_str().and_then(|id| via.get(id));
        let head = match via {
            Some(via) => format!("by {}", word(via)),
            None => format!("{} by {}", word(&cut["verdict"]), rule(&cut["rule"])),
        };
        let ends = format!("{} > {}", word(&flow["client"]), word(&flow["destination"]));
        let mut out = Flowing::new(8);
        out.add(word(&flow["id"])).add(word(&flow["protocol"])).add(ends);
        out.add(word(&flow["owner"]["user"])).add(format!("now {head}"));
        out.end()
    };
    list("cut").iter().map(line).collect()
}

/// An amount of bytes, to be read.
pub(crate) fn bytes(value: &Value) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let count = value.as_u64().unwrap_or_default();
    let mut unit = 0;
    let mut rest = count;
    while rest >= 1024 && unit + 1 < UNITS.len() {
        rest /= 1024;
        unit += 1;
    }
    if unit == 0 {
        return format!("{count} B");
    }
    let tenths = u128::from(count) * 10 / (1u128 << (10 * unit));
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn amounts() {
        for (count, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(bytes(&json!(count)), want);
        }
    }

    #[test]
    fn words_stand_apart() {
        let mut out = Flowing::new(8);
        out.add("0-4 open").add("").add("udp").add("x".repeat(70)).add("y");
        assert_eq!(out.end(), format!("0-4 open udp\n        {} y", "x".repeat(70)));
    }

    #[test]
    fn what_moves_is_told_by_where() {
        let flow =
            |id: &str| json!({ "id": id, "protocol": "tcp", "client": "a", "destination": "b" });
        let cut = |id: &str| json!({ "flow": flow(id), "verdict": "allow", "rule": "x" });
        let moved = json!([{ "flow": flow("0-2"), "via": "wg1" }]);
        let object = json!({ "cut": [cut("0-1"), cut("0-2")], "moved": moved });
        let want = ["0-1 tcp a > b now allow by x", "0-2 tcp a > b now by wg1"];
        assert_eq!(super::cut(&object), want);
    }

    #[test]
    fn eighty_columns() {
        let address = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535";
        let long = json!({
            "id": "63-18446744073709551615", "state": "connecting", "protocol": "icmp",
            "client": address, "source": address, "destination": address,
            "egress": { "device": "a-long-device-0" }, "verdict": "block",
            "rule": "r".repeat(300), "owner": { "user": "u".repeat(32) }, "reason": "idle",
            "sent": u64::MAX, "received": u64::MAX,
        });
        let object = json!({ "cut": [{ "flow": long, "verdict": "block", "rule": "x\ny" }] });
        let shown = format!("{}\n{}", flow(&long), cut(&object).join("\n"));
        assert!(!shown.contains("\n\n") && shown.contains("x?y"), "{shown}");
        for line in shown.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
    }
}
