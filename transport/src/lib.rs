//! The transport contract: calls with bulk, not a byte stream.
//!
//! A thread owns one [`Transport`] (its endpoint): its connections, its queue of [`Event`]s; nothing is shared. A frame
//! is a header, a small body and bulk. Bulk of a request is for the server to [`Transport::pull`]; bulk of a reply is
//! pushed into the [`Region`] that the request brought along. RDMA does both between registered memory of both ends,
//! TCP carries the bytes behind the frame.
//!
//! Above a transport, [`Calls`] pairs requests with replies, resends over reconnects, and keeps credits and deadlines.
//!
//! The end that connects sends requests, the end that accepts sends replies; nothing else ever flows.
//!
//! 1. Every token completes exactly once, also at teardown: with its reply or with the connection's end.
//! 2. Frames of one connection arrive in the order in which they were sent.
//! 3. A slow peer is bounded by credits; it cannot exhaust memory.
//! 4. A region lent to a peer comes back by its reply or when its connection is destroyed; never by time alone.
//!
//! The crate does no I/O, reads no clock and holds no `unsafe`: `mem` is a network inside one process, `faulty` decorates
//! any transport, and `suite` holds the tests that every transport must pass.
#![forbid(unsafe_code)]

mod calls;
pub mod faulty;
pub mod handshake;
mod key;
pub mod mem;
mod payload;
mod random;
mod region;
#[cfg(feature = "suite")]
pub mod suite;
pub mod tasks;

pub use calls::{Answer, Ask, Call, CallError, Calls, Me, Options, PeerStatus};
pub use handshake::{Hello, Identity, MapStamp, Serves};
pub use key::Key;
pub use payload::{
    Moved, PayloadBytes, copy_payload, count_payload, payload_bytes_copied, payload_of_process,
    payload_of_thread,
};
pub use random::Random;
pub use region::{Arena, Memory, Region, Slice};

use std::sync::Arc;

pub use sealfs_proto::Peer;
use sealfs_proto::{Address, ClusterMap, Header, Path, Time, Traffic, TransportKind};

/// A moment on the monotonic clock of whoever drives the code, nanoseconds since its own start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// The moment `ms` milliseconds later.
    #[must_use]
    pub const fn after_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Milliseconds since `earlier`, 0 if it is not earlier.
    #[must_use]
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}

/// The present, as whoever drives the code tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For deadlines.
    pub mono: Instant,
    /// For what files show.
    pub wall: Time,
}

/// A connection of one endpoint. Numbers are never reused within an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conn(pub u64);

/// A frame's payload on its way out.
#[derive(Debug, Default)]
pub enum Bulk {
    /// No payload.
    #[default]
    None,
    /// These bytes, one behind the other: of a request, for the peer to pull; of a reply, into the requester's region.
    Send(Vec<Slice>),
    /// Room for the reply's payload, up to the region's length.
    Receive(Region),
}

/// A frame on its way out. `header.body_len` and `header.bulk_len` are filled in by the transport.
#[derive(Debug)]
pub struct Frame {
    /// Kind, status, token and the rest.
    pub header: Header,
    /// An encoded request or reply.
    pub body: Vec<u8>,
    /// The payload.
    pub bulk: Bulk,
}

/// Why a connection is no more. A text begins with the peer's address: "127.0.0.1:7002: connection refused".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// This end closed it.
    #[error("closed here")]
    Local,
    /// The peer is gone, unreachable or silent.
    #[error("{0}")]
    Gone(String),
    /// The handshake failed: wrong key, other cluster, no common version. Trying again will not help.
    #[error("{0}")]
    Refused(String),
    /// The peer's lease ended: the node has no such session any more.
    #[error("the node has ended this session")]
    NoSession,
    /// The peer sent bytes that are no frames.
    #[error("{0}")]
    Corrupt(String),
}

/// What an endpoint reports.
#[allow(missing_docs, reason = "the variant's text describes its fields")]
#[derive(Debug)]
pub enum Event {
    /// Somebody has connected here and has proven the key; the cluster and the map are this node's. Nothing more is read
    /// from the connection until [`Transport::admit`].
    Proven { conn: Conn, hello: Hello },
    /// A connection is usable: one that was admitted, or the one that [`Transport::connect`] began (then `peer` is the
    /// node that answered, with endpoint 0, and `map` is there if the node's map is not the one that the hello named).
    Opened { conn: Conn, peer: Peer, kind: TransportKind, map: Option<Arc<ClusterMap>> },
    /// A request has arrived; `header.bulk_len` bytes are waiting to be pulled if `header.kind` is `Request`.
    Request { conn: Conn, header: Header, body: Vec<u8> },
    /// The bulk of request `token` is in the region, from its start, `len` bytes.
    Pulled { conn: Conn, token: u64, region: Region, len: u32 },
    /// The reply to `header.token`. `region` is the one lent with the request; `header.bulk_len` bytes of it are filled.
    Reply { conn: Conn, header: Header, body: Vec<u8>, region: Option<Region> },
    /// The connection is destroyed (one that was accepted and has not proven the key may end without a word before). Regions
    /// lent to it have come back: `lent` holds those of requests in flight, by
    /// token. Requests that were being pulled are gone. `traffic` is all that it has moved. Nothing of this connection
    /// follows.
    Closed { conn: Conn, why: CloseReason, lent: Vec<(u64, Region)>, traffic: Traffic },
}

/// What a connection is and does at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// The peer, as texts name it.
    pub address: String,
    /// By which way.
    pub path: Path,
    /// Calls either way that are not answered.
    pub in_flight: u64,
    /// What it has moved so far.
    pub traffic: Traffic,
}

/// One thread's endpoint.
pub trait Transport {
    /// Whether it can connect to such an address at all. [`Calls`] tries the others only if there is no such one.
    fn reaches(&self, address: &Address) -> bool;
    /// Begins to connect; ends in `Opened` or `Closed`. Cost: two round trips.
    fn connect(&mut self, address: &Address, hello: Hello) -> Conn;
    /// Answers [`Event::Proven`]: `Ok` ends in `Opened`; an error ([`CloseReason::NoSession`] or
    /// [`CloseReason::Refused`]) is told to the peer and ends in `Closed`. The caller admits an endpoint only after it has
    /// dropped or finished everything that came over that endpoint's earlier connection.
    fn admit(&mut self, conn: Conn, verdict: Result<(), CloseReason>);
    /// Queues a frame; it leaves at the next [`Transport::flush`]. On a connection that is not open it is dropped: a region
    /// that it brought along comes back with `Closed`, also if the connection has died already and only its end was not
    /// polled yet; it is freed if `Closed` has been polled.
    fn send(&mut self, conn: Conn, frame: Frame);
    /// Asks for the bulk of the request `token`; ends in `Pulled` or `Closed`. `region` has room for all of it.
    fn pull(&mut self, conn: Conn, token: u64, region: Region);
    /// Takes no further requests from this connection while `paused` (backpressure). Unasked, a transport does the same
    /// while [`sealfs_proto::limits::CREDITS`] requests of the connection are unanswered.
    fn pause(&mut self, conn: Conn, paused: bool);
    /// Destroys the connection; ends in `Closed` with [`CloseReason::Local`].
    fn close(&mut self, conn: Conn);
    /// Hands everything queued to the network, batched.
    fn flush(&mut self, now: Instant);
    /// The next event, if there is one.
    fn poll(&mut self, now: Instant) -> Option<Event>;
    /// When this transport wants to be polled even if nothing arrives (keepalive, connect deadline).
    fn deadline(&self) -> Option<Instant>;
    /// What a connection is and does; `None` if it is not open. Cost: a system call or two with RDMA.
    fn figures(&self, conn: Conn) -> Option<Figures>;
}
