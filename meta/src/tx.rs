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

use sealfs_proto::{Attr, Errno, Part, Prepare, ShardId, Time, TxId};

use crate::{Answer, Change, Origin, Record, Refused, State, part};

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
        let Self { origin, now, mut own, others, answer } = self;
        part::fill_in(&mut own, attrs);
        let change = Change::Decided {
            tx,
            parts: own,
            others: others.into_iter().map(|(shard, _)| shard).collect(),
            answer: answer.filled_in(attrs),
        };
        Record { origin: Some(origin), now, change }
    }
}

/// A participant's answer to `Request::Prepare`: the record to append. Applying it gives the reply. A share that is
/// prepared already is not prepared again: see [`State::is_prepared`].
///
/// Busy (EAGAIN on the wire) when a key is held, or when a name is not what the coordinator was told: it then plans again.
pub fn prepare(state: &State, request: &Prepare) -> Result<Record, Refused> {
    let mut request = request.clone();
    part::check(state, &request.parts).map_err(|refused| match refused {
        Refused::Errno(errno) if stale(&request.parts, errno) => Refused::Busy,
        other => other,
    })?;
    part::draw_numbers(state, &mut request.parts);
    Ok(Record { origin: None, now: request.now, change: Change::Prepared(request) })
}

/// Whether `errno` says that an entry is not what the coordinator expected. A coordinator's own entries were checked by
/// its plan; entries elsewhere are a rename's target, of which it knew only what it had been told.
fn stale(parts: &[Part], errno: Errno) -> bool {
    parts.iter().any(|part| match part {
        Part::AddEntry { .. } => errno == Errno::EEXIST,
        Part::SwapEntry { .. } | Part::RemoveEntry { .. } => errno == Errno::ENOENT,
        _ => false,
    })
}

/// A participant's answer to `Request::Resolve`; `None` if it has nothing prepared (it knew the decision): answer `Done`.
#[must_use]
pub fn resolve(state: &State, tx: TxId, commit: bool, now: Time) -> Option<Record> {
    let change = Change::Resolved { tx, commit };
    state.prepared.contains_key(&tx).then_some(Record { origin: None, now, change })
}

/// All participants have acknowledged the decision; `None` if it is forgotten already.
#[must_use]
pub fn forget(state: &State, tx: TxId, now: Time) -> Option<Record> {
    let change = Change::Forgotten { tx };
    state.decided.contains_key(&tx).then_some(Record { origin: None, now, change })
}
