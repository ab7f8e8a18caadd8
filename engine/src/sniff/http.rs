//! The host that an HTTP/1 request is for (RFC 9112 3.2).
//!
//! The authority of a target in absolute form or of CONNECT goes before the Host header, as it
//! does for a server (RFC 9112 3.2.2). What a server has to refuse is no name: two readers of it
//! may see two hosts. Only the first request of a connection is read, and of it no more than up
//! to the first Host line.

use super::Found;

/// The longest method that is worth waiting for (the registry's has 17 letters).
const LONGEST_METHOD: usize = 24;

/// Reads the host from the first bytes of a connection.
pub(super) fn host(bytes: &[u8]) -> Found {
    // RFC 9112 2.2: a server ignores an empty line before the request.
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let bytes = &bytes[blank..];
    if !may_be_request(bytes) {
        return Found::Nothing;
    }
    let mut lines = Lines(bytes);
    let Some(request) = lines.next() else { return Found::More };
    let authority = match Target::of(request) {
        Some(Target::Authority(authority)) => return in_authority(authority),
        Some(Target::Origin) => loop {
            match lines.next() {
                None => return Found::More,
                // The headers are over.
                Some([]) => return Found::Nothing,
                Some(line) => match field(line) {
                    Some((name, value)) if name.eq_ignore_ascii_case(b"host") => break value,
                    Some(_) => {}
                    None => return Found::Nothing,
                },
            }
        },
        None => return Found::Nothing,
    };
    in_authority(authority)
}

/// Whether a request may begin like that: with a method, a blank and something.
fn may_be_request(bytes: &[u8]) -> bool {
    let method = bytes.iter().take_while(|byte| is_token(**byte)).count();
    match bytes.get(method) {
        None => method <= LONGEST_METHOD,
        Some(b' ') => (1..=LONGEST_METHOD).contains(&method),
        Some(_) => false,
    }
}

/// What a request asks for, as far as it names a host.
enum Target<'a> {
    Authority(&'a [u8]),
    /// The host is in the header.
    Origin,
}

impl<'a> Target<'a> {
    /// `None`: it is no request line of HTTP/1.
    fn of(line: &'a [u8]) -> Option<Self> {
        let mut words = line.split(|byte| *byte == b' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9'] = version else { return None };
        if words.next().is_some() || target.is_empty() {
            return None;
        }
        if method == b"CONNECT" {
            return Some(Self::Authority(target));
        }
        let scheme = target.iter().position(|byte| *byte == b':').filter(|at| {
            let before = &target[..*at];
            before.iter().all(u8::is_ascii_alphanumeric) && target[*at..].starts_with(b"://")
        });
        let Some(scheme) = scheme else { return Some(Self::Origin) };
        let rest = &target[scheme + 3..];
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
        let authority = &rest[..end.unwrap_or(rest.len())];
        let host = authority.iter().rposition(|byte| *byte == b'@').map_or(0, |at| at + 1);
        Some(Self::Authority(&authority[host..]))
    }
}

/// The host of `host:port`.
fn in_authority(authority: &[u8]) -> Found {
    let (host, port) = match authority.iter().rposition(|byte| *byte == b':') {
        Some(at) => (&authority[..at], &authority[at + 1..]),
        None => (authority, &[][..]),
    };
    if port.iter().all(u8::is_ascii_digit) { Found::Text(host.to_vec()) } else { Found::Nothing }
}

/// Name and value of a header line; `None`: a server has to refuse it (RFC 9112 5.1, 5.2).
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return None;
    }
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |at| at + 1);
    Some((name, &value[start..end]))
}

/// RFC 9110 5.6.2: a character of a method or of a header's name.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whole lines without their ends. RFC 9112 2.2: a line feed alone may end one, too.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_request_is_for() {
        for (request, want) in [
            ("GET / HTTP/1.1\r\nHost: a.example\r\n", Some("a.example")),
            ("GET / HTTP/1.1\r\nAccept: */*\r\nhOST:a.example \t\r\n", Some("a.example")),
            ("\r\nGET / HTTP/1.1\nHost: a.example:80\n", Some("a.example")),
            ("POST /x?y=http://b.example/ HTTP/1.0\r\nHost: a.example\r\n", Some("a.example")),
            ("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n", Some("a.example")),
            ("M-SEARCH * HTTP/1.1\r\nHost: a.example\r\n", Some("a.example")),
            ("GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n", Some("b.example")),
            ("GET http://b.example?q HTTP/1.1\r\n", Some("b.example")),
            ("GET http://a.example@b.example:80/ HTTP/1.1\r\n", Some("b.example")),
            ("CONNECT b.example:443 HTTP/1.1\r\nHost: a.example\r\n", Some("b.example")),
            ("GET / HTTP/1.1\r\n\r\nHost: a.example\r\n", None),
            ("GET /\r\nHost: a.example\r\n", None),
            ("GET / a HTTP/1.1\r\nHost: a.example\r\n", None),
            ("GET / HTTP/1.1\r\nno header\r\nHost: a.example\r\n", None),
            ("GET / HTTP/1.1\r\nA: b\r\n c\r\nHost: a.example\r\n", None),
            ("GET\t/ HTTP/1.1\r\nHost: a.example\r\n", None),
            ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", None),
        ] {
            let want = want.map_or(Found::Nothing, |host| Found::Text(host.into()));
            assert_eq!(host(request.as_bytes()), want, "{request:?}");
        }
        for unfinished in ["G", "GET", "GET ", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: a"] {
            assert_eq!(host(unfinished.as_bytes()), Found::More, "{unfinished:?}");
        }
    }
}
