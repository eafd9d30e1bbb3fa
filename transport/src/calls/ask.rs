//! What is asked, what comes back, and what may go wrong.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use sealfs_proto::{
    ClusterId, Errno, NodeId, Reply, Request, Sequence, ShardId, TransportKind, limits,
};

use crate::tasks::Receiver;
use crate::{Bulk, Instant, MapStamp, Region};

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Me {
    /// A client's thread. All threads of a process give the same `session_seed` (64 bits from the kernel): from it each
    /// computes the same session for a node. Their sequences differ in the top 16 bits, which are the endpoint.
    Client {
        /// Which of the process's endpoints.
        endpoint: u16,
        /// What sessions are computed from.
        session_seed: u64,
    },
    /// A thread of a node.
    Node {
        /// The node.
        node: NodeId,
        /// Which of its endpoints (its core's number).
        endpoint: u16,
    },
}

/// How calls behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The cluster; all zeros until [`crate::Calls::set_map`]: whichever has the key.
    pub cluster: ClusterId,
    /// The map; `None` until [`crate::Calls::set_map`].
    pub map: Option<MapStamp>,
    /// How long a call waits for its node before it fails, milliseconds; 0: for ever.
    pub timeout_ms: u64,
    /// How long a session lives without a word, milliseconds: an idle one sends `Ping` every quarter of it.
    pub lease_ms: u64,
    /// For the jitter of back-offs.
    pub seed: u64,
    /// The time, from which on calls wait that are made before the first turn.
    pub now: Instant,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster: ClusterId::default(),
            map: None,
            timeout_ms: limits::TIMEOUT_MS,
            lease_ms: limits::LEASE_MS,
            seed: 0,
            now: Instant::default(),
        }
    }
}

/// A request and how to treat it.
#[derive(Debug)]
pub struct Ask {
    /// The shard it is for; any for requests of a node.
    pub shard: ShardId,
    /// What is asked.
    pub request: Request,
    /// Bytes to write, or room for bytes to read.
    pub bulk: Bulk,
    /// It changes something: it gets a sequence number, and is executed exactly once.
    pub change: bool,
    /// It waits for a lock, for as long as that takes: no deadline, and it does not hold the watermark back. After a
    /// reconnect it is asked again under a new sequence number.
    pub lock_wait: bool,
    /// It is never given up: no deadline, for somebody relies on its being done some time.
    pub patient: bool,
    /// It is made in the present session or not at all: it relies on a lock, and a new session has none.
    pub in_session: bool,
}

impl Ask {
    /// A request that changes nothing.
    #[must_use]
    pub const fn read(shard: ShardId, request: Request) -> Self {
        let (patient, in_session) = (false, false);
        Self {
            shard,
            request,
            bulk: Bulk::None,
            change: false,
            lock_wait: false,
            patient,
            in_session,
        }
    }

    /// A change.
    #[must_use]
    pub fn change(shard: ShardId, request: Request) -> Self {
        Self { change: true, ..Self::read(shard, request) }
    }

    /// The same with a payload.
    #[must_use]
    pub fn with_bulk(self, bulk: Bulk) -> Self {
        Self { bulk, ..self }
    }

    /// The same, waiting for a lock.
    #[must_use]
    pub fn waiting_for_lock(self) -> Self {
        Self { lock_wait: true, ..self }
    }

    /// The same, for as long as it takes.
    #[must_use]
    pub fn patiently(self) -> Self {
        Self { patient: true, ..self }
    }
}

/// A reply with status `Ok`.
#[derive(Debug)]
pub struct Answer {
    /// What the node said.
    pub reply: Reply,
    /// The region that was lent with [`Bulk::Receive`].
    pub region: Option<Region>,
    /// Bytes of it that are filled.
    pub bulk_len: u32,
}

/// Why a call failed.
#[allow(missing_docs, reason = "the variant's text describes its fields")]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The node's answer.
    #[error("{0}")]
    Errno(Errno),
    /// No answer within the timeout. Whether a change was made is not known; it will not be made any more.
    #[error("node {node} at {cause}")]
    Timeout { node: NodeId, cause: String },
    /// The session with the node has ended while the change was in flight: it is not known whether it was made, and it is
    /// never made again.
    #[error("node {node} has ended this client's session (its lease is over)")]
    SessionEnded { node: NodeId },
    /// The node was never reached, and refuses this end: trying again will not help.
    #[error("node {node} at {cause}")]
    Refused { node: NodeId, cause: String },
    /// The map has no such node, or no address of it.
    #[error("node {node} is not in the cluster map")]
    Unknown { node: NodeId },
    /// The node says that the change was answered before, yet this end has not seen the answer.
    #[error("node {node} has answered this change before and forgotten the answer")]
    Answered { node: NodeId },
    /// The node's reply is no reply.
    #[error("node {node}: {cause}")]
    Corrupt { node: NodeId, cause: String },
    /// None of the addresses could be joined.
    #[error("{0}")]
    NotJoined(String),
    /// The endpoint was dropped.
    #[error("the endpoint is gone")]
    Gone,
}

impl CallError {
    /// What the program gets if nobody can do better.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Errno(errno) => *errno,
            _ => Errno::EIO,
        }
    }
}

/// A call in flight: the future of its answer.
#[derive(Debug)]
pub struct Call {
    answer: Receiver<Result<Answer, CallError>>,
    sequence: Option<Rc<Cell<u64>>>,
}

impl Call {
    pub(super) const fn new(
        answer: Receiver<Result<Answer, CallError>>,
        sequence: Option<Rc<Cell<u64>>>,
    ) -> Self {
        Self { answer, sequence }
    }

    /// The number under which the change is known to the node at present; `None` for what changes nothing, and for a
    /// lock wait that was not sent yet. A lock wait's number changes when it is sent again.
    #[must_use]
    pub fn sequence(&self) -> Option<Sequence> {
        self.sequence.as_ref().map(|cell| Sequence(cell.get())).filter(|number| number.0 != 0)
    }
}

impl Future for Call {
    type Output = Result<Answer, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(cx).map(|told| told.unwrap_or(Err(CallError::Gone)))
    }
}

/// A node as calls to it find it; [`crate::Calls::figures`] tells more, and of all peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The node.
    pub node: NodeId,
    /// With what it is connected; `None`: not connected.
    pub connected: Option<TransportKind>,
    /// Why the last connection ended or could not be made: "127.0.0.1:7002: connection refused". `None` while it is
    /// connected.
    pub last_error: Option<String>,
    /// Connections made after the first one.
    pub reconnects: u64,
    /// Connections that could not be made or have ended by an error.
    pub failures: u64,
    /// Calls that were sent again: the node was busy, or the connection was lost.
    pub resent: u64,
    /// Calls not answered yet.
    pub in_flight: u64,
}
