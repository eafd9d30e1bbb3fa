//! The public conformance suites on a real mount of three nodes: pjdfstest (as root) and fsx.

use std::fs;
use std::path::Path;
use std::process::Command;

use sealfs_tests::cluster::{Cluster, run};

/// Everything but what Linux has not: file flags, NFSv4 ACLs, st_birthtime in struct stat.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

#[test]
fn pjdfstest_has_no_failures() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    let config = cluster.dir().join("pjdfstest.toml");
    fs::write(&config, PJDFSTEST).expect("the configuration can be written");
    let other = tempfile::tempdir().expect("a temporary directory");
    let output = run(Command::new("pjdfstest")
        .args(["-c".as_ref(), config.as_os_str(), "-p".as_ref(), mount.as_os_str()])
        .args(["-s".as_ref(), other.path().as_os_str()]));
    let text = String::from_utf8_lossy(&output.stdout);
    let summary =
        text.lines().find(|line| line.starts_with("Summary:")).expect("it ends with a summary");
    assert!(summary.contains(" 0 failed"), "{summary}");
    let passed: u32 = summary
        .split(", ")
        .find_map(|part| part.strip_suffix(" passed"))
        .and_then(|count| count.trim().parse().ok())
        .expect("the summary counts what passed");
    assert!(passed >= 375, "{summary}");
}

fn fsx(mount: &Path, name: &str, config: &str, seed: u32, operations: u32) {
    let file = mount.join(name);
    let outside = tempfile::tempdir().expect("a temporary directory");
    let settings = outside.path().join("fsx.toml");
    fs::write(&settings, config).expect("the configuration can be written");
    run(Command::new("fsx")
        .args(["-S", &seed.to_string(), "-N", &operations.to_string(), "-f"])
        .arg(&settings)
        .arg("-P")
        .arg(outside.path())
        .arg(&file));
}

/// Every operation that fsx knows, small ones in a file of a quarter chunk, then large ones over several chunks.
const FSX_SMALL: &str = "flen = 262144\n[opsize]\nmax = 65536\n[weights]\n";
const FSX_LARGE: &str = "flen = 8388608\n[opsize]\nmax = 2097152\n[weights]\n";
const WEIGHTS: &str = "close_open = 1\ninvalidate = 1\nmapread = 10\nmapwrite = 10\nread = 10\nwrite = 10\n\
    truncate = 5\nfsync = 1\nfdatasync = 1\nposix_fallocate = 2\npunch_hole = 5\nsendfile = 2\n\
    posix_fadvise = 1\ncopy_file_range = 5\n";

#[test]
fn fsx_finds_nothing_in_a_small_file() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    for seed in [1, 2, 3] {
        fsx(&mount, &format!("small{seed}"), &format!("{FSX_SMALL}{WEIGHTS}"), seed, 10_000);
    }
}

#[test]
fn fsx_finds_nothing_in_a_file_over_several_nodes() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    for seed in [4, 5] {
        fsx(&mount, &format!("large{seed}"), &format!("{FSX_LARGE}{WEIGHTS}"), seed, 5_000);
    }
}
