//! What of a text may be shown: everything but keys and passwords.
//!
//! A diagnostic quotes the line that it is about. One line in such a file is a secret, and a
//! terminal, a log or a bug report is no place for it. What looks like a secret is taken
//! out, wherever it stands: a fault may be that it stands at the wrong place.

use std::borrow::Cow;

/// A WireGuard key has 43 such characters, and one for its end.
const KEY: usize = 40;

/// Keys of the configuration whose values are secret, or hold one; without `-` and `_`.
const NAMES: [&str; 8] =
    ["privatekey", "presharedkey", "psk", "password", "pass", "url", "secret", "token"];

/// A text without what looks like a key in base64, and without the user and the password of a
/// URL.
pub(crate) fn masked(text: &str) -> Cow<'_, str> {
    let mut shown = Cow::Borrowed(text);
    if let Some((scheme, rest)) = text.split_once("://")
        && let Some((_, host)) = rest.rsplit_once('@')
    {
        shown = format!("{scheme}://…@{host}").into();
    }
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/');
    let long = |run: &str| run.len() >= KEY;
    if !shown.split(|c| !is_of_key(c)).any(long) {
        return shown;
    }
    let mut masked = String::new();
    let mut rest = &*shown;
    while let Some(c) = rest.chars().next() {
        let end = if is_of_key(c) {
            rest.find(|c| !is_of_key(c)).unwrap_or(rest.len())
        } else {
            rest.find(is_of_key).unwrap_or(rest.len())
        };
        let (run, below) = rest.split_at(end);
        let hidden = is_of_key(c) && long(run);
        masked.push_str(if hidden { "…" } else { run });
        rest = below;
    }
    masked.into()
}

/// What may be shown of a line of `tunneld.toml`.
pub(super) fn line(line: &str) -> Cow<'_, str> {
    let Some(end) = secret_name(line) else { return masked(line) };
    let (name, rest) = line.split_at(end);
    // A quote around the key.
    let quote = rest.find(|c: char| !matches!(c, '"' | '\'' | ' ' | '\t' | '=')).unwrap_or(0);
    let equals = rest[..quote].find('=').map_or(0, |equals| equals + 1);
    format!("{}{} …", masked(name), &rest[..equals]).into()
}

/// What may be shown of a line of a file that is no TOML: nobody knows where a value begins
/// and ends.
pub(super) fn broken_line<'a>(text: &str, wrong: &'a str) -> Cow<'a, str> {
    if text.lines().all(|line| secret_name(line).is_none()) {
        return masked(wrong);
    }
    match wrong.split_once('=') {
        Some((key, _)) if key.len() < KEY => format!("{}= …", masked(key)).into(),
        Some(_) | None => "…".into(),
    }
}

/// Where the first name of a secret ends.
fn secret_name(line: &str) -> Option<usize> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let mut at = 0;
    for word in line.split(|c| !is_of_name(c)) {
        let bare: String = word.chars().filter(|c| !matches!(c, '-' | '_')).collect();
        if NAMES.iter().any(|name| name.eq_ignore_ascii_case(&bare)) {
            return Some(at + word.len());
        }
        // What splits may have more than one byte.
        at += word.len();
        at += line[at..].chars().next().map_or(0, char::len_utf8);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "QFakeKeyFakeKeyFakeKeyFakeKeyFakeKeyFakeK0=";

    #[test]
    fn no_secret_is_shown() {
        for (text, want) in [
            ("mtu = 1", "mtu = 1"),
            ("private_key = \"KEY\"", "private_key = …"),
            ("  PrivateKey=KEY", "  PrivateKey= …"),
            ("\"preshared_key\" = 'KEY'", "\"preshared_key\" = …"),
            ("private_key_file = \"wg0.key\"", "private_key_file = \"wg0.key\""),
            ("private_key \"KEY\"", "private_key …"),
            ("a = { private_key = \"KEY\", b = 1 }", "a = { private_key = …"),
            ("é = 1, private_key = \"KEY\"", "é = 1, private_key = …"),
            ("privat_key = \"KEY\"", "privat_key = \"…=\""),
            ("public_key = \"KEY\"", "public_key = \"…=\""),
            ("url = \"socks5://a:b@c\"", "url = …"),
            ("ulr = \"socks5://a:b@c:1\"", "ulr = \"socks5://…@c:1\""),
            (
                "servers = [\"tls://10.0.0.1#a.example\"]",
                "servers = [\"tls://10.0.0.1#a.example\"]",
            ),
            ("password", "password …"),
            ("KEY", "…="),
            ("éKEYé", "é…=é"),
        ] {
            let text = text.replace("KEY", SECRET);
            assert_eq!(line(&text), want.replace("KEY", SECRET), "{text}");
        }
    }

    #[test]
    fn a_broken_file_shows_less_where_it_holds_a_secret() {
        for (text, wrong, want) in [
            ("mtu = = 1", "mtu = = 1", "mtu = = 1"),
            ("private_key = \"\"\"\nabc\n", "abc", "…"),
            ("private_key = \"\"\"\nabc\n", "abc = 1", "abc = …"),
        ] {
            assert_eq!(broken_line(text, wrong), want, "{text}");
        }
    }
}
