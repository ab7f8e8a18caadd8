//! A directory for the files of one test, writable by every uid.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// A directory under the system's temporary one, removed on drop.
///
/// Not below `target`: an unprivileged program must be able to reach it
/// wherever the source tree lies.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = std::env::temp_dir().join(format!(
            "tunneld-lab-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir(&path).with_context(|| format!("mkdir {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file, making the directories above it, and gives its path.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.join(name);
        if let Some(above) = path.parent() {
            fs::create_dir_all(above)?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// The same for a file that its owner alone may read.
    pub fn write_secret(&self, name: &str, text: &str) -> Result<PathBuf> {
        // Never readable, not even while it is empty.
        let path = self.write(name, "")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        self.write(name, text)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A directory left behind is litter, not a failure of the test.
        let _ = fs::remove_dir_all(&self.path);
    }
}
