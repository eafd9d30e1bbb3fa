//! Requests paired with replies, over connections that come and go.
//!
//! [`Calls`] is one thread's endpoint. For its own calls it connects on demand, keeps the credits, resends after a
//! reconnect, and gives up at the deadline. What others ask over connections that were accepted is handed on by
//! [`Calls::next_served`].
//!
//! ```text
//! a call:   waiting --credit--> sent --reply--> answered
//!              ^  ^ Busy, StaleMap'|
//!              '--- connection lost'        at the deadline: failed; sent ones are kept until reply or closure
//! a link:   Idle -> Connecting -> Claiming -> Open -> Closing -> BackOff -> Connecting -> ...
//! ```
//!
//! 1. A change keeps its sequence number until it is answered; it is sent again only over a new connection, which the node
//!    admits only when nothing of the old one can run any more. So it is executed at most once.
//! 2. The watermark sent to a node is the lowest number of a change that is in flight to it, lock waits left out. A
//!    change that was given up counts until its reply or the end of its connection, then never again.
//! 3. After a reconnect claims go first; calls follow in the order in which they were made.
//! 4. At most [`sealfs_proto::limits::CREDITS`] calls and [`sealfs_proto::limits::BULK_CREDIT`] bytes are in flight per
//!    connection; lock waits take at most half of the calls.
//! 5. A region that was lent is touched again only when the transport has given it back.
//! 6. What happens to one node's connection never delays calls to another.

mod ask;
mod guests;
mod inner;
mod link;
#[cfg(test)]
mod tests;

pub use ask::{Answer, Ask, Call, CallError, Me, Options, PeerStatus};

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use sealfs_proto::{
    Address, Claim, ClusterMap, Header, HeaderKind, NodeId, Peer, PeerFigures, Sequence, Status,
};

use crate::tasks::{Abandoned, Either, Receiver, Timers, oneshot, race};
use crate::{Bulk, CloseReason, Conn, Event, Frame, Instant, Region, Slice, Transport};
use inner::Inner;

/// One thread's endpoint. Cheap to clone; clones are the same endpoint.
#[derive(Clone)]
pub struct Calls(Rc<Shared>);

struct Shared {
    inner: RefCell<Inner>,
    timers: Timers,
    claims: RefCell<Option<Rc<ClaimsOf>>>,
}

type ClaimsOf = dyn Fn(NodeId, bool) -> Vec<Claim>;

impl Calls {
    /// Calls over `transport`.
    #[must_use]
    pub fn new(transport: Box<dyn Transport>, me: Me, options: Options) -> Self {
        Self(Rc::new(Shared {
            inner: RefCell::new(Inner::new(transport, me, options)),
            timers: Timers::new(),
            claims: RefCell::new(None),
        }))
    }

    /// Uses `map`: its cluster and stamp for handshakes, its nodes' addresses. Nodes that it does not name any more keep
    /// the addresses that they had.
    pub fn set_map(&self, map: &ClusterMap) {
        self.0.inner.borrow_mut().set_map(&Arc::new(map.clone()));
    }

    /// The newest map that was set, or that a node has sent.
    #[must_use]
    pub fn map(&self) -> Option<Arc<ClusterMap>> {
        self.0.inner.borrow().map.clone()
    }

    /// Where `node` listens, best first. Nothing connects before the first call.
    pub fn set_peer(&self, node: NodeId, addresses: Vec<Address>) {
        self.0.inner.borrow_mut().set_peer(node, addresses);
    }

    /// Asks whichever node listens at one of `addresses` for the cluster map, and uses it (as [`Calls::set_map`] does): for
    /// a client that knows addresses and the key only. Fails when all have refused, or after the timeout.
    pub async fn join(&self, addresses: Vec<Address>) -> Result<ClusterMap, CallError> {
        let (deadline, addresses) = {
            let inner = self.0.inner.borrow();
            (inner.deadline(), inner.reachable(addresses))
        };
        loop {
            let (mut causes, mut all_refused) = (Vec::new(), true);
            let (mut asked, mut rest) = (Vec::new(), addresses.iter());
            while rest.len() > 0 || !asked.is_empty() {
                if let Some(address) = rest.next() {
                    let (sender, outcome) = oneshot();
                    self.0.inner.borrow_mut().join(address, sender);
                    asked.push(outcome);
                }
                // Who is slow keeps nobody from asking the next one.
                let patience = match rest.len() {
                    0 => JOIN_LAST_MS,
                    _ => JOIN_NEXT_MS,
                };
                let patience = self.0.inner.borrow().now.after_ms(patience);
                let patience = self.0.timers.sleep_until(patience);
                match race(first_of(&mut asked), patience).await {
                    Either::First(Ok(Ok(map))) => return Ok(ClusterMap::clone(&map)),
                    Either::First(Ok(Err(why))) => {
                        all_refused &= matches!(why, CloseReason::Refused(_));
                        causes.push(why.to_string());
                    }
                    Either::First(Err(_)) => return Err(CallError::Gone),
                    Either::Second(()) => {}
                }
            }
            let now = self.0.inner.borrow().now;
            if all_refused || deadline.is_some_and(|deadline| deadline <= now) {
                return Err(CallError::NotJoined(causes.join("; ")));
            }
            self.0.timers.sleep_until(now.after_ms(JOIN_AGAIN_MS)).await;
        }
    }

    /// Asks `node`. The call is queued at once, in this order, and goes on even if the future is dropped (then nobody
    /// learns the answer, and a read is not sent again). It leaves with the next [`Calls::turn`] or [`Calls::flush`].
    pub fn call(&self, node: NodeId, ask: Ask) -> Call {
        self.0.inner.borrow_mut().call(node, ask)
    }

    /// What is to be claimed after a reconnect: asked with the node, and whether the session is a new one (the old one's
    /// lease has ended: its locks and unnamed files are lost). It is asked with no borrow held: it may call, too. It must
    /// not hold this `Calls` strongly, or neither is ever freed.
    pub fn set_claims(&self, claims: impl Fn(NodeId, bool) -> Vec<Claim> + 'static) {
        *self.0.claims.borrow_mut() = Some(Rc::new(claims));
        self.0.inner.borrow_mut().has_claims = true;
    }

    /// Whether the session with `node` lives for as long as a call that is made now may wait to be sent. If not, the node
    /// should be asked (`Ping`) before anything is done that relies on a lock: it may have given that to another.
    #[must_use]
    pub fn is_session_sure(&self, node: NodeId) -> bool {
        self.0.inner.borrow().is_session_sure(node)
    }

    /// Takes what the transport reports, wakes whoever waits, then does what [`Calls::flush`] does.
    pub fn turn(&self, now: Instant) -> Option<Instant> {
        self.0.inner.borrow_mut().receive(now);
        self.0.timers.fire(now);
        self.claim();
        self.flush(now)
    }

    /// Sends what is queued: to be called after tasks have run and replies were given, at the end of an owner's turn.
    /// Returns when it wants its turn even if nothing arrives.
    pub fn flush(&self, now: Instant) -> Option<Instant> {
        let deadline = self.0.inner.borrow_mut().flush(now);
        deadline.into_iter().chain(self.0.timers.deadline()).min()
    }

    /// The next event of a connection that was accepted here: `Proven`, `Opened`, `Request`, `Pulled` or `Closed`.
    #[must_use]
    pub fn next_served(&self) -> Option<Event> {
        self.0.inner.borrow_mut().served.pop_front()
    }

    /// Answers [`Event::Proven`], see [`Transport::admit`].
    pub fn admit(&self, conn: Conn, verdict: Result<(), CloseReason>) {
        self.0.inner.borrow_mut().transport.admit(conn, verdict);
    }

    /// How often this end's machine has lost power: every reply says so.
    pub fn set_losses(&self, losses: u64) {
        self.0.inner.borrow_mut().losses = losses;
    }

    /// How often the node's machine has lost power, as its newest reply says; `None` before the first one. When the number
    /// changes, what was acknowledged before and not synced may be lost (the write verifier of NFS, RFC 8881 18.32.3). Between
    /// replies with different numbers lies a new connection, and so a turn: whoever asks in the turn in which a call is
    /// answered gets the number of that answer.
    #[must_use]
    pub fn losses(&self, node: NodeId) -> Option<u64> {
        self.0.inner.borrow().links.get(&node)?.losses
    }

    /// Replies to request `token`: `body` is an encoded [`sealfs_proto::Reply`] (empty unless `status` is `Ok`), `bulk` goes
    /// into the region that the request brought along.
    pub fn reply(&self, conn: Conn, token: u64, status: Status, body: Vec<u8>, bulk: Vec<Slice>) {
        let mut inner = self.0.inner.borrow_mut();
        let sequence = Sequence(inner.losses);
        let header = Header { status, sequence, ..Header::new(HeaderKind::Reply, token) };
        let bulk = if bulk.is_empty() { Bulk::None } else { Bulk::Send(bulk) };
        inner.transport.send(conn, Frame { header, body, bulk });
    }

    /// Asks for a request's bulk, see [`Transport::pull`].
    pub fn pull(&self, conn: Conn, token: u64, region: Region) {
        self.0.inner.borrow_mut().transport.pull(conn, token, region);
    }

    /// Holds an accepted connection's requests back, see [`Transport::pause`].
    pub fn pause(&self, conn: Conn, paused: bool) {
        self.0.inner.borrow_mut().transport.pause(conn, paused);
    }

    /// Destroys an accepted connection, see [`Transport::close`].
    pub fn close(&self, conn: Conn) {
        self.0.inner.borrow_mut().transport.close(conn);
    }

    /// What there is to tell of peers, `limits::PEERS_PAGE` of them behind the first `skip`, and how many there are behind
    /// these: first the nodes that this end calls, then those who have connected here (`without` one of them), each
    /// ascending. Cost: a system call or two for each that is shown.
    #[must_use]
    pub fn figures(&self, skip: usize, without: Option<Peer>) -> (Vec<PeerFigures>, usize) {
        self.0.inner.borrow().figures(skip, without)
    }

    /// Every node that was named, ascending.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.0.inner.borrow().links.values().map(link::Link::status).collect()
    }

    fn claim(&self) {
        let wanted = std::mem::take(&mut self.0.inner.borrow_mut().to_claim);
        for (node, fresh) in wanted {
            let claims = self.0.claims.borrow().clone();
            let claims = claims.map_or_else(Vec::new, |claims| claims(node, fresh));
            self.0.inner.borrow_mut().claim(node, claims);
        }
    }
}

/// Between two rounds over the addresses that a client was given.
const JOIN_AGAIN_MS: u64 = 500;
/// A node that has not answered so soon may be hung, and the next one is asked, too.
const JOIN_NEXT_MS: u64 = 300;
/// When there is no next one the transport's own deadline ends each attempt; looked at again so often.
const JOIN_LAST_MS: u64 = 1_000;

/// The first that is there; it leaves the list.
async fn first_of<T>(waiting: &mut Vec<Receiver<T>>) -> Result<T, Abandoned> {
    poll_fn(|cx| {
        for at in 0..waiting.len() {
            if let Poll::Ready(outcome) = Pin::new(&mut waiting[at]).poll(cx) {
                waiting.remove(at);
                return Poll::Ready(outcome);
            }
        }
        Poll::Pending
    })
    .await
}
