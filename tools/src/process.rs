//! Processes that this program starts, finds again and ends.
//!
//! 1. A process is named by a file that its stderr is, or its stdin if its words come through a
//!    pipe: its log, which exists before the process does and nobody else writes to. Pid files lag
//!    behind, and pids are used again.
//! 2. A zombie has ended.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Failure;

/// A node that has been started and has not said yet that it is ready.
pub(crate) struct Starting<'a> {
    /// Its process.
    pub(crate) child: Child,
    line: mpsc::Receiver<String>,
    log: &'a Path,
}

/// Starts a node (`sealfs serve ...` in `command`), whose log is appended to `log`.
pub(crate) fn start_node<'a>(
    command: &mut Command,
    log: &'a Path,
) -> Result<Starting<'a>, Failure> {
    let opened = File::options().create(true).append(true).open(log);
    let file = opened.map_err(|error| format!("cannot open the log {}: {error}", log.display()))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    let mut child = command.spawn().map_err(|error| format!("cannot start a node: {error}"))?;
    let stdout = child.stdout.take().ok_or("the node's stdout is a pipe")?;
    let (sender, line) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(stdout).read_line(&mut line);
        let _ = sender.send(line);
    });
    Ok(Starting { child, line, log })
}

impl Starting<'_> {
    /// Waits until it says that it is ready. The error is the last thing that it said; it has ended
    /// then.
    pub(crate) fn ready(mut self, until: Instant) -> Result<Child, Failure> {
        let heard = self.line.recv_timeout(until.saturating_duration_since(Instant::now()));
        if heard.as_ref().is_ok_and(|line| !line.is_empty()) {
            return Ok(self.child);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let cause = if heard.is_err() { "it was not ready in time; it says: " } else { "" };
        Err(format!("{cause}{} (log: {})", last_line(self.log), self.log.display()).into())
    }
}

/// The last line of a log.
pub(crate) fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().last().unwrap_or("it said nothing").to_string()
}

/// The running processes whose stderr or stdin is the file `log`. An error is never taken for
/// nobody.
pub(crate) fn writing_to(log: &Path) -> Result<Vec<Pid>, Failure> {
    match fs::symlink_metadata(log) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("cannot look at {}: {error}", log.display()).into()),
    }
    let Some(log) = identity(log) else { return Ok(Vec::new()) };
    let has = |pid: &Pid| {
        let is_log = |fd| {
            let path = format!("/proc/{}/fd/{fd}", pid.as_raw_nonzero());
            identity(path.as_ref()) == Some(log)
        };
        is_log(2) || is_log(0)
    };
    Ok(all()?.filter(has).collect())
}

/// Which file `path` leads to: its device and inode. Others' open files are looked at, too, and lie
/// on file systems that may not answer: nobody is asked for what the kernel does not know.
pub(crate) fn identity(path: &Path) -> Option<(u32, u32, u64)> {
    let flags = AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(CWD, path, flags, StatxFlags::INO).ok()?;
    Some((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

/// All processes that /proc lists.
pub(crate) fn all() -> Result<impl Iterator<Item = Pid>, Failure> {
    let entries = fs::read_dir("/proc").map_err(|error| format!("cannot list /proc: {error}"))?;
    let pid = |entry: fs::DirEntry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
    Ok(entries.flatten().filter_map(pid))
}

/// A number that is greater for processes that were started later; `None`: it has ended.
pub(crate) fn started(pid: Pid) -> Option<(u64, i32)> {
    let pid = pid.as_raw_nonzero().get();
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything, comes field 3; field 22 is the time in ticks.
    let ticks = text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    Some((ticks, pid))
}

/// Asks the process to end and waits; SIGKILL when it does not: what it acknowledged is written
/// already. `is_meant` is asked once more when the process can no longer be mistaken for another
/// with its number.
pub(crate) fn end(
    pid: Pid,
    patience: Duration,
    is_meant: impl FnOnce() -> bool,
) -> Result<(), Failure> {
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if !is_meant() {
        return Ok(());
    }
    for (signal, patience) in [(Signal::TERM, patience), (Signal::KILL, KILL_PATIENCE)] {
        match pidfd_send_signal(&process, signal) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if has_ended(&process, Instant::now() + patience)? {
            return Ok(());
        }
    }
    Err(UNKILLABLE.into())
}

/// Whether the process ends until then.
fn has_ended(process: &OwnedFd, until: Instant) -> Result<bool, Failure> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            ended => return Ok(ended? > 0),
        }
    }
}

/// Ends all processes whose stderr or stdin is the file `log`, see [`end`].
pub(crate) fn end_writers(log: &Path, patience: Duration) -> Result<(), Failure> {
    // Those that one of them started while they were looked for are found in the next round.
    for _ in 0..ROUNDS_MAX {
        let found = writing_to(log)?;
        if found.is_empty() {
            return Ok(());
        }
        for pid in found {
            end(pid, patience, || writing_to(log).is_ok_and(|found| found.contains(&pid)))
                .map_err(|error| format!("process {}: {error}", pid.as_raw_nonzero()))?;
        }
    }
    Err(format!("processes that have {} open start others faster than they end", log.display())
        .into())
}

/// How often those are looked for that are to end.
const ROUNDS_MAX: u32 = 100;
const UNKILLABLE: &str = "does not end, not even by SIGKILL: it waits in the kernel for something that does not answer, \
                          as `cat /proc/PID/stack` tells";
/// What the kernel may take to end a process that it is told to.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_log_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (log, other) = (dir.path().join("log"), dir.path().join("other"));
        fs::write(&other, "").unwrap();
        let file = File::create(&log).unwrap();
        let mut child = Command::new("sleep").arg("100").stderr(file).spawn().unwrap();
        assert_eq!(writing_to(&log).unwrap(), [Pid::from_child(&child)]);
        assert!(writing_to(&other).unwrap().is_empty());
        end_writers(&log, Duration::from_secs(5)).unwrap();
        assert!(writing_to(&log).unwrap().is_empty(), "a zombie has ended");
        child.wait().unwrap();
    }

    #[test]
    fn who_ignores_the_request_to_end_is_ended_and_a_file_names_it_by_its_stdin() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "").unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; echo set; while :; do sleep 1000; done"]);
        command.stdin(File::open(&log).unwrap()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(writing_to(&log).unwrap().contains(&Pid::from_child(&child)));
        end_writers(&log, Duration::ZERO).unwrap();
        assert!(writing_to(&log).unwrap().is_empty());
        assert_eq!(child.wait().unwrap().code(), None, "by a signal");
    }

    #[test]
    fn who_was_started_later_is_known() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let (me, its) = (rustix::process::getpid(), Pid::from_child(&child));
        assert!(started(me).is_some() && started(me) < started(its));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(started(its), None);
    }

    #[test]
    fn a_node_that_ends_at_once_has_said_why() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo one >&2; echo no room >&2"]);
        let until = Instant::now() + Duration::from_secs(60);
        let error = start_node(&mut command, &log).unwrap().ready(until).unwrap_err().to_string();
        assert!(error.starts_with("no room (log: "), "{error}");
        let mut command = Command::new("sh");
        command.args(["-c", "echo waiting >&2; exec sleep 100"]);
        let started = start_node(&mut command, &log).unwrap();
        let error = started.ready(Instant::now() + Duration::from_secs(1));
        assert!(error.unwrap_err().to_string().starts_with("it was not ready in time"));
        assert!(writing_to(&log).unwrap().is_empty());
    }
}
