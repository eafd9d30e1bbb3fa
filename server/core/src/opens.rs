//! Which sessions hold which inodes of this core open: what keeps an unlinked file alive until its last close.
//!
//! 1. A count is never 0: an inode that nobody holds open costs nothing.
//! 2. Both maps name the same pairs.
//!
//! It is memory only: after a restart the sessions claim what they hold. A claim may be sent twice, and opens that were in
//! flight at the stop come again beside it: so what is claimed is set, and what is opened is added.

use std::collections::{BTreeMap, BTreeSet};

use sealfs_proto::{Ino, SessionId};

#[derive(Debug, Default)]
struct Count {
    opened: u32,
    claimed: u32,
}

/// The opens of a core's inodes.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    counts: BTreeMap<(Ino, SessionId), Count>,
    inodes: BTreeMap<SessionId, BTreeSet<Ino>>,
}

impl Opens {
    /// One more open.
    pub(crate) fn open(&mut self, ino: Ino, session: SessionId) {
        let count = self.counts.entry((ino, session)).or_default();
        count.opened = count.opened.saturating_add(1);
        self.inodes.entry(session).or_default().insert(ino);
    }

    /// Gives `opens` back; whether nobody holds the inode open any more. More than there are is as many as there are: the
    /// session may have lost some with a lease.
    pub(crate) fn close(&mut self, ino: Ino, session: SessionId, opens: u32) -> bool {
        if let Some(count) = self.counts.get_mut(&(ino, session)) {
            let more = opens.saturating_sub(count.opened);
            count.opened = count.opened.saturating_sub(opens);
            count.claimed = count.claimed.saturating_sub(more);
            if count.opened == 0 && count.claimed == 0 {
                self.forget(ino, session);
            }
        }
        !self.is_open(ino)
    }

    /// What the session says that it held before a restart, at least one.
    pub(crate) fn claim(&mut self, ino: Ino, session: SessionId, opens: u32) {
        if opens > 0 {
            self.counts.entry((ino, session)).or_default().claimed = opens;
            self.inodes.entry(session).or_default().insert(ino);
        }
    }

    /// Files that are open, each as often as there are sessions that hold it.
    pub(crate) fn count(&self) -> usize {
        self.counts.len()
    }

    /// Whether any session holds the inode open.
    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        let all = (ino, SessionId(0))..=(ino, SessionId(u64::MAX));
        self.counts.range(all).next().is_some()
    }

    /// The session is no more; the inodes that nobody holds open any more because of it.
    pub(crate) fn end_session(&mut self, session: SessionId) -> Vec<Ino> {
        let inodes = self.inodes.remove(&session).unwrap_or_default();
        for &ino in &inodes {
            self.counts.remove(&(ino, session));
        }
        inodes.into_iter().filter(|&ino| !self.is_open(ino)).collect()
    }

    fn forget(&mut self, ino: Ino, session: SessionId) {
        self.counts.remove(&(ino, session));
        if let Some(inodes) = self.inodes.get_mut(&session) {
            inodes.remove(&ino);
            if inodes.is_empty() {
                self.inodes.remove(&session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(u64::MAX);

    #[test]
    fn the_last_close_of_any_session_is_told() {
        let mut opens = Opens::default();
        opens.open(Ino(7), A);
        opens.open(Ino(7), A);
        opens.open(Ino(7), B);
        assert!(!opens.close(Ino(7), A, 2));
        assert!(!opens.close(Ino(7), A, 1), "a close too many changes nothing");
        assert!(opens.close(Ino(7), B, 1) && !opens.is_open(Ino(7)));
        assert!(opens.counts.is_empty() && opens.inodes.is_empty());
    }

    #[test]
    fn a_session_that_ends_gives_back_what_only_it_held() {
        let mut opens = Opens::default();
        opens.claim(Ino(7), A, 3);
        opens.claim(Ino(8), A, 1);
        opens.open(Ino(7), A);
        opens.claim(Ino(7), A, 3);
        assert!(!opens.close(Ino(7), A, 3), "three claimed, one opened, three closed");
        opens.open(Ino(8), B);
        assert_eq!(opens.end_session(A), [Ino(7)]);
        assert_eq!(opens.end_session(A), []);
        assert!(opens.is_open(Ino(8)));
    }
}
