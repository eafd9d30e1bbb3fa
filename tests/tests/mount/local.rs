//! A cluster on this machine in one command, and mounts as mount(8) makes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sealfs_tests::cluster::{Cluster, InSbin, binary, run};

use super::{assert_says, refused};

/// A local cluster's directory and two mountpoints. What is left of it at the end is ended.
struct Local(tempfile::TempDir);

impl Local {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "sub"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `sealfs local VERB --dir DIR`: by its whole path to start, from a subdirectory for everything else.
    fn command(&self, verb: &str, words: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.current_dir(self.path("sub"));
        let dir = if verb == "up" { self.path("cluster") } else { "../cluster".into() };
        command.args(["local", verb, "--dir"]).arg(dir).args(words);
        command
    }

    fn run(&self, verb: &str, words: &[&str]) -> Output {
        run(&mut self.command(verb, words))
    }

    /// The processes that name the cluster's directory: its nodes, and the client of its mount.
    fn processes(&self) -> Vec<String> {
        let name = self.path("cluster").display().to_string();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
        lines.filter(|line| line.contains(&name)).collect()
    }

    fn nodes(&self) -> usize {
        self.processes().iter().filter(|line| line.contains("\0serve\0")).count()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.command("down", &["--force"]).output();
    }
}

/// The sources of what is mounted at `path`.
fn sources(path: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let lines = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.filter(|words| Path::new(words[1]) == path).map(|words| words[0].to_owned()).collect()
}

#[test]
fn a_local_cluster_comes_up_once_works_ends_and_comes_again_with_its_files() {
    let local = Local::new();
    let (a, b) = (local.path("a"), local.path("b"));
    local.run("up", &["--nodes", "2", "--size", "256M", a.to_str().unwrap()]);
    assert_eq!((local.nodes(), sources(&a).len()), (2, 1));
    let status = String::from_utf8(local.run("status", &[]).stdout).unwrap();
    assert_says(&status, &["2 nodes", "tcp"]);
    fs::write(a.join("file"), "kept").unwrap();
    let bench = run(Command::new(binary())
        .args(["bench", "--json", "--workers", "1", "--files", "4", "--mib", "1"])
        .arg(&a));
    let rows: Vec<serde_json::Value> = String::from_utf8(bench.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(rows.iter().any(|row| row["work"] == "read sequential"), "{rows:?}");
    assert!(rows.iter().all(|row| row["operations"].as_u64() > Some(0)), "{rows:?}");

    // Once more, by another path to the same place; elsewhere it is refused and changes nothing.
    let again = local.run("up", &["../b/../a"]);
    assert_says(&String::from_utf8(again.stdout).unwrap(), &["up already"]);
    let said = refused(&mut local.command("up", &[b.to_str().unwrap()]));
    assert_says(&said, &[a.to_str().unwrap(), "sealfs mount", "sealfs local down"]);
    assert_eq!((local.nodes(), sources(&a).len(), sources(&b).len()), (2, 1, 0));

    local.run("down", &[]);
    assert_eq!((local.nodes(), sources(&a).len()), (0, 0));
    local.run("up", &[b.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(b.join("file")).unwrap(), "kept");
    local.run("down", &["--wipe"]);
    assert_eq!((local.nodes(), sources(&b).len()), (0, 0));
    assert!(!local.path("cluster").exists());
}

#[test]
fn nothing_is_removed_under_a_node_that_no_pid_file_names() {
    let local = Local::new();
    local.run("up", &["--nodes", "1", "--size", "256M", "../a"]);
    fs::write(local.path("a/file"), "kept").unwrap();
    let pid_file = local.path("cluster/n1/pid");
    let pid = fs::read_to_string(&pid_file).unwrap();
    fs::write(&pid_file, std::process::id().to_string()).unwrap();
    let said = refused(&mut local.command("down", &["--wipe"]));
    assert_says(&said, &["node 1 still runs", &pid, "cluster/n1/data"]);
    assert!(pid_file.exists() && local.path("cluster/n1/data/superblock").exists());
    fs::write(&pid_file, pid).unwrap();
    local.run("up", &["../a"]);
    assert_eq!(fs::read_to_string(local.path("a/file")).unwrap(), "kept");
    local.run("down", &["--wipe"]);
    assert_eq!(local.processes(), Vec::<String>::new());
}

/// Whoever boots twice, or adds a line, has no failed unit.
#[test]
fn what_fstab_names_is_mounted_once() {
    let cluster = Cluster::start(2);
    let _name = InSbin::named("mount.sealfs");
    let mountpoint = cluster.dir().join("point");
    fs::create_dir(&mountpoint).unwrap();
    let fstab = cluster.dir().join("fstab");
    let list = format!("{},{}", cluster.address(0), cluster.address(1));
    let log = cluster.dir().join("point.log");
    for source in [&list, &cluster.nodes_file().display().to_string()] {
        let (key, log) = (cluster.key(), log.display());
        let point = mountpoint.display();
        let line =
            format!("{source} {point} sealfs transport=tcp,key={},log={log} 0 0\n", key.display());
        fs::write(&fstab, line).unwrap();
        for _ in 0..2 {
            run(Command::new("mount").args(["-a", "-T"]).arg(&fstab));
            assert_eq!(sources(&mountpoint), [source.as_str()]);
        }
        run(Command::new(binary()).arg("umount").arg(&mountpoint));
    }
}

#[test]
fn a_mount_is_remounted_read_only_and_back_without_losing_its_other_flags() {
    let mut cluster = Cluster::start(1);
    let _name = InSbin::named("mount.fuse.sealfs");
    let mount = cluster.mount_with(&["-o", "nodev,nosuid"]);
    let remount = |how| run(Command::new("mount").args(["-o", how]).arg(&mount));
    remount("remount,ro");
    let error = fs::write(mount.join("file"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    remount("remount,rw");
    fs::write(mount.join("file"), "x").unwrap();
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|line| line.contains(mount.to_str().unwrap())).unwrap();
    assert!(line.contains(" rw,nosuid,nodev,"), "{line}");
}
