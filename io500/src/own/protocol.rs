//! What the conductor and its workers say to each other: one JSON object per line, over the worker's stdin and stdout.
//!
//!     conductor                       worker
//!     setup           ->
//!     prepare         ->              makes directories, fills buffers
//!                     <-  ready
//!     go              ->              the clock runs
//!                     <-  reached     (only with a stonewall: as many operations in the time)
//!     up_to           ->              (goes on to the largest count of all)
//!                     <-  done
//!     list            ->              (find: one directory)
//!                     <-  listed
//!
//! A worker whose stdin ends, ends; a worker that fails says `failed` and ends.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::phase::Phase;

/// To a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    Setup(Setup),
    Prepare(Assignment),
    Go,
    UpTo(u64),
    List(Search),
}

/// From a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Ready,
    Reached(u64),
    Done,
    Listed(Listing),
    Failed(String),
}

/// What a worker is told once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    /// The run's directory through this worker's mount.
    pub(super) root: PathBuf,
    /// Which worker it is, from 0.
    pub(super) rank: u64,
    /// Of how many.
    pub(super) workers: u64,
    /// What the bytes follow from.
    pub(super) seed: u64,
    /// Bytes of a transfer of ior-easy.
    pub(super) transfer: u64,
}

/// A worker's part of a phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Assignment {
    pub(super) phase: Phase,
    /// The worker whose files it works on.
    pub(super) owner: u64,
    /// Exactly so many operations; else as many as the stonewall lets.
    pub(super) count: Option<u64>,
    /// Time after which no operation begins, unless another worker has done more.
    pub(super) stonewall_ms: u64,
    /// At most so many operations.
    pub(super) limit: u64,
    /// Transfers in each file of ior-easy.
    pub(super) easy_transfers: u64,
}

/// One directory to look through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Search {
    /// Relative to the root.
    pub(super) directory: PathBuf,
    /// Modification time that matches are newer than: seconds and nanoseconds.
    pub(super) newer_than: (i64, i64),
}

/// What was found in it.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listing {
    /// Directories in it, relative to the root.
    pub(super) directories: Vec<PathBuf>,
    /// Everything else in it.
    pub(super) files: u64,
    /// Files among them that match.
    pub(super) matches: u64,
}
