//! What the cores of a node send to each other: errands, and what became of them.
//!
//! 1. Every errand is answered exactly once.
//! 2. Mail from one core to another arrives in the order in which it was sent.

use sealfs_meta::Origin;
use sealfs_proto::{Reply, Request, SessionId, ShardId, Status};
use sealfs_transport::{Peer, Slice};

use crate::chunk::{Ask, Loan, Run};

/// A message between two cores of a node; opaque to whoever carries it.
#[derive(Debug)]
pub struct Mail(pub(crate) Letter);

#[derive(Debug)]
pub(crate) enum Letter {
    /// Something to do; `token` comes back with the answer.
    Ask { token: u64, errand: Errand },
    /// How it ended.
    Answer { token: u64, result: Answered },
}

/// What one core asks of another.
#[derive(Debug)]
pub(crate) enum Errand {
    /// A request for a shard of the receiver.
    Serve(Order),
    /// The receiver's share of a request that concerns the whole node.
    Share(Order),
    /// Drops or finishes everything that came over this endpoint's earlier connections.
    Fence(Peer),
    /// Nothing: all mail sent before has arrived when this is answered.
    Flush,
    /// To the keeper of the sessions: may this session be served? A new one begins now.
    Admit { session: SessionId, resume: bool },
    /// To the keeper: these sessions were heard of.
    Heard(Vec<SessionId>),
    /// To every core: the session has claimed all it holds.
    Claimed(SessionId),
    /// To the keeper: the session wants to end.
    Leave(SessionId),
    /// From the keeper: the session is no more; its opens, locks and replies go.
    End(SessionId),
    /// From the keeper: no session of before the restart holds anything that it has not claimed.
    GraceOver,
    /// To the lender, once at the start: the blocks that the sender's map names. Answered when all cores have said so.
    Used(Vec<Run>),
    /// To the lender: blocks are needed.
    Lend(Ask),
    /// To the lender: these are not needed.
    GiveBack(Vec<Run>),
    /// From the lender: another core is out of space; sync what is freed and give back what is not needed.
    Recall,
}

/// What became of an errand.
#[derive(Debug)]
pub(crate) enum Answered {
    /// Of a request.
    Served(Outcome),
    /// Of [`Errand::Lend`].
    Loan(Loan),
    /// Of [`Errand::Admit`]: it is served; whether it has yet to claim what it held before a restart.
    Admitted { owes_claim: bool },
    /// Of anything else; `false`: refused.
    Done(bool),
}

/// A request as it travels inside a node.
#[derive(Debug)]
pub(crate) struct Order {
    /// Who asks.
    pub(crate) peer: Peer,
    /// Session, sequence and watermark of a client's change.
    pub(crate) origin: Option<Origin>,
    /// The shard it is for.
    pub(crate) shard: ShardId,
    /// What is asked.
    pub(crate) request: Request,
    /// The payload of a write.
    pub(crate) bulk: Option<Slice>,
}

/// How a request ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The reply, or why there is none.
    pub(crate) reply: Result<Reply, Status>,
    /// The payload of a read.
    pub(crate) bulk: Vec<Slice>,
}

impl From<Result<Reply, Status>> for Outcome {
    fn from(reply: Result<Reply, Status>) -> Self {
        Self { reply, bulk: Vec::new() }
    }
}
