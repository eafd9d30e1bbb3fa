//! Changes over several shards: what the coordinator and the participants do.
//!
//! ```text
//! coordinator                                     participant
//! plan -> Transaction, draw_tx, hold(own keys)
//! Request::Prepare to all others      ---------->  prepare -> Record(Prepared), keys held
//!                                     <----------  Reply::Prepared { attrs } once on the device
//! decide(attrs) -> Record(Decided), applied
//! reply to the client at the durability point
//! Request::Resolve { commit: true }   ---------->  resolve -> Record(Resolved), parts applied, keys free
//! all acknowledged: Record(Forgotten) <----------  Reply::Done
//!
//! any refusal: release(tx), Resolve { commit: false } to all others; nothing was journaled here
//! ```
//! All between the two is forced, on the device before it leaves, where durability promises anything: a loss of power takes
//! the end of one journal only.
//!
//! CRASH: without `Decided` on the coordinator's journal the transaction is aborted: [`State::decision`] says so to any
//! participant that asks. With it, the coordinator sends `Resolve` again to all of [`State::decided`].
//!
//! 1. A participant never gives up a prepared share by itself.
//! 2. A coordinator forgets a decision only after every participant has acknowledged it.
//! 3. A share is carried out once: a participant remembers the commits that it has carried out until the coordinator has
//!    forgotten them ([`Prepare::oldest`]); whoever asks for a forgotten one hears that it was aborted.
//! 4. Participants are refused at once when a key is held: nobody waits holding keys.
//! 5. Only a share that is or was prepared is acknowledged as committed: who has lost it says so.

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
    /// The lowest number of this shard's transactions that participants must still remember.
    pub oldest: u64,
    /// Everybody else's, ascending by shard; never empty.
    pub others: Vec<(ShardId, Vec<Part>)>,
    /// What is answered.
    pub answer: Answer,
}

impl Transaction {
    /// The requests to send, by shard.
    pub fn prepares(&self, tx: TxId) -> impl Iterator<Item = (ShardId, Prepare)> + '_ {
        let (session, now, oldest) = (self.origin.session, self.now, self.oldest);
        self.others.iter().map(move |(shard, parts)| {
            (*shard, Prepare { tx, oldest, session, now, parts: parts.clone() })
        })
    }

    /// The decision to commit, once all others are prepared. `attrs`: all that their replies brought.
    #[must_use]
    pub fn decide(self, tx: TxId, attrs: &[Attr]) -> Record {
        let Self { origin, now, mut own, others, answer, .. } = self;
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
/// A late duplicate of a share that was carried out is refused too.
pub fn prepare(state: &State, request: &Prepare) -> Result<Record, Refused> {
    if state.resolved.contains(&request.tx) {
        return Err(Refused::Busy);
    }
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

/// A participant's answer to `Request::Resolve`; `None` if it knew the decision: answer `Done`. ENOENT if it is to commit
/// what it has neither prepared nor carried out: its journal has lost the share, and the coordinator must not forget.
pub fn resolve(state: &State, tx: TxId, commit: bool, now: Time) -> Result<Option<Record>, Errno> {
    if state.prepared.contains_key(&tx) {
        let change = Change::Resolved { tx, commit };
        return Ok(Some(Record { origin: None, now, change }));
    }
    if commit && !state.resolved.contains(&tx) { Err(Errno::ENOENT) } else { Ok(None) }
}

/// All participants have acknowledged the decision; `None` if it is forgotten already.
#[must_use]
pub fn forget(state: &State, tx: TxId, now: Time) -> Option<Record> {
    let change = Change::Forgotten { tx };
    state.decided.contains_key(&tx).then_some(Record { origin: None, now, change })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::Planned;
    use crate::check::{check, check_all};
    use crate::testing::{World, at, bytes, create, ino, rmdir, shard_of, unlink};
    use sealfs_proto::{Ino, RenameFlag, Request, Who, directory_shard};

    /// A directory in the root whose inode lies in `shard`.
    fn directory_in(world: &mut World, shard: u16) -> Ino {
        let mut names = (0..).map(|number| format!("{shard}-{number}"));
        let fits = |name: &String| directory_shard(Ino::ROOT, name.as_bytes(), 4).0 == shard;
        let name = names.find(fits).expect("there are many names");
        world.mkdir(Ino::ROOT, &name)
    }

    fn link(world: &mut World, ino: Ino, dir: Ino, name: &str) {
        let (who, name) = (Who::root(), name.into());
        world.run(&Request::Link { who, ino, dir, name }).expect("the test may");
    }

    /// A request whose change has so many participants besides its coordinator.
    fn change_with(participants: usize) -> (World, Request) {
        let mut world = World::new();
        let dirs: Vec<Ino> = (0..4).map(|shard| directory_in(&mut world, shard)).collect();
        let moved_in = [0, 0, 2][participants - 1];
        let met_in = [1, 2, 3][participants - 1];
        let moved = world.create(dirs[moved_in], "made");
        let met = world.create(dirs[met_in], "made");
        link(&mut world, moved, dirs[0], "from");
        link(&mut world, met, dirs[1], "to");
        let (dir, target_dir, flag) = (dirs[0], dirs[1], RenameFlag::Replace);
        let (who, name, target_name) = (Who::root(), b"from".to_vec(), b"to".to_vec());
        (world, Request::Rename { who, dir, name, target_dir, target_name, flag })
    }

    /// What the coordinator's process knows of its transaction.
    #[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
    enum Phase {
        Preparing(BTreeSet<ShardId>),
        Decided(BTreeSet<ShardId>),
        Ended,
    }

    /// A moment of a transaction's life.
    #[derive(Clone)]
    struct Moment {
        world: World,
        phase: Phase,
        /// How often each participant was asked to prepare.
        asked: Vec<u8>,
    }

    /// Everything that can happen next, by name.
    struct Story {
        coordinator: ShardId,
        tx: TxId,
        transaction: Transaction,
        shares: Vec<(ShardId, Prepare)>,
    }

    impl Story {
        fn next(&self, moment: &Moment) -> Vec<Moment> {
            let mut next = Vec::new();
            let mut may = |act: &dyn Fn(&mut Moment) -> bool| {
                let mut then = moment.clone();
                if act(&mut then) {
                    next.push(then);
                }
            };
            for (at, (shard, _)) in self.shares.iter().enumerate() {
                // Arrives, also as a late duplicate; the reply arrives or is lost.
                may(&|then| self.prepare(then, at, true));
                may(&|then| self.prepare(then, at, false));
                may(&|then| self.resolve(then, *shard));
                may(&|then| self.ask(then, *shard));
                may(&|then| Self::crash(then, *shard));
            }
            may(&|then| self.decide(then));
            may(&|then| self.abort(then));
            may(&|then| self.forget(then));
            may(&|then| self.crash_coordinator(then));
            next
        }

        fn prepare(&self, then: &mut Moment, at: usize, reply_arrives: bool) -> bool {
            let (shard, share) = &self.shares[at];
            then.asked[at] += 1;
            let prepared = then.asked[at] <= 2 && then.world.prepare(*shard, share).is_ok();
            if let (true, true, Phase::Preparing(known)) =
                (prepared, reply_arrives, &mut then.phase)
            {
                known.insert(*shard);
            }
            prepared
        }

        fn decide(&self, then: &mut Moment) -> bool {
            let all = |known: &BTreeSet<_>| known.len() == self.shares.len();
            let ready = matches!(&then.phase, Phase::Preparing(known) if all(known));
            if ready {
                let record = self.transaction.clone().decide(self.tx, &[]);
                then.world.append(self.coordinator, record);
                then.phase = Phase::Decided(BTreeSet::new());
            }
            ready
        }

        fn abort(&self, then: &mut Moment) -> bool {
            let preparing = matches!(then.phase, Phase::Preparing(_));
            if preparing {
                then.world.state(self.coordinator).release(self.tx);
                then.phase = Phase::Ended;
            }
            preparing
        }

        fn resolve(&self, then: &mut Moment, shard: ShardId) -> bool {
            let Phase::Decided(acknowledged) = &mut then.phase else { return false };
            then.world.resolve(shard, self.tx, true);
            acknowledged.insert(shard)
        }

        fn ask(&self, then: &mut Moment, shard: ShardId) -> bool {
            let prepared = then.world.state(shard).is_prepared(self.tx).is_some();
            match then.world.state(self.coordinator).decision(self.tx) {
                Some(commit) if prepared => {
                    then.world.resolve(shard, self.tx, commit);
                    true
                }
                _ => false,
            }
        }

        fn forget(&self, then: &mut Moment) -> bool {
            let all = |known: &BTreeSet<_>| known.len() == self.shares.len();
            let done = matches!(&then.phase, Phase::Decided(known) if all(known));
            if done {
                let record = forget(then.world.state(self.coordinator), self.tx, at(0));
                then.world.append(self.coordinator, record.expect("it was decided"));
                then.phase = Phase::Ended;
            }
            done
        }

        fn crash(then: &mut Moment, shard: ShardId) -> bool {
            let mut state = then.world.replayed(usize::from(shard.0));
            state.recovered();
            *then.world.state(shard) = state;
            true
        }

        fn crash_coordinator(&self, then: &mut Moment) -> bool {
            Self::crash(then, self.coordinator);
            let decided = then.world.state(self.coordinator).decided().count() == 1;
            then.phase = if decided { Phase::Decided(BTreeSet::new()) } else { Phase::Ended };
            true
        }

        /// Whether the change is done, once everybody has learned the decision.
        fn outcome(&self, moment: &Moment, request: &Request) -> bool {
            let mut end = moment.clone();
            self.crash_coordinator(&mut end);
            self.shares.iter().for_each(|(shard, _)| _ = self.ask(&mut end, *shard));
            assert_eq!(check_all(&end.world.states), []);
            assert_eq!(
                end.world.states.iter().map(|state| state.prepared().count()).sum::<usize>(),
                0
            );
            let Request::Rename { dir, name, target_dir, target_name, .. } = request else {
                unreachable!("the test renames")
            };
            let of = |dir: Ino, name: &[u8]| {
                end.world.lookup(dir, std::str::from_utf8(name).expect("the test's names"))
            };
            let (from, to) = (of(*dir, name), of(*target_dir, target_name));
            assert!(to.is_some(), "the target always exists");
            from.is_none()
        }
    }

    /// All moments of a transaction with so many participants, whatever is lost, repeated or crashes when.
    fn enumerate(participants: usize) -> usize {
        let (mut world, request) = change_with(participants);
        let coordinator = shard_of(&request);
        let mut asked = world.asked();
        let Ok(Planned::Transaction(transaction)) =
            world.planned(coordinator, &request, &mut asked)
        else {
            panic!("it concerns several shards")
        };
        assert_eq!(transaction.others.len(), participants);
        let tx = world.open(coordinator, &transaction);
        let shares: Vec<_> = transaction.prepares(tx).collect();
        let story = Story { coordinator, tx, transaction, shares };
        let phase = Phase::Preparing(BTreeSet::new());
        let mut open = vec![Moment { world, phase, asked: vec![0; participants] }];
        let mut seen = BTreeSet::new();
        let mut decided = [0, 0];
        while let Some(moment) = open.pop() {
            let states: Vec<Vec<u8>> = moment.world.states.iter().map(bytes).collect();
            if !seen.insert((states, moment.phase.clone(), moment.asked.clone())) {
                continue;
            }
            moment.world.states.iter().for_each(|state| assert_eq!(check(state), []));
            let committed = story.outcome(&moment, &request);
            decided[usize::from(committed)] += 1;
            match moment.phase {
                Phase::Preparing(_) => assert!(!committed, "not without a decision"),
                Phase::Decided(_) => assert!(committed, "a decision stands"),
                Phase::Ended => {}
            }
            open.extend(story.next(&moment));
        }
        assert!(decided[0] > 0 && decided[1] > 0, "both ends are reached");
        seen.len()
    }

    #[test]
    fn all_commit_or_all_abort_whatever_crashes_when() {
        let moments = [1, 2, 3].map(enumerate);
        assert!(moments[0] > 10 && moments[1] > 5 * moments[0] && moments[2] > 5 * moments[1]);
    }

    /// A transaction of `request`, prepared everywhere and not decided.
    fn prepared(world: &mut World, request: &Request) -> (Transaction, TxId) {
        let (shard, mut asked) = (shard_of(request), world.asked());
        let Ok(Planned::Transaction(transaction)) = world.planned(shard, request, &mut asked)
        else {
            panic!("it concerns several shards")
        };
        let tx = world.open(shard, &transaction);
        let shares: Vec<_> = transaction.prepares(tx).collect();
        shares.iter().for_each(|(to, share)| _ = world.prepare(*to, share).unwrap());
        (transaction, tx)
    }

    fn planned(world: &mut World, request: &Request) -> Result<Planned, Refused> {
        let mut asked = world.asked();
        world.planned(shard_of(request), request, &mut asked)
    }

    fn directory_and_name(world: &mut World, shard: u16) -> (Ino, String) {
        let dir = directory_in(world, shard);
        let root = world.inode(Ino::ROOT).and_then(|inode| inode.directory()).expect("it is one");
        let (_, entry) = root.behind(0).find(|(_, entry)| entry.ino == dir).expect("just made");
        (dir, String::from_utf8(entry.name.to_vec()).expect("the test's names"))
    }

    #[test]
    fn nothing_is_made_in_a_directory_that_may_be_ending_and_none_ends_that_may_be_filled() {
        let mut world = World::new();
        let (dir, name) = directory_and_name(&mut world, 1);
        let (_, tx) = prepared(&mut world, &rmdir(Who::root(), Ino::ROOT, &name));
        assert_eq!(planned(&mut world, &create(Who::root(), dir, "x")), Err(Refused::Busy));
        world.resolve(dir.shard(), tx, false);
        world.state(ShardId(0)).release(tx);
        let other = directory_in(&mut world, 2);
        let file = world.create(other, "file");
        let rename = Request::Rename {
            who: Who::root(),
            dir: other,
            name: b"file".to_vec(),
            target_dir: dir,
            target_name: b"x".to_vec(),
            flag: RenameFlag::Replace,
        };
        let (transaction, tx) = prepared(&mut world, &rename);
        assert_eq!(world.run_to_refusal(&rmdir(Who::root(), Ino::ROOT, &name)), Refused::Busy);
        assert!(planned(&mut world, &create(Who::root(), dir, "y")).is_ok(), "others may be added");
        world.append(other.shard(), transaction.decide(tx, &[]));
        world.resolve(dir.shard(), tx, true);
        assert_eq!(world.lookup(dir, "x"), Some(file));
    }

    #[test]
    fn what_asks_for_a_directory_that_is_being_made_waits_until_it_is_there() {
        let mut world = World::new();
        let mut names = (0..).map(|number| format!("d{number}"));
        let fits = |name: &String| directory_shard(Ino::ROOT, name.as_bytes(), 4) == ShardId(1);
        let name = names.find(fits).expect("there are many names").into_bytes();
        let who = Who::root;
        let mkdir = Request::Mkdir { who: who(), dir: Ino::ROOT, name, mode: 0o755, umask: 0 };
        let (transaction, tx) = prepared(&mut world, &mkdir);
        let (to, share) = transaction.prepares(tx).next().expect("there is a participant");
        let attrs = world.prepare(to, &share).expect("it is prepared already");
        let dir = ino(Ok(world.append(ShardId(0), transaction.decide(tx, &attrs)).reply));
        assert_eq!(dir.shard(), ShardId(1));
        // The coordinator has answered; the participant does not know the decision yet.
        let lookup = Request::Lookup { who: who(), dir, name: b"x".to_vec() };
        for request in [Request::Stat { ino: dir }, Request::Parent { ino: dir }, lookup] {
            assert_eq!(crate::waits(&world.states[1], &request), [tx].into(), "{request:?}");
        }
        let create = create(who(), dir, "x");
        assert_eq!(planned(&mut world, &create), Err(Refused::Busy));
        world.resolve(ShardId(1), tx, true);
        assert!(crate::waits(&world.states[1], &Request::Stat { ino: dir }).is_empty());
        let file = ino(world.run(&create));
        assert_eq!(world.lookup(dir, "x"), Some(file));
    }

    #[test]
    fn link_and_last_unlink_of_one_inode_meet() {
        let mut world = World::new();
        let dir = directory_in(&mut world, 1);
        let file = world.create(Ino::ROOT, "file");
        let (who, name) = (Who::root(), b"link".to_vec());
        let link = Request::Link { who, ino: file, dir, name };
        let (transaction, tx) = prepared(&mut world, &link);
        let unlink = unlink(Who::root(), Ino::ROOT, "file");
        assert_eq!(planned(&mut world, &unlink), Err(Refused::Busy));
        world.append(dir.shard(), transaction.decide(tx, &[world.attr(file).clone()]));
        world.resolve(file.shard(), tx, true);
        world.run(&unlink).unwrap();
        assert_eq!((world.attr(file).nlink, world.lookup(dir, "link")), (1, Some(file)));
    }

    #[test]
    fn a_walk_waits_for_a_move_that_is_not_decided_whoever_makes_it() {
        let mut world = World::new();
        let (from, to) = (directory_in(&mut world, 0), directory_in(&mut world, 1));
        let mut names = (0..).map(|number| format!("m{number}"));
        let fits = |name: &String| directory_shard(from, name.as_bytes(), 4) == ShardId(0);
        let name = names.find(fits).expect("there are many names");
        let moved = world.mkdir(from, &name);
        let (who, name, target_name) = (Who::root(), name.clone().into_bytes(), name.into_bytes());
        let (dir, target_dir, flag) = (from, to, RenameFlag::Replace);
        let rename = Request::Rename { who, dir, name, target_dir, target_name, flag };
        let (transaction, tx) = prepared(&mut world, &rename);
        let present = crate::waits(&world.states[0], &Request::Parent { ino: moved });
        assert!(present.is_empty(), "a client is told the present");
        assert_eq!(crate::walk_waits(&world.states[0], moved), [tx].into());
        world.append(ShardId(0), transaction.decide(tx, &[]));
        assert!(crate::walk_waits(&world.states[0], moved).is_empty());
    }

    #[test]
    fn reads_wait_for_a_prepared_key_but_not_for_the_coordinators_own() {
        let (mut world, request) = change_with(1);
        let (transaction, tx) = prepared(&mut world, &request);
        let Request::Rename { dir, name, target_dir, target_name, .. } = request else {
            unreachable!("the test renames")
        };
        let lookup = |dir: Ino, name: &Vec<u8>| Request::Lookup {
            who: Who::root(),
            dir,
            name: name.clone(),
        };
        let waits = |request: &Request, shard: ShardId| {
            crate::waits(&world.states[usize::from(shard.0)], request)
        };
        assert_eq!(waits(&lookup(target_dir, &target_name), target_dir.shard()), [tx].into());
        let other = b"other".to_vec();
        assert_eq!(waits(&lookup(target_dir, &other), target_dir.shard()), BTreeSet::new());
        assert_eq!(waits(&Request::Stat { ino: target_dir }, target_dir.shard()), [tx].into());
        assert!(waits(&lookup(dir, &name), dir.shard()).is_empty());
        assert!(waits(&Request::Stat { ino: dir }, dir.shard()).is_empty());
        assert_eq!(world.states[usize::from(dir.shard().0)].decision(tx), None, "it is open");
        world.append(dir.shard(), transaction.decide(tx, &[]));
        assert_eq!(world.state(dir.shard()).decision(tx), Some(true));
    }

    #[test]
    fn a_decision_is_acknowledged_again_but_not_by_who_has_lost_its_share() {
        let (mut world, request) = change_with(1);
        let (transaction, tx) = prepared(&mut world, &request);
        let (to, _) = transaction.prepares(tx).next().expect("there is a participant");
        let lost = World::new().states[usize::from(to.0)].clone();
        world.append(shard_of(&request), transaction.decide(tx, &[]));
        world.resolve(to, tx, true);
        assert_eq!(resolve(world.state(to), tx, true, at(0)), Ok(None), "the reply was lost");
        assert_eq!(resolve(&lost, tx, true, at(0)), Err(Errno::ENOENT));
        assert_eq!(resolve(&lost, tx, false, at(0)), Ok(None), "no share is an aborted one");
    }

    #[test]
    fn a_stale_answer_is_busy_so_that_the_coordinator_plans_again() {
        let (mut world, request) = change_with(1);
        let mut asked = world.asked();
        let planned = world.planned(shard_of(&request), &request, &mut asked);
        let Ok(Planned::Transaction(transaction)) = planned else { panic!("{planned:?}") };
        let Request::Rename { target_dir, .. } = request else { unreachable!("the test renames") };
        world.run(&unlink(Who::root(), target_dir, "to")).unwrap();
        ino(world.run(&create(Who::root(), target_dir, "to")));
        let tx = world.open(shard_of(&request), &transaction);
        let shares: Vec<_> = transaction.prepares(tx).collect();
        let refused = world.prepare(shares[0].0, &shares[0].1);
        assert_eq!(refused, Err(Refused::Busy));
    }
}
