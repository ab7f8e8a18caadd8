//! Names, asked by hand: what an app would get, what each resolver says, who the servers are.
//!
//! With `using` the servers of those resolvers are asked, past rules and cache; without it the
//! plan decides. Nobody else is asked.

use std::time::Duration;

use dns::ask::{By, Question, ResolverId};
use dns::inquiry::{self, Seen, Unaskable, code_name, type_name};
use dns::resolver::Source;
use dns::split::{Choice, Form, Special};
use engine::Resolvers;
use engine::policy::{self, NotAName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Daemon;
use crate::names::{Asked, Deaf, Names, resolver_name};

/// What is asked where nothing is said.
const TYPE: &str = "A";

/// A question that somebody asks by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Inquiry {
    pub(crate) name: String,
    /// `None`: A.
    #[serde(default, rename = "type")]
    pub(crate) kind: Option<String>,
    /// Empty: whoever the plan names.
    #[serde(default)]
    pub(crate) using: Vec<String>,
}

/// Why nothing was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAsked {
    /// No name, as the policy language sees it.
    #[error("{error}")]
    NotAName {
        error: NotAName,
        /// Its letters are not those of ASCII.
        foreign: bool,
    },
    /// An address in place of a name.
    #[error("an address is no name")]
    AnAddress {
        /// The name that stands for it.
        reverse: String,
    },
    /// No such question.
    #[error("`{name} {kind}`: {error}")]
    Unaskable { name: String, kind: String, error: Unaskable },
    /// No such resolver.
    #[error("there is no resolver `{name}`")]
    UnknownResolver {
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// A resolver would be asked the same again.
    #[error("`{name}` is given twice")]
    Twice { name: String },
    /// This daemon answers no names.
    #[error("no names are answered")]
    Nobody,
    /// Whoever would ask is gone.
    #[error("{0}")]
    Deaf(#[from] Deaf),
}

impl Daemon {
    /// What the plan says of a name, and each answer, as the objects of `docs/json.md`.
    pub(crate) async fn inquire(&self, inquiry: Inquiry) -> Result<Vec<Value>, NotAsked> {
        let names = self.names()?;
        let (name, question) = read(&inquiry)?;
        let resolvers = names.resolvers();
        let using = self.resolvers_of(&resolvers, &inquiry.using)?;
        let choice = names.choose(&name, &question);
        let mut objects = vec![self.plan(&resolvers, &name, &question, &choice)];
        if using.is_empty() {
            let mut resolved = names.resolve(&question, &self.events).await?;
            if !matches!(&choice, Choice::Ask(rule) if rule.form != Form::None) {
                resolved.source = Source::Here;
            }
            let mut object = answer(&name, &question, resolved.took, Some(&resolved.seen));
            answered_by(&mut object, &resolvers, &resolved.source);
            objects.push(object);
        } else {
            let asked = names.ask(using, &name, &question).await?;
            objects.extend(asked.iter().map(|asked| said(&resolvers, &name, &question, asked)));
        }
        Ok(objects)
    }

    /// Every server, as the objects of `docs/json.md`.
    pub(crate) fn servers(&self) -> Result<Vec<Value>, NotAsked> {
        Ok(self.names()?.servers())
    }

    /// Forgets answers: of one resolver, or all.
    pub(crate) fn flush(&self, using: Option<&str>) -> Result<Value, NotAsked> {
        let names = self.names()?;
        let wanted: Vec<String> = using.iter().map(|name| (*name).to_owned()).collect();
        let of = self.resolvers_of(&names.resolvers(), &wanted)?;
        let count = names.flush(of.first().copied());
        Ok(json!({ "event": "flushed", "resolver": using, "count": count }))
    }

    fn names(&self) -> Result<&Names, NotAsked> {
        self.names.as_ref().ok_or(NotAsked::Nobody)
    }

    fn resolvers_of(
        &self,
        resolvers: &Resolvers,
        using: &[String],
    ) -> Result<Vec<ResolverId>, NotAsked> {
        let mut found = Vec::new();
        for name in using {
            let Some(id) = resolvers.id(name).map(|id| ResolverId(id.number())) else {
                let known = resolvers.names().map(str::to_owned).collect();
                return Err(NotAsked::UnknownResolver { name: name.clone(), known });
            };
            if found.contains(&id) {
                return Err(NotAsked::Twice { name: name.clone() });
            }
            found.push(id);
        }
        Ok(found)
    }

    /// The verdict of the plan.
    fn plan(
        &self,
        resolvers: &Resolvers,
        name: &str,
        question: &Question,
        choice: &Choice,
    ) -> Value {
        let in_force = self.in_force();
        let (rule, here) = match choice {
            Choice::Ask(rule) => (Some(rule), None),
            Choice::Here(special) => (None, Some(special)),
        };
        let written = rule.map(|_| in_force.policy.resolution(name).rule);
        let asked = rule.into_iter().flat_map(|rule| &rule.resolvers);
        json!({
            "event": "dns-plan",
            "name": name,
            "type": type_name(question.kind),
            "rule": written.filter(|rule| !rule.is_empty()),
            "form": rule.map(|rule| match rule.form {
                Form::One => "one",
                Form::Else => "else",
                Form::Or => "or",
                Form::And => "and",
                Form::None => "none",
            }),
            "resolvers": asked.map(|id| resolver_name(resolvers, *id).to_string()).collect::<Value>(),
            "private": rule.map(|rule| rule.private),
            "specific": rule.map(|rule| rule.specific),
            "here": here.map(|special| match special {
                Special::Localhost | Special::LocalhostReverse => "localhost",
                Special::NoData { .. } => "no-data",
                Special::NoName { .. } => "no-name",
                Special::Refused => "refused",
            }),
            "generation": in_force.generation,
        })
    }
}

/// The name in lower case without its last dot, and the question.
fn read(inquiry: &Inquiry) -> Result<(String, Question), NotAsked> {
    let written = &inquiry.name;
    if let Ok(address) = written.parse() {
        return Err(NotAsked::AnAddress { reverse: inquiry::reverse(address) });
    }
    let name = if written == "." {
        String::new()
    } else {
        let name = policy::name(written);
        let foreign = !written.is_ascii();
        name.map_err(|error| NotAsked::NotAName { error, foreign })?.to_string()
    };
    let kind = inquiry.kind.as_deref().unwrap_or(TYPE);
    let absolute = format!("{name}.");
    let question = inquiry::question(&absolute, kind);
    let question = question.map_err(|error| NotAsked::Unaskable {
        name: written.clone(),
        kind: kind.to_owned(),
        error,
    })?;
    Ok((name, question))
}

/// An answer, or that there is none.
fn answer(name: &str, question: &Question, took: Duration, seen: Option<&Seen>) -> Value {
    let records = seen.into_iter().flat_map(|seen| &seen.records);
    let extended = seen.into_iter().flat_map(|seen| &seen.extended);
    json!({
        "event": "dns-answer",
        "name": name,
        "type": type_name(question.kind),
        "resolver": null,
        "from": null,
        "server": null,
        "transport": null,
        "answered_by": [],
        "took_us": micros(took),
        "code": seen.map(|seen| code_name(seen.code)),
        "authentic": seen.map(|seen| seen.authentic),
        "records": records
            .map(|r| json!({ "name": r.name, "type": r.kind, "ttl": r.ttl, "data": r.data }))
            .collect::<Value>(),
        "extended": extended
            .map(|(code, text)| json!({ "code": code, "text": text }))
            .collect::<Value>(),
        "failure": null,
        "tries": [],
    })
}

/// Where an answer is from. One that several made has no one server.
fn answered_by(object: &mut Value, resolvers: &Resolvers, source: &Source) {
    object["from"] = source.word().into();
    let Source::Servers(by) = source else { return };
    if let [one] = &**by {
        object["server"] = one.server.to_string().into();
        object["transport"] = one.transport.scheme().into();
    }
    let by = by.iter().map(|by| {
        json!({
            "resolver": &*resolver_name(resolvers, by.resolver),
            "server": by.server.to_string(),
            "transport": by.transport.scheme(),
            "took_us": micros(by.took),
        })
    });
    object["answered_by"] = by.collect();
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What a resolver that was named said.
fn said(resolvers: &Resolvers, name: &str, question: &Question, asked: &Asked) -> Value {
    let seen = asked.said.as_ref().ok().map(|said| &said.seen);
    let mut object = answer(name, question, asked.took, seen);
    object["resolver"] = (*resolver_name(resolvers, asked.resolver)).into();
    let by = asked.said.as_ref().map(|said| By {
        resolver: asked.resolver,
        server: said.server,
        transport: said.transport,
        took: asked.took,
    });
    answered_by(&mut object, resolvers, &Source::Servers(by.into_iter().collect()));
    if let Err(unsaid) = &asked.said {
        object["failure"] = unsaid.failure.to_string().into();
        let tries = unsaid.tries.iter().map(|tried| {
            json!({
                "server": tried.server.to_string(),
                "fault": tried.fault.word(),
                "error": tried.fault.to_string(),
            })
        });
        object["tries"] = tries.collect();
    }
    object
}

impl NotAsked {
    /// What helps.
    pub(crate) fn help(&self) -> String {
        match self {
            Self::NotAName { foreign: true, .. } => {
                "write its A-label, as in `xn--bcher-kva.example`".to_owned()
            }
            Self::NotAName { foreign: false, .. } => {
                "a name is letters, digits, `-` and `_` between dots".to_owned()
            }
            Self::AnAddress { reverse } => format!("its name is `{reverse}`, of type PTR"),
            Self::Unaskable { error: Unaskable::UnknownType, .. } => {
                "a type is a name such as AAAA, or TYPE28".to_owned()
            }
            Self::Unaskable { .. } => "ask for a type of data, such as AAAA".to_owned(),
            Self::UnknownResolver { known, .. } => format!("there are: {}", known.join(", ")),
            Self::Twice { .. } => "name each resolver once".to_owned(),
            Self::Nobody | Self::Deaf(_) => "the daemon's log says more".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_asked() {
        for (name, kind, want) in [
            ("WWW.Example.com.", None, Ok(("www.example.com", "A"))),
            ("_sip._udp.example", Some("srv"), Ok(("_sip._udp.example", "SRV"))),
            (".", Some("NS"), Ok(("", "NS"))),
            ("example", Some("TYPE65400"), Ok(("example", "TYPE65400"))),
            ("bücher.example", None, Err("write its A-label, as in `xn--bcher-kva.example`")),
            ("a b", None, Err("a name is letters, digits, `-` and `_` between dots")),
            ("", None, Err("a name is letters, digits, `-` and `_` between dots")),
            ("*.example", None, Err("a name is letters, digits, `-` and `_` between dots")),
            ("192.0.2.1", None, Err("its name is `1.2.0.192.in-addr.arpa`, of type PTR")),
            ("example", Some("B"), Err("a type is a name such as AAAA, or TYPE28")),
            ("example", Some("ANY"), Err("ask for a type of data, such as AAAA")),
        ] {
            let kind = kind.map(str::to_owned);
            let inquiry = Inquiry { name: name.to_owned(), kind, using: Vec::new() };
            let got = read(&inquiry);
            let got = got.as_ref().map(|(name, asked)| (&**name, type_name(asked.kind)));
            let got = got.map_err(NotAsked::help);
            let want = want.map(|(name, kind)| (name, kind.to_owned())).map_err(str::to_owned);
            assert_eq!(got, want, "{name}");
        }
    }
}
