//! Requests paired with replies over connections that come and go.

mod ask;

pub use ask::{Answer, Ask, Call, CallError, Me, Options, PeerStatus};

use std::cell::RefCell;
use std::rc::Rc;

use sealfs_proto::{Address, Claim, ClusterMap, NodeId, Status};

use crate::{CloseReason, Conn, Event, Instant, Region, Slice, Transport};

/// One thread's endpoint: its own calls to nodes, and what others ask of it. Cheap to clone; clones are the same endpoint.
#[derive(Clone)]
pub struct Calls(Rc<RefCell<Box<dyn Transport>>>);

impl Calls {
    /// Calls over `transport`.
    #[must_use]
    pub fn new(transport: Box<dyn Transport>, me: Me, options: Options) -> Self {
        let _ = (me, options);
        Self(Rc::new(RefCell::new(transport)))
    }

    /// Uses `map`: its cluster and stamp for handshakes, its nodes' addresses. What it does not name any more is left
    /// alone until its calls are done.
    pub fn set_map(&self, map: &ClusterMap) {
        let _ = map;
        unimplemented!()
    }

    /// Where `node` listens, best first. Nothing connects before the first call.
    pub fn set_peer(&self, node: NodeId, addresses: Vec<Address>) {
        let _ = (node, addresses);
        unimplemented!()
    }

    /// Asks whichever node listens at one of `addresses` for the cluster map, and uses it (as [`Calls::set_map`] does). For
    /// a client that knows addresses and the key only; fails when all have refused, or after the timeout.
    pub async fn join(&self, addresses: Vec<Address>) -> Result<ClusterMap, CallError> {
        let _ = addresses;
        unimplemented!()
    }

    /// Asks `node`. The call is queued at once, in this order, and goes on even if the future is dropped (then nobody
    /// learns the answer).
    pub fn call(&self, node: NodeId, ask: Ask) -> Call {
        let _ = (node, ask);
        unimplemented!()
    }

    /// What is to be claimed after a reconnect: called with the node, and whether the session is a new one (the old one's
    /// lease has ended: locks and unnamed files are lost). It is called with no borrow held: it may call, too.
    pub fn set_claims(&self, claims: impl Fn(NodeId, bool) -> Vec<Claim> + 'static) {
        let _ = claims;
        unimplemented!()
    }

    /// Takes what the transport reports, wakes whoever waits, resends, reconnects, and flushes. Returns when it wants to be
    /// called again even if nothing arrives.
    pub fn turn(&self, now: Instant) -> Option<Instant> {
        let _ = now;
        unimplemented!()
    }

    /// The next event of a connection that was accepted here: `Proven`, `Opened`, `Request`, `Pulled` or `Closed`.
    #[must_use]
    pub fn next_served(&self) -> Option<Event> {
        unimplemented!()
    }

    /// Hands everything queued to the network: for a server that has replied after [`Calls::turn`].
    pub fn flush(&self, now: Instant) {
        let _ = now;
        unimplemented!()
    }

    /// Answers [`Event::Proven`], see [`Transport::admit`].
    pub fn admit(&self, conn: Conn, verdict: Result<(), CloseReason>) {
        self.0.borrow_mut().admit(conn, verdict);
    }

    /// Replies to request `token`: `body` is an encoded [`sealfs_proto::Reply`] (empty unless `status` is `Ok`), `bulk` goes
    /// into the region that the request brought along.
    pub fn reply(&self, conn: Conn, token: u64, status: Status, body: Vec<u8>, bulk: Vec<Slice>) {
        let _ = (conn, token, status, body, bulk);
        unimplemented!()
    }

    /// Asks for a request's bulk, see [`Transport::pull`].
    pub fn pull(&self, conn: Conn, token: u64, region: Region) {
        self.0.borrow_mut().pull(conn, token, region);
    }

    /// Holds an accepted connection's requests back, see [`Transport::pause`].
    pub fn pause(&self, conn: Conn, paused: bool) {
        self.0.borrow_mut().pause(conn, paused);
    }

    /// Destroys an accepted connection, see [`Transport::close`].
    pub fn close(&self, conn: Conn) {
        self.0.borrow_mut().close(conn);
    }

    /// Every peer that was named, ascending by node: for `sealfs status`.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        unimplemented!()
    }
}
