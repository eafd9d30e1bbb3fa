//! What ends a program that waits: for a lock, for a dead node. Promise 1.10 of SEMANTICS.md.
//!
//! Everything here runs on mounts that wait for ever (`--timeout 0`), so that nothing but what is tested ends a wait.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sealfs_tests::cluster::{Cluster, binary, run};

/// A program and what it says.
struct Program {
    name: String,
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Program {
    fn start(name: String, command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let says = BufReader::new(child.stdout.take().unwrap());
        Self { name, child, says }
    }

    fn waiter(dir: &Path, operation: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waiter"));
        Self::start(operation.to_owned(), command.arg(dir).arg(operation))
    }

    /// What it says next.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn expect(&mut self, word: &str) {
        assert_eq!(self.line(), word, "{}", self.name);
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its end, which comes by itself; on a loaded machine it may come late.
    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end", self.name);
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}

/// Time in which everything that need not wait ends.
fn settle() {
    thread::sleep(Duration::from_millis(1_000));
}

#[test]
fn a_program_that_waits_for_a_dead_node_is_ended_by_kill_and_by_control_c() {
    let mut cluster = Cluster::start(1);
    let mount = cluster.mount_with(&["--timeout", "0"]);
    let operations = [
        "read",
        "read-direct",
        "write",
        "write-chunks",
        "create",
        "open",
        "stat",
        "list",
        "rename",
        "mkdir",
        "chmod",
        "truncate",
        "fsync",
        "lock",
    ];
    let mut programs = Vec::new();
    for signal in [Signal::KILL, Signal::INT, Signal::QUIT] {
        for operation in operations {
            if signal == Signal::QUIT && operation == "read" {
                // Whoever waits for a page is woken by what kills at once; a signal that dumps core does not.
                continue;
            }
            // Each in a directory of its own: the kernel has who changes one directory wait for each other.
            let dir = mount.join(format!("{operation}{}", signal.as_raw()));
            fs::create_dir(&dir).unwrap();
            programs.push((Program::waiter(&dir, operation), signal));
        }
    }
    programs.iter_mut().for_each(|(program, _)| program.expect("ready"));
    cluster.kill_node(0);
    settle();
    for (program, signal) in &mut programs {
        assert!(!program.has_ended(), "{} does not wait", program.name);
        program.signal(*signal);
    }
    for (program, _) in &mut programs {
        program.end();
    }
}

#[test]
fn what_changes_nothing_is_interrupted_by_a_signal_that_its_program_handles() {
    let mut cluster = Cluster::start(1);
    let mount = cluster.mount_with(&["--timeout", "0"]);
    let script = "trap 'exit 7' INT; trap : USR1; [ -e $0/none ] || echo ready; while :; do [ -e $0/none ]; done";
    let mut command = Command::new("sh");
    let mut program = Program::start("sh".into(), command.args(["-c", script]).arg(&mount));
    program.expect("ready");
    cluster.kill_node(0);
    settle();
    program.signal(Signal::USR1);
    settle();
    assert!(!program.has_ended(), "a signal by which nobody ends programs interrupts nothing");
    program.signal(Signal::INT);
    assert_eq!(program.end().code(), Some(7), "its own handler has ended it");
}

#[test]
fn a_forced_unmount_ends_every_wait_and_the_client() {
    let mut cluster = Cluster::start(1);
    let mount = cluster.mount_with(&["--timeout", "0"]);
    let dir = mount.join("dir");
    fs::create_dir(&dir).unwrap();
    let mut programs = ["read", "write", "create", "fsync"].map(|operation| {
        let dir = dir.join(operation);
        fs::create_dir(&dir).unwrap();
        Program::waiter(&dir, operation)
    });
    programs.iter_mut().for_each(|program| program.expect("ready"));
    cluster.kill_node(0);
    settle();
    run(Command::new(binary()).args(["umount", "--force"]).arg(&mount));
    for program in &mut programs {
        assert!(!program.end().success(), "{} got an error", program.name);
    }
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 0, "nothing is mounted any more");
}

#[test]
fn a_program_that_waits_for_a_lock_is_ended_by_any_signal() {
    let mut cluster = Cluster::start(1);
    let mount = cluster.mount();
    let lock = File::create(mount.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut command = Command::new("flock");
    let mut waiter =
        Program::start("flock".into(), command.arg("-x").arg(mount.join("lock")).arg("true"));
    settle();
    assert!(!waiter.has_ended(), "it waits");
    waiter.signal(Signal::INT);
    waiter.end();
}
