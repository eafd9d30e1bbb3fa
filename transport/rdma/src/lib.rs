//! The transport contract over RDMA: frames as messages, payload by RDMA READ and WRITE, straight between registered memory.
//!
//! ```text
//! client                                        server
//!   SEND request, names its region  ---------->
//!                                   <- RDMA READ    what is written
//!                                   RDMA WRITE ->   what is read (into the client's region)
//!                                   <---- SEND reply
//! ```
//! [`Rdma`] is a handle: one clone goes to `Calls` as its transport, one stays with the thread's loop, which hands it the
//! ring's completions. Frames queued during a turn leave in one chain of work per connection, with one doorbell.
//!
//! Layers: [`verbs`] is the trait of exactly what is needed of a device, with memory moved in and out; its providers are
//! `verbs::ibv` (the only place with `unsafe`) and [`soft`] (inside one process, with faults on demand). Above it are
//! `endpoint` and `connection`, which know what messages mean, `flow` (windows), `message` (layout) and `bounce` (memory to
//! copy through, for payload that does not lie in registered memory).
//!
//! 1. A region that was lent comes back with the reply or when the queue pair has been destroyed; in between the provider
//!    owns it.
//! 2. A serving endpoint's memory is never registered for peers, and queue pairs that it has accepted allow no access at all.
//!    A connecting endpoint's memory is open to the node that it asks, once both have proven the key.
//! 3. No message is sent without a buffer for it at the peer, so nobody's buffers run out, whoever is slow.
//! 4. A queue pair that has failed is destroyed at once and never used again.
//! 5. A connection that has not finished its handshake in time ends; a peer that is silent is probed.
//!
//! Not here: reconnecting, resending, pings (`Calls` does them).
#![forbid(unsafe_op_in_unsafe_fn)]

mod bounce;
mod connection;
mod endpoint;
mod flow;
mod message;
pub mod soft;
mod stats;
pub mod verbs;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use sealfs_proto::{Address, TransportKind};
use sealfs_ring::{Completion, Key, Op, Owner, Poll, Pool, Ring};
use sealfs_transport::{
    CloseReason, Conn, Event, Figures, Frame, Hello, Identity, Instant, Region, Transport,
};

use crate::endpoint::Endpoint;
pub use crate::endpoint::HANDSHAKES_MAX;
pub use crate::stats::{ConnectionStats, Counters, Stats};
pub use crate::verbs::Failure;
use crate::verbs::{Access, Verbs};

/// The MTU that a device's port uses, and the largest that it could use, bytes of payload. `None`: it cannot be asked.
#[must_use]
pub fn port_mtu(device: &str, port: u8) -> Option<(u32, u32)> {
    #[cfg(feature = "rdma")]
    return verbs::ibv::port_mtu(device, port);
    #[cfg(not(feature = "rdma"))]
    {
        let _ = (device, port);
        None
    }
}

/// What the verbs libraries of a machine can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Libraries {
    /// Those that are not installed.
    pub missing: Vec<&'static str>,
    /// The devices for which there is a provider.
    pub devices: Vec<String>,
}

/// What this machine's libraries can do. `None`: this program was built without RDMA.
#[must_use]
pub fn libraries() -> Option<Libraries> {
    #[cfg(feature = "rdma")]
    return Some(verbs::ibv::libraries());
    #[cfg(not(feature = "rdma"))]
    None
}

/// Bytes that an endpoint with so many connections registers with a device beside its arena, at most: messages, and memory
/// to copy through.
#[must_use]
pub const fn memory_beside_arena(connections: usize) -> usize {
    #[cfg(feature = "rdma")]
    return verbs::ibv::message_memory(connections) + 2 * bounce::LEN;
    #[cfg(not(feature = "rdma"))]
    {
        let _ = connections;
        2 * bounce::LEN
    }
}

/// What an endpoint needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The key, and which node this is.
    pub identity: Arc<Identity>,
    /// The device to use; `None`: whichever the route to the peer goes through.
    pub device: Option<String>,
    /// Connecting and the handshake take at most this long, milliseconds.
    pub handshake_ms: u64,
    /// A peer that was accepted and is silent so long is asked whether it is alive, milliseconds.
    pub keepalive_ms: u64,
}

impl Config {
    /// The defaults: the device that the route goes through, 5 s to connect, probes after 10 s of silence. A probe or any
    /// other work that is not acknowledged fails after about 10 s.
    #[must_use]
    pub const fn new(identity: Arc<Identity>) -> Self {
        Self { identity, device: None, handshake_ms: 5_000, keepalive_ms: 10_000 }
    }
}

/// One thread's RDMA endpoint; a clone is the same endpoint.
#[derive(Clone)]
pub struct Rdma(Rc<RefCell<Driven>>);

struct Driven {
    endpoint: Endpoint,
    /// `None` for providers that have nothing to wait for.
    ring: Option<Ring>,
    /// Descriptors of the provider that the ring watches, by number.
    watched: HashMap<u64, Key>,
}

/// poll(2): something can be read.
const POLLIN: u32 = 1;

impl Rdma {
    /// An endpoint on `ring` whose regions come from `pool`, which is registered with the devices: for peers if this
    /// endpoint serves nobody, for itself only if it serves a node. Its completions have the owner
    /// [`sealfs_ring::Owner::Rdma`] and go to [`Rdma::complete`]. Fails with what is missing and what to do.
    #[cfg(feature = "rdma")]
    pub fn new(ring: &Ring, pool: &Pool, config: Config) -> Result<Self, Failure> {
        let device = config.device.clone();
        let verbs = verbs::ibv::Ibv::new(device.as_deref(), ring.wake())?;
        Self::over(Box::new(verbs), Some(ring.clone()), pool, config)
    }

    /// Fails: this program was built without RDMA.
    #[cfg(not(feature = "rdma"))]
    pub fn new(_ring: &Ring, _pool: &Pool, _config: Config) -> Result<Self, Failure> {
        Err(Failure(
            "this program was built without RDMA: build it with the cargo feature `rdma`, or use --transport tcp"
                .into(),
        ))
    }

    /// An endpoint over a provider of one's own, for tests and simulations.
    pub fn over(
        mut verbs: Box<dyn Verbs>,
        ring: Option<Ring>,
        pool: &Pool,
        config: Config,
    ) -> Result<Self, Failure> {
        let serves = config.identity.serves.is_some();
        verbs.register(pool, if serves { Access::Local } else { Access::Remote })?;
        let Config { identity, handshake_ms, keepalive_ms, .. } = config;
        let sleeps = ring.as_ref().is_none_or(|ring| ring.poll() != Poll::Spin);
        let endpoint = Endpoint::new(verbs, identity, handshake_ms, keepalive_ms, sleeps);
        Ok(Self(Rc::new(RefCell::new(Driven { endpoint, ring, watched: HashMap::new() }))))
    }

    /// Accepts connections at `address` (`host:port`; port 0: one that is free) and says where. `share`: several threads of
    /// this node listen there; each gets its part of the connections.
    pub fn listen(&self, address: &str, share: bool) -> Result<SocketAddr, Failure> {
        self.0.borrow_mut().endpoint.listen(address, share)
    }

    /// Takes a completion of the ring; what comes of it is for [`Transport::poll`] to tell.
    pub fn complete(&self, completion: Completion) {
        let mut driven = self.0.borrow_mut();
        driven.watched.remove(&completion.id);
        driven.endpoint.woken(completion.id);
    }

    /// Looks for what has come and no descriptor has told of; whether there was anything, which is for [`Transport::poll`] to
    /// tell. For a thread that does not sleep. Cost: without system calls if there was nothing.
    #[must_use]
    pub fn look(&self) -> bool {
        self.0.borrow_mut().endpoint.look()
    }

    /// What the connections are made of and have done. Cost: a look at each connection.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.borrow().endpoint.stats()
    }
}

impl Driven {
    /// Has the ring watch what the provider wants watched.
    fn watch(&mut self) {
        let Some(ring) = &self.ring else { return };
        let wanted = self.endpoint.descriptors();
        for (number, file) in wanted {
            self.watched.entry(*number).or_insert_with(|| {
                let poll = Op::Poll { file: file.clone(), events: POLLIN };
                ring.submit(Owner::Rdma, *number, poll)
            });
        }
        if self.watched.len() > wanted.len() {
            for (number, key) in &self.watched {
                if !wanted.iter().any(|(known, _)| known == number) {
                    ring.cancel(*key);
                }
            }
        }
    }
}

impl Transport for Rdma {
    fn reaches(&self, address: &Address) -> bool {
        address.transport == TransportKind::Rdma
    }

    /// A host name is looked up here and now, which blocks.
    fn connect(&mut self, address: &Address, hello: Hello) -> Conn {
        self.0.borrow_mut().endpoint.connect(&address.text, hello)
    }

    fn admit(&mut self, conn: Conn, verdict: Result<(), CloseReason>) {
        self.0.borrow_mut().endpoint.admit(conn, verdict);
    }

    fn send(&mut self, conn: Conn, frame: Frame) {
        self.0.borrow_mut().endpoint.send(conn, frame);
    }

    fn pull(&mut self, conn: Conn, token: u64, region: Region) {
        self.0.borrow_mut().endpoint.pull(conn, token, region);
    }

    fn pause(&mut self, conn: Conn, paused: bool) {
        self.0.borrow_mut().endpoint.pause(conn, paused);
    }

    fn close(&mut self, conn: Conn) {
        self.0.borrow_mut().endpoint.close(conn);
    }

    fn flush(&mut self, now: Instant) {
        let mut driven = self.0.borrow_mut();
        driven.endpoint.flush(now);
        driven.watch();
    }

    fn poll(&mut self, now: Instant) -> Option<Event> {
        self.0.borrow_mut().endpoint.poll(now)
    }

    fn deadline(&self) -> Option<Instant> {
        self.0.borrow().endpoint.deadline()
    }

    fn figures(&self, conn: Conn) -> Option<Figures> {
        self.0.borrow().endpoint.figures(conn)
    }
}
