//! Keys in memory stay there: not in a core, not for a debugger of the same user.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// From now on this process leaves no core, and its memory can be read by root alone. For `exec`
/// to be called behind the fork: CMD keeps what the user gave it, and what makes the sandbox
/// has to write to its own `/proc/self`.
pub(crate) fn keep() {
    // Neither is refused: the one is a wish about oneself, the other makes a limit smaller.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::path::Path;
    use std::process::Command;

    use rustix::process::{Signal, dumpable_behavior, getrlimit};

    use super::*;

    const DIE: &str = "TUNNELD_TEST_DIES";

    #[test]
    fn secrets_are_keys_passwords_and_identities() {
        for (text, has) in [
            ("", false),
            ("[[proxy]]\nname = \"p\"\nurl = \"socks5://192.0.2.1\"", false),
            ("[[proxy]]\nname = \"p\"\nurl = \"socks5://a:b@192.0.2.1\"", true),
            ("[[resolver]]\nname = \"r\"\nservers = [\"tls://192.0.2.1\"]", false),
            ("[[resolver]]\nname = \"r\"\nservers = [\"tls://192.0.2.1\"]\nidentity = \"i\"", true),
        ] {
            let config = crate::config::parse(Path::new("/none/t.toml"), text);
            assert_eq!(config.expect("no faults").has_secrets(), has, "{text}");
        }
    }

    #[test]
    fn a_process_with_keys_leaves_no_core() {
        if std::env::var_os(DIE).is_some() {
            keep();
            assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
            assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
            std::process::abort();
        }
        let itself = std::env::current_exe().expect("this test");
        let name = "secrets::tests::a_process_with_keys_leaves_no_core";
        let died = Command::new(itself).args(["--exact", name]).env(DIE, "1").output();
        let died = died.expect("it runs");
        let signal = died.status.signal();
        assert_eq!(signal, Some(Signal::ABORT.as_raw()), "{died:?}");
        assert!(!died.status.core_dumped());
    }
}
