//! The description of the control socket in OpenAPI 3.1. `docs/json.md` describes the objects.

use serde_json::{Map, Value, json};

use crate::daemon::OPENMETRICS;

/// A request.
pub(super) struct Described {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    summary: &'static str,
    /// Who may.
    rights: &'static str,
    /// Keys of the query.
    query: &'static [(&'static str, &'static str)],
    body: Option<Schema>,
    answer: Form,
    /// The `event` of the objects.
    event: &'static str,
}

/// What an answer consists of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Object,
    /// One object a line.
    Lines,
    /// Text in the format of OpenMetrics.
    Metrics,
}

impl Form {
    fn media_type(self) -> &'static str {
        match self {
            Self::Object => "application/json",
            Self::Lines => "application/x-ndjson",
            Self::Metrics => OPENMETRICS,
        }
    }
}

/// What a body must be.
#[derive(Clone, Copy)]
enum Schema {
    Policy,
    Flow,
    Inquiry,
}

const LOOK: &str = "root, admins, members of the group";
const ACT: &str = "root, admins";

const fn look(path: &'static str, event: &'static str, summary: &'static str) -> Described {
    let (method, rights, answer) = ("get", LOOK, Form::Object);
    Described { method, path, summary, rights, query: &[], body: None, answer, event }
}

const fn order(path: &'static str, event: &'static str, summary: &'static str) -> Described {
    Described { method: "post", ..look(path, event, summary) }
}

/// Every request there is.
pub(super) const REQUESTS: [Described; 13] = [
    look("/v1/status", "status", "The daemon's state"),
    Described {
        query: &[("match", "Clauses of the policy language, such as `tcp port 443 user alice`")],
        answer: Form::Lines,
        ..look("/v1/flows", "flow", "Live flows")
    },
    Described {
        method: "delete",
        rights: "root, admins, the flow's own user",
        ..look("/v1/flows/{id}", "killed", "Ends a flow")
    },
    Described {
        answer: Form::Lines,
        ..look("/v1/rules", "rule", "Rules and how often each decided")
    },
    Described {
        rights: ACT,
        query: &[("dry_run", "1: say what would be cut, for which the right to look is enough")],
        ..order("/v1/reload", "reload", "Reads configuration and policy again, all or nothing")
    },
    Described {
        body: Some(Schema::Policy),
        ..order("/v1/diff", "diff", "Live flows that a policy would cut")
    },
    Described {
        body: Some(Schema::Flow),
        ..order("/v1/explain", "explain", "What the policy in force does with a flow, and why")
    },
    Described {
        body: Some(Schema::Inquiry),
        answer: Form::Lines,
        ..order("/v1/dns/query", "dns-answer", "What the plan says of a name, and each answer")
    },
    Described {
        answer: Form::Lines,
        ..look("/v1/dns/servers", "server", "Servers of names and where each was learned")
    },
    Described {
        query: &[("using", "A resolver; without it everything is forgotten")],
        ..order("/v1/dns/flush", "flushed", "Forgets answers that were kept")
    },
    Described { answer: Form::Lines, ..look("/v1/watch", "flow", "Events as they happen") },
    look("/v1/openapi.json", "", "This description"),
    Described {
        answer: Form::Metrics,
        ..look("/metrics", "", "Metrics, in the text format of OpenMetrics 1.0")
    },
];

impl Schema {
    fn value(self) -> Value {
        let text = json!({ "type": "string" });
        match self {
            Self::Policy => json!({
                "type": "object",
                "required": ["sources"],
                "additionalProperties": false,
                "properties": {
                    "sources": { "type": "array", "items": {
                        "type": "object",
                        "required": ["name", "text"],
                        "additionalProperties": false,
                        "properties": {
                            "name": text, "text": text, "path": { "type": ["string", "null"] },
                        },
                    }},
                    "files": { "type": "array", "items": {
                        "type": "object",
                        "required": ["source", "path", "text"],
                        "additionalProperties": false,
                        "properties": { "source": text, "path": text, "text": text },
                    }},
                },
            }),
            Self::Flow => json!({
                "type": "object",
                "required": ["protocol"],
                "anyOf": [{ "required": ["destination"] }, { "required": ["name"] }],
                "additionalProperties": false,
                "properties": {
                    "protocol": { "enum": ["tcp", "udp", "icmp"] },
                    "destination": { "type": ["string", "null"] },
                    "name": { "type": ["string", "null"] },
                    "source": { "type": ["string", "null"] },
                    "port": { "type": ["integer", "null"], "minimum": 0, "maximum": 65535 },
                    "client": { "type": ["string", "null"] },
                    "uid": { "type": ["integer", "null"], "minimum": 0 },
                },
            }),
            Self::Inquiry => json!({
                "type": "object",
                "required": ["name"],
                "additionalProperties": false,
                "properties": {
                    "name": text,
                    "type": { "type": ["string", "null"] },
                    "using": { "type": "array", "items": text },
                },
            }),
        }
    }
}

/// The document.
pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for request in &REQUESTS {
        let operations = paths.entry(request.path).or_insert_with(|| json!({}));
        operations[request.method] = operation(request);
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "tunneld control socket", "version": env!("CARGO_PKG_VERSION") },
        "servers": [{ "url": "http://localhost", "description": "over the Unix socket" }],
        "paths": paths,
        "components": { "schemas": {
            "error": {
                "type": "object",
                "required": ["event", "error", "help", "exit"],
                "properties": {
                    "event": { "const": "error" },
                    "error": { "type": "string" },
                    "help": { "type": ["string", "null"] },
                    "exit": { "type": "integer" },
                    "diagnostics": { "type": "array", "items": { "type": "object" } },
                },
            },
        }},
    })
}

fn operation(request: &Described) -> Value {
    let in_query = request.query.iter().map(|(name, description)| {
        json!({
            "name": name, "in": "query", "required": false, "description": description,
            "schema": { "type": "string" },
        })
    });
    let in_path = request.path.contains("{id}").then(|| {
        json!({
            "name": "id", "in": "path", "required": true, "description": "SHARD-NUMBER",
            "schema": { "type": "string", "pattern": "^[0-9]+-[0-9]+$" },
        })
    });
    let content = request.answer.media_type();
    let kind = if request.answer == Form::Metrics { "string" } else { "object" };
    let mut schema = json!({ "type": kind });
    if !request.event.is_empty() {
        schema["properties"] = json!({ "event": { "const": request.event } });
    }
    // Some carry objects of other kinds as well.
    let kinds = match request.path {
        "/v1/watch" => &["flow", "disagreement", "dns", "lost"][..],
        "/v1/dns/query" => &["dns-plan", "dns-answer"],
        _ => &[],
    };
    if !kinds.is_empty() {
        schema["properties"] = json!({ "event": { "enum": kinds } });
    }
    let mut operation = json!({
        "summary": request.summary,
        "description": format!("Who may: {}.", request.rights),
        "parameters": in_query.chain(in_path).collect::<Value>(),
        "responses": {
            "200": { "description": "Done", "content": { content: { "schema": schema } } },
            "default": { "description": "Not done", "content": { "application/json": {
                "schema": { "$ref": "#/components/schemas/error" },
            }}},
        },
    });
    if let Some(body) = request.body {
        operation["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": body.value() } },
        });
    }
    operation
}
