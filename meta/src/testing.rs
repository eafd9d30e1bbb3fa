//! What tests of this crate share: inodes, and a small cluster whose shards are driven by hand.

use sealfs_proto::{
    Attr, ClusterId, Errno, Ino, Kind, New, NodeId, Prepare, Reply, Request, Sequence, SessionId,
    SetAttr, ShardId, Time, TxId, Who, decode, encode,
};

use crate::check::{check, check_all};
use crate::snapshot::Encoder;
use crate::{
    Applied, Asked, Change, Effect, Facts, Inode, Kept, Origin, Planned, Question, Record, Refused,
    RootOptions, State, Target, Transaction, apply, forget, plan, plan_reclaim, prepare, read,
    resolve, snapshot, waits,
};

/// A time for tests.
pub(crate) const fn at(seconds: i64) -> Time {
    Time { seconds, nanos: 7 }
}

/// A file whose attributes `change` has changed.
pub(crate) fn file(change: impl FnOnce(&mut Attr)) -> Inode {
    let mut attr = Attr {
        ino: Ino(9),
        kind: Kind::File,
        mode: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        chunk_size: 1 << 20,
        atime: at(1),
        mtime: at(1),
        ctime: at(1),
        change: 1,
        generation: 1,
        bound: 1 << 20,
    };
    change(&mut attr);
    Inode::new(attr, Ino(0), Vec::new(), Vec::new())
}

/// A user of no importance.
pub(crate) fn user(uid: u32) -> Who {
    Who { uid, gid: uid, groups: Vec::new() }
}

/// The bytes of a state.
pub(crate) fn bytes(state: &State) -> Vec<u8> {
    snapshot::encode(ClusterId([7; 16]), NodeId(1), state, b"chunks")
}

/// All shards of a cluster in one place, with the records that made them. A change runs to its end before the next.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) states: Vec<State>,
    pub(crate) records: Vec<Vec<Record>>,
    pub(crate) sequence: u64,
    /// Whether an inode without links is reclaimed at once, as if nobody had it open.
    pub(crate) reclaims: bool,
    /// The snapshot of each shard that is being taken, and what it must become.
    taking: Vec<Option<(Encoder, Vec<u8>)>>,
    /// Snapshots that were taken while records came.
    pub(crate) taken: u32,
}

impl World {
    /// A formatted cluster of 4 shards with numbers to draw.
    pub(crate) fn new() -> Self {
        let mut states: Vec<State> = (0..4).map(|shard| State::new(ShardId(shard))).collect();
        states[0] = State::with_root(RootOptions { mode: 0o777, ..RootOptions::default() }, at(0));
        let mut world = Self {
            states,
            records: vec![Vec::new(); 4],
            sequence: 0,
            reclaims: true,
            taking: vec![None; 4],
            taken: 0,
        };
        (0..4).for_each(|shard| world.reserve(ShardId(shard)));
        world
    }

    pub(crate) fn state(&mut self, shard: ShardId) -> &mut State {
        &mut self.states[usize::from(shard.0)]
    }

    pub(crate) fn inode(&self, ino: Ino) -> Option<&Inode> {
        self.states[usize::from(ino.shard().0)].inode(ino)
    }

    pub(crate) fn attr(&self, ino: Ino) -> &Attr {
        &self.inode(ino).expect("the test knows that it exists").attr
    }

    pub(crate) fn reserve(&mut self, shard: ShardId) {
        if let Some(range) = self.state(shard).range() {
            self.append(shard, Record { origin: None, now: at(0), change: Change::Range(range) });
            self.state(shard).range_synced();
        }
    }

    /// Applies a record as a node does, and what follows from it.
    pub(crate) fn append(&mut self, shard: ShardId, record: Record) -> Applied {
        let stored: Record = decode("record", &encode(&record)).expect("a record can be stored");
        assert_eq!(stored, record);
        self.take_slice(shard);
        let applied = apply(self.state(shard), &record);
        self.records[usize::from(shard.0)].push(record);
        for effect in &applied.effects {
            self.follow(shard, *effect);
        }
        applied
    }

    /// Goes on with the snapshot of the shard: whatever came since it was begun, it is what it was then.
    fn take_slice(&mut self, shard: ShardId) {
        let at = usize::from(shard.0);
        let (state, taking) = (&mut self.states[at], &mut self.taking[at]);
        // A state that was replayed knows nothing of the snapshot that another one was in.
        let (encoder, _) = match taking {
            Some(taking) if state.walk.is_some() => taking,
            _ => {
                let whole = bytes(state);
                taking.insert((Encoder::begin(ClusterId([7; 16]), NodeId(1), state), whole))
            }
        };
        encoder.room = 1 + self.records[at].len() * 37 % 1_500;
        if !encoder.state_slice(state) {
            return;
        }
        if let Some((mut encoder, whole)) = taking.take() {
            encoder.chunk_slice(|out, _| {
                out.extend(b"chunks");
                true
            });
            assert!(encoder.finish().concat() == whole, "the snapshot of shard {shard} differs");
            self.taken += 1;
        }
    }

    fn follow(&mut self, shard: ShardId, effect: Effect) {
        let now = at(self.sequence as i64);
        let record = match effect {
            Effect::Unlinked(ino) if self.reclaims => {
                plan_reclaim(self.state(shard), ino, now).ok()
            }
            Effect::Cut { ino, .. } => {
                let change = Change::CutDone { ino, blocks: 0 };
                Some(Record { origin: None, now, change })
            }
            Effect::Reclaim { ino, .. } => {
                Some(Record { origin: None, now, change: Change::Reclaimed { ino } })
            }
            Effect::Unlinked(_) | Effect::Durable(_) | Effect::Dropped(_) => None,
        };
        if let Some(record) = record {
            self.append(shard, record);
        }
    }

    /// The next request of the session.
    pub(crate) fn asked(&mut self) -> Asked {
        self.sequence += 1;
        asked(self.sequence)
    }

    /// Carries a change out as the servers do together.
    pub(crate) fn run(&mut self, request: &Request) -> Result<Reply, Errno> {
        let shard = shard_of(request);
        let mut asked = self.asked();
        let reply = loop {
            match self.planned(shard, request, &mut asked) {
                Ok(Planned::Reply(reply)) => break reply,
                Ok(Planned::Record(record)) => break self.append(shard, record).reply,
                Ok(Planned::Transaction(transaction)) => break self.commit(shard, transaction)?,
                Ok(Planned::Ask(_)) => unreachable!("questions are answered below"),
                Err(Refused::Errno(errno)) => return Err(errno),
                Err(Refused::Numbers) => self.reserve(shard),
                Err(Refused::Busy) => panic!("nothing else runs: {request:?}"),
            }
        };
        Ok(reply)
    }

    /// Plans until no question is open.
    pub(crate) fn planned(
        &mut self,
        shard: ShardId,
        request: &Request,
        asked: &mut Asked,
    ) -> Result<Planned, Refused> {
        loop {
            match plan(self.state(shard), request, asked)? {
                Planned::Ask(question) => self.answer(question, &mut asked.facts)?,
                planned => return Ok(planned),
            }
        }
    }

    /// A read as its shard answers it: Busy stands for waiting until a decision is there.
    fn ask(&self, shard: ShardId, request: &Request) -> Result<Reply, Refused> {
        let state = &self.states[usize::from(shard.0)];
        if !waits(state, request).is_empty() {
            Err(Refused::Busy)
        } else {
            Ok(read(state, request)?)
        }
    }

    fn answer(&self, question: Question, facts: &mut Facts) -> Result<(), Refused> {
        match question {
            Question::Target { dir, name } => {
                let who = Who::root();
                let lookup = Request::Lookup { who, dir, name };
                let entry = match self.ask(dir.shard(), &lookup) {
                    Ok(Reply::Entry(entry)) => Some((entry.ino, entry.kind)),
                    Err(Refused::Errno(Errno::ENOENT)) => None,
                    other => return Err(other.expect_err("a lookup gives an entry")),
                };
                let Reply::Attr(dir) = self.ask(dir.shard(), &Request::Stat { ino: dir })? else {
                    unreachable!("stat gives attributes")
                };
                facts.target = Some(Target { dir, entry });
            }
            Question::Ancestry { walks } => {
                for (from, forbidden) in walks {
                    self.walk(from, forbidden)?;
                }
                facts.ancestry = true;
            }
            Question::End { generation, .. } => facts.end = Some((generation, 0)),
        }
        Ok(())
    }

    fn walk(&self, from: Ino, forbidden: Ino) -> Result<(), Refused> {
        let mut at = from;
        while at != Ino::ROOT {
            if at == forbidden {
                return Err(Errno::EINVAL.into());
            }
            match self.ask(at.shard(), &Request::Parent { ino: at })? {
                Reply::Parent(parent) => at = parent,
                other => unreachable!("{other:?}"),
            }
        }
        Ok(())
    }

    /// Opens a transaction on its coordinator.
    pub(crate) fn open(&mut self, shard: ShardId, transaction: &Transaction) -> TxId {
        let state = self.state(shard);
        let tx = state.draw_tx().expect("the range is large");
        state.hold(tx, &transaction.own);
        tx
    }

    /// A participant's share of it.
    pub(crate) fn prepare(
        &mut self,
        shard: ShardId,
        share: &Prepare,
    ) -> Result<Vec<Attr>, Refused> {
        if self.state(shard).is_prepared(share.tx).is_none() {
            let record = prepare(self.state(shard), share)?;
            self.append(shard, record);
        }
        match self.state(shard).is_prepared(share.tx) {
            Some(Reply::Prepared { attrs }) => Ok(attrs),
            other => unreachable!("{other:?}"),
        }
    }

    pub(crate) fn resolve(&mut self, shard: ShardId, tx: TxId, commit: bool) {
        if let Ok(Some(record)) = resolve(self.state(shard), tx, commit, at(0)) {
            self.append(shard, record);
        }
    }

    fn commit(&mut self, shard: ShardId, transaction: Transaction) -> Result<Reply, Errno> {
        let tx = self.open(shard, &transaction);
        let shares: Vec<_> = transaction.prepares(tx).collect();
        let mut attrs = Vec::new();
        for (to, share) in &shares {
            match self.prepare(*to, share) {
                Ok(more) => attrs.extend(more),
                Err(Refused::Errno(errno)) => {
                    self.state(shard).release(tx);
                    shares.iter().for_each(|(to, _)| self.resolve(*to, tx, false));
                    return Err(errno);
                }
                Err(refused) => panic!("nothing else runs: {refused:?}"),
            }
        }
        let reply = self.append(shard, transaction.decide(tx, &attrs)).reply;
        shares.iter().for_each(|(to, _)| self.resolve(*to, tx, true));
        let record = forget(self.state(shard), tx, at(0)).expect("it was decided");
        self.append(shard, record);
        Ok(reply)
    }

    /// Carries a transaction on until somebody refuses; it is aborted then.
    pub(crate) fn run_to_refusal(&mut self, request: &Request) -> Refused {
        let (shard, mut asked) = (shard_of(request), self.asked());
        let transaction = match self.planned(shard, request, &mut asked) {
            Ok(Planned::Transaction(transaction)) => transaction,
            Err(refused) => return refused,
            other => panic!("{other:?}"),
        };
        let tx = self.open(shard, &transaction);
        let shares: Vec<_> = transaction.prepares(tx).collect();
        let refused = shares.iter().find_map(|(to, share)| self.prepare(*to, share).err());
        self.state(shard).release(tx);
        shares.iter().for_each(|(to, _)| self.resolve(*to, tx, false));
        refused.expect("the test knows that it is refused")
    }

    /// What a node has after replaying its journal from the beginning.
    pub(crate) fn replayed(&self, shard: usize) -> State {
        let options = RootOptions { mode: 0o777, ..RootOptions::default() };
        let mut state = match shard {
            0 => State::with_root(options, at(0)),
            _ => State::new(ShardId(shard as u16)),
        };
        self.records[shard].iter().for_each(|record| _ = apply(&mut state, record));
        state
    }

    /// Replay, snapshots and the checks find nothing wrong.
    pub(crate) fn assert_sound(&self) {
        for (shard, state) in self.states.iter().enumerate() {
            let bytes = bytes(state);
            assert!(self::bytes(&self.replayed(shard)) == bytes, "replay of shard {shard} differs");
            let read = snapshot::decode(&bytes).expect("a snapshot can be read");
            assert_eq!(read.chunks, b"chunks");
            assert!(self::bytes(&read.state) == bytes, "snapshot of shard {shard} differs");
            assert_eq!(check(&read.state), []);
        }
        assert_eq!(check_all(&self.states), []);
    }

    pub(crate) fn mkdir(&mut self, dir: Ino, name: &str) -> Ino {
        let (who, name) = (Who::root(), name.into());
        ino(self.run(&Request::Mkdir { who, dir, name, mode: 0o777, umask: 0 }))
    }

    pub(crate) fn create(&mut self, dir: Ino, name: &str) -> Ino {
        ino(self.run(&create(Who::root(), dir, name)))
    }

    pub(crate) fn lookup(&self, dir: Ino, name: &str) -> Option<Ino> {
        let (who, name) = (Who::root(), name.into());
        match read(&self.states[usize::from(dir.shard().0)], &Request::Lookup { who, dir, name }) {
            Ok(Reply::Entry(entry)) => Some(entry.ino),
            _ => None,
        }
    }

    pub(crate) fn set(&mut self, who: Who, ino: Ino, set: SetAttr) -> Result<Reply, Errno> {
        self.run(&Request::SetAttr { who, ino, set, opened: false })
    }

    pub(crate) fn chmod(&mut self, ino: Ino, mode: u32, uid: u32) {
        let set = SetAttr { uid: Some(uid), gid: Some(uid), ..SetAttr::default() };
        self.set(Who::root(), ino, set).expect("root may");
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        self.set(Who::root(), ino, set).expect("root may");
    }

    pub(crate) fn kept(&self, shard: ShardId, sequence: u64) -> Kept<'_> {
        self.states[usize::from(shard.0)].kept(SessionId(1), Sequence(sequence))
    }
}

pub(crate) fn create(who: Who, dir: Ino, name: &str) -> Request {
    let (name, new) = (name.into(), New::File);
    Request::Create { who, dir, name, new, mode: 0o666, umask: 0, open: false }
}

pub(crate) fn unlink(who: Who, dir: Ino, name: &str) -> Request {
    Request::Unlink { who, dir, name: name.into() }
}

pub(crate) fn rmdir(who: Who, dir: Ino, name: &str) -> Request {
    Request::Rmdir { who, dir, name: name.into() }
}

/// The inode of an entry that was made.
pub(crate) fn ino(reply: Result<Reply, Errno>) -> Ino {
    match reply {
        Ok(Reply::Entry(entry)) => entry.ino,
        other => panic!("no entry: {other:?}"),
    }
}

/// Where a change goes.
pub(crate) fn shard_of(request: &Request) -> ShardId {
    request.shard(4).expect("it is a change of a shard's names or inodes")
}

/// Request `sequence` of session 1, at second `sequence`, in a cluster of 4 shards.
pub(crate) fn asked(sequence: u64) -> Asked {
    let session = SessionId(1);
    let origin = Origin { session, sequence: Sequence(sequence), watermark: Sequence(sequence) };
    Asked { origin, now: at(sequence as i64), shards: 4, facts: Facts::default() }
}
