//! Signals: who asks a mount's process to end gets a clean unmount.
//!
//! 1. The thread of a mount takes no signals: its system calls are not interrupted.
//! 2. SIGTERM, SIGINT and SIGHUP are taken by one thread that waits for nothing else.

use std::mem::MaybeUninit;

/// Keeps all signals away from the calling thread and the threads that it starts.
pub(crate) fn block_all() {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset fills the set that it is given.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: filled above.
    let set = unsafe { set.assume_init() };
    block(&set);
}

/// Keeps the signals that end a process for [`wait_for_end`].
pub(crate) fn keep_ends() {
    block(&ends());
}

/// Waits until the process is asked to end; the signal's number. Only after [`keep_ends`].
pub(crate) fn wait_for_end() -> i32 {
    let (set, mut signal) = (ends(), 0);
    // SAFETY: both live during the call.
    unsafe { libc::sigwait(&raw const set, &raw mut signal) };
    signal
}

fn ends() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset fills the set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: the set was made above, the numbers are signals'.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: filled by sigemptyset.
    unsafe { set.assume_init() }
}

fn block(set: &libc::sigset_t) {
    // SAFETY: `set` lives during the call; where the old set would go may be null.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set, std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_was_kept_is_waited_for() {
        std::thread::spawn(|| {
            block_all();
            // SAFETY: plain system calls; the signal is blocked in the only thread that it is for.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) };
            assert_eq!(wait_for_end(), libc::SIGTERM);
        })
        .join()
        .unwrap();
    }
}
