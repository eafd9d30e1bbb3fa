//! Paths as staging sees them: bytes relative to SOURCE and DEST, which are the same on both sides.
//!
//! A path has no leading slash, the root is empty, and any byte but 0 may stand in it. Its [`Key`] says which part copies it,
//! and begins the name that it has in DEST until it is complete.
//!
//! 1. The key depends on the path alone: all parts on all nodes, today and in a second run, agree on it.
//! 2. A temporary name is longer than none that a file system must allow (255 bytes), whatever the file's own name.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// The folder in DEST that holds what a run must remember. Gone when all is there.
pub(crate) const STAGE_DIR: &str = ".sealfs-stage";
/// How the name of a file begins that is not complete yet.
const TEMPORARY: &str = ".sealfs-tmp-";

/// A path's hash: SHA-256, cut to 128 bits, of which no two paths meet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Key(pub(crate) [u8; 16]);

impl Key {
    /// Of a relative path.
    pub(crate) fn of(path: &[u8]) -> Self {
        Self(digest(&[path]))
    }

    /// Which of `parts` has the path; counted from 1.
    pub(crate) fn part(self, parts: u32) -> u32 {
        let head: [u8; 8] = self.0[..8].try_into().expect("a key has 16 bytes");
        let part = u64::from_le_bytes(head) % u64::from(parts) + 1;
        u32::try_from(part).expect("it is at most `parts`")
    }

    /// The name that the file has in its folder until it is complete. `nonce` is the process's, or that of a large file which
    /// a later run may go on with: it tells it from one that had the name before.
    pub(crate) fn temporary_of(self, nonce: &[u8]) -> String {
        format!("{TEMPORARY}{}-{}", hex(&self.0), hex(nonce))
    }
}

/// SHA-256 over the pieces one after the other, cut to 128 bits.
pub(crate) fn digest(pieces: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for piece in pieces {
        hash.update(piece);
    }
    hash.finalize()[..16].try_into().expect("SHA-256 has 32 bytes")
}

/// Whether a name is that of a file which was never completed.
pub(crate) fn is_temporary(name: &[u8]) -> bool {
    name.strip_prefix(TEMPORARY.as_bytes()).is_some_and(|rest| {
        rest.len() >= 32 && rest.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-')
    })
}

/// `name` in the folder `path`.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    if !path.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}

/// A path on one line, for people and reports: what is not printable UTF-8, and a backslash, as `\xNN`. The root is `.`.
pub(crate) fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        return ".".into();
    }
    let mut text = String::with_capacity(path.len());
    for piece in path.utf8_chunks() {
        for letter in piece.valid().chars() {
            if letter.is_control() || letter == '\\' {
                let mut bytes = [0; 4];
                escape(&mut text, letter.encode_utf8(&mut bytes).as_bytes());
            } else {
                text.push(letter);
            }
        }
        escape(&mut text, piece.invalid());
    }
    text
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn escape(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_belongs_to_one_part_and_the_parts_are_alike() {
        let mut counts = [0; 3];
        for number in 0..3_000 {
            let part = Key::of(format!("dir/file{number}").as_bytes()).part(3);
            counts[part as usize - 1] += 1;
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
        // The same for ever: nodes of two releases may share the work.
        assert_eq!(hex(&Key::of(b"a/b").0), "c14cddc033f64b9dea80ea675cf280a0");
    }

    #[test]
    fn odd_names_are_shown_on_one_line_and_differ() {
        assert_eq!(shown(b""), ".");
        assert_eq!(shown("grün/a b".as_bytes()), "grün/a b");
        assert_eq!(shown(b"a\nb\xff\\"), "a\\x0ab\\xff\\x5c");
    }

    #[test]
    fn temporary_names_are_known_again_and_short_enough() {
        let key = Key::of(&[b'x'; 255]);
        assert!(is_temporary(key.temporary_of(&[7; 8]).as_bytes()));
        assert!(key.temporary_of(&[7; 8]).len() <= 255);
        assert!(!is_temporary(b".sealfs-tmp-mine"));
    }
}
