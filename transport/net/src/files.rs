//! What a process must have been given to reach a cluster: the list of its nodes, and its key.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sealfs_proto::nodes::{self, NodeList};
use sealfs_transport::Key;

/// Why a file is of no use; the text names it, the cause and the next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FileError(String);

/// The nodes in `argument`: a list as [`nodes::parse`] reads it, or the path of a file that holds one.
pub fn read_nodes(argument: &str) -> Result<NodeList, FileError> {
    if nodes::is_list(argument) {
        return nodes::parse(argument)
            .map_err(|error| FileError(format!("nodes `{argument}`: {error}")));
    }
    let text = fs::read_to_string(argument).map_err(|error| {
        FileError(format!(
            "cannot read nodes file {argument}: {error}; give an existing file or a list like \
             10.0.0.1:7000,10.0.0.2:7000"
        ))
    })?;
    nodes::parse(&text).map_err(|error| FileError(format!("nodes file {argument}: {error}")))
}

/// Reads a key file: 64 hexadecimal digits. A key that others on the machine can read is no secret, and one that is another
/// user's may be anybody's.
pub fn read_key(path: &Path) -> Result<Key, FileError> {
    let shown = path.display();
    let wrong = |cause: String| FileError(format!("key file {shown}: {cause}"));
    let next = format!(
        "copy the cluster's key there and give it with --key, or make one for a new cluster with `sealfs key {shown}`"
    );
    let file = File::open(path).map_err(|error| wrong(format!("{error}; {next}")))?;
    let found = file.metadata().map_err(|error| wrong(error.to_string()))?;
    let (mode, owner, me) = (found.mode(), found.uid(), rustix::process::geteuid().as_raw());
    if owner != 0 && owner != me {
        return Err(wrong(format!(
            "it belongs to uid {owner}, who can change it; run `chown {me} {shown}`"
        )));
    }
    if mode & 0o077 != 0 {
        let mode = mode & 0o777;
        return Err(wrong(format!("mode {mode:03o} lets others use it; run `chmod 600 {shown}`")));
    }
    let mut text = Vec::new();
    file.take(KEY_FILE_LEN_MAX).read_to_end(&mut text).map_err(|error| wrong(error.to_string()))?;
    Key::from_hex(&text)
        .ok_or_else(|| wrong(format!("it does not hold 64 hexadecimal digits; {next}")))
}

/// The digits, and some blanks around them.
const KEY_FILE_LEN_MAX: u64 = 256;

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown};

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
        assert!(read(&[b'7'; 64], 0o600).is_ok() && read(&[b'7'; 64], 0o400).is_ok());
        assert!(read(&[b'7'; 64], 0o640).unwrap_err().contains("chmod 600"));
        assert!(read(&[b'7'; 63], 0o600).unwrap_err().contains("64 hexadecimal"));
        assert!(read(&[b'7'; 300], 0o600).unwrap_err().contains("64 hexadecimal"));
        if rustix::process::geteuid().is_root() {
            chown(&path, Some(77), None).unwrap();
            assert!(read_key(&path).unwrap_err().to_string().contains("chown 0"));
        }
    }

    #[test]
    fn nodes_are_a_list_or_a_file_and_errors_name_which() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes");
        let path = path.to_str().unwrap();
        assert!(read_nodes(path).unwrap_err().to_string().contains("cannot read nodes file"));
        fs::write(path, "1@a:1\n2@b:2\n").unwrap();
        assert_eq!(read_nodes(path), read_nodes("1@a:1,2@b:2"));
        fs::write(path, "1@a:1\n1@b:2\n").unwrap();
        assert!(read_nodes(path).unwrap_err().to_string().contains(path));
        assert!(read_nodes("1@a:1,1@b:2").unwrap_err().to_string().starts_with("nodes `1@a:1"));
    }
}
