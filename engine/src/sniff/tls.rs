//! The server name of a TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3).
//!
//! The message may lie in several records (RFC 8446 5.1) and is read once it is whole. With
//! Encrypted ClientHello the outer name is seen, which is the provider's public name and not
//! the site's: the name is then that one, because nothing else is there to be read.

use std::borrow::Cow;

use super::{Found, MOST};

/// The content type of a record with handshake messages.
pub(super) const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// RFC 8446 5.1: the length of a TLSPlaintext must not exceed 2^14.
const LARGEST_RECORD: usize = 1 << 14;
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;

/// Reads the name from the first bytes of a connection.
pub(super) fn server_name(bytes: &[u8]) -> Found {
    match message(bytes) {
        Ok(Some(hello)) => match read(&hello) {
            Some(name) => Found::Text(name.to_vec()),
            None => Found::Nothing,
        },
        Ok(None) => Found::More,
        Err(NotTls) => Found::Nothing,
    }
}

/// No TLS client begins like that.
struct NotTls;

/// The body of the ClientHello, once all of it is there.
fn message(mut bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, NotTls> {
    let mut fragments = Cow::Borrowed(&[][..]);
    loop {
        let [kind, major, _, high, low, rest @ ..] = bytes else {
            // As far as there is a header, it must be one.
            let known = [HANDSHAKE, 3];
            return if bytes.iter().zip(known).all(|(a, b)| *a == b) {
                Ok(None)
            } else {
                Err(NotTls)
            };
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // RFC 8446 5.1: no fragment of a handshake message is empty, and no other record
        // stands between them.
        if *kind != HANDSHAKE || *major != 3 || length == 0 || length > LARGEST_RECORD {
            return Err(NotTls);
        }
        let fragment = &rest[..length.min(rest.len())];
        if fragments.is_empty() {
            fragments = Cow::Borrowed(fragment);
        } else {
            fragments.to_mut().extend_from_slice(fragment);
        }
        if let Some(end) = message_end(&fragments)?
            && end <= fragments.len()
        {
            return Ok(Some(match fragments {
                Cow::Borrowed(all) => Cow::Borrowed(&all[MESSAGE_HEADER..end]),
                Cow::Owned(mut all) => {
                    all.truncate(end);
                    all.drain(..MESSAGE_HEADER);
                    Cow::Owned(all)
                }
            }));
        }
        if rest.len() < length {
            return Ok(None);
        }
        bytes = &rest[length..];
    }
}

/// Where the message ends, as far as its header is there.
fn message_end(fragments: &[u8]) -> Result<Option<usize>, NotTls> {
    if fragments.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(NotTls);
    }
    let &[_, high, middle, low, ..] = fragments else { return Ok(None) };
    let end = MESSAGE_HEADER + u32::from_be_bytes([0, high, middle, low]) as usize;
    // With its records' headers it must lie within what is looked at.
    if end + RECORD_HEADER > MOST { Err(NotTls) } else { Ok(Some(end)) }
}

/// The host name of a whole ClientHello.
fn read(hello: &[u8]) -> Option<&[u8]> {
    let mut hello = Reader(hello);
    hello.take(2 + 32)?; // legacy_version and random
    let session = hello.vector8()?;
    let ciphers = hello.vector16()?;
    hello.vector8()?; // compression methods
    if session.len() > 32 || ciphers.is_empty() {
        return None;
    }
    let mut extensions = Reader(hello.vector16()?);
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        // RFC 8446 4.2: there is not more than one extension of a type.
        if kind == SERVER_NAME && found.replace(data).is_some() {
            return None;
        }
    }
    let mut list = Reader(Reader(found?).vector16()?);
    let mut name = None;
    while !list.0.is_empty() {
        let kind = list.u8()?;
        let data = list.vector16()?;
        // RFC 6066 3: not more than one name of a type.
        if kind == HOST_NAME && name.replace(data).is_some() {
            return None;
        }
    }
    name
}

/// What is left of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector that one byte of length leads.
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    /// The same with two.
    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{hello, server_name as extension, sni};
    use super::*;

    #[test]
    fn in_one_record_or_in_many() {
        let extensions = [(0x1a1a, vec![0]), extension(b"a.example"), (51, vec![5; 700])];
        for record in [1, 2, 3, 4, 5, 50, 512, 16_384] {
            let bytes = hello(&extensions, record);
            let found = server_name(&bytes);
            assert_eq!(found, Found::Text(b"a.example".to_vec()), "records of {record} bytes");
            let early = (0..bytes.len()).find(|end| server_name(&bytes[..*end]) != Found::More);
            assert_eq!(early, None, "before the message was whole");
        }
    }

    /// What follows the message in the same flight is not looked at.
    #[test]
    fn early_data_may_follow() {
        let mut bytes = sni("a.example");
        bytes.extend([20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 4, 1, 2, 3, 4]);
        assert_eq!(server_name(&bytes), Found::Text(b"a.example".to_vec()));
    }
}
