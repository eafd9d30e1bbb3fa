//! The IO500: the official benchmark run and judged, its phases with workers of our own, and results as a page.
//!
//! Knows paths, never what file system they belong to: what it is told about a cluster it writes down.
//!
//! - [`own`]: the phases with our own worker processes, no MPI, no official score.
//! - [`official`]: the official program, with MPI.
//! - [`archive`]: a directory of runs and their page.
#![forbid(unsafe_code)]

pub mod archive;
pub mod official;
pub mod own;
mod page;
mod phase;
mod record;
mod score;

use std::path::{Path, PathBuf};

pub use phase::{Group, Phase};
pub use record::{Kind, Outcome, Record, System, now_unix, time_name};
pub use score::Score;

/// Why something of the IO500 could not be done; its text is for a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or a program.
    #[error("{what} {path}: {source}", path = path.display())]
    Io {
        /// What could not be done.
        what: String,
        /// To what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What was asked for cannot be.
    #[error("{0}")]
    Plan(String),
    /// A worker process failed.
    #[error("worker {rank}: {reason}")]
    Worker {
        /// Which one.
        rank: usize,
        /// What it said, or how it ended.
        reason: String,
    },
    /// Somebody ended the run.
    #[error("interrupted")]
    Interrupted,
    /// Nobody listens to what is said of a run.
    #[error("ended, for what is said of it cannot be written: {0}")]
    Unheard(std::io::Error),
    /// find found something else than what was written.
    #[error(
        "find: {matches} files are newer than the timestamp, 3901 bytes long and named *01*, instead of {expected}: \
         sizes or times are not exact, or the nodes' clocks differ"
    )]
    Found {
        /// Found.
        matches: u64,
        /// Written.
        expected: u64,
    },
    /// A file that we keep has not what we wrote.
    #[error("{path}: {cause}", path = path.display())]
    Bad {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

impl Error {
    fn at(what: &str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { what: what.into(), path: path.as_ref().into(), source }
    }
}
