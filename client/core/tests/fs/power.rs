//! Nodes that lose power, and who is told.

use sealfs_client_core::{Handle, OpenFlags};
use sealfs_proto::{Attr, Errno, Ino, NodeId, Who};

use crate::fake::World;
use crate::fake::model::CHUNK;
use crate::{READ_WRITE, ROOT};

const ALL: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

fn open(world: &mut World, ino: Ino, flags: OpenFlags) -> Handle {
    let fs = world.fs.clone();
    world.run(async move { fs.open(&Who::root(), ino, flags).await }).unwrap().1
}

fn fsync_dir(world: &mut World, dir: Ino) -> Result<(), Errno> {
    let fs = world.fs.clone();
    world.run(async move { fs.fsync_dir(dir).await })
}

fn mkdir(world: &mut World, name: &'static str) -> Attr {
    let fs = world.fs.clone();
    world.run(async move { fs.mkdir(&Who::root(), ROOT, name.as_bytes(), 0o755, 0).await }).unwrap()
}

#[test]
fn every_open_handle_of_what_was_not_synced_is_told_once_and_no_other() {
    let mut world = World::new(3);
    let (lost, one) = world.create("lost");
    let (_, synced) = world.create("synced");
    for handle in [one, synced] {
        world.write(handle, u64::from(CHUNK), b"beyond the first chunk").unwrap();
    }
    world.fsync(synced).unwrap();
    let two = open(&mut world, lost.ino, READ_WRITE);
    // Twice before the client hears of it.
    world.net.borrow_mut().lose_power(ALL, 2);
    assert_eq!(world.fsync(synced), Ok(()));
    assert_eq!(world.fsync(one), Err(Errno::EIO));
    assert_eq!(world.fsync(one), Ok(()));
    assert_eq!(world.close(two), Err(Errno::EIO));
    let late = open(&mut world, lost.ino, READ_WRITE);
    assert_eq!((world.fsync(late), world.close(late)), (Ok(()), Ok(())));
    assert_eq!((world.close(one), world.close(synced)), (Ok(()), Ok(())));
}

#[test]
fn a_loss_after_the_last_close_is_told_to_the_next_fsync_whoever_reads_meanwhile() {
    let mut world = World::new(3);
    let (attr, writer) = world.create("a");
    world.write(writer, 0, b"x").unwrap();
    world.close(writer).unwrap();
    let read_only = OpenFlags { read: true, ..OpenFlags::default() };
    let reader = open(&mut world, attr.ino, read_only);
    world.net.borrow_mut().lose_power(ALL, 1);
    world.stat(attr.ino).unwrap();
    assert_eq!(world.close(reader), Err(Errno::EIO), "it may have read what is gone");
    let again = open(&mut world, attr.ino, READ_WRITE);
    assert_eq!(world.fsync(again), Err(Errno::EIO));
    assert_eq!(world.fsync(again), Ok(()));
}

#[test]
fn a_writer_that_was_told_at_its_close_has_told_the_file() {
    let mut world = World::new(3);
    let (attr, writer) = world.create("a");
    world.write(writer, 0, b"x").unwrap();
    world.net.borrow_mut().lose_power(ALL, 1);
    world.stat(attr.ino).unwrap();
    assert_eq!(world.close(writer), Err(Errno::EIO));
    let again = open(&mut world, attr.ino, READ_WRITE);
    assert_eq!(world.fsync(again), Ok(()));
}

#[test]
fn a_file_or_directory_that_was_only_made_may_be_lost() {
    let mut world = World::new(3);
    let (_, handle) = world.create("file");
    let dir = mkdir(&mut world, "dir").ino;
    world.net.borrow_mut().lose_power(ALL, 1);
    assert_eq!(world.fsync(handle), Err(Errno::EIO));
    for dir in [ROOT, dir] {
        assert_eq!(fsync_dir(&mut world, dir), Err(Errno::EIO));
        assert_eq!(fsync_dir(&mut world, dir), Ok(()));
    }
}

#[test]
fn only_losses_after_a_change_count_also_at_a_node_that_was_never_heard_before() {
    // In each world the first thing that is asked is a directory at some node, mostly another than the root's.
    for (number, name) in ["a", "b", "c", "d", "e", "f", "g"].into_iter().enumerate() {
        let mut world = World::new(9);
        let dir = mkdir(&mut world, name).ino;
        if number % 2 == 0 {
            assert_eq!(fsync_dir(&mut world, ROOT), Ok(()), "{name}");
            assert_eq!(fsync_dir(&mut world, dir), Ok(()), "{name}");
        } else {
            let node = world.net.borrow().model.node(dir.shard());
            world.net.borrow_mut().lose_power([node], 1);
            assert_eq!(fsync_dir(&mut world, ROOT), Err(Errno::EIO), "{name}");
            assert_eq!(fsync_dir(&mut world, dir), Err(Errno::EIO), "{name}");
        }
    }
}

#[test]
fn the_whole_was_not_synced_if_anything_was_lost() {
    let mut world = World::new(3);
    let (_, handle) = world.create("a");
    let sync_all = |world: &mut World| {
        let fs = world.fs.clone();
        world.run(async move { fs.sync_all().await })
    };
    world.write(handle, 0, b"x").unwrap();
    world.net.borrow_mut().lose_power(ALL, 1);
    assert_eq!(sync_all(&mut world), Err(Errno::EIO));
    assert_eq!(sync_all(&mut world), Ok(()));
    assert_eq!(world.fsync(handle), Err(Errno::EIO), "that is for the file to tell");
}

#[test]
fn attributes_that_were_lost_are_shown_no_longer() {
    let mut world = World::new(3);
    let (attr, handle) = world.create("a");
    world.fsync(handle).unwrap();
    let before = world.net.borrow().model.inodes[&attr.ino].attr.clone();
    world.write(handle, 0, b"hello").unwrap();
    assert_eq!(world.stat(attr.ino).unwrap().size, 5);
    assert!(world.stat(attr.ino).unwrap().change > before.change);
    world.net.borrow_mut().model.inodes.get_mut(&attr.ino).unwrap().attr = before;
    world.net.borrow_mut().lose_power(ALL, 1);
    assert_eq!(world.stat(attr.ino).unwrap().size, 0);
}
