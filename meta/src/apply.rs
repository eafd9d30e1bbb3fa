//! Carrying out a record: total, and the only durable change of a [`State`].

use std::collections::BTreeSet;

use sealfs_proto::{Attr, Entry, Ino, Part, Reply, ShardId, Time, TxId};

use crate::access::{ACL_ACCESS, CAPABILITY};
use crate::snapshot::walk;
use crate::state::{Body, Inode, Unlinked};
use crate::{Answer, AttrChange, Change, Record, State, Times, part};

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The reply to the request it came from, to be sent at its durability point. For a record with an origin the state
    /// keeps it.
    pub reply: Reply,
    /// What the server does next. Replay ignores it: after a restart [`State::cuts`], [`State::unlinked`],
    /// [`State::prepared`] and [`State::decided`] say what is unfinished.
    pub effects: Vec<Effect>,
}

/// What follows from a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The inode has no links any more: when no open holds it, [`crate::plan_reclaim`].
    Unlinked(Ino),
    /// Discard `from..bound` of the file: in this shard only if `bound` is at most `chunk_size`, else on every node; then
    /// append `Change::CutDone` with the blocks that this freed. The request is answered after that, and so is one that
    /// finds its reply kept while [`State::cut`] still shows the cut.
    Cut {
        /// Which file.
        ino: Ino,
        /// First byte to discard.
        from: u64,
        /// No data lies at or beyond.
        bound: u64,
        /// Bytes per chunk.
        chunk_size: u32,
    },
    /// The inode is forgotten; nothing of it lies outside this shard: free its chunk 0 in this entry.
    Dropped(Ino),
    /// The file's bound grew: the reply waits until this record is on the device, in every durability mode.
    Durable(Ino),
    /// Have every node discard all of the inode, then append `Change::Reclaimed` (whose effect is `Dropped`).
    Reclaim {
        /// Which inode.
        ino: Ino,
        /// Bytes per chunk.
        chunk_size: u32,
    },
}

/// Carries `record` out. Never fails: a record comes from this crate's plans or from the journal they went to, and what
/// does not fit the state (which only a bug or a forged journal could bring) changes nothing but the record's number.
pub fn apply(state: &mut State, record: &Record) -> Applied {
    let mut effects = Vec::new();
    walk::record(state, record);
    state.number += 1;
    let reply = change(state, &record.change, record.now, &mut effects);
    if let Some(origin) = record.origin {
        state.sessions.keep(origin, reply.clone());
    }
    Applied { reply, effects }
}

fn change(state: &mut State, change: &Change, now: Time, effects: &mut Vec<Effect>) -> Reply {
    match change {
        Change::Parts { parts, answer } => {
            part::apply(state, parts, now, effects);
            reply(state, answer)
        }
        Change::Unnamed { attr, xattrs } => {
            state.numbers.used(attr.ino.number());
            let inode = Inode::new(attr.clone(), Ino(0), Vec::new(), xattrs.clone());
            state.inodes.insert(attr.ino, inode);
            state.unlinked.insert(attr.ino, Unlinked::Unnamed);
            let entry = Entry { ino: attr.ino, kind: attr.kind, attr: None };
            reply(state, &Answer::Entry(entry))
        }
        Change::Chunk { reply } => reply.clone(),
        Change::Range(range) => {
            state.numbers.extend(*range);
            Reply::Done
        }
        Change::Session { session, alive } => {
            state.sessions.set(*session, *alive);
            Reply::Done
        }
        Change::Prepared(_)
        | Change::Decided { .. }
        | Change::Resolved { .. }
        | Change::Forgotten { .. } => transaction(state, change, now, effects),
        Change::Reclaim { ino } => reclaim(state, *ino, effects),
        Change::Reclaimed { ino } => {
            state.unlinked.remove(ino);
            state.inodes.remove(ino);
            effects.push(Effect::Dropped(*ino));
            Reply::Done
        }
        Change::Attr { ino, .. }
        | Change::Raise { ino, .. }
        | Change::Settle { ino, .. }
        | Change::Reserve { ino, .. }
        | Change::XattrSet { ino, .. }
        | Change::XattrRemove { ino, .. }
        | Change::CutDone { ino, .. } => inode(state, *ino, change, now, effects),
    }
}

fn transaction(state: &mut State, change: &Change, now: Time, effects: &mut Vec<Effect>) -> Reply {
    match change {
        Change::Prepared(prepare) => {
            for part in &prepare.parts {
                if let Part::NewInode { attr, .. } = part {
                    state.numbers.used(attr.ino.number());
                }
            }
            forget_below(&mut state.resolved, prepare.tx.coordinator, prepare.oldest);
            state.holds.hold(prepare.tx, &prepare.parts, false);
            state.prepared.insert(prepare.tx, prepare.clone());
            part::prepared_reply(state, &prepare.parts)
        }
        Change::Decided { tx, parts, others, answer } => {
            state.holds.release(*tx);
            state.numbers.transaction = state.numbers.transaction.max(tx.number + 1);
            state.decided.insert(*tx, others.clone());
            part::apply(state, parts, now, effects);
            reply(state, answer)
        }
        Change::Resolved { tx, commit } => {
            state.holds.release(*tx);
            if let Some(prepare) = state.prepared.remove(tx).filter(|_| *commit) {
                state.resolved.insert(*tx);
                part::apply(state, &prepare.parts, prepare.now, effects);
            }
            Reply::Done
        }
        Change::Forgotten { tx } => {
            state.decided.remove(tx);
            Reply::Done
        }
        _ => Reply::Done,
    }
}

/// The coordinator has forgotten its transactions below `oldest`.
fn forget_below(resolved: &mut BTreeSet<TxId>, coordinator: ShardId, oldest: u64) {
    let at = |number| TxId { coordinator, number };
    let below: Vec<TxId> = resolved.range(at(0)..at(oldest)).copied().collect();
    below.iter().for_each(|tx| _ = resolved.remove(tx));
}

/// Changes of one inode that is no directory's entry.
fn inode(
    state: &mut State,
    ino: Ino,
    change: &Change,
    now: Time,
    effects: &mut Vec<Effect>,
) -> Reply {
    let Some(inode) = state.inodes.get_mut(&ino) else { return Reply::Done };
    let attr = &mut inode.attr;
    match change {
        Change::Attr { set, .. } => {
            set_attr(inode, set, now, effects);
            Reply::Attr(inode.attr.clone())
        }
        Change::Raise { bound, .. } => {
            raise(attr, *bound, effects);
            attr.change += 1;
            Reply::Attr(attr.clone())
        }
        Change::Settle { size, blocks, times, answer, .. } => {
            attr.size = attr.size.max(*size);
            attr.blocks = attr.blocks.saturating_add(*blocks);
            attr.change += 1;
            match times {
                Times::None => {}
                Times::Written => (attr.mtime, attr.ctime) = (now, now),
                Times::MtimeSet => attr.ctime = now,
            }
            match answer {
                Answer::Written(_) => Reply::Written { blocks: *blocks, attr: Some(attr.clone()) },
                _ => Reply::Attr(attr.clone()),
            }
        }
        Change::Reserve { length, bound, .. } => {
            let from = attr.size;
            attr.size = attr.size.saturating_add(u64::from(*length));
            raise(attr, *bound, effects);
            attr.mtime = now;
            inode.touch(now);
            Reply::Offset(from)
        }
        Change::XattrSet { xattr, mode, .. } => {
            attr.mode = mode.unwrap_or(attr.mode);
            inode.xattrs.insert(xattr.name.clone(), xattr.value.clone());
            inode.touch(now);
            Reply::Done
        }
        Change::XattrRemove { name, mode, .. } => {
            attr.mode = mode.unwrap_or(attr.mode);
            inode.xattrs.remove(name);
            inode.touch(now);
            Reply::Done
        }
        Change::CutDone { blocks, .. } => {
            attr.blocks = attr.blocks.saturating_add(*blocks);
            attr.change += 1;
            // What was written while the data was being discarded may be gone.
            attr.generation += 1;
            if let Body::File { cut } = &mut inode.body {
                *cut = None;
            }
            Reply::Done
        }
        _ => Reply::Done,
    }
}

fn raise(attr: &mut Attr, bound: u64, effects: &mut Vec<Effect>) {
    if bound > attr.bound {
        attr.bound = bound;
        effects.push(Effect::Durable(attr.ino));
    }
}

fn set_attr(inode: &mut Inode, set: &AttrChange, now: Time, effects: &mut Vec<Effect>) {
    inode.touch(now);
    let attr = &mut inode.attr;
    attr.mode = set.mode.unwrap_or(attr.mode);
    attr.uid = set.uid.unwrap_or(attr.uid);
    attr.gid = set.gid.unwrap_or(attr.gid);
    attr.atime = set.atime.unwrap_or(attr.atime);
    attr.mtime = set.mtime.unwrap_or(attr.mtime);
    attr.generation += u64::from(set.next_generation);
    if let Some(acl) = &set.acl {
        inode.xattrs.insert(ACL_ACCESS.to_vec(), acl.clone());
    }
    if set.drop_capability {
        inode.xattrs.remove(CAPABILITY);
    }
    if let Some(size) = set.size {
        attr.size = size;
        if let (Body::File { cut }, true) = (&mut inode.body, set.cut) {
            *cut = Some(size);
            let Attr { ino, bound, chunk_size, .. } = *attr;
            effects.push(Effect::Cut { ino, from: size, bound, chunk_size });
        }
    }
}

fn reclaim(state: &mut State, ino: Ino, effects: &mut Vec<Effect>) -> Reply {
    match state.inodes.get(&ino) {
        Some(inode) if !inode.is_local() => {
            state.unlinked.insert(ino, Unlinked::Reclaiming);
            effects.push(Effect::Reclaim { ino, chunk_size: inode.attr.chunk_size });
        }
        _ => {
            state.unlinked.remove(&ino);
            state.inodes.remove(&ino);
            effects.push(Effect::Dropped(ino));
        }
    }
    Reply::Done
}

/// What is answered, from the state after the change.
fn reply(state: &State, answer: &Answer) -> Reply {
    let attr = |ino: Ino| state.inodes.get(&ino).map(|inode| inode.attr.clone());
    match answer {
        Answer::Done => Reply::Done,
        Answer::Entry(entry) => {
            let attr = attr(entry.ino).or_else(|| entry.attr.clone());
            Reply::Entry(Entry { attr, ..entry.clone() })
        }
        Answer::Attr(ino) => attr(*ino).map_or(Reply::Done, Reply::Attr),
        Answer::Written(ino) => Reply::Written { blocks: 0, attr: attr(*ino) },
    }
}
