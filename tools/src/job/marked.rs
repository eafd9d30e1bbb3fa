//! Directories that jobs make where other things may lie: mountpoints, and places for data.
//!
//! ```text
//! ROOT/ID/
//!   sealfs-job     the mark, JSON: which job has made it, where its state is, in which run of the
//!                  machine, and on which device its data is, if it is on one
//!   data/          what the job keeps there
//! ```
//! The mark outlives the machine's run, unlike the state: `reap` finds by it what a job has left
//! that a reboot has ended.
//!
//! 1. A directory appears with its mark in it, by a rename, and the mark is the last to go: what
//!    has no mark is not ours and is never removed, unless it is empty.
//! 2. What a job has made that has its state elsewhere, in this run of the machine, stays: that job
//!    may live.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sealfs_client::is_mounted;
use serde::{Deserialize, Serialize};

use super::state::{self, Home, unless};
use crate::Failure;

/// What a mark says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The job, and the directory's name.
    pub(super) id: String,
    /// The directory in which the job has its own with its state.
    state: PathBuf,
    /// The run of the machine in which it was begun.
    boot: String,
    /// On which device the data is, and which cluster it is.
    pub(super) device: Option<PathBuf>,
    pub(super) cluster: String,
}

impl Mark {
    /// The mark of what this job makes.
    pub(super) fn of(home: &Home, device: Option<PathBuf>, cluster: String) -> Self {
        let state = home.state().to_path_buf();
        Self { id: home.id.clone(), state, boot: state::boot(), device, cluster }
    }

    /// The state of the job that has made it, if that is not in `state` and may be a living job's.
    fn elsewhere(&self, state: &Path) -> Option<&Path> {
        let is_there = || fs::symlink_metadata(self.state.join(&self.id)).is_ok();
        let is_elsewhere = self.state != state && self.boot == state::boot() && is_there();
        is_elsewhere.then_some(&self.state)
    }
}

/// The mark of `directory`.
fn mark_of(directory: &Path) -> Option<Mark> {
    let mark = directory.join(MARK);
    let is_file = fs::symlink_metadata(&mark).ok()?.is_file();
    if is_file { serde_json::from_slice(&fs::read(mark).ok()?).ok() } else { None }
}

/// Whether a job has made `directory`.
fn is_marked(directory: &Path) -> bool {
    let name = directory.file_name().and_then(|name| name.to_str());
    mark_of(directory).is_some_and(|mark| Some(mark.id.as_str()) == name)
}

/// Ids of the jobs whose state is in `state`, or nowhere in this run of the machine, that have made
/// something in `root`. A directory that is to become a mountpoint is not asked: what is mounted
/// there may not answer.
pub(super) fn ids_in(root: &Path, state: &Path) -> Result<Vec<String>, Failure> {
    let failed = |error: io::Error| format!("cannot list {}: {error}", root.display());
    let mut ids = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
        let fresh = name.strip_prefix('.').and_then(|name| name.strip_suffix(FRESH));
        let (id, directory) = (fresh.unwrap_or(&name), root.join(&name));
        if state::check_id(id).is_err() || is_mounted(&directory) {
            continue;
        }
        let is_ours = match mark_of(&directory) {
            Some(mark) => mark.id == id && mark.elsewhere(state).is_none(),
            None => {
                fresh.is_some()
                    && fs::read_dir(&directory).is_ok_and(|mut all| all.next().is_none())
            }
        };
        ids.extend(is_ours.then(|| id.to_string()));
    }
    Ok(ids)
}

/// The mark of `directory`, if it was made by the job that has this name and its state in `state`,
/// or nowhere any more.
pub(super) fn mark_for(directory: &Path, state: &Path) -> Option<Mark> {
    mark_of(directory).filter(|mark| is_marked(directory) && mark.elsewhere(state).is_none())
}

/// Makes a directory with a mark.
pub(super) fn make(directory: &Path, mode: u32, mark: &Mark) -> Result<(), Failure> {
    let shown = directory.display();
    let failed = |error: io::Error| Failure::from(format!("cannot make {shown}: {error}"));
    if let Some(mark) = mark_of(directory) {
        let state = mark.state.display();
        return Err(format!("{shown} belongs to job {} whose state is in {state}", mark.id).into());
    }
    if fs::symlink_metadata(directory).is_ok() {
        return Err(format!("{shown} is there already and is no job's; remove it").into());
    }
    remove_fresh(directory, &mark.state)?;
    let fresh = unnamed(directory);
    fs::DirBuilder::new().mode(mode).create(&fresh).map_err(failed)?;
    fs::write(fresh.join(MARK), serde_json::to_vec(mark)?).map_err(failed)?;
    let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all()).map_err(failed);
    sync(&fresh.join(MARK))?;
    sync(&fresh)?;
    fs::rename(&fresh, directory).map_err(failed)?;
    directory.parent().map_or(Ok(()), sync)
}

/// Removes a marked directory with its data, on behalf of a job whose state is in `state`. Nothing
/// is there, or what a job has made that has its state elsewhere: done.
pub(super) fn remove(directory: &Path, state: &Path) -> Result<(), Failure> {
    let shown = directory.display();
    let failed = |error: io::Error| Failure::from(format!("cannot remove {shown}: {error}"));
    let gone = || unless(io::ErrorKind::NotFound);
    remove_fresh(directory, state)?;
    if let Some(other) = mark_of(directory).as_ref().and_then(|mark| mark.elsewhere(state)) {
        eprintln!("sealfs: {shown} stays: its job has its state in {}", other.display());
        return Ok(());
    }
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

/// Removes what was made and not named, which holds its mark at most.
fn remove_fresh(directory: &Path, state: &Path) -> Result<(), Failure> {
    let fresh = unnamed(directory);
    if mark_of(&fresh).is_some_and(|mark| mark.elsewhere(state).is_some()) {
        return Ok(());
    }
    let removed = fs::remove_file(fresh.join(MARK))
        .or_else(unless(io::ErrorKind::NotFound))
        .and_then(|()| fs::remove_dir(&fresh).or_else(unless(io::ErrorKind::NotFound)));
    removed.map_err(|error| format!("cannot remove {}: {error}", fresh.display()).into())
}

/// What it is called before it has its mark.
fn unnamed(directory: &Path) -> PathBuf {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    directory.with_file_name(format!(".{name}{FRESH}"))
}

const MARK: &str = "sealfs-job";
const FRESH: &str = ".new";

#[cfg(test)]
mod tests {
    use super::*;

    fn home(state: &Path, id: &str) -> Home {
        Home::new(state, id).unwrap()
    }

    fn make_in(root: &Path, id: &str) {
        let mark = Mark::of(&home(Path::new("/state"), id), None, String::new());
        make(&root.join(id), 0o700, &mark).unwrap();
    }

    const STATE: &str = "/state";

    fn remove(directory: &Path) -> Result<(), Failure> {
        super::remove(directory, STATE.as_ref())
    }

    fn ids_in(root: &Path) -> Vec<String> {
        super::ids_in(root, STATE.as_ref()).unwrap()
    }

    #[test]
    fn a_directory_has_its_mark_from_the_beginning_to_the_end() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("7");
        make_in(root.path(), "7");
        assert_eq!(ids_in(root.path()), ["7"]);
        fs::create_dir(directory.join("data")).unwrap();
        fs::write(directory.join("data/superblock"), "x").unwrap();
        let mark = Mark::of(&home(STATE.as_ref(), "7"), None, String::new());
        let error = make(&directory, 0o700, &mark).unwrap_err().to_string();
        assert!(error.contains("belongs to job 7 whose state is in /state"), "{error}");
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
        assert!(directory.join("thesis").exists() && ids_in(root.path()).is_empty());
        // A mark that leads elsewhere is none, and so is another job's.
        std::os::unix::fs::symlink("/dev/null", directory.join(MARK)).unwrap();
        assert!(remove(&directory).is_err() && directory.exists());
        make_in(root.path(), "8");
        fs::rename(root.path().join("8"), root.path().join("9")).unwrap();
        assert!(ids_in(root.path()).is_empty());
        // Something of somebody's that is called as what was made and not named.
        fs::create_dir(root.path().join(".6.new")).unwrap();
        fs::write(root.path().join(".6.new/thesis"), "x").unwrap();
        assert!(remove(&root.path().join("6")).is_err());
        assert!(root.path().join(".6.new/thesis").exists());
    }

    #[test]
    fn a_removal_that_was_cut_short_is_finished() {
        let root = tempfile::tempdir().unwrap();
        // Made and not named yet, with and without mark; without mark already.
        fs::create_dir(root.path().join(".7.new")).unwrap();
        fs::create_dir(root.path().join("7")).unwrap();
        make_in(root.path(), "8");
        fs::rename(root.path().join("8"), root.path().join(".8.new")).unwrap();
        let mut ids = ids_in(root.path());
        ids.sort();
        assert_eq!(ids, ["7", "8"]);
        ids.iter().for_each(|id| remove(&root.path().join(id)).unwrap());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_belongs_to_a_state_elsewhere_stays_until_that_is_gone_or_the_machine_has_restarted() {
        let root = tempfile::tempdir().unwrap();
        let (data, other) = (root.path().join("data"), root.path().join("other"));
        let directory = data.join("7");
        fs::create_dir(&data).unwrap();
        fs::create_dir_all(other.join("7")).unwrap();
        let mut mark = Mark::of(&home(&other, "7"), None, String::new());
        make(&directory, 0o700, &mark).unwrap();
        remove(&directory).unwrap();
        assert!(directory.exists() && ids_in(&data).is_empty());
        assert_eq!(super::ids_in(&data, &other).unwrap(), ["7"]);
        // Made and not named yet.
        fs::rename(&directory, data.join(".7.new")).unwrap();
        remove(&directory).unwrap();
        assert!(data.join(".7.new").exists() && ids_in(&data).is_empty());
        // Of an earlier run of the machine.
        mark.boot = "earlier".into();
        fs::write(data.join(".7.new").join(MARK), serde_json::to_vec(&mark).unwrap()).unwrap();
        assert_eq!(ids_in(&data), ["7"]);
        mark.boot = state::boot();
        fs::write(data.join(".7.new").join(MARK), serde_json::to_vec(&mark).unwrap()).unwrap();
        fs::remove_dir_all(&other).unwrap();
        remove(&directory).unwrap();
        assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
    }
}
