//! A device as bytes: reads, writes and syncs, with errors that name the device and the place.
//!
//! 1. After a failed write or sync everything fails: the kernel reports an error of writing back once, and forgets
//!    (fsync(2)).
//!
//! In tests it keeps a tape of what was done, so that a crash can be laid between any two steps and into each of them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::FileError;

/// An open device.
#[derive(Debug)]
pub(super) struct Medium {
    file: File,
    path: PathBuf,
    /// Why nothing can be written any more. Held during a sync, so that nobody is told of success by one that came after
    /// the failed one.
    failure: Mutex<Option<FileError>>,
    #[cfg(test)]
    tape: Mutex<Vec<Step>>,
}

/// What was done to a device.
#[cfg(test)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// These bytes were written there.
    Write(u64, Vec<u8>),
    /// What was written before is on the device.
    Sync,
}

impl Medium {
    /// Takes an open device over; `path` is for errors.
    pub(super) fn new(file: File, path: &Path) -> Self {
        Self {
            file,
            path: path.to_owned(),
            failure: Mutex::default(),
            #[cfg(test)]
            tape: Mutex::default(),
        }
    }

    /// The device's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The open device.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Fills `bytes` from byte `at` on.
    pub(super) fn read(&self, bytes: &mut [u8], at: u64) -> Result<(), FileError> {
        self.file.read_exact_at(bytes, at).map_err(|error| self.failed("read", at, &error))
    }

    /// Writes `bytes` from byte `at` on.
    pub(super) fn write(&self, bytes: &[u8], at: u64) -> Result<(), FileError> {
        #[cfg(test)]
        self.tape.lock().unwrap().push(Step::Write(at, bytes.to_vec()));
        if let Some(failure) = &*self.failure() {
            return Err(failure.clone());
        }
        let written = self.file.write_all_at(bytes, at);
        written.map_err(|error| self.failure().insert(self.failed("write to", at, &error)).clone())
    }

    /// Makes everything that was written durable.
    pub(super) fn sync(&self) -> Result<(), FileError> {
        #[cfg(test)]
        self.tape.lock().unwrap().push(Step::Sync);
        let mut failure = self.failure();
        if let Some(failure) = &*failure {
            return Err(failure.clone());
        }
        let synced = self.file.sync_data();
        synced.map_err(|error| {
            failure.insert(FileError::new("sync", self.path.display(), &error)).clone()
        })
    }

    /// What was done since the last call.
    #[cfg(test)]
    pub(super) fn take_tape(&self) -> Vec<Step> {
        std::mem::take(&mut self.tape.lock().unwrap())
    }

    fn failure(&self) -> MutexGuard<'_, Option<FileError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, what: &str, at: u64, error: &std::io::Error) -> FileError {
        FileError::new(what, format_args!("{} at byte {at}", self.path.display()), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failed_write_nothing_succeeds_any_more() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let medium = Medium::new(File::open(file.path()).unwrap(), file.path());
        let first = medium.write(b"x", 7).unwrap_err();
        assert!(first.to_string().ends_with("at byte 7: Bad file descriptor (os error 9)"));
        assert_eq!(medium.sync(), Err(first.clone()));
        assert_eq!(medium.write(b"x", 9), Err(first));
    }
}
