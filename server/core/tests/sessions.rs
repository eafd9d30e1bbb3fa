//! What a session holds, while it lives and when it ends.

mod support;

use std::cell::RefCell;
use std::rc::Rc;

use sealfs_proto::{
    Errno, Ino, Lock, LockKind, LockOwner, LockSpace, NodeId, Reply, Request, Sequence, SetAttr,
    Who,
};
use sealfs_transport::{Ask, CallError};
use support::{Cluster, Setup, create, entry};

const NODE: NodeId = NodeId(1);

fn lock(kind: LockKind) -> Lock {
    Lock { space: LockSpace::Posix, kind, start: 0, end: 9, owner: LockOwner(1), pid: 1 }
}

fn lock_ask(ino: Ino, kind: LockKind, wait: bool) -> Ask {
    let ask = Ask::change(ino.shard(), Request::Lock { ino, lock: lock(kind), wait });
    if wait { ask.waiting_for_lock() } else { ask }
}

fn short_lease() -> Cluster {
    Cluster::new(Setup { cores: 2, lease_ms: 40_000, ..Setup::default() })
}

#[test]
fn an_unlinked_file_lives_until_its_last_close() {
    let mut cluster = short_lease();
    let file = entry(cluster.change(Ino::ROOT.shard(), create(Ino::ROOT, "f", true))).unwrap();
    cluster.write(file, 0, 0, b"still here");
    cluster.unlink(Ino::ROOT, "f").unwrap();
    cluster.run_ms(500);
    assert_eq!(cluster.read(file, 0, 0, 5), b"still");
    cluster.change(file.shard(), Request::Close { ino: file, opens: 1 }).unwrap();
    cluster.run_ms(500);
    assert!(matches!(cluster.stat(file), Err(CallError::Errno(_))));
}

#[test]
fn a_session_that_is_silent_loses_opens_and_locks() {
    let mut cluster = short_lease();
    let other = cluster.client(9);
    let file = entry(cluster.change_by(other, Ino::ROOT.shard(), create(Ino::ROOT, "f", true)));
    let file = file.unwrap();
    cluster.call(other, NODE, lock_ask(file, LockKind::Write, false)).unwrap();
    let refused = cluster.call(0, NODE, lock_ask(file, LockKind::Write, false));
    assert!(matches!(refused, Err(CallError::Errno(Errno::EAGAIN))), "{refused:?}");
    let waits = cluster.begin(0, NODE, lock_ask(file, LockKind::Write, true));
    cluster.unlink(Ino::ROOT, "f").unwrap();
    cluster.lose_client(other);
    cluster.run_ms(20_000);
    assert!(waits.borrow().is_none());
    assert!(cluster.stat(file).is_ok());
    let granted = cluster.finish(&waits).unwrap();
    assert_eq!(granted.reply, Reply::Done);
    cluster.run_ms(1_000);
    assert!(cluster.stat(file).is_err(), "nobody has it open any more");
}

#[test]
fn a_node_that_stood_still_for_long_takes_nothing_from_anybody() {
    let mut cluster = short_lease();
    let other = cluster.client(9);
    let file = entry(cluster.change_by(other, Ino::ROOT.shard(), create(Ino::ROOT, "f", true)));
    let file = file.unwrap();
    cluster.call(other, NODE, lock_ask(file, LockKind::Write, false)).unwrap();
    cluster.unlink(Ino::ROOT, "f").unwrap();
    cluster.run_ms(1_000);
    // SIGSTOP, and SIGCONT ten minutes later.
    cluster.now = cluster.now.after_ms(600_000);
    cluster.run_ms(1_000);
    assert!(cluster.stat(file).is_ok(), "the file is open");
    let refused = cluster.call(0, NODE, lock_ask(file, LockKind::Write, false));
    assert!(matches!(refused, Err(CallError::Errno(Errno::EAGAIN))), "{refused:?}");
    let again = cluster.call(other, NODE, lock_ask(file, LockKind::Read, false)).unwrap();
    assert_eq!(again.reply, Reply::Done, "the session lives");
}

#[test]
fn waits_for_locks_keep_nobody_from_unlocking() {
    let mut cluster =
        Cluster::new(Setup { cores: 2, lease_ms: 40_000, requests_max: 2, ..Setup::default() });
    let file = cluster.create(Ino::ROOT, "f");
    cluster.call(0, NODE, lock_ask(file, LockKind::Write, false)).unwrap();
    let waiting: Vec<_> = (0..6)
        .map(|seed| {
            let client = cluster.client(seed + 10);
            cluster.begin(client, NODE, lock_ask(file, LockKind::Read, true))
        })
        .collect();
    // Longer than a lease: nobody who waits loses his session meanwhile.
    cluster.run_ms(60_000);
    assert!(waiting.iter().all(|wait| wait.borrow().is_none()));
    cluster.call(0, NODE, lock_ask(file, LockKind::Unlock, false)).unwrap();
    for wait in &waiting {
        assert_eq!(cluster.finish(wait).unwrap().reply, Reply::Done);
    }
}

#[test]
fn a_wait_for_a_lock_can_be_cancelled() {
    let mut cluster = short_lease();
    let other = cluster.client(9);
    let file = cluster.create(Ino::ROOT, "f");
    cluster.call(other, NODE, lock_ask(file, LockKind::Read, false)).unwrap();
    let call = cluster.clients[0].call(NODE, lock_ask(file, LockKind::Write, true));
    cluster.run_ms(50);
    let waiting = call.sequence().unwrap();
    let result = support::Pending::default();
    let sink = Rc::clone(&result);
    cluster.tasks.spawn(async move { *sink.borrow_mut() = Some(call.await) });
    cluster.run_ms(50);
    let cancel = |waiting: Sequence| Request::LockCancel { ino: file, waiting };
    cluster.change(file.shard(), cancel(waiting)).unwrap();
    let ended = cluster.finish(&result);
    assert!(matches!(ended, Err(CallError::Errno(Errno::EINTR))), "{ended:?}");
}

#[test]
fn after_a_restart_nothing_is_taken_from_a_session_that_may_come_back() {
    let mut cluster = short_lease();
    let file = entry(cluster.change(Ino::ROOT.shard(), create(Ino::ROOT, "f", true))).unwrap();
    cluster.write(file, 0, 0, b"still here");
    cluster.unlink(Ino::ROOT, "f").unwrap();
    cluster.clients[0].set_claims(move |_, _| {
        vec![sealfs_proto::Claim { ino: file, opens: 1, locks: vec![lock(LockKind::Write)] }]
    });
    cluster.kill(NODE);
    cluster.start(NODE);
    assert_eq!(cluster.read(file, 0, 0, 5), b"still");
    let other = cluster.client(9);
    let refused = cluster.call(other, NODE, lock_ask(file, LockKind::Read, false));
    assert!(matches!(refused, Err(CallError::Errno(Errno::EAGAIN))), "{refused:?}");
    cluster.run_ms(60_000);
    assert_eq!(cluster.read(file, 0, 0, 5), b"still", "it was claimed");
    cluster.change(file.shard(), Request::Close { ino: file, opens: 1 }).unwrap();
    cluster.run_ms(500);
    assert!(cluster.stat(file).is_err());
}

#[test]
fn who_claims_a_lock_that_is_anothers_loses_the_session_and_so_hears_of_it() {
    let mut cluster = Cluster::new(Setup { cores: 2, ..Setup::default() });
    let file = entry(cluster.change(Ino::ROOT.shard(), create(Ino::ROOT, "f", false))).unwrap();
    let other = cluster.client(9);
    let lost = Rc::new(RefCell::new(Vec::new()));
    for client in [0, other] {
        let claims = move || {
            vec![sealfs_proto::Claim { ino: file, opens: 0, locks: vec![lock(LockKind::Write)] }]
        };
        let lost = Rc::clone(&lost);
        cluster.clients[client].set_claims(move |_, is_new| {
            if is_new {
                lost.borrow_mut().push(client);
            }
            if is_new { Vec::new() } else { claims() }
        });
        cluster.call(client, NODE, lock_ask(file, LockKind::Unlock, false)).unwrap();
    }
    cluster.kill(NODE);
    cluster.start(NODE);
    for client in [0, other] {
        let stat = Ask::read(file.shard(), Request::Stat { ino: file });
        cluster.call(client, NODE, stat).unwrap();
    }
    let lost = lost.borrow().clone();
    assert_eq!(lost.len(), 1, "one has the lock, the other knows that it has not: {lost:?}");
    let other = if lost[0] == 0 { other } else { 0 };
    let refused = cluster.call(lost[0], NODE, lock_ask(file, LockKind::Write, false));
    assert!(matches!(refused, Err(CallError::Errno(Errno::EAGAIN))), "{refused:?}");
    cluster.call(other, NODE, lock_ask(file, LockKind::Unlock, false)).unwrap();
}

#[test]
fn what_nobody_claims_after_a_restart_is_reclaimed_after_a_lease() {
    let mut cluster = short_lease();
    let other = cluster.client(9);
    let before = cluster.free_bytes(NODE);
    let file = entry(cluster.change_by(other, Ino::ROOT.shard(), create(Ino::ROOT, "f", true)));
    let file = file.unwrap();
    cluster.write(file, 0, 0, &[1; 4_096]);
    cluster.unlink(Ino::ROOT, "f").unwrap();
    cluster.lose_client(other);
    cluster.kill(NODE);
    cluster.start(NODE);
    cluster.run_ms(1_000);
    assert!(cluster.stat(file).is_ok(), "its session may still come back");
    cluster.run_ms(60_000);
    assert!(cluster.stat(file).is_err());
    assert_eq!(cluster.free_bytes(NODE), before);
}

#[test]
fn a_cluster_for_one_user_serves_him_and_root_and_nobody_else() {
    let mut cluster = Cluster::new(Setup { cores: 2, only_uid: Some(7), ..Setup::default() });
    let root = Ino::ROOT;
    let open_to_all = SetAttr { mode: Some(0o777), ..SetAttr::default() };
    let set = Request::SetAttr { who: Who::root(), ino: root, set: open_to_all, opened: false };
    cluster.change(root.shard(), set).unwrap();
    let mkdir = |uid: u32| Request::Mkdir {
        who: Who { uid, gid: uid, groups: Vec::new() },
        dir: root,
        name: format!("of {uid}").into(),
        mode: 0o700,
        umask: 0,
    };
    assert!(entry(cluster.change(root.shard(), mkdir(0))).is_ok());
    assert!(entry(cluster.change(root.shard(), mkdir(7))).is_ok());
    let refused = cluster.change(root.shard(), mkdir(8));
    assert!(matches!(refused, Err(CallError::Errno(Errno::EACCES))), "{refused:?}");
    let look = |uid: u32| {
        let who = Who { uid, gid: 7, groups: vec![7] };
        Request::Lookup { who, dir: root, name: "of 0".into() }
    };
    assert!(cluster.ask(root.shard(), look(7)).is_ok());
    let refused = cluster.ask(root.shard(), look(8));
    assert!(matches!(refused, Err(CallError::Errno(Errno::EACCES))), "{refused:?}");
}
