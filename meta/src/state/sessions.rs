//! Kept replies: what makes a change happen exactly once.
//!
//! 1. A reply is kept from the record that made it until a record of the same session and endpoint carries a watermark above
//!    it, or the session ends. Pruning happens in `apply` only, so that replay keeps the same replies.

use std::collections::BTreeMap;

use sealfs_proto::{Reply, Sequence, SessionId};

use crate::Origin;

/// What is known of a change that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept<'a> {
    /// Nothing: it may be executed.
    New,
    /// It was executed: this is the reply.
    Reply(&'a Reply),
    /// It lies below the watermark: it was answered and must not be executed.
    Answered,
}

/// One session as the shard knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Session {
    /// By endpoint: each numbers and acknowledges on its own.
    pub(crate) watermarks: BTreeMap<u16, Sequence>,
    pub(crate) replies: BTreeMap<Sequence, Reply>,
}

/// All sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sessions(pub(crate) BTreeMap<SessionId, Session>);

impl Sessions {
    pub(crate) fn ids(&self) -> impl Iterator<Item = SessionId> {
        self.0.keys().copied()
    }

    pub(crate) fn kept(&self, session: SessionId, sequence: Sequence) -> Kept<'_> {
        match self.0.get(&session) {
            Some(known) if sequence < known.watermark(sequence.endpoint()) => Kept::Answered,
            Some(known) => known.replies.get(&sequence).map_or(Kept::New, Kept::Reply),
            None => Kept::New,
        }
    }

    pub(crate) fn keep(&mut self, origin: Origin, reply: Reply) {
        let session = self.0.entry(origin.session).or_default();
        session.replies.insert(origin.sequence, reply);
        session.acknowledge(origin);
    }

    pub(crate) fn set(&mut self, session: SessionId, alive: bool) {
        if alive {
            self.0.entry(session).or_default();
        } else {
            self.0.remove(&session);
        }
    }
}

impl Session {
    pub(crate) fn watermark(&self, endpoint: u16) -> Sequence {
        self.watermarks.get(&endpoint).copied().unwrap_or_default()
    }

    fn acknowledge(&mut self, Origin { sequence, watermark, .. }: Origin) {
        let endpoint = sequence.endpoint();
        if watermark.endpoint() != endpoint || watermark <= self.watermark(endpoint) {
            return;
        }
        self.watermarks.insert(endpoint, watermark);
        let arrived = Sequence::first_of(endpoint)..watermark;
        let arrived: Vec<Sequence> = self.replies.range(arrived).map(|kept| *kept.0).collect();
        for sequence in arrived {
            self.replies.remove(&sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_a_session_acknowledge_independently() {
        let (mut sessions, session) = (Sessions::default(), SessionId(1));
        let origin = |endpoint, number, watermark| Origin {
            session,
            sequence: Sequence(Sequence::first_of(endpoint).0 + number),
            watermark: Sequence(Sequence::first_of(endpoint).0 + watermark),
        };
        for (endpoint, number) in [(0, 1), (3, 1), (0, 2)] {
            sessions.keep(origin(endpoint, number, 1), Reply::Done);
        }
        sessions.keep(origin(3, 2, 2), Reply::Done);
        let kept = |endpoint, number| sessions.kept(session, origin(endpoint, number, 0).sequence);
        assert_eq!(kept(0, 1), Kept::Reply(&Reply::Done));
        assert_eq!(kept(3, 1), Kept::Answered);
        assert_eq!((kept(3, 2), kept(3, 3)), (Kept::Reply(&Reply::Done), Kept::New));
    }
}
