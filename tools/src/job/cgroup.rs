//! An upper limit for the memory of a job's server: a control group (cgroup v2) of its own.
//!
//! The limit counts what the kernel caches for the server, too; that is given back before anything is refused. A limit that
//! was asked for and cannot be had is an error: whoever reserves memory for programs relies on it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::state::unless;
use crate::Failure;

/// Where the group of job `id` on the node `host` is. No id has an `@`.
pub(super) fn place(id: &str, host: &str) -> PathBuf {
    Path::new(ROOT).join(format!("sealfs-job-{id}@{host}"))
}

/// The group of job `id`, if there is one.
pub(super) fn of(id: &str) -> Option<PathBuf> {
    let begins = format!("sealfs-job-{id}@");
    let mut entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    let found = entries.find(|entry| entry.file_name().to_string_lossy().starts_with(&begins));
    Some(found?.path())
}

/// Makes the group with its limit, in bytes.
pub(super) fn make(group: &Path, memory_max: u64) -> Result<(), Failure> {
    let cannot = |cause: String| -> Failure {
        format!(
            "memory-max cannot be kept: {cause}; leave it out, or mount cgroup2 at {ROOT} with the memory controller, writable"
        )
        .into()
    };
    let controllers = Path::new(ROOT).join("cgroup.controllers");
    let known = fs::read_to_string(&controllers)
        .map_err(|error| cannot(format!("{}: {error}", controllers.display())))?;
    if !known.split_whitespace().any(|name| name == "memory") {
        return Err(cannot(format!("{ROOT} has no memory controller")));
    }
    let subtree = Path::new(ROOT).join("cgroup.subtree_control");
    fs::write(&subtree, "+memory")
        .map_err(|error| cannot(format!("{}: {error}", subtree.display())))?;
    let made = fs::create_dir(group).or_else(unless(io::ErrorKind::AlreadyExists));
    made.map_err(|error| cannot(format!("{}: {error}", group.display())))?;
    fs::write(group.join("memory.max"), memory_max.to_string())
        .map_err(|error| cannot(format!("{}/memory.max: {error}", group.display())))
}

/// Puts this process into the group.
pub(super) fn join(group: &Path) -> Result<(), Failure> {
    let procs = group.join("cgroup.procs");
    fs::write(&procs, "0").map_err(|error| format!("{}: {error}", procs.display()).into())
}

/// Removes the group, whose processes have ended.
pub(super) fn remove(group: &Path) -> Result<(), Failure> {
    let until = Instant::now() + REMOVE_MAX;
    loop {
        let removed = fs::remove_dir(group).or_else(unless(io::ErrorKind::NotFound));
        match removed {
            // A process that has ended is counted until it is gone from the table.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            done => {
                return done
                    .map_err(|error| format!("cannot remove {}: {error}", group.display()).into());
            }
        }
    }
}

const ROOT: &str = "/sys/fs/cgroup";
const REMOVE_MAX: Duration = Duration::from_secs(5);
