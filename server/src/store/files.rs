//! Changes of files and directories that survive a crash, with errors that name the file and the stage.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use sealfs_server_core::DiskError;

use crate::StartError;

/// A system call on a file that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {cause}")]
pub(crate) struct FileError {
    /// What was tried, with the file.
    what: String,
    /// What the system said.
    cause: String,
}

impl FileError {
    /// `what` was done to `thing`.
    pub(crate) fn new(what: &str, thing: impl fmt::Display, cause: &impl fmt::Display) -> Self {
        Self { what: format!("cannot {what} {thing}"), cause: cause.to_string() }
    }
}

impl From<FileError> for StartError {
    fn from(error: FileError) -> Self {
        Self(error.to_string())
    }
}

impl From<FileError> for DiskError {
    fn from(FileError { what, cause }: FileError) -> Self {
        Self { what, cause }
    }
}

/// Writes the pieces, one behind the other, as `dir`/`name`: temporary file, fsync, rename, fsync of the directory. After a
/// crash there is either the old or the new content. The error names the stage.
pub(super) fn replace(
    dir: &Path,
    name: &str,
    pieces: &[impl AsRef<[u8]>],
) -> Result<(), FileError> {
    let (path, new) = (dir.join(name), dir.join(name.to_owned() + NEW));
    let mut file = File::create(&new).map_err(failed("create", &new))?;
    for piece in pieces {
        file.write_all(piece.as_ref()).map_err(failed("write", &new))?;
    }
    file.sync_all().map_err(failed("sync", &new))?;
    fs::rename(&new, &path).map_err(failed("rename to its place", &new))?;
    sync_directory(dir)
}

/// Removes `dir`/`name`, if it is there, durably.
pub(super) fn remove(dir: &Path, name: &str) -> Result<(), FileError> {
    let path = dir.join(name);
    if !path.exists() {
        return Ok(());
    }
    remove_file_if_there(&path)?;
    sync_directory(dir)
}

/// The content of a file, if it is there.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("sync directory", path))
}

/// Turns a failed system call into an error that names what was done to which file.
pub(crate) fn failed<'a>(what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> FileError + 'a {
    move |error| FileError::new(what, path.display(), &error)
}

/// Names in a directory, sorted. A name that is no text is shown as such and matches nothing of ours.
pub(super) fn list(path: &Path) -> Result<Vec<String>, FileError> {
    let entries = fs::read_dir(path).map_err(failed("list", path))?;
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed("list", path))?;
    names.sort_unstable();
    Ok(names)
}

pub(super) fn remove_file_if_there(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Ends the names of files that are being written.
pub(super) const NEW: &str = ".new";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_the_new_content_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        for content in ["first", "second"] {
            replace(dir.path(), "name", &[&content[..1], &content[1..]]).unwrap();
            assert_eq!(fs::read_to_string(dir.path().join("name")).unwrap(), content);
        }
        assert_eq!(list(dir.path()).unwrap(), ["name"]);
        remove(dir.path(), "name").unwrap();
        remove(dir.path(), "name").unwrap();
        assert_eq!(list(dir.path()).unwrap(), [] as [&str; 0]);
    }

    #[test]
    fn an_error_names_stage_file_and_cause() {
        let error = replace(Path::new("/no/such"), "name", &[b""]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot create /no/such/name.new: No such file or directory (os error 2)"
        );
    }
}
