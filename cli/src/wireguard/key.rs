//! Keys in base64, as wg(8) writes them: 44 characters for 32 bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// The bytes of a key; `None` where it is not one in its only spelling.
pub(super) fn decode(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    // The decoder wants room for what 44 characters without padding would be.
    let mut bytes = Zeroizing::new([0; 33]);
    let length = STANDARD.decode_slice(text, &mut *bytes).ok()?;
    let key: &[u8; 32] = bytes.get(..length)?.try_into().ok()?;
    Some(Zeroizing::new(*key))
}

/// A key as it is written.
pub(crate) fn encode(key: &[u8; 32]) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_spelling() {
        let key = [0xfb; 32];
        let text = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=";
        assert_eq!((STANDARD.encode(key).as_str(), decode(text).as_deref()), (text, Some(&key)));
        for (name, text) in [
            ("empty", String::new()),
            ("31 bytes", STANDARD.encode([1; 31])),
            ("33 bytes", STANDARD.encode([1; 33])),
            ("34 bytes", STANDARD.encode([1; 34])),
            ("without padding", text.trim_end_matches('=').to_owned()),
            ("bits behind the end", text.replace("s=", "t=")),
            ("the alphabet of URLs", text.replace('+', "-")),
            ("white space", format!(" {text}")),
            ("hexadecimal", "fb".repeat(32)),
            ("no ASCII", "é".repeat(22)),
            ("long", "A".repeat(100_000)),
        ] {
            assert_eq!(decode(&text), None, "{name}");
        }
    }
}
