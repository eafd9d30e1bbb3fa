//! What a run knows of the runs before it: what it may take for copied, and what it must find and remove.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sealfs_tests::cluster::{Loop, run};

use super::{assert_same, dirs, events, expect, set_times, stage, write};

/// Waits until staging takes the ctime of everything in a folder for final.
pub(crate) fn settle(folder: &Path) {
    let mut entries: Vec<_> = vec![folder.to_owned()];
    while let Some(path) = entries.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            entries.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let ctime = Duration::new(meta.ctime() as u64, meta.ctime_nsec() as u32);
        let settled = UNIX_EPOCH + ctime + Duration::from_secs(2);
        std::thread::sleep(settled.duration_since(SystemTime::now()).unwrap_or_default());
    }
}

/// Other bytes in a file, which keeps its inode, size and mtime.
fn overwrite(path: &Path, bytes: &[u8]) {
    let meta = fs::metadata(path).unwrap();
    assert_eq!(meta.len(), bytes.len() as u64);
    fs::write(path, bytes).unwrap();
    set_times(path, meta.mtime(), meta.mtime_nsec());
}

/// A run that keeps its manifest: how many entries it copied, and how many it knew.
fn keeping(source: &Path, dest: &Path) -> (u64, u64) {
    let words = ["--any", "--keep-manifest", "--json"];
    let (_, done) = events(&expect(0, &mut stage("in", source, dest, &words)));
    (done["entries"].as_u64().unwrap(), done["kept"].as_u64().unwrap())
}

#[test]
fn a_source_that_may_change_within_a_tick_is_not_remembered() {
    let (_dir, source, dest) = dirs();
    settle(&source);
    for number in 0..10 {
        write(&source.join(format!("file{number}")), 1_000, number);
    }
    assert_eq!(keeping(&source, &dest), (10, 0));
    settle(&source);
    assert_eq!(keeping(&source, &dest), (10, 0));
    assert_eq!(keeping(&source, &dest), (0, 10));
}

#[test]
fn finish_sees_a_source_that_changed_after_its_part_and_kept_its_times() {
    let (_dir, source, dest) = dirs();
    for name in ["file", "linked", "quiet"] {
        fs::write(source.join(name), "old").unwrap();
    }
    fs::hard_link(source.join("linked"), source.join("other name")).unwrap();
    for name in ["file", "linked"] {
        settle(&source);
        expect(0, &mut stage("in", &source, &dest, &["--any", "--part", "1/1"]));
        overwrite(&source.join(name), b"new");
        let output = expect(1, &mut stage("in", &source, &dest, &["--any", "--finish"]));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(&format!("{name}: changed after it was copied")), "{text}");
        assert!(!text.contains("quiet"), "{text}");
    }
    expect(0, &mut stage("in", &source, &dest, &["--any", "--part", "1/1"]));
    expect(0, &mut stage("in", &source, &dest, &["--any", "--finish"]));
    assert_same(&source, &dest);
}

#[test]
fn two_images_that_differ_in_their_data_alone_are_told_apart() {
    let (dir, source, dest) = dirs();
    let images = [dir.path().join("first"), dir.path().join("second")];
    fs::File::create(&images[0]).unwrap().set_len(16 << 20).unwrap();
    run(Command::new("mkfs.ext4").arg("-q").arg(&images[0]));
    let mount = |image: &Path| {
        let device = Loop::of(image, 16 << 20);
        run(Command::new("mount").arg(device.path()).arg(&source));
        device
    };
    let first = mount(&images[0]);
    fs::write(source.join("file"), [b'1'; 4096]).unwrap();
    fs::write(source.join("linked"), [b'1'; 4096]).unwrap();
    fs::write(source.join("taken"), "x").unwrap();
    fs::hard_link(source.join("linked"), source.join("other name")).unwrap();
    run(Command::new("umount").arg(&source));
    drop(first);
    let bytes = fs::read(&images[0]).unwrap();
    let other: Vec<u8> = bytes
        .as_chunks::<4096>()
        .0
        .iter()
        .flat_map(|block| if *block == [b'1'; 4096] { [b'2'; 4096] } else { *block })
        .collect();
    fs::write(&images[1], other).unwrap();
    run(Command::new("tune2fs").args(["-U", "random"]).arg(&images[1]));
    // Something is amiss with both, so that what the first run knows and has linked stays.
    fs::create_dir_all(dest.join("taken")).unwrap();
    for image in &images {
        let device = mount(image);
        settle(&source);
        let output = stage("in", &source, &dest, &["--any"]).output().unwrap();
        let data =
            |folder: &Path| ["file", "linked"].map(|name| fs::read(folder.join(name)).unwrap());
        let is_same = data(&source) == data(&dest);
        run(Command::new("umount").arg(&source));
        drop(device);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(is_same, "{image:?}: {output:?}");
    }
}

#[test]
fn what_was_written_into_a_linked_file_of_dest_is_found() {
    let (_dir, source, dest) = dirs();
    for name in ["linked", "taken"] {
        fs::write(source.join(name), "right").unwrap();
    }
    fs::hard_link(source.join("linked"), source.join("other name")).unwrap();
    fs::create_dir_all(dest.join("taken")).unwrap();
    expect(1, &mut stage("in", &source, &dest, &["--any"]));
    overwrite(&dest.join("linked"), b"wrong");
    expect(1, &mut stage("in", &source, &dest, &["--any"]));
    assert_eq!(fs::read_to_string(dest.join("other name")).unwrap(), "right");
    // Now all is as it was left: nothing is copied again.
    fs::remove_dir(dest.join("taken")).unwrap();
    let (_, done) = events(&expect(0, &mut stage("in", &source, &dest, &["--any", "--json"])));
    assert_eq!((&done["entries"], &done["kept"]), (&1.into(), &2.into()));
    assert_same(&source, &dest);
}

#[test]
fn temporary_files_where_source_has_no_folder_any_more_go() {
    let (_dir, source, dest) = dirs();
    fs::write(source.join("file"), "x").unwrap();
    fs::create_dir_all(dest.join("taken")).unwrap();
    fs::write(source.join("taken"), "x").unwrap();
    let temporary = format!(".sealfs-tmp-{}", "0".repeat(32));
    let others = dest.join("gone/with its own");
    for folder in [&dest.join("gone/deep"), &others] {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(&temporary), "torn").unwrap();
        fs::write(folder.join("kept"), "kept").unwrap();
    }
    // Another staging has this as its DEST.
    fs::create_dir(others.join(".sealfs-stage")).unwrap();
    expect(1, &mut stage("in", &source, &dest, &["--any"]));
    assert!(dest.join("gone/deep").join(&temporary).exists());
    fs::remove_dir(dest.join("taken")).unwrap();
    expect(0, &mut stage("in", &source, &dest, &["--any"]));
    assert!(!dest.join("gone/deep").join(&temporary).exists());
    assert!(others.join(&temporary).exists());
    assert!(dest.join("gone/deep/kept").exists() && others.join("kept").exists());
}

#[test]
fn names_that_nfs_keeps_for_open_files_fail_nothing() {
    let (_dir, source, dest) = dirs();
    fs::write(source.join("file"), "x").unwrap();
    let folder = dest.join(".sealfs-stage");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(folder.join(".nfs0000000000000001"), "open elsewhere").unwrap();
    let output = expect(0, &mut stage("in", &source, &dest, &["--any"]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("NFS still keeps open"), "{output:?}");
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [folder.join(".nfs0000000000000001")]);
    fs::remove_file(&left[0]).unwrap();
    expect(0, &mut stage("in", &source, &dest, &["--any"]));
    assert!(!folder.exists());
}

#[test]
fn an_old_report_does_not_outlive_a_clean_run() {
    let (dir, source, dest) = dirs();
    fs::write(source.join("taken"), "x").unwrap();
    fs::create_dir_all(dest.join("taken")).unwrap();
    let report = dir.path().join("report");
    let words = ["--any", "--report", report.to_str().unwrap()];
    expect(1, &mut stage("in", &source, &dest, &words));
    assert!(fs::read_to_string(&report).unwrap().contains("taken"));
    fs::remove_dir(dest.join("taken")).unwrap();
    expect(0, &mut stage("in", &source, &dest, &words));
    assert!(!report.exists());
    // What is no file is not removed.
    expect(0, &mut stage("in", &source, &dest, &["--any", "--report", "/dev/null"]));
    assert!(Path::new("/dev/null").exists());
}

/// Runs under strace(1) with these words; the run's output, and what strace has written.
fn traced(words: &[&str], source: &Path, dest: &Path) -> (std::process::Output, String) {
    let trace = source.with_file_name("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(&trace).args(words).arg(sealfs_tests::cluster::binary());
    command.args(["stage", "in", "--any", "--workers", "1"]).arg(source).arg(dest);
    let output = command.output().unwrap();
    (output, fs::read_to_string(trace).unwrap())
}

#[test]
fn what_was_listed_before_a_listing_broke_off_is_copied() {
    let (_dir, source, dest) = dirs();
    let folder = source.join("folder");
    fs::create_dir(&folder).unwrap();
    for number in 0..20 {
        fs::write(folder.join(format!("file{number}")), "x").unwrap();
    }
    // The first answer has all of them, the second one would be that there are no more.
    let path = folder.to_str().unwrap();
    let words = ["-P", path, "-e", "trace=getdents64", "-e", "inject=getdents64:error=EIO:when=2"];
    let (output, trace) = traced(&words, &source, &dest);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(trace.contains("INJECTED"), "{trace}");
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("folder: cannot be listed to its end"), "{text}");
    assert_eq!(fs::read_dir(dest.join("folder")).unwrap().count(), 20);
}

#[test]
fn linked_files_share_syncs_like_others() {
    let (_dir, source, dest) = dirs();
    for number in 0..100 {
        fs::write(source.join(format!("file{number}")), "x").unwrap();
        let name = |end: &str| source.join(format!("file{number}{end}"));
        fs::hard_link(name(""), name(" too")).unwrap();
    }
    let (output, trace) = traced(&["-e", "trace=syncfs,fsync"], &source, &dest);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let syncs = trace.lines().count();
    assert!(syncs < 50, "{syncs} syncs for 100 files of two names each");
    assert_same(&source, &dest);
}

/// An error of writing back is told to each descriptor once: through one that segments share, only one of them would hear.
#[test]
fn each_segment_of_a_large_file_is_synced_by_a_descriptor_of_its_own() {
    const SEGMENT: u64 = 64 << 20;
    let (_dir, source, dest) = dirs();
    let large = fs::File::create(source.join("large")).unwrap();
    // Enough data to be large, most of it in the first two segments; the others have a little.
    large.write_all_at(&vec![7; 70 << 20], 0).unwrap();
    for segment in 2..6 {
        large.write_all_at(&[8; 1 << 20], segment * SEGMENT).unwrap();
    }
    let words = ["-e", "trace=open,pwrite64,fdatasync"];
    let (output, trace) = traced(&words, &source, &dest);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (mut written, mut synced) = (BTreeMap::<u64, BTreeSet<u64>>::new(), BTreeSet::new());
    for line in trace.lines() {
        let Some((call, result)) = line.rsplit_once(" = ") else { continue };
        let call = call.split_once(' ').map_or("", |(_, call)| call).trim();
        let Some((name, words)) = call.trim_end_matches(')').split_once('(') else { continue };
        let number = |word: Option<&str>| word.and_then(|word| word.trim().parse::<u64>().ok());
        let file = number(words.split(',').next());
        match (name, file) {
            ("open", _) => drop(number(Some(result)).map(|opened| written.remove(&opened))),
            ("pwrite64", Some(file)) if result.trim().len() >= "1048576".len() => {
                let at = number(words.rsplit(',').next()).unwrap();
                written.entry(file).or_default().insert(at / SEGMENT);
            }
            ("fdatasync", Some(file)) => {
                let segments = written.remove(&file).unwrap_or_default();
                assert!(segments.len() <= 1, "{segments:?} by one descriptor\n{trace}");
                synced.extend(segments);
                written.insert(file, BTreeSet::from([u64::MAX]));
            }
            _ => {}
        }
    }
    assert_eq!(synced, BTreeSet::from([0, 1, 2, 3, 4, 5]));
    assert_same(&source, &dest);
}
