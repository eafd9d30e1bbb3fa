//! Kept replies: what makes a change happen exactly once.
//!
//! 1. A reply is kept from the record that made it until a record of the same session carries a watermark above it, or the
//!    session ends. Pruning happens in `apply` only, so that replay keeps the same replies.

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
    pub(crate) watermark: Sequence,
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
            Some(known) if sequence < known.watermark => Kept::Answered,
            Some(known) => known.replies.get(&sequence).map_or(Kept::New, Kept::Reply),
            None => Kept::New,
        }
    }

    pub(crate) fn keep(&mut self, origin: Origin, reply: Reply) {
        let session = self.0.entry(origin.session).or_default();
        session.watermark = session.watermark.max(origin.watermark);
        session.replies.insert(origin.sequence, reply);
        session.replies = session.replies.split_off(&session.watermark);
    }

    pub(crate) fn set(&mut self, session: SessionId, alive: bool) {
        if alive {
            self.0.entry(session).or_default();
        } else {
            self.0.remove(&session);
        }
    }
}
