//! Tables over whole policies: what loads, what is refused and where.

mod expects;
mod faults;
mod figures;
mod names;
mod routes;
mod rules;
mod warnings;
mod words;

use std::collections::HashMap;

use super::*;
use crate::{Fact, Owner, Protocol};

/// Users and files out of tables.
struct Bench {
    files: HashMap<&'static str, String>,
    ways: Vec<&'static str>,
}

impl Environment for Bench {
    fn uid(&self, user: &str) -> Option<u32> {
        [("root", 0), ("alice", 1000), ("unknown", 65_534)]
            .iter()
            .find(|(name, _)| *name == user)
            .map(|(_, uid)| *uid)
    }

    fn read(&self, _: &str, path: &str) -> Result<String, ReadError> {
        self.files.get(path).cloned().ok_or(ReadError::Missing)
    }

    fn resolvers(&self) -> Resolvers {
        Resolvers::default().configured(["corp", "lab"]).expect("few")
    }

    fn ways(&self) -> WayNames {
        let ways = self.ways.iter().map(|way| (*way, crate::WayKind::Link));
        WayNames::default().configured(ways).expect("few")
    }

    fn secret(&self) -> u128 {
        0x0123_4567_89ab_cdef
    }
}

fn bench() -> Bench {
    let files = [
        ("lists/lan.txt", "10.0.0.0/8\n192.168.0.0/16 # home\n\nfd00::/8\n"),
        ("lists/ads.txt", "ads.example\n0.0.0.0 a.example b.example\n203.0.113.0/24\n"),
        ("lists/bad.txt", "10.0.0.1/8\nok.example\n-bad\n"),
        ("lists/empty.txt", "# nothing\n"),
    ];
    let files = files.map(|(name, text)| (name, text.to_owned())).into();
    Bench { files, ways: Vec::new() }
}

type Loaded = Result<(Policy, Vec<Diagnostic>), Vec<Diagnostic>>;

fn with_ways(ways: &[&'static str], text: &str) -> Loaded {
    let source = Source { name: "a.policy".into(), text: text.into() };
    Policy::load(&[source], &Bench { ways: ways.to_vec(), ..bench() })
}

fn load(texts: &[&str]) -> Loaded {
    let sources: Vec<Source> = texts
        .iter()
        .zip(["a.policy", "b.policy", "c.policy"])
        .map(|(text, name)| Source { name: name.into(), text: (*text).into() })
        .collect();
    Policy::load(&sources, &bench())
}

/// `code file:line:column` of everything that was said.
fn said(loaded: &Loaded) -> Vec<String> {
    let diagnostics = match loaded {
        Ok((_, warnings)) => warnings,
        Err(diagnostics) => diagnostics,
    };
    diagnostics
        .iter()
        .map(|d| format!("{} {}:{}:{}", d.code, d.place.source, d.place.line, d.place.column))
        .collect()
}

/// Loads one line between a format and a default.
fn line(line: &str) -> Loaded {
    load(&[&format!("policy 1\n{line}\ndefault block\n")])
}
