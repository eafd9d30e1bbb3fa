//! The connections that this core has accepted, and the requests on them that wait for memory.

use std::collections::{BTreeMap, VecDeque};

use sealfs_proto::{Header, Request, SessionId};
use sealfs_transport::{Conn, Instant, Peer};

/// A request whose bulk is not here yet.
#[derive(Debug)]
pub(crate) struct Pulling {
    pub(crate) header: Header,
    pub(crate) request: Request,
    pub(crate) arrived: Instant,
}

/// The connections.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    peers: BTreeMap<Conn, Peer>,
    /// Being pulled, by connection and token.
    pub(crate) pulling: BTreeMap<(Conn, u64), Pulling>,
    /// Wait for memory, first come first.
    pub(crate) starved: VecDeque<(Conn, u64)>,
    /// Whether clients' requests are held back.
    pub(crate) paused: bool,
}

impl Connections {
    /// A connection is usable.
    pub(crate) fn open(&mut self, conn: Conn, peer: Peer) {
        self.peers.insert(conn, peer);
    }

    /// A connection is no more; the requests that were being pulled over it.
    pub(crate) fn close(&mut self, conn: Conn) -> usize {
        self.peers.remove(&conn);
        let before = self.pulling.len();
        self.pulling.retain(|(of, _), _| *of != conn);
        self.starved.retain(|(of, _)| *of != conn);
        before - self.pulling.len()
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self, conn: Conn) -> Option<Peer> {
        self.peers.get(&conn).copied()
    }

    /// The connections of one endpoint.
    pub(crate) fn of(&self, peer: Peer) -> Vec<Conn> {
        self.select(|other| other == peer)
    }

    /// The connections of a session.
    pub(crate) fn of_session(&self, session: SessionId) -> Vec<Conn> {
        self.select(|peer| matches!(peer, Peer::Client { session: of, .. } if of == session))
    }

    /// How many there are of clients, and of nodes.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let clients = self.clients().len();
        (clients, self.peers.len() - clients)
    }

    /// All clients' connections.
    pub(crate) fn clients(&self) -> Vec<Conn> {
        self.select(|peer| matches!(peer, Peer::Client { .. }))
    }

    fn select(&self, which: impl Fn(Peer) -> bool) -> Vec<Conn> {
        self.peers.iter().filter(|(_, peer)| which(**peer)).map(|(conn, _)| *conn).collect()
    }
}
