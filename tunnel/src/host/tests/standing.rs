//! What others take away is made again.

use super::*;

/// What others do, and what of the kernel's own they put back.
const DAMAGE: [&[&str]; 18] = [
    &[
        "ip rule flush",
        "ip rule add pref 32766 lookup main",
        "ip rule add pref 32767 lookup default",
    ],
    &["ip -6 rule flush", "ip -6 rule add pref 32766 lookup main"],
    &["ip rule del pref 100"],
    &["ip rule del pref 101"],
    &["ip -6 rule del pref 99 oif u0"],
    &["ip route flush table 29806"],
    &["ip -6 route flush table 29806"],
    &["ip route del unreachable default table 29806 metric 200"],
    &["ip link set t0 down"],
    &["ip link set t0 down", "ip link set t0 up"],
    &["ip addr flush dev t0"],
    &["ip link set t0 mtu 1400"],
    &["nft flush ruleset"],
    &["nft flush chain inet tunneld output"],
    &["nft add table inet tunneld { flags dormant ; }"],
    &["nft add chain inet tunneld output { policy drop ; }"],
    &["ip link set t0 name x0"],
    &["ip link set t0 down", "ip link set t0 name x0"],
];

/// The order of what lies side by side is nobody's business.
fn sorted(state: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = state.lines().map(str::trim).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn what_is_taken_away_is_made_again() {
    within("", || {
        for form in Form::ALL {
            let _outside = host_and_outside("2");
            let directory = Directory::new("again");
            let before = state();
            let (mut host, tun) = form.start(&directory, plan(Capture::All));
            if form == Form::Switched {
                // The other form's, empty by now.
                run("nft delete chain inet tunneld forward");
            }
            let (ours, journal) = (state(), directory.0.join("journal"));
            let written = std::fs::read(&journal).unwrap();
            let follow =
                |host: &mut Host| host.follow(&plan(Capture::All), &Changed::default()).unwrap();
            for damage in DAMAGE {
                host.tries = Tries::default();
                damage.iter().for_each(|line| run(line));
                assert_ne!(sorted(&state()), sorted(&ours), "{damage:?}");
                let followed = follow(&mut host);
                assert!(!followed.restored.is_empty(), "{damage:?}");
                assert!(followed.unrestored.is_empty(), "{damage:?}: {followed:?}");
                assert!(followed.made.is_empty() && followed.undone.is_empty(), "{followed:?}");
                let began = Instant::now();
                // The kernel's own routes of an IPv6 address come somewhat later.
                while sorted(&state()) != sorted(&ours) && began.elapsed().as_secs() < 5 {}
                assert_eq!(sorted(&state()), sorted(&ours), "{form:?}, {damage:?}");
                assert!(follow(&mut host).restored.is_empty(), "{damage:?}, again");
            }
            assert_eq!(std::fs::read(&journal).unwrap(), written, "it was there all the time");
            host.restore().unwrap();
            drop(tun);
            assert_eq!(state(), before);
            run("ip link del u0");
        }
    });
}

/// A connection that is open when the table goes has its answers marked afterwards, and a table
/// that was changed over meanwhile is made anew in that form.
#[test]
fn a_new_table_knows_what_is_open() {
    within("", || {
        let outside = host_and_outside("0");
        let listener = TcpListener::bind("[::]:80").unwrap();
        let to = SocketAddr::new(HOST[0].parse().unwrap(), 80);
        for form in Form::ALL {
            let directory = Directory::new("open");
            let mut there = outside.inside(|| connect(to, None)).unwrap();
            let mut here = accept(&listener);
            let (mut host, tun) = form.start(&directory, plan(Capture::All));
            for _ in 0..2 {
                run("nft flush ruleset");
                let refused =
                    outside.inside(|| TcpStream::connect_timeout(&to, Duration::from_millis(100)));
                assert!(refused.is_err(), "{form:?}: this test shows nothing");
                assert_eq!(
                    host.follow(&plan(Capture::All), &Changed::default()).unwrap().restored.len(),
                    1
                );
                echo(&mut there, &mut here).unwrap();
                let mut new = outside.inside(|| connect(to, None)).unwrap();
                echo(&mut new, &mut accept(&listener)).unwrap();
            }
            // Gone when it is to change over.
            run("nft flush ruleset");
            host.track().unwrap();
            echo(&mut there, &mut here).unwrap();
            let restored =
                host.follow(&plan(Capture::All), &Changed::default()).unwrap().restored.len();
            assert_eq!(restored, usize::from(form != Form::Untracked), "{form:?}");
            host.restore().unwrap();
            drop(tun);
        }
    });
}

#[test]
fn who_insists_on_removing_is_told_of_and_answered_with_pauses() {
    within("", || {
        let _outside = host_and_outside("2");
        let directory = Directory::new("removes");
        let (mut host, tun) = start(&directory, &plan(Capture::All));
        let follow =
            |host: &mut Host| host.follow(&plan(Capture::All), &Changed::default()).unwrap();
        for _ in 0..5 {
            run("ip rule del pref 100");
            assert_eq!(follow(&mut host).restored.len(), 1);
        }
        run("ip rule del pref 100");
        let followed = follow(&mut host);
        assert_eq!((followed.restored.len(), followed.taken_away.len()), (0, 1));
        assert!(followed.again <= Duration::from_secs(2));
        assert!(follow(&mut host).taken_away.is_empty(), "said once");
        // Whatever else goes is another matter.
        run("nft flush ruleset");
        assert_eq!(follow(&mut host).restored.len(), 1);
        std::thread::sleep(followed.again);
        assert_eq!(follow(&mut host).restored.len(), 1, "after a pause");
        host.restore().unwrap();
        drop(tun);
    });
}

/// What can't be made is said once, and hinders nothing else.
#[test]
fn what_cannot_be_made_again_is_told() {
    within("", || {
        let _outside = host_and_outside("2");
        let directory = Directory::new("cannot");
        let (mut host, tun) = start(&directory, &plan(Capture::All));
        let follow =
            |host: &mut Host| host.follow(&plan(Capture::All), &Changed::default()).unwrap();
        run("ip rule del pref 100");
        run("sysctl -qw net.ipv6.conf.t0.disable_ipv6=1");
        let followed = follow(&mut host);
        assert!(followed.unrestored.is_empty(), "it may be about to go: {followed:?}");
        assert!(followed.again <= Duration::from_secs(1));
        let rule = |change: &Change| matches!(change, Change::Rule(_));
        assert!(followed.restored.iter().any(rule), "{followed:?}");
        assert!(!follow(&mut host).unrestored.is_empty(), "it fails again");
        assert!(follow(&mut host).unrestored.is_empty(), "said once");
        run("sysctl -qw net.ipv6.conf.t0.disable_ipv6=0");
        assert!(!follow(&mut host).restored.is_empty());
        host.restore().unwrap();
        drop(tun);
    });
}

/// Of more connections than have rules of their own.
#[test]
fn sets_that_are_emptied_are_filled_again() {
    within("", || {
        let outside = host_and_outside("0");
        let listener = TcpListener::bind("[::]:80").unwrap();
        let to = SocketAddr::new(HOST[0].parse().unwrap(), 80);
        let mut old: Vec<_> = (0..36)
            .map(|_| (outside.inside(|| connect(to, None)).unwrap(), accept(&listener)))
            .collect();
        old.sort_by_key(|(there, _)| there.local_addr().unwrap().port());
        let theirs = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        theirs.set_mark(5).unwrap();
        theirs.bind(&SocketAddr::new(HOST[0].parse().unwrap(), 81).into()).unwrap();
        theirs.listen(1).unwrap();
        let theirs = TcpListener::from(theirs);

        let directory = Directory::new("emptied");
        let (mut host, tun) = Form::Untracked.start(&directory, plan(Capture::All));
        let to = theirs.local_addr().unwrap();
        let mut marked = (outside.inside(|| connect(to, None)).unwrap(), accept(&theirs));
        let speak = |(there, here): &mut (TcpStream, TcpStream)| echo(there, here);
        for pair in old.iter_mut().chain([&mut marked]) {
            speak(pair).unwrap();
        }
        let follow = |host: &mut Host, emptied| {
            let changed = Changed { emptied, ..Changed::default() };
            host.follow(&plan(Capture::All), &changed).unwrap()
        };
        // What is marked is told of, as nobody knows what was there; the other is seen. Once filled
        // again, `accepted` has both.
        for (sets, told) in [("marked", true), ("accepted", false), ("accepted", true)] {
            let pair = if sets == "marked" { &mut marked } else { old.last_mut().unwrap() };
            for version in [4, 6] {
                run(&format!("nft flush set inet tunneld {sets}{version}"));
            }
            pair.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            speak(pair).unwrap_err();
            let followed = follow(&mut host, told);
            assert_eq!(followed.restored, [Change::Accepted], "{sets}: {followed:?}");
            // The answer from before, which is sent again.
            pair.0.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            pair.0.read_exact(&mut [0]).unwrap();
            speak(pair).unwrap_or_else(|error| panic!("{sets}: {error}"));
            assert!(follow(&mut host, false).restored.is_empty(), "{sets}, again");
        }
        // Whoever empties them all the time is answered with pauses.
        for time in 0..4 {
            let followed = follow(&mut host, true);
            let (restored, taken) = (followed.restored.len(), followed.taken_away.len());
            assert_eq!(
                (restored, taken),
                if time < 2 { (1, 0) } else { (0, usize::from(time < 3)) }
            );
        }
        assert!(follow(&mut host, false).again <= Duration::from_secs(2), "it isn't forgotten");
        host.restore().unwrap();
        drop(tun);
    });
}

/// Nobody reads what is led into a device that is gone, and rules don't know one whose name is
/// another's.
#[test]
fn a_device_that_is_lost_is_told_of() {
    within("", || {
        let _outside = host_and_outside("2");
        let elsewhere = Machine::new();
        let away = format!("ip link set t0 netns {}", elsewhere.0.id());
        let gone = Lost::Gone(DeviceName::new(TUN).unwrap());
        let (ours, now) = (DeviceName::new(TUN).unwrap(), DeviceName::new("x0").unwrap());
        let renamed = Lost::Renamed { ours, now };
        #[rustfmt::skip]
        let cases: [(&[&str], Lost, usize); 3] = [
            (&["ip link del t0"], gone, 1),
            (&[&away], gone, 1),
            (&["ip link set t0 name x0", "ip link add t0 type bridge"], renamed, 2),
        ];
        for (lines, lost, looks) in cases {
            let directory = Directory::new("lost");
            let before = state();
            let (mut host, tun) = start(&directory, &plan(Capture::All));
            lines.iter().for_each(|line| run(line));
            for look in 1..=looks {
                let followed = host.follow(&plan(Capture::All), &Changed::default()).unwrap();
                assert_eq!(followed.lost, (look == looks).then_some(lost), "{lines:?}");
                assert!(followed.made.is_empty() && followed.again <= Duration::from_secs(60));
            }
            host.restore().unwrap();
            drop(tun);
            if looks > 1 {
                run("ip link del t0");
            }
            assert_eq!(state(), before, "{lines:?}");
        }
    });
}

/// A route that somebody adds without a device finds the one that it would without us.
#[test]
fn a_router_is_not_looked_for_in_the_tun() {
    within("", || {
        let _outside = host_and_outside("0");
        let directory = Directory::new("router");
        let (host, tun) = start(&directory, &plan(Capture::All));
        for (line, shown) in [
            ("ip route add 10.1.0.0/16 via 192.0.2.2", "ip route show 10.1.0.0/16"),
            ("ip route add 10.2.0.0/16 via 192.0.2.2 table 7", "ip route show table 7"),
            ("ip -6 route add 2001:db8:7::/48 via 2001:db8::2", "ip -6 route show 2001:db8:7::/48"),
        ] {
            run(line);
            let mut words = shown.split(' ');
            let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
            let shown = String::from_utf8(output.stdout).unwrap();
            assert!(shown.contains("dev u0"), "{line}: {shown}");
        }
        host.restore().unwrap();
        drop(tun);
    });
}

#[test]
fn routes_into_the_tun_are_told_of_once() {
    within("", || {
        let _outside = host_and_outside("0");
        let directory = Directory::new("astray");
        let (mut host, tun) = start(&directory, &plan(Capture::All));
        let mut follow = || {
            let changed = Changed { led: true, ..Changed::default() };
            let mut told: Vec<String> = host
                .follow(&plan(Capture::All), &changed)
                .unwrap()
                .astray
                .iter()
                .map(|astray| format!("{} {}", astray.to, astray.table))
                .collect();
            told.sort();
            told
        };
        assert_eq!(follow(), [""; 0]);
        run("ip route add 10.1.0.0/16 dev t0");
        run("ip -6 route add 2001:db8:7::/48 dev t0");
        // Ours, and one that our own packets are not looked up in.
        run("ip route add 10.2.0.0/16 dev t0 table 29806");
        run("ip route add 10.3.0.0/16 dev t0 table 7");
        assert_eq!(follow(), ["10.1.0.0/16 254", "2001:db8:7::/48 254"]);
        assert_eq!(follow(), [""; 0]);
        run("ip rule add pref 200 lookup 7");
        assert_eq!(follow(), ["10.3.0.0/16 7"]);
        run("ip rule del pref 200");
        host.restore().unwrap();
        drop(tun);
    });
}
