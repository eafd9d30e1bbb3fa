//! Programs that people run, on a real mount of three nodes.

use std::fs;
use std::path::Path;
use std::process::Command;

use sealfs_tests::cluster::{Cluster, run};

fn sh(dir: &Path, script: &str) -> String {
    let output =
        run(Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(dir));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// This repository's own sources: a tree of some hundred files that is there wherever the test runs.
fn sources() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::canonicalize(root).expect("the workspace is there").display().to_string()
}

#[test]
fn git_clones_checks_and_commits() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    let script = format!(
        "git init -q origin && cp -r {0}/proto {0}/meta {0}/transport origin/ && cd origin && git add -A \
         && git -c user.name=t -c user.email=t@example.org commit -qm one && cd .. \
         && git clone -q --no-hardlinks origin clone && cd clone && git fsck --full --strict \
         && diff -r --exclude=.git . ../origin && git status --porcelain | (! grep .) \
         && git gc -q && git fsck --full",
        sources()
    );
    sh(&mount, &script);
}

#[test]
fn cargo_builds_a_crate() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    let script = "cargo init -q --name hello crate && cd crate && CARGO_TARGET_DIR=$PWD/target cargo build -q --offline \
                  && ./target/debug/hello | grep -q Hello && CARGO_TARGET_DIR=$PWD/target cargo test -q --offline";
    sh(&mount, script);
}

#[test]
fn sqlite_keeps_its_promises_in_rollback_and_wal_mode() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    for mode in ["delete", "wal"] {
        let script = format!(
            "sqlite3 {mode}.db \"pragma journal_mode={mode}; create table t(a integer primary key, b text);\" \
             && for i in $(seq 1 40); do sqlite3 {mode}.db \".timeout 20000\" \"begin; insert into t(b) values (hex(randomblob(500))); \
             insert into t(b) values ('x'); commit;\"; done \
             && sqlite3 {mode}.db 'pragma integrity_check; select count(*) from t;'"
        );
        let output = sh(&mount, &script);
        assert!(output.ends_with("ok\n80\n"), "{mode}: {output}");
    }
}

#[test]
fn sqlite_writers_of_two_mounts_exclude_each_other() {
    let mut cluster = Cluster::start(3);
    let (a, b) = (cluster.mount(), cluster.mount());
    sh(&a, "sqlite3 t.db 'create table t(a integer primary key, b text);'");
    std::thread::scope(|scope| {
        for (mount, who) in [(&a, "a"), (&b, "b")] {
            scope.spawn(move || {
                let script = format!(
                    "for i in $(seq 1 40); do sqlite3 t.db '.timeout 60000' \"insert into t(b) values ('{who}');\"; done"
                );
                sh(mount, &script);
            });
        }
    });
    let output =
        sh(&b, "sqlite3 t.db 'pragma integrity_check; select b, count(*) from t group by b;'");
    assert_eq!(output, "ok\na|40\nb|40\n");
}

#[test]
fn tar_and_rsync_copy_a_tree_exactly() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    let other = tempfile::tempdir().expect("a temporary directory");
    let tree = other.path().join("tree");
    fs::create_dir(&tree).expect("a directory");
    let make = format!(
        "cp -r {0}/proto {0}/meta {0}/client . && ln -s proto/src link && ln proto/Cargo.toml hard && mkfifo pipe \
         && truncate -s 3M sparse && head -c 5000000 /dev/urandom > big && touch -d '2001-02-03 04:05:06.789' big \
         && setfattr -n user.colour -v blue big && chmod 4711 hard && chown 12:34 sparse",
        sources()
    );
    sh(&tree, &make);
    let script = format!(
        "tar -C {0} --xattrs -cf - tree | tar --xattrs -xpf - && diff -r --no-dereference --exclude=pipe {0}/tree tree && test -p tree/pipe \
         && rsync -aHX {0}/tree/ synced/ && rsync -aHXnic --delete {0}/tree/ synced/ | (! grep .) \
         && test $(stat -c %h synced/hard) = 2 && test $(getfattr --only-values -n user.colour synced/big) = blue \
         && rm -r tree synced && test -z \"$(ls)\"",
        other.path().display()
    );
    sh(&mount, &script);
}

#[test]
fn fio_verifies_what_it_wrote() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    let jobs = [
        "--rw=randwrite --bs=4k --size=16m --ioengine=psync",
        "--rw=randwrite --bs=4k --size=16m --ioengine=io_uring --iodepth=16 --direct=1",
        "--rw=write --bs=1m --size=64m --ioengine=io_uring --iodepth=4 --direct=1",
        "--rw=randwrite --bsrange=512-128k --bs_unaligned --size=16m --ioengine=psync",
    ];
    for (at, job) in jobs.iter().enumerate() {
        sh(
            &mount,
            &format!(
                "fio --name=j{at} {job} --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal"
            ),
        );
    }
}
