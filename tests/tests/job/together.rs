//! What the nodes of a job tell one another: one that fails, dies or is not reached is named by all, at once.
//!
//! A deadline that no test would outlast says "at once" without a clock.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use crate::nodes::{Node, Nodes, USER, said};

/// Longer than a test may take.
const NEVER: &str = "deadline = 3000\n";

/// `sealfs job up` that goes on by itself.
struct Up {
    child: Child,
    /// What it says.
    words: tempfile::NamedTempFile,
}

impl Up {
    /// Of job 5 on this node.
    fn start(node: &Node, list: &str) -> Self {
        let uid = USER.to_string();
        let words = ["up", "--id", "5", "--hosts", list, "--uid", &uid, "--gid", &uid];
        let mut command = node.job_command(&words);
        let words = tempfile::NamedTempFile::new().expect("a temporary file");
        command.stdout(Stdio::null()).stderr(words.reopen().expect("it is there"));
        Self { child: command.spawn().expect("nsenter is there"), words }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.words.path()).expect("it is text")
    }

    /// Waits until it has said that.
    fn await_word(&self, word: &str) {
        while !self.said().contains(word) {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it has said when it has failed.
    fn end(mut self) -> String {
        let status = self.child.wait().expect("it ends");
        assert_ne!(status.code(), Some(0), "{}", self.said());
        self.said()
    }
}

/// Starts `up` on the last node, and the others when it waits for them, up to when their servers are ready. The last one waits
/// before it starts its server until [`let_go`], for its log is a pipe that nobody reads.
fn start_but_hold_last(nodes: &Nodes) -> Vec<Up> {
    let (last, others) = nodes.all.split_last().unwrap();
    let held = Up::start(last, &nodes.list);
    await_line(last, "test -e /run/sealfs/jobs/5/key -a -e /mnt/sealfs/5/sealfs-job");
    last.shell(0, "mkfifo /run/sealfs/jobs/5/server.log").unwrap();
    let mut ups: Vec<Up> = others.iter().map(|node| Up::start(node, &nodes.list)).collect();
    ups.iter().for_each(|up| up.await_word("the server is ready"));
    ups.push(held);
    ups
}

/// The reader of the log; it ends with all who write to it.
fn let_go(node: &Node) -> Child {
    let mut command = node.command("/bin/cat");
    command.arg("/run/sealfs/jobs/5/server.log").stdout(Stdio::null());
    command.spawn().expect("nsenter is there")
}

/// Waits until a line of shell succeeds.
fn await_line(node: &Node, line: &str) {
    while node.shell(0, line).is_err() {
        thread::sleep(Duration::from_millis(20));
    }
}

fn signal_server(node: &Node, signal: &str) {
    let all = node.processes();
    let server = all.iter().find(|one| one.1.contains(" serve ")).expect("it runs");
    node.shell(0, &format!("kill -{signal} {}", server.0)).unwrap();
}

#[test]
fn a_server_that_dies_after_it_was_ready_is_named_by_all_at_once() {
    let nodes = Nodes::new(3, NEVER);
    let mut ups = start_but_hold_last(&nodes);
    signal_server(&nodes.all[1], "KILL");
    let held = ups.pop().unwrap();
    for up in ups {
        let said = up.end();
        assert!(said.contains("n2: its server "), "{said}");
    }
    let mut reader = let_go(&nodes.all[2]);
    assert!(held.end().contains("n2: its server "));
    reader.wait().unwrap();
    nodes.assert_clean();
}

#[test]
fn a_server_that_does_not_answer_is_named_within_the_deadline() {
    let nodes = Nodes::new(3, "deadline = 40\n");
    let ups = start_but_hold_last(&nodes);
    signal_server(&nodes.all[1], "STOP");
    let mut reader = let_go(&nodes.all[2]);
    for up in ups {
        let said = up.end();
        assert!(said.contains("it does not reach the server of n2 at n2:"), "{said}");
        assert!(!said.contains("the server of n1") && !said.contains("the server of n3"), "{said}");
    }
    reader.wait().unwrap();
    nodes.assert_clean();
}

#[test]
fn a_server_that_one_node_does_not_reach_is_named_before_anybody_mounts() {
    let nodes = Nodes::apart(3, "deadline = 40\n");
    let rule = "ip rule add to 10.77.0.3 ipproto tcp dport 22000-22999 prohibit";
    nodes.all[1].shell(0, rule).unwrap();
    for output in nodes.up("5", &[]) {
        let said = said(&output);
        assert!(!output.status.success(), "{said}");
        assert!(said.contains("n2: it does not reach the server of n3 at n3:22005"), "{said}");
        assert!(!said.contains("n1: ") && !said.contains("n3: "), "{said}");
    }
    nodes.assert_clean();
    nodes.all[1].shell(0, &rule.replace("add", "del")).unwrap();
    nodes.up_well("5", &[]);
    nodes.down("5");
    nodes.assert_clean();
}

#[test]
fn a_node_that_loses_power_is_missed_long_before_the_deadline() {
    let nodes = Nodes::apart(3, NEVER);
    let mut ups = start_but_hold_last(&nodes);
    nodes.all[1].shell(0, "ip link set eth0 down").unwrap();
    let (held, cut) = (ups.pop().unwrap(), ups.pop().unwrap());
    let said = ups.pop().unwrap().end();
    assert!(said.contains("n2 is lost: the connection broke"), "{said}");
    let said = cut.end();
    assert!(said.contains("n1, the first node of the job, is lost"), "{said}");
    let mut reader = let_go(&nodes.all[2]);
    assert!(held.end().contains("n2 is lost"));
    reader.wait().unwrap();
    nodes.assert_clean();
}

#[test]
fn a_node_that_fails_before_its_server_starts_tells_the_others_at_once() {
    for broken in [0, 1] {
        let nodes = Nodes::new(2, NEVER);
        let node = &nodes.all[broken];
        node.shell(USER, "mkdir /tmp/mine").unwrap();
        node.shell(0, "echo \"data = '/tmp/mine'\" >> /run/site/job.toml").unwrap();
        for output in nodes.up("5", &[]) {
            let said = said(&output);
            assert!(!output.status.success(), "{said}");
            let parts = [&format!("n{}: ", broken + 1), "/tmp/mine is not safe to work in"];
            parts.iter().for_each(|part| assert!(said.contains(part), "{said}"));
            assert!(!said.contains("not all undone"), "{said}");
        }
        node.shell(0, "rmdir /tmp/mine").unwrap();
        nodes.assert_clean();
    }
}

#[test]
fn nodes_with_other_settings_are_refused_with_what_differs() {
    let nodes = Nodes::new(3, NEVER);
    nodes.all[0].shell(0, "echo \"transport = 'tcp'\" >> /run/site/job.toml").unwrap();
    for output in nodes.up("5", &[]) {
        let said = said(&output);
        assert!(!output.status.success(), "{said}");
        let named = "`transport` differs: on n1 it is \"tcp\", elsewhere not set";
        assert!(said.contains(named), "{said}");
    }
    let output = nodes.all[0].job(&["up", "--id", "5", "--hosts", "n1"]);
    assert!(said(&output).contains("--uid UID --gid GID"), "{}", said(&output));
    nodes.assert_clean();
}

#[test]
fn strangers_at_the_first_nodes_ports_keep_no_job_from_starting() {
    let nodes = Nodes::new(2, "deadline = 60\n");
    let at = |port: u16| (format!("{}.1", nodes.net), port);
    // Any user can do both: the ports follow from the job's id.
    let silent: Vec<_> =
        (21_005..21_013).map(|port| TcpListener::bind(at(port)).unwrap()).collect();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (net, mut idle) = (at(21_013), Vec::new());
    let flood = thread::spawn(move || {
        while stopped.recv_timeout(Duration::from_millis(2))
            == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            idle.extend(TcpStream::connect(net.clone()));
            if idle.len() > 400 {
                idle.remove(0);
            }
        }
    });
    nodes.up_well("5", &[]);
    drop(stop);
    flood.join().unwrap();
    drop(silent);
    nodes.down("5");
    nodes.assert_clean();
}
