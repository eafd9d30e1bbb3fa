//! Names what lies at the beginning of a device that is not empty, so that a person knows what would have been lost.
//!
//! A hint only: whatever is not zeros is refused, known or not.

/// What the first MiB of a device holds; `None`: zeros only.
pub(super) fn found(bytes: &[u8]) -> Option<&'static str> {
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    Some(known(bytes).unwrap_or("data of a kind that sealfs does not know"))
}

/// What is recognised by its signature.
pub(super) fn known(bytes: &[u8]) -> Option<&'static str> {
    let here = |at: usize, signature: &[u8]| {
        bytes.get(at..).is_some_and(|bytes| bytes.starts_with(signature))
    };
    SIGNATURES.iter().find(|(at, signature, _)| here(*at, signature)).map(|(_, _, name)| *name)
}

/// Offset, bytes, name. What may stand in another's boot sector comes last.
const SIGNATURES: [(usize, &[u8], &str); 20] = [
    (1_080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x1_0040, b"_BHRfS_M", "a Btrfs file system"),
    (1_024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (0, b"hsqs", "a SquashFS file system"),
    (1_024, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    (32_769, b"CD001", "an ISO 9660 file system"),
    (4_086, b"SWAPSPACE2", "swap space"),
    (0, b"LUKS\xba\xbe", "a LUKS container"),
    (512, b"LABELONE", "an LVM physical volume"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of an md RAID"),
    (4_096, b"\xfc\x4e\x2b\xa9", "a member of an md RAID"),
    (0x2_0000, b"\x0c\xb1\xba\x00\x00\x00\x00\x00", "a ZFS member"),
    (512, b"EFI PART", "a GPT partition table"),
    (4_096, b"EFI PART", "a GPT partition table"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (54, b"FAT", "a FAT file system"),
    (510, b"\x55\xaa", "a DOS partition table or boot sector"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_nothing_and_one_byte_is_something() {
        let mut bytes = vec![0; 1 << 20];
        assert_eq!(found(&bytes), None);
        bytes[777_777] = 1;
        assert_eq!(found(&bytes), Some("data of a kind that sealfs does not know"));
    }

    #[test]
    fn what_has_a_signature_is_named() {
        for (at, signature, name) in SIGNATURES {
            let mut bytes = vec![0; 1 << 20];
            bytes[at..at + signature.len()].copy_from_slice(signature);
            assert_eq!(found(&bytes), Some(name));
        }
    }

    #[test]
    fn a_protective_boot_sector_does_not_hide_what_is_behind_it() {
        let mut bytes = vec![0; 1 << 20];
        bytes[510..512].copy_from_slice(b"\x55\xaa");
        bytes[512..520].copy_from_slice(b"EFI PART");
        assert_eq!(found(&bytes), Some("a GPT partition table"));
    }
}
