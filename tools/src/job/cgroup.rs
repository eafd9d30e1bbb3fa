//! An upper limit for the memory of a job's server: a control group (cgroup v2) of its own.
//!
//! The limit counts what the kernel caches for the server, too; that is given back before anything
//! is refused. A limit that was asked for and cannot be had is an error: whoever reserves memory
//! for programs relies on it.

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
    let root = group.parent().unwrap_or(Path::new(ROOT));
    give_memory_controller(root).map_err(|cause| -> Failure {
        let root = root.display();
        format!(
            "memory-max cannot be kept: {cause}; leave it out, or mount cgroup2 at {root} with the memory controller, writable"
        )
        .into()
    })?;
    let failed = |path: &Path, error: io::Error| {
        Failure::from(format!("memory-max cannot be kept: {}: {error}", path.display()))
    };
    let made = fs::create_dir(group).or_else(unless(io::ErrorKind::AlreadyExists));
    made.map_err(|error| failed(group, error))?;
    let limit = group.join("memory.max");
    fs::write(&limit, memory_max.to_string()).map_err(|error| failed(&limit, error))
}

/// Sees to it that groups below `root` have the memory controller. What systemd has settled there
/// is left as it is.
fn give_memory_controller(root: &Path) -> Result<(), String> {
    let has_memory = |name: &str| {
        let path = root.join(name);
        let text = fs::read_to_string(&path);
        let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok::<_, String>(text.split_whitespace().any(|name| name == "memory"))
    };
    if !has_memory("cgroup.controllers")? {
        return Err(format!("{} has no memory controller", root.display()));
    }
    if has_memory(SUBTREE)? {
        return Ok(());
    }
    if Path::new("/run/systemd/system").exists() {
        return Err(format!(
            "systemd has {} and gives no memory controller to groups; set DefaultMemoryAccounting=yes in /etc/systemd/system.conf",
            root.display()
        ));
    }
    let subtree = root.join(SUBTREE);
    fs::write(&subtree, "+memory").map_err(|error| format!("{}: {error}", subtree.display()))
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
/// Which controllers the groups below one have.
const SUBTREE: &str = "cgroup.subtree_control";
const REMOVE_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel shows of a root with these controllers, of which groups have those.
    fn root(controllers: &str, given: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(root.path().join(SUBTREE), given).unwrap();
        root
    }

    #[test]
    fn the_roots_controllers_are_touched_only_if_they_must_be() {
        let given = root("cpu memory io\n", "memory pids\n");
        let group = given.path().join("sealfs-job-7@n1");
        make(&group, 1 << 30).unwrap();
        make(&group, 2 << 30).unwrap();
        assert_eq!(fs::read_to_string(group.join("memory.max")).unwrap(), "2147483648");
        let subtree = |root: &tempfile::TempDir| fs::read_to_string(root.path().join(SUBTREE));
        assert_eq!(subtree(&given).unwrap(), "memory pids\n");
        let unset = root("cpu memory\n", "\n");
        let made = make(&unset.path().join("sealfs-job-7@n1"), 1 << 30);
        if Path::new("/run/systemd/system").exists() {
            assert!(made.unwrap_err().to_string().contains("DefaultMemoryAccounting"));
            assert_eq!(subtree(&unset).unwrap(), "\n");
        } else {
            made.unwrap();
            assert_eq!(subtree(&unset).unwrap(), "+memory");
        }
    }

    #[test]
    fn a_limit_that_cannot_be_kept_is_refused() {
        let without = root("cpu memory.x\n", "\n");
        let group = without.path().join("g");
        let error = make(&group, 1).unwrap_err().to_string();
        assert!(
            error.contains("has no memory controller") && error.contains("leave it out"),
            "{error}"
        );
        assert!(!group.exists());
        let error = make(Path::new("/no/such/g"), 1).unwrap_err().to_string();
        assert!(error.contains("/no/such/cgroup.controllers"), "{error}");
    }
}
