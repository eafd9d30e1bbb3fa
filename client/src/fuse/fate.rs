//! What becomes of a program whose request waits, for the kernel says that a signal has come, but not which, speaks of the
//! first one only, and is silent when a program that ends closes its files. /proc knows more.
//!
//! | fate | it is so when | and ends the wait for |
//! |---|---|---|
//! | `Killed` | a signal is pending that ends it, or it ends because of one | every answer, at once |
//! | `Ends` | it ends by itself: its files are being closed | every answer, after [`END_MS`] |
//! | `Asked` | SIGINT, SIGQUIT, SIGTERM or SIGHUP is pending, and it handles them | an answer about what changes nothing, after [`ASKED_MS`] |
//! | `Waits` | else | none |
//!
//! 1. A change may have been made although its answer was not awaited. A program that goes on is never told EINTR for one:
//!    it could not know whether to repeat it. One that ends does not go on (the rule of NFS since it ignores `intr`).
//! 2. Signals that programs use among their threads or as timers (SIGURG, SIGALRM, SIGCHLD, SIGPROF) end no wait, as on a
//!    local file system: runtimes would see EINTR from every slow read.
//! 3. Who is not there has gone, or lives in another pid namespace: he counts as killed if he got a signal. If looking fails
//!    for another reason (no file descriptor is left, say) he waits, and is looked at again.

use std::{fs, io};

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Waits,
    Asked,
    Ends,
    Killed,
}

impl Fate {
    /// That of thread `pid`, which got a signal or did not. Cost: two small files of /proc.
    pub(crate) fn of(pid: u32, got_signal: bool) -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        match (read("stat"), read("status")) {
            (Ok(stat), Ok(status)) => ending(&stat).unwrap_or_else(|| signalled(&status)),
            (Err(error), _) | (_, Err(error)) if got_signal && is_gone(&error) => Self::Killed,
            _ => Self::Waits,
        }
    }

    /// Whether a request that has waited for `waited_ms` and, perhaps, `changes` something is answered now.
    pub(crate) const fn ends_wait(self, waited_ms: u64, changes: bool) -> bool {
        match self {
            Self::Waits => false,
            Self::Asked => !changes && waited_ms >= ASKED_MS,
            Self::Ends => waited_ms >= END_MS,
            Self::Killed => true,
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// From /proc/PID/stat, if it is ending.
fn ending(stat: &str) -> Option<Fate> {
    // The name may hold anything, also blanks and brackets; behind the last bracket comes field 3.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let exits = field(FLAGS_FIELD)? & PF_EXITING != 0;
    // Who may not look at it reads 0: then it ends by itself.
    let by_signal = field(EXIT_CODE_FIELD).unwrap_or(0) & EXIT_SIGNAL != 0;
    exits.then_some(if by_signal { Fate::Killed } else { Fate::Ends })
}

/// From /proc/PID/status.
fn signalled(status: &str) -> Fate {
    let set = |field: &str| {
        let set = status.lines().find_map(|line| line.strip_prefix(field));
        set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
    };
    let pending = (set("SigPnd:") | set("ShdPnd:")) & !set("SigBlk:");
    // A signal that ends the program becomes SIGKILL for each of its threads, unless it dumps a core.
    let ends = !(set("SigIgn:") | set("SigCgt:") | HARMLESS) | bits(&[libc::SIGKILL]);
    if pending & ends != 0 {
        Fate::Killed
    } else if pending & bits(&ASKING) != 0 {
        Fate::Asked
    } else {
        Fate::Waits
    }
}

const fn bits(signals: &[i32]) -> u64 {
    let (mut set, mut at) = (0, 0);
    while at < signals.len() {
        set |= 1 << (signals[at] - 1);
        at += 1;
    }
    set
}

/// Signals by which people end programs.
const ASKING: [i32; 4] = [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP];
/// Those that end no program which does not handle them.
const HARMLESS: u64 = bits(&[
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGWINCH,
]);
/// A node that lives answers sooner; reads that are a little slow are not disturbed.
const ASKED_MS: u64 = 1_000;
/// What it wrote last is seen by whoever comes after it, unless a node is dead: nobody can kill a program that ends.
const END_MS: u64 = 3_000;
/// Fields of /proc/PID/stat (proc(5)).
const FLAGS_FIELD: usize = 9;
const EXIT_CODE_FIELD: usize = 52;
/// Of linux/sched.h: it is being shut down.
const PF_EXITING: u64 = 0x4;
/// The part of an exit code that is a signal.
const EXIT_SIGNAL: u64 = 0x7f;

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn status(pending: &str, blocked: &str, ignored: &str, caught: &str) -> Fate {
        signalled(&format!(
            "Name:\tx\nSigPnd:\t{pending}\nShdPnd:\t0\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\t{caught}\n"
        ))
    }

    #[test]
    fn a_pending_signal_is_judged_by_what_the_program_does_with_it() {
        let (int, quit, usr1, urg, kill) = ("2", "4", "200", "400000", "100");
        assert_eq!(status("0", "0", "0", "0"), Fate::Waits);
        assert_eq!(status(kill, "0", "0", "0"), Fate::Killed);
        assert_eq!(status(quit, "0", "0", "0"), Fate::Killed, "it dumps a core");
        assert_eq!(status(quit, "0", "0", quit), Fate::Asked);
        assert_eq!(status(int, "0", "0", int), Fate::Asked);
        assert_eq!(status(int, int, "0", "0"), Fate::Waits, "it is blocked");
        assert_eq!(status(usr1, "0", "0", usr1), Fate::Waits, "people do not end programs so");
        assert_eq!(status(usr1, "0", "0", "0"), Fate::Killed);
        assert_eq!(status(urg, "0", "0", "0"), Fate::Waits, "it does nothing by default");
        assert_eq!(
            status(int, "0", int, "0"),
            Fate::Asked,
            "ignored ones are not pending for long"
        );
    }

    #[test]
    fn a_program_that_ends_is_told_from_one_that_is_killed() {
        let stat = |flags: u64, code: u64| {
            let fields = ["0"; 42].join(" ");
            ending(&format!("7 (a ) b) D 1 1 1 0 -1 {flags} {fields} {code}"))
        };
        assert_eq!(stat(0x0040_0100, 9), None);
        assert_eq!(stat(0x0040_0104, 9), Some(Fate::Killed));
        assert_eq!(stat(0x0040_0104, 0x100), Some(Fate::Ends), "exit(1)");
        assert_eq!(ending("7 (x) D"), None);
    }

    #[test]
    fn a_living_program_waits_and_one_that_is_gone_is_killed() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        assert_eq!(Fate::of(pid, true), Fate::Waits);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((Fate::of(pid, true), Fate::of(pid, false)), (Fate::Killed, Fate::Waits));
    }

    #[test]
    fn a_change_is_never_interrupted_while_its_program_goes_on() {
        assert!(!Fate::Asked.ends_wait(u64::MAX, true) && Fate::Asked.ends_wait(ASKED_MS, false));
        assert!(!Fate::Asked.ends_wait(0, false) && !Fate::Waits.ends_wait(u64::MAX, false));
        assert!(!Fate::Ends.ends_wait(0, true) && Fate::Ends.ends_wait(END_MS, true));
        assert!(Fate::Killed.ends_wait(0, true));
    }
}
