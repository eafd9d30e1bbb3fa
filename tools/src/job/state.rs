//! What stands of a job on this node: a directory in a file system that does not outlive the
//! machine's run.
//!
//! ```text
//! STATE/ID/            0700, locked (flock) by the `up`, `down` or `reap` that works on the job
//!   record             what is there or may be, JSON; written before the first of it exists
//!   key                the job's key, 0600
//!   nodes              the nodes' list
//!   server.log, mount.log, stage.log    what the processes say, by which they are found again
//!   memory/            the data, if it is in memory
//! STATE/.ports         locked while a port is chosen
//! ```
//! 1. Whatever moment a process is killed at, the record says where everything is that may be
//!    there. A record that cannot be read is never taken for none.
//! 2. At most one process works on a job. An `up` whose work a later `up` or `down` is to undo is
//!    ended; all others are waited for. What was started before an `up` and comes after it leaves
//!    it alone.
//! 3. The directory goes last, under its lock; who waited for the lock notices that it is gone.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::data::Data;
use crate::{Failure, place, process};

/// What is there of a job, or may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// [`RECORD_VERSION`]; fields that are added and may be missing leave it as it is.
    pub(super) version: u32,
    /// The job.
    pub(super) id: String,
    /// All its nodes.
    pub(super) hosts: Vec<String>,
    /// Which of them this is.
    pub(super) me: usize,
    /// Whose job it is.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The boot of the machine in which it was begun.
    pub(super) boot: String,
    /// Where its server listens.
    pub(super) port: u16,
    /// Where it is mounted.
    pub(super) mountpoint: PathBuf,
    /// Where its data lies.
    pub(super) data: Data,
    /// Where logs are: in the job's own directory, for processes are found by them, and others
    /// would rotate them.
    pub(super) logs: PathBuf,
    /// Where they are appended to what is there of the job, when it ends.
    #[serde(default)]
    pub(super) logs_kept: Option<PathBuf>,
    /// The control group of the server, if it has one.
    pub(super) cgroup: Option<PathBuf>,
    /// `up` has ended well.
    pub(super) is_up: bool,
    /// `down` has begun: whatever still runs is nobody's any more.
    #[serde(default)]
    pub(super) is_ending: bool,
    /// It was to end, and its files could not be staged out.
    pub(super) is_kept: bool,
}

/// Why a record that is there says nothing.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// Only a part of it is there, or something else: what was being written when the machine lost
    /// power.
    pub(super) is_torn: bool,
    text: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Unreadable {}

/// A job's place on this node.
#[derive(Clone, Debug)]
pub(super) struct Home {
    /// The job.
    pub(super) id: String,
    /// Its directory.
    pub(super) dir: PathBuf,
}

/// What a process is about to do with a job.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    /// Undo what stands, and what is being done.
    Take,
    /// Look, if nobody works on it.
    Look,
}

/// The right to work on a job, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    /// Closing it gives the lock back.
    _directory: File,
}

impl Home {
    /// The place of job `id` below `state`. The id is checked: it becomes a file's name.
    pub(super) fn new(state: &Path, id: &str) -> Result<Self, Failure> {
        check_id(id)?;
        Ok(Self { id: id.to_string(), dir: state.join(id) })
    }

    /// The directory in which all jobs have theirs.
    pub(super) fn state(&self) -> &Path {
        self.dir.parent().expect("it was made by joining")
    }

    pub(super) fn key(&self) -> PathBuf {
        self.dir.join("key")
    }

    pub(super) fn nodes(&self) -> PathBuf {
        self.dir.join("nodes")
    }

    pub(super) fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// Where a process of the job logs: `server`, `mount` or `stage`.
    pub(super) fn log(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{what}.log"))
    }

    fn record_file(&self) -> PathBuf {
        self.dir.join("record")
    }

    /// The record; `None` if there is none.
    pub(super) fn record(&self) -> Result<Option<Record>, Unreadable> {
        let path = self.record_file();
        let unreadable = |is_torn: bool, cause: &dyn fmt::Display| {
            let (shown, id) = (path.display(), &self.id);
            let next = format!("`sealfs job down --force --id {id}` ends it without its record");
            Unreadable { is_torn, text: format!("cannot read the record {shown}: {cause}; {next}") }
        };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(false, &error)),
        };
        let torn = |error: serde_json::Error| unreadable(true, &error);
        match serde_json::from_slice(&bytes).map_err(torn)? {
            Version { version: RECORD_VERSION } => {}
            Version { version } => {
                let cause = format!(
                    "it has version {version}, and this release knows {RECORD_VERSION}: use the one that began the job"
                );
                return Err(unreadable(false, &cause));
            }
        }
        serde_json::from_slice(&bytes).map(Some).map_err(torn)
    }

    /// Replaces the record.
    pub(super) fn set_record(&self, record: &Record) -> Result<(), Failure> {
        self.write("record", &serde_json::to_vec_pretty(record)?)
    }

    /// Replaces a file of the directory, which only this user can read.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let (path, fresh) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let failed = |error: io::Error| format!("cannot write {}: {error}", path.display());
        let _ = fs::remove_file(&fresh);
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(&fresh).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        Ok(fs::rename(&fresh, &path).map_err(failed)?)
    }

    /// Makes the directory, if need be, and locks it; `None` with [`Intent::Look`] if somebody
    /// works on the job.
    pub(super) fn lock(&self, intent: Intent, until: Instant) -> Result<Option<Lock>, Failure> {
        loop {
            let made = fs::DirBuilder::new().mode(0o700).create(&self.dir);
            if let Err(error) = made.or_else(unless(io::ErrorKind::AlreadyExists)) {
                return Err(format!("cannot make {}: {error}", self.dir.display()).into());
            }
            place::check_own(&self.dir, "remove it")?;
            let directory = match File::open(&self.dir) {
                Ok(directory) => directory,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(format!("cannot open {}: {error}", self.dir.display()).into());
                }
            };
            match directory.try_lock() {
                Ok(()) if is_at(&directory, &self.dir) => {
                    return Ok(Some(Lock { _directory: directory }));
                }
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(format!("cannot lock {}: {error}", self.dir.display()).into());
                }
            }
            if intent == Intent::Look {
                return Ok(None);
            }
            let me = process::started(rustix::process::getpid());
            for pid in self.ups() {
                if process::started(pid) > me {
                    return Err(format!("job {}: a newer `up` works on it", self.id).into());
                }
                tracing::info!(pid = pid.as_raw_nonzero(), "ending an `up` of job {}", self.id);
                process::end(pid, Duration::ZERO, || self.ups().contains(&pid))?;
            }
            if Instant::now() >= until {
                return Err(format!(
                    "job {}: another process works on it (see /proc/locks for {}) and does not come to an end",
                    self.id,
                    self.dir.display()
                )
                .into());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Removes what the directory holds, the record last.
    pub(super) fn empty(&self) -> Result<(), Failure> {
        let failed = |error: io::Error| format!("cannot empty {}: {error}", self.dir.display());
        let record = self.record_file();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path != record {
                fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(fs::remove_file(&record).or_else(unless(io::ErrorKind::NotFound)).map_err(failed)?)
    }

    /// Removes the directory, which is empty; its lock is worth nothing from here on.
    pub(super) fn remove(&self) -> Result<(), Failure> {
        let removed = fs::remove_dir(&self.dir);
        Ok(removed.map_err(|error| format!("cannot remove {}: {error}", self.dir.display()))?)
    }

    /// Whether a process works on the job at this moment.
    pub(super) fn is_worked_on(&self) -> bool {
        let tried = File::open(&self.dir).map(|directory| directory.try_lock_shared());
        matches!(tried, Ok(Err(TryLockError::WouldBlock)))
    }

    /// Other processes that run `up` on this job.
    fn ups(&self) -> Vec<Pid> {
        let Some(dir) = process::identity(&self.dir) else { return Vec::new() };
        let me = rustix::process::getpid();
        let holds = |pid: &Pid| {
            let fds = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()));
            let mut fds = fds.into_iter().flatten().flatten();
            fds.any(|fd| process::identity(&fd.path()) == Some(dir))
        };
        let pids = process::all().into_iter().flatten();
        pids.filter(|pid| *pid != me && is_up(*pid) && holds(pid)).collect()
    }
}

/// Whether the process is `sealfs job up`, by its words.
fn is_up(pid: Pid) -> bool {
    let words = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    words.windows(2).any(|pair| pair == [&b"job"[..], &b"up"[..]])
}

fn is_at(directory: &File, path: &Path) -> bool {
    match (directory.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Success where the error is only that.
pub(super) fn unless(kind: io::ErrorKind) -> impl Fn(io::Error) -> io::Result<()> {
    move |error| if error.kind() == kind { Ok(()) } else { Err(error) }
}

/// Locks the choice of ports on this node until the result is dropped.
pub(super) fn lock_ports(state: &Path) -> Result<File, Failure> {
    let path = state.join(".ports");
    let opened = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let file = opened.map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    file.lock().map_err(|error| format!("cannot lock {}: {error}", path.display()))?;
    Ok(file)
}

/// Ids of all jobs that have a directory below `state`.
pub(super) fn all(state: &Path) -> Result<Vec<String>, Failure> {
    let failed = |error: io::Error| format!("cannot list {}: {error}", state.display());
    let mut ids = Vec::new();
    let entries = match fs::read_dir(state) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ids),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name().into_string();
        ids.extend(name.ok().filter(|name| check_id(name).is_ok()));
    }
    ids.sort();
    Ok(ids)
}

/// Which run of the machine this is.
pub(super) fn boot() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_string()
}

/// An id becomes a file's name, a part of paths, and a word in logs.
pub(super) fn check_id(id: &str) -> Result<(), Failure> {
    let is_name =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'+');
    if id.is_empty() || id.len() > ID_LEN_MAX || !id.bytes().all(is_name) || id.starts_with('.') {
        return Err(format!(
            "job id {id:?}: write up to {ID_LEN_MAX} letters, digits, `_`, `-`, `+` and `.`, the first one no dot"
        )
        .into());
    }
    Ok(())
}

/// What every version of a record has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Goes up with a record that a release before would misunderstand.
pub(super) const RECORD_VERSION: u32 = 1;
const ID_LEN_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn an_id_is_a_harmless_name() {
        for id in ["4711", "4711_3", "a.b-c+1"] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", ".x", "a/b", "a b", "a\n", "ä", &"x".repeat(65)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn a_job_is_worked_on_by_one_at_a_time_and_a_lock_on_what_is_gone_does_not_count() {
        let state = tempfile::tempdir().unwrap();
        let home = Home::new(state.path(), "7").unwrap();
        let lock = home.lock(Intent::Take, soon()).unwrap().unwrap();
        assert!(home.lock(Intent::Look, soon()).unwrap().is_none());
        assert!(home.lock(Intent::Take, Instant::now()).unwrap_err().to_string().contains("job 7"));
        let waiting = {
            let home = home.clone();
            thread::spawn(move || home.lock(Intent::Take, soon()).unwrap().unwrap())
        };
        fs::remove_dir(&home.dir).unwrap();
        drop(lock);
        let lock = waiting.join().unwrap();
        assert!(is_at(&lock._directory, &home.dir), "it was made anew");
    }

    fn record() -> Record {
        Record {
            version: RECORD_VERSION,
            id: "7".into(),
            hosts: vec!["a".into()],
            me: 0,
            uid: 1,
            gid: 2,
            boot: boot(),
            port: 3,
            mountpoint: "/m".into(),
            data: Data::Memory("/x".into()),
            logs: "/l".into(),
            logs_kept: None,
            cgroup: None,
            is_ending: false,
            is_up: false,
            is_kept: false,
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_is_never_none() {
        let state = tempfile::tempdir().unwrap();
        let home = Home::new(state.path(), "7").unwrap();
        assert_eq!(home.record().unwrap(), None);
        fs::create_dir(&home.dir).unwrap();
        home.set_record(&record()).unwrap();
        assert_eq!(home.record().unwrap(), Some(record()));
        let bytes = fs::read(home.record_file()).unwrap();
        for len in 0..bytes.len() - 1 {
            fs::write(home.record_file(), &bytes[..len]).unwrap();
            assert!(home.record().unwrap_err().is_torn);
        }
        fs::remove_file(home.record_file()).unwrap();
        fs::create_dir(home.record_file()).unwrap();
        let error = home.record().unwrap_err();
        let text = error.to_string();
        assert!(
            !error.is_torn && text.contains("7/record") && text.contains("directory"),
            "{text}"
        );
        assert!(text.contains("`sealfs job down --force --id 7`"), "{text}");
    }

    #[test]
    fn a_record_of_another_release_is_read_if_it_has_this_version() {
        let state = tempfile::tempdir().unwrap();
        let home = Home::new(state.path(), "7").unwrap();
        fs::create_dir(&home.dir).unwrap();
        let mut other = serde_json::to_value(record()).unwrap();
        other["more"] = "x".into();
        home.write("record", other.to_string().as_bytes()).unwrap();
        assert_eq!(home.record().unwrap(), Some(record()));
        other["version"] = 2.into();
        other["port"] = "it means something else".into();
        home.write("record", other.to_string().as_bytes()).unwrap();
        let error = home.record().unwrap_err();
        assert!(!error.is_torn && error.to_string().contains("it has version 2"), "{error}");
    }
}
