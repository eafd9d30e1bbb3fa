//! The core: one pinned thread's worth of shards, and the turn of its loop.

use std::rc::Rc;

use sealfs_proto::{NodeStatus, ShardId};
use sealfs_transport::{Arena, Instant, Now, Transport};

use crate::{Disk, Mail, Mailbox};

/// What a core needs of the world.
pub struct Ports {
    /// Its endpoint: it accepts clients and other nodes, and connects to nodes.
    pub transport: Box<dyn Transport>,
    /// The node's volume and this core's journal.
    pub disk: Box<dyn Disk>,
    /// To and from the node's other cores.
    pub mailbox: Box<dyn Mailbox<Mail>>,
    /// Where bulk lies.
    pub arena: Rc<dyn Arena>,
}

/// The core cannot go on: its journal failed. The shell ends the process with this text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(pub String);

/// One pinned thread's worth of shards. Made by [`crate::Recovery::finish`].
pub struct Core {}

impl Core {
    /// Takes what the ports report, decides, leaves effects in the ports (the transport is flushed). Returns when it wants to
    /// be called again even if no port reports anything; `Some(now.mono)` or earlier: at once, there is work left.
    pub fn turn(&mut self, now: Now) -> Result<Option<Instant>, Fatal> {
        let _ = now;
        unimplemented!()
    }

    /// This core's share of the node's status: `shards`, `space`, `sessions` and the counters are of this core alone.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        unimplemented!()
    }

    /// The shards that it owns, ascending.
    #[must_use]
    pub fn shards(&self) -> &[ShardId] {
        unimplemented!()
    }

    /// Everything acknowledged is in the journal and no request is being served: a good moment to end the process. The
    /// shell calls [`Core::turn`] until this holds after [`Core::stop`].
    #[must_use]
    pub fn is_idle(&self) -> bool {
        unimplemented!()
    }

    /// Takes no further requests from now on (an orderly stop).
    pub fn stop(&mut self) {
        unimplemented!()
    }
}
