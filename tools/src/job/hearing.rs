//! What a user's program says on stderr, kept in a log of root's: bounded, whatever the program
//! does.
//!
//! The program has a pipe, for whoever can take a descriptor from it could write to a file without
//! end. This end of it is always read, so that the program never waits, and what is beyond the
//! limits is forgotten.
//!
//! 1. The log of a job holds at most [`LOG_LEN_MAX`] bytes, a line at most [`LINE_LEN_MAX`],
//!    without control characters.
//! 2. Nobody waits for a pipe that others may hold open: it was heard until the program ended, and
//!    [`PATIENCE`] longer.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ChildStderr;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// A program that is listened to.
pub(super) struct Hearing {
    /// The last lines.
    last: Arc<Mutex<VecDeque<String>>>,
    /// Closed when the pipe is.
    end: Receiver<()>,
}

impl Hearing {
    /// Listens to `program` of job `id`: to `log`, which is open for appending, and to this
    /// process's stderr.
    pub(super) fn of(program: ChildStderr, log: File, id: &str) -> Self {
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, end) = mpsc::channel();
        let (told, id) = (Arc::clone(&last), id.to_string());
        thread::spawn(move || {
            let mut printed = 0;
            listen(program, &log, |line| {
                if printed < PRINTED_MAX {
                    eprintln!("sealfs: job {id}: {line}");
                }
                printed += 1;
                let mut last = told.lock().unwrap_or_else(PoisonError::into_inner);
                last.push_back(line);
                if last.len() > LAST_COUNT {
                    last.pop_front();
                }
            });
            drop(sender);
        });
        Self { last, end }
    }

    /// Its last words, when it has ended.
    pub(super) fn last_words(self) -> Vec<String> {
        // Nothing is ever sent: it is closed, or it takes too long.
        let _ = self.end.recv_timeout(PATIENCE);
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Reads to the end.
fn listen(mut from: impl Read, mut log: &File, mut tell: impl FnMut(String)) {
    let mut room = LOG_LEN_MAX.saturating_sub(log.metadata().map_or(LOG_LEN_MAX, |log| log.len()));
    let (mut bytes, mut line) = ([0; 4096], Vec::new());
    loop {
        let len = match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let kept = len.min(room as usize);
        // A log that cannot be written changes nothing for the job.
        let _ = log.write_all(&bytes[..kept]);
        room -= kept as u64;
        for byte in &bytes[..len] {
            match byte {
                b'\n' => tell(plain(&std::mem::take(&mut line))),
                _ if line.len() < LINE_LEN_MAX => line.push(*byte),
                _ => {}
            }
        }
    }
    if !line.is_empty() {
        tell(plain(&line));
    }
}

fn plain(line: &[u8]) -> String {
    String::from_utf8_lossy(line).replace(char::is_control, " ")
}

const LOG_LEN_MAX: u64 = 1 << 20;
/// Two paths of the greatest length fit.
const LINE_LEN_MAX: usize = 10_000;
/// Lines of a program that come to stderr; the log has more.
const PRINTED_MAX: usize = 100;
/// Lines that all nodes are told: how much failed, and where it is named.
const LAST_COUNT: usize = 3;
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn hear(script: &str, log: &File) -> Vec<String> {
        let mut command = Command::new("sh");
        let mut child = command.args(["-c", script]).stderr(Stdio::piped()).spawn().unwrap();
        let hearing = Hearing::of(child.stderr.take().unwrap(), log.try_clone().unwrap(), "7");
        child.wait().unwrap();
        hearing.last_words()
    }

    #[test]
    fn a_program_that_says_too_much_is_heard_to_its_end_and_not_kept() {
        let log = tempfile::tempfile().unwrap();
        let words = hear("for n in 1 2 3 4 five; do echo $n >&2; done; printf 'a\\033b' >&2", &log);
        assert_eq!(words, ["4", "five", "a b"]);
        assert_eq!(log.metadata().unwrap().len(), 16);
        let words =
            hear("head -c 3000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo end >&2", &log);
        assert_eq!((words.len(), words[0].len(), &*words[1]), (2, LINE_LEN_MAX, "end"));
        assert_eq!(log.metadata().unwrap().len(), LOG_LEN_MAX);
        assert_eq!(hear("echo more >&2", &log), ["more"]);
        assert_eq!(log.metadata().unwrap().len(), LOG_LEN_MAX);
    }

    #[test]
    fn who_keeps_the_pipe_open_is_not_waited_for() {
        let log = tempfile::tempfile().unwrap();
        let words = hear("echo said >&2; exec >/dev/null; sleep 1000 & echo $! >&2", &log);
        assert_eq!(words[0], "said");
        let pid = rustix::process::Pid::from_raw(words[1].parse().unwrap()).unwrap();
        assert!(rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok());
    }
}
