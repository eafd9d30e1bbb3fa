//! The walk of a snapshot through a state, and what a record must keep for it before it is applied.
//!
//! ```text
//! Encoder::begin: State::walk = Some -> every record: keep, apply -> slices -> all written: State::walk = None
//! ```
//! 1. Whatever `apply` changes is kept before, by [`record`] and, part by part, by [`part`]: their matches name every kind
//!    of change, so that a new one cannot be forgotten, and the random tests compare what comes out.
//! 2. An inode is written in pieces, so that a directory of any size is walked in slices.
//! 3. The ends of number ranges and the lists' lengths are taken when the walk begins.

use std::collections::BTreeMap;
use std::ops::Bound;

use sealfs_proto::{Ino, Part, SessionId, TxId};

use super::{Before, put, put_inode_head, put_map};
use crate::state::{Inode, Session};
use crate::{Change, DirectoryEntry, Record, State};

/// One walk through each of a state's lists, in the order in which they are written.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    inodes: Before<(Ino, Piece)>,
    unlinked: Before<Ino>,
    prepared: Before<TxId>,
    decided: Before<TxId>,
    resolved: Before<TxId>,
    sessions: Before<SessionId>,
}

/// What an inode is written in, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    /// Attributes, and its body but for a directory's entries.
    Head,
    /// The entry with this cookie.
    Entry(u64),
    /// Extended attributes.
    Xattrs,
}

/// The content of a piece.
enum Content<'a> {
    Head(&'a Inode),
    Entry(u64, &'a DirectoryEntry),
    Xattrs(&'a Inode),
}

impl Walk {
    /// Begins a walk through `state` as it is now.
    pub(super) fn new(state: &State) -> Self {
        let count = |len: usize| bytes(|out| put(out, &(len as u64)));
        let head = bytes(|out| {
            put(out, &state.numbers.end);
            put(out, &(state.inodes.len() as u64));
        });
        Self {
            inodes: Before::new(head),
            unlinked: Before::new(count(state.unlinked.len())),
            prepared: Before::new(count(state.prepared.len())),
            decided: Before::new(count(state.decided.len())),
            resolved: Before::new(count(state.resolved.len())),
            sessions: Before::new(count(state.sessions.0.len())),
        }
    }

    /// Appends what follows to `out`, until `room` is used up; true when all of the state is written.
    pub(super) fn slice(&mut self, state: &State, out: &mut Vec<u8>, room: &mut usize) -> bool {
        let resolved =
            |walked| state.resolved.range((behind(walked), Bound::Unbounded)).map(|tx| (*tx, ()));
        self.inodes.slice(out, room, |walked| pieces(state, walked), |out, _, it| it.put(out))
            && self.unlinked.slice(out, room, |walked| items(&state.unlinked, walked), put_pair)
            && self.prepared.slice(out, room, |walked| items(&state.prepared, walked), put_pair)
            && self.decided.slice(out, room, |walked| items(&state.decided, walked), put_pair)
            && self.resolved.slice(out, room, resolved, |out, tx, ()| put(out, &tx))
            && self.sessions.slice(out, room, |at| items(&state.sessions.0, at), put_session)
    }

    /// Attributes, body and extended attributes of an inode will change.
    fn inode(&mut self, state: &State, ino: Ino) {
        let inode = state.inodes.get(&ino);
        let keep = |content: Content<'_>| bytes(|out| content.put(out));
        self.inodes.keep((ino, Piece::Head), || inode.map(|inode| keep(Content::Head(inode))));
        self.inodes.keep((ino, Piece::Xattrs), || inode.map(|inode| keep(Content::Xattrs(inode))));
    }

    /// An inode will come or go. A directory that does has no entries, unless the record does not fit the state.
    fn life(&mut self, state: &State, ino: Ino) {
        self.inode(state, ino);
        let directory = state.inodes.get(&ino).and_then(Inode::directory);
        for (cookie, entry) in directory.into_iter().flat_map(|directory| directory.behind(0)) {
            self.entry(ino, cookie, Some(entry));
        }
        self.unlinked(state, ino);
    }

    fn entry(&mut self, dir: Ino, cookie: u64, entry: Option<&DirectoryEntry>) {
        let content = || entry.map(|entry| bytes(|out| Content::Entry(cookie, entry).put(out)));
        self.inodes.keep((dir, Piece::Entry(cookie)), content);
    }

    /// The entry of `name`, or the one that it will get, will change, and with it the directory's times and size.
    fn name(&mut self, state: &State, dir: Ino, name: &[u8]) {
        self.inode(state, dir);
        if let Some(directory) = state.inodes.get(&dir).and_then(Inode::directory) {
            self.entry(dir, directory.cookie_for(name), directory.find(name));
        }
    }

    fn unlinked(&mut self, state: &State, ino: Ino) {
        keep_pair(&mut self.unlinked, &state.unlinked, ino);
    }

    fn resolved(&mut self, state: &State, tx: TxId) {
        let known = state.resolved.contains(&tx);
        self.resolved.keep(tx, || known.then(|| bytes(|out| put(out, &tx))));
    }

    fn session(&mut self, state: &State, id: SessionId) {
        let session = state.sessions.0.get(&id);
        let item = || session.map(|session| bytes(|out| put_session(out, id, session)));
        self.sessions.keep(id, item);
    }

    fn record(&mut self, state: &State, record: &Record) {
        if let Some(origin) = record.origin {
            self.session(state, origin.session);
        }
        match &record.change {
            // Parts say themselves what they change; ranges were written first.
            Change::Parts { .. } | Change::Range(_) | Change::Chunk { .. } => {}
            Change::Unnamed { attr, .. } => self.life(state, attr.ino),
            Change::Reclaim { ino } | Change::Reclaimed { ino } => self.life(state, *ino),
            Change::Session { session, .. } => self.session(state, *session),
            Change::Prepared(prepare) => {
                keep_pair(&mut self.prepared, &state.prepared, prepare.tx);
                let at = |number| TxId { number, ..prepare.tx };
                for tx in state.resolved.range(at(0)..at(prepare.oldest)) {
                    self.resolved(state, *tx);
                }
            }
            Change::Decided { tx, .. } | Change::Forgotten { tx } => {
                keep_pair(&mut self.decided, &state.decided, *tx);
            }
            Change::Resolved { tx, .. } => {
                keep_pair(&mut self.prepared, &state.prepared, *tx);
                self.resolved(state, *tx);
            }
            Change::Attr { ino, .. }
            | Change::Raise { ino, .. }
            | Change::Settle { ino, .. }
            | Change::Reserve { ino, .. }
            | Change::XattrSet { ino, .. }
            | Change::XattrRemove { ino, .. }
            | Change::CutDone { ino, .. } => self.inode(state, *ino),
        }
    }

    fn part(&mut self, state: &State, part: &Part) {
        match part {
            Part::NewInode { attr, .. } => self.life(state, attr.ino),
            Part::AddEntry { dir, name, .. }
            | Part::RemoveEntry { dir, name, .. }
            | Part::SwapEntry { dir, name, .. } => self.name(state, *dir, name),
            Part::AddLink { ino } | Part::DropLink { ino, .. } | Part::EndDirectory { ino, .. } => {
                self.inode(state, *ino);
                self.unlinked(state, *ino);
            }
            Part::Moved { ino, .. } => self.inode(state, *ino),
        }
    }
}

impl Content<'_> {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Head(inode) => put_inode_head(out, inode),
            Self::Entry(cookie, entry) => {
                put(out, cookie);
                put(out, *entry);
            }
            Self::Xattrs(inode) => put_map(out, &inode.xattrs),
        }
    }
}

/// To be called before `change` of a record is carried out.
pub(crate) fn record(state: &mut State, record: &Record) {
    if let Some(mut walk) = state.walk.take() {
        walk.record(state, record);
        state.walk = Some(walk);
    }
}

/// To be called before a part is carried out: the parts before it have been.
pub(crate) fn part(state: &mut State, part: &Part) {
    if let Some(mut walk) = state.walk.take() {
        walk.part(state, part);
        state.walk = Some(walk);
    }
}

/// The pieces of all inodes behind one.
fn pieces(
    state: &State,
    walked: Option<(Ino, Piece)>,
) -> impl Iterator<Item = ((Ino, Piece), Content<'_>)> {
    let from = walked.map_or(Ino(0), |(ino, _)| ino);
    state.inodes.range(from..).flat_map(move |(&ino, inode)| {
        let walked = walked.filter(|(at, _)| *at == ino).map(|(_, piece)| piece);
        let cookie = match walked {
            None | Some(Piece::Head) => 0,
            Some(Piece::Entry(cookie)) => cookie,
            Some(Piece::Xattrs) => u64::MAX,
        };
        let entries = inode.directory().into_iter().flat_map(move |dir| dir.behind(cookie));
        let entries =
            entries.map(move |(at, entry)| ((ino, Piece::Entry(at)), Content::Entry(at, entry)));
        let head = walked.is_none().then_some(((ino, Piece::Head), Content::Head(inode)));
        let xattrs = (walked != Some(Piece::Xattrs))
            .then_some(((ino, Piece::Xattrs), Content::Xattrs(inode)));
        head.into_iter().chain(entries).chain(xattrs)
    })
}

fn items<K: Copy + Ord, V>(
    map: &BTreeMap<K, V>,
    walked: Option<K>,
) -> impl Iterator<Item = (K, &V)> {
    map.range((behind(walked), Bound::Unbounded)).map(|(key, value)| (*key, value))
}

fn behind<K>(walked: Option<K>) -> Bound<K> {
    walked.map_or(Bound::Unbounded, Bound::Excluded)
}

fn keep_pair<K, V>(before: &mut Before<K>, map: &BTreeMap<K, V>, key: K)
where
    K: Copy + Ord + super::Item,
    V: super::Item,
{
    before.keep(key, || map.get(&key).map(|value| bytes(|out| put_pair(out, key, value))));
}

fn put_pair<K: super::Item, V: super::Item>(out: &mut Vec<u8>, key: K, value: &V) {
    put(out, &key);
    put(out, value);
}

fn put_session(out: &mut Vec<u8>, id: SessionId, session: &Session) {
    put(out, &id);
    put_map(out, &session.watermarks);
    put_map(out, &session.replies);
}

fn bytes(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    fill(&mut out);
    out
}
