//! `sealfs doctor`: looks at what sealfs needs of a machine and says what to do about what is missing.
//!
//! ```text
//! machine  /dev/fuse, io_uring, limits, memory, key, ports        from /proc, /sys, /dev
//! rdma     modules, /dev/infiniband, devices, ports, GIDs, MTU    from /sys
//! nodes    a round trip and bulk both ways with each              over the network
//! ```
//! 1. It changes nothing.
//! 2. Every finding that is not well names the next step.
//! 3. The worst verdict is the exit status, so that a prologue can decide by it.

pub(crate) mod machine;
pub(crate) mod nodes;
pub(crate) mod rdma;

use std::fs;
use std::path::{Path, PathBuf};

/// How well something is; the worst one is the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// As it should be, or of no importance here.
    Fine = 0,
    /// sealfs works, but not as well as it could.
    Degraded = 1,
    /// sealfs, or the transport that was asked for, does not work.
    Unusable = 2,
}

impl Verdict {
    /// For people and JSON.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Degraded => "degraded",
            Self::Unusable => "unusable",
        }
    }
}

/// What was found about one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The thing.
    pub(crate) what: String,
    /// How it is.
    pub(crate) verdict: Verdict,
    /// In words.
    pub(crate) text: String,
    /// What to do; empty if it is fine.
    pub(crate) next: String,
}

impl Finding {
    pub(crate) fn fine(what: &str, text: impl Into<String>) -> Self {
        let (what, text) = (what.into(), text.into());
        Self { what, verdict: Verdict::Fine, text, next: String::new() }
    }

    pub(crate) fn degraded(what: &str, text: impl Into<String>, next: impl Into<String>) -> Self {
        let (what, text, next) = (what.into(), text.into(), next.into());
        Self { what, verdict: Verdict::Degraded, text, next }
    }

    pub(crate) fn unusable(what: &str, text: impl Into<String>, next: impl Into<String>) -> Self {
        Self { verdict: Verdict::Unusable, ..Self::degraded(what, text, next) }
    }

    /// The same, but no worse than degraded: of something that can be done without.
    pub(crate) fn at_most_degraded(self) -> Self {
        Self { verdict: self.verdict.min(Verdict::Degraded), ..self }
    }
}

/// The machine as files show it; another root shows another machine, for tests.
#[derive(Clone, Debug)]
pub(crate) struct Root(pub(crate) PathBuf);

impl Root {
    /// The place of an absolute path.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// A small file's text without white space around it; `None` if it cannot be read.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }

    /// Names in a directory, sorted; none if there is no such directory.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Whether it is there.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Why it cannot be opened for reading and writing, if it cannot.
    pub(crate) fn cannot_open(&self, path: &str) -> Option<std::io::Error> {
        cannot_open(&self.path(path))
    }
}

fn cannot_open(path: &Path) -> Option<std::io::Error> {
    fs::OpenOptions::new().read(true).write(true).open(path).err()
}
