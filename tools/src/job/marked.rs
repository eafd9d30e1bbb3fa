//! Directories that jobs make where other things may lie: mountpoints, and places for data.
//!
//! ```text
//! ROOT/ID/
//!   sealfs-job     the mark, JSON: which job has made it, and on which device its data is, if it is on one
//!   data/          what the job keeps there
//! ```
//! The mark outlives the machine's run, unlike the state: `reap` finds by it what a job has left that a reboot has ended.
//!
//! 1. A directory appears with its mark in it, by a rename, and the mark is the last to go: what has no mark is not ours
//!    and is never removed, unless it is empty.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::state::unless;
use crate::Failure;

/// What a mark says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The job, and the directory's name.
    pub(super) id: String,
    /// On which device the data is, and which cluster it is.
    pub(super) device: Option<PathBuf>,
    pub(super) cluster: String,
}

/// The mark of `directory`.
pub(super) fn mark_of(directory: &Path) -> Option<Mark> {
    let mark = directory.join(MARK);
    let is_file = fs::symlink_metadata(&mark).ok()?.is_file();
    if is_file { serde_json::from_slice(&fs::read(mark).ok()?).ok() } else { None }
}

/// Whether a job has made `directory`.
pub(super) fn is_marked(directory: &Path) -> bool {
    let name = directory.file_name().and_then(|name| name.to_str());
    mark_of(directory).is_some_and(|mark| Some(mark.id.as_str()) == name)
}

/// Makes a directory with a mark.
pub(super) fn make(directory: &Path, mode: u32, mark: &Mark) -> Result<(), Failure> {
    let shown = directory.display();
    let failed = |error: io::Error| Failure::from(format!("cannot make {shown}: {error}"));
    if fs::symlink_metadata(directory).is_ok() {
        return Err(format!("{shown} is there already and is no job's; remove it").into());
    }
    let fresh = unnamed(directory);
    fs::remove_dir_all(&fresh).or_else(unless(io::ErrorKind::NotFound)).map_err(failed)?;
    fs::DirBuilder::new().mode(mode).create(&fresh).map_err(failed)?;
    fs::write(fresh.join(MARK), serde_json::to_vec(mark)?).map_err(failed)?;
    let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all()).map_err(failed);
    sync(&fresh.join(MARK))?;
    sync(&fresh)?;
    fs::rename(&fresh, directory).map_err(failed)?;
    directory.parent().map_or(Ok(()), sync)
}

/// Removes a marked directory with its data. Nothing is there: done.
pub(super) fn remove(directory: &Path) -> Result<(), Failure> {
    let shown = directory.display();
    let failed = |error: io::Error| Failure::from(format!("cannot remove {shown}: {error}"));
    let gone = || unless(io::ErrorKind::NotFound);
    fs::remove_dir_all(unnamed(directory)).or_else(gone()).map_err(failed)?;
    if !is_marked(directory) {
        if fs::symlink_metadata(directory).is_err() {
            return Ok(());
        }
        // What was left without its mark by the last step below.
        return fs::remove_dir(directory)
            .map_err(|error| format!("{shown} has no mark of a job and stays: {error}").into());
    }
    fs::remove_dir_all(directory.join("data")).or_else(gone()).map_err(failed)?;
    fs::remove_file(directory.join(MARK)).or_else(gone()).map_err(failed)?;
    fs::remove_dir(directory).or_else(gone()).map_err(failed)
}

/// What it is called before it has its mark.
fn unnamed(directory: &Path) -> PathBuf {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    directory.with_file_name(format!(".{name}.new"))
}

const MARK: &str = "sealfs-job";

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark { id: "7".into(), device: None, cluster: String::new() }
    }

    #[test]
    fn a_directory_has_its_mark_from_the_beginning_to_the_end() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("7");
        make(&directory, 0o700, &mark()).unwrap();
        assert!(is_marked(&directory));
        fs::create_dir(directory.join("data")).unwrap();
        fs::write(directory.join("data/superblock"), "x").unwrap();
        assert!(make(&directory, 0o700, &mark()).is_err());
        remove(&directory).unwrap();
        remove(&directory).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_has_no_mark_stays() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("7");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("thesis"), "x").unwrap();
        let error = remove(&directory).unwrap_err().to_string();
        assert!(error.contains("no mark of a job"), "{error}");
        assert!(directory.join("thesis").exists() && !is_marked(&directory));
        // A mark that leads elsewhere is none, and so is another job's.
        std::os::unix::fs::symlink("/dev/null", directory.join(MARK)).unwrap();
        assert!(remove(&directory).is_err() && directory.exists());
        make(&root.path().join("8"), 0o700, &mark()).unwrap();
        assert!(!is_marked(&root.path().join("8")));
    }

    #[test]
    fn a_removal_that_was_cut_short_is_finished() {
        let root = tempfile::tempdir().unwrap();
        // Made and not named yet; without mark already.
        fs::create_dir(root.path().join(".7.new")).unwrap();
        fs::create_dir(root.path().join("7")).unwrap();
        remove(&root.path().join("7")).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
