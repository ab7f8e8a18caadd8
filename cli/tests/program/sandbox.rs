//! The sandbox on this machine's kernel: as root and as uid 65534.
//!
//! Every run is inside a mount and a network namespace of its own, which play the host: `/etc`
//! is a copy, `/run` empty, `/dev/net/tun` open to all. The machine itself is never touched.
//! What runs is `examples/sandbox_probe.rs`.
#![allow(clippy::unwrap_used, reason = "helpers of tests, in a crate of tests alone")]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Who starts the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Root,
    User,
}

const BOTH: [Who; 2] = [Who::Root, Who::User];
const INSIDE: &str = "nameserver 198.18.0.2\n";

#[test]
fn inside_all_is_as_planned() {
    if skipped() {
        return;
    }
    for who in BOTH {
        let look = "ip -o addr; ip route; ip -6 route; ls /sys/class/net; cat /etc/resolv.conf; \
                    ls -d /sys/fs/cgroup/*; id -u; id -g; grep CapEff /proc/self/status";
        let out = Host::new(who).sandbox("", look);
        let lines: Vec<String> = out.lines().map(squeeze).collect();
        let has = |line: &str| {
            assert!(lines.iter().any(|l| l.starts_with(line)), "{who:?}: no `{line}` in\n{out}");
        };
        has("1: lo inet 127.0.0.1/8 ");
        has("1: lo inet6 ::1/128 ");
        has("2: tunneld0 inet 198.18.0.1/32 ");
        has("2: tunneld0 inet6 2001:2:0:756e::1/128 scope global nodad noprefixroute");
        assert!(!out.contains("tentative") && !out.contains("fe80:"), "{who:?}: {out}");
        has("default dev tunneld0 proto static scope link src 198.18.0.1");
        has("default dev tunneld0 proto static src 2001:2:0:756e::1");
        has("tunneld0");
        assert!(!lines.contains(&"host0".to_owned()), "{who:?}: the host's devices: {out}");
        has("nameserver 198.18.0.2");
        has("/sys/fs/cgroup/");
        match who {
            Who::Root => assert!(lines.contains(&"0".to_owned()), "{out}"),
            Who::User => {
                assert_eq!(lines.iter().filter(|l| *l == "65534").count(), 2, "{out}");
                has("CapEff: 0000000000000000");
            }
        }
    }
}

#[test]
fn port_53_of_any_address_enters_the_tun_and_its_answer_arrives() {
    if skipped() {
        return;
    }
    for who in BOTH {
        for server in ["127.0.0.53:53", "127.0.0.1:53", "127.0.0.11:53", "198.18.0.2:53"] {
            // The socket isn't connected: the address printed is the one recvfrom() tells.
            let run = Host::new(who).probe("", &format!("exec \"$PROBE\" ask {server}"));
            assert_eq!(text(&run.stdout), format!("8 bytes from {server}\n"), "{who:?}: {run:?}");
            assert!(
                text(&run.stderr).contains(&format!("packet 17 198.18.0.1 > {server}")),
                "{run:?}"
            );
        }
        // Only the first fragment has ports.
        let run = Host::new(who).probe("", "exec \"$PROBE\" ask 127.0.0.53:53 4000");
        assert_eq!(text(&run.stdout), "4000 bytes from 127.0.0.53:53\n", "{who:?}: {run:?}");
        let run = Host::new(who).probe("", "exec bash -c 'exec 3<>/dev/tcp/127.0.0.53/53'");
        let told = text(&run.stderr);
        assert_eq!(told.matches("packet 6 198.18.0.1 > 127.0.0.53:53").count(), 1, "{told}");
        assert!(told.contains("Connection refused"), "{told}");
    }
}

/// A container's root: its `/proc/sys` is read-only, or it lacks the one right that would do
/// without a user namespace.
#[test]
fn root_with_less_than_all_is_served_too() {
    if skipped() {
        return;
    }
    let read_only = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys";
    let ask = "exec \"$PROBE\" ask 127.0.0.53:53";
    let run = Host::new(Who::Root).setup(read_only).probe("", ask);
    assert_eq!(text(&run.stdout), "8 bytes from 127.0.0.53:53\n", "{run:?}");

    let look =
        "\"$PROBE\" --log - -- sh -c 'id -u; cat /etc/resolv.conf; \"$PROBE\" ask 127.0.0.53:53'";
    let expected = format!("0\n{INSIDE}8 bytes from 127.0.0.53:53\n");
    let limited = "setpriv --bounding-set -sys_admin --inh-caps -sys_admin";
    let run = Host::new(Who::Root).run(&format!("exec {limited} {look}"));
    assert_eq!(text(&run.stdout), expected, "{run:?}");
    assert!(text(&run.stderr).contains("user_namespace=true"), "{run:?}");

    // Root of a user namespace, as in a rootless container.
    for setup in [":", "rm /etc/resolv.conf"] {
        let run = Host::new(Who::User).setup(setup).run(&format!("exec unshare -Urmn {look}"));
        assert_eq!(text(&run.stdout), expected, "{run:?}");
        assert!(text(&run.stderr).contains("user_namespace=false"), "{run:?}");
    }
}

#[test]
fn loopback_is_the_sandboxs_own_but_for_port_53() {
    if skipped() {
        return;
    }
    for who in BOTH {
        let run = Host::new(who).probe("", "exec bash -c 'exec 3<>/dev/tcp/127.0.0.1/54'");
        let told = text(&run.stderr);
        assert!(told.contains("Connection refused") && !told.contains("packet"), "{told}");
    }
}

#[test]
fn multicast_goes_into_the_tun() {
    if skipped() {
        return;
    }
    let groups =
        [("224.0.0.251:5353", "224.0.0.251:5353"), ("[ff02::fb%2]:5353", "[ff02::fb]:5353")];
    for who in BOTH {
        for (group, seen) in groups {
            let run = Host::new(who).probe("", &format!("exec \"$PROBE\" tell '{group}'"));
            assert!(text(&run.stderr).contains(&format!("> {seen}")), "{who:?} {group}: {run:?}");
        }
    }
}

#[test]
fn nothing_speaks_unasked() {
    if skipped() {
        return;
    }
    for who in BOTH {
        let run = Host::new(who).probe("", "sleep 2; exec \"$PROBE\" tell 192.0.2.9:9");
        let told = text(&run.stderr);
        assert!(told.contains("packet 17 198.18.0.1 > 192.0.2.9:9"), "the control: {told}");
        assert_eq!(told.matches("packet").count(), 1, "{who:?}: {told}");
    }
}

#[test]
fn the_plan_is_kept() {
    if skipped() {
        return;
    }
    for who in BOTH {
        let run = Host::new(who).probe("--queues 3", "ip -d link show tunneld0");
        assert!(text(&run.stderr).contains("queues=3 diag=3"), "{run:?}");
        assert!(text(&run.stdout).contains("multi_queue"), "{run:?}");

        let run = Host::new(who).probe("--plain", "exec \"$PROBE\" ask 192.0.2.9:53");
        assert_eq!(text(&run.stdout), "8 bytes from 192.0.2.9:53\n", "{run:?}");

        let out = Host::new(who).sandbox("--no-ipv6", "ip -6 addr show dev tunneld0; ip -6 route");
        assert_eq!(out, "", "{who:?}");

        let out = Host::new(who).sandbox("--resolv 'search example.org'", "cat /etc/resolv.conf");
        assert_eq!(out, "search example.org", "{who:?}");
    }
}

#[test]
fn resolv_conf_is_ours_whatever_the_hosts_is() {
    if skipped() {
        return;
    }
    let cases = [
        ("a file", ":"),
        ("missing", "rm /etc/resolv.conf"),
        ("dangling", "ln -sf /nowhere/resolv.conf /etc/resolv.conf"),
        ("a link", "echo x >/run/r; ln -sf ../run/r /etc/resolv.conf"),
        ("a link to a link", "echo x >/run/r; ln -s r /run/q; ln -sf /run/q /etc/resolv.conf"),
        (
            "systemd-resolved's",
            "mkdir -p /run/systemd/resolve; echo x >/run/systemd/resolve/stub-resolv.conf; \
             ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf",
        ),
        ("a mount, as in a container", "echo x >/run/r; mount --bind /run/r /etc/resolv.conf"),
        (
            "a link on a read-only /etc",
            "ln -sf /nowhere/r /etc/resolv.conf; mount -o remount,bind,ro /etc",
        ),
    ];
    for who in BOTH {
        for (name, setup) in cases {
            let out = Host::new(who).setup(setup).sandbox("", "cat /etc/resolv.conf");
            assert_eq!(out, INSIDE, "{who:?}, {name}");
        }
    }
}

#[test]
fn resolv_conf_stays_ours_when_the_host_replaces_its_own() {
    if skipped() {
        return;
    }
    let replace = "mv /etc/new /etc/resolv.conf";
    let cases = [
        ("renamed over", "echo x >/etc/new", replace),
        ("link for file", "echo x >/run/r; ln -s /run/r /etc/new", replace),
        (
            "file for link",
            "echo x >/run/r; ln -sf /run/r /etc/resolv.conf; echo x >/etc/new",
            replace,
        ),
        (
            "behind a link",
            "echo x >/run/r; ln -sf /run/r /etc/resolv.conf; echo y >/run/new",
            "mv /run/new /run/r",
        ),
        (
            "by systemd-resolved",
            "d=/run/systemd/resolve; mkdir -p $d; echo x >$d/stub; echo y >$d/new; ln -sf ..$d/stub /etc/resolv.conf",
            "mv /run/systemd/resolve/new /run/systemd/resolve/stub",
        ),
        ("removed and made anew", ":", "rm /etc/resolv.conf; sleep 0.1; echo x >/etc/resolv.conf"),
        (
            "many times",
            ":",
            "for i in $(seq 20); do echo $i >/etc/new; mv /etc/new /etc/resolv.conf; done",
        ),
        ("where it was missing", "rm /etc/resolv.conf", "echo x >/etc/resolv.conf"),
    ];
    for who in BOTH {
        for (name, setup, change) in cases {
            let out = Host::new(who).setup(setup).meanwhile(change).sandbox(
                "",
                "cat /etc/resolv.conf; touch $FLAGS/begun; until [ -e $FLAGS/done ]; do sleep 0.02; done; \
                 sleep 0.2; cat /etc/resolv.conf",
            );
            assert_eq!(out, INSIDE.repeat(2), "{who:?}, {name}");
        }
    }
}

#[test]
fn other_files_of_etc_are_the_hosts_live_ones() {
    if skipped() {
        return;
    }
    for who in BOTH {
        let out = Host::new(who)
            .setup("echo old >/etc/live; echo mount >/run/h; mount --bind /run/h /etc/hosts")
            .meanwhile("echo new >/etc/live")
            .sandbox(
                "",
                "touch $FLAGS/begun; until [ -e $FLAGS/done ]; do sleep 0.02; done; cat /etc/live /etc/hosts",
            );
        assert_eq!(out, "new\nmount\n", "{who:?}");
    }
}

/// What apt writes must be there afterwards; a user may write to `/etc` neither way.
#[test]
fn what_root_writes_to_etc_reaches_the_host() {
    if skipped() {
        return;
    }
    let write = "echo kept 2>/dev/null >/etc/written; mkdir -p /etc/d 2>/dev/null; true";
    let after = "cat /etc/written; ls -d /etc/d";
    for (setup, etc, left) in
        [(":", "Host", "kept\n/etc/d\n"), ("rm /etc/resolv.conf", "Overlay", "")]
    {
        let run = Host::new(Who::Root).setup(setup).after(after).probe("", write);
        assert_eq!(text(&run.stdout), left, "{setup}: {run:?}");
        assert!(text(&run.stderr).contains(&format!("etc={etc}")), "{setup}: {run:?}");
    }
    let run = Host::new(Who::User).after(after).probe("", write);
    assert_eq!(text(&run.stdout), "", "{run:?}");
}

#[test]
fn where_the_kernel_refuses_an_overlay_a_user_gets_a_mount_on_the_file() {
    if skipped() {
        return;
    }
    // Mounts below a directory that a user namespace inherits are locked together with it, so
    // the directory alone can't be a layer.
    let locked = "echo h >/run/h; mount --bind /run/h /etc/hosts";
    let file = Host::new(Who::User).setup(locked).probe("", "cat /etc/resolv.conf /etc/hosts");
    assert_eq!(text(&file.stdout), format!("{INSIDE}h\n"), "{file:?}");
    let told = text(&file.stderr);
    assert!(told.contains("etc=Bound") || told.contains("etc=Overlay"), "{told}");
}

#[test]
fn the_sockets_of_the_hosts_resolvers_are_masked() {
    if skipped() {
        return;
    }
    let setup = "for d in systemd/resolve nscd avahi-daemon dbus other; do mkdir -p /run/$d; touch /run/$d/socket; done";
    for who in BOTH {
        let look = "cd /run; ls -d systemd/resolve/* nscd/* avahi-daemon/* dbus/* other/* 2>/dev/null; true";
        let out = Host::new(who).setup(setup).sandbox("", look);
        assert_eq!(out, "other/socket\n", "{who:?}");
        let out = Host::new(who).setup(setup).sandbox("--keep-sockets", look);
        assert_eq!(out.lines().count(), 5, "{who:?}: {out}");
    }
}

#[test]
fn exit_codes_are_a_shells() {
    if skipped() {
        return;
    }
    let cases = [
        ("true", 0, ""),
        ("sh -c 'exit 3'", 3, ""),
        ("sh -c 'kill -TERM $$'", 143, ""),
        ("sh -c 'kill -KILL $$'", 137, ""),
        ("no-such-program", 127, "error: cannot run `no-such-program`: No such file or directory"),
        (
            "/no/such/program",
            127,
            "error: cannot run `/no/such/program`: No such file or directory",
        ),
        ("/etc/passwd", 126, "error: cannot run `/etc/passwd`: Permission denied"),
        ("/etc", 126, "error: cannot run `/etc`: Permission denied"),
        ("''", 127, "error: cannot run ``: No such file or directory"),
        // Without `#!`: given to sh, as every shell does.
        ("/run/script", 9, ""),
        (
            "/run/no-interpreter",
            127,
            "error: cannot run `/run/no-interpreter`: No such file or directory",
        ),
    ];
    let setup =
        "echo 'exit 9' >/run/script; echo '#!/no/sh' >/run/no-interpreter; chmod 755 /run/*";
    for who in BOTH {
        for (command, code, error) in cases {
            let run = Host::new(who).setup(setup).run(&format!("\"$PROBE\" -- {command}"));
            assert_eq!(run.status.code(), Some(code), "{who:?} {command}: {run:?}");
            assert_eq!(text(&run.stderr).lines().next().unwrap_or(""), error, "{who:?} {command}");
        }
    }
}

#[test]
fn path_is_the_commands_environments() {
    if skipped() {
        return;
    }
    for who in BOTH {
        let run = Host::new(who)
            .setup("mkdir /run/bin; echo 'echo mine' >/run/bin/curious; chmod 755 /run/bin/curious")
            .run("PATH=/run/bin:$PATH V=1 \"$PROBE\" -- curious");
        assert_eq!(text(&run.stdout), "mine\n", "{who:?}: {run:?}");

        // A directory that may not be looked into is no program that may not be run.
        let run = Host::new(who)
            .setup("mkdir -m 700 /run/closed")
            .run("PATH=/run/closed:$PATH \"$PROBE\" -- no-such-program");
        assert_eq!(run.status.code(), Some(127), "{who:?}: {run:?}");
        let run = Host::new(who)
            .setup("mkdir /run/bin; echo >/run/bin/no-program; chmod 644 /run/bin/no-program")
            .run("PATH=/run/bin:$PATH \"$PROBE\" -- no-program");
        assert_eq!(run.status.code(), Some(126), "{who:?}: {run:?}");
    }
}

/// Each is printed once without and once within the sandbox.
#[test]
fn what_the_command_inherits_is_unchanged() {
    if skipped() {
        return;
    }
    // SIGCHLD ignored would have CMD reaped unseen, were tunneld to leave it so.
    let ignoring = "env --ignore-signal=HUP,USR1,CHLD --block-signal=USR2";
    let before = "umask 027; cd /usr; V=v; export V; ulimit -Sn 100; \
                  echo seven >$FLAGS/7; exec 7<$FLAGS/7;";
    let looks = [
        "grep -E '^(SigBlk|SigIgn|CapInh|CapAmb|NoNewPrivs|Umask|Groups)' /proc/self/status",
        "ls /proc/self/fd",
        "sh -c 'pwd; echo $V; ulimit -n; cat <&7'",
        "readlink /proc/self/fd/0 /proc/self/fd/7",
    ];
    for who in BOTH {
        for look in looks {
            let bare = Host::new(who).run(&format!("{before} exec {ignoring} {look}"));
            let inside =
                Host::new(who).run(&format!("{before} exec {ignoring} \"$PROBE\" -- {look}"));
            assert_eq!(text(&inside.stdout), text(&bare.stdout), "{who:?}: {inside:?}");
            assert!(!inside.stdout.is_empty(), "{inside:?}");
        }
    }
}

/// A working directory below a mount of ours is the one that is seen, not the one beneath.
#[test]
fn a_working_directory_in_etc_sees_our_resolv_conf() {
    if skipped() {
        return;
    }
    for who in BOTH {
        let run = Host::new(who).run("cd /etc && \"$PROBE\" -- cat resolv.conf");
        assert_eq!(text(&run.stdout), INSIDE, "{who:?}: {run:?}");
    }
}

#[test]
fn signals_are_passed_on_once() {
    if skipped() {
        return;
    }
    let command = "trap 'echo TERM' TERM; trap 'echo HUP' HUP; trap 'echo USR1' USR1; trap 'echo INT' INT; \
                   touch $FLAGS/begun; until [ -e $FLAGS/done ]; do sleep 0.02; done; sleep 0.1; echo end";
    for who in BOTH {
        let out = Host::new(who)
            .meanwhile("for s in HUP USR1 INT TERM; do kill -$s $P; sleep 0.15; done")
            .sandbox("", command);
        assert_eq!(out, "HUP\nUSR1\nINT\nTERM\nend\n", "{who:?}");

        let run = Host::new(who)
            .meanwhile("kill -TERM $P")
            .probe("", "touch $FLAGS/begun; exec sleep 60");
        assert_eq!(run.status.code(), Some(143), "{who:?}: {run:?}");
    }
}

/// Ctrl-C goes to the whole group; were it passed on as well the trap would run twice.
#[test]
fn ctrl_c_of_a_terminal_arrives_once() {
    if skipped() {
        return;
    }
    for who in BOTH {
        let out = Host::new(who).terminal(
            "exec \"$PROBE\" -- sh -c \"trap 'echo got-int' INT; (trap '' INT; exec sleep 1) & echo ready; \
             while kill -0 \\$! 2>/dev/null; do wait \\$!; done; echo end\"",
            &[("ready", "\x03"), ("end", "")],
        );
        assert_eq!(out.matches("got-int").count(), 1, "{who:?}: {out}");
    }
}

/// Ctrl-Z must give the terminal back to the shell, and `fg` continue both.
#[test]
fn ctrl_z_stops_the_job_and_fg_continues_it() {
    if skipped() {
        return;
    }
    for who in BOTH {
        // What is typed is echoed: the quotes make the words differ from those waited for.
        Host::new(who).terminal(
            "PS1=prompt: bash --norc -i",
            &[
                ("prompt:", "\"$PROBE\" -- bash -c 'echo rea\"\"dy; sleep 1; echo sle\"\"pt'\n"),
                ("ready", "\x1a"),
                ("Stopped", "echo shell is ba\"\"ck\n"),
                ("shell is back", "fg\n"),
                ("slept", "exit\n"),
            ],
        );
    }
}

#[test]
fn a_killed_tunneld_takes_its_child_along() {
    if skipped() {
        return;
    }
    // ping has a file capability on many systems, with which the kernel forgets the wish to be
    // killed with the parent.
    for command in ["exec sleep 60", "exec ping -q 192.0.2.1"] {
        for who in BOTH {
            let run = Host::new(who)
                .meanwhile("sleep 0.3; kill -KILL $P")
                .after(
                    // Dead and not reaped by this machine's init is dead too.
                    "P=$(cat $FLAGS/pid); lives() { grep -qs '^State:.*[^Z] (' /proc/$P/status; }; \
                     i=0; while lives && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done; \
                     lives && { echo survived; kill -KILL $P; }; echo looked",
                )
                .probe("", &format!("echo $$ >$FLAGS/pid; touch $FLAGS/begun; {command}"));
            assert_eq!(
                text(&run.stdout).lines().last(),
                Some("looked"),
                "{who:?} {command}: {run:?}"
            );
            assert!(!text(&run.stdout).contains("survived"), "{who:?} {command}: {run:?}");
        }
    }
}

#[test]
fn a_sandbox_that_is_never_started_leaves_nothing() {
    if skipped() {
        return;
    }
    for who in BOTH {
        let run = Host::new(who)
            .after("sleep 0.3; P=$(sed 's/.*pid=//; s/ .*//' $FLAGS/log); grep -s '^State:.*[^Z] (' /proc/$P/status; ls $FLAGS")
            .run("\"$PROBE\" --log $FLAGS/log --hold -- touch $FLAGS/ran");
        assert_eq!(text(&run.stdout), "log\n", "{who:?}: {run:?}");
    }
}

#[test]
fn each_cause_has_one_error_and_one_help_line() {
    if skipped() {
        return;
    }
    let none_allowed = "exec unshare -Ur sh -c 'echo 0 >/proc/sys/user/max_user_namespaces && \
                        exec setpriv --bounding-set -all --inh-caps -all \"$PROBE\" -- true'";
    let cases = [
        (
            BOTH.as_slice(),
            "umount /dev/net/tun; mount -t tmpfs t /dev/net",
            "\"$PROBE\" -- true",
            "error: cannot open /dev/net/tun: No such file or directory",
            "help: load the driver (modprobe tun)",
        ),
        (
            &[Who::User],
            "chmod 600 /dev/net/tun",
            "\"$PROBE\" -- true",
            "error: cannot open /dev/net/tun: Permission denied",
            "help: open it to users as root: chmod 0666 /dev/net/tun",
        ),
        (
            &BOTH,
            "mount --bind /dev/null /dev/net/tun",
            "\"$PROBE\" -- true",
            "error: cannot open /dev/net/tun: Inappropriate ioctl for device",
            "help: see whether /dev/net/tun is the device 10:200",
        ),
        (
            &[Who::User],
            ":",
            none_allowed,
            "error: cannot make a user namespace: No space left on device",
            "help: allow them as root: sysctl user.max_user_namespaces",
        ),
        (
            &BOTH,
            ":",
            "ulimit -n 12; \"$PROBE\" --queues 8 -- true",
            "error: cannot open /dev/net/tun: Too many open files",
            "help: raise the limit of open files",
        ),
        (
            &BOTH,
            ":",
            "\"$PROBE\" --queues 0 -- true",
            "error: cannot make the TUN device: 0 queues, and it has 1 to 64",
            "help: change `queues`",
        ),
        (
            &BOTH,
            ":",
            "\"$PROBE\" --",
            "error: cannot run the command: there is none",
            "help: give the command after `--`",
        ),
    ];
    for (users, setup, script, error, help) in cases {
        for &who in users {
            let run = Host::new(who).setup(setup).run(script);
            let told = text(&run.stderr);
            let lines: Vec<&str> = told.lines().collect();
            assert_eq!(run.status.code(), Some(125), "{who:?} {setup}: {run:?}");
            assert_eq!(lines.len(), 2, "{who:?} {setup}: {told}");
            assert_eq!(lines[0], error, "{who:?} {setup}");
            assert!(lines[1].starts_with(help), "{who:?} {setup}: {told}");
        }
    }
}

#[test]
fn the_host_is_the_same_before_and_after() {
    if skipped() {
        return;
    }
    let look = "ip addr; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; \
                cat /proc/self/mountinfo; find /etc /run -ls; find /etc -type f -exec sha256sum {} +; \
                sysctl -a 2>/dev/null | grep -E 'net.ipv[46].conf|ping_group'";
    let look = &format!("{{ {look}; }}");
    for who in BOTH {
        let run = Host::new(who)
            .setup(&format!("ip addr add 192.0.2.7/24 dev host0; ip link set host0 up; mkdir /run/nscd; sleep 0.1; {look} >$FLAGS/before"))
            .meanwhile(&format!("{look} >$FLAGS/while; cmp $FLAGS/before $FLAGS/while"))
            .after(&format!("{look} >$FLAGS/after; diff $FLAGS/before $FLAGS/after && echo same"))
            .probe("", "touch $FLAGS/begun; until [ -e $FLAGS/done ]; do sleep 0.02; done");
        assert_eq!(text(&run.stdout), "same\n", "{who:?}: {run:?}");
    }
}

/// A stand-in for the host: namespaces, and scripts that run in them.
struct Host {
    who: Who,
    setup: String,
    meanwhile: String,
    after: String,
}

impl Host {
    fn new(who: Who) -> Self {
        Self { who, setup: ":".to_owned(), meanwhile: String::new(), after: ":".to_owned() }
    }

    /// Runs first, as root.
    fn setup(mut self, script: &str) -> Self {
        script.clone_into(&mut self.setup);
        self
    }

    /// Runs, as root, when CMD has made `$FLAGS/begun`; then there is `$FLAGS/done`. `$P` is the
    /// probe's pid.
    fn meanwhile(mut self, script: &str) -> Self {
        script.clone_into(&mut self.meanwhile);
        self
    }

    /// Runs last, as root.
    fn after(mut self, script: &str) -> Self {
        script.clone_into(&mut self.after);
        self
    }

    /// What a shell script prints in the sandbox, which must succeed.
    fn sandbox(self, options: &str, script: &str) -> String {
        let who = self.who;
        let run = self.probe(options, script);
        assert!(run.status.success(), "{who:?}: {run:?}");
        text(&run.stdout)
    }

    /// Runs a shell script in the sandbox.
    fn probe(self, options: &str, script: &str) -> Output {
        let quoted = script.replace('\'', r"'\''");
        self.run(&format!("exec \"$PROBE\" --log - {options} -- sh -c '{quoted}'"))
    }

    /// Runs a shell script on the stand-in as who is to start the probe.
    fn run(self, script: &str) -> Output {
        let output = self.command(script).stdin(Stdio::null()).output().unwrap();
        assert_ne!(output.status.code(), Some(99), "no stand-in for a host: {output:?}");
        output
    }

    /// The same on a terminal of its own, and what it shows. Each step waits for a text, in
    /// what came after the text before, and then types.
    fn terminal(self, script: &str, steps: &[(&str, &str)]) -> String {
        let quoted = script.replace('\'', r"'\''");
        let mut child = self
            .command(&format!("exec script -qec '{quoted}' /dev/null"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut keyboard, mut screen) =
            (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (mut shown, mut seen) = (String::new(), 0);
        for (wait, typed) in steps {
            while !shown[seen..].contains(wait) {
                let mut buffer = [0; 1000];
                let length = screen.read(&mut buffer).unwrap();
                assert_ne!(length, 0, "no {wait} in {shown}");
                shown.push_str(&text(&buffer[..length]));
            }
            seen += shown[seen..].find(wait).unwrap() + wait.len();
            keyboard.write_all(typed.as_bytes()).unwrap();
        }
        screen.read_to_string(&mut shown).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}: {shown}");
        shown
    }

    fn command(self, script: &str) -> Command {
        let Self { who, setup, meanwhile, after } = self;
        let become_user = match who {
            Who::Root => "",
            Who::User => "setpriv --reuid 65534 --regid 65534 --clear-groups",
        };
        // The probe must be a child here, not this shell, so that its end is seen.
        let wait = if meanwhile.is_empty() {
            format!("{become_user} sh -c \"$SCRIPT\"; code=$?")
        } else {
            format!(
                "{become_user} env --default-signal sh -c \"$SCRIPT\" & P=$!; until [ -e $FLAGS/begun ]; do sleep 0.02; done; \
                 {meanwhile}; touch $FLAGS/done; wait $P; code=$?"
            )
        };
        let whole = format!(
            "trap 'exit 99' EXIT; set -e; mount -t tmpfs t /mnt; mkdir /mnt/flags; chmod 777 /mnt/flags; FLAGS=/mnt/flags; export FLAGS
             cp -a /etc /mnt/etc; rm -f /mnt/etc/resolv.conf; echo host >/mnt/etc/resolv.conf
             mount --bind /mnt/etc /etc; mount -t tmpfs -o mode=755 t /run
             # Where everybody may run it: a target directory may be root's alone.
             touch /mnt/probe; mount --bind \"$BUILT\" /mnt/probe; export PROBE=/mnt/probe
             mknod /mnt/tun c 10 200; chmod 666 /mnt/tun; mount --bind /mnt/tun /dev/net/tun
             ip link set lo up; ip link add host0 type veth peer name host1
             set +e; trap - EXIT; {setup}\n {wait}\n {after}\n exit $code"
        );
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "-k", "1", "60", "unshare", "--mount", "--net", "--pid"])
            .args(["--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
            .args(["sh", "-c", &whole])
            .env("SCRIPT", script)
            .env("BUILT", built_probe())
            // What script(1) runs: the same everywhere.
            .env("SHELL", "/bin/sh")
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }
}

/// The probe as it was built, beside the directory of the tests.
fn built_probe() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let probe = test.ancestors().nth(2).unwrap().join("examples/sandbox_probe");
    assert!(probe.exists(), "{} is missing: build with --examples", probe.display());
    probe
}

/// Whether this can't run here, which is then said.
fn skipped() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    !root
}

fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
