//! The cluster's key and what is derived from it. Whoever has it may speak for the cluster; it never leaves the process,
//! is never printed, and its memory is overwritten when it is dropped.

use hmac::{Hmac, KeyInit, Mac};
use sealfs_proto::{ClusterId, NodeId};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// A secret of 32 random bytes, shared by the nodes and clients of a cluster.
#[derive(Clone)]
pub struct Key([u8; Self::LEN]);

/// HMAC-SHA256's output.
pub(crate) type Proof = [u8; 32];

impl Key {
    /// Bytes of a key.
    pub const LEN: usize = 32;

    /// The key with these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Reads a key file's content: 64 hexadecimal digits, white space around them not counted. `None` if it is anything else.
    #[must_use]
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let digits = text.trim_ascii();
        if digits.len() != 2 * Self::LEN {
            return None;
        }
        let nibble = |digit: u8| char::from(digit).to_digit(16);
        let mut bytes = [0; Self::LEN];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (nibble(pair[0])? * 16 + nibble(pair[1])?) as u8;
        }
        Some(Self(bytes))
    }

    /// The id of the cluster that `nodes` (id and weight, in any order) with `shards` shards form under this key, so
    /// that nodes which are given the same list format themselves independently and agree.
    #[must_use]
    pub fn cluster_id(&self, nodes: &[(NodeId, u32)], shards: u32) -> ClusterId {
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable();
        let mut text = shards.to_le_bytes().to_vec();
        for (node, weight) in nodes {
            text.extend_from_slice(&node.0.to_le_bytes());
            text.extend_from_slice(&weight.to_le_bytes());
        }
        let proof = self.prove(b"sealfs cluster id", &[&text]);
        let mut id = ClusterId::default();
        id.0.copy_from_slice(&proof[..16]);
        id
    }

    /// Another key, which follows from this one, `role` and `parts` and tells nothing of this one.
    #[must_use]
    pub fn derived(&self, role: &[u8], parts: &[&[u8]]) -> Self {
        Self(self.prove(role, parts))
    }

    /// As a key file holds it, without a line end.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// HMAC-SHA256 over `role` and `parts`, each preceded by its length, so that no two lists give the same text.
    pub(crate) fn prove(&self, role: &[u8], parts: &[&[u8]]) -> Proof {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        for part in core::iter::once(&role).chain(parts) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// Whether `proof` is what [`Key::prove`] gives; in a time that does not depend on where they differ.
    pub(crate) fn check(&self, role: &[u8], parts: &[&[u8]], proof: &Proof) -> bool {
        self.prove(role, parts).ct_eq(proof).into()
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the compiler from leaving out a write that nobody reads.
        core::hint::black_box(&self.0);
    }
}

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_print_itself() {
        assert_eq!(format!("{:?}", Key::new([77; 32])), "Key(secret)");
    }

    #[test]
    fn a_key_file_holds_64_digits_and_nothing_else() {
        let text = format!(" {}\n", "0aF1".repeat(16));
        assert_eq!(Key::from_hex(text.as_bytes()).unwrap().0, [[0x0a, 0xf1]; 16].concat()[..]);
        for bad in ["", "0a", &"0g".repeat(32), &"0a".repeat(33), &"é".repeat(32)] {
            assert!(Key::from_hex(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_derived_key_depends_on_everything_and_is_written_as_it_is_read() {
        let key = Key::new([1; 32]);
        let derived = key.derived(b"role", &[b"ab", b"c"]);
        for other in [
            key.derived(b"role", &[b"a", b"bc"]),
            key.derived(b"other", &[b"ab", b"c"]),
            Key::new([2; 32]).derived(b"role", &[b"ab", b"c"]),
            key,
        ] {
            assert_ne!(derived.0, other.0);
        }
        assert_eq!(Key::from_hex(derived.to_hex().as_bytes()).unwrap().0, derived.0);
    }

    #[test]
    fn proofs_depend_on_key_role_and_the_borders_of_parts() {
        let key = Key::new([1; 32]);
        let proof = key.prove(b"a", &[b"bc", b"d"]);
        assert!(key.check(b"a", &[b"bc", b"d"], &proof));
        assert!(!key.check(b"a", &[b"b", b"cd"], &proof));
        assert!(!key.check(b"x", &[b"bc", b"d"], &proof));
        assert!(!Key::new([2; 32]).check(b"a", &[b"bc", b"d"], &proof));
    }

    #[test]
    fn a_cluster_is_named_by_its_nodes_whatever_their_order() {
        let key = Key::new([1; 32]);
        let id = key.cluster_id(&[(NodeId(1), 1), (NodeId(2), 3)], 4_096);
        assert_eq!(id, key.cluster_id(&[(NodeId(2), 3), (NodeId(1), 1)], 4_096));
        assert_ne!(id, key.cluster_id(&[(NodeId(2), 1), (NodeId(1), 3)], 4_096));
        assert_ne!(id, key.cluster_id(&[(NodeId(1), 1), (NodeId(2), 3)], 8_192));
    }
}
