//! Why there is no sandbox, in one line, and what to do about it, in another.

use std::ffi::OsString;
use std::fs;

use rustix::io::Errno;

/// Why there is no sandbox, or no CMD in it. Displays as `WHAT: WHY`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpawnError {
    /// No command was given.
    #[error("cannot run the command: there is none")]
    NoCommand,
    /// A NUL ends a string on its way to the kernel.
    #[error("cannot run the command: a word of it contains a NUL byte")]
    Nul,
    /// The plan's number of queues.
    #[error("cannot make the TUN device: {0} queues, and it has 1 to {max}", max = super::MAX_QUEUES)]
    Queues(usize),
    /// The process that is to fork has this many threads.
    #[error("cannot make the sandbox: tunneld runs {0} threads already")]
    Threads(usize),
    /// `/proc` isn't there.
    #[error("cannot make the sandbox: /proc is not mounted")]
    NoProc,
    /// No second process, or no socket to it.
    #[error("cannot make the sandbox: {}", reason(*.0))]
    Fork(Errno),
    /// The child ended without a word.
    #[error("cannot make the sandbox: the process that was to make it was killed")]
    Ended,
    /// Parent and child don't understand each other.
    #[error("cannot make the sandbox: the process that was to make it says nonsense ({})", reason(*.0))]
    Handover(Errno),
    /// CMD runs, and how it ends can't be known.
    #[error("cannot wait for the command: {}", reason(*.0))]
    Wait(Errno),
    /// No user namespace, and no right to go without.
    #[error("cannot make a user namespace: {}", reason(*.1))]
    UserNamespace(NoUserNamespace, Errno),
    /// `/dev/net/tun` can't be opened.
    #[error("cannot open /dev/net/tun: {}", reason(*.0))]
    Tun(Errno),
    /// Another step inside.
    #[error("cannot {}: {}", .0.action(), reason(*.1))]
    Step(Stage, Errno),
    /// CMD can't be executed.
    #[error("cannot run `{}`: {}", .program.display(), reason(*.errno))]
    Command {
        /// The word that names it.
        program: OsString,
        /// What `execvp` said.
        errno: Errno,
    },
}

impl SpawnError {
    /// 127: CMD not found; 126: CMD not executable; 125: all else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Command { errno: Errno::NOENT, .. } => 127,
            Self::Command { .. } => 126,
            Self::NoCommand
            | Self::Nul
            | Self::Queues(_)
            | Self::Threads(_)
            | Self::NoProc
            | Self::Fork(_)
            | Self::Ended
            | Self::Handover(_)
            | Self::Wait(_)
            | Self::UserNamespace(..)
            | Self::Tun(_)
            | Self::Step(..) => 125,
        }
    }

    /// What the user can do, where there is something.
    pub fn help(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoCommand => "give the command after `--`: tunneld exec -- curl …",
            Self::Nul => "remove the NUL byte",
            Self::Queues(_) => "change `queues` in the configuration, or leave it out",
            Self::NoProc => "mount it: mount -t proc proc /proc",
            Self::Fork(Errno::AGAIN | Errno::NOMEM) => {
                "raise the limit of processes (ulimit -u, the cgroup's pids.max) or free memory"
            }
            Self::Fork(Errno::MFILE | Errno::NFILE) => "raise the limit of open files (ulimit -n)",
            Self::Ended => "see `dmesg`: the kernel may have been out of memory",
            Self::Threads(_) | Self::Fork(_) | Self::Handover(_) | Self::Wait(_) => {
                "this is a fault of tunneld: please report it"
            }
            Self::UserNamespace(cause, _) => cause.help(),
            Self::Tun(errno) => match *errno {
                Errno::NOENT | Errno::NOTDIR => {
                    "load the driver (modprobe tun), or give the container the device (--device /dev/net/tun)"
                }
                Errno::NODEV | Errno::NXIO => "load the driver as root: modprobe tun",
                Errno::ACCESS | Errno::PERM => {
                    "open it to users as root: chmod 0666 /dev/net/tun (for good: a udev rule with KERNEL==\"tun\", MODE=\"0666\"); a container needs --device /dev/net/tun"
                }
                Errno::MFILE | Errno::NFILE => "raise the limit of open files (ulimit -n)",
                _ => "see whether /dev/net/tun is the device 10:200: ls -l /dev/net/tun",
            },
            Self::Step(stage, errno) => stage.help(*errno),
            Self::Command { errno, .. } => match *errno {
                Errno::NOENT => {
                    "see whether it is installed and in PATH, and whether its `#!` line names a program"
                }
                Errno::ACCESS => {
                    "make it executable (chmod +x); a directory or a file on a noexec mount can't be run"
                }
                Errno::NOEXEC => "its format is none that this machine runs",
                Errno::TOOBIG => "shorten its arguments or the environment",
                _ => return None,
            },
        })
    }

    /// What the child has reported.
    pub(super) fn at(stage: Stage, errno: Errno, user_namespace: bool) -> Self {
        let knobs = Knobs::read();
        Self::explain(stage, errno, user_namespace, knobs)
    }

    fn explain(stage: Stage, errno: Errno, user_namespace: bool, knobs: Knobs) -> Self {
        // AppArmor lets a user namespace be made and then denies what it is for, so the
        // refusal shows at whichever step first needs a capability in it.
        let denied = matches!(errno, Errno::PERM | Errno::ACCESS);
        match stage {
            Stage::Unshare if user_namespace => {
                Self::UserNamespace(NoUserNamespace::from(errno, knobs), errno)
            }
            Stage::IdMap | Stage::Propagation | Stage::TunAttach | Stage::Network
                if user_namespace && denied && knobs.apparmor =>
            {
                Self::UserNamespace(NoUserNamespace::AppArmor, errno)
            }
            Stage::TunOpen => Self::Tun(errno),
            Stage::TunAttach if errno == Errno::NOTTY || errno == Errno::NOTCONN => {
                Self::Tun(errno)
            }
            Stage::Unshare
            | Stage::IdMap
            | Stage::Propagation
            | Stage::DeathSignal
            | Stage::TunAttach
            | Stage::Network
            | Stage::Sysctl
            | Stage::Sockets
            | Stage::ResolvConf
            | Stage::Overlay
            | Stage::Handover => Self::Step(stage, errno),
        }
    }
}

/// Who refuses the user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoUserNamespace {
    /// `kernel.unprivileged_userns_clone` is 0 (Debian's and Arch's switch).
    Switch,
    /// `user.max_user_namespaces` is 0.
    Zero,
    /// As many as are allowed, or as deep, are in use.
    Used,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1 (Ubuntu's switch).
    AppArmor,
    /// The kernel was built without them.
    Kernel,
    /// None of these: a container's seccomp filter, mostly, or a chroot.
    Unknown,
}

impl NoUserNamespace {
    fn from(errno: Errno, knobs: Knobs) -> Self {
        match errno {
            Errno::INVAL | Errno::NOSYS => Self::Kernel,
            Errno::NOSPC | Errno::USERS if knobs.none_allowed => Self::Zero,
            Errno::NOSPC | Errno::USERS => Self::Used,
            _ if knobs.switched_off => Self::Switch,
            _ if knobs.apparmor => Self::AppArmor,
            _ if knobs.none_allowed => Self::Zero,
            _ => Self::Unknown,
        }
    }

    fn help(self) -> &'static str {
        match self {
            Self::Switch => {
                "allow them as root: sysctl kernel.unprivileged_userns_clone=1; or run tunneld as root"
            }
            Self::Zero => {
                "allow them as root: sysctl user.max_user_namespaces=10000; or run tunneld as root"
            }
            Self::Used => {
                "end a program that uses many, or as root: sysctl user.max_user_namespaces=100000"
            }
            Self::AppArmor => {
                "AppArmor restricts them; as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a profile for tunneld that allows `userns`; or run tunneld as root"
            }
            Self::Kernel => "this kernel has none (CONFIG_USER_NS): run tunneld as root",
            Self::Unknown => {
                "a container or chroot forbids them (docker: --security-opt seccomp=unconfined, or --cap-add SYS_ADMIN --cap-add NET_ADMIN): allow them, or run tunneld as root outside"
            }
        }
    }
}

/// The step that failed inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Entering the namespaces.
    Unshare,
    /// Mapping the own uid and gid.
    IdMap,
    /// Making mounts invisible to the host.
    Propagation,
    /// Asking to end with tunneld.
    DeathSignal,
    /// Opening `/dev/net/tun`.
    TunOpen,
    /// Making the TUN device.
    TunAttach,
    /// Addresses, routes and rules.
    Network,
    /// Settings under `/proc/sys/net`.
    Sysctl,
    /// Masking the resolvers' sockets.
    Sockets,
    /// Mounting `resolv.conf`.
    ResolvConf,
    /// Mounting an overlay on `/etc`.
    Overlay,
    /// Passing the descriptors out.
    Handover,
}

impl Stage {
    pub(super) const ALL: [Self; 12] = [
        Self::Unshare,
        Self::IdMap,
        Self::Propagation,
        Self::DeathSignal,
        Self::TunOpen,
        Self::TunAttach,
        Self::Network,
        Self::Sysctl,
        Self::Sockets,
        Self::ResolvConf,
        Self::Overlay,
        Self::Handover,
    ];

    fn action(self) -> &'static str {
        match self {
            Self::Unshare => "make mount and network namespaces",
            Self::IdMap => "map the uid and gid into the user namespace",
            Self::Propagation => "make the sandbox's mounts private",
            Self::DeathSignal => "tie the sandbox to tunneld",
            Self::TunOpen => "open /dev/net/tun",
            Self::TunAttach => "make the TUN device",
            Self::Network => "set up the network inside",
            Self::Sysctl => "write to /proc/sys/net",
            Self::Sockets => "mask the resolvers' sockets in /run",
            Self::ResolvConf => "mount /etc/resolv.conf",
            Self::Overlay => "mount an overlay on /etc",
            Self::Handover => "pass the TUN device out of the sandbox",
        }
    }

    fn help(self, errno: Errno) -> &'static str {
        if matches!(errno, Errno::MFILE | Errno::NFILE) {
            return "raise the limit of open files (ulimit -n)";
        }
        match self {
            Self::Unshare if errno == Errno::NOSPC => {
                "as root: sysctl user.max_mnt_namespaces and user.max_net_namespaces must not be 0"
            }
            Self::Unshare => {
                "the kernel needs CONFIG_NET_NS, and a container the right to unshare(2)"
            }
            Self::IdMap => {
                "see whether /proc is mounted and a security module denies writing to /proc/self/uid_map"
            }
            Self::Propagation | Self::Sockets | Self::ResolvConf => {
                "a security module denies mount(2), a container's AppArmor profile mostly (docker: --security-opt apparmor=unconfined)"
            }
            Self::Overlay => {
                "the kernel must have overlay (modprobe overlay) and, for users, be 5.11 or newer; or make /etc/resolv.conf an ordinary file"
            }
            Self::Sysctl => {
                "/proc/sys is read-only here: mount a /proc that can be written, or run the container with --privileged"
            }
            Self::TunAttach | Self::Network => {
                "see that the kernel has TUN, IPv4 policy routing (CONFIG_IP_MULTIPLE_TABLES) and, if asked for, IPv6"
            }
            Self::TunOpen | Self::DeathSignal | Self::Handover => {
                "this is a fault of tunneld: please report it"
            }
        }
    }
}

/// A step that failed, before anyone has looked for the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) stage: Stage,
    pub(super) errno: Errno,
}

/// The host's switches for user namespaces. One that a kernel doesn't have is not set.
#[derive(Debug, Clone, Copy, Default)]
struct Knobs {
    switched_off: bool,
    none_allowed: bool,
    apparmor: bool,
}

impl Knobs {
    fn read() -> Self {
        let is = |key: &str, value: &str| {
            fs::read_to_string(format!("/proc/sys/{key}")).is_ok_and(|text| text.trim() == value)
        };
        Self {
            switched_off: is("kernel/unprivileged_userns_clone", "0"),
            none_allowed: is("user/max_user_namespaces", "0"),
            apparmor: is("kernel/apparmor_restrict_unprivileged_userns", "1"),
        }
    }
}

/// The kernel's words for an errno, without the number that the standard library adds.
fn reason(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWITCH: Knobs = Knobs { switched_off: true, none_allowed: false, apparmor: false };
    const ZERO: Knobs = Knobs { switched_off: false, none_allowed: true, apparmor: false };
    const APPARMOR: Knobs = Knobs { switched_off: false, none_allowed: false, apparmor: true };
    const NONE: Knobs = Knobs { switched_off: false, none_allowed: false, apparmor: false };

    #[test]
    fn each_cause_has_its_line_and_its_help() {
        let cases = [
            (
                Stage::Unshare,
                Errno::PERM,
                true,
                SWITCH,
                "cannot make a user namespace: Operation not permitted",
                "unprivileged_userns_clone=1",
            ),
            (
                Stage::Unshare,
                Errno::NOSPC,
                true,
                ZERO,
                "cannot make a user namespace: No space left on device",
                "max_user_namespaces=10000",
            ),
            (
                Stage::Unshare,
                Errno::NOSPC,
                true,
                NONE,
                "cannot make a user namespace: No space left on device",
                "uses many",
            ),
            (
                Stage::Unshare,
                Errno::ACCESS,
                true,
                APPARMOR,
                "cannot make a user namespace: Permission denied",
                "apparmor_restrict",
            ),
            (
                Stage::IdMap,
                Errno::PERM,
                true,
                APPARMOR,
                "cannot make a user namespace: Operation not permitted",
                "apparmor_restrict",
            ),
            (
                Stage::TunAttach,
                Errno::PERM,
                true,
                APPARMOR,
                "cannot make a user namespace: Operation not permitted",
                "apparmor_restrict",
            ),
            (
                Stage::Unshare,
                Errno::INVAL,
                true,
                NONE,
                "cannot make a user namespace: Invalid argument",
                "CONFIG_USER_NS",
            ),
            (
                Stage::Unshare,
                Errno::PERM,
                true,
                NONE,
                "cannot make a user namespace: Operation not permitted",
                "seccomp",
            ),
            (
                Stage::Unshare,
                Errno::NOSPC,
                false,
                NONE,
                "cannot make mount and network namespaces: No space left on device",
                "max_net_namespaces",
            ),
            (
                Stage::IdMap,
                Errno::PERM,
                true,
                NONE,
                "cannot map the uid and gid into the user namespace: Operation not permitted",
                "/proc",
            ),
            (
                Stage::TunOpen,
                Errno::NOENT,
                true,
                APPARMOR,
                "cannot open /dev/net/tun: No such file or directory",
                "modprobe tun",
            ),
            (
                Stage::TunOpen,
                Errno::ACCESS,
                true,
                APPARMOR,
                "cannot open /dev/net/tun: Permission denied",
                "chmod 0666",
            ),
            (
                Stage::TunOpen,
                Errno::NODEV,
                false,
                NONE,
                "cannot open /dev/net/tun: No such device",
                "modprobe tun",
            ),
            (
                Stage::TunAttach,
                Errno::NOTTY,
                false,
                NONE,
                "cannot open /dev/net/tun: Inappropriate ioctl for device",
                "10:200",
            ),
            (
                Stage::Overlay,
                Errno::PERM,
                true,
                NONE,
                "cannot mount an overlay on /etc: Operation not permitted",
                "5.11",
            ),
            (
                Stage::Sockets,
                Errno::ACCESS,
                false,
                NONE,
                "cannot mask the resolvers' sockets in /run: Permission denied",
                "apparmor=unconfined",
            ),
            (
                Stage::Sysctl,
                Errno::ROFS,
                false,
                NONE,
                "cannot write to /proc/sys/net: Read-only file system",
                "--privileged",
            ),
            (
                Stage::Network,
                Errno::MFILE,
                false,
                NONE,
                "cannot set up the network inside: Too many open files",
                "ulimit -n",
            ),
        ];
        for (stage, errno, user_namespace, knobs, line, help) in cases {
            let error = SpawnError::explain(stage, errno, user_namespace, knobs);
            assert_eq!(error.to_string(), line);
            assert!(error.help().unwrap().contains(help), "{line}: {error:?}");
            assert_eq!(error.exit_code(), 125, "{line}");
        }
    }

    #[test]
    fn a_command_that_is_not_there_and_one_that_cannot_run_differ() {
        for (errno, code) in [(Errno::NOENT, 127), (Errno::ACCESS, 126), (Errno::NOEXEC, 126)] {
            let error = SpawnError::Command { program: "x".into(), errno };
            assert_eq!(error.exit_code(), code, "{errno}");
        }
    }

    #[test]
    fn error_and_help_are_one_line_each() {
        let errnos = [Errno::PERM, Errno::NOENT, Errno::MFILE, Errno::NOSPC, Errno::INVAL];
        for stage in Stage::ALL {
            for errno in errnos {
                let error = SpawnError::explain(stage, errno, true, NONE);
                assert!(!error.to_string().contains('\n'), "{error}");
                assert!(!error.help().unwrap().contains('\n'), "{error}");
            }
        }
    }
}
