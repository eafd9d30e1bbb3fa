//! The transport contract over TCP: frames in a stream, payload behind its frame, all I/O by the thread's ring.
//!
//! ```text
//! on the wire   | header 64 | body | payload | header 64 | body | header ...
//! ```
//! Of a request of kind `Request` the payload follows at once and waits in the socket until it is pulled; of a reply it
//! lands in the region that the request has lent. Payload that is still in the socket is received straight into its
//! region; the part that came along with a header is copied once (`sealfs_transport::copy_payload` counts it).
//!
//! [`Tcp`] is a handle: one clone goes to `Calls` as its transport, one stays with the thread's loop, which hands it the
//! ring's completions. Frames queued during a turn leave in one send per connection.
//!
//! 1. One receive and one send of a connection are in flight at most, and the connection is not forgotten before both are
//!    back: `Closed` means that the kernel holds none of its memory.
//! 2. Nothing is read ahead of what may be handled: not while a payload waits to be pulled, while the connection is paused,
//!    or while it is at its limits (`CREDITS` calls, `BULK_CREDIT` bytes of replies). What the peer sends meanwhile waits in
//!    its own memory.
//! 3. Wrong bytes end their connection and touch nothing else.
//! 4. A connection that has not finished its handshake in time ends; at most [`HANDSHAKES_MAX`] are accepted ahead of
//!    theirs.
//!
//! Since a waiting payload holds up what is behind it, a server pulls or answers a connection's requests in finite time
//! whatever else that connection has to say. Answering without a pull drops the payload.
//! Not here: reconnecting, resending, pings (`Calls` does them).
#![forbid(unsafe_code)]

mod connection;
mod endpoint;
mod inbox;
mod outbox;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sealfs_proto::{Address, TransportKind};
use sealfs_ring::{Completion, Ring, Timeouts};
use sealfs_transport::{
    CloseReason, Conn, Event, Figures, Frame, Hello, Identity, Instant, Region, Transport,
};

use crate::endpoint::Endpoint;
pub use crate::endpoint::HANDSHAKES_MAX;

/// What an endpoint needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The key, and which node this is.
    pub identity: Arc<Identity>,
    /// When a silent peer counts as gone.
    pub timeouts: Timeouts,
    /// Connecting and the handshake take at most this long, milliseconds.
    pub handshake_ms: u64,
}

impl Config {
    /// The defaults: probes after 10 s of silence; gone after 30 s without an acknowledgement, or without taking anything
    /// while its window is closed; 5 s to connect (the first SYN and two retries).
    #[must_use]
    pub fn new(identity: Arc<Identity>) -> Self {
        let timeouts = Timeouts {
            keepalive: Duration::from_secs(10),
            unacknowledged: Duration::from_secs(30),
        };
        Self { identity, timeouts, handshake_ms: 5_000 }
    }
}

/// One thread's TCP endpoint; a clone is the same endpoint.
#[derive(Clone)]
pub struct Tcp(Rc<RefCell<Endpoint>>);

impl Tcp {
    /// An endpoint on `ring`. Its completions have the owner [`sealfs_ring::Owner::Tcp`] and go to [`Tcp::complete`].
    #[must_use]
    pub fn new(ring: &Ring, config: Config) -> Self {
        Self(Rc::new(RefCell::new(Endpoint::new(ring.clone(), config))))
    }

    /// Accepts connections at `address` (`host:port`; port 0: one that is free) and says where. `share`: several threads of
    /// this node listen there, each for itself.
    pub fn listen(&self, address: &str, share: bool) -> io::Result<SocketAddr> {
        self.0.borrow_mut().listen(address, share)
    }

    /// Takes a completion of the ring; what comes of it is for [`Transport::poll`] to tell.
    pub fn complete(&self, completion: Completion) {
        self.0.borrow_mut().complete(completion);
    }
}

impl Transport for Tcp {
    fn reaches(&self, address: &Address) -> bool {
        address.transport == TransportKind::Tcp
    }

    /// A host name is looked up here and now, which blocks; the answer is kept until connecting to it fails.
    fn connect(&mut self, address: &Address, hello: Hello) -> Conn {
        self.0.borrow_mut().connect(&address.text, hello)
    }

    fn admit(&mut self, conn: Conn, verdict: Result<(), CloseReason>) {
        self.0.borrow_mut().admit(conn, verdict);
    }

    fn send(&mut self, conn: Conn, frame: Frame) {
        self.0.borrow_mut().send(conn, frame);
    }

    fn pull(&mut self, conn: Conn, token: u64, region: Region) {
        self.0.borrow_mut().pull(conn, token, region);
    }

    fn pause(&mut self, conn: Conn, paused: bool) {
        self.0.borrow_mut().pause(conn, paused);
    }

    fn close(&mut self, conn: Conn) {
        self.0.borrow_mut().close(conn);
    }

    fn flush(&mut self, now: Instant) {
        self.0.borrow_mut().flush(now);
    }

    fn poll(&mut self, now: Instant) -> Option<Event> {
        self.0.borrow_mut().poll(now)
    }

    fn deadline(&self) -> Option<Instant> {
        self.0.borrow().deadline()
    }

    fn figures(&self, conn: Conn) -> Option<Figures> {
        self.0.borrow().figures(conn)
    }
}
