//! Metrics as Prometheus sees them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sealfs_tests::cluster::Cluster;

use crate::scrape::{address_in, await_some, free_address, get, page};

/// Debian's prometheus, until it is dropped.
struct Prometheus {
    child: Child,
    address: String,
}

impl Prometheus {
    fn start(dir: &Path, targets: &[String]) -> Self {
        let address = free_address();
        let targets =
            targets.iter().map(|target| format!("'{target}'")).collect::<Vec<_>>().join(", ");
        let config = format!(
            "global:\n  scrape_interval: 500ms\n  scrape_timeout: 500ms\nscrape_configs:\n  - job_name: sealfs\n    \
             static_configs:\n      - targets: [{targets}]\n"
        );
        let file = dir.join("prometheus.yml");
        fs::write(&file, config).expect("its configuration is written");
        let log = fs::File::create(dir.join("prometheus.log")).expect("its log is made");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus is installed");
        let this = Self { child, address };
        await_some("prometheus is ready", || {
            get(&this.address, "/-/ready").ok().filter(|(status, _)| *status == 200)
        });
        this
    }

    /// The values of an expression, by instance.
    fn query(&self, expression: &str) -> Vec<f64> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/api/v1/query?query={encoded}");
        let (status, body) = get(&self.address, &path).expect("prometheus answers");
        assert_eq!(status, 200, "{expression}: {body}");
        let answer: serde_json::Value = serde_json::from_str(&body).expect("it answers JSON");
        let results = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let value = |result: &serde_json::Value| result["value"][1].as_str()?.parse().ok();
        results.iter().filter_map(value).collect()
    }

    /// Waits until the expression's only value is this one.
    fn await_value(&self, expression: &str, value: f64) {
        let mut last = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        while last != [value] {
            assert!(Instant::now() < deadline, "{expression} is {last:?}, not {value}");
            std::thread::sleep(Duration::from_millis(100));
            last = self.query(expression);
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Names and kinds of all families of a page.
fn families(page: &str) -> BTreeSet<(String, String)> {
    let declared = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let pair = |line: &str| line.split_once(' ').map(|(name, kind)| (name.into(), kind.into()));
    declared.filter_map(pair).collect()
}

fn promtool_accepts(page: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed");
    let mut stdin = promtool.stdin.take().expect("it is a pipe");
    stdin.write_all(page.as_bytes()).expect("it reads");
    drop(stdin);
    let output = promtool.wait_with_output().expect("it is ours");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn what_was_done_is_what_prometheus_shows() {
    const FILES: usize = 25;
    let mut cluster = Cluster::start_with(3, &["--size", "512M", "--metrics", "127.0.0.1:0"]);
    let mount = cluster.mount_with(&["--metrics", "127.0.0.1:0"]);
    let mut targets: Vec<String> = (0..3).map(|at| address_in(cluster.ready_line(at))).collect();
    targets.push(address_in(&cluster.mount_log(0)));
    let prometheus = Prometheus::start(cluster.dir(), &targets);
    prometheus.await_value("sum(up)", 4.0);

    for number in 0..FILES {
        fs::write(mount.join(format!("f{number}")), [7; 1_000]).unwrap();
    }
    for _ in 0..3 {
        fs::metadata(mount.join("absent")).unwrap_err();
    }
    fs::create_dir(mount.join("full")).unwrap();
    fs::create_dir(mount.join("full/of")).unwrap();
    for _ in 0..2 {
        fs::remove_dir(mount.join("full")).unwrap_err();
    }
    // Asks every node; a mount connects when it has something to ask.
    rustix::fs::statfs(&mount).unwrap();
    let count = FILES as f64;
    for (expression, value) in [
        ("sealfs_mount_operations_total{kind=\"create\"}", count),
        ("sealfs_mount_operation_seconds_count{kind=\"create\"}", count),
        ("sealfs_mount_operations_total{kind=\"rmdir\"}", 2.0),
        ("sealfs_mount_operation_errors_total{kind=\"rmdir\",errno=\"ENOTEMPTY\"}", 2.0),
        // Of "absent" three times, and once of every name before it was made.
        ("sealfs_mount_operation_errors_total{kind=\"lookup\",errno=\"ENOENT\"}", count + 5.0),
        ("sealfs_mount_written_bytes_total", count * 1_000.0),
        ("sum(sealfs_node_requests_total{kind=\"create\"})", count),
        ("sum(sealfs_node_request_seconds_bucket{kind=\"create\",le=\"+Inf\"})", count),
        ("sum(sealfs_node_request_errors_total{kind=\"rmdir\",errno=\"ENOTEMPTY\"})", 2.0),
        ("sum(sealfs_node_written_bytes_total)", count * 1_000.0),
        ("sum(sealfs_node_inodes)", count + 3.0),
        ("sum(sealfs_node_sessions)", 3.0),
        ("sum(sealfs_mount_node_connected)", 3.0),
        ("sum(sealfs_node_info)", 3.0),
        ("sum(sealfs_mount_node_info)", 3.0),
        ("sum(sealfs_node_requests_in_flight)", 0.0),
        ("sum(sealfs_node_space_bytes == bool 536870912)", 3.0),
        ("sum(sealfs_build_info)", 4.0),
        ("sum(process_resident_memory_bytes > bool 1000000)", 4.0),
    ] {
        prometheus.await_value(expression, value);
    }
    assert!(prometheus.query("sum(sealfs_node_journal_append_seconds_count)")[0] > 0.0);
    cluster.kill_node(2);
    prometheus.await_value("sum(up)", 3.0);
}

#[test]
fn the_document_lists_what_is_exposed_and_promtool_has_no_complaint() {
    let mut cluster = Cluster::start_with(2, &["--size", "512M", "--metrics", "127.0.0.1:0"]);
    let mount = cluster.mount_with(&["-o", "metrics=127.0.0.1:0"]);
    fs::write(mount.join("file"), "x").unwrap();
    fs::metadata(mount.join("absent")).unwrap_err();
    let pages =
        [page(&address_in(cluster.ready_line(0))), page(&address_in(&cluster.mount_log(0)))];
    pages.iter().for_each(|page| promtool_accepts(page));
    let exposed: BTreeSet<_> = pages.iter().flat_map(|page| families(page)).collect();
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let document = fs::read_to_string(document).unwrap();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
    let row = |row: &str| {
        let (name, rest) = row.split_once('`')?;
        Some((name.to_owned(), rest.split('|').nth(1)?.trim().to_owned()))
    };
    let is_metric = |(name, _): &(String, String)| !name.contains([' ', '(']);
    let listed: BTreeSet<_> = rows.filter_map(row).filter(is_metric).collect();
    let missing: Vec<_> = exposed.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&exposed).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not listed: {missing:?}; not exposed: {gone:?}"
    );
}

#[test]
fn nothing_listens_unless_it_is_asked_to_and_a_taken_port_is_named() {
    let mut cluster = Cluster::start_with(1, &["--size", "512M"]);
    assert!(!cluster.ready_line(0).contains("metrics"));
    assert!(cluster.stop_node(0));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = cluster.serve_command(0).args(["--metrics", &address]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains(&address) && said.contains("--metrics"),
        "{said}"
    );
}
