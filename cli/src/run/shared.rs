//! The host, which several threads of the daemon change in turn.
//!
//! Whoever has it keeps it for milliseconds. The lock that keeps a second daemon out goes with
//! the host itself, and that is here until all is put back, whatever becomes of a thread.

use std::sync::{Arc, Mutex};

use tunnel::host::{Change, Host, HostError};

/// A part in the host.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Option<Host>>>);

impl Shared {
    pub(super) fn new(host: Host) -> Self {
        Self(Arc::new(Mutex::new(Some(host))))
    }

    /// Does something with the host. `None`: it was put back, or a thread has panicked at it, and
    /// what it is like is not known.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Host) -> T) -> Option<T> {
        self.0.lock().ok()?.as_mut().map(act)
    }

    /// Puts everything back, and tells what. Nobody changes the host any more.
    pub(super) fn restore(&self) -> Result<Vec<Change>, HostError> {
        let restored = match self.0.lock() {
            Ok(mut host) => host.take().map(Host::restore),
            Err(poisoned) => poisoned.into_inner().take().map(Host::restore_after_panic),
        };
        restored.unwrap_or_else(|| Ok(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_panic_at_the_host_lets_no_other_daemon_in_and_is_put_back() {
        let directory = std::env::temp_dir().join(format!("tunneld-shared-{}", std::process::id()));
        let record = |text: &str| Change::ResolvConf {
            path: directory.join("resolv.conf"),
            kept: directory.join("kept"),
            text: text.to_owned(),
            holder: directory.clone(),
        };
        let (host, _) = Host::open(&directory).unwrap();
        std::fs::write(directory.join("resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
        let shared = Shared::new(host);
        assert_eq!(shared.with(|_| 7), Some(7));

        let other = shared.clone();
        let made = record("nameserver 198.18.0.2\n");
        let panicked = thread::spawn(move || {
            other.with(|host| {
                host.begin(made).unwrap().make().unwrap();
                panic!("a fault, made for this test");
            })
        });
        assert!(panicked.join().is_err());
        assert!(shared.with(|_| ()).is_none(), "nobody goes on with it");
        assert!(matches!(Host::open(&directory), Err(HostError::Running { .. })));
        let text = || std::fs::read_to_string(directory.join("resolv.conf")).unwrap();
        assert!(text().contains("198.18.0.2"));
        assert_eq!(shared.restore().unwrap().len(), 1);
        assert_eq!(text(), "nameserver 192.0.2.1\n");

        assert!(shared.with(|_| ()).is_none(), "a thread that comes late finds nothing");
        assert!(shared.restore().unwrap().is_empty());
        drop(Host::open(&directory).unwrap());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
