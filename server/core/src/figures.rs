//! What a core counts, and what it tells of itself when it is asked.
//!
//! [`Counters`] are plain numbers that the core owns and adds to as it goes; [`CoreFigures`] is a copy of them together with
//! what queues and tables hold at that moment, made when somebody asks ([`crate::Core::figures`]) and never otherwise.
//! Nothing is shared, so that a request costs a few additions to memory which no other thread looks at. Rejected: atomics
//! that a scraping thread reads at any time, for every gauge would have to be kept up to date for nobody.
//!
//! 1. A request is counted where its connection is, once when it arrives and once when its answer passes the gate, whatever
//!    core or task has served it.
//! 2. Time is the turn's: what is answered in the turn in which it arrived took no time. How long turns take the shell knows.
//! 3. Labels are bounded: kinds of request, and the errnos that requests fail with.

use std::collections::BTreeMap;

use sealfs_metrics::Histogram;
use sealfs_proto::{Errno, Request, Status};
use sealfs_transport::PeerStatus;

use crate::DiskOp;
use crate::chunk::Groups;
use crate::world::World;

macro_rules! kinds {
    ($($kind:ident $name:literal: $pattern:pat,)*) => {
        /// What a request asks for, as a label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "they are the variants of `Request`")]
        pub enum RequestKind { $($kind,)* }

        impl RequestKind {
            /// All of them, in their order.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// As metrics name it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// Of a request.
            #[must_use]
            pub const fn of(request: &Request) -> Self {
                match request { $($pattern => Self::$kind,)* }
            }
        }
    };
}

kinds! {
    Lookup "lookup": Request::Lookup { .. },
    Create "create": Request::Create { .. },
    CreateUnnamed "create_unnamed": Request::CreateUnnamed { .. },
    Mkdir "mkdir": Request::Mkdir { .. },
    Unlink "unlink": Request::Unlink { .. },
    Rmdir "rmdir": Request::Rmdir { .. },
    Rename "rename": Request::Rename { .. },
    Link "link": Request::Link { .. },
    List "list": Request::List { .. },
    Stat "stat": Request::Stat { .. },
    SetAttr "setattr": Request::SetAttr { .. },
    ReadLink "readlink": Request::ReadLink { .. },
    Open "open": Request::Open { .. },
    Close "close": Request::Close { .. },
    Raise "raise": Request::Raise { .. },
    Settle "settle": Request::Settle { .. },
    Reserve "reserve": Request::Reserve { .. },
    XattrGet "xattr_get": Request::XattrGet { .. },
    XattrList "xattr_list": Request::XattrList { .. },
    XattrSet "xattr_set": Request::XattrSet { .. },
    XattrRemove "xattr_remove": Request::XattrRemove { .. },
    LockWait "lock_wait": Request::Lock { wait: true, .. },
    Lock "lock": Request::Lock { wait: false, .. },
    LockTest "lock_test": Request::LockTest { .. },
    LockCancel "lock_cancel": Request::LockCancel { .. },
    Parent "parent": Request::Parent { .. },
    Read "read": Request::Read { .. },
    Write "write": Request::Write { .. },
    Discard "discard": Request::Discard { .. },
    Allocate "allocate": Request::Allocate { .. },
    Extents "extents": Request::Extents { .. },
    End "end": Request::End { .. },
    Sync "sync": Request::Sync,
    Space "space": Request::Space,
    Status "status": Request::Status,
    Ping "ping": Request::Ping,
    Claim "claim": Request::Claim { .. },
    Leave "leave": Request::Leave,
    Prepare "prepare": Request::Prepare(_),
    Resolve "resolve": Request::Resolve { .. },
    Decision "decision": Request::Decision { .. },
    RenameLock "rename_lock": Request::RenameLock { .. },
    Probe "probe": Request::Probe { .. },
    Peers "peers": Request::Peers { .. },
}

/// Kinds of request.
const KINDS: usize = RequestKind::ALL.len();

/// Something that is counted one by one; [`Counted::name`] is its name in `sealfs status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Requests that this core has served, those of its siblings' connections among them.
    Served,
    /// Bytes of files that were sent.
    BytesRead,
    /// Bytes of files that were stored.
    BytesWritten,
    /// Bytes appended to the journal.
    JournalBytes,
    /// Rounds of snapshots, each of which has let the journal be cut.
    SnapshotRounds,
    /// Sessions that have ended.
    SessionsEnded,
    /// Changes over several shards that this node was asked to take part in.
    Transactions,
    /// Such changes that were begun anew because another one held a key.
    TransactionsRetried,
    /// Such changes of which a loss of power has taken a part.
    TransactionsHalfLost,
    /// Inodes whose data was freed after their last unlink.
    InodesReclaimed,
    /// Blocks whose bytes were not those that were written.
    BadBlocks,
}

impl Counted {
    /// All of them, in their order.
    pub const ALL: [Self; 11] = [
        Self::Served,
        Self::BytesRead,
        Self::BytesWritten,
        Self::JournalBytes,
        Self::SnapshotRounds,
        Self::SessionsEnded,
        Self::Transactions,
        Self::TransactionsRetried,
        Self::TransactionsHalfLost,
        Self::InodesReclaimed,
        Self::BadBlocks,
    ];

    /// As `sealfs status` names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Served => "requests",
            Self::BytesRead => "bytes_read",
            Self::BytesWritten => "bytes_written",
            Self::JournalBytes => "journal_bytes",
            Self::SnapshotRounds => "snapshot_rounds",
            Self::SessionsEnded => "sessions_ended",
            Self::Transactions => "transactions",
            Self::TransactionsRetried => "transactions_retried",
            Self::TransactionsHalfLost => "transactions_half_lost",
            Self::InodesReclaimed => "inodes_reclaimed",
            Self::BadBlocks => "bad_blocks",
        }
    }
}

/// Why a request was not executed, and comes again or is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PutOff {
    /// A key was held, or there was too much to do.
    Busy,
    /// The shard is not here.
    StaleMap,
    /// The session has ended.
    NoSession,
    /// It was answered before.
    Answered,
}

impl PutOff {
    /// All of them, in their order.
    pub const ALL: [Self; 4] = [Self::Busy, Self::StaleMap, Self::NoSession, Self::Answered];

    /// As metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::StaleMap => "stale_map",
            Self::NoSession => "no_session",
            Self::Answered => "answered",
        }
    }
}

/// What is done to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeOp {
    /// Bytes are read.
    Read,
    /// Bytes are written.
    Write,
    /// What was written becomes durable.
    Sync,
}

impl VolumeOp {
    /// All of them, in their order.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Sync];

    /// As metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
        }
    }

    /// Of an operation of the disk; none if it is not the volume's.
    pub(crate) const fn of(op: &DiskOp) -> Option<Self> {
        match op {
            DiskOp::Read { .. } => Some(Self::Read),
            DiskOp::Write { .. } => Some(Self::Write),
            DiskOp::SyncVolume => Some(Self::Sync),
            _ => None,
        }
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Counters {
    counts: [u64; Counted::ALL.len()],
    arrived: [u64; KINDS],
    answered: Box<[Histogram; KINDS]>,
    put_off: [u64; PutOff::ALL.len()],
    /// Requests that have failed.
    pub errors: BTreeMap<(RequestKind, Errno), u64>,
    /// From handing a batch to the journal until it was written.
    pub appends: Histogram,
    /// Of the journal, from asking until it was on the device.
    pub syncs: Histogram,
    volume: [Histogram; VolumeOp::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            counts: [0; Counted::ALL.len()],
            arrived: [0; KINDS],
            answered: Box::new([Histogram::default(); KINDS]),
            put_off: [0; PutOff::ALL.len()],
            errors: BTreeMap::new(),
            appends: Histogram::default(),
            syncs: Histogram::default(),
            volume: Default::default(),
        }
    }
}

impl Counters {
    /// Adds to a count.
    pub(crate) const fn add(&mut self, what: Counted, more: u64) {
        self.counts[what as usize] += more;
    }

    /// A request has arrived.
    pub(crate) const fn arrive(&mut self, kind: RequestKind) {
        self.arrived[kind as usize] += 1;
    }

    /// A request was answered, so long after it had arrived.
    pub(crate) fn answer(&mut self, kind: RequestKind, status: Status, took_ns: u64) {
        self.answered[kind as usize].add(took_ns);
        let put_off = match status {
            Status::Ok => return,
            Status::Errno(errno) => {
                *self.errors.entry((kind, errno)).or_insert(0) += 1;
                return;
            }
            Status::Busy => PutOff::Busy,
            Status::StaleMap => PutOff::StaleMap,
            Status::NoSession => PutOff::NoSession,
            Status::Answered => PutOff::Answered,
        };
        self.put_off[put_off as usize] += 1;
    }

    /// A count.
    #[must_use]
    pub const fn of(&self, what: Counted) -> u64 {
        self.counts[what as usize]
    }

    /// Requests of a kind that have arrived at this core's connections.
    #[must_use]
    pub const fn arrived(&self, kind: RequestKind) -> u64 {
        self.arrived[kind as usize]
    }

    /// How long those took that were answered, from the turn in which their first byte was here to the one in which the
    /// answer left.
    #[must_use]
    pub const fn answered(&self, kind: RequestKind) -> &Histogram {
        &self.answered[kind as usize]
    }

    /// How long operations of the volume took, from handing them to the system until they were done, in turns.
    #[must_use]
    pub const fn volume(&self, op: VolumeOp) -> &Histogram {
        &self.volume[op as usize]
    }

    /// Answers that were none.
    #[must_use]
    pub const fn put_off(&self, why: PutOff) -> u64 {
        self.put_off[why as usize]
    }

    /// Adds another core's.
    pub fn merge(&mut self, other: &Self) {
        add(&mut self.counts, &other.counts);
        add(&mut self.arrived, &other.arrived);
        add(&mut self.put_off, &other.put_off);
        for (own, more) in self.answered.iter_mut().zip(other.answered.iter()) {
            own.merge(more);
        }
        for (key, more) in &other.errors {
            *self.errors.entry(*key).or_insert(0) += more;
        }
        self.appends.merge(&other.appends);
        self.syncs.merge(&other.syncs);
        for (own, more) in self.volume.iter_mut().zip(&other.volume) {
            own.merge(more);
        }
    }
}

fn add(own: &mut [u64], more: &[u64]) {
    own.iter_mut().zip(more).for_each(|(own, more)| *own += more);
}

/// One core, as it stands.
#[derive(Clone, Debug)]
pub struct CoreFigures {
    /// What it has counted.
    pub counters: Counters,
    /// What waits in it.
    pub queues: Queues,
    /// Other nodes, as its calls find them.
    pub nodes: Vec<PeerStatus>,
    /// Connections of clients that it has accepted.
    pub client_connections: usize,
    /// Connections of nodes that it has accepted.
    pub node_connections: usize,
    /// Sessions that are alive; on the core that keeps them, else 0.
    pub sessions: u32,
    /// Files that sessions hold open.
    pub opens: usize,
    /// Locks that are held.
    pub locks: usize,
    /// Shards that it owns.
    pub shards: usize,
    /// Inodes of its shards.
    pub inodes: u64,
    /// Its blocks.
    pub space: BlockFigures,
    /// Bytes of the journal behind the last round of snapshots.
    pub journal_behind: u64,
    /// How often the node's machine has lost power.
    pub losses: u64,
}

/// What waits in a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queues {
    /// Requests that are not answered, waits for locks left out.
    pub in_service: usize,
    /// Of these, requests that wait for keys or a cut.
    pub parked: usize,
    /// Of these, answers that wait for the journal.
    pub unwritten: usize,
    /// Of these, requests whose payload waits for memory.
    pub starved: usize,
    /// Waits for locks.
    pub lock_waits: usize,
    /// Mails that a sibling's full box has refused.
    pub unsent_mail: usize,
    /// Errands that siblings have not answered.
    pub errands: usize,
    /// Operations of the disk in flight.
    pub disk: usize,
    /// Whether clients are held back.
    pub paused: bool,
}

/// Blocks as a core knows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockFigures {
    /// Of the node's volume.
    pub total: u64,
    /// Named by this core's chunks.
    pub used: u64,
    /// Written by this core since the volume was synced last.
    pub dirty: u64,
    /// Freed by this core, and not free before the next sync mark.
    pub unsynced: u64,
    /// Of the node's, kept back for overwriting; on the core that keeps the ledger, else 0.
    pub reserve: u64,
}

impl World {
    /// See [`crate::Core::figures`].
    pub(crate) fn figures(&self) -> CoreFigures {
        let (shards, connections) = (self.shards.borrow(), self.connections.borrow());
        let (log, chunks) = (self.log.borrow(), self.chunks.borrow());
        let (client_connections, node_connections) = connections.counts();
        let (unsent_mail, errands) = self.siblings.counts();
        let (locks, lock_waits) = self.locks.borrow().counts();
        let queues = Queues {
            in_service: self.in_service.get(),
            parked: shards.values().map(|shard| shard.parked.len()).sum(),
            unwritten: log.gate.len(),
            starved: connections.starved.len(),
            lock_waits,
            unsent_mail,
            errands,
            disk: self.disk.len(),
            paused: connections.paused,
        };
        let space = BlockFigures {
            total: self.config.volume_blocks,
            used: chunks.used_blocks(),
            dirty: chunks.dirty_blocks(),
            unsynced: chunks.pending_blocks(),
            reserve: self.ledger.borrow().groups.as_ref().map_or(0, Groups::reserve),
        };
        let own = self.config.node;
        CoreFigures {
            counters: Counters { volume: self.disk.took(), ..self.counters.borrow().clone() },
            queues,
            nodes: self.calls.peers().into_iter().filter(|peer| peer.node != own).collect(),
            client_connections,
            node_connections,
            sessions: self.leases.borrow().count(),
            opens: self.opens.borrow().count(),
            locks,
            shards: shards.len(),
            inodes: shards.values().map(|shard| shard.state.inode_count() as u64).sum(),
            space,
            journal_behind: log.writer.tail().position.saturating_sub(self.snapshots.from.get()),
            losses: self.config.losses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_count_has_a_name_of_its_own() {
        let mut names: Vec<&str> = RequestKind::ALL.iter().map(|kind| kind.name()).collect();
        names.extend(PutOff::ALL.map(PutOff::name));
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        for (at, kind) in RequestKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, at);
        }
        for (at, counted) in Counted::ALL.into_iter().enumerate() {
            assert_eq!(counted as usize, at, "{}", counted.name());
        }
    }

    #[test]
    fn an_answer_counts_once_as_what_it_is() {
        let mut one = Counters::default();
        let kind = RequestKind::Create;
        one.arrive(kind);
        one.answer(kind, Status::Busy, 5);
        one.answer(kind, Status::Errno(Errno::EEXIST), 7);
        one.answer(kind, Status::Ok, 1);
        let mut both = one.clone();
        both.merge(&one);
        assert_eq!((both.arrived(kind), both.answered(kind).count()), (2, 6));
        assert_eq!((both.put_off(PutOff::Busy), both.put_off(PutOff::StaleMap)), (2, 0));
        assert_eq!(both.errors, BTreeMap::from([((kind, Errno::EEXIST), 2)]));
        assert_eq!(both.answered(kind).sum_ns(), 26);
    }
}
