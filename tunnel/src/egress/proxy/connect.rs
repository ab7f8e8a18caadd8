//! HTTP's `CONNECT`: RFC 9110 9.3.6 in the form of RFC 9112, with Basic by RFC 7617.

use engine::Failure;

use super::{ANSWER, Fault, Login, Refusal, Taken, Target};

/// The request is sent, the response awaited.
#[derive(Debug)]
pub(super) struct Talk;

/// RFC 9112 3.2.3: the authority form, host and port.
pub(super) fn request(login: Option<&Login>, target: &Target, out: &mut Vec<u8>) {
    let authority = match target.name() {
        Some(name) => format!("{name}:{}", target.address.port()),
        // An IPv6 address is written in brackets.
        None => target.address.to_string(),
    };
    out.extend_from_slice(b"CONNECT ");
    out.extend_from_slice(authority.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(authority.as_bytes());
    out.extend_from_slice(b"\r\n");
    if let Some(login) = login {
        out.extend_from_slice(b"Proxy-Authorization: Basic ");
        let credentials = [login.user.as_bytes(), b":", login.password.as_bytes()];
        base64(credentials.into_iter().flatten().copied(), out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

impl Talk {
    pub(super) fn receive(&mut self, arrived: &[u8]) -> Result<Taken, Refusal> {
        const BEGINS: &[u8] = b"HTTP/1.";
        let shorter = arrived.len().min(BEGINS.len());
        if arrived[..shorter] != BEGINS[..shorter] {
            return Err(Refusal::Proxy(Fault::Garbled));
        }
        let Some(end) = end_of_header(arrived) else {
            if arrived.len() >= ANSWER {
                return Err(Refusal::Proxy(Fault::Garbled));
            }
            return Ok(Taken { bytes: 0, connected: false });
        };
        match status(arrived).ok_or(Refusal::Proxy(Fault::Garbled))? {
            // RFC 9110 15.2: an interim response; the final one follows. 101 was not asked for.
            100 | 102..=199 => Ok(Taken { bytes: end, connected: false }),
            // RFC 9110 9.3.6: any 2xx; the tunnel begins behind the header, whatever that
            // says of a length.
            200..=299 => Ok(Taken { bytes: end, connected: true }),
            403 | 451 => Err(Refusal::Proxy(Fault::Forbidden)),
            401 | 407 => Err(Refusal::Proxy(Fault::Login)),
            400 | 405 | 501 => Err(Refusal::Proxy(Fault::Incapable)),
            502 => Err(Refusal::Far(Failure::Refused)),
            503 | 504 => Err(Refusal::Far(Failure::HostUnreachable)),
            _ => Err(Refusal::Proxy(Fault::Failed)),
        }
    }
}

/// The length of a header with the empty line that ends it. RFC 9112 2.2: a bare LF may end a
/// line too.
fn end_of_header(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(line) = bytes[from..].iter().position(|&b| b == b'\n') {
        from += line + 1;
        match bytes[from..] {
            [b'\n', ..] => return Some(from + 1),
            [b'\r', b'\n', ..] => return Some(from + 2),
            _ => {}
        }
    }
    None
}

/// RFC 9112 4: `HTTP/1.x NNN`, then a blank or the line's end.
fn status(header: &[u8]) -> Option<u16> {
    let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9', b' ', rest @ ..] = header else {
        return None;
    };
    let (digits, rest) = rest.split_first_chunk::<3>()?;
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(rest.first(), Some(b' ' | b'\r' | b'\n'))
    {
        return None;
    }
    Some(digits.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0')))
}

/// RFC 4648 4
fn base64(bytes: impl Iterator<Item = u8>, out: &mut Vec<u8>) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| ALPHABET[(bits & 0x3f) as usize];
    let mut bytes = bytes.fuse();
    while let Some(first) = bytes.next() {
        let (second, third) = (bytes.next(), bytes.next());
        let [b, c] = [second, third].map(|byte| u32::from(byte.unwrap_or(0)));
        let bits = u32::from(first) << 16 | b << 8 | c;
        out.extend([digit(bits >> 18), digit(bits >> 12)]);
        out.push(second.map_or(b'=', |_| digit(bits >> 6)));
        out.push(third.map_or(b'=', |_| digit(bits)));
    }
}
