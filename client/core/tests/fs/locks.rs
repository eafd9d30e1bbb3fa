//! Locks, and what a client keeps or loses with its sessions.

use sealfs_client_core::Interrupt;
use sealfs_proto::{Errno, Lock, LockKind, LockOwner, LockSpace, Request, Who};

use crate::fake::model::CHUNK;
use crate::fake::{World, slice};
use crate::{PLAIN, READ_WRITE};

fn lock(kind: LockKind, owner: u64) -> Lock {
    let owner = LockOwner(owner);
    Lock { space: LockSpace::Posix, kind, start: 0, end: 99, owner, pid: 1 }
}

#[test]
fn locks_are_claimed_after_a_reconnect_and_given_up_with_the_descriptor() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    let fs = world.fs.clone();
    world.run(async move { fs.lock(handle, lock(LockKind::Write, 4), None).await }).unwrap();
    world.net.borrow_mut().cut();
    world.stat(attr.ino).unwrap();
    let claims = world.net.borrow().claims.clone();
    assert_eq!(claims.len(), 1);
    assert_eq!((claims[0].1.ino, claims[0].1.opens), (attr.ino, 1));
    assert_eq!(claims[0].1.locks, [lock(LockKind::Write, 4)]);
    let fs = world.fs.clone();
    world.run(async move { fs.flush(handle, Some(LockOwner(4))).await }).unwrap();
    assert!(world.net.borrow().model.locks.is_empty());
}

#[test]
fn a_lock_in_the_way_is_named_and_a_wait_can_be_interrupted() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    let theirs = lock(LockKind::Write, 1);
    world.net.borrow_mut().model.locks.push((attr.ino, theirs));
    let fs = world.fs.clone();
    let mine = lock(LockKind::Write, 2);
    let (refused, conflict) = world
        .run(async move { (fs.lock(handle, mine, None).await, fs.lock_test(handle, mine).await) });
    assert_eq!((refused, conflict), (Err(Errno::EAGAIN), Ok(Some(theirs))));
    // The shard answers a wait when it is granted: not yet.
    let waits = |request: &Request| matches!(request, Request::Lock { wait: true, .. });
    world.net.borrow_mut().hold = Some(waits);
    let interrupt = Interrupt::new();
    let (fs, signal) = (world.fs.clone(), interrupt.clone());
    let waiting = world.start(async move { fs.lock(handle, mine, Some(&signal)).await });
    world.pass_ms(100_000);
    assert!(waiting.take().is_none(), "it waits as long as it takes");
    interrupt.raise();
    world.settle_down();
    assert_eq!(waiting.take(), Some(Err(Errno::EINTR)));
}

#[test]
fn a_lock_granted_to_nobody_is_given_back() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    // A node that answers neither the wait nor its cancellation for a while.
    let silent =
        |request: &Request| matches!(request, Request::Lock { .. } | Request::LockCancel { .. });
    world.net.borrow_mut().hold = Some(silent);
    let interrupt = Interrupt::new();
    let (fs, signal) = (world.fs.clone(), interrupt.clone());
    let mine = lock(LockKind::Write, 2);
    let waiting = world.start(async move { fs.lock(handle, mine, Some(&signal)).await });
    interrupt.raise();
    world.pass_ms(1_000);
    assert_eq!(waiting.take(), Some(Err(Errno::EINTR)), "the program need not wait");
    world.asked();
    world.net.borrow_mut().release();
    world.pass_ms(5_000);
    assert_eq!(world.asked(), ["Lock", "LockCancel", "Lock"]);
    assert!(world.net.borrow().model.locks.iter().all(|(ino, _)| *ino != attr.ino));
}

#[test]
fn a_late_grant_gives_back_what_the_owner_had_before() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    let read = lock(LockKind::Read, 2);
    let take = |world: &mut World, lock, wait: Option<Interrupt>| {
        let fs = world.fs.clone();
        world.start(async move { fs.lock(handle, lock, wait.as_ref()).await })
    };
    assert_eq!(take(&mut world, read, None).take(), Some(Ok(())));
    let silent =
        |request: &Request| matches!(request, Request::Lock { .. } | Request::LockCancel { .. });
    world.net.borrow_mut().hold = Some(silent);
    let interrupt = Interrupt::new();
    let waiting = take(&mut world, lock(LockKind::Write, 2), Some(interrupt.clone()));
    interrupt.raise();
    world.pass_ms(1_000);
    assert_eq!(waiting.take(), Some(Err(Errno::EINTR)));
    let next = take(&mut world, read, None);
    world.asked();
    world.net.borrow_mut().release();
    world.pass_ms(100);
    assert_eq!(next.take(), Some(Ok(())));
    assert_eq!(world.asked(), ["Lock", "LockCancel", "Lock", "Lock"], "the last one waited");
    assert_eq!(world.net.borrow().model.locks, [(attr.ino, read)]);
}

#[test]
fn a_conversion_of_flock_that_fails_has_given_up_the_lock() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    let whole = |kind, owner| Lock { space: LockSpace::Flock, end: u64::MAX, ..lock(kind, owner) };
    let fs = world.fs.clone();
    world.run(async move { fs.lock(handle, whole(LockKind::Read, 1), None).await }).unwrap();
    world.net.borrow_mut().model.locks.push((attr.ino, whole(LockKind::Read, 9)));
    let fs = world.fs.clone();
    let converted =
        world.run(async move { fs.lock(handle, whole(LockKind::Write, 1), None).await });
    assert_eq!(converted, Err(Errno::EAGAIN));
    world.net.borrow_mut().cut();
    world.stat(attr.ino).unwrap();
    assert!(world.net.borrow().claims.iter().all(|(_, claim)| claim.locks.is_empty()));
}

#[test]
fn a_lock_that_is_being_given_up_is_not_claimed() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    let fs = world.fs.clone();
    world.run(async move { fs.lock(handle, lock(LockKind::Write, 4), None).await }).unwrap();
    world.net.borrow_mut().cut();
    world.stat(attr.ino).unwrap();
    let claimed = std::mem::take(&mut world.net.borrow_mut().claims);
    assert!(claimed.iter().any(|(_, claim)| claim.locks == [lock(LockKind::Write, 4)]));
    world.net.borrow_mut().hold = Some(|request| matches!(request, Request::Lock { .. }));
    let fs = world.fs.clone();
    let given_up =
        world.start(async move { fs.lock(handle, lock(LockKind::Unlock, 4), None).await });
    world.pass_ms(10);
    // The shard may have given it to somebody else by now.
    world.net.borrow_mut().cut();
    world.stat(attr.ino).unwrap();
    assert!(world.net.borrow().claims.iter().all(|(_, claim)| claim.locks.is_empty()));
    world.net.borrow_mut().release();
    world.pass_ms(1_000);
    assert_eq!(given_up.take(), Some(Ok(())));
}

#[test]
fn a_lock_that_was_not_made_a_shared_one_is_claimed_as_it_was() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    let held = lock(LockKind::Write, 4);
    let fs = world.fs.clone();
    world.run(async move { fs.lock(handle, held, None).await }).unwrap();
    let behind = Lock { start: held.end + 1, end: held.end + 9, ..lock(LockKind::Write, 9) };
    world.net.borrow_mut().model.locks.push((attr.ino, behind));
    let fs = world.fs.clone();
    let shared = Lock { end: behind.end, ..lock(LockKind::Read, 4) };
    let refused = world.run(async move { fs.lock(handle, shared, None).await });
    assert_eq!(refused, Err(Errno::EAGAIN));
    world.net.borrow_mut().cut();
    world.stat(attr.ino).unwrap();
    assert!(world.net.borrow().claims.iter().any(|(_, claim)| claim.locks == [held]));
}

#[test]
fn a_lock_is_given_up_after_the_writes_that_were_made_under_it() {
    let mut world = World::new(3);
    let (_, handle) = world.create("a");
    let fs = world.fs.clone();
    world.run(async move { fs.lock(handle, lock(LockKind::Write, 4), None).await }).unwrap();
    world.net.borrow_mut().hold = Some(|request| matches!(request, Request::Write { .. }));
    let fs = world.fs.clone();
    // Its program is killed: nobody waits for it any more.
    let bytes = slice(b"beyond");
    let _writing =
        world.start(async move { fs.write(handle, u64::from(CHUNK), bytes, PLAIN).await });
    let fs = world.fs.clone();
    let closing = world.start(async move { fs.flush(handle, Some(LockOwner(4))).await });
    world.pass_ms(1_000);
    assert!(closing.take().is_none());
    world.asked();
    world.net.borrow_mut().release();
    world.pass_ms(10);
    assert_eq!(closing.take(), Some(Ok(())));
    assert_eq!(world.asked(), ["Write", "Settle", "Lock"]);
}

#[test]
fn locks_of_the_open_file_go_with_it_and_those_of_a_process_with_its_close() {
    let mut world = World::new(3);
    let (attr, first) = world.create("a");
    let fs = world.fs.clone();
    let (_, second) =
        world.run(async move { fs.open(&Who::root(), attr.ino, READ_WRITE).await }).unwrap();
    let fs = world.fs.clone();
    let process = lock(LockKind::Read, 4);
    world.run(async move {
        fs.lock(first, lock(LockKind::Read, 77), None).await.unwrap();
        fs.lock(first, process, None).await.unwrap();
        fs.flush(first, Some(LockOwner(4))).await.unwrap();
        // The kernel's release of the first may come later than this.
        fs.lock(second, process, None).await.unwrap();
        fs.release(first).await.unwrap();
    });
    assert_eq!(world.net.borrow().model.locks, [(attr.ino, process)]);
}

#[test]
fn who_holds_a_lock_asks_first_when_the_lease_may_be_over() {
    let mut world = World::new(1);
    let (attr, handle) = world.create("a");
    let fs = world.fs.clone();
    world.run(async move { fs.lock(handle, lock(LockKind::Write, 4), None).await }).unwrap();
    // A node that is not heard of.
    let silent = |request: &Request| matches!(request, Request::Ping | Request::Claim { .. });
    world.net.borrow_mut().hold = Some(silent);
    world.pass_ms(61_000);
    world.asked();
    let fs = world.fs.clone();
    let writing = world.start(async move { fs.write(handle, 0, slice(b"x"), PLAIN).await });
    world.pass_ms(1_000);
    assert!(writing.take().is_none());
    assert!(!world.asked().contains(&"Write".to_owned()));
    world.net.borrow_mut().release();
    world.pass_ms(10);
    assert_eq!(writing.take(), Some(Ok(1)));
    let asked = world.asked();
    assert_eq!(asked[asked.len() - 2..], ["Ping", "Write"]);
    assert_eq!(world.stat(attr.ino).unwrap().size, 1);
}

#[test]
fn what_is_given_back_is_given_back_however_long_the_node_is_away() {
    let mut world = World::new(1);
    let (attr, handle) = world.create("a");
    let fs = world.fs.clone();
    world.run(async move { fs.lock(handle, lock(LockKind::Write, 4), None).await }).unwrap();
    world.net.borrow_mut().hold =
        Some(|request| matches!(request, Request::Lock { .. } | Request::Close { .. }));
    let fs = world.fs.clone();
    let closing = world.start(async move {
        let flushed = fs.flush(handle, Some(LockOwner(4))).await;
        (flushed, fs.release(handle).await)
    });
    world.pass_ms(200_000);
    assert_eq!(closing.take().map(|(flushed, _)| flushed), Some(Err(Errno::EIO)));
    world.net.borrow_mut().cut();
    world.net.borrow_mut().hold = None;
    world.pass_ms(5_000);
    assert!(world.net.borrow().model.locks.is_empty());
    assert_eq!(world.net.borrow().model.inodes[&attr.ino].opens, 0);
}

#[test]
fn after_a_lost_session_files_are_reopened_and_lost_locks_are_eio() {
    let mut world = World::new(1);
    let (linked, plain) = world.create("linked");
    let (_, locked) = world.create("locked");
    let (unnamed, gone) = world.create("gone");
    let fs = world.fs.clone();
    world.run(async move { fs.lock(locked, lock(LockKind::Write, 4), None).await }).unwrap();
    {
        let mut net = world.net.borrow_mut();
        net.refuses_sessions = true;
        let model = &mut net.model;
        model.inodes.values_mut().for_each(|inode| inode.opens = 0);
        model.locks.clear();
        model.inodes.remove(&unnamed.ino);
        net.cut();
    }
    world.stat(linked.ino).unwrap();
    world.pass_ms(1_000);
    assert_eq!(world.net.borrow().model.inodes[&linked.ino].opens, 1, "reopened");
    assert_eq!(world.write(plain, 0, b"goes on"), Ok(7));
    assert_eq!(world.read(locked, 0, 10), Err(Errno::EIO));
    assert_eq!(world.read(gone, 0, 10), Err(Errno::ESTALE));
    assert_eq!(world.write(gone, 0, b"x"), Err(Errno::ESTALE));
    for handle in [plain, locked, gone] {
        let fs = world.fs.clone();
        let _ = world.run(async move { fs.release(handle).await });
    }
    world.pass_ms(1_000);
    assert_eq!(world.net.borrow().model.inodes[&linked.ino].opens, 0);
}

#[test]
fn closes_of_a_lost_session_take_no_open_of_the_new_one() {
    let mut world = World::new(1);
    let (attr, first) = world.create("a");
    let fs = world.fs.clone();
    let again = world.run(async move {
        let root = Who::root();
        let open = || fs.open(&root, attr.ino, READ_WRITE);
        [open().await.unwrap().1, open().await.unwrap().1]
    });
    let opens = |world: &World| world.net.borrow().model.inodes[&attr.ino].opens;
    assert_eq!(opens(&world), 3);
    world.net.borrow_mut().hold = Some(|request| matches!(request, Request::Close { .. }));
    for handle in [first, again[0]] {
        let fs = world.fs.clone();
        world.run(async move { fs.release(handle).await }).unwrap();
    }
    {
        let mut net = world.net.borrow_mut();
        (net.refuses_sessions, net.hold) = (true, None);
        net.model.inodes.get_mut(&attr.ino).unwrap().opens = 0;
        net.cut();
    }
    world.pass_ms(5_000);
    assert_eq!(opens(&world), 1, "the handle that is left");
    world.close(again[1]).unwrap();
    world.settle_down();
    assert_eq!(opens(&world), 0);
}
