//! What happened while names were resolved, as lines for whoever watches.

use std::sync::Arc;
use std::time::SystemTime;

use dns::ask::ResolverId;
use dns::event::{Event, Said};
use dns::inquiry::type_name;
use serde_json::{Value, json};

use crate::report::timestamp;

/// The object of an event. `name_of` gives a resolver's name.
pub(crate) fn object(
    event: &Event,
    now: SystemTime,
    name_of: &dyn Fn(ResolverId) -> Arc<str>,
) -> Value {
    let of = |id: &ResolverId| name_of(*id).to_string();
    let addresses =
        |list: &[std::net::IpAddr]| -> Value { list.iter().map(ToString::to_string).collect() };
    let mut object = match event {
        Event::Disagreement { name, kind, answers } => json!({
            "event": "disagreement",
            "name": &**name,
            "type": type_name(*kind),
            "answers": answers
                .iter()
                .map(|(id, said)| {
                    let (status, data, error) = match said {
                        Said::Addresses(list) => ("data", addresses(list), Value::Null),
                        Said::Records(records) => ("data", json!(records), Value::Null),
                        Said::NoData => ("no-data", json!([]), Value::Null),
                        Said::NoName => ("no-name", json!([]), Value::Null),
                        Said::Failed(failure) => ("failed", json!([]), failure.to_string().into()),
                    };
                    json!({ "resolver": of(id), "status": status, "data": data, "error": error })
                })
                .collect::<Value>(),
        }),
        Event::Failed { name, kind, failures } => json!({
            "event": "dns",
            "what": "failed",
            "name": &**name,
            "type": type_name(*kind),
            "resolvers": failures
                .iter()
                .map(|(id, failure)| json!({ "resolver": of(id), "error": failure.to_string() }))
                .collect::<Value>(),
        }),
        Event::Loop { name, kind } => json!({
            "event": "dns",
            "what": "loop",
            "name": &**name,
            "type": type_name(*kind),
        }),
        Event::Rebinding { name, kind, resolver, addresses: filtered } => json!({
            "event": "dns",
            "what": "rebinding",
            "name": &**name,
            "type": type_name(*kind),
            "resolver": of(resolver),
            "addresses": addresses(filtered),
        }),
    };
    object["time"] = timestamp(now).into();
    object
}
