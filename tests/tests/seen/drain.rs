//! Nodes that are asked to end: SIGTERM.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use sealfs_tests::cluster::{Cluster, binary};

use crate::scrape::{address_in, await_some, page, value};

/// A program that works in a directory of its own until it is stopped.
struct Worker {
    program: Child,
    rounds: Arc<AtomicUsize>,
}

impl Worker {
    fn start(dir: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rounds"));
        command.arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = command.spawn().unwrap();
        let rounds = Arc::new(AtomicUsize::new(0));
        let (count, said) = (Arc::clone(&rounds), BufReader::new(program.stdout.take().unwrap()));
        thread::spawn(move || {
            for _ in said.lines() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { program, rounds }
    }

    fn rounds(&self) -> usize {
        self.rounds.load(Ordering::Relaxed)
    }

    fn has_ended(&mut self) -> bool {
        self.program.try_wait().unwrap().is_some()
    }

    /// Whether no operation has failed.
    fn end(mut self) -> bool {
        drop(self.program.stdin.take());
        self.program.wait().unwrap().success()
    }
}

fn was_clean(cluster: &Cluster, at: usize) -> bool {
    let page = page(&address_in(cluster.ready_line(at)));
    value(&page, "sealfs_node_last_run_clean") == Some(1.0)
}

#[test]
fn restarting_nodes_by_sigterm_under_load_fails_no_operation_and_is_clean() {
    let mut cluster = Cluster::start_with(3, &["--size", "1G", "--metrics", "127.0.0.1:0"]);
    let mount = cluster.mount();
    let mut workers: Vec<Worker> =
        (0..3).map(|number| Worker::start(&mount.join(format!("w{number}")))).collect();
    for at in [0, 1, 2, 0, 1, 2] {
        let before: Vec<usize> = workers.iter().map(Worker::rounds).collect();
        assert!(cluster.stop_node(at), "node {} has not ended in order", at + 1);
        cluster.start_node(at);
        assert!(was_clean(&cluster, at), "node {} was not stopped in order", at + 1);
        await_some("all have gone on", || {
            let mut each = workers.iter_mut().zip(&before);
            each.all(|(worker, before)| worker.has_ended() || worker.rounds() > before + 1)
                .then_some(())
        });
    }
    for worker in workers {
        assert!(worker.end(), "an operation has failed");
    }
    cluster.kill_node(0);
    cluster.start_node(0);
    assert!(!was_clean(&cluster, 0), "a kill is not an orderly end");
}

#[test]
fn a_second_signal_ends_a_drain_at_once_and_loses_nothing() {
    let mut cluster = Cluster::start_with(2, &["--size", "512M", "--metrics", "127.0.0.1:0"]);
    let mount = cluster.mount();
    fs::write(mount.join("kept"), "acknowledged").unwrap();
    // The root's node coordinates what is made in the root, and waits for the other one.
    let creates = |cluster: &Cluster, at: usize| {
        let page = page(&address_in(cluster.ready_line(at)));
        value(&page, "sealfs_node_requests_total{kind=\"create\"}").unwrap()
    };
    let root = usize::from(creates(&cluster, 0) == 0.0);
    // A mount hears every node before it has it take part in a change.
    rustix::fs::statfs(&mount).unwrap();
    cluster.kill_node(1 - root);
    for number in 0..16 {
        let dir = mount.join(format!("d{number}"));
        // They end with the mount.
        thread::spawn(move || fs::create_dir(dir));
    }
    let address = address_in(cluster.ready_line(root));
    await_some("changes wait for the dead node", || {
        let waits = format!("sealfs_node_peer_calls_in_flight{{peer=\"{}\"}}", 2 - root);
        value(&page(&address), &waits).filter(|count| *count > 0.0)
    });
    cluster.signal_node(root, Signal::TERM);
    await_some("the node drains", || {
        cluster.node_log(root).contains("asked to end:").then_some(())
    });
    cluster.signal_node(root, Signal::TERM);
    let status = cluster.await_node(root);
    assert_eq!(status.code(), Some(128 + 15), "{status:?} {:?}", status.signal());
    assert!(cluster.node_log(root).contains("ending at once"));
    cluster.start_node(root);
    assert!(!was_clean(&cluster, root));
    cluster.start_node(1 - root);
    assert_eq!(fs::read_to_string(mount.join("kept")).unwrap(), "acknowledged");
}

#[test]
fn a_mount_that_is_asked_to_end_unmounts_and_keeps_what_was_written() {
    let mut cluster = Cluster::start_with(1, &["--size", "512M"]);
    let other = cluster.mount();
    let dir = cluster.dir().join("ends");
    fs::create_dir(&dir).unwrap();
    let mut daemon = Command::new(binary())
        .args(["mount", "--foreground", "--transport", "tcp", "--metrics", "127.0.0.1:0", "--key"])
        .arg(cluster.key())
        .arg(cluster.nodes_file())
        .arg(&dir)
        .spawn()
        .unwrap();
    await_some("it is mounted", || is_mounted(&dir).then_some(()));
    let mut file = File::create(dir.join("open")).unwrap();
    file.write_all(b"before").unwrap();
    kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
    await_some("it is unmounted", || (!is_mounted(&dir)).then_some(()));
    // Lazily: what is open stays usable until it is closed.
    file.write_all(b" and after").unwrap();
    drop(file);
    assert!(daemon.wait().unwrap().success());
    assert_eq!(fs::read_to_string(other.join("open")).unwrap(), "before and after");
}

fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/mounts").unwrap();
    table.lines().any(|line| line.split(' ').nth(1) == dir.to_str())
}
