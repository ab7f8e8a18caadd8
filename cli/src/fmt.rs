//! `tunneld fmt`: policies in their canonical form.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use engine::policy;
use serde_json::json;

use crate::diagnostics;
use crate::error::{Refusal, code};
use crate::policy_files::{self, PolicyFiles};

/// Bring policy files into canonical form
///
/// That is one space between words, addresses and
/// domains in their usual spelling. Comments, blank lines and order stay.
///
/// Exit: 0 done, 1 a file differs (--check) or is no policy, 2 wrong usage, 5 a file
/// cannot be read or written.
#[derive(Debug, Args)]
pub(crate) struct FmtArgs {
    /// A policy file, or a directory of *.policy files
    #[arg(value_name = "PATH", default_value = policy_files::DIRECTORY)]
    path: PathBuf,
    /// Write nothing; list the files that differ
    #[arg(long)]
    check: bool,
}

/// Runs the verb and gives its exit code.
///
/// # Errors
/// A file cannot be read or written.
pub(crate) fn run(args: &FmtArgs, json: bool) -> anyhow::Result<u8> {
    let files = PolicyFiles::read(std::slice::from_ref(&args.path))?;
    let mut found = files.unreadable().to_vec();
    let mut differ = Vec::new();
    for (path, source) in files.texts() {
        match policy::format(source) {
            Ok(canonical) if canonical == source.text => {}
            Ok(canonical) => differ.push((path, canonical)),
            Err(errors) => found.extend(errors),
        }
    }
    if json {
        found.iter().for_each(|d| diagnostics::line(diagnostics::object(d, &files)));
    } else {
        diagnostics::print(&found, &files);
    }
    for (path, canonical) in &differ {
        if !args.check {
            replace(path, canonical).map_err(|error| {
                Refusal::new(code::FAILED, format!("{}: {error}", path.display()))
            })?;
        }
        if json {
            let shown = path.to_string_lossy();
            diagnostics::line(json!({ "event": "fmt", "file": shown, "written": !args.check }));
        } else {
            diagnostics::line(path.display());
        }
    }
    let finding = !found.is_empty() || (args.check && !differ.is_empty());
    Ok(if finding { code::FINDING } else { code::DONE })
}

/// Puts a new text in a file's place at once, or leaves the old one: a reader never
/// sees half of it. A symbolic link stays one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = path.canonicalize()?;
    let old = fs::metadata(&path)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = File::create_new(&temporary)?;
    let written = keep_owner(&old, &file)
        .and_then(|()| file.write_all(text.as_bytes()))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        // The reason is told; a leftover with a dot in front is read by nobody.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Gives a file the owner and mode of another; only root can give files away, and for
/// anybody else the owner is the same already or the group is their own to choose.
fn keep_owner(old: &fs::Metadata, file: &File) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        fchown(file, Some(old.uid()), Some(old.gid()))?;
    }
    file.set_permissions(old.permissions())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_behind_its_link() {
        let directory = std::env::temp_dir().join(format!("tunneld-fmt-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("temporary directory");
        let (file, link) = (directory.join("a.policy"), directory.join("b.policy"));
        fs::write(&file, "old").expect("file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("mode");
        std::os::unix::fs::symlink("a.policy", &link).expect("link");
        replace(&link, "new").expect("replaced");
        assert_eq!(fs::read_to_string(&file).expect("file"), "new");
        assert_eq!(fs::metadata(&file).expect("file").permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).expect("link").is_symlink());
        assert_eq!(fs::read_dir(&directory).expect("directory").count(), 2);
        fs::remove_dir_all(&directory).expect("temporary directory");
    }
}
