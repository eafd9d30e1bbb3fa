//! Each node's share of the memory that reads are received in: what a node that does not answer holds cannot stop reads
//! of the others.
//!
//! 1. What is held of a node is at most [`SHARE_MAX`], or one read.
//! 2. It counts until the region itself is free: a call that was given up leaves its region with the transport.
//!
//! It wakes nobody: regions may be dropped on another thread. Who waits looks again from time to time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sealfs_proto::{NodeId, limits};
use sealfs_transport::{Memory, Region};

/// The shares of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Shares(RefCell<BTreeMap<NodeId, Arc<AtomicUsize>>>);

/// So many bytes of a node's share, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    held: Arc<AtomicUsize>,
    len: usize,
}

impl Shares {
    /// The shares of one read's parts, all or none.
    pub(crate) fn take(&self, parts: &[(NodeId, usize)]) -> Option<Vec<Share>> {
        let mut wanted: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (node, len) in parts {
            *wanted.entry(*node).or_default() += len;
        }
        let mut shares = self.0.borrow_mut();
        let fits = |(node, len): (&NodeId, &usize)| {
            let held = shares.get(node).map_or(0, |held| held.load(Ordering::Relaxed));
            held == 0 || held + len <= SHARE_MAX
        };
        wanted.iter().all(fits).then(|| {
            let take = |&(node, len): &(NodeId, usize)| {
                let held = Arc::clone(shares.entry(node).or_default());
                held.fetch_add(len, Ordering::Relaxed);
                Share { held, len }
            };
            parts.iter().map(take).collect()
        })
    }
}

impl Share {
    /// `region`, which holds this share as long as it lives.
    pub(crate) fn with(self, region: Region) -> Region {
        Region::new(Held { region, _share: self })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.fetch_sub(self.len, Ordering::Relaxed);
    }
}

struct Held {
    region: Region,
    _share: Share,
}

impl Memory for Held {
    fn bytes(&self) -> &[u8] {
        self.region.bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.region.bytes_mut()
    }

    fn registered(&self) -> Option<(u16, u64)> {
        self.region.registered()
    }
}

/// Half of what may be in flight on a connection keeps a fast network busy, and several dead nodes leave something to the
/// others.
const SHARE_MAX: usize = limits::BULK_CREDIT as usize / 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_its_share_and_no_more_until_it_is_given_back() {
        let shares = Shares::default();
        let (one, two) = (NodeId(1), NodeId(2));
        let mut held = shares.take(&[(one, SHARE_MAX - 10), (two, 5)]).unwrap();
        assert!(shares.take(&[(one, 11)]).is_none());
        assert!(shares.take(&[(two, 1), (one, 6), (one, 6)]).is_none(), "all or none");
        assert!(shares.take(&[(two, SHARE_MAX - 5), (one, 10)]).is_some());
        let region = held.remove(0).with(Region::zeroed(4));
        assert!(shares.take(&[(one, 11)]).is_none(), "the region holds it");
        drop(region);
        assert!(shares.take(&[(one, SHARE_MAX + 1)]).is_some(), "a read of any size passes alone");
    }
}
