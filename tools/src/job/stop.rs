//! Ends what a node does for the others when it is of no use any more: another node has failed, or the time is over.
//!
//! Whatever may wait for a node that does not answer (mounting, the first words to a mount, copying) is a process of its own,
//! for a process can be ended and a thread cannot.

use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Pulled once, by one thread, for the children that others wait for.
pub(super) struct Stop(OwnedFd);

impl Stop {
    pub(super) fn new() -> Result<Self, String> {
        let made = eventfd(0, EventfdFlags::CLOEXEC);
        Ok(Self(made.map_err(|error| format!("no eventfd: {error}"))?))
    }

    /// From here on no child is waited for.
    pub(super) fn pull(&self) {
        // It holds a number that cannot overflow here.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Waits for the end of `child`, but not beyond `until`, and not when this is pulled: it is killed then, and the error says
    /// which.
    pub(super) fn wait(&self, child: &mut Child, until: Instant) -> Result<ExitStatus, String> {
        let told = |error: Errno| error.to_string();
        let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).map_err(told)?;
        let mut waits = [PollFd::new(&process, PollFlags::IN), PollFd::new(&self.0, PollFlags::IN)];
        let is_late = !ready(&mut waits, until).map_err(told)?;
        if waits[0].revents().is_empty() {
            child.kill().map_err(|error| error.to_string())?;
            // The kernel may wait for somebody before it ends a process; it is left behind then.
            let mut end = [PollFd::new(&process, PollFlags::IN)];
            if ready(&mut end, Instant::now() + KILL_PATIENCE).map_err(told)? {
                let _ = child.wait();
            }
            let why = if is_late { "the time is over" } else { "another node has failed" };
            return Err(why.into());
        }
        child.wait().map_err(|error| error.to_string())
    }
}

/// Whether one of them is ready before it is `until`.
fn ready(on: &mut [PollFd<'_>], until: Instant) -> Result<bool, Errno> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(on, Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What the kernel may take to end a process.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sleep(seconds: &str) -> Child {
        Command::new("sleep").arg(seconds).spawn().unwrap()
    }

    #[test]
    fn a_child_is_waited_for_until_its_time_is_over_or_nobody_wants_it_any_more() {
        let far = Instant::now() + Duration::from_secs(600);
        let stop = Stop::new().unwrap();
        assert!(stop.wait(&mut sleep("0"), far).unwrap().success());
        assert_eq!(stop.wait(&mut sleep("1000"), Instant::now()), Err("the time is over".into()));
        stop.pull();
        let mut child = sleep("1000");
        assert_eq!(stop.wait(&mut child, far), Err("another node has failed".into()));
        assert_eq!(child.wait().unwrap().code(), None, "it was killed");
    }
}
