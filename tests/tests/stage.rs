//! `sealfs stage`: trees between directories and a real mount, killed, changed, cut off by deadlines, by several parts.
//!
//! Trees are compared by everything that staging keeps: names, types, modes, owners, times, links, attributes, data, holes.

#[path = "stage/again.rs"]
mod again;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, SeekFrom, Timespec, Timestamps, XattrFlags};
use sealfs_tests::cluster::{Cluster, binary, run};

/// `sealfs stage` with its words.
fn stage(way: &str, source: &Path, dest: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(["stage", way]).arg(source).arg(dest).args(more);
    command
}

/// Runs to the end and wants an exit status.
fn expect(code: i32, command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {text}");
    output
}

/// One line per entry: all that staging keeps, but no atime (reading the tree may change that).
fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    let (mut lines, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    let mut links: BTreeMap<(u64, u64), BTreeSet<PathBuf>> = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if name == Path::new(".sealfs-stage") {
                continue;
            }
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                folders.push(path.clone());
            } else {
                links.entry((meta.dev(), meta.ino())).or_default().insert(name.clone());
            }
            lines.insert(name, line(&path, &meta));
        }
    }
    for names in links.values().filter(|names| names.len() > 1) {
        for name in names {
            lines.get_mut(name).unwrap().push_str(&format!(" same as {names:?}"));
        }
    }
    lines
}

fn line(path: &Path, meta: &fs::Metadata) -> String {
    let kind = meta.file_type();
    let (uid, gid, mode) = (meta.uid(), meta.gid(), meta.mode());
    let mut line = format!("{mode:o} {uid} {gid} {}.{:09}", meta.mtime(), meta.mtime_nsec());
    if kind.is_file() {
        line.push_str(&format!(" {} bytes {:?}", meta.len(), extents(path)));
    } else if kind.is_symlink() {
        line.push_str(&format!(" -> {:?}", fs::read_link(path).unwrap()));
    } else if kind.is_char_device() || kind.is_block_device() {
        line.push_str(&format!(" device {:x}", meta.rdev()));
    }
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut names: Vec<&[u8]> = names[..len].split(|byte| *byte == 0).collect();
    names.sort_unstable();
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        line.push_str(&format!(" {}={:?}", String::from_utf8_lossy(name), &value[..len]));
    }
    line
}

/// Data of a file: a hash of all that is no zero, with its place; and whether it has less data than length.
fn extents(path: &Path) -> (u64, bool) {
    let file = fs::File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let (mut hash, mut at, mut data) = (xxhash_rust::xxh64::Xxh64::new(0), 0, 0);
    let mut block = vec![0; 1 << 16];
    while at < len {
        let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) else { break };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
        data += end - start;
        at = start - start % 65_536;
        while at < end {
            let got = file.read_at(&mut block, at).unwrap();
            if block[..got].iter().any(|byte| *byte != 0) {
                hash.update(&at.to_le_bytes());
                hash.update(&block[..got]);
            }
            at += 65_536;
        }
    }
    (hash.digest(), data < len / 2)
}

fn assert_same(source: &Path, dest: &Path) {
    let (source, dest) = (picture(source), picture(dest));
    let mut wrong = Vec::new();
    for name in source.keys().chain(dest.keys()).collect::<BTreeSet<_>>() {
        if source.get(name) != dest.get(name) {
            wrong.push(format!("{name:?}\n  {:?}\n  {:?}", source.get(name), dest.get(name)));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn write(path: &Path, len: usize, seed: u64) {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn set_times(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with one of everything.
fn make_tree(root: &Path) {
    let folder = |name: &str| {
        let path = root.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let a = folder("a");
    for number in 0..200 {
        write(&a.join(format!("file{number}")), number * 211 % 30_000, number as u64);
    }
    let deep = folder("a/b/c/d/e");
    write(&deep.join("leaf"), 5, 1);
    write(&root.join("large"), 70 << 20, 2);
    write(&root.join("name\nof\\odd\u{1}bytes"), 9, 3);
    fs::write(root.join(OsStr::from_bytes(b"no\xffutf8")), "x").unwrap();
    fs::write(root.join(OsStr::from_bytes(&[b'n'; 255])), "y").unwrap();
    fs::hard_link(a.join("file7"), deep.join("seven")).unwrap();
    fs::hard_link(a.join("file7"), root.join("seven")).unwrap();
    fs::hard_link(root.join("large"), a.join("large too")).unwrap();
    symlink("../nowhere", a.join("link")).unwrap();
    symlink("/etc", root.join("link to a folder")).unwrap();
    set_times(&a.join("link"), 12, 34);
    let special = |name: &str, kind: FileType, device: u64| {
        let mode = Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(rustix::fs::CWD, root.join(name), kind, mode, device).unwrap();
    };
    special("fifo", FileType::Fifo, 0);
    special("socket", FileType::Socket, 0);
    special("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    special("loop", FileType::BlockDevice, rustix::fs::makedev(7, 200));
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    sparse.write_all_at(b"in the middle", 1 << 39).unwrap();
    sparse.write_all_at(b"the end", (1 << 40) - 7).unwrap();
    let middle = fs::File::create(root.join("holes")).unwrap();
    middle.write_all_at(&[1; 4096], 8192).unwrap();
    middle.write_all_at(&[2; 100_000], 1 << 20).unwrap();
    middle.set_len(3 << 20).unwrap();
    fs::File::create(root.join("only a hole")).unwrap().set_len(100 << 20).unwrap();
    let mode = |name: &str, mode| {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    std::os::unix::fs::chown(a.join("file3"), Some(1234), Some(567)).unwrap();
    mode("a/file3", 0o6755);
    mode("a/file4", 0o000);
    folder("empty");
    std::os::unix::fs::chown(root.join("empty"), Some(1234), Some(567)).unwrap();
    mode("empty", 0o3777);
    let xattr = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
    };
    xattr(&a.join("file5"), "user.one", b"1");
    xattr(&a.join("file5"), "user.two", &[0, 255, 10]);
    xattr(&a, "user.folder", b"f");
    run(Command::new("setfacl").args(["-m", "u:1000:rw,g:55:r"]).arg(a.join("file6")));
    run(Command::new("setfacl").args(["-d", "-m", "u:1000:rwx"]).arg(root.join("empty")));
    folder("read only");
    write(&root.join("read only/inside"), 10, 4);
    mode("read only", 0o555);
    for (number, name) in ["a", "a/b/c", "empty", "read only", "a/file9"].iter().enumerate() {
        set_times(&root.join(name), 1_000_000_000 + number as i64, 123_456_789);
    }
    set_times(&a.join("file8"), -5, 1);
}

fn dirs() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (source, dest) = (dir.path().join("source"), dir.path().join("dest"));
    fs::create_dir(&source).unwrap();
    (dir, source, dest)
}

#[test]
fn everything_of_a_tree_is_kept_between_directories() {
    let (_dir, source, dest) = dirs();
    make_tree(&source);
    for checksum in ["none", "crc32c", "sha256"] {
        expect(0, &mut stage("in", &source, &dest, &["--any", "--checksum", checksum]));
        assert_same(&source, &dest);
        assert!(!dest.join(".sealfs-stage").exists());
        fs::remove_dir_all(&dest).unwrap();
    }
}

#[test]
fn reading_a_tree_leaves_no_trace_and_folders_keep_their_atime() {
    let (_dir, source, dest) = dirs();
    let folders = ["", "a", "a/b"].map(|name| source.join(name));
    fs::create_dir_all(&folders[2]).unwrap();
    fs::write(source.join("a/b/file"), "x").unwrap();
    for folder in folders.iter().rev() {
        set_times(folder, 1_000_000_000, 5);
    }
    expect(0, &mut stage("in", &source, &dest, &["--any"]));
    // On a terminal the tree is read once more, to tell how long it will take.
    let words = format!(
        "{} stage in --any {} {}",
        binary().display(),
        source.display(),
        source.with_file_name("other").display()
    );
    expect(0, Command::new("script").args(["-qec", &words, "/dev/null"]));
    for name in ["", "a", "a/b"] {
        for root in [&source, &dest] {
            let meta = fs::metadata(root.join(name)).unwrap();
            assert_eq!((meta.atime(), meta.atime_nsec()), (1_000_000_000, 5), "{root:?} {name}");
        }
    }
}

#[test]
fn attributes_of_another_file_systems_own_are_left_out() {
    let (_dir, source, dest) = dirs();
    let file = source.join("file");
    fs::write(&file, "x").unwrap();
    for name in ["user.mine", "trusted.mine", "trusted.overlay.opaque", "trusted.lov"] {
        rustix::fs::setxattr(&file, name, b"y", XattrFlags::empty()).unwrap();
    }
    let output = expect(0, &mut stage("in", &source, &dest, &["--any"]));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let mut names = vec![0; 4096];
    let len = rustix::fs::listxattr(dest.join("file"), &mut names[..]).unwrap();
    let names = String::from_utf8_lossy(&names[..len]).into_owned();
    assert!(names.contains("user.mine") && names.contains("trusted.mine"), "{names}");
    assert!(!names.contains("overlay") && !names.contains("lov"), "{names}");
}

#[test]
fn a_tree_goes_into_a_mount_and_out_again() {
    let (dir, source, _) = dirs();
    make_tree(&source);
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    let out = dir.path().join("out");
    expect(0, &mut stage("in", &source, &mount.join("tree"), &[]));
    assert_same(&source, &mount.join("tree"));
    expect(0, &mut stage("out", &mount.join("tree"), &out, &[]));
    assert_same(&source, &out);
    // Which end is the mount is not a matter of taste.
    let output = expect(1, &mut stage("out", &source, &mount.join("x"), &[]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("that is `stage in`"));
    let output = expect(1, &mut stage("in", &source, &out, &[]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not on a sealfs mount"));
    assert!(!mount.join("x").exists());
}

#[test]
fn parts_on_two_mounts_do_what_one_does() {
    let (_dir, source, _) = dirs();
    make_tree(&source);
    let mut cluster = Cluster::start(3);
    let mounts = [cluster.mount(), cluster.mount()];
    let part = |number: usize| {
        let words = format!("{number}/3");
        let dest = mounts[number % 2].join("tree");
        stage("in", &source, &dest, &["--part", &words]).spawn().unwrap()
    };
    let finish = || stage("in", &source, &mounts[0].join("tree"), &["--finish"]);
    let two: Vec<_> = [1, 3].map(part).into_iter().collect();
    for mut child in two {
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    // One is missing: that is seen, and what it has not done is named.
    let output = expect(1, &mut finish());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("part 2 of 3 has not run to its end"), "{text}");
    assert!(text.contains("is not in DEST"), "{text}");
    assert_eq!(part(2).wait().unwrap().code(), Some(0));
    expect(0, &mut finish());
    assert_same(&source, &mounts[1].join("tree"));
    assert!(!mounts[0].join("tree/.sealfs-stage").exists());
}

#[test]
fn after_kill_9_at_any_moment_a_second_run_makes_the_tree_right() {
    let (_dir, source, dest) = dirs();
    make_tree(&source);
    let mut kills = 0;
    for step in 0..40_usize {
        let mut child = stage("in", &source, &dest, &["--any"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Every entry of this folder that has a name, temporary or not, is one step.
        let names = || fs::read_dir(dest.join("a")).map_or(0, Iterator::count);
        while names() <= step * 5 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        let killed = child.wait().unwrap().code().is_none();
        kills += usize::from(killed);
        if killed && dest.exists() {
            whole_or_not_there(&source, &dest);
        }
        // Every second time the next run goes on with what this one left.
        if step % 2 == 1 {
            expect(0, &mut stage("in", &source, &dest, &["--any"]));
            assert_same(&source, &dest);
            fs::remove_dir_all(&dest).unwrap();
        }
    }
    assert!(kills > 0, "each run ended before it was killed");
}

/// What has its name in `dest` has its data.
fn whole_or_not_there(source: &Path, dest: &Path) {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(dest.join(&folder)).unwrap() {
            let name = folder.join(entry.unwrap().file_name());
            let is_ours = name.file_name().unwrap().as_bytes().starts_with(b".sealfs-");
            let meta = fs::symlink_metadata(dest.join(&name)).unwrap();
            if is_ours {
                continue;
            }
            if meta.is_dir() {
                folders.push(name);
            } else {
                let wanted = fs::symlink_metadata(source.join(&name)).unwrap();
                assert_eq!(
                    line(&source.join(&name), &wanted),
                    line(&dest.join(&name), &meta),
                    "{name:?}"
                );
            }
        }
    }
}

/// The events of a run with `--json`, the last one apart.
fn events(output: &Output) -> (Vec<serde_json::Value>, serde_json::Value) {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let mut events: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = events.pop().unwrap();
    assert_eq!(last["event"], "done");
    (events, last)
}

#[test]
fn a_second_run_copies_only_what_has_changed_on_either_side() {
    let (_dir, source, dest) = dirs();
    for number in 0..300 {
        write(&source.join(format!("file{number}")), 1_000, number);
    }
    again::settle(&source);
    let again = || {
        let words = ["--any", "--keep-manifest", "--json"];
        events(&expect(0, &mut stage("in", &source, &dest, &words))).1
    };
    assert_eq!(again()["entries"], 300);
    let second = again();
    assert_eq!((&second["entries"], &second["kept"]), (&0.into(), &300.into()));
    // New data under the old size and mtime; new attributes; another file under the name; and on the other side.
    let meta = fs::metadata(source.join("file1")).unwrap();
    write(&source.join("file1"), 1_000, 999);
    set_times(&source.join("file1"), meta.mtime(), meta.mtime_nsec());
    fs::set_permissions(source.join("file2"), fs::Permissions::from_mode(0o600)).unwrap();
    let meta = fs::metadata(dest.join("file3")).unwrap();
    write(&dest.join("file3"), 1_000, 999);
    set_times(&dest.join("file3"), meta.mtime(), meta.mtime_nsec());
    fs::remove_file(dest.join("file4")).unwrap();
    fs::write(source.join("file300"), "new").unwrap();
    let third = again();
    assert_eq!((&third["entries"], &third["kept"]), (&5.into(), &296.into()));
    assert_same(&source, &dest);
    // A manifest of which any record may be damaged costs copying, never the truth.
    let base = dest.join(".sealfs-stage/part-1-of-1.base");
    let mut bytes = fs::read(&base).unwrap();
    (0..bytes.len()).step_by(1_000).for_each(|at| bytes[at] ^= 1);
    fs::write(&base, bytes).unwrap();
    fs::write(dest.join("file5"), "damaged, too").unwrap();
    assert!(again()["entries"].as_u64().unwrap() >= 1);
    assert_same(&source, &dest);
}

#[test]
fn a_large_file_goes_on_with_the_segments_that_are_there() {
    let (_dir, source, dest) = dirs();
    let segment = 64 << 20;
    write(&source.join("large"), 5 * segment + 12_345, 1);
    again::settle(&source);
    let log = dest.join(".sealfs-stage/part-1-of-1.log");
    let words = ["--any", "--workers", "1"];
    let mut child = stage("in", &source, &dest, &words).spawn().unwrap();
    // Head, the record that it was begun, two segments.
    while fs::metadata(&log).map_or(0, |meta| meta.len()) < 4 * 64 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None);
    assert!(!dest.join("large").exists());
    let (_, done) = events(&expect(0, &mut stage("in", &source, &dest, &["--any", "--json"])));
    assert!(done["bytes"].as_u64().unwrap() <= 3 * segment as u64 + 12_345, "{done}");
    assert_same(&source, &dest);
}

#[test]
fn after_kill_9_in_a_mount_another_part_of_the_work_makes_it_right() {
    let (_dir, source, _) = dirs();
    make_tree(&source);
    let mut cluster = Cluster::start(3);
    let mounts = [cluster.mount(), cluster.mount()];
    let mut kills = 0;
    for step in 0..5_usize {
        let dest = mounts[0].join(format!("tree{step}"));
        let mut child = stage("in", &source, &dest, &[]).spawn().unwrap();
        while !dest.join(".sealfs-stage").exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Entries of the root, and of this folder when it is there.
        let names = || {
            [dest.clone(), dest.join("a")]
                .map(|folder| fs::read_dir(folder).map_or(0, Iterator::count))
                .iter()
                .sum::<usize>()
        };
        while names() <= step * 20 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        kills += usize::from(child.wait().unwrap().code().is_none());
        // What one process has begun others go on with, on another mount.
        let dest = mounts[1].join(format!("tree{step}"));
        for part in ["1/2", "2/2"] {
            expect(0, &mut stage("in", &source, &dest, &["--part", part]));
        }
        expect(0, &mut stage("in", &source, &dest, &["--finish"]));
        assert_same(&source, &dest);
        let left = picture(&dest).into_keys().find(|path| {
            path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".sealfs-"))
        });
        assert_eq!(left, None);
    }
    assert!(kills > 0, "each run ended before it was killed");
}

#[test]
fn what_a_user_cannot_read_is_named_and_the_rest_is_there() {
    let (dir, source, dest) = dirs();
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(dir.path(), open).unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["one", "secret", "two"] {
        fs::write(source.join(name), name).unwrap();
    }
    fs::set_permissions(source.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(source.join("locked")).unwrap();
    fs::set_permissions(source.join("locked"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(source.join("read only")).unwrap();
    fs::write(source.join("read only/inside"), "x").unwrap();
    fs::set_permissions(source.join("read only"), fs::Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(source.join("one"), fs::Permissions::from_mode(0o4755)).unwrap();
    // The user's own binary: he may not look into the target directory.
    let own = dir.path().join("sealfs");
    fs::copy(binary(), &own).unwrap();
    fs::create_dir(dir.path().join("home")).unwrap();
    std::os::unix::fs::chown(dir.path().join("home"), Some(4321), Some(4321)).unwrap();
    let dest = dir.path().join("home").join(dest.file_name().unwrap());
    let run_as_user = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "4321", "--regid", "4321", "--clear-groups"]).arg(&own);
        command.args(["stage", "in", "--any"]).arg(&source).arg(&dest);
        command
    };
    let output = expect(1, &mut run_as_user());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("secret: cannot be read: Permission denied"), "{text}");
    assert!(text.contains("locked: cannot be read: Permission denied"), "{text}");
    assert_eq!(text.matches("owners are not kept").count(), 1, "{text}");
    let report = dest.join(".sealfs-stage/report-1-of-1.jsonl");
    assert_eq!(fs::read_to_string(report).unwrap().lines().count(), 2);
    assert_eq!(fs::read_to_string(dest.join("read only/inside")).unwrap(), "x");
    // A set-id bit for another owner than the source's would be his gift of rights.
    assert_eq!(fs::metadata(dest.join("one")).unwrap().mode() & 0o7777, 0o755);
    fs::set_permissions(source.join("secret"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(source.join("locked"), fs::Permissions::from_mode(0o755)).unwrap();
    expect(0, &mut run_as_user());
    assert_eq!(fs::read_to_string(dest.join("secret")).unwrap(), "secret");
    assert_eq!(fs::metadata(dest.join("read only")).unwrap().mode() & 0o7777, 0o555);
    assert!(!dest.join(".sealfs-stage").exists());
}

#[test]
fn a_source_that_is_written_all_the_time_is_reported_and_never_torn() {
    let (_dir, source, dest) = dirs();
    write(&source.join("quiet"), 1_000, 1);
    write(&source.join("busy"), 8 << 20, 2);
    let busy = fs::File::options().write(true).open(source.join("busy")).unwrap();
    let end = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u64;
            while !end.load(std::sync::atomic::Ordering::Relaxed) {
                number += 1;
                busy.write_all_at(&number.to_le_bytes(), number % 1_000_000 * 8).unwrap();
            }
        });
        // The writer may have had no turn while a short file was copied.
        let mut output = stage("in", &source, &dest, &["--any"]).output().unwrap();
        for _ in 0..100 {
            if !output.status.success() {
                break;
            }
            fs::remove_dir_all(&dest).unwrap();
            output = stage("in", &source, &dest, &["--any"]).output().unwrap();
        }
        end.store(true, std::sync::atomic::Ordering::Relaxed);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("busy: the source changed while it was copied"), "{text}");
    });
    assert!(dest.join("quiet").exists() && !dest.join("busy").exists());
    expect(0, &mut stage("in", &source, &dest, &["--any"]));
    assert_same(&source, &dest);
}

#[test]
fn no_link_leads_out_of_dest_and_no_nesting_is_taken() {
    let (dir, source, dest) = dirs();
    fs::create_dir_all(source.join("a/b")).unwrap();
    fs::write(source.join("a/b/file"), "x").unwrap();
    fs::write(source.join("plain"), "new").unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir_all(outside.join("b")).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    fs::create_dir(&dest).unwrap();
    symlink(&outside, dest.join("a")).unwrap();
    symlink(outside.join("kept"), dest.join("plain")).unwrap();
    let output = expect(1, &mut stage("in", &source, &dest, &["--any"]));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("taken by something that is no folder"), "{text}");
    assert_eq!(fs::read_dir(outside.join("b")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(dest.join("plain")).unwrap(), "new");
    assert!(fs::symlink_metadata(dest.join("plain")).unwrap().is_file());
    for (one, other) in [("", ""), ("", "a"), ("", "a/b/new"), ("a", "")] {
        let (from, to) = (source.join(one), source.join(other));
        let output = expect(1, &mut stage("in", &from, &to, &["--any"]));
        assert!(String::from_utf8_lossy(&output.stderr).contains("inside"), "{one} {other}");
    }
    assert!(!source.join("a/b/new").exists());
}

#[test]
fn what_the_deadline_cuts_off_is_counted_and_listed_and_goes_on_later() {
    let (_dir, source, dest) = dirs();
    for folder in 0..4 {
        fs::create_dir(source.join(format!("d{folder}"))).unwrap();
        for number in 0..100 {
            fs::write(source.join(format!("d{folder}/f{number}")), "12345").unwrap();
        }
    }
    let limit = ["--any", "--json", "--deadline", "0"];
    let (_, done) = events(&expect(3, &mut stage("in", &source, &dest, &limit)));
    let count = |name: &str| done[name].as_u64().unwrap();
    assert_eq!(done["status"], "deadline");
    assert_eq!(count("missing"), 400, "{done}");
    let report = fs::read_to_string(done["report"].as_str().unwrap()).unwrap();
    let missing = report.lines().filter(|line| line.contains("\"missing\"")).count();
    assert_eq!(missing as u64, count("missing"));
    expect(0, &mut stage("in", &source, &dest, &["--any"]));
    assert_same(&source, &dest);
}

#[test]
fn a_mount_inside_is_walked_unless_it_is_not_to_be() {
    let (_dir, source, dest) = dirs();
    let inner = source.join("inner");
    fs::create_dir(&inner).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&inner));
    fs::write(inner.join("file"), "x").unwrap();
    let with =
        Command::new(binary()).args(["stage", "in", "--any"]).arg(&source).arg(&dest).output();
    let other = dest.with_file_name("other");
    let without = stage("in", &source, &other, &["--any", "--one-file-system"]).output();
    run(Command::new("umount").arg(&inner));
    assert!(with.unwrap().status.success() && without.unwrap().status.success());
    assert!(dest.join("inner/file").exists());
    assert!(other.join("inner").is_dir() && !other.join("inner/file").exists());
}

#[test]
fn a_stage_folder_that_others_may_write_into_is_refused() {
    let (_dir, source, dest) = dirs();
    fs::write(source.join("file"), "mine").unwrap();
    let stage_dir = dest.join(".sealfs-stage");
    fs::create_dir_all(&stage_dir).unwrap();
    for mode in [0o777, 0o750] {
        fs::set_permissions(&stage_dir, fs::Permissions::from_mode(mode)).unwrap();
        let output = expect(1, &mut stage("in", &source, &dest, &["--any"]));
        assert!(String::from_utf8_lossy(&output.stderr).contains("not yours alone"), "{output:?}");
    }
    fs::set_permissions(&stage_dir, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&stage_dir, Some(4321), None).unwrap();
    let output = expect(1, &mut stage("in", &source, &dest, &["--any"]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("owner 4321"), "{output:?}");
    assert!(!dest.join("file").exists());
}

#[test]
fn what_a_failed_run_left_is_mended_by_the_next() {
    let (_dir, source, dest) = dirs();
    for name in ["linked", "taken"] {
        fs::write(source.join(name), "right").unwrap();
    }
    fs::hard_link(source.join("linked"), source.join("other name")).unwrap();
    fs::create_dir_all(dest.join("taken")).unwrap();
    let temporary = dest.join(format!(".sealfs-tmp-{}", "0".repeat(32)));
    expect(1, &mut stage("in", &source, &dest, &["--any"]));
    // No record tells of it: the run that began it was killed before it wrote one.
    fs::write(&temporary, "torn").unwrap();
    expect(1, &mut stage("in", &source, &dest, &["--any"]));
    assert!(temporary.exists(), "a run that fails takes away what another could go on with");
    fs::write(dest.join("linked"), "wrong").unwrap();
    fs::remove_dir(dest.join("taken")).unwrap();
    expect(0, &mut stage("in", &source, &dest, &["--any"]));
    assert_same(&source, &dest);
}

#[test]
fn finish_sees_a_source_that_changed_within_a_second() {
    let (_dir, source, dest) = dirs();
    fs::write(source.join("file"), "old").unwrap();
    set_times(&source.join("file"), 1_700_000_000, 1);
    expect(0, &mut stage("in", &source, &dest, &["--any", "--part", "1/1"]));
    fs::write(source.join("file"), "new").unwrap();
    set_times(&source.join("file"), 1_700_000_000, 2);
    expect(1, &mut stage("in", &source, &dest, &["--any", "--finish"]));
    expect(0, &mut stage("in", &source, &dest, &["--any", "--part", "1/1"]));
    expect(0, &mut stage("in", &source, &dest, &["--any", "--finish"]));
    assert_same(&source, &dest);
}

#[test]
fn a_signal_is_a_deadline() {
    let (_dir, source, dest) = dirs();
    for number in 0..2_000 {
        fs::write(source.join(format!("f{number}")), "12345").unwrap();
    }
    let mut command = stage("in", &source, &dest, &["--any", "--json", "--workers", "1"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !dest.join(".sealfs-stage/part-1-of-1.log").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let (_, done) = events(&output);
    let count = |name: &str| done[name].as_u64().unwrap();
    assert_eq!(done["status"], "deadline");
    assert_eq!(count("entries") + count("missing"), 2_000, "{done}");
    let report = fs::read_to_string(done["report"].as_str().unwrap()).unwrap();
    assert_eq!(report.lines().count() as u64, count("missing") + count("unread"));
    expect(0, &mut stage("in", &source, &dest, &["--any"]));
    assert_same(&source, &dest);
}

#[test]
fn what_a_full_dest_cannot_hold_is_all_named() {
    let (_dir, source, dest) = dirs();
    for number in 0..300 {
        write(&source.join(format!("{}{number}", "f".repeat(200))), 16_384, number);
    }
    fs::create_dir(&dest).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&dest));
    let output = stage("in", &source, &dest, &["--any", "--json"]).output();
    let report = fs::read_to_string(dest.join(".sealfs-stage/report-1-of-1.jsonl"));
    run(Command::new("umount").arg(&dest));
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let (_, done) = events(&output);
    let text = report.unwrap_or_default() + &String::from_utf8(output.stderr).unwrap();
    let is_named = |number: &u64| text.contains(&format!("f{number}\""));
    let named = (0..300).filter(is_named).count() as u64;
    assert!(named > 200, "{named} of {done}");
    assert_eq!(named + done["entries"].as_u64().unwrap(), 300, "{done}");
}

#[test]
fn a_users_dest_gets_its_mode_back() {
    let (dir, source, _) = dirs();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(source.join("file"), "x").unwrap();
    let own = dir.path().join("sealfs");
    fs::copy(binary(), &own).unwrap();
    let dest = dir.path().join("home");
    fs::create_dir(&dest).unwrap();
    std::os::unix::fs::chown(&dest, Some(4321), Some(4321)).unwrap();
    fs::set_permissions(&dest, fs::Permissions::from_mode(0o555)).unwrap();
    let stage_as_user = |more: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "4321", "--regid", "4321", "--clear-groups"]).arg(&own);
        command.args(["stage", "in", "--any"]).arg(&source).arg(&dest).args(more);
        command
    };
    let mode = || fs::metadata(&dest).unwrap().mode() & 0o7777;
    // Two parts: the second one finds what the first one made of it.
    for more in [&["--part", "1/2"][..], &["--part", "2/2"], &["--finish"]] {
        expect(0, &mut stage_as_user(more));
    }
    assert_eq!(mode(), 0o555);
    assert!(dest.join("file").exists() && !dest.join(".sealfs-stage").exists());
    for _ in 0..2 {
        expect(0, &mut stage_as_user(&["--keep-manifest"]));
        assert_eq!(mode(), 0o555);
    }
    let mut users_mind = Command::new("chmod");
    expect(0, users_mind.arg("0750").arg(&dest));
    expect(0, &mut stage_as_user(&[]));
    assert_eq!(mode(), 0o750);
}
