//! Whatever was changed is put back, from any point, and nothing else.

use super::*;

#[test]
fn whatever_was_applied_is_undone_from_any_point() {
    within("", || {
        let outside = host_and_outside("2");
        let directory = Directory::new("undone");
        let prefixes = ["203.0.113.0/24", "0.0.0.0/1", "2001:db8:f::/48"];
        let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let before = state();
        let plans = [
            plan(Capture::All),
            Plan { tracks: false, ..plan(Capture::All) },
            Plan { forward: false, ..plan(Capture::All) },
            plan(Capture::Prefixes(prefixes)),
            plan(Capture::Nothing),
        ];
        for plan in plans {
            let (host, tun) = start(&directory, &plan);
            assert_ne!(state(), before);
            assert!(directory.0.join("journal").exists());
            let applied = host.applied.clone();
            let mut undone = host.restore().unwrap();
            undone.reverse();
            assert_eq!(undone, applied);
            drop(tun);
            assert_eq!(state(), before, "{:?}", plan.capture);
            assert!(!directory.0.join("journal").exists());

            // Dropped after each change, and between writing one down and making it; the device
            // gone with the process, or kept by another that has it open.
            for point in 0..=applied.len() {
                for device_stays in [false, true] {
                    let (mut host, _) = Host::open(&directory.0).unwrap();
                    let tun = open_tun(TUN, false, false).unwrap();
                    let mut changes = changes(&plan, &Seen::look().unwrap());
                    assert_eq!(changes.len(), applied.len());
                    let rest = changes.split_off(point);
                    host.apply(changes.clone()).unwrap();
                    if let Some(next) = rest.first() {
                        host.note(next).unwrap();
                        changes.push(next.clone());
                    }
                    drop(host);
                    let mut tun = Some(tun);
                    if !device_stays {
                        tun = None;
                    }
                    let (_host, mut undone) = Host::open(&directory.0).unwrap();
                    undone.reverse();
                    assert_eq!(undone, changes);
                    drop(tun);
                    assert_eq!(state(), before, "{:?} after {point}", plan.capture);
                }
            }
        }
        drop(outside);
    });
}

#[test]
fn what_is_not_ours_stays() {
    within("", || {
        let _outside = host_and_outside("1");
        let directory = Directory::new("foreign");
        let plan = plan(Capture::All);
        let (host, _) = Host::open(&directory.0).unwrap();
        #[rustfmt::skip]
        let cases = [
            ("ip link add t0 type bridge", "ip link del t0", "device"),
            ("ip rule add pref 100 lookup main", "ip rule del pref 100", "an IPv4 rule of priority 100"),
            ("ip -6 rule add pref 99 lookup main", "ip -6 rule del pref 99", "an IPv6 rule of priority 99"),
            ("ip rule add pref 101 lookup main", "ip rule del pref 101", "an IPv4 rule of priority 101"),
            ("ip route add 10.0.0.0/8 dev u0 table 29806", "ip route flush table 29806", "IPv4 routes in table 29806"),
            ("ip -6 route add 2001:db8:9::/48 dev u0 table 29806", "ip -6 route flush table 29806", "IPv6 routes in table 29806"),
            ("nft add table inet tunneld", "nft delete table inet tunneld", "nftables table"),
        ];
        for (make, remove, part) in cases {
            run(make);
            let before = state();
            let error = host.refuse_foreign(&plan).unwrap_err();
            assert!(error.to_string().contains(part), "{make}: {error}");
            assert!(error.help().is_some(), "{error}");
            assert_eq!(state(), before, "{make}");
            run(remove);
            host.refuse_foreign(&plan).unwrap();
        }
        drop(host);

        // A change that fails undoes what went before, and not what was there.
        let before = state();
        let (mut host, _) = Host::open(&directory.0).unwrap();
        let tun = open_tun(TUN, false, false).unwrap();
        let wanted = changes(&plan, &Seen::look().unwrap());
        run("ip route add unreachable default metric 200 table 29806 proto static");
        let error = host.apply(wanted).unwrap_err();
        assert!(error.to_string().contains("add the route that makes 0.0.0.0/0"), "{error}");
        drop((host, tun));
        assert_ne!(state(), before, "their route stays");
        run("ip route flush table 29806");
        assert_eq!(state(), before);

        // What others set meanwhile stays.
        let (host, tun) = start(&directory, &plan);
        sysctl::write("ipv4/conf/u0/rp_filter", "2").unwrap();
        host.restore().unwrap();
        drop(tun);
        assert_eq!(sysctl::read("ipv4/conf/u0/rp_filter").unwrap().unwrap(), "2");
    });
}

#[test]
fn one_daemon_at_a_time() {
    let directory = Directory::new("lock");
    let (host, undone) = Host::open(&directory.0).unwrap();
    assert!(undone.is_empty());
    let error = Host::open(&directory.0).unwrap_err();
    let own = std::process::id();
    assert!(matches!(error, HostError::Running { pid: Some(pid) } if pid == own), "{error}");
    drop(host);
    Host::open(&directory.0).unwrap();
}

/// A thread may panic between a change and its being counted.
#[test]
fn after_a_panic_the_journal_says_what_is_to_be_undone() {
    within("", || {
        let _outside = host_and_outside("2");
        let directory = Directory::new("panic");
        let before = state();
        let plan = plan(Capture::All);
        let (mut host, tun) = start(&directory, &plan);
        run("ip link add n0 type bridge");
        let rules = crate::host::links::due(&plan, &Seen::look().unwrap(), &host.applied).new;
        assert_eq!(rules.len(), 2);
        for rule in &rules {
            host.note(rule).unwrap();
            do_it(rule, &host.lock).unwrap();
        }
        let undone = host.restore_after_panic().unwrap();
        assert!(rules.iter().all(|rule| undone.contains(rule)), "{undone:?}");
        drop(tun);
        run("ip link del n0");
        assert_eq!(state(), before);
        assert!(!directory.0.join("journal").exists());
    });
}

/// A change that is begun is undone with the others, be it made, being made by another thread, or
/// refused; the one that takes its place is the only one.
#[test]
fn what_is_begun_is_undone() {
    let directory = Directory::new("begun");
    let (mut host, _) = Host::open(&directory.0).unwrap();
    let (path, kept) = (directory.0.join("resolv.conf"), directory.0.join("kept"));
    let take = |text: &str| {
        let (path, kept, text) = (path.clone(), kept.clone(), format!("nameserver {text}\n"));
        Change::ResolvConf { path, kept, text, holder: directory.0.clone() }
    };
    std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
    host.begin(take("198.18.0.1")).unwrap().make().unwrap();
    std::fs::write(&path, "nameserver 192.0.2.2\n").unwrap();
    let begun = host.begin(take("198.18.0.2")).unwrap();
    assert_eq!(host.applied, [take("198.18.0.2")]);
    begun.make().unwrap();
    let (path_there, kept_there) =
        (directory.0.join("none/resolv.conf"), directory.0.join("none/kept"));
    let refused = Change::ResolvConf {
        path: path_there,
        kept: kept_there,
        text: String::new(),
        holder: directory.0.clone(),
    };
    let error = host.begin(refused).unwrap().make().unwrap_err();
    assert!(error.to_string().contains("cannot replace"), "{error}");
    assert_eq!(host.restore().unwrap().len(), 2);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.2\n");
    assert!(!directory.0.join("journal").exists());
}
