//! A flow report as one JSON object a line (`docs/json.md`).

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::policy::Verdict;
use engine::{Instant, Protocol, Report, Stage};
use serde_json::{Value, json};

/// How long reports gather before they are fetched. While a thread waits for a report its shard
/// pays for waking it: under load it is woken for many at a time.
pub(crate) const GATHER: Duration = Duration::from_millis(5);

/// Turns the engine's time into the wall clock's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// What the wall clock said at the engine's epoch.
    pub(crate) epoch: SystemTime,
}

/// Writes reports as JSON lines, looking up user names once.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    out: W,
    clock: Clock,
    users: Users,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W, clock: Clock) -> Self {
        Self { out, clock, users: Users::default() }
    }

    pub(crate) fn write(&mut self, report: &Report) -> std::io::Result<()> {
        let object = object(0, report, self.clock, &mut self.users);
        serde_json::to_writer(&mut self.out, &object)?;
        self.out.write_all(b"\n")
    }

    pub(crate) fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// The object of a flow that `shard` carries.
pub(crate) fn object(shard: usize, report: &Report, clock: Clock, users: &mut Users) -> Value {
    let echo = report.protocol == Protocol::Icmp;
    let address = |ip: std::net::IpAddr, port: Option<u16>| match port {
        Some(port) if !echo => SocketAddr::new(ip, port).to_string(),
        Some(_) | None => ip.to_string(),
    };
    let source = if report.local {
        report.egress.map(|e| address(e.address, report.egress_port))
    } else {
        Some(address(report.client.ip(), Some(report.client.port())))
    };
    let egress = report.egress.map(|e| {
        json!({
            "address": e.address.to_string(),
            "port": report.egress_port,
            "device": e.device.as_str(),
            "underlay": report.underlay.map(|device| device.to_string()),
        })
    });
    let owner = report.owner.as_ref();
    json!({
        "event": "flow",
        "id": format!("{shard}-{}", report.number),
        "time": clock.text(report.closed.unwrap_or(report.opened)),
        "state": match report.stage {
            Stage::Held => "held",
            Stage::Connecting => "connecting",
            Stage::Open => "open",
            Stage::Closed => "closed",
        },
        "protocol": report.protocol.to_string(),
        "client": address(report.client.ip(), Some(report.client.port())),
        "source": source,
        "egress": egress,
        "destination": address(report.destination.ip(), Some(report.destination.port())),
        "name": report.name.as_ref().map(|name| &*name.text),
        "name_from": report.name.as_ref().map(|name| name.from.as_str()),
        "peeked": report.peeked,
        "resolvers": report.resolvers.iter().map(|name| &**name).collect::<Vec<_>>(),
        "owner": {
            "uid": owner.map(|o| o.uid),
            "user": owner.and_then(|o| users.name(o.uid)),
            "pid": null,
            "app": null,
            "cgroup": owner.and_then(|o| o.cgroup.as_deref()),
        },
        "via": report.via.name(),
        "verdict": report.verdict.map_or("none", |verdict| match verdict {
            Verdict::Allow => "allow",
            Verdict::Block => "block",
            Verdict::Drop => "drop",
        }),
        "rule": report.rule,
        "generation": report.generation,
        "sent": report.sent,
        "received": report.received,
        "packets_sent": report.packets_sent,
        "packets_received": report.packets_received,
        "opened": clock.text(report.opened),
        "closed": report.closed.map(|at| clock.text(at)),
        "reason": report.reason.map(engine::Reason::name),
    })
}

impl Clock {
    fn text(self, at: Instant) -> String {
        timestamp(self.epoch + Duration::from_micros(at.micros()))
    }
}

/// RFC 3339 in UTC with microseconds.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Days since 1970-01-01 to year, month and day of the proleptic Gregorian calendar:
/// years begin in March, so that the leap day is a year's last, in eras of 400 years.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// User names of the host's password file, read when first asked.
#[derive(Debug, Default)]
pub(crate) struct Users {
    names: Option<std::collections::HashMap<u32, String>>,
}

impl Users {
    fn name(&mut self, uid: u32) -> Option<&str> {
        let names = self.names.get_or_insert_with(|| {
            let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
            text.lines()
                .filter_map(|line| {
                    let mut fields = line.split(':');
                    let name = fields.next()?.to_owned();
                    let uid = fields.nth(1)?.parse().ok()?;
                    Some((uid, name))
                })
                .collect()
        });
        names.get(&uid).map(String::as_str)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use engine::{Name, Via};

    pub(crate) fn example() -> Report {
        use engine::{DeviceName, Egress, Owner, Reason};
        Report {
            number: 1,
            stage: Stage::Closed,
            protocol: Protocol::Tcp,
            client: "198.18.0.1:42568".parse().expect("address"),
            local: true,
            destination: "203.0.113.9:443".parse().expect("address"),
            via: Via::Direct,
            name: Some(Name::asked("www.example.com".into())),
            peeked: false,
            resolvers: vec!["upstream".into()],
            egress: Some(Egress {
                address: "192.168.7.5".parse().expect("address"),
                device: DeviceName::new("eth0").expect("name"),
            }),
            underlay: None,
            egress_port: Some(57360),
            owner: Some(Owner { uid: 1000, cgroup: Some("/user.slice".into()), of_proxy: false }),
            verdict: Some(Verdict::Allow),
            rule: Some("web.policy:3".to_owned()),
            generation: 1,
            sent: 78,
            received: 196,
            packets_sent: 6,
            packets_received: 5,
            opened: Instant::from_micros(0),
            closed: Some(Instant::from_micros(1_908)),
            reason: Some(Reason::FarClosed),
        }
    }

    /// The example of `docs/json.md` is what this module writes.
    #[test]
    fn the_documented_flow_is_true() {
        let docs = include_str!("../../docs/json.md");
        let block = docs.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
        let documented: Value = serde_json::from_str(block.expect("a block")).expect("JSON");
        let epoch = UNIX_EPOCH + Duration::new(1795534640, 65_531_000);
        let mut users = Users { names: Some([(1000, "alice".to_owned())].into()) };
        let written = object(0, &example(), Clock { epoch }, &mut users);
        assert_eq!(written, documented, "{written:#}");
    }

    #[test]
    fn every_documented_object_is_json() {
        let docs = include_str!("../../docs/json.md");
        let blocks = docs.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
        for block in blocks {
            let object: Value = serde_json::from_str(block).expect(block);
            assert!(object["event"].is_string(), "{block}");
        }
    }

    #[test]
    fn what_is_not_known_is_null_and_never_an_address() {
        let nothing = Report {
            name: None,
            resolvers: Vec::new(),
            egress: None,
            egress_port: None,
            owner: None,
            verdict: None,
            rule: None,
            ..example()
        };
        let written =
            object(0, &nothing, Clock { epoch: UNIX_EPOCH }, &mut Users { names: Some([].into()) });
        for key in ["source", "egress", "rule", "name", "name_from"] {
            assert_eq!(written[key], Value::Null, "{key}");
        }
        assert_eq!(written["verdict"], "none");
        assert_eq!(written["owner"]["uid"], Value::Null);
    }

    #[test]
    fn what_the_resolver_answers_has_no_source() {
        let asked = Report { egress: None, egress_port: None, via: Via::Dns, ..example() };
        let forwarded = Report { local: false, ..asked.clone() };
        let written = |report| {
            let mut users = Users { names: Some([].into()) };
            object(0, report, Clock { epoch: UNIX_EPOCH }, &mut users)
        };
        for (report, source) in [(&asked, json!(null)), (&forwarded, json!("198.18.0.1:42568"))] {
            let flow = written(report);
            assert_eq!((&flow["via"], &flow["egress"]), (&json!("dns"), &Value::Null));
            assert_eq!(flow["source"], source);
        }
    }

    #[test]
    fn days_become_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_454, (2026, 1, 1)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date, "day {days}");
        }
    }
}
