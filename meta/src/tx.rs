//! Changes over several shards: what the coordinator and the participants do.
//!
//! ```text
//! coordinator                                     participant
//! plan -> Transaction, draw_tx, hold(own keys)
//! Request::Prepare to all others      ---------->  prepare -> Record(Prepared), keys held
//!                                     <----------  Reply::Prepared { attrs } at the durability point
//! decide(attrs) -> Record(Decided), applied
//! reply to the client at the durability point
//! Request::Resolve { commit: true }   ---------->  resolve -> Record(Resolved), parts applied, keys free
//! all acknowledged: Record(Forgotten) <----------  Reply::Done
//!
//! any refusal: release(tx), Resolve { commit: false } to all others; nothing was journaled here
//! ```
//! CRASH: without `Decided` on the coordinator's journal the transaction is aborted: [`State::decision`] says so to any
//! participant that asks. With it, the coordinator sends `Resolve` again to all of [`State::decided`].
//!
//! 1. A participant never gives up a prepared share by itself.
//! 2. A coordinator forgets a decision only after every participant has acknowledged it.
//! 3. Participants are refused at once when a key is held: nobody waits holding keys.

use sealfs_proto::{Attr, Part, Prepare, ShardId, Time, TxId};

use crate::{Answer, Origin, Record, Refused, State};

/// A planned change over several shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Whose change.
    pub origin: Origin,
    /// The present that all parts use.
    pub now: Time,
    /// The coordinator's own parts, for [`State::hold`]. An entry that names inode 0 means the inode that another shard
    /// makes.
    pub own: Vec<Part>,
    /// Everybody else's, ascending by shard; never empty.
    pub others: Vec<(ShardId, Vec<Part>)>,
    /// What is answered.
    pub answer: Answer,
}

impl Transaction {
    /// The requests to send, by shard.
    pub fn prepares(&self, tx: TxId) -> impl Iterator<Item = (ShardId, Prepare)> + '_ {
        let (session, now) = (self.origin.session, self.now);
        self.others
            .iter()
            .map(move |(shard, parts)| (*shard, Prepare { tx, session, now, parts: parts.clone() }))
    }

    /// The decision to commit, once all others are prepared. `attrs`: all that their replies brought.
    #[must_use]
    pub fn decide(self, tx: TxId, attrs: &[Attr]) -> Record {
        let _ = (tx, attrs);
        unimplemented!()
    }
}

/// A participant's answer to `Request::Prepare`: the record to append. Applying it gives the reply. A share that is
/// prepared already is not prepared again: see [`State::is_prepared`].
pub fn prepare(state: &State, request: &Prepare) -> Result<Record, Refused> {
    let _ = (state, request);
    unimplemented!()
}

/// A participant's answer to `Request::Resolve`; `None` if it has nothing prepared (it knew the decision): answer `Done`.
#[must_use]
pub fn resolve(state: &State, tx: TxId, commit: bool, now: Time) -> Option<Record> {
    let _ = (state, tx, commit, now);
    unimplemented!()
}

/// All participants have acknowledged the decision; `None` if it is forgotten already.
#[must_use]
pub fn forget(state: &State, tx: TxId, now: Time) -> Option<Record> {
    let _ = (state, tx, now);
    unimplemented!()
}
