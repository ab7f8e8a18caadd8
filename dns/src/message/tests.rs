//! Queries as apps write them, whole and broken.

use hickory_proto::op::{Message, MessageType};

use super::*;

/// A query without EDNS, RD set.
pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes
}

/// The same with an OPT.
pub(crate) fn query_edns(id: u16, name: &str, kind: u16, size: u16, dnssec_ok: bool) -> Vec<u8> {
    let mut bytes = query(id, name, kind);
    bytes[11] = 1;
    bytes.extend_from_slice(&[0, 0, 41]);
    bytes.extend_from_slice(&size.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, if dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
    bytes
}

fn changed(mut bytes: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (at, byte) in changes {
        bytes[*at] = *byte;
    }
    bytes
}

#[test]
fn what_is_no_query_is_refused() {
    use ResponseCode as Code;
    let plain = query(7, "a.b", 1);
    let edns = query_edns(7, "a.b", 1, 1_232, false);
    let two_opts = {
        let mut bytes = edns.clone();
        bytes[11] = 2;
        bytes.extend_from_slice(&edns[edns.len() - 11..]);
        bytes
    };
    for (case, bytes, expected) in [
        ("plain", plain.clone(), None),
        ("EDNS", edns.clone(), None),
        ("empty", vec![], Some(Unfit::Ignored)),
        ("no header", plain[..11].to_vec(), Some(Unfit::Ignored)),
        ("a response", changed(plain.clone(), &[(2, 0x81)]), Some(Unfit::Ignored)),
        ("NOTIFY", changed(plain.clone(), &[(2, 0x20)]), Some(Unfit::Refused(Code::NotImp))),
        ("UPDATE", changed(plain.clone(), &[(2, 0x28)]), Some(Unfit::Refused(Code::NotImp))),
        ("no question", changed(plain.clone(), &[(5, 0)]), Some(Unfit::Refused(Code::FormErr))),
        ("two questions", changed(plain.clone(), &[(5, 2)]), Some(Unfit::Refused(Code::FormErr))),
        ("an answer in it", changed(plain.clone(), &[(7, 1)]), Some(Unfit::Refused(Code::FormErr))),
        ("cut short", plain[..plain.len() - 1].to_vec(), Some(Unfit::Refused(Code::FormErr))),
        ("a pointer", changed(plain.clone(), &[(12, 0xc0)]), Some(Unfit::Refused(Code::FormErr))),
        ("class CH", changed(plain.clone(), &[(20, 3)]), Some(Unfit::Refused(Code::Refused))),
        ("ANY", query(7, "a.b", 255), Some(Unfit::Refused(Code::NotImp))),
        ("AXFR", query(7, "a.b", 252), Some(Unfit::Refused(Code::NotImp))),
        ("two OPTs", two_opts, Some(Unfit::Refused(Code::FormErr))),
        (
            "an OPT with a name",
            {
                let mut bytes = plain.clone();
                bytes[11] = 1;
                bytes.extend_from_slice(&[1, b'a', 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
                bytes
            },
            Some(Unfit::Refused(Code::FormErr)),
        ),
        (
            "EDNS version 1",
            changed(edns.clone(), &[(edns.len() - 5, 1)]),
            Some(Unfit::Refused(Code::BADVERS)),
        ),
        (
            "an OPT cut short",
            changed(edns.clone(), &[(edns.len() - 1, 1)]),
            Some(Unfit::Refused(Code::FormErr)),
        ),
    ] {
        let read = Query::read(&bytes).err();
        assert_eq!(read, expected, "{case}");
        if let Some(Unfit::Refused(code)) = read {
            let mut room = vec![9];
            refuse(&bytes, code, &mut room);
            let answer = Message::from_vec(&room).expect(case);
            assert_eq!(answer.metadata.id, 7, "{case}");
            assert_eq!(answer.metadata.message_type, MessageType::Response, "{case}");
            let answered = answer.metadata.response_code;
            assert_eq!(u16::from(answered), u16::from(code), "{case}");
        }
    }
}

#[test]
fn a_query_is_read() {
    let bytes = changed(query_edns(0x1234, "WwW.Example", 65_280, 4_096, true), &[(3, 0x30)]);
    let read = Query::read(&bytes).expect("a query");
    assert_eq!(&**read.name(), "www.example");
    assert_eq!(read.wire_name(), b"\x03WwW\x07Example\0");
    assert_eq!(u16::from(read.kind()), 65_280);
    assert!(read.dnssec_ok() && read.checking_disabled());
    assert_eq!(read.limit(Over::Udp), 1_232);
    assert_eq!(read.limit(Over::Tcp), 65_535);
    let plain = query(1, "", 2);
    let read = Query::read(&plain).expect("a query");
    assert_eq!((&**read.name(), read.dnssec_ok(), read.limit(Over::Udp)), ("", false, 512));
    let small = query_edns(1, "a", 1, 100, false);
    assert_eq!(Query::read(&small).expect("a query").limit(Over::Udp), 512);
}

#[test]
fn an_empty_answer_keeps_what_the_app_wrote() {
    let bytes = query_edns(0x1234, "WwW.Example", 1, 1_232, true);
    let mut room = Vec::new();
    let read = Query::read(&bytes).expect("a query");
    let errors = [Extended::BLOCKED, Extended::BLOCKED, Extended::STALE];
    read.answer_empty(ResponseCode::NXDomain, &errors, Over::Udp, &mut room);
    let question = 12..12 + 13 + 4;
    assert_eq!(room[question.clone()], bytes[question]);
    let answer = Message::from_vec(&room).expect("an answer");
    assert_eq!(answer.metadata.id, 0x1234);
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(answer.metadata.recursion_desired && answer.metadata.recursion_available);
    assert!(!answer.metadata.authoritative && !answer.metadata.authentic_data);
    let edns = answer.edns.expect("EDNS");
    assert!(edns.flags().dnssec_ok);
    assert_eq!(edns.max_payload(), 1_232);
    assert_eq!(edns.options().options.len(), 2);

    let bytes = query(1, "a", 1);
    Query::read(&bytes).expect("a query").answer_empty(
        ResponseCode::ServFail,
        &[Extended::NO_REACHABLE],
        Over::Udp,
        &mut room,
    );
    assert_eq!(Message::from_vec(&room).expect("an answer").edns, None);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
        let mut room = Vec::new();
        match Query::read(&bytes) {
            Ok(query) => query.answer_empty(ResponseCode::ServFail, &[], Over::Udp, &mut room),
            Err(Unfit::Refused(code)) => refuse(&bytes, code, &mut room),
            Err(Unfit::Ignored) => {}
        }
    }

    #[test]
    fn no_query_with_a_header_makes_it_panic(
        tail in proptest::collection::vec(proptest::num::u8::ANY, 0..80),
        additionals in 0_u8..3,
    ) {
        let mut bytes = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, additionals];
        bytes.extend_from_slice(&tail);
        if let Ok(query) = Query::read(&bytes) {
            let mut room = Vec::new();
            query.answer_empty(ResponseCode::NoError, &[], Over::Tcp, &mut room);
            proptest::prop_assert_eq!(&room[12..12 + query.name_length], query.wire_name());
        }
    }
}
