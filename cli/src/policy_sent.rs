//! A policy on its way from a client to the daemon.
//!
//! The client reads the files with its own rights, those of sets too: the daemon opens
//! nothing that a client names.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;

use engine::policy::{Diagnostic, Environment, Policy, ReadError, Severity, Source, code};
use engine::{Resolvers, WayNames};
use serde::{Deserialize, Serialize};

use crate::config::Named;
use crate::diagnostics::Told;
use crate::policy_files::{self, PolicyFiles};

/// All texts of a policy.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicySent {
    /// Its files in the order in which they count.
    pub(crate) sources: Vec<SentSource>,
    /// The files of its sets.
    #[serde(default)]
    pub(crate) files: Vec<SentFile>,
}

/// A policy file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SentSource {
    /// What its rules are named after.
    pub(crate) name: String,
    /// What diagnostics call it; `name` where it is not given.
    #[serde(default)]
    pub(crate) path: Option<String>,
    pub(crate) text: String,
}

/// The file of a set.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SentFile {
    /// The name of the policy file that names it.
    pub(crate) source: String,
    /// As the policy says it.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Reads files and notes what was read.
struct Noting<'f> {
    files: &'f PolicyFiles,
    read: RefCell<Vec<SentFile>>,
}

impl Environment for Noting<'_> {
    fn uid(&self, user: &str) -> Option<u32> {
        self.files.uid(user)
    }

    fn read(&self, source: &str, path: &str) -> Result<String, ReadError> {
        let text = self.files.read(source, path)?;
        let (source, path) = (source.to_owned(), path.to_owned());
        self.read.borrow_mut().push(SentFile { source, path, text: text.clone() });
        Ok(text)
    }

    fn resolvers(&self) -> Resolvers {
        self.files.resolvers()
    }

    fn ways(&self) -> WayNames {
        self.files.ways()
    }

    fn secret(&self) -> u128 {
        self.files.secret()
    }
}

/// What the daemon knows while it loads what was sent.
struct Received<'s> {
    files: HashMap<(&'s str, &'s str), &'s str>,
    named: &'s Named,
}

impl Environment for Received<'_> {
    fn uid(&self, user: &str) -> Option<u32> {
        policy_files::uid(user)
    }

    fn read(&self, source: &str, path: &str) -> Result<String, ReadError> {
        self.files.get(&(source, path)).map(|text| (*text).to_owned()).ok_or(ReadError::Missing)
    }

    fn resolvers(&self) -> Resolvers {
        self.named.resolvers.clone()
    }

    fn ways(&self) -> WayNames {
        self.named.ways.clone()
    }

    fn secret(&self) -> u128 {
        policy_files::secret()
    }
}

impl PolicySent {
    /// All that a policy consists of.
    ///
    /// # Errors
    /// Everything that is wrong with it, whatever the daemon's configuration is.
    pub(crate) fn of(files: &PolicyFiles) -> Result<Self, Vec<Diagnostic>> {
        let noting = Noting { files, read: RefCell::default() };
        let found = files.load_with(&noting).err().unwrap_or_default();
        // What the configuration has is known to the daemon alone.
        let named =
            |found: &Diagnostic| [code::UNKNOWN_WAY, code::UNKNOWN_RESOLVER].contains(&found.code);
        if found.iter().any(|found| found.severity == Severity::Error && !named(found)) {
            return Err(found.into_iter().filter(|found| !named(found)).collect());
        }
        let sources = files.texts().map(|(path, source)| SentSource {
            name: source.name.clone(),
            path: Some(path.to_string_lossy().into_owned()),
            text: source.text.clone(),
        });
        Ok(Self { sources: sources.collect(), files: noting.read.into_inner() })
    }

    /// Compiles and tests it, with the names of the daemon's configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn load(self, named: &Named) -> Result<(Policy, Vec<Told>), Vec<Told>> {
        let mut paths = HashMap::new();
        let mut sources = Vec::with_capacity(self.sources.len());
        for SentSource { name, path, text } in self.sources {
            paths.insert(name.clone(), path.unwrap_or_else(|| name.clone()));
            sources.push(Source { name, text });
        }
        let files = self.files.iter();
        let files = files.map(|file| ((&*file.source, &*file.path), &*file.text)).collect();
        let path_of =
            |source: &str| -> PathBuf { paths.get(source).map_or(source, String::as_str).into() };
        let told = |found: Vec<Diagnostic>| -> Vec<Told> {
            found.iter().map(|diagnostic| Told::of(diagnostic, &path_of)).collect()
        };
        match Policy::load(&sources, &Received { files, named }) {
            Ok((policy, warnings)) => Ok((policy, told(warnings))),
            Err(found) => Err(told(found)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_sets_travel_with_it() {
        let directory = tempfile("sent");
        std::fs::create_dir_all(directory.join("lists")).expect("directory");
        std::fs::write(directory.join("lists/a"), "192.0.2.0/24\n").expect("file");
        let text = "policy 1\nset a = file \"lists/a\"\nblock to @a\ndefault allow\n\
                    expect block tcp any to 192.0.2.1\n";
        std::fs::write(directory.join("a.policy"), text).expect("file");
        let files = PolicyFiles::read(std::slice::from_ref(&directory)).expect("files");
        let sent = PolicySent::of(&files).expect("a good policy");
        std::fs::remove_dir_all(&directory).expect("directory");

        let body = serde_json::to_string(&sent).expect("JSON");
        let received: PolicySent = serde_json::from_str(&body).expect("JSON");
        assert_eq!((&received, received.files.len()), (&sent, 1));
        let (policy, warnings) = received.load(&Named::default()).expect("all of it is there");
        assert_eq!((policy.summary().expects, warnings), (1, Vec::new()));
    }

    #[test]
    fn what_the_configuration_has_the_daemon_knows() {
        let directory = tempfile("sent-named");
        std::fs::create_dir_all(&directory).expect("directory");
        let file = directory.join("a.policy");
        for (more, good) in [("", true), ("alow\n", false)] {
            let text = "policy 1\nset a = 192.0.2.0/24\nroute to @a via wg0\n\
                        resolve * using corp\ndefault allow\nexpect allow tcp any to 192.0.2.1 via wg0\n";
            std::fs::write(&file, format!("{text}{more}")).expect("file");
            let files = PolicyFiles::read(std::slice::from_ref(&file)).expect("files");
            match PolicySent::of(&files) {
                Ok(sent) => {
                    let found = sent.load(&Named::default()).expect_err("it has neither");
                    assert!(good && found.len() == 3, "{found:?}");
                }
                Err(found) => assert!(!good && found.len() == 1, "{found:?}"),
            }
        }
        std::fs::remove_dir_all(&directory).expect("directory");
    }

    #[test]
    fn nothing_is_opened_that_was_not_sent() {
        let text = "policy 1\nset a = file \"etc/passwd\"\nblock to @a\ndefault allow\n";
        let source = SentSource { name: "a".into(), path: None, text: text.into() };
        let sent = PolicySent { sources: vec![source], files: Vec::new() };
        let found = sent.load(&Named::default()).expect_err("no such file");
        assert!(found[0].object()["message"].to_string().contains("no such file"), "{found:?}");
    }

    fn tempfile(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("tunneld-{name}-{}", std::process::id()))
    }
}
