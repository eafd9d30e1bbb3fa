//! Runs a program to its end: what it says goes into a file and to whoever listens, and it can be interrupted.
//!
//! 1. The program is the head of a process group of its own: a Ctrl-C at the terminal comes to us, and by SIGTERM to the
//!    launcher, which ends its ranks on all machines. What does not end then is killed after a grace.
//! 2. Nothing of that process group is left when this returns after an interruption.
//! 3. Whoever listens and cannot any more interrupts it, too: an output that has broken off is the wish to end it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::Error;

/// How a program ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// Why it was ended, if it was.
    pub(super) interrupted: Option<String>,
    /// The last line that it said.
    pub(super) last: String,
}

impl Ended {
    /// Why it did not end well, if so.
    pub(super) fn fault(&self) -> Option<String> {
        if let Some(why) = &self.interrupted {
            Some(format!("the run was interrupted: {why}"))
        } else if !self.status.success() {
            Some(format!("the program ended with {}: {}", self.status, self.last))
        } else {
            None
        }
    }
}

/// Ends programs from elsewhere; shared by the runs of one command.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupts(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    interrupted: bool,
    listener: Option<Sender<Event>>,
}

#[derive(Debug)]
enum Event {
    Line(String),
    Ended,
    Interrupted,
}

impl Interrupts {
    /// Hears of interruptions by `from`.
    pub(super) fn new(from: Receiver<()>) -> Self {
        let this = Self::default();
        let state = Arc::clone(&this.0);
        thread::spawn(move || {
            while from.recv().is_ok() {
                let mut state = state.lock().expect("nobody panics with it");
                state.interrupted = true;
                if let Some(listener) = &state.listener {
                    let _ = listener.send(Event::Interrupted);
                }
            }
        });
        this
    }

    fn listen(&self, sender: Sender<Event>) {
        let mut state = self.0.lock().expect("nobody panics with it");
        if state.interrupted {
            let _ = sender.send(Event::Interrupted);
        }
        state.listener = Some(sender);
    }
}

/// Whoever hears what is said, line by line.
pub type Told<'a> = dyn FnMut(&str) -> io::Result<()> + 'a;

/// Runs `words`, what they say into `output`, line by line to `told`.
pub(super) fn run(
    words: &[OsString],
    output: &Path,
    interrupts: &Interrupts,
    told: &mut Told<'_>,
) -> Result<Ended, Error> {
    let mut log = File::create(output).map_err(|error| Error::at("cannot write", output, error))?;
    let (program, arguments) = words.split_first().expect("a program has a name");
    let pipes = io::pipe().and_then(|(reader, writer)| Ok((reader, writer.try_clone()?, writer)));
    let (reader, first, second) =
        pipes.map_err(|error| Error::at("cannot listen to", program, error))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(first)
        .stderr(second)
        .process_group(0)
        .spawn()
        .map_err(|error| Error::at("cannot start", program, error))?;
    let (sender, events) = channel();
    interrupts.listen(sender.clone());
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(Event::Line(line)).is_err() {
                return;
            }
        }
        let _ = sender.send(Event::Ended);
    });
    let mut last = String::new();
    let mut interrupted: Option<(Instant, String)> = None;
    loop {
        let why = match next(&events, interrupted.as_ref().map(|(since, _)| *since)) {
            Some(Event::Line(line)) => {
                let mut heard = writeln!(log, "{line}")
                    .map_err(|error| format!("{} cannot be written: {error}", output.display()));
                if heard.is_ok() && interrupted.is_none() {
                    heard = told(&line).map_err(|error| format!("nobody listens: {error}"));
                }
                if !line.trim().is_empty() {
                    last = line;
                }
                let Err(why) = heard else { continue };
                why
            }
            Some(Event::Interrupted) => "by a signal".to_owned(),
            // All that could write has ended, or the grace is over.
            Some(Event::Ended) | None => break,
        };
        if interrupted.is_none() {
            interrupted = Some((Instant::now(), why));
            // The launcher ends its ranks, also those elsewhere.
            end_group(&child, Signal::TERM);
        }
    }
    if interrupted.is_some() {
        end_group(&child, Signal::KILL);
    }
    let status = child.wait().map_err(|error| Error::at("cannot wait for", program, error))?;
    Ok(Ended { status, interrupted: interrupted.map(|(_, why)| why), last })
}

/// The next event; nothing when a program that was interrupted then has had its grace.
fn next(events: &Receiver<Event>, interrupted: Option<Instant>) -> Option<Event> {
    let Some(since) = interrupted else { return events.recv().ok() };
    events.recv_timeout(GRACE.saturating_sub(since.elapsed())).ok()
}

/// Errors say that there is nobody left.
fn end_group(child: &Child, signal: Signal) {
    let _ = kill_process_group(Pid::from_child(child), signal);
}

/// For a launcher to end its ranks on all machines.
const GRACE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<OsString> {
        ["sh", "-c", script].map(Into::into).to_vec()
    }

    #[test]
    fn what_is_said_is_kept_and_a_failure_has_its_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("output");
        let (_keep, receiver) = channel();
        let mut lines = Vec::new();
        let script = "echo one; echo two >&2; printf '\\377\\n'; exit 7";
        let told = &mut |line: &str| {
            lines.push(line.to_owned());
            Ok(())
        };
        let ended = run(&shell(script), &output, &Interrupts::new(receiver), told).unwrap();
        assert_eq!(lines, ["one", "two", "\u{fffd}"]);
        assert_eq!(std::fs::read_to_string(output).unwrap(), "one\ntwo\n\u{fffd}\n");
        let fault = ended.fault().unwrap();
        assert!(fault.contains("exit status: 7") && fault.contains('\u{fffd}'), "{fault}");
    }

    #[test]
    fn an_interruption_ends_the_program_and_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, receiver) = channel();
        let interrupts = Interrupts::new(receiver);
        // The first dies of SIGTERM, its child ignores it but closes its output.
        let script = "sh -c 'trap \"\" TERM; exec >&- 2>&-; sleep 1000' & echo $!; wait";
        let mut child = None;
        let told = &mut |line: &str| {
            child = line.parse::<i32>().ok();
            sender.send(()).unwrap();
            Ok(())
        };
        let ended = run(&shell(script), &dir.path().join("output"), &interrupts, told).unwrap();
        assert!(ended.fault().unwrap().contains("interrupted: by a signal"));
        let pid = Pid::from_raw(child.unwrap()).unwrap();
        // Killed, and reaped by whoever adopts it: not ours to wait for, but it must not run.
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        let runs = state
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim().starts_with(['Z', 'X']));
        assert!(!runs || gone_soon(pid));
        // A run after it does not begin at all.
        let output = dir.path().join("output");
        let again = run(&shell("sleep 1000"), &output, &interrupts, &mut |_| Ok(()));
        assert!(again.unwrap().interrupted.is_some());
    }

    #[test]
    fn whoever_cannot_listen_any_more_ends_the_program_and_hears_nothing_again() {
        let dir = tempfile::tempdir().unwrap();
        let (_keep, receiver) = channel();
        let interrupts = Interrupts::new(receiver);
        let mut heard = 0;
        let told = &mut |_: &str| {
            heard += 1;
            Err(io::ErrorKind::BrokenPipe.into())
        };
        let script = "trap 'echo ending; exit 3' TERM; echo one; while :; do sleep 0.01; done";
        let output = dir.path().join("output");
        let ended = run(&shell(script), &output, &interrupts, told).unwrap();
        let fault = ended.fault().unwrap();
        assert!(fault.contains("interrupted") && fault.contains("broken pipe"), "{fault}");
        assert_eq!(heard, 1);
        let said = std::fs::read_to_string(output).unwrap();
        assert!(said.starts_with("one\n") && said.ends_with("ending\n"), "{said}");
    }

    /// Waits for the end of a process that is not our child.
    fn gone_soon(pid: Pid) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        use rustix::process::{PidfdFlags, pidfd_open};
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
        let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).unwrap() == 1
    }
}
