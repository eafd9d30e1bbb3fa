//! Who uses a mount, from /proc: told before it is taken away by force.
//!
//! Links are read, never followed: the mount itself may not answer.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::process;

/// A process that uses a mount.
#[derive(Debug)]
pub(super) struct Holder {
    pid: i32,
    command: String,
    uid: u32,
    path: PathBuf,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, command, uid, path } = self;
        write!(f, "process {pid} ({command}) of uid {uid} uses {}", path.display())
    }
}

/// The processes with a file open, their working directory, root or program at or below
/// `mountpoint`; one path of each.
pub(super) fn of(mountpoint: &Path) -> Vec<Holder> {
    let pids = process::all().into_iter().flatten();
    pids.filter_map(|pid| holder(pid.as_raw_nonzero().get(), mountpoint)).collect()
}

fn holder(pid: i32, mountpoint: &Path) -> Option<Holder> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let fds = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
    let links = ["cwd", "root", "exe"].into_iter().map(|name| proc.join(name));
    let mut links = links.chain(fds.map(|fd| fd.path()));
    let path =
        links.find_map(|link| fs::read_link(link).ok().filter(|to| to.starts_with(mountpoint)));
    let path = path.or_else(|| mapped(&proc, mountpoint))?;
    let command = fs::read_to_string(proc.join("comm")).unwrap_or_default().trim().to_string();
    let uid = fs::metadata(&proc).map_or(0, |found| found.uid());
    Some(Holder { pid, command, uid, path })
}

/// A file below `mountpoint` that the process has mapped and need not have open any more.
fn mapped(proc: &Path, mountpoint: &Path) -> Option<PathBuf> {
    let maps = fs::read_to_string(proc.join("maps")).ok()?;
    let paths = maps.lines().filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])));
    paths.into_iter().find(|path| path.starts_with(mountpoint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn who_stands_in_a_directory_or_has_a_file_open_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(dir.path()).unwrap();
        let child = Command::new("sleep").arg("100").current_dir(&path).spawn();
        let mut child = child.unwrap();
        let _open = fs::File::create(path.join("file")).unwrap();
        let found: Vec<String> = of(&path).iter().map(ToString::to_string).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        let expected = format!("process {} (sleep) of uid", child.id());
        assert!(found.iter().any(|line| line.starts_with(&expected)), "{found:?}");
        let own = format!("uses {}", path.join("file").display());
        assert!(found.iter().any(|line| line.ends_with(&own)), "{found:?}");
        assert!(of(&path.join("none")).is_empty());
    }
}
