//! Writes both files, or none, and over nothing.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::policy_path;
use crate::error::{Refusal, code};

/// Writes the configuration, for its owner alone, and the policy below a directory, which is
/// made where it isn't there.
pub(super) fn write(
    directory: &Path,
    name: &str,
    config: &str,
    policy: &str,
) -> Result<[PathBuf; 2], Refusal> {
    let failed = |path: &Path, error: &io::Error| {
        let refusal = Refusal::new(code::FAILED, format!("{}: {error}", path.display()));
        if error.kind() == io::ErrorKind::AlreadyExists {
            refusal.help("nothing is overwritten: write into another directory")
        } else {
            refusal
        }
    };
    let paths = [directory.join("tunneld.toml"), policy_path(directory, name)];
    let policies = directory.join("policy.d");
    let is_taken = fs::read_dir(&policies).is_ok_and(|mut entries| entries.next().is_some());
    let taken = if is_taken {
        // A policy beside another would be one with it.
        Some(&policies)
    } else {
        paths.iter().find(|path| path.exists())
    };
    if let Some(taken) = taken {
        return Err(failed(taken, &io::ErrorKind::AlreadyExists.into()));
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&policies)
        .map_err(|error| failed(&policies, &error))?;
    let [config_path, policy_path] = &paths;
    create(config_path, config, 0o600).map_err(|error| failed(config_path, &error))?;
    if let Err(error) = create(policy_path, policy, 0o644) {
        // The reason is told; the half of it that was written is ours.
        let _ = fs::remove_file(config_path);
        return Err(failed(policy_path, &error));
    }
    Ok(paths)
}

fn create(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
        // A file that is cut short would be read as a whole one.
        let _ = fs::remove_file(path);
    })
}
