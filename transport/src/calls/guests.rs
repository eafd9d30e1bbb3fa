//! Peers whose connections were accepted here: what they have done, over all of their connections.
//!
//! 1. Who reconnects goes on where he was: figures are kept by [`Peer`], not by connection.
//! 2. Those that are gone are bounded, the one that left first is forgotten first.
//! 3. A peer whose connection was closed by this end (it has left, or its lease is over) is shown no more, but still known,
//!    for an endpoint that connects anew is closed here first.

use std::collections::{BTreeMap, VecDeque};

use sealfs_proto::{Peer, PeerFigures, Traffic};

use crate::{CloseReason, Conn, Transport};

/// See the module's text.
#[derive(Default)]
pub(super) struct Guests {
    known: BTreeMap<Peer, Guest>,
    peers: BTreeMap<Conn, Peer>,
    /// In the order in which they left; may name some that are back.
    gone: VecDeque<Peer>,
}

#[derive(Default)]
struct Guest {
    conn: Option<Conn>,
    address: String,
    connections: u64,
    failures: u64,
    /// Of connections that are over.
    traffic: Traffic,
    last_error: String,
    /// Its last connection was closed by this end.
    dismissed: bool,
}

impl Guests {
    /// A connection was accepted and is open.
    pub(super) fn opened(&mut self, conn: Conn, peer: Peer, address: String) {
        let guest = self.known.entry(peer).or_default();
        (guest.conn, guest.address) = (Some(conn), address);
        guest.connections += 1;
        guest.last_error.clear();
        guest.dismissed = false;
        self.peers.insert(conn, peer);
    }

    /// A connection that was accepted is over.
    pub(super) fn closed(&mut self, conn: Conn, why: &CloseReason, traffic: &Traffic) {
        let Some(peer) = self.peers.remove(&conn) else { return };
        let Some(guest) = self.known.get_mut(&peer) else { return };
        guest.traffic.add(traffic);
        if guest.conn != Some(conn) {
            return; // it is back already
        }
        guest.conn = None;
        guest.dismissed = *why == CloseReason::Local;
        if !guest.dismissed {
            guest.failures += 1;
            guest.last_error = why.to_string();
        }
        self.gone.push_back(peer);
        while self.gone.len() > GONE_MAX {
            let Some(first) = self.gone.pop_front() else { break };
            if self.known.get(&first).is_some_and(|guest| guest.conn.is_none()) {
                self.known.remove(&first);
            }
        }
    }

    /// Those that are shown, ascending.
    pub(super) fn shown(&self) -> impl Iterator<Item = Peer> {
        self.known.iter().filter(|(_, guest)| !guest.dismissed).map(|(peer, _)| *peer)
    }

    /// What there is to tell of one of them.
    pub(super) fn figures(&self, peer: Peer, transport: &dyn Transport) -> Option<PeerFigures> {
        let guest = self.known.get(&peer)?;
        let present = guest.conn.and_then(|conn| transport.figures(conn));
        let mut traffic = guest.traffic;
        traffic.add(&present.as_ref().map_or_else(Traffic::default, |present| present.traffic));
        Some(PeerFigures {
            peer,
            accepted: true,
            address: guest.address.clone(),
            in_flight: present.as_ref().map_or(0, |present| present.in_flight),
            path: present.map(|present| present.path),
            connections: guest.connections,
            failures: guest.failures,
            resent: 0,
            traffic,
            last_error: guest.last_error.clone(),
        })
    }
}

/// Peers that are kept when they are gone: those of a job that ends, and of a rack that loses its power.
const GONE_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use sealfs_proto::SessionId;

    use super::*;

    const fn client(session: u64) -> Peer {
        Peer::Client { session: SessionId(session), endpoint: 0 }
    }

    fn gone() -> CloseReason {
        CloseReason::Gone("a: reset".into())
    }

    #[test]
    fn those_that_are_gone_are_bounded_and_the_connected_stay() {
        let mut guests = Guests::default();
        guests.opened(Conn(1), client(1), "a".into());
        for number in 2..3 * GONE_MAX as u64 {
            guests.opened(Conn(number), client(number), "a".into());
            guests.closed(Conn(number), &gone(), &Traffic::default());
        }
        assert!(guests.known.len() <= GONE_MAX + 1 && guests.peers.len() == 1);
        assert_eq!(guests.shown().next(), Some(client(1)), "who is connected is not forgotten");
        for number in 0..3 * GONE_MAX as u64 {
            guests.closed(Conn(1), &gone(), &Traffic::default());
            guests.opened(Conn(1), client(1), "a".into());
            assert!(guests.gone.len() <= GONE_MAX, "{number}");
        }
    }

    #[test]
    fn who_was_dismissed_is_not_shown_until_it_is_back_and_goes_on_counting() {
        let mut guests = Guests::default();
        let moved = Traffic { frames_sent: 3, ..Traffic::default() };
        guests.opened(Conn(1), client(1), "a".into());
        guests.closed(Conn(1), &CloseReason::Local, &moved);
        assert_eq!(guests.shown().count(), 0);
        guests.opened(Conn(2), client(1), "b".into());
        assert_eq!(guests.shown().count(), 1);
        let guest = &guests.known[&client(1)];
        assert_eq!((guest.connections, guest.failures, guest.traffic), (2, 0, moved));
    }
}
