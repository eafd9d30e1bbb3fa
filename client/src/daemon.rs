//! Going to the background without losing the error text.

use std::path::Path;

use crate::MountError;

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
pub struct Started(());

impl Started {
    /// Tells the parent that the mount is ready, or why it failed.
    pub fn report(self, result: Result<(), &str>) {
        let _ = result;
        unimplemented!()
    }
}

/// Forks, detaches from the terminal (setsid), and sends stdout and stderr to `log` (appended; /dev/null if `None`) once
/// [`Started::report`] has been called. Must be called before the process has a second thread.
pub fn daemonize(log: Option<&Path>) -> Result<Forked, MountError> {
    let _ = log;
    unimplemented!()
}
