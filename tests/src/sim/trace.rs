//! The record of a run: a hash of all events, and the last ones as text.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use sealfs_transport::Instant;
use xxhash_rust::xxh64::Xxh64;

/// Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Trace(Rc<Inner>);

struct Inner {
    now: Cell<Instant>,
    hash: RefCell<Xxh64>,
    last: RefCell<VecDeque<String>>,
}

impl Default for Trace {
    fn default() -> Self {
        Self(Rc::new(Inner {
            now: Cell::default(),
            hash: RefCell::new(Xxh64::new(0)),
            last: RefCell::default(),
        }))
    }
}

impl Trace {
    /// The virtual time of what follows.
    pub fn set_now(&self, now: Instant) {
        self.0.now.set(now);
    }

    /// The virtual time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.0.now.get()
    }

    /// Something happened now.
    pub fn event(&self, text: &str) {
        let line = format!("{:>12} us  {text}", self.0.now.get().0 / 1_000);
        let mut hash = self.0.hash.borrow_mut();
        hash.update(&self.0.now.get().0.to_le_bytes());
        hash.update(line.as_bytes());
        let mut last = self.0.last.borrow_mut();
        last.push_back(line);
        if last.len() > LAST {
            last.pop_front();
        }
    }

    /// XXH64 of all events and their times.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.0.hash.borrow().digest()
    }

    /// The last events, one a line.
    #[must_use]
    pub fn last(&self) -> String {
        self.0.last.borrow().iter().map(|line| format!("{line}\n")).collect()
    }
}

impl core::fmt::Debug for Trace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Trace")
    }
}

/// Events that are kept as text.
const LAST: usize = 30;
