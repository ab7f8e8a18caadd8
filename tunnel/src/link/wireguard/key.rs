//! Keys, which are wiped when they are dropped and never printed.

use std::fmt;

use boringtun::x25519;
use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

use super::encoding::{from_hex, to_hex};

/// A peer's public key, or one's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Any 32 bytes are a key.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key of these 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        from_hex(text).map(|key| Self(*key))
    }

    /// Its 64 hexadecimal digits.
    pub fn to_hex(&self) -> String {
        to_hex(&self.0).to_string()
    }

    pub(super) fn point(&self) -> x25519::PublicKey {
        x25519::PublicKey::from(self.0)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, ..] = self.0;
        write!(f, "PublicKey({a:02x}{b:02x}{c:02x}…)")
    }
}

/// An interface's private key.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Zeroizing<[u8; 32]>);

impl PrivateKey {
    /// The key of these bytes, with the bits set and cleared that the curve asks for
    /// (RFC 7748 5).
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut key = Zeroizing::new(*bytes);
        key[0] &= 0xf8;
        key[31] = (key[31] & 0x7f) | 0x40;
        Self(key)
    }

    /// A new key; `None` where the kernel has no random bytes.
    pub fn generate() -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        random(&mut *bytes)?;
        Some(Self::from_bytes(&bytes))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.secret()).to_bytes())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key of these 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        from_hex(text).map(|key| Self::from_bytes(&key))
    }

    /// Its 64 hexadecimal digits.
    pub fn to_hex(&self) -> Zeroizing<String> {
        to_hex(&self.0)
    }

    pub(super) fn secret(&self) -> x25519::StaticSecret {
        x25519::StaticSecret::from(*self.0)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// The key that two peers share besides their key pairs.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey(Zeroizing<[u8; 32]>);

impl PresharedKey {
    /// The key of these bytes; `None` for all zeroes, which stand for "no such key".
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        (*bytes != [0; 32]).then(|| Self(Zeroizing::new(*bytes)))
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its 64 hexadecimal digits.
    pub fn to_hex(&self) -> Zeroizing<String> {
        to_hex(&self.0)
    }

    /// What 64 hexadecimal digits say: a key, or `Some(None)` for all zeroes, "no such key".
    pub fn from_hex(text: &str) -> Option<Option<Self>> {
        from_hex(text).map(|key| Self::from_bytes(&key))
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(…)")
    }
}

/// Fills `bytes` from the kernel's generator.
pub(super) fn random(bytes: &mut [u8]) -> Option<()> {
    let length = getrandom(&mut *bytes, GetRandomFlags::empty()).ok()?;
    (length == bytes.len()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_clamped_and_not_printed() {
        let key = PrivateKey::from_bytes(&[0xff; 32]);
        assert_eq!((key.as_bytes()[0], key.as_bytes()[31]), (0xf8, 0x7f));
        assert_eq!(format!("{key:?}"), "PrivateKey(…)");
        let shared = PresharedKey::from_bytes(&[7; 32]).unwrap();
        assert_eq!(format!("{shared:?}"), "PresharedKey(…)");
        assert!(PresharedKey::from_bytes(&[0; 32]).is_none());
        assert_ne!(PrivateKey::generate(), PrivateKey::generate());
        // RFC 7748 6.1
        let alice = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2,
            0x66, 0x45, 0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5,
            0x1d, 0xb9, 0x2c, 0x2a,
        ];
        let public = PrivateKey::from_bytes(&alice).public();
        assert_eq!(public.as_bytes()[..4], [0x85, 0x20, 0xf0, 0x09]);
    }
}
