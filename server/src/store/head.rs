//! The superblock's slots on a device: what the device is, how it is divided, and the node's superblock.
//!
//! ```text
//!  0  magic "SEALFSDV"      8  format version u32 (1)   12  length u32: bytes of the superblock
//! 16  features_compatible u64                           24  features_incompatible u64
//! 32  sequence u64         40  format u64: drawn at format, the table's pages carry it too
//! 48  device length u64    56  volume's place u64: the byte at which it begins
//! 64  volume's length u64  72  pages of the table u32   76  reserved [20] (0)
//! 96  the superblock; zeros
//!     crc u32 in the last four bytes of the slot: CRC32C of all bytes before
//! ```
//! All little-endian. There are two slots of 1 MiB, written alternately: odd sequences in the second, even ones in the
//! first. The checksum covers the whole slot, so that whoever writes anything into the device's first MiB is noticed.

use sealfs_proto::Corrupt;

/// A slot's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Counts the superblocks of this device; the higher one is valid.
    pub(super) sequence: u64,
    /// How the device is divided.
    pub(super) geometry: Geometry,
    /// The node's superblock.
    pub(super) superblock: Vec<u8>,
}

/// How a device is divided; fixed at format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Drawn at format.
    pub(super) format: u64,
    /// Bytes of the device.
    pub(super) device_len: u64,
    /// The byte at which the volume begins; what lies between table and volume are extents.
    pub(super) volume_at: u64,
    /// Bytes of the volume, its header included.
    pub(super) volume_len: u64,
    /// Pages of the table, of which there are two copies.
    pub(super) pages: u32,
}

/// What a slot's bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Whole, and known to this program.
    Valid(Head),
    /// Whole, but written by another release.
    Unknown(Corrupt),
    /// Ours, but not whole.
    Torn,
    /// Zeros only.
    Empty,
    /// None of these.
    Foreign,
}

impl Head {
    /// Bytes of a slot.
    pub(super) const SLOT_LEN: u64 = 1 << 20;
    /// The longest superblock.
    pub(super) const SUPERBLOCK_LEN_MAX: usize = CRC_AT - BODY_AT;

    /// Where on the device this head goes.
    pub(super) fn place(&self) -> u64 {
        self.sequence % 2 * Self::SLOT_LEN
    }

    /// The first sector of a slot that is ours, and still without a head.
    pub(super) fn mark() -> [u8; 512] {
        let mut bytes = [0; 512];
        bytes[..8].copy_from_slice(MAGIC);
        bytes
    }

    /// The slot's bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let Geometry { format, device_len, volume_at, volume_len, pages } = self.geometry;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.superblock.len() as u32).to_le_bytes());
        bytes.extend(FEATURES_COMPATIBLE.to_le_bytes());
        bytes.extend(FEATURES_INCOMPATIBLE.to_le_bytes());
        for number in [self.sequence, format, device_len, volume_at, volume_len] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(pages.to_le_bytes());
        bytes.resize(BODY_AT, 0);
        bytes.extend(&self.superblock);
        assert!(bytes.len() <= CRC_AT, "whoever sets a superblock has looked at its length");
        bytes.resize(CRC_AT, 0);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads a slot, all of its bytes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Slot {
        let number = |at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("it takes eight bytes"))
        };
        let half = |at: usize| {
            u32::from_le_bytes(bytes[at..at + 4].try_into().expect("it takes four bytes"))
        };
        if bytes[..8] != *MAGIC {
            let zeros = bytes.iter().all(|byte| *byte == 0);
            return if zeros { Slot::Empty } else { Slot::Foreign };
        }
        if half(CRC_AT) != crc32c::crc32c(&bytes[..CRC_AT]) {
            return Slot::Torn;
        }
        let (version, features) = (half(8), number(24));
        if version != VERSION || features & !FEATURES_INCOMPATIBLE != 0 {
            return Slot::Unknown(Corrupt::new(
                "device",
                format!(
                    "format version {version} with features {features:#x}; this program reads version {VERSION} with \
                     features {FEATURES_INCOMPATIBLE:#x}: use the sealfs release that wrote it"
                ),
            ));
        }
        let Some(superblock) = bytes[BODY_AT..CRC_AT].get(..half(12) as usize) else {
            return Slot::Torn;
        };
        Slot::Valid(Self {
            sequence: number(32),
            geometry: Geometry {
                format: number(40),
                device_len: number(48),
                volume_at: number(56),
                volume_len: number(64),
                pages: half(72),
            },
            superblock: superblock.to_vec(),
        })
    }
}

const MAGIC: &[u8; 8] = b"SEALFSDV";
const VERSION: u32 = 1;
/// Features that a program which does not know them may ignore: none yet.
const FEATURES_COMPATIBLE: u64 = 0;
/// Features that a program must know to open the device: none yet.
const FEATURES_INCOMPATIBLE: u64 = 0;
const BODY_AT: usize = 96;
const CRC_AT: usize = Head::SLOT_LEN as usize - 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Head {
        let geometry = Geometry {
            format: 0x0102_0304_0506_0708,
            device_len: 1 << 40,
            volume_at: 1 << 35,
            volume_len: (1 << 40) - (1 << 35),
            pages: 576,
        };
        Head { sequence: 3, geometry, superblock: b"superblock".to_vec() }
    }

    #[test]
    fn a_head_survives_its_bytes() {
        let bytes = sample().to_bytes();
        assert_eq!(bytes.len() as u64, Head::SLOT_LEN);
        assert_eq!(Head::from_bytes(&bytes), Slot::Valid(sample()));
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let bytes = sample().to_bytes();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let golden = [
            "5345414c46534456010000000a00000000000000000000000000000000000000",
            "0300000000000000080706050403020100000000000100000000000008000000",
            "00000000f8000000400200000000000000000000000000000000000000000000",
            "73757065726", /* "superblock" */
            "26c6f636b",
        ];
        assert_eq!(hex(&bytes[..106]), golden.concat());
        assert!(bytes[106..CRC_AT].iter().all(|byte| *byte == 0));
        assert_eq!(hex(&bytes[CRC_AT..]), "a965204e");
    }

    #[test]
    fn any_damage_is_noticed() {
        let bytes = sample().to_bytes();
        for at in (0..200).chain([1_080, 65_600, CRC_AT - 1, CRC_AT]) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let expected = if at < 8 { Slot::Foreign } else { Slot::Torn };
            assert_eq!(Head::from_bytes(&damaged), expected, "byte {at}");
        }
        assert_eq!(Head::from_bytes(&vec![0; bytes.len()]), Slot::Empty);
    }

    #[test]
    fn an_unknown_version_names_both() {
        for (at, part) in [(8, "format version 9"), (24, "features 0x9")] {
            let mut bytes = sample().to_bytes();
            bytes[at] = 9;
            let crc = crc32c::crc32c(&bytes[..CRC_AT]);
            bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
            let Slot::Unknown(error) = Head::from_bytes(&bytes) else { panic!("it is unknown") };
            let error = error.to_string();
            assert!(error.contains(part) && error.contains("reads version 1"), "{error}");
        }
    }
}
