//! The sizes that are promised, on a real mount of three nodes: a directory of 200,000 entries, 100,000 directories, a file of
//! 3 GiB; all of it also after `kill -9` of every node.
//!
//! Several threads of this process work on the mount, and none holds anything open when a node is started: a child is born with
//! its parent's open files, and closing them before it becomes the node would wait for that very node.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};
use sealfs_tests::cluster::Cluster;
use sealfs_tests::pattern;

/// Requests in flight at once.
const THREADS: usize = 8;
/// Bytes of a path without the NUL behind it, as Linux takes them.
const PATH_MAX: usize = 4_095;
const NAME_MAX: usize = 255;

/// Runs `work` for every number below `count`, on several threads.
fn each(count: usize, work: impl Fn(usize) + Sync) {
    let work = &work;
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || (thread..count).step_by(THREADS).for_each(work));
        }
    });
}

/// Says how long a step took; shown with `--no-capture`, and when the test fails.
#[allow(clippy::print_stdout, reason = "its result is what it prints")]
fn step<R>(what: &str, work: impl FnOnce() -> R) -> R {
    let begun = Instant::now();
    let result = work();
    println!("{what}: {:.1} s", begun.elapsed().as_secs_f64());
    result
}

/// kill -9 of all nodes, and their start.
fn restart(cluster: &mut Cluster) {
    (0..3).for_each(|at| cluster.kill_node(at));
    (0..3).for_each(|at| cluster.start_node(at));
}

/// A name of any bytes but '/' and NUL, different for every number; of 255 bytes for one in a hundred.
fn name(number: usize) -> OsString {
    let mut bytes = number.to_string().into_bytes();
    if number.is_multiple_of(100) {
        bytes.push(b'-');
        let any = pattern(number as u64, 2 * NAME_MAX).into_iter();
        bytes.extend(any.filter(|byte| ![0, b'/'].contains(byte)));
        bytes.truncate(NAME_MAX);
        assert_eq!(bytes.len(), NAME_MAX);
    }
    OsString::from_vec(bytes)
}

/// The names in a directory. Each was listed once.
fn list(dir: &Path) -> BTreeSet<OsString> {
    let mut listed = 0;
    let names = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            listed += 1;
            entry.unwrap().file_name()
        })
        .collect::<BTreeSet<_>>();
    assert_eq!(names.len(), listed, "every name is listed once");
    names
}

/// Fails without printing hundreds of thousands of names.
fn assert_names(found: &BTreeSet<OsString>, expected: &BTreeSet<OsString>, when: &str) {
    let missing: Vec<_> = expected.difference(found).take(5).collect();
    let extra: Vec<_> = found.difference(expected).take(5).collect();
    let (found, expected) = (found.len(), expected.len());
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{when}: {found} names, not {expected}; missing {missing:?}, too many {extra:?}"
    );
}

#[test]
fn a_directory_of_200_000_entries_is_listed_halved_and_found_again() {
    const COUNT: usize = 200_000;
    let mut cluster = Cluster::start(3);
    let dir = cluster.mount().join("many");
    fs::create_dir(&dir).unwrap();
    step("200,000 creates", || {
        each(COUNT, |number| {
            mknodat(CWD, dir.join(name(number)), FileType::RegularFile, Mode::RUSR, 0).unwrap();
        });
    });
    let mut expected: BTreeSet<OsString> = (0..COUNT).map(name).collect();
    let found = step("list", || list(&dir));
    assert_names(&found, &expected, "after the creates");
    each(COUNT / 100, |number| {
        let found = fs::symlink_metadata(dir.join(name(number * 100))).unwrap();
        assert!(found.is_file() && found.nlink() == 1 && found.len() == 0);
    });
    step("100,000 removals", || {
        each(COUNT / 2, |number| fs::remove_file(dir.join(name(2 * number))).unwrap());
    });
    expected = (0..COUNT / 2).map(|number| name(2 * number + 1)).collect();
    assert_names(&list(&dir), &expected, "after the removals");
    step("kill and start", || restart(&mut cluster));
    let found = step("list", || list(&dir));
    assert_names(&found, &expected, "after the kill");
    let again = cluster.mount().join("many");
    assert_names(&list(&again), &expected, "on a new mount");
    each(1_000, |number| {
        let gone = fs::symlink_metadata(again.join(name(number * 100)));
        assert_eq!(gone.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(fs::symlink_metadata(again.join(name(number * 100 + 1))).unwrap().is_file());
    });
}

#[test]
fn a_hundred_thousand_directories_wide_and_deep_are_found_again() {
    const WIDE: usize = 320;
    const INNER: usize = 310;
    // One byte less than there can be, so that at least one is left for the last name of a path of any beginning.
    const LINK: &[u8] = &[0xf0; NAME_MAX - 1];
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    let outer = |number: usize| mount.join(name(number));
    step("99,520 directories", || {
        each(WIDE, |number| {
            fs::create_dir(outer(number)).unwrap();
            for inner in 0..INNER {
                fs::create_dir(outer(number).join(name(inner))).unwrap();
            }
        });
    });
    // One chain to the longest path that there can be; others of short names, as deep as a path can be.
    let deepest = step("deep directories", || {
        let mut path = mount.join(name(100));
        while path.as_os_str().len() + 1 + LINK.len() <= PATH_MAX - 2 {
            path.push(OsStr::from_bytes(LINK));
            fs::create_dir(&path).unwrap();
        }
        let left = PATH_MAX - path.as_os_str().len() - 1;
        path.push(OsStr::from_bytes(&vec![b'x'; left]));
        fs::write(&path, "at the end").unwrap();
        let too_long =
            PathBuf::from(OsString::from_vec([path.as_os_str().as_bytes(), b"y"].concat()));
        assert_eq!(fs::write(too_long, "").unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
        path
    });
    let (chain, depth) = step("a chain", || chain(&mount));
    step("kill and start", || restart(&mut cluster));
    step("list", || {
        let inner: BTreeSet<OsString> = (0..INNER).map(name).collect();
        each(WIDE, |number| {
            let mut expected = inner.clone();
            if number == 100 {
                expected.insert(OsString::from_vec(LINK.to_vec()));
            }
            assert_names(&list(&outer(number)), &expected, "in a wide directory");
            assert_eq!(fs::metadata(outer(number)).unwrap().nlink(), 2 + expected.len() as u64);
            let leaf = fs::metadata(outer(number).join(name(number % INNER))).unwrap();
            assert!(leaf.is_dir());
        });
    });
    let mut top: BTreeSet<OsString> = (0..WIDE).map(name).collect();
    top.insert("chain".into());
    assert_names(&list(&mount), &top, "at the top");
    assert_eq!(fs::read_to_string(&deepest).unwrap(), "at the end");
    assert!(fs::metadata(&chain).unwrap().is_dir(), "{depth} directories deep");
}

/// As many directories, one in the other, as a path can name: the path and their number.
fn chain(mount: &Path) -> (PathBuf, usize) {
    let mut path = mount.join("chain").into_os_string();
    fs::create_dir(&path).unwrap();
    let depth = (PATH_MAX - path.len()) / 2;
    let mut dir = File::open(&path).unwrap();
    for _ in 0..depth {
        // From the directory before: a walk from the top would ask for each again when the kernel's second is over.
        mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = openat(&dir, "d", OFlags::DIRECTORY, Mode::empty()).unwrap().into();
        path.push("/d");
    }
    (path.into(), depth)
}

/// What the file of 3 GiB holds: every third MiB is written, from an odd offset on, over a border of chunks.
const LEN: u64 = 3 << 30;
const PIECE: usize = 1 << 20;
const FROM: u64 = 123_457;

fn pieces() -> impl Iterator<Item = u64> {
    (0..LEN / (3 * PIECE as u64)).map(|number| number * 3 * PIECE as u64 + FROM)
}

#[test]
fn a_sparse_file_of_3_gib_over_three_nodes_has_its_content() {
    let mut cluster = Cluster::start(3);
    let path = cluster.mount().join("large");
    step("1 GiB written", || {
        let file = File::create(&path).unwrap();
        let offsets: Vec<u64> = pieces().collect();
        each(offsets.len(), |at| {
            file.write_all_at(&pattern(offsets[at], PIECE), offsets[at]).unwrap();
        });
        file.set_len(LEN).unwrap();
        file.sync_all().unwrap();
    });
    step("read", || check(&path));
    step("kill and start", || restart(&mut cluster));
    let again = cluster.mount().join("large");
    step("read on a new mount", || check(&again));
}

fn check(path: &Path) {
    let file = File::open(path).unwrap();
    let found = file.metadata().unwrap();
    assert_eq!(found.len(), LEN);
    // A block at each end of a piece is written in part.
    let (written, count) = (LEN / 3, pieces().count() as u64);
    let blocks = found.blocks() * 512;
    assert!((written..=written + count * 8_192).contains(&blocks), "{blocks} bytes are allocated");
    let offsets: Vec<u64> = pieces().collect();
    each(offsets.len(), |at| {
        let start = offsets[at] - FROM;
        let mut bytes = vec![0xff; 3 * PIECE];
        file.read_exact_at(&mut bytes, start).unwrap();
        let from = FROM as usize;
        assert!(bytes[..from].iter().all(|byte| *byte == 0), "hole at {start}");
        assert!(bytes[from..from + PIECE] == pattern(offsets[at], PIECE), "piece at {start}");
        assert!(bytes[from + PIECE..].iter().all(|byte| *byte == 0), "hole behind {start}");
    });
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap();
    assert_eq!(data, FROM / 4_096 * 4_096);
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
    let end = FROM + PIECE as u64;
    assert!((end..=end.next_multiple_of(4_096)).contains(&hole), "a hole begins at {hole}");
}
