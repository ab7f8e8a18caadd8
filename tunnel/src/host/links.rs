//! What a plan wants of each device, and what is due when devices have come or gone.
//!
//! # Theory of operation
//!
//! A device has two things of ours. Its `rp_filter` is off: ARP looks its sender up without any
//! mark, so that with reverse path filtering nobody's question is answered (the ruleset checks
//! sources instead). And a rule leaves alone what may leave by this device only.
//!
//! Whoever sets `rp_filter` again (udev for a new device, `sysctl --system` for all of them) wants
//! no less than at the start to have it that way when we are gone: it is the same change, with
//! a later value to put back. A new device takes ours over from `default` unseen; when `default`
//! is put back, so are those. One that was there at the start, was lent to another network
//! namespace and has come back is a new device too, though it may have its index again.

use std::collections::HashSet;

use engine::DeviceName;
use rustix::io::Errno;

use super::change::{self, Change, Device, Rule, Takes};
use super::plan::{Capture, Plan};
use super::seen::{self, Seen};
use super::sysctl;
use crate::rtnetlink::Rtnetlink;

/// The value of `rp_filter` by which sources are not checked.
pub(super) const UNCHECKED: &str = "0";

/// `rp_filter` where it is on.
pub(super) fn reverse_paths(seen: &Seen) -> Vec<Change> {
    let on = |name: &str| {
        let value = seen.settings.get(&reverse_path(name))?;
        (value != UNCHECKED).then(|| value.clone())
    };
    let later = on("default").map(|before| {
        let known = seen.devices.iter().map(|device| device.index).collect();
        Change::LaterReversePath { before, known }
    });
    let devices = seen.devices.iter().filter(|device| !is_loopback(device.name));
    let now = devices.filter_map(|seen| {
        let device = Device { name: seen.name, index: seen.index };
        Some(Change::ReversePath { device, before: on(seen.name.as_str())? })
    });
    later.into_iter().chain(now).collect()
}

/// The devices that a packet can be bound to and that lead out of this host. Each is one rule
/// more for every lookup to pass, some nanoseconds.
pub(super) fn bound_to(plan: &Plan, seen: &Seen) -> impl Iterator<Item = DeviceName> {
    let devices = seen.devices.iter().filter(|device| !device.port);
    let names = devices.map(|device| device.name);
    names.filter(|&name| name != plan.device && !is_loopback(name))
}

/// What is due on a host that follows its plan.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// Changes to be undone: their device is gone, or has another name.
    pub(super) gone: Vec<Change>,
    /// What stands for a change that was made: it is undone in another way by now.
    pub(super) renewed: Option<Change>,
    /// Changes to be made.
    pub(super) new: Vec<Change>,
}

/// What leads from `applied` to what `plan` wants of the devices and settings that are `seen` now.
pub(super) fn due(plan: &Plan, seen: &Seen, applied: &[Change]) -> Due {
    if plan.capture == Capture::Nothing {
        return Due::default();
    }
    let rules: Vec<Change> = change::families(seen)
        .iter()
        .flat_map(|&family| change::rules(plan, family, seen))
        .filter(is_bound)
        .collect();
    let wanted: HashSet<&Change> = rules.iter().collect();
    let there: HashSet<u32> = seen.devices.iter().map(|device| device.index).collect();
    let gone = applied.iter().filter(|change| {
        let its_device_is_gone =
            matches!(change, Change::ReversePath { device, .. } if !there.contains(&device.index));
        its_device_is_gone || (is_bound(change) && !wanted.contains(change))
    });

    let mut new = change::sysctls(seen);
    new.extend(reverse_paths(seen));
    let mut renewed = None;
    let had = applied.iter().find_map(|change| Some((change, known(change)?)));
    if let Some((change, had)) = had {
        let still: Vec<u32> = had.iter().copied().filter(|index| there.contains(index)).collect();
        if still.len() < had.len() {
            let mut change = change.clone();
            if let Some(known) = known_mut(&mut change) {
                known.clone_from(&still);
            }
            renewed = Some(change);
        }
        // A device that came since has our value from `default` all the same.
        if let Some(known) = new.iter_mut().find_map(known_mut) {
            *known = still;
        }
    }
    let applied_rules: HashSet<&Change> =
        applied.iter().filter(|change| is_bound(change)).collect();
    new.extend(rules.iter().filter(|rule| !applied_rules.contains(rule)).cloned());
    Due { gone: gone.cloned().collect(), renewed, new }
}

fn is_bound(change: &Change) -> bool {
    matches!(change, Change::Rule(Rule { takes: Takes::BoundTo(_), .. }))
}

fn known(change: &Change) -> Option<&Vec<u32>> {
    if let Change::LaterReversePath { known, .. } = change { Some(known) } else { None }
}

fn known_mut(change: &mut Change) -> Option<&mut Vec<u32>> {
    if let Change::LaterReversePath { known, .. } = change { Some(known) } else { None }
}

/// Turns the check off on a device. One that is gone, a container's that has ended, is fine.
pub(super) fn uncheck(device: Device) -> Result<(), Errno> {
    on_device(device, |key| sysctl::write(key, UNCHECKED))
}

/// The same for devices that appear later.
pub(super) fn uncheck_later() -> Result<(), Errno> {
    sysctl::write(&reverse_path("default"), UNCHECKED)
}

/// Puts a device's value back.
pub(super) fn put_back(device: Device, before: &str) -> Result<(), Errno> {
    on_device(device, |key| sysctl::put_back(key, UNCHECKED, before))
}

/// Puts back what devices take over, and what those but the `known` have taken over from us.
pub(super) fn put_back_later(before: &str, known: &[u32]) -> Result<(), Errno> {
    sysctl::put_back(&reverse_path("default"), UNCHECKED, before)?;
    for device in seen::devices(&mut Rtnetlink::open()?)? {
        if !known.contains(&device.index) {
            put_back(Device { name: device.name, index: device.index }, before)?;
        }
    }
    Ok(())
}

/// By the name that the device has now.
fn on_device(device: Device, act: impl Fn(&str) -> Result<(), Errno>) -> Result<(), Errno> {
    let name = match Rtnetlink::open()?.name(device.index) {
        Err(Errno::NODEV | Errno::NXIO) => return Ok(()),
        name => name?,
    };
    match act(&reverse_path(&name)) {
        // It went just now.
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        other => other,
    }
}

fn reverse_path(name: &str) -> String {
    format!("ipv4/conf/{name}/rp_filter")
}

fn is_loopback(name: DeviceName) -> bool {
    name.as_str() == "lo"
}

#[cfg(test)]
mod tests {
    use super::super::{Family, Ipv6, SeenDevice, Then};
    use super::*;

    const ETH0: (&str, u32, &str) = ("eth0", 2, "0");
    const TUN: (&str, u32, &str) = ("t0", 7, "0");

    /// A host with these devices: name, index, `rp_filter`. A `veth` is a bridge's.
    fn seen(default: &str, devices: &[(&str, u32, &str)]) -> Seen {
        let setting = |(name, value): (&str, &str)| (reverse_path(name), value.to_owned());
        let ends = [("all", "0"), ("default", default)];
        let values = devices.iter().map(|&(name, _, value)| (name, value));
        Seen {
            devices: devices
                .iter()
                .map(|&(name, index, _)| SeenDevice {
                    name: DeviceName::new(name).unwrap(),
                    index,
                    port: name.starts_with("veth"),
                    up: true,
                    mtu: 1500,
                })
                .collect(),
            settings: ends.into_iter().chain(values).map(setting).collect(),
            ipv6: Ipv6::Absent,
            accepted: Vec::new(),
        }
    }

    fn off(name: &str, index: u32, before: &str) -> Change {
        let device = Device { name: DeviceName::new(name).unwrap(), index };
        Change::ReversePath { device, before: before.to_owned() }
    }

    fn off_later(before: &str, known: &[u32]) -> Change {
        Change::LaterReversePath { before: before.to_owned(), known: known.to_vec() }
    }

    fn bound(name: &str) -> Change {
        Change::Rule(Rule {
            family: Family::V4,
            priority: 99,
            takes: Takes::BoundTo(DeviceName::new(name).unwrap()),
            then: Then::Goto(101),
        })
    }

    #[test]
    fn due_table() {
        let all = |before: &str| Change::Sysctl {
            key: "ipv4/conf/all/rp_filter".to_owned(),
            value: "0".to_owned(),
            before: before.to_owned(),
        };
        let start = vec![off_later("2", &[2, 7]), off("eth0", 2, "1"), bound("eth0")];
        #[rustfmt::skip]
        let cases: [(&str, Seen, Vec<Change>, Vec<Change>); 12] = [
            ("nothing new", seen("0", &[ETH0, TUN]), vec![], vec![]),
            ("two come", seen("0", &[ETH0, TUN, ("eth1", 8, "0"), ("eth2", 9, "0")]),
                vec![], vec![bound("eth1"), bound("eth2")]),
            ("one comes, and udev was faster", seen("0", &[ETH0, TUN, ("eth1", 8, "2")]),
                vec![], vec![off("eth1", 8, "2"), bound("eth1")]),
            ("a bridge's", seen("0", &[ETH0, TUN, ("veth0", 8, "2")]),
                vec![], vec![off("veth0", 8, "2")]),
            ("another name", seen("0", &[("lan0", 2, "0"), TUN]),
                vec![bound("eth0")], vec![bound("lan0")]),
            ("gone", seen("0", &[TUN]), vec![off("eth0", 2, "1"), bound("eth0")], vec![]),
            ("another one of its name", seen("0", &[("eth0", 9, "0"), TUN]),
                vec![off("eth0", 2, "1")], vec![]),
            ("set by somebody", seen("0", &[("eth0", 2, "2"), TUN]),
                vec![], vec![off("eth0", 2, "2")]),
            ("all of them set", {
                let mut seen = seen("1", &[("eth0", 2, "1"), ("eth1", 8, "0"), TUN]);
                seen.settings.insert(reverse_path("all"), "1".to_owned());
                seen
            }, vec![], vec![all("1"), off_later("1", &[2, 7]), off("eth0", 2, "1"), bound("eth1")]),
            ("loopback", seen("0", &[("lo", 1, "1"), ETH0, TUN]), vec![], vec![]),
            ("lent to another namespace, and default set", seen("1", &[TUN]),
                vec![off("eth0", 2, "1"), bound("eth0")], vec![off_later("1", &[7])]),
            ("no device at all", seen("0", &[]),
                vec![off("eth0", 2, "1"), bound("eth0")], vec![]),
        ];
        let plan = Plan { capture: Capture::All, ..Plan::new(DeviceName::new("t0").unwrap()) };
        for (name, seen, gone, new) in cases {
            let still: Vec<u32> = [2, 7]
                .into_iter()
                .filter(|at| seen.devices.iter().any(|d| d.index == *at))
                .collect();
            let renewed = (still.len() < 2).then(|| off_later("2", &still));
            assert_eq!(due(&plan, &seen, &start), Due { gone, renewed, new }, "{name}");
        }
        // A device that was lent and is back is none of the known.
        let lent = due(&plan, &seen("0", &[TUN]), &start).renewed.unwrap();
        assert_eq!(lent, off_later("2", &[7]));
        let (back, applied) = (seen("0", &[ETH0, TUN]), [lent, bound("eth0")]);
        assert_eq!(due(&plan, &back, &applied), Due::default(), "lent, and back");
        let mut port = seen("0", &[ETH0, TUN]);
        port.devices[0].port = true;
        let gone = vec![bound("eth0")];
        let by_now = Due { gone, ..Due::default() };
        assert_eq!(due(&plan, &port, &start), by_now, "a bridge's by now");
        let nothing = Plan { capture: Capture::Nothing, ..plan };
        assert_eq!(due(&nothing, &seen("1", &[("eth0", 2, "1")]), &[]), Due::default(), "nothing");
    }

    #[test]
    fn what_is_made_is_due_no_more() {
        let plan = Plan { capture: Capture::All, ..Plan::new(DeviceName::new("t0").unwrap()) };
        let before = seen("2", &[("eth0", 2, "1"), ("eth1", 3, "0"), TUN]);
        for ipv6 in [Ipv6::Absent, Ipv6::Disabled, Ipv6::Usable] {
            let applied = change::changes(&plan, &Seen { ipv6, ..before.clone() });
            let after = Seen { ipv6, ..seen("0", &[ETH0, ("eth1", 3, "0"), TUN]) };
            assert_eq!(due(&plan, &after, &applied), Due::default(), "{ipv6:?}");
        }
    }
}
