//! What connects the endpoints of a cluster: the network in memory, or another one that a test brings.

use std::rc::Rc;
use std::sync::Arc;

use sealfs_proto::{Address, TransportKind};
use sealfs_transport::mem::MemNetwork;
use sealfs_transport::{Arena, Identity, Instant, Region, Transport};

/// Endpoints have names; a name that has crashed may come again.
pub(crate) trait Wires {
    /// Where the endpoint of this name listens, if it is a node's.
    fn address(&self, name: &str) -> Address;
    /// A new endpoint, and the memory that it serves best.
    fn endpoint(&self, name: &str, identity: Arc<Identity>) -> (Box<dyn Transport>, Rc<dyn Arena>);
    /// The endpoint is about to die, without a word of its own.
    fn crash(&self, now: Instant, name: &str);
    /// Neither hears the other any more.
    fn cut(&self, one: &str, other: &str);
    fn heal(&self, now: Instant, one: &str, other: &str);
    /// Moves what is under way; when there is more to move, even if nobody sends anything.
    fn pass(&self, now: Instant) -> Option<Instant>;
}

/// Memory without end.
pub(crate) struct Heap;

impl Arena for Heap {
    fn take(&self, len: usize) -> Option<Region> {
        Some(Region::zeroed(len))
    }
}

impl Wires for MemNetwork {
    fn address(&self, name: &str) -> Address {
        Address { transport: TransportKind::Tcp, text: name.into() }
    }

    fn endpoint(&self, name: &str, identity: Arc<Identity>) -> (Box<dyn Transport>, Rc<dyn Arena>) {
        (Box::new(Self::endpoint(self, name, identity)), Rc::new(Heap))
    }

    fn crash(&self, now: Instant, name: &str) {
        Self::crash(self, now, name);
    }

    fn cut(&self, one: &str, other: &str) {
        Self::cut(self, one, other);
    }

    fn heal(&self, now: Instant, one: &str, other: &str) {
        Self::heal(self, now, one, other);
    }

    fn pass(&self, _now: Instant) -> Option<Instant> {
        self.next_arrival()
    }
}
