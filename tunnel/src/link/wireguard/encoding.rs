//! Keys as hexadecimal text, as WireGuard's interface writes them.
//!
//! No table is looked up by a secret byte: arithmetic alone, so that caches tell nothing.

use zeroize::Zeroizing;

/// A key's digits.
const HEX: usize = 64;

pub(super) fn from_hex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let digits: &[u8; HEX] = text.as_bytes().try_into().ok()?;
    let mut key = Zeroizing::new([0; 32]);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_value(pair[0])? << 4 | hex_value(pair[1])?;
    }
    Some(key)
}

pub(super) fn to_hex(key: &[u8; 32]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(HEX));
    for byte in key {
        text.push(hex_digit(byte >> 4));
        text.push(hex_digit(byte & 15));
    }
    text
}

fn hex_digit(value: u8) -> char {
    char::from(value + b'0' + u8::from(value > 9) * (b'a' - b'0' - 10))
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        for seed in 0..=255_u8 {
            let key: [u8; 32] = std::array::from_fn(|at| seed.wrapping_mul(7) ^ (at as u8) << 3);
            assert_eq!(from_hex(&to_hex(&key)).as_deref(), Some(&key));
        }
    }

    #[test]
    fn what_is_no_key() {
        let good = "c53201039adba14be71f886da1d8dbe9eebded08cb111b75340078999aa9f038";
        assert!(from_hex(&good.to_uppercase()).is_some());
        for (name, text) in [
            ("too short", good[2..].to_owned()),
            ("too long", format!("{good}00")),
            ("no digit", good.replace("c5", "g5")),
            ("a sign", good.replace("c5", "+5")),
            ("no ASCII", good.replace("c5", "é")),
        ] {
            assert!(from_hex(&text).is_none(), "{name}");
        }
    }
}
