//! What clients see of one another: two mounts of one cluster, side by side.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sealfs_tests::cluster::{Cluster, run};
use sealfs_tests::pattern;

#[test]
fn close_to_open_and_what_another_client_sees_within_a_second() {
    let mut cluster = Cluster::start(3);
    let (a, b) = (cluster.mount(), cluster.mount());
    for round in 0..20_u64 {
        let content = pattern(round, 3 << 20 | round as usize);
        fs::write(a.join("file"), &content).unwrap();
        assert!(fs::read(b.join("file")).unwrap() == content, "round {round}");
        let (seen_a, seen_b) =
            (fs::metadata(a.join("file")).unwrap(), fs::metadata(b.join("file")).unwrap());
        assert_eq!((seen_a.len(), seen_a.mtime_nsec()), (seen_b.len(), seen_b.mtime_nsec()));
    }
    // Without closing or reopening: within a second.
    let mut writer = File::create(a.join("open")).unwrap();
    let mut reader = File::open(b.join("open")).unwrap();
    writer.write_all(b"news").unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let written = Instant::now();
    let mut text = String::new();
    while text != "news" {
        assert!(Instant::now() < deadline, "never seen");
        text.clear();
        reader.seek(SeekFrom::Start(0)).unwrap();
        reader.read_to_string(&mut text).unwrap();
        thread::sleep(Duration::from_millis(10));
    }
    // A loaded machine may be late; the promise is about the protocol's timers.
    assert!(written.elapsed() < Duration::from_secs(5), "{:?}", written.elapsed());
}

#[test]
fn what_is_read_while_another_client_writes_is_each_block_before_or_after() {
    const BLOCK: usize = 4_096;
    const LEN: usize = 64 * BLOCK;
    let mut cluster = Cluster::start(3);
    let (a, b) = (cluster.mount(), cluster.mount());
    fs::write(a.join("file"), vec![0; LEN]).unwrap();
    let written = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        scope.spawn(|| {
            let file = OpenOptions::new().write(true).open(a.join("file")).unwrap();
            (0..=u8::MAX).cycle().take(1_000).for_each(|round| {
                file.write_all_at(&vec![round; LEN], 0).unwrap();
            });
            written.store(true, Ordering::Relaxed);
        });
        let mut seen = BTreeSet::new();
        for flags in [0, libc::O_DIRECT].into_iter().cycle() {
            if written.load(Ordering::Relaxed) {
                break;
            }
            let file = OpenOptions::new().read(true).custom_flags(flags).open(b.join("file"));
            let mut bytes = vec![0; LEN];
            file.unwrap().read_exact_at(&mut bytes, 0).unwrap();
            for (at, block) in bytes.chunks(BLOCK).enumerate() {
                assert!(block.iter().all(|byte| *byte == block[0]), "block {at} is torn");
                seen.insert(block[0]);
            }
        }
        seen
    });
    assert!(seen.len() > 10, "the reader was hardly there: {seen:?}");
}

#[test]
fn what_a_mapping_publishes_is_there_when_another_client_maps_the_file() {
    const LEN: usize = (3 << 20) + 5_000;
    let mut cluster = Cluster::start(3);
    let mounts = [cluster.mount(), cluster.mount()];
    fs::write(mounts[0].join("file"), vec![0; LEN]).unwrap();
    for round in 1..=6_u8 {
        let (writer, reader) =
            (&mounts[usize::from(round) % 2], &mounts[usize::from(round + 1) % 2]);
        // By msync, with the mapping still there; or by nothing but unmapping and closing.
        let is_synced = round <= 3;
        let sync = if is_synced { "m.flush()" } else { "m.close(); f.close()" };
        let write = format!(
            "import mmap, sys\nf = open('file', 'r+b')\nm = mmap.mmap(f.fileno(), 0)\n\
             m[:] = bytes([{round}]) * len(m)\n{sync}\nprint('there', flush=True)\nsys.stdin.read()"
        );
        let mut child = Command::new("python3")
            .args(["-c", &write])
            .current_dir(writer)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "there\n");
        let read = format!(
            "import mmap\nf = open('file', 'rb')\nm = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n\
             assert len(m) == {LEN} and m[:] == bytes([{round}]) * {LEN}, m[0]"
        );
        run(Command::new("python3").args(["-c", &read]).current_dir(reader));
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn with_strict_consistency_another_client_sees_everything_at_once() {
    let mut cluster = Cluster::start(3);
    let strict = ["--consistency", "strict"];
    let (a, b) = (cluster.mount_with(&strict), cluster.mount_with(&["-o", "consistency=strict"]));
    let open = |mount: &Path| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).open(mount.join("file")).unwrap()
    };
    let files = [open(&a), open(&b)];
    let mut expected = Vec::new();
    for round in 0..60_usize {
        let (writer, reader) = (&files[round % 2], &files[1 - round % 2]);
        // Now over what is there, now beyond it: in the first chunk and in others.
        let offset = round * 7_919 * 13 % (expected.len() + 1) + round % 3 * 100_000;
        let bytes = pattern(round as u64, 40_000 + round * 1_000);
        expected.resize(expected.len().max(offset + bytes.len()), 0);
        expected[offset..offset + bytes.len()].copy_from_slice(&bytes);
        writer.write_all_at(&bytes, offset as u64).unwrap();
        let (mine, theirs) = (writer.metadata().unwrap(), reader.metadata().unwrap());
        assert_eq!(theirs.len(), expected.len() as u64, "round {round}");
        assert_eq!((mine.mtime(), mine.mtime_nsec()), (theirs.mtime(), theirs.mtime_nsec()));
        let mut found = vec![0; expected.len()];
        reader.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected, "round {round}");
    }
    assert!(expected.len() > 2 << 20, "other chunks than the first are there");
    for round in 0..20 {
        let (name, mode) = (format!("n{round}"), 0o600 + round);
        assert!(fs::metadata(b.join(&name)).is_err());
        File::create(a.join(&name)).unwrap();
        fs::set_permissions(b.join(&name), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(a.join(&name)).unwrap().mode() & 0o777, mode);
        fs::rename(b.join(&name), b.join("moved")).unwrap();
        assert!(fs::metadata(a.join(&name)).is_err() && fs::metadata(a.join("moved")).is_ok());
        fs::remove_file(a.join("moved")).unwrap();
        assert!(fs::metadata(b.join("moved")).is_err());
    }
}

#[test]
fn names_are_made_once_by_whoever_is_first() {
    let mut cluster = Cluster::start(3);
    let mounts = [cluster.mount(), cluster.mount()];
    let won: Vec<usize> = thread::scope(|scope| {
        let racers: Vec<_> = mounts
            .iter()
            .map(|mount| {
                scope.spawn(move || {
                    let make = |index: &usize| {
                        let name = mount.join(format!("n{index}"));
                        let result = if index.is_multiple_of(2) {
                            OpenOptions::new().write(true).create_new(true).open(name).map(drop)
                        } else {
                            fs::create_dir(name)
                        };
                        match result {
                            Ok(()) => true,
                            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
                            Err(error) => panic!("{error}"),
                        }
                    };
                    (0..200_usize).filter(make).count()
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(won.iter().sum::<usize>(), 200);
    assert_eq!(fs::read_dir(&mounts[0]).unwrap().count(), 200);
}

#[test]
fn appends_of_two_clients_are_all_there_and_never_overlap() {
    let mut cluster = Cluster::start(3);
    let mounts = [cluster.mount(), cluster.mount()];
    thread::scope(|scope| {
        for (mount, who) in mounts.iter().zip(["a", "b"]) {
            scope.spawn(move || {
                let mut log =
                    OpenOptions::new().append(true).create(true).open(mount.join("log")).unwrap();
                for index in 0..300 {
                    log.write_all(format!("{who} {index} {}\n", "x".repeat(index * 7)).as_bytes())
                        .unwrap();
                }
            });
        }
    });
    let text = fs::read_to_string(mounts[1].join("log")).unwrap();
    let mut next = [0_usize; 2];
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let who = usize::from(words[0] == "b");
        assert_eq!(
            (words[1].parse(), words[2].len()),
            (Ok(next[who]), next[who] * 7),
            "{line:.40}"
        );
        next[who] += 1;
    }
    assert_eq!(next, [300, 300]);
}

#[test]
fn an_unlinked_file_lives_until_the_last_client_closes_it() {
    let mut cluster = Cluster::start(3);
    let (a, b) = (cluster.mount(), cluster.mount());
    let content = pattern(9, 5 << 20);
    fs::write(a.join("file"), &content).unwrap();
    let held = OpenOptions::new().read(true).write(true).open(b.join("file")).unwrap();
    fs::remove_file(a.join("file")).unwrap();
    assert_eq!(fs::metadata(a.join("file")).unwrap_err().kind(), ErrorKind::NotFound);
    held.write_all_at(b"still here", 0).unwrap();
    let mut found = vec![0; content.len()];
    held.read_exact_at(&mut found, 0).unwrap();
    assert!(&found[..10] == b"still here" && found[10..] == content[10..]);
    assert_eq!(held.metadata().unwrap().nlink(), 0);
}

#[test]
fn locks_hold_across_clients_and_die_with_their_client() {
    let mut cluster = Cluster::start(3);
    let (a, b) = (cluster.mount(), cluster.mount());
    File::create(a.join("lock")).unwrap();
    let flock = |mount: &Path, flag: &str| {
        let mut command = Command::new("flock");
        command.arg(flag).arg(mount.join("lock")).args(["sh", "-c", "echo locked; read x"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut holder = flock(&a, "-x");
    let mut line = [0; 7];
    holder.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    let refused =
        Command::new("flock").args(["-xn"]).arg(b.join("lock")).arg("true").status().unwrap();
    assert_eq!(refused.code(), Some(1), "the lock is held by the other client");
    let mut waiter = flock(&b, "-x");
    // The holder lets go: the waiter gets the lock.
    drop(holder.stdin.take());
    holder.wait().unwrap();
    waiter.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    // A program that waits can be killed.
    let mut waiting = flock(&a, "-x");
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    drop(waiter.stdin.take());
    waiter.wait().unwrap();
}
