//! What others take away is made again.

use super::*;

/// What others do, and what of the kernel's own they put back.
const DAMAGE: [&[&str]; 14] = [
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
            let follow = |host: &mut Host| host.follow(&plan(Capture::All), &[]).unwrap();
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
                assert_eq!(host.follow(&plan(Capture::All), &[]).unwrap().restored.len(), 1);
                echo(&mut there, &mut here).unwrap();
                let mut new = outside.inside(|| connect(to, None)).unwrap();
                echo(&mut new, &mut accept(&listener)).unwrap();
            }
            // Gone when it is to change over.
            run("nft flush ruleset");
            host.track().unwrap();
            echo(&mut there, &mut here).unwrap();
            let restored = host.follow(&plan(Capture::All), &[]).unwrap().restored.len();
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
        let follow = |host: &mut Host| host.follow(&plan(Capture::All), &[]).unwrap();
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
        let follow = |host: &mut Host| host.follow(&plan(Capture::All), &[]).unwrap();
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
