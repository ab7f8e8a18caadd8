//! A name as the plan and the cache know it: text, lower case, no last dot.
//!
//! A label may hold any byte (RFC 2181 section 11). A dot or a byte that is not printable
//! stands as an escape (`\.`, `\009`; RFC 1035 section 5.1), so that no label passes for
//! two: `a\.corp.example` is no name below `corp.example`'s neighbour `a.corp.example`.

use std::ops::Deref;

use smallvec::SmallVec;

/// The longest name on the wire, in bytes (RFC 1035 section 3.1).
const LONGEST: usize = 255;

/// A name in lower case, as text without the last dot; the root is empty. Always ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(SmallVec<[u8; 96]>);

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        // Only ASCII is ever pushed; the check is what a build without `unsafe` pays.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Text {
    /// The text's bytes, without the check that [`Deref`] pays.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads an uncompressed name at the start of `wire`: the text, and how many bytes it
    /// takes. None: cut short, longer than 255 bytes, or compressed, which the first name
    /// of a message can't be.
    pub fn read(wire: &[u8]) -> Option<(Self, usize)> {
        let mut text = SmallVec::new();
        let mut at = 0;
        loop {
            let length = usize::from(*wire.get(at)?);
            if length == 0 {
                return (at < LONGEST).then_some((Self(text), at + 1));
            }
            if length > 63 {
                return None;
            }
            let label = wire.get(at + 1..at + 1 + length)?;
            if !text.is_empty() {
                text.push(b'.');
            }
            if label.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte)) {
                let start = text.len();
                text.extend_from_slice(label);
                text[start..].make_ascii_lowercase();
            } else {
                label.iter().for_each(|byte| push(&mut text, *byte));
            }
            at += 1 + length;
            if at >= LONGEST {
                return None;
            }
        }
    }
}

/// One byte of a label, in lower case or escaped.
fn push(text: &mut SmallVec<[u8; 96]>, byte: u8) {
    match byte {
        b'.' | b'\\' => text.extend_from_slice(&[b'\\', byte]),
        b'!'..=b'~' => text.push(byte.to_ascii_lowercase()),
        _ => text.extend_from_slice(&[
            b'\\',
            b'0' + byte / 100,
            b'0' + byte / 10 % 10,
            b'0' + byte % 10,
        ]),
    }
}

/// Whether `name` is `zone` or below it; both in lower case without the last dot.
pub fn is_within(name: &str, zone: &str) -> bool {
    match name.strip_suffix(zone) {
        Some("") => true,
        Some(front) => zone.is_empty() || front.strip_suffix('.').is_some_and(ends_a_label),
        None => false,
    }
}

/// Whether a dot behind this ends a label: it doesn't where it is escaped, and where it is not
/// the dot but a backslash that is.
fn ends_a_label(front: &str) -> bool {
    front.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0
}

/// The place behind the name that starts at `at`, compressed or not; None when cut short.
/// Where a pointer points is not followed.
pub(crate) fn end(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0..=0xff => return (at + 2 <= message.len()).then_some(at + 2),
            64..=0xbf => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        for (case, wire, expected) in [
            ("the root", &b"\0"[..], Some(("", 1))),
            ("lower case", b"\x03WwW\x07ExAmPle\0rest", Some(("www.example", 13))),
            ("a dot in a label", b"\x03a.b\x01c\0", Some(("a\\.b.c", 7))),
            ("a backslash", b"\x01\\\0", Some(("\\\\", 3))),
            ("any byte", b"\x03a\x00\xff\0", Some(("a\\000\\255", 5))),
            ("a space", b"\x01 \0", Some(("\\032", 3))),
            ("no end", b"\x03www", None),
            ("a label cut short", b"\x09www", None),
            ("a pointer", b"\xc0\x0c", None),
            ("a label of no kind", b"\x40", None),
            ("empty", b"", None),
        ] {
            let read = Text::read(wire);
            let read = read.as_ref().map(|(text, length)| (&**text, *length));
            assert_eq!(read, expected, "{case}");
        }
        let label = [&[63][..], &[b'a'; 63]].concat();
        let longest = [&label[..], &label, &label, &[61], &[b'a'; 61], &[0]].concat();
        assert_eq!(longest.len(), 255);
        assert_eq!(Text::read(&longest).map(|(_, length)| length), Some(255));
        let longer = [&label[..], &label, &label, &[62], &[b'a'; 62], &[0]].concat();
        assert_eq!(Text::read(&longer), None);
    }

    #[test]
    fn a_zone_holds_itself_and_what_is_below() {
        for (name, zone, expected) in [
            ("example", "example", true),
            ("a.example", "example", true),
            ("aexample", "example", false),
            ("a\\.example", "example", false),
            ("a\\\\.example", "example", true),
            ("a\\\\\\.example", "example", false),
            ("\\\\.example", "example", true),
            ("example", "a.example", false),
            ("example", "", true),
            ("", "", true),
            ("", "example", false),
        ] {
            assert_eq!(is_within(name, zone), expected, "{name} in {zone}");
        }
    }

    #[test]
    fn the_end_of_a_name_is_found() {
        for (case, wire, expected) in [
            ("plain", &b"\x01a\0x"[..], Some(3)),
            ("pointer", b"\x01a\xc0\x0cx", Some(4)),
            ("half a pointer", b"\x01a\xc0", None),
            ("cut", b"\x05a", None),
            ("no kind", b"\x80", None),
        ] {
            assert_eq!(end(wire, 0), expected, "{case}");
        }
    }
}
