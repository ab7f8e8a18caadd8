//! Timers of minutes. `Tunn` reads the clock itself, so these take as long as they say; that
//! nobody wakes up more often than there is something to do is looked at on the way.

use std::thread::sleep;

use super::packet::echo;
use super::*;
use crate::link::wireguard::LinkDropped;

/// Lets `seconds` pass: both act when their timers say so, and `act` once a second. How often
/// `a` was woken.
fn pass(
    a: &mut Side,
    b: &mut Side,
    seconds: u32,
    mut act: impl FnMut(&mut Side, &mut Side),
) -> u32 {
    let began = now();
    let mut woken = 0;
    for second in 0..seconds {
        while now().since(began) < SECOND * second {
            sleep(SECOND / 20);
            woken += u32::from(a.core.wake().is_some_and(|wake| wake <= now()));
            a.core.timers(now());
            b.core.timers(now());
        }
        act(a, b);
    }
    woken
}

#[test]
#[ignore = "takes 130 seconds"]
fn keys_are_renewed() {
    let (mut a, mut b) = two();
    let mut arrived = 0;
    pass(&mut a, &mut b, 130, |a, b| {
        a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
        arrived += settle(a, b, now()).1.len();
        // An answer, so that nobody takes the other for dead.
        b.send(&echo("10.0.0.2", "10.0.0.1", b"y"), now());
        settle(a, b, now());
    });
    assert_eq!(arrived, 130, "nothing is lost at the change");
    assert_eq!(a.core.totals.handshakes, 2);
}

#[test]
#[ignore = "takes 130 seconds"]
fn a_handshake_is_given_up_and_a_keepalive_begins_anew() {
    let (mut a, mut b) = two();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"lost"), now());
    let (mut asked, mut kept) = (0, Vec::new());
    let woken = pass(&mut a, &mut b, 95, |a, _| asked += a.messages().len());
    assert!((16..=19).contains(&asked), "{asked} in 90 seconds");
    assert!(woken < 60, "{woken}");
    assert_eq!(a.core.totals.dropped(LinkDropped::GivenUp), 1);
    let health = |side: &Side| side.core.peers.iter().next().unwrap().1.health(now());
    assert!(health(&a).gave_up && !health(&a).usable());
    let woken = pass(&mut a, &mut b, 10, |a, _| kept.extend(a.messages()));
    assert_eq!((woken, kept.len()), (0, 0), "then there is silence");
    let key = b.public();
    a.change(vec![PeerChange { keepalive: Some(Some(10)), ..PeerChange::new(key) }], now());
    assert_eq!(a.messages().len(), 1);
    pass(&mut a, &mut b, 7, |a, b| {
        settle(a, b, now());
    });
    assert!(health(&a).session && health(&a).usable());
}

#[test]
#[ignore = "takes 190 seconds"]
fn an_idle_session_ends_without_noise() {
    let (mut a, mut b) = two();
    a.send(&echo("10.0.0.1", "10.0.0.2", b"x"), now());
    settle(&mut a, &mut b, now());
    b.send(&echo("10.0.0.2", "10.0.0.1", b"y"), now());
    settle(&mut a, &mut b, now());
    let (mut sent, mut handshakes) = (0, 0);
    let woken = pass(&mut a, &mut b, 190, |a, b| {
        let messages = a.messages();
        sent += messages.len();
        for message in messages {
            b.take(&message, a.at, now());
        }
        for message in b.messages() {
            handshakes += usize::from(message[0] != 4);
            a.take(&message, b.at, now());
        }
    });
    assert!(woken <= 8, "{woken}");
    assert!(sent <= 4, "{sent}");
    assert!(handshakes <= 1, "{handshakes}");
    let session = |side: &Side| side.core.peers.iter().next().unwrap().1.has_session();
    assert!(sent > 2 || !session(&a));
}
