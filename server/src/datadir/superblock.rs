//! What a store says of itself: whose it is and which of its parts are valid.
//!
//! ```text
//!  0  magic "SEALFSSB"      8  format version u32    12  body length u32
//! 16  features_compatible u64                        24  features_incompatible u64
//! 32  body: Superblock in the codec's bytes
//!     crc u32: CRC32C of all bytes before
//! ```
//! All little-endian. It is replaced as a whole, see `crate::store`, so that there is always exactly one valid version.

use sealfs_proto::{ClusterMap, Corrupt, NodeId, decode, encode};
use wincode::{SchemaRead, SchemaWrite};

/// The superblock's content.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(crate) struct Superblock {
    /// The map as of the last start; its cluster is the store's.
    pub(crate) map: ClusterMap,
    /// Whose store this is.
    pub(crate) node: NodeId,
    /// Drawn at format; the volume carries it too.
    pub(crate) instance: u64,
    /// Bytes of the volume behind its header.
    pub(crate) volume_len: u64,
    /// The volume's inode number, or what is known to stay with a block device: a copy has another. 0: not known.
    pub(crate) volume_identity: u64,
    /// Which generation of journals is valid; all others are left-overs.
    pub(crate) journal_generation: u32,
    /// Cores that the valid journal was written with.
    pub(crate) journal_cores: u16,
    /// Which boot of the machine the node last served in.
    pub(crate) boot: [u8; 16],
    /// The node stopped in order and everything was on the device.
    pub(crate) clean: bool,
    /// How often a start has found that power was lost.
    pub(crate) losses: u64,
}

impl Superblock {
    /// The file's bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let body = encode(self);
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(FEATURES_COMPATIBLE.to_le_bytes());
        bytes.extend(FEATURES_INCOMPATIBLE.to_le_bytes());
        bytes.extend(body);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads the file's bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, Corrupt> {
        let bad = |cause: String| Corrupt::new("superblock", cause);
        let number = |at: usize| -> Option<u32> {
            Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        let features = |at: usize| -> Option<u64> {
            Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
        };
        if bytes.get(..8) != Some(&MAGIC[..]) {
            return Err(bad("it does not begin with SEALFSSB".into()));
        }
        let truncated = || bad(format!("{} bytes are too few", bytes.len()));
        let version = number(8).ok_or_else(truncated)?;
        let incompatible = features(24).ok_or_else(truncated)?;
        check_version("superblock", version, incompatible)?;
        let end = BODY_AT + number(12).ok_or_else(truncated)? as usize;
        let body = bytes.get(BODY_AT..end).ok_or_else(truncated)?;
        let crc = number(end).ok_or_else(truncated)?;
        if crc != crc32c::crc32c(&bytes[..end]) || bytes.len() != end + 4 {
            return Err(bad("its checksum is wrong".into()));
        }
        let superblock: Self = decode("superblock", body)?;
        superblock.map.check().map_err(|error| bad(error.to_string()))?;
        Ok(superblock)
    }
}

/// Refuses a file of a format that this program does not know, naming both versions.
pub(crate) fn check_version(
    what: &'static str,
    version: u32,
    incompatible: u64,
) -> Result<(), Corrupt> {
    if version == VERSION && incompatible & !FEATURES_INCOMPATIBLE == 0 {
        return Ok(());
    }
    Err(Corrupt::new(
        what,
        format!(
            "format version {version} with features {incompatible:#x}; this program reads version {VERSION} with features \
             {FEATURES_INCOMPATIBLE:#x}: use the sealfs release that wrote it"
        ),
    ))
}

const MAGIC: &[u8; 8] = b"SEALFSSB";
const BODY_AT: usize = 32;
/// Version of the superblock and of the volume's header.
pub(crate) const VERSION: u32 = 1;
/// Features that a program which does not know them may ignore: none yet.
pub(crate) const FEATURES_COMPATIBLE: u64 = 0;
/// Features that a program must know to open the directory: none yet.
pub(crate) const FEATURES_INCOMPATIBLE: u64 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use sealfs_proto::{Address, ClusterId, TransportKind, nodes};

    fn sample() -> Superblock {
        let mut map = nodes::parse("a:1,b:2").unwrap().map(ClusterId([7; 16]));
        let is_tcp = |address: &Address| address.transport == TransportKind::Tcp;
        map.nodes.iter_mut().for_each(|node| node.addresses.retain(is_tcp));
        Superblock {
            map,
            node: NodeId(2),
            instance: 99,
            volume_len: 1 << 28,
            volume_identity: 12,
            journal_generation: 1,
            journal_cores: 4,
            boot: [3; 16],
            clean: true,
            losses: 3,
        }
    }

    #[test]
    fn a_superblock_survives_its_bytes() {
        assert_eq!(Superblock::from_bytes(&sample().to_bytes()), Ok(sample()));
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let hex: String = sample().to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = [
            "5345414c46535342010000009400000000000000000000000000000000000000",
            "07070707070707070707070707070707010000000c0000100002000000000000",
            "000100640000000100000000000000000000000300000000000000613a310200",
            "640000000100000000000000000000000300000000000000623a320200630000",
            "000000000000000010000000000c000000000000000100000004000303030303",
            "030303030303030303030301030000000000000046c6cf5a",
        ];
        assert_eq!(hex, golden.concat());
    }

    #[test]
    fn any_damage_is_refused() {
        let bytes = sample().to_bytes();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Superblock::from_bytes(&damaged).is_err(), "byte {at}");
            assert!(Superblock::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(Superblock::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn damage_under_a_right_checksum_is_a_value_or_an_error() {
        let bytes = sample().to_bytes();
        let end = bytes.len() - 4;
        for at in BODY_AT..end {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = bytes[..end].to_vec();
                damaged[at] = value;
                damaged.extend(crc32c::crc32c(&damaged).to_le_bytes());
                if let Ok(superblock) = Superblock::from_bytes(&damaged) {
                    assert_eq!(Superblock::from_bytes(&superblock.to_bytes()), Ok(superblock));
                }
            }
        }
    }

    #[test]
    fn an_unknown_version_names_both() {
        let mut bytes = sample().to_bytes();
        bytes[8] = 9;
        let error = Superblock::from_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains("format version 9") && error.contains("reads version 1"), "{error}");
        let mut bytes = sample().to_bytes();
        bytes[24] = 4;
        assert!(Superblock::from_bytes(&bytes).unwrap_err().to_string().contains("features 0x4"));
    }
}
