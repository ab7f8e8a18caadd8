//! Policies from disk: which files count, and what the host knows about the users and
//! sets that they name.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use engine::policy::{self, Diagnostic, Environment, Policy, ReadError, Source};
use engine::{Resolvers, WayNames};

use crate::config::{Config, Named};
use crate::diagnostics;
use crate::error::{Refusal, code};

/// Where the policy is when nobody says otherwise.
pub(crate) const DIRECTORY: &str = "/etc/tunneld/policy.d";

/// Where a daemon with this configuration reads its policy.
pub(crate) fn directory(config: &Config) -> PathBuf {
    config.policy.clone().unwrap_or_else(|| DIRECTORY.into())
}

/// The files of a policy in the order in which they count.
#[derive(Debug, Default)]
pub(crate) struct PolicyFiles {
    list: Vec<PolicyFile>,
    /// What is wrong with them before a word is read.
    unreadable: Vec<Diagnostic>,
    named: Named,
}

#[derive(Debug)]
struct PolicyFile {
    path: PathBuf,
    source: Source,
}

/// Loads a policy from files and directories, each of them as a whole, and prints what
/// is to be said about it to standard error. Beside it are the names of the
/// configuration.
///
/// # Errors
/// It cannot be read, or it has errors; `refused` is the exit code for the latter.
pub(crate) fn load(paths: &[PathBuf], named: Named, refused: u8) -> anyhow::Result<Policy> {
    let files = PolicyFiles::read(paths)?.with_names(named);
    match files.load() {
        Ok((policy, warnings)) => {
            diagnostics::print(&warnings, &files);
            Ok(policy)
        }
        Err(found) => {
            diagnostics::print(&found, &files);
            Err(Refusal::new(refused, format!("policy: {}", diagnostics::count(&found))).into())
        }
    }
}

impl PolicyFiles {
    /// Reads each path: a file, or the `*.policy` files of a directory in name order.
    ///
    /// # Errors
    /// A path is not there or may not be read.
    pub(crate) fn read(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut files = Self::default();
        let mut names = HashSet::new();
        for path in paths {
            for path in expand(path)? {
                let bytes = fs::read(&path).map_err(|error| unreadable(&path, &error))?;
                // Rules are named after the file, as long as that tells them apart.
                let short = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
                let long = path.to_string_lossy();
                let name = if names.contains(&*short) { long } else { short }.into_owned();
                names.insert(name.clone());
                files.add(path, name, bytes);
            }
        }
        Ok(files)
    }

    /// The same files, with the names of a configuration; else there are `upstream` and `direct`
    /// alone.
    #[must_use]
    pub(crate) fn with_names(self, named: Named) -> Self {
        Self { named, ..self }
    }

    /// Parses, compiles and tests.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(crate) fn load(&self) -> Result<(Policy, Vec<Diagnostic>), Vec<Diagnostic>> {
        self.load_with(self)
    }

    /// The same, asking somebody else for users and the files of sets.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(crate) fn load_with(
        &self,
        environment: &dyn Environment,
    ) -> Result<(Policy, Vec<Diagnostic>), Vec<Diagnostic>> {
        if self.unreadable.is_empty() {
            return Policy::load(&self.sources(), environment);
        }
        // What the files say together cannot be known without all of them.
        Err(self.check_syntax().err().unwrap_or_default())
    }

    /// Looks at the grammar alone.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(crate) fn check_syntax(&self) -> Result<(), Vec<Diagnostic>> {
        let found = policy::check_syntax(&self.sources()).err().unwrap_or_default();
        let all: Vec<_> = self.unreadable.iter().cloned().chain(found).collect();
        if all.is_empty() { Ok(()) } else { Err(all) }
    }

    /// Path and text of each file that is text.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&Path, &Source)> {
        self.list.iter().map(|file| (&*file.path, &file.source))
    }

    /// What is wrong with files that are no text.
    pub(crate) fn unreadable(&self) -> &[Diagnostic] {
        &self.unreadable
    }

    /// How many files there are.
    pub(crate) fn count(&self) -> usize {
        self.list.len() + self.unreadable.len()
    }

    /// Where a source of a diagnostic lies: a policy file, or the file of a set.
    pub(crate) fn path_of(&self, source: &str) -> PathBuf {
        if let Some(file) = self.list.iter().find(|file| file.source.name == source) {
            return file.path.clone();
        }
        let places = self.list.iter().map(|file| directory_of(&file.path).join(source));
        places.into_iter().find(|path| path.exists()).unwrap_or_else(|| PathBuf::from(source))
    }

    fn add(&mut self, path: PathBuf, name: String, bytes: Vec<u8>) {
        match String::from_utf8(bytes) {
            Ok(text) => self.list.push(PolicyFile { path, source: Source { name, text } }),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes());
                let shown = path.to_string_lossy();
                self.unreadable.push(policy::not_text(&shown, &text, at));
            }
        }
    }

    fn sources(&self) -> Vec<Source> {
        self.list.iter().map(|file| file.source.clone()).collect()
    }
}

impl Environment for PolicyFiles {
    fn uid(&self, user: &str) -> Option<u32> {
        uid(user)
    }

    fn read(&self, source: &str, path: &str) -> Result<String, ReadError> {
        let file = self.list.iter().find(|file| file.source.name == source);
        let directory = file.map_or_else(|| Path::new("."), |file| directory_of(&file.path));
        read_below(directory, path)
    }

    fn resolvers(&self) -> Resolvers {
        self.named.resolvers.clone()
    }

    fn ways(&self) -> WayNames {
        self.named.ways.clone()
    }

    fn secret(&self) -> u128 {
        secret()
    }
}

/// Random bits for one load of a policy.
pub(crate) fn secret() -> u128 {
    let random = RandomState::new();
    u128::from(random.hash_one(0)) << 64 | u128::from(random.hash_one(1))
}

/// The files that a path stands for.
fn expand(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let kind = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !kind.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| unreadable(path, &error))? {
        let name = entry.map_err(|error| unreadable(path, &error))?.file_name();
        let bytes = name.as_encoded_bytes();
        if bytes.ends_with(b".policy") && !bytes.starts_with(b".") {
            found.push(name);
        }
    }
    if found.is_empty() {
        let what = format!("{}: no *.policy file in this directory", path.display());
        return Err(Refusal::new(code::FAILED, what).into());
    }
    found.sort();
    Ok(found.into_iter().map(|name| path.join(name)).collect())
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

/// Reads a file of a set. The engine has refused `..` and absolute paths; a symbolic
/// link must not lead out of the directory either.
fn read_below(directory: &Path, path: &str) -> Result<String, ReadError> {
    let directory = directory.canonicalize().map_err(|error| read_error(&error))?;
    let path = directory.join(path).canonicalize().map_err(|error| read_error(&error))?;
    if !path.starts_with(&directory) {
        return Err(ReadError::Outside);
    }
    if !fs::metadata(&path).map_err(|error| read_error(&error))?.is_file() {
        return Err(ReadError::NotAFile);
    }
    let bytes = fs::read(&path).map_err(|error| read_error(&error))?;
    String::from_utf8(bytes).map_err(|error| ReadError::NotText(error.utf8_error().valid_up_to()))
}

fn read_error(error: &io::Error) -> ReadError {
    let kind = error.kind();
    if kind == io::ErrorKind::NotFound {
        ReadError::Missing
    } else if kind == io::ErrorKind::PermissionDenied {
        ReadError::Denied
    } else {
        ReadError::Failed(kind)
    }
}

fn unreadable(path: &Path, error: &io::Error) -> anyhow::Error {
    Refusal::new(code::FAILED, format!("{}: {error}", path.display())).into()
}

/// The uid of a user: from /etc/passwd, else from whatever the host asks (LDAP,
/// systemd-homed) through getent(1).
pub(crate) fn uid(user: &str) -> Option<u32> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    uid_in(&passwd, user).or_else(|| {
        let asked = Command::new("getent")
            .args(["passwd", "--", user])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        uid_in(&String::from_utf8_lossy(&asked.stdout), user)
    })
}

fn uid_in(passwd: &str, user: &str) -> Option<u32> {
    let mut lines = passwd.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        (fields.next() == Some(user)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n# c\n\nbad\nalice:x:1000:1000::/:/bin/sh\n";
        for (user, want) in
            [("root", Some(0)), ("alice", Some(1000)), ("bad", None), ("x", None), ("", None)]
        {
            assert_eq!(uid_in(passwd, user), want, "{user}");
        }
        assert_eq!(uid("root"), Some(0));
        assert_eq!(uid("no-such-user-here"), None);
    }

    #[test]
    fn files_below_the_directory() {
        let directory = std::env::temp_dir().join(format!("tunneld-policy-{}", std::process::id()));
        fs::create_dir_all(directory.join("p/lists")).expect("temporary directory");
        fs::write(directory.join("p/lists/a"), "10.0.0.1").expect("file");
        fs::write(directory.join("p/bytes"), b"10\xff").expect("file");
        fs::write(directory.join("secret"), "10.0.0.2").expect("file");
        std::os::unix::fs::symlink("../secret", directory.join("p/link")).expect("link");
        std::os::unix::fs::symlink("lists/a", directory.join("p/inner")).expect("link");
        let policy = directory.join("p");
        for (path, want) in [
            ("lists/a", Ok("10.0.0.1".to_owned())),
            ("inner", Ok("10.0.0.1".to_owned())),
            ("lists", Err(ReadError::NotAFile)),
            ("nothing", Err(ReadError::Missing)),
            ("link", Err(ReadError::Outside)),
            ("bytes", Err(ReadError::NotText(2))),
        ] {
            assert_eq!(read_below(&policy, path), want, "{path}");
        }
        fs::remove_dir_all(&directory).expect("temporary directory");
    }
}
