//! `Fs` over the real `Calls` and a model of a cluster: where requests go, how bytes are cut, what is settled when, and
//! what programs are told when something fails.
#![allow(missing_docs, reason = "tests are named after what they claim")]

mod fake;
mod locks;
mod power;
mod random;

use fake::model::CHUNK;
use fake::{World, pattern, slice};
use sealfs_client_core::{Fallocate, OpenFlags, Options, Whence, WriteFlags};
use sealfs_proto::{
    Errno, Ino, Kind, NodeId, RenameFlag, Request, SetAttr, SetTime, Time, Who, Xattr, XattrFlag,
};

const CHUNK_LEN: usize = CHUNK as usize;
const READ_WRITE: OpenFlags =
    OpenFlags { read: true, write: true, execute: false, truncate: false };
const ROOT: Ino = Ino::ROOT;
const PLAIN: WriteFlags = WriteFlags { append: false, kill_suid_sgid: false };

#[test]
fn creating_and_writing_a_small_file_is_three_requests() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    assert_eq!(world.write(handle, 0, b"hello"), Ok(5));
    assert_eq!(world.close(handle), Ok(()));
    assert_eq!(world.asked(), ["Create", "Write", "Close"]);
    assert_eq!(world.net.borrow().model.inodes[&attr.ino].opens, 0);
    assert_eq!(world.net.borrow().model.inodes[&attr.ino].attr.size, 5);
}

#[test]
fn a_name_whose_inode_lies_elsewhere_costs_one_request_more() {
    let mut world = World::new(3);
    let (file, _) = world.create("file");
    let fs = world.fs.clone();
    let (found, made) = world.run(async move {
        let made = fs.mkdir(&Who::root(), ROOT, b"dir", 0o755, 0).await.unwrap();
        let found = fs.lookup(&Who::root(), ROOT, b"file").await;
        (found, made)
    });
    assert_eq!(found.map(|attr| attr.ino), Ok(file.ino));
    // The directory's node was never heard before.
    assert_eq!(world.asked(), ["Create", "Ping", "Mkdir", "Lookup"]);
    let fs = world.fs.clone();
    let found = world.run(async move {
        (
            fs.lookup(&Who::root(), ROOT, b"dir").await,
            fs.lookup(&Who::root(), ROOT, b"none").await,
            fs.lookup(&Who::root(), ROOT, &[b'x'; 256]).await,
        )
    });
    assert_eq!(found, (Ok(made), Err(Errno::ENOENT), Err(Errno::ENAMETOOLONG)));
    assert_eq!(world.asked(), ["Lookup", "Stat", "Lookup"]);
}

#[test]
fn create_opens_what_is_there_unless_it_must_be_new() {
    let mut world = World::new(3);
    let (attr, _) = world.create("a");
    let fs = world.fs.clone();
    let (again, exclusive, dir) = world.run(async move {
        let root = Who::root();
        fs.mkdir(&root, ROOT, b"d", 0o755, 0).await.unwrap();
        (
            fs.create(&root, ROOT, b"a", 0o644, 0, READ_WRITE, false).await,
            fs.create(&root, ROOT, b"a", 0o644, 0, READ_WRITE, true).await,
            fs.create(&root, ROOT, b"d", 0o644, 0, READ_WRITE, false).await,
        )
    });
    assert_eq!(again.unwrap().0.ino, attr.ino);
    assert_eq!(exclusive.unwrap_err(), Errno::EEXIST);
    assert_eq!(dir.unwrap_err(), Errno::EISDIR);
    assert_eq!(world.net.borrow().model.inodes[&attr.ino].opens, 2);
}

#[test]
fn names_of_all_kinds_are_made_moved_and_removed() {
    let mut world = World::new(3);
    let fs = world.fs.clone();
    world.run(async move {
        let root = &Who::root();
        let link = fs.symlink(root, ROOT, b"link", b"target/there").await.unwrap();
        assert_eq!(fs.readlink(link.ino).await.unwrap(), b"target/there");
        let pipe = fs.mknod(root, ROOT, b"pipe", Kind::Fifo, 0, 0o600, 0).await.unwrap();
        assert_eq!(pipe.kind, Kind::Fifo);
        let dir = fs.mkdir(root, ROOT, b"dir", 0o755, 0).await.unwrap();
        fs.rename(root, ROOT, b"pipe", dir.ino, b"moved", RenameFlag::Replace).await.unwrap();
        assert_eq!(fs.lookup(root, dir.ino, b"moved").await.unwrap().ino, pipe.ino);
        assert_eq!(fs.rmdir(root, ROOT, b"dir").await, Err(Errno::ENOTEMPTY));
        let again = fs.link(root, pipe.ino, ROOT, b"again").await.unwrap();
        assert_eq!((again.ino, again.nlink), (pipe.ino, 2));
        fs.unlink(root, dir.ino, b"moved").await.unwrap();
        fs.rmdir(root, ROOT, b"dir").await.unwrap();
        assert_eq!(fs.parent(ROOT).await, Ok(ROOT));
        let value = Xattr { name: b"user.x".to_vec(), value: b"1".to_vec() };
        fs.setxattr(root, pipe.ino, value, XattrFlag::Any, false).await.unwrap();
        assert_eq!(fs.getxattr(root, pipe.ino, b"user.x").await.unwrap(), b"1");
        assert_eq!(fs.listxattr(root, pipe.ino).await.unwrap(), [b"user.x"]);
        fs.removexattr(root, pipe.ino, b"user.x").await.unwrap();
        assert_eq!(fs.getxattr(root, pipe.ino, b"user.x").await, Err(Errno::ENODATA));
    });
}

#[test]
fn a_listing_goes_on_where_it_stopped_and_has_all_attributes() {
    let mut world = World::new(3);
    let fs = world.fs.clone();
    let (names, complete) = world.run(async move {
        let root = Who::root();
        for number in 0..40 {
            let name = format!("n{number}");
            if number % 2 == 0 {
                fs.mkdir(&root, ROOT, name.as_bytes(), 0o755, 0).await.unwrap();
            } else {
                fs.mknod(&root, ROOT, name.as_bytes(), Kind::File, 0, 0o644, 0).await.unwrap();
            }
        }
        let (mut names, mut cookie, mut complete) = (Vec::new(), 0, true);
        loop {
            let (entries, end) = fs.list(&root, ROOT, cookie, 640, true).await.unwrap();
            for listed in entries {
                cookie = listed.cookie;
                let is_dot = listed.name.starts_with(b".");
                complete &= listed.entry.attr.is_some() != is_dot;
                names.push(String::from_utf8(listed.name).unwrap());
            }
            if end {
                return (names, complete);
            }
        }
    });
    assert_eq!((&names[0], &names[1]), (&".".to_owned(), &"..".to_owned()));
    assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), 42);
    assert_eq!((names.len(), complete), (42, true));
    // Resumed between "." and "..".
    let fs = world.fs.clone();
    let (entries, _) =
        world.run(async move { fs.list(&Who::root(), ROOT, 1, 640, false).await }).unwrap();
    assert_eq!(entries[0].name, b"..");
}

#[test]
fn writes_are_cut_at_chunk_borders_and_read_back() {
    let mut world = World::new(5);
    let (_, handle) = world.create("a");
    let bytes = pattern(3 * CHUNK_LEN + 77);
    assert_eq!(world.write(handle, 100, &bytes), Ok(bytes.len()));
    let asked = world.asked();
    assert_eq!(asked.iter().filter(|name| *name == "Write").count(), 4);
    assert_eq!(asked.iter().filter(|name| *name == "Raise").count(), 1);
    assert_eq!(world.read(handle, 100, bytes.len()).unwrap(), bytes);
    assert_eq!(world.asked(), ["Read"; 4]);
    let middle = CHUNK_LEN - 3..CHUNK_LEN + 5;
    assert_eq!(world.read(handle, middle.start as u64 + 100, 8).unwrap(), bytes[middle]);
}

#[test]
fn a_read_is_cut_at_chunk_borders_and_holes_are_zeros() {
    let mut world = World::new(3);
    let (_, handle) = world.create("a");
    let far = 5 * CHUNK_LEN as u64 + 10;
    world.write(handle, far, b"end").unwrap();
    world.write(handle, 2, b"start").unwrap();
    let all = world.read(handle, 0, 10 * CHUNK_LEN).unwrap();
    assert_eq!(all.len() as u64, far + 3, "short only at the end of the file");
    assert_eq!((&all[..8], &all[all.len() - 4..]), (&b"\0\0start\0"[..], &b"\0end"[..]));
    assert!(all[8..all.len() - 3].iter().all(|byte| *byte == 0));
    assert_eq!(world.read(handle, far + 3, 100), Ok(vec![]));
    assert_eq!(world.read(handle, u64::MAX - 5, 100), Ok(vec![]));
}

#[test]
fn bound_is_raised_before_it_is_needed_and_seldom() {
    let mut world = World::new(3);
    let (_, handle) = world.create("a");
    // The model refuses every write beyond the bound.
    for chunk in 0..64 {
        world.write(handle, chunk * u64::from(CHUNK), &[7; CHUNK_LEN]).unwrap();
    }
    let raises = world.asked().iter().filter(|name| *name == "Raise").count();
    assert_eq!(raises, 6, "one per doubling");
}

#[test]
fn the_size_that_is_shown_contains_what_was_written() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    world.write(handle, u64::from(CHUNK), b"beyond").unwrap();
    assert_eq!(world.net.borrow().model.inodes[&attr.ino].attr.size, 0, "not settled yet");
    world.asked();
    let shown = world.stat(attr.ino).unwrap();
    assert_eq!((shown.size, shown.blocks), (u64::from(CHUNK) + 6, 8));
    assert_eq!(world.asked(), ["Settle"], "instead of a stat");
    assert_eq!(shown.mtime.seconds, 1);
    world.stat(attr.ino).unwrap();
    assert_eq!(world.asked(), ["Stat"]);
}

#[test]
fn a_dirty_file_is_settled_after_a_while() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    world.write(handle, u64::from(CHUNK), b"beyond").unwrap();
    world.pass_ms(399);
    assert_eq!(world.net.borrow().model.inodes[&attr.ino].attr.size, 0);
    world.pass_ms(1);
    assert_eq!(world.net.borrow().model.inodes[&attr.ino].attr.size, u64::from(CHUNK) + 6);
    world.asked();
    world.pass_ms(2_000);
    assert!(!world.asked().contains(&"Settle".to_owned()), "it is clean");
}

#[test]
fn blocks_are_settled_by_close() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    world.write(handle, 0, &[1; 4 * CHUNK_LEN]).unwrap();
    assert_eq!(world.close(handle), Ok(()));
    let after = world.net.borrow().model.inodes[&attr.ino].clone();
    assert_eq!((after.attr.size, after.attr.blocks, after.opens), (4 * CHUNK_LEN as u64, 512, 0));
}

#[test]
fn a_settlement_that_failed_is_reported_by_fsync_once() {
    let mut world = World::new(3);
    let (_, handle) = world.create("a");
    world.write(handle, u64::from(CHUNK), b"beyond").unwrap();
    let is_settle = |request: &Request| matches!(request, Request::Settle { .. });
    world.net.borrow_mut().model.fail = Some((is_settle, Errno::ENOSPC));
    world.pass_ms(400);
    assert_eq!(world.fsync(handle), Err(Errno::ENOSPC));
    assert_eq!(world.fsync(handle), Ok(()));
    let fs = world.fs.clone();
    assert_eq!(world.run(async move { fs.release(handle).await }), Ok(()));
}

#[test]
fn a_failed_write_is_told_to_the_writer_with_what_was_written() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    let second = |request: &Request| matches!(request, Request::Write { index: 1, .. });
    world.net.borrow_mut().model.fail = Some((second, Errno::ENOSPC));
    assert_eq!(world.write(handle, 0, &[1; 3 * CHUNK_LEN]), Ok(CHUNK_LEN));
    assert_eq!(world.stat(attr.ino).unwrap().size, CHUNK_LEN as u64);
    world.net.borrow_mut().model.fail = Some((second, Errno::ENOSPC));
    assert_eq!(world.write(handle, u64::from(CHUNK), b"x"), Err(Errno::ENOSPC));
}

#[test]
fn fsync_asks_exactly_the_nodes_that_have_not_synced() {
    let mut world = World::new(5);
    let (attr, handle) = world.create("a");
    world.write(handle, 0, &[1; 2 * CHUNK_LEN]).unwrap();
    let is_write = |request: &Request| matches!(request, Request::Write { .. });
    let is_sync = |request: &Request| matches!(request, Request::Sync);
    let written = world.net.borrow().model.asked(is_write);
    world.asked();
    assert_eq!(world.fsync(handle), Ok(()));
    assert_eq!(world.net.borrow().model.asked(is_sync), written);
    assert_eq!(world.asked()[0], "Settle", "before anything is synced");
    assert_eq!(world.fsync(handle), Ok(()));
    assert_eq!(world.asked(), ["Sync"], "its inode's node only");
    // Written, closed, opened by another: what fsync covers outlives the handle.
    world.write(handle, u64::from(CHUNK), b"x").unwrap();
    world.close(handle).unwrap();
    let fs = world.fs.clone();
    let (_, again) =
        world.run(async move { fs.open(&Who::root(), attr.ino, READ_WRITE).await }).unwrap();
    world.asked();
    assert_eq!(world.fsync(again), Ok(()));
    assert_eq!(world.net.borrow().model.asked(is_sync), written);
}

#[test]
fn fsync_waits_for_writes_in_flight() {
    let mut world = World::new(3);
    let (_, handle) = world.create("a");
    world.net.borrow_mut().hold = Some(|request| matches!(request, Request::Write { .. }));
    let fs = world.fs.clone();
    let bytes = slice(b"beyond");
    let writing =
        world.start(async move { fs.write(handle, u64::from(CHUNK), bytes, PLAIN).await });
    let fs = world.fs.clone();
    let syncing = world.start(async move { fs.fsync(handle, true).await });
    world.asked();
    assert_eq!(world.read(handle, 0, 1), Ok(vec![]), "who reads does not wait");
    assert_eq!(world.asked(), ["Stat"]);
    world.net.borrow_mut().release();
    world.settle_down();
    assert_eq!((writing.take(), syncing.take()), (Some(Ok(6)), Some(Ok(()))));
    assert_eq!(world.asked()[..2], ["Write", "Settle"]);
}

#[test]
fn a_file_that_is_gone_is_not_settled_for_ever() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    world.write(handle, u64::from(CHUNK), b"beyond").unwrap();
    world.net.borrow_mut().model.inodes.remove(&attr.ino);
    world.pass_ms(400);
    assert_eq!(world.asked().last().unwrap(), "Settle");
    world.pass_ms(10_000);
    assert!(!world.asked().contains(&"Settle".to_owned()));
    assert_eq!(world.fsync(handle), Err(Errno::ENOENT));
}

#[test]
fn a_client_that_leaves_has_settled() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    world.write(handle, u64::from(CHUNK), b"beyond").unwrap();
    let fs = world.fs.clone();
    assert_eq!(world.run(async move { fs.leave().await }), Ok(()));
    assert_eq!(world.net.borrow().model.inodes[&attr.ino].attr.size, u64::from(CHUNK) + 6);
    assert_eq!(world.asked().last().unwrap(), "Leave");
}

#[test]
fn fsync_of_a_directory_asks_the_nodes_that_took_part() {
    let mut world = World::new(5);
    let fs = world.fs.clone();
    let made = world.run(async move {
        let made = fs.mkdir(&Who::root(), ROOT, b"dir", 0o755, 0).await.unwrap();
        fs.fsync_dir(ROOT).await.unwrap();
        made
    });
    let net = world.net.borrow();
    let synced = net.model.asked(|request| matches!(request, Request::Sync));
    assert!(synced.contains(&net.model.node(ROOT.shard())));
    assert!(synced.contains(&net.model.node(made.ino.shard())));
}

#[test]
fn an_append_goes_where_the_shard_says() {
    let mut world = World::new(3);
    let (attr, writer) = world.create("a");
    let fs = world.fs.clone();
    let flags = OpenFlags { write: true, ..OpenFlags::default() };
    let (_, log) = world.run(async move { fs.open(&Who::root(), attr.ino, flags).await }).unwrap();
    // Not settled when the append begins.
    world.write(writer, u64::from(CHUNK), b"first").unwrap();
    assert_eq!(world.append(log, b"second"), Ok(6));
    // Another client appends.
    world.net.borrow_mut().model.inodes.get_mut(&attr.ino).unwrap().attr.size += 10;
    assert_eq!(world.append(log, b"third"), Ok(5));
    let all = world.net.borrow().model.bytes(attr.ino, u64::from(CHUNK), 26);
    assert_eq!(all, b"firstsecond\0\0\0\0\0\0\0\0\0\0third");
    assert_eq!(world.stat(attr.ino).unwrap().size, u64::from(CHUNK) + 26);
    // The same descriptor, after fcntl(2) has taken O_APPEND away.
    assert_eq!(world.write(log, 0, b"begin"), Ok(5));
    assert_eq!(world.net.borrow().model.bytes(attr.ino, 0, 6), b"begin\0");
    assert_eq!(world.stat(attr.ino).unwrap().size, u64::from(CHUNK) + 26);
}

#[test]
fn a_write_back_that_failed_in_part_has_failed() {
    let mut world = World::new(3);
    let (_, handle) = world.create("a");
    let second = |request: &Request| matches!(request, Request::Write { index: 1, .. });
    world.net.borrow_mut().model.fail = Some((second, Errno::ENOSPC));
    let fs = world.fs.clone();
    let bytes = slice(&[1; 2 * CHUNK_LEN]);
    let write_back = async move { fs.write_back(handle, 0, bytes).await };
    assert_eq!(world.run(write_back), Err(Errno::ENOSPC), "the kernel keeps no page dirty");
    let fs = world.fs.clone();
    let write_back = async move { fs.write_back(handle, 0, slice(&[1; 2 * CHUNK_LEN])).await };
    assert_eq!(world.run(write_back), Ok(()));
}

#[test]
fn a_write_is_settled_under_the_generation_that_others_have_made() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    world.write(handle, u64::from(CHUNK), b"mine").unwrap();
    world.stat(attr.ino).unwrap();
    world.pass_ms(500);
    {
        let mut net = world.net.borrow_mut();
        let attr = &mut net.model.inodes.get_mut(&attr.ino).unwrap().attr;
        (attr.mtime, attr.generation, attr.change) = (Time::default(), 2, attr.change + 1);
    }
    world.asked();
    // The model accepts no settlement of another generation.
    world.write(handle, u64::from(CHUNK), b"MINE").unwrap();
    assert_eq!(world.stat(attr.ino).unwrap().mtime.seconds, 1);
    assert_eq!(world.asked(), ["Stat", "Write", "Settle"]);
    world.write(handle, u64::from(CHUNK), b"MINE").unwrap();
    assert_eq!(world.asked(), ["Write"], "what is known is young enough");
}

#[test]
fn a_truncate_waits_for_writes_and_nothing_undoes_it() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    world.write(handle, 0, &[1; 2 * CHUNK_LEN]).unwrap();
    world.net.borrow_mut().hold = Some(|request| matches!(request, Request::Write { .. }));
    let fs = world.fs.clone();
    let bytes = slice(&[2; 10]);
    let writing =
        world.start(async move { fs.write(handle, 2 * u64::from(CHUNK), bytes, PLAIN).await });
    let fs = world.fs.clone();
    let set = SetAttr { size: Some(100), ..SetAttr::default() };
    let cutting =
        world.start(async move { fs.setattr(&Who::root(), attr.ino, Some(handle), set).await });
    assert!(writing.take().is_none() && cutting.take().is_none());
    world.asked();
    world.net.borrow_mut().release();
    world.settle_down();
    assert_eq!(writing.take().unwrap(), Ok(10));
    assert_eq!(cutting.take().unwrap().unwrap().size, 100);
    assert_eq!(world.asked(), ["Write", "Settle", "SetAttr"]);
    world.pass_ms(1_000);
    assert_eq!(world.stat(attr.ino).unwrap().size, 100);
    assert_eq!(world.read(handle, 0, 1_000).unwrap(), [1; 100]);
    // A write afterwards is settled under the new generation (the model insists on it).
    world.write(handle, u64::from(CHUNK), b"new").unwrap();
    assert_eq!(world.stat(attr.ino).unwrap().size, u64::from(CHUNK) + 3);
}

#[test]
fn times_that_are_set_stay_set() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    world.write(handle, u64::from(CHUNK), b"beyond").unwrap();
    let time = Time { seconds: 77, nanos: 5 };
    let fs = world.fs.clone();
    let set = SetAttr { mtime: Some(SetTime::At(time)), ..SetAttr::default() };
    world.run(async move { fs.setattr(&Who::root(), attr.ino, None, set).await }).unwrap();
    world.close(handle).unwrap();
    assert_eq!(world.stat(attr.ino).unwrap().mtime, time);
}

#[test]
fn what_another_client_appended_is_seen_after_a_moment_or_at_the_end() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    world.write(handle, 0, b"mine").unwrap();
    let grow = |world: &mut World, size| {
        let mut net = world.net.borrow_mut();
        let attr = &mut net.model.inodes.get_mut(&attr.ino).unwrap().attr;
        attr.size = size;
        attr.change += 1;
    };
    grow(&mut world, 8);
    assert_eq!(world.read(handle, 0, 100).unwrap().len(), 4, "as known");
    assert_eq!(world.read(handle, 4, 100).unwrap().len(), 4, "asked before saying: nothing there");
    grow(&mut world, 12);
    world.pass_ms(500);
    assert_eq!(world.read(handle, 0, 100).unwrap().len(), 12);
    let mut strict = World::with(3, Options { size_age_ms: 0, ..Options::default() }, 1 << 20);
    let (other, handle) = strict.create("a");
    strict.write(handle, 0, b"mine").unwrap();
    strict.net.borrow_mut().model.inodes.get_mut(&other.ino).unwrap().attr.size = 8;
    assert_eq!(strict.read(handle, 0, 100).unwrap().len(), 8, "at once");
}

#[test]
fn with_strict_consistency_the_shard_knows_a_write_before_the_program_does() {
    for (options, known) in [(Options::default(), 0), (Options::strict(), 3 << 20)] {
        let mut world = World::with(3, options, 1 << 20);
        let (attr, handle) = world.create("a");
        world.write(handle, (3 << 20) - 4, b"news").unwrap();
        assert_eq!(world.net.borrow().model.inodes[&attr.ino].attr.size, known);
    }
}

#[test]
fn reads_wait_for_regions_and_all_end() {
    let mut world = World::with(3, Options::default(), 3 * CHUNK_LEN);
    let (_, handle) = world.create("a");
    let bytes = pattern(2 * CHUNK_LEN);
    world.write(handle, 0, &bytes).unwrap();
    let reads: Vec<_> = (0..8)
        .map(|_| {
            let fs = world.fs.clone();
            let len = bytes.len();
            world.start(async move {
                let pieces = fs.read(handle, 0, len).await.unwrap();
                pieces.iter().map(|piece| piece.len).sum::<usize>()
            })
        })
        .collect();
    world.pass_ms(10);
    assert!(reads.iter().all(|read| read.take() == Some(bytes.len())));
}

#[test]
fn a_punched_hole_is_one_request_per_node() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    let len = 64 * u64::from(CHUNK);
    world.write(handle, 0, &pattern(len as usize)).unwrap();
    world.fsync(handle).unwrap();
    world.asked();
    let fs = world.fs.clone();
    let block = 4_096;
    world
        .run(async move { fs.fallocate(handle, Fallocate::Punch, block, len - block).await })
        .unwrap();
    let asked = world.asked();
    assert_eq!(asked.iter().filter(|name| *name == "Discard").count(), 3);
    assert_eq!(asked.last().unwrap(), "Settle");
    let after = world.stat(attr.ino).unwrap();
    assert_eq!((after.size, after.blocks), (len, 8));
    assert_eq!(world.read(handle, block, 100).unwrap(), [0; 100]);
}

#[test]
fn fallocate_takes_space_and_grows_unless_told_not_to() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    let len = 3 * u64::from(CHUNK);
    let allocate = |world: &mut World, mode, offset, len| {
        let fs = world.fs.clone();
        world.run(async move { fs.fallocate(handle, mode, offset, len).await })
    };
    allocate(&mut world, Fallocate::AllocateKeepSize, 0, len).unwrap();
    let kept = world.stat(attr.ino).unwrap();
    assert_eq!((kept.size, kept.blocks), (0, (len / 512).cast_signed()));
    allocate(&mut world, Fallocate::Allocate, 0, len).unwrap();
    let grown = world.stat(attr.ino).unwrap();
    assert_eq!((grown.size, grown.blocks), (len, (len / 512).cast_signed()));
    world.write(handle, 0, b"data").unwrap();
    allocate(&mut world, Fallocate::ZeroKeepSize, 0, 2 * len).unwrap();
    let zeroed = world.stat(attr.ino).unwrap();
    assert_eq!((zeroed.size, zeroed.blocks), (len, (2 * len / 512).cast_signed()));
    assert_eq!(world.read(handle, 0, 4).unwrap(), [0; 4]);
    assert_eq!(allocate(&mut world, Fallocate::Allocate, 0, 0), Err(Errno::EINVAL));
    assert_eq!(allocate(&mut world, Fallocate::Allocate, u64::MAX, 5), Err(Errno::EFBIG));
}

#[test]
fn data_and_holes_are_found_over_all_nodes() {
    let mut world = World::new(3);
    let (_, handle) = world.create("a");
    let chunk = u64::from(CHUNK);
    world.write(handle, chunk + 4_096, &[1; 3 * CHUNK_LEN]).unwrap();
    world.write(handle, 9 * chunk, b"x").unwrap();
    let seek = |world: &mut World, offset, whence| {
        let fs = world.fs.clone();
        world.run(async move { fs.seek(handle, offset, whence).await })
    };
    assert_eq!(seek(&mut world, 0, Whence::Data), Ok(chunk + 4_096));
    assert_eq!(seek(&mut world, 0, Whence::Hole), Ok(0));
    assert_eq!(seek(&mut world, 2 * chunk, Whence::Data), Ok(2 * chunk));
    assert_eq!(seek(&mut world, 2 * chunk, Whence::Hole), Ok(4 * chunk + 4_096));
    assert_eq!(seek(&mut world, 5 * chunk, Whence::Data), Ok(9 * chunk));
    assert_eq!(seek(&mut world, 9 * chunk, Whence::Hole), Ok(9 * chunk + 1), "the end");
    assert_eq!(seek(&mut world, 9 * chunk + 1, Whence::Data), Err(Errno::ENXIO));
    assert_eq!(seek(&mut world, 9 * chunk + 1, Whence::Hole), Err(Errno::ENXIO));
}

#[test]
fn copies_are_exact_and_may_not_overlap() {
    let mut world = World::new(3);
    let (_, source) = world.create("a");
    let (_, target) = world.create("b");
    let bytes = pattern(9 << 20);
    for (at, part) in bytes.chunks(1 << 20).enumerate() {
        world.write(source, (at as u64) << 20, part).unwrap();
    }
    let copy = |world: &mut World, from, to, target_offset, len| {
        let fs = world.fs.clone();
        world.run(async move { fs.copy_range(from, 5, to, target_offset, len).await })
    };
    let rest = bytes.len() as u64 - 5;
    assert_eq!(copy(&mut world, source, target, 100, u64::MAX), Ok(rest));
    assert!(world.read(target, 100, bytes.len()).unwrap() == bytes[5..]);
    assert_eq!(copy(&mut world, source, source, 10, 6), Err(Errno::EINVAL));
    assert_eq!(copy(&mut world, source, source, 10, 5), Ok(5));
}

#[test]
fn set_id_bits_go_before_the_bytes_come() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    let fs = world.fs.clone();
    let set = SetAttr { mode: Some(0o6755), ..SetAttr::default() };
    world.run(async move { fs.setattr(&Who::root(), attr.ino, None, set).await }).unwrap();
    world.asked();
    let fs = world.fs.clone();
    let kill = WriteFlags { kill_suid_sgid: true, ..PLAIN };
    world.run(async move { fs.write(handle, 0, slice(b"x"), kill).await }).unwrap();
    assert_eq!(world.asked(), ["SetAttr", "Write"]);
    assert_eq!(world.stat(attr.ino).unwrap().mode, 0o755);
    // Another client has set the bits.
    world.pass_ms(500);
    world.net.borrow_mut().model.inodes.get_mut(&attr.ino).unwrap().attr.mode = 0o4755;
    world.asked();
    let fs = world.fs.clone();
    world.run(async move { fs.write(handle, 0, slice(b"x"), kill).await }).unwrap();
    assert_eq!(world.asked(), ["Stat", "SetAttr", "Write"]);
    assert_eq!(world.stat(attr.ino).unwrap().mode, 0o755);
}

#[test]
fn a_late_write_to_a_closed_file_is_settled() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    world.net.borrow_mut().hold = Some(|request| matches!(request, Request::Write { .. }));
    let fs = world.fs.clone();
    let bytes = slice(b"beyond");
    let _writing =
        world.start(async move { fs.write(handle, u64::from(CHUNK), bytes, PLAIN).await });
    world.close(handle).unwrap();
    world.net.borrow_mut().release();
    world.pass_ms(1_000);
    assert_eq!(world.net.borrow().model.inodes[&attr.ino].attr.size, u64::from(CHUNK) + 6);
}

#[test]
fn a_hole_reaches_as_far_as_others_have_written() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    world.write(handle, 0, b"mine").unwrap();
    {
        let mut net = world.net.borrow_mut();
        net.model.blocks.insert((attr.ino, 20), vec![7; 4_096]);
        let attr = &mut net.model.inodes.get_mut(&attr.ino).unwrap().attr;
        (attr.bound, attr.size, attr.blocks) = (1 << 20, 21 * 4_096, attr.blocks + 8);
        attr.change += 1;
    }
    let fs = world.fs.clone();
    world.run(async move { fs.fallocate(handle, Fallocate::Punch, 0, 1 << 20).await }).unwrap();
    assert!(world.net.borrow().model.blocks.is_empty());
    assert_eq!(world.stat(attr.ino).unwrap().blocks, 0);
}

#[test]
fn a_large_read_is_not_overtaken_for_ever() {
    let mut world = World::with(3, Options::default(), 2 * CHUNK_LEN);
    let (_, handle) = world.create("a");
    world.write(handle, 0, &pattern(2 * CHUNK_LEN)).unwrap();
    let read = |world: &mut World, len| {
        let fs = world.fs.clone();
        world.start(async move { fs.read(handle, 0, len).await })
    };
    let held = read(&mut world, CHUNK_LEN).take().expect("there is room");
    let large = read(&mut world, 2 * CHUNK_LEN);
    let small = read(&mut world, CHUNK_LEN);
    assert!(large.take().is_none() && small.take().is_none(), "behind the large one");
    drop(held);
    world.pass_ms(10);
    assert_eq!(large.take().expect("it is its turn").unwrap().len(), 2);
    world.pass_ms(10);
    assert!(small.take().is_some());
}

#[test]
fn reads_of_a_dead_node_leave_memory_to_the_others() {
    // Room for more than one node's share, and for less than what is asked of the dead one.
    let mut world = World::with(5, Options::default(), 20 << 20);
    let (attr, handle) = world.create("a");
    let model = |world: &World, index| {
        let net = world.net.borrow();
        net.model.node(sealfs_proto::chunk_shard(attr.ino, index, net.model.map.shards()))
    };
    let elsewhere = (2..).find(|index| model(&world, *index) != model(&world, 1)).unwrap();
    let end = (elsewhere + 1) * u64::from(CHUNK);
    world.write(handle, 0, &pattern(end as usize)).unwrap();
    world.net.borrow_mut().hold = Some(|request| matches!(request, Request::Read { index: 1, .. }));
    let read = |world: &mut World, index: u64| {
        let fs = world.fs.clone();
        world.start(async move { fs.read(handle, index * u64::from(CHUNK), CHUNK_LEN).await })
    };
    let mut stuck: Vec<_> = (0..400).map(|_| read(&mut world, 1)).collect();
    let other = read(&mut world, elsewhere);
    world.pass_ms(10);
    assert!(other.take().is_some(), "its node answers");
    assert!(stuck.iter().all(|read| read.take().is_none()));
    world.net.borrow_mut().release();
    // Each gives its region back when its answer is taken.
    for _ in 0..3 {
        world.pass_ms(10);
        stuck.retain(|read| read.take().is_none_or(|read| read.is_err()));
    }
    assert!(stuck.is_empty());
}

#[test]
fn a_node_that_never_answers_is_eio_after_the_timeout() {
    let mut world = World::new(1);
    let (_, handle) = world.create("a");
    world.net.borrow_mut().hold = Some(|_| true);
    let fs = world.fs.clone();
    let writing = world.start(async move { fs.write(handle, 0, slice(b"x"), PLAIN).await });
    world.pass_ms(59_000);
    assert!(writing.take().is_none());
    world.pass_ms(2_000);
    assert_eq!(writing.take(), Some(Err(Errno::EIO)));
}

#[test]
fn the_whole_is_the_sum_of_its_nodes_and_synced_on_all() {
    let mut world = World::new(3);
    let (_, handle) = world.create("a");
    world.write(handle, u64::from(CHUNK), b"x").unwrap();
    let fs = world.fs.clone();
    let space = world.run(async move { fs.statfs().await }).unwrap();
    assert_eq!((space.total, space.free, space.available, space.inodes), (30, 24, 21, 6));
    world.asked();
    let fs = world.fs.clone();
    world.run(async move { fs.sync_all().await }).unwrap();
    let net = world.net.borrow();
    let synced = net.model.asked(|request| matches!(request, Request::Sync));
    assert_eq!(synced, [1, 2, 3].map(NodeId).into());
    assert!(matches!(net.model.log[0].1, Request::Settle { .. }));
}

#[test]
fn an_unnamed_file_lives_until_it_is_released() {
    let mut world = World::new(3);
    let fs = world.fs.clone();
    let (attr, handle) = world
        .run(async move { fs.tmpfile(&Who::root(), ROOT, 0o666, 0o022, READ_WRITE).await })
        .unwrap();
    assert_eq!((attr.nlink, attr.mode), (0, 0o644));
    world.write(handle, 0, b"x").unwrap();
    world.close(handle).unwrap();
    world.settle_down();
    assert!(!world.net.borrow().model.inodes.contains_key(&attr.ino));
    assert_eq!(world.close(handle), Err(Errno::EBADF));
}
