//! A node that is told its settings anew, and what the log looks like.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use sealfs_tests::cluster::{Cluster, binary};

use crate::scrape::{await_some, free_address, get};

/// A node with a settings file, until it is dropped.
struct Node {
    child: Child,
    settings: PathBuf,
    log: PathBuf,
}

impl Node {
    /// The only node of `cluster`, which does not run: with `words` before the verb and this file of settings.
    fn start(cluster: &Cluster, words: &[&str], settings: &str) -> Self {
        let dir = cluster.dir();
        let (file, log) = (dir.join("settings.toml"), dir.join("told.log"));
        fs::write(&file, settings).unwrap();
        let mut child = Command::new(binary())
            .env_remove("SEALFS_LOG")
            .args(words)
            .args(["serve", "--id", "1", "--transport", "tcp", "--listen", cluster.address(0)])
            .arg("--data")
            .arg(cluster.data(0))
            .arg("--nodes")
            .arg(cluster.nodes_file())
            .arg("--key")
            .arg(cluster.key())
            .arg("--config")
            .arg(&file)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("is ready"), "{line}");
        Self { child, settings: file, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Gives it these settings; what the log says of them.
    fn tell(&self, settings: &str) -> String {
        fs::write(&self.settings, settings).unwrap();
        let before = self.log().matches("SIGHUP").count();
        kill_process(Pid::from_child(&self.child), Signal::HUP).unwrap();
        await_some("the log tells of the settings", || {
            let log = self.log();
            let last = log.rfind("SIGHUP").filter(|_| log.matches("SIGHUP").count() > before);
            last.map(|at| log[at..].to_owned())
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn one_node() -> Cluster {
    let mut cluster = Cluster::start_with(1, &["--size", "512M"]);
    assert!(cluster.stop_node(0));
    cluster
}

fn answers(address: &str) -> bool {
    get(address, "/metrics").is_ok_and(|(status, _)| status == 200)
}

#[test]
fn a_running_node_takes_what_may_change_and_nothing_half() {
    let cluster = one_node();
    let (first, second, third) = (free_address(), free_address(), free_address());
    let node = Node::start(&cluster, &[], &format!("log = \"warn\"\nmetrics = \"{first}\"\n"));
    assert!(answers(&first));

    let said = node.tell(&format!("log = \"info\"\nmetrics = \"{second}\"\n"));
    assert!(said.contains("was read again: metrics, log"), "{said}");
    assert!(answers(&second) && !answers(&first));

    let said =
        node.tell(&format!("durability = \"power\"\nlog = \"off\"\nmetrics = \"{third}\"\n"));
    assert!(said.contains("refused") && said.contains("durability ("), "{said}");
    assert!(answers(&second) && !answers(&third));

    let broken = [
        ("log = [\n".to_owned(), "settings.toml"),
        (format!("colour = 1\nmetrics = \"{third}\"\n"), "unknown field `colour`"),
        (format!("log = \"no=such=level\"\nmetrics = \"{third}\"\n"), "no=such=level"),
        (format!("log = \"off\"\nmetrics = \"{}\"\n", cluster.address(0)), cluster.address(0)),
    ];
    for (settings, cause) in broken {
        // The log still tells, so that the filter has stayed.
        let said = node.tell(&settings);
        assert!(said.contains("refused") && said.contains(cause), "{said}");
        assert!(answers(&second) && !answers(&third));
    }
    let said = node.tell("log = \"info\"\n");
    assert!(said.contains("was read again: metrics"), "{said}");
    assert!(!answers(&second), "metrics are off now");
}

#[test]
fn flags_win_over_a_file_that_changes() {
    let cluster = one_node();
    let node = Node::start(&cluster, &["--log", "info"], "");
    let said = node.tell("log = \"off\"\n");
    assert!(said.contains("says nothing new"), "{said}");
}

#[test]
fn a_log_of_json_is_json_line_by_line() {
    let cluster = one_node();
    let node = Node::start(&cluster, &["--log-format", "json"], "log = \"info\"\n");
    let _ = node.tell("log = \"debug\"\n");
    let log = node.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(value["timestamp"].is_string() && value["level"].is_string(), "{line}");
    }
}

#[test]
fn metrics_move_to_another_address_of_the_same_port() {
    let cluster = one_node();
    let first = free_address();
    let port = first.rsplit_once(':').unwrap().1;
    let node = Node::start(&cluster, &[], &format!("adopt = true\nmetrics = \"{first}\"\n"));
    assert!(answers(&first));
    let said = node.tell(&format!("metrics = \"0.0.0.0:{port}\"\n"));
    assert!(said.contains("was read again: metrics"), "{said}");
    assert!(answers(&format!("127.0.0.2:{port}")));
    // An address that this machine has not: the former one is taken again.
    let said = node.tell(&format!("metrics = \"192.0.2.1:{port}\"\n"));
    assert!(said.contains("refused") && said.contains("192.0.2.1"), "{said}");
    assert!(answers(&first));
}
