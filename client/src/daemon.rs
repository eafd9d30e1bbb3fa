//! Going to the background without losing the error text.
//!
//! ```text
//! sealfs mount (parent)                     daemon (child)
//!   daemonize() ---- fork ------------------> setsid, stdin from /dev/null
//!   reads the pipe until it ends              starts the mount
//!   "" + exit 1, or "ok", or the error  <---- Started::report(result)
//!   exits with that                           chdir /; stdout, stderr to the log; goes on
//! ```
//!
//! 1. The parent ends only when the daemon has reported or is dead; a daemon that dies without a word is an error.
//! 2. Until it has reported, the daemon writes to the terminal of its parent; afterwards only to its log.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use crate::MountError;
use crate::sys::{self, Standard};

/// Who comes back from [`daemonize`].
#[derive(Debug)]
pub enum Forked {
    /// The process that was started: the daemon is ready, or this is why it is not. It should print that and exit.
    Parent(Result<(), String>),
    /// The daemon.
    Child(Started),
}

/// The daemon's promise to tell its parent how the start went. Dropped without a word it reports a failure.
#[derive(Debug)]
pub struct Started {
    pipe: File,
    log: File,
}

impl Started {
    /// Tells the parent that the mount is ready, or why it failed. From here on output goes to the log.
    pub fn report(mut self, result: Result<(), &str>) {
        // A parent that was killed meanwhile cannot be told; the daemon goes on all the same.
        let _ = match result {
            Ok(()) => self.pipe.write_all(READY),
            Err(text) => self.pipe.write_all(text.as_bytes()),
        };
        // The daemon must not keep the directory that it was started in from being unmounted; relative paths are done with.
        let _ = std::env::set_current_dir("/");
        for standard in [Standard::Output, Standard::Error] {
            let _ = sys::replace(&self.log, standard);
        }
    }
}

/// Forks, detaches from the terminal, and sends stdout and stderr to the file `log` (appended) once [`Started::report`]
/// has been called. Must be called before the process has a second thread (asserted).
pub fn daemonize(log: &Path) -> Result<Forked, MountError> {
    let opened = OpenOptions::new().append(true).create(true).mode(LOG_MODE).open(log);
    let log = opened.map_err(|error| {
        MountError(format!(
            "cannot open the log {}: {error}; name another file with -o log=FILE",
            log.display()
        ))
    })?;
    let failed = |error: io::Error| MountError(format!("cannot go to the background: {error}"));
    let (read, write) = sys::pipe().map_err(failed)?;
    match sys::fork().map_err(failed)? {
        sys::Forked::Parent => {
            drop(write);
            Ok(Forked::Parent(outcome(File::from(read))))
        }
        sys::Forked::Child => {
            drop(read);
            // It cannot fail, for a forked child leads no process group.
            let _ = sys::new_session();
            if let Ok(null) = File::open("/dev/null") {
                let _ = sys::replace(&null, Standard::Input);
            }
            Ok(Forked::Child(Started { pipe: File::from(write), log }))
        }
    }
}

/// Where the daemon of a mount at `mountpoint` (absolute) writes its log if nobody says: root's in /var/log/sealfs,
/// anybody else's in $XDG_STATE_HOME/sealfs (~/.local/state/sealfs), named after the mountpoint: `mnt-seal.log`. The
/// directory is made if need be.
pub fn default_log(mountpoint: &Path) -> Result<PathBuf, MountError> {
    let absolute = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).filter(|directory| directory.is_absolute())
    };
    let directory = if sys::is_root() {
        PathBuf::from("/var/log/sealfs")
    } else {
        let home = || absolute("HOME").map(|home| home.join(".local/state"));
        let state = absolute("XDG_STATE_HOME").or_else(home);
        let none = || MountError("there is no home for a log; name a file with -o log=FILE".into());
        state.ok_or_else(none)?.join("sealfs")
    };
    std::fs::create_dir_all(&directory).map_err(|error| {
        MountError(format!(
            "cannot make {} for the log: {error}; name a file with -o log=FILE",
            directory.display()
        ))
    })?;
    Ok(directory.join(log_name(mountpoint)))
}

fn log_name(mountpoint: &Path) -> OsString {
    let parts = mountpoint.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        _ => None,
    });
    let mut name = parts.collect::<Vec<_>>().join(OsStr::new("-"));
    name.push(".log");
    name
}

/// What the daemon reports.
fn outcome(mut pipe: File) -> Result<(), String> {
    let mut report = Vec::new();
    let read = pipe.read_to_end(&mut report);
    match (read, report.as_slice()) {
        (Ok(_), READY) => Ok(()),
        (Ok(_), []) => Err("the background process ended before the mount was ready".into()),
        (Ok(_), text) => Err(String::from_utf8_lossy(text).into_owned()),
        (Err(error), _) => Err(format!("lost the background process: {error}")),
    }
}

/// What a daemon reports that has started; no error text begins so.
const READY: &[u8] = b"\0ready";
/// Inode numbers and addresses are nobody else's business.
const LOG_MODE: u32 = 0o640;

#[cfg(test)]
mod tests {
    use super::*;

    /// Forking is for a process of one thread, and a test has two: what can be tested here is the pipe's language.
    fn told(bytes: &[u8]) -> Result<(), String> {
        let (read, write) = sys::pipe().unwrap();
        File::from(write).write_all(bytes).unwrap();
        outcome(File::from(read))
    }

    #[test]
    fn a_log_is_named_after_its_mountpoint() {
        assert_eq!(log_name(Path::new("/mnt/my seal")), "mnt-my seal.log");
        assert_eq!(log_name(Path::new("/")), ".log");
    }

    #[test]
    fn the_parent_learns_how_the_start_went() {
        assert_eq!(told(READY), Ok(()));
        assert_eq!(told(b"wrong key"), Err("wrong key".into()));
        assert!(told(b"").unwrap_err().contains("ended before"));
    }
}
