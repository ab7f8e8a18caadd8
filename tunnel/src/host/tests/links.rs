//! Devices that come, go and change while their host is captured.

use super::*;

fn reverse_path(device: &str) -> String {
    sysctl::read(&format!("ipv4/conf/{device}/rp_filter")).unwrap().unwrap_or_default()
}

fn set_reverse_path(device: &str, value: &str) {
    sysctl::write(&format!("ipv4/conf/{device}/rp_filter"), value).unwrap();
}

/// The devices that have a rule, in the order of their names: the same for both IP versions.
fn ruled() -> Vec<String> {
    let of = |family: &str| {
        let output = Command::new("ip").args([family, "rule", "show"]).output().unwrap();
        let rules = String::from_utf8(output.stdout).unwrap();
        let mut devices: Vec<String> = rules
            .lines()
            .filter_map(|line| line.split_once(" oif "))
            .map(|(_, rest)| rest.split(' ').next().unwrap().to_owned())
            .collect();
        devices.sort();
        devices
    };
    assert_eq!(of("-4"), of("-6"));
    of("-4")
}

fn follow(host: &mut Host) -> Followed {
    let followed = host.follow(&plan(Capture::All), &Changed::default()).unwrap();
    assert!(followed.failed.is_empty(), "{:?}", followed.failed);
    let again = host.follow(&plan(Capture::All), &Changed::default()).unwrap();
    assert!(again.made.is_empty() && again.undone.is_empty(), "{again:?}");
    followed
}

fn journal(directory: &Directory) -> String {
    std::fs::read_to_string(directory.0.join("journal")).unwrap()
}

#[test]
fn devices_are_followed() {
    within("", || {
        let _outside = host_and_outside("2");
        let directory = Directory::new("followed");
        let before = state();
        let (mut host, tun) = start(&directory, &plan(Capture::All));
        assert_eq!(ruled(), ["u0"]);
        assert!(follow(&mut host).made.is_empty());

        // Two at once, each with our value from `default`.
        run("ip link add n0 type veth peer name n1");
        assert_eq!(follow(&mut host).made.len(), 4);
        assert_eq!(ruled(), ["n0", "n1", "u0"]);
        assert_eq!(reverse_path("n0"), "0");

        // Like udev, and like `sysctl --system`.
        set_reverse_path("n0", "1");
        for device in ["all", "default", "u0"] {
            set_reverse_path(device, "2");
        }
        assert_eq!(follow(&mut host).made.len(), 4);
        for device in ["all", "default", "u0", "n0"] {
            assert_eq!(reverse_path(device), "0", "{device}");
        }

        run("ip link set n0 name m0");
        let followed = follow(&mut host);
        assert_eq!((followed.made.len(), followed.undone.len()), (2, 2));
        assert_eq!(ruled(), ["m0", "n1", "u0"]);

        run("ip link add br-x type bridge");
        run("ip link set n1 master br-x");
        follow(&mut host);
        assert_eq!(ruled(), ["br-x", "m0", "u0"]);

        // Killed here and started anew: what came is as if we had not been there.
        drop((host, tun));
        run("ip link add late0 type bridge");
        let (host, undone) = Host::open(&directory.0).unwrap();
        assert!(!undone.is_empty());
        drop(host);
        for (device, value) in [("m0", "1"), ("n1", "2"), ("br-x", "2"), ("late0", "2")] {
            assert_eq!(reverse_path(device), value, "{device}");
        }
        assert_eq!(ruled(), [""; 0]);
        // `u0` was set to 2 by another, and to 0 by us.
        assert_eq!(reverse_path("u0"), "2");
        set_reverse_path("u0", "0");

        let (mut host, tun) = start(&directory, &plan(Capture::All));
        run("ip link add n2 type bridge");
        follow(&mut host);
        assert!(journal(&directory).contains("\"n2\""));
        for device in ["m0", "br-x", "late0", "n2"] {
            run(&format!("ip link del {device}"));
        }
        follow(&mut host);
        assert_eq!(ruled(), ["u0"]);
        for device in ["m0", "n1", "br-x", "late0", "n2"] {
            // What was known at the start is in the ruleset's checks of sources.
            let text = journal(&directory);
            let changes = text.lines().filter(|line| !line.contains("ruleset"));
            assert!(!changes.collect::<String>().contains(&format!("\"{device}\"")), "{device}");
        }
        assert!(!directory.0.join("journal.next").exists());
        host.restore().unwrap();
        drop(tun);
        assert_eq!(state(), before);
    });
}

#[test]
fn who_insists_on_a_setting_has_it_for_a_while() {
    within("", || {
        let _outside = host_and_outside("2");
        let directory = Directory::new("insists");
        let (mut host, tun) = start(&directory, &plan(Capture::All));
        let length = journal(&directory).len();
        for _ in 0..5 {
            set_reverse_path("u0", "1");
            assert_eq!(follow(&mut host).made.len(), 1);
        }
        set_reverse_path("u0", "1");
        let followed = host.follow(&plan(Capture::All), &Changed::default()).unwrap();
        assert_eq!((followed.made.len(), followed.contested.len()), (0, 1));
        assert!(followed.again <= Duration::from_secs(60));
        let followed = host.follow(&plan(Capture::All), &Changed::default()).unwrap();
        assert!(followed.contested.is_empty(), "said once");
        assert_eq!(reverse_path("u0"), "1");
        assert!(journal(&directory).len() < length + 200, "it doesn't grow");
        host.restore().unwrap();
        drop(tun);
        assert_eq!(reverse_path("u0"), "1", "what somebody else has set stays");
    });
}

/// A change that can't be made is told once, tried again, and leaves neither the others nor the
/// journal.
#[test]
fn one_device_that_cannot_be_prepared_hinders_no_other() {
    within("", || {
        let _outside = host_and_outside("2");
        let directory = Directory::new("hinders");
        let (mut host, tun) = start(&directory, &plan(Capture::All));
        run("ip rule add pref 99 oif n0 goto 101");
        run("ip link add n0 type veth peer name n1");
        let followed = host.follow(&plan(Capture::All), &Changed::default()).unwrap();
        assert_eq!((followed.made.len(), followed.failed.len()), (3, 1), "{followed:?}");
        let told = followed.failed[0].to_string();
        assert!(told.contains("the IPv4 rule to rule 101 for what is bound to n0"), "{told}");
        assert!(followed.again <= Duration::from_secs(1));
        assert!(
            host.follow(&plan(Capture::All), &Changed::default()).unwrap().failed.is_empty(),
            "said once"
        );
        run("ip rule del pref 99 oif n0 goto 101");
        assert_eq!(follow(&mut host).made.len(), 1);
        host.restore().unwrap();
        drop(tun);
        assert_eq!(ruled(), [""; 0]);
    });
}

/// What can't be undone or written is tried five times in a minute, and said once.
#[test]
fn what_cannot_be_undone_is_not_tried_all_the_time() {
    within("", || {
        let _outside = host_and_outside("2");
        let directory = Directory::new("refused");
        let (mut host, tun) = start(&directory, &plan(Capture::All));
        let own = rustix::thread::capabilities(None).unwrap();
        let may_change = |may: bool| {
            let mut sets = own;
            sets.effective.set(CapabilitySet::NET_ADMIN, may);
            rustix::thread::set_capabilities(None, sets).unwrap();
        };
        run("ip link add n0 type bridge");
        follow(&mut host);
        run("ip link del n0");
        may_change(false);
        for time in 0..5 {
            let followed = host.follow(&plan(Capture::All), &Changed::default()).unwrap();
            let said = if time == 0 { 2 } else { 0 };
            assert_eq!((followed.failed.len(), followed.undone.len()), (said, 0), "{time}");
            assert!(followed.again <= Duration::from_secs(1), "{time}");
        }
        let followed = host.follow(&plan(Capture::All), &Changed::default()).unwrap();
        assert!(followed.failed.is_empty() && followed.again > Duration::from_secs(30));
        may_change(true);
        assert!(
            host.follow(&plan(Capture::All), &Changed::default()).unwrap().undone.is_empty(),
            "not yet"
        );
        // As a minute later.
        host.tries = Tries::default();
        // Nor is the journal forgotten that can't be written.
        std::fs::create_dir(directory.0.join("journal.next")).unwrap();
        let followed = host.follow(&plan(Capture::All), &Changed::default()).unwrap();
        assert_eq!((followed.failed.len(), followed.undone.len()), (1, 2), "{followed:?}");
        assert!(followed.failed[0].to_string().contains("journal"), "{followed:?}");
        assert!(followed.again <= Duration::from_secs(1));
        let followed = host.follow(&plan(Capture::All), &Changed::default()).unwrap();
        assert!(followed.failed.is_empty() && followed.again <= Duration::from_secs(60));
        assert!(journal(&directory).contains("\"n0\""));
        std::fs::remove_dir(directory.0.join("journal.next")).unwrap();
        follow(&mut host);
        assert!(!journal(&directory).contains("\"n0\""));
        host.restore().unwrap();
        drop(tun);
        assert_eq!(ruled(), [""; 0]);
    });
}

/// Nothing is kept of devices that have been, whatever others have set on them.
#[test]
fn devices_that_come_and_go_leave_nothing_to_remember() {
    within("", || {
        let _outside = host_and_outside("2");
        let directory = Directory::new("remember");
        let (mut host, tun) = start(&directory, &plan(Capture::All));
        let length = journal(&directory).len();
        for round in 0..8 {
            let names = [0, 1, 2, 3].map(|number| format!("n{number}"));
            for name in &names {
                run(&format!("ip link add {name} type bridge"));
                set_reverse_path(name, "1");
            }
            assert_eq!(follow(&mut host).made.len(), 12, "{round}");
            assert_eq!(host.tries.number(), 4, "{round}");
            for name in &names {
                run(&format!("ip link del {name}"));
            }
            assert_eq!(follow(&mut host).undone.len(), 12, "{round}");
            assert_eq!((host.tries.number(), journal(&directory).len()), (0, length), "{round}");
        }
        host.restore().unwrap();
        drop(tun);
    });
}

/// A socket that is bound to an uplink goes by its routes, one bound to the TUN into that.
#[test]
fn what_is_bound_to_a_device_leaves_by_it() {
    within("", || {
        let _outside = host_and_outside("2");
        let directory = Directory::new("bound");
        let prefixes = vec!["203.0.113.0/24".parse().unwrap(), "2001:db8:f::/48".parse().unwrap()];
        let plans = [
            plan(Capture::All),
            Plan { forward: false, ..plan(Capture::All) },
            plan(Capture::Prefixes(prefixes)),
        ];
        let route = |line: &str| {
            let output = Command::new("ip").args(line.split(' ')).output().unwrap();
            let said = if output.status.success() { output.stdout } else { output.stderr };
            String::from_utf8(said).unwrap()
        };
        for plan in plans {
            let (host, tun) = start(&directory, &plan);
            let mut tun = Some(tun);
            for alive in [true, false] {
                if !alive {
                    tun = None;
                }
                let captured = if alive { "dev t0" } else { "No route to host" };
                #[rustfmt::skip]
                let cases: [(&str, &[&str]); 8] = [
                    ("-4 route get 203.0.113.9 oif u0", &["via 192.0.2.2", "dev u0", "src 192.0.2.1"]),
                    ("-4 route get 192.0.2.7 oif u0", &["dev u0", "src 192.0.2.1"]),
                    ("-4 route get 239.1.1.1 oif u0", &["dev u0", "src 192.0.2.1"]),
                    ("-6 route get 2001:db8:f::9 oif u0", &["via 2001:db8::2", "dev u0", "src 2001:db8::1"]),
                    ("-6 route get 2001:db8:f::9 from 2001:db8::1 oif u0", &["via 2001:db8::2", "dev u0"]),
                    ("-6 route get 2001:db8::7 oif u0", &["dev u0", "src 2001:db8::1"]),
                    ("-4 route get 203.0.113.9", &[captured]),
                    ("-6 route get 2001:db8:f::9", &[captured]),
                ];
                for (line, parts) in cases {
                    let said = route(line);
                    for part in parts {
                        assert!(said.contains(part), "{:?}, {alive}, {line}: {said}", plan.capture);
                    }
                }
                if alive {
                    for line in
                        ["-4 route get 203.0.113.9 oif t0", "-6 route get 2001:db8:f::9 oif t0"]
                    {
                        assert!(route(line).contains("dev t0"), "{line}");
                    }
                }
            }
            drop(tun);
            host.restore().unwrap();
        }
    });
}
