//! The 80 bytes that begin the volume: that it is one, and whose.
//!
//! ```text
//!  0  magic "SEALFSVO"      8  format version u32    12  reserved u32 (0)
//! 16  features_compatible u64                        24  features_incompatible u64
//! 32  cluster [16]         48  instance u64          56  length u64: bytes of blocks, which begin at 1 MiB
//! 64  node u16             66  reserved [10] (0)
//! 76  crc u32: CRC32C of the bytes before
//! ```
//! All little-endian. Segments and snapshots have headers of their own, see `sealfs_meta`.

use sealfs_proto::{ClusterId, Corrupt, NodeId};

use super::superblock::{FEATURES_COMPATIBLE, FEATURES_INCOMPATIBLE, VERSION, check_version};

/// What a volume says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VolumeHeader {
    /// Which cluster.
    pub(crate) cluster: ClusterId,
    /// Which node.
    pub(crate) node: NodeId,
    /// Which format of the directory.
    pub(crate) instance: u64,
    /// Bytes of blocks.
    pub(crate) len: u64,
}

impl VolumeHeader {
    /// Bytes of a header.
    pub(crate) const LEN: usize = 80;

    /// The header's bytes.
    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&FEATURES_COMPATIBLE.to_le_bytes());
        bytes[24..32].copy_from_slice(&FEATURES_INCOMPATIBLE.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.cluster.0);
        bytes[48..56].copy_from_slice(&self.instance.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.len.to_le_bytes());
        bytes[64..66].copy_from_slice(&self.node.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header.
    pub(crate) fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, Corrupt> {
        let bad = |cause: &str| Corrupt::new("volume", cause);
        let mut rest = &bytes[..];
        if take(&mut rest) != *MAGIC {
            return Err(bad("it does not begin with SEALFSVO"));
        }
        let version = u32::from_le_bytes(take(&mut rest));
        let _reserved: [u8; 4] = take(&mut rest);
        let _compatible: [u8; 8] = take(&mut rest);
        check_version("volume", version, u64::from_le_bytes(take(&mut rest)))?;
        let header = Self {
            cluster: ClusterId(take(&mut rest)),
            instance: u64::from_le_bytes(take(&mut rest)),
            len: u64::from_le_bytes(take(&mut rest)),
            node: NodeId(u16::from_le_bytes(take(&mut rest))),
        };
        let crc = crc32c::crc32c(&bytes[..CRC_AT]).to_le_bytes();
        if bytes[CRC_AT..] == crc {
            Ok(header)
        } else {
            Err(bad("the checksum of its header is wrong"))
        }
    }
}

/// The first `N` bytes, which are there: a header is longer than its fields.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (first, behind) = rest.split_first_chunk().expect("a header is longer than its fields");
    *rest = behind;
    *first
}

const MAGIC: &[u8; 8] = b"SEALFSVO";
const CRC_AT: usize = VolumeHeader::LEN - 4;

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: VolumeHeader =
        VolumeHeader { cluster: ClusterId([9; 16]), instance: 5, node: NodeId(2), len: 1 << 40 };

    #[test]
    fn a_header_survives_its_bytes() {
        assert_eq!(VolumeHeader::from_bytes(&SAMPLE.to_bytes()), Ok(SAMPLE));
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let hex: String = SAMPLE.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = [
            "5345414c4653564f010000000000000000000000000000000000000000000000",
            "0909090909090909090909090909090905000000000000000000000000010000",
            "0200000000000000000000002c76dbea",
        ];
        assert_eq!(hex, golden.concat());
    }

    #[test]
    fn any_damage_is_refused() {
        for at in 0..VolumeHeader::LEN {
            let mut damaged = SAMPLE.to_bytes();
            damaged[at] ^= 1;
            assert!(VolumeHeader::from_bytes(&damaged).is_err(), "byte {at}");
        }
    }
}
