//! The key file.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sealfs_transport::Key;

use crate::{MountError, sys};

/// Reads a key: 64 hexadecimal digits. A key that others on the machine can read is no secret, and one that is another
/// user's may be anybody's.
pub(crate) fn read_key(path: &Path) -> Result<Key, MountError> {
    let shown = path.display();
    let wrong = |cause: String| MountError(format!("key file {shown}: {cause}"));
    let file = File::open(path).map_err(|error| {
        wrong(format!("{error}; copy the cluster's key there, or name another file with --key"))
    })?;
    let found = file.metadata().map_err(|error| wrong(error.to_string()))?;
    let (mode, owner) = (found.mode(), found.uid());
    if owner != 0 && owner != sys::user() {
        return Err(wrong(format!(
            "it belongs to uid {owner}, who can change it; run `chown {} {shown}`",
            sys::user()
        )));
    }
    if mode & 0o077 != 0 {
        let mode = mode & 0o777;
        return Err(wrong(format!("mode {mode:03o} lets others use it; run `chmod 600 {shown}`")));
    }
    let mut text = Vec::new();
    file.take(FILE_LEN_MAX).read_to_end(&mut text).map_err(|error| wrong(error.to_string()))?;
    Key::from_hex(&text)
        .ok_or_else(|| wrong("it does not hold 64 hexadecimal digits; is it another file?".into()))
}

/// Whether [`crate::Mount`] could use this key file; the error says what to do.
pub fn check_key(path: &Path) -> Result<(), MountError> {
    read_key(path).map(drop)
}

/// The digits, and some blanks around them.
const FILE_LEN_MAX: u64 = 256;

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_has_64_digits_and_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let read = |bytes: &[u8], mode| {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            read_key(&path).map_err(|error| error.to_string())
        };
        assert!(read_key(&path).unwrap_err().to_string().contains("--key"));
        assert!(read(&[b'7'; 64], 0o600).is_ok());
        assert!(read(&[b'7'; 64], 0o640).unwrap_err().contains("chmod 600"));
        assert!(read(&[b'7'; 63], 0o600).unwrap_err().contains("64 hexadecimal"));
        assert!(read(&[b'7'; 300], 0o600).unwrap_err().contains("64 hexadecimal"));
    }
}
