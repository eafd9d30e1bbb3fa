//! The public conformance suites on a directory of a mount: pjdfstest (as root) and fsx.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cluster::{InSbin, run};

/// Everything but what Linux has not: file flags, NFSv4 ACLs, st_birthtime in struct stat.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.02
allow_remount = REMOUNT
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// The tests that change what is mounted read-only: run if they are the only pattern.
pub const EROFS: &str = "erofs";

/// Runs pjdfstest's tests whose names contain one of `patterns` (all, if there is none) below `mount`. Panics if one
/// fails; returns how many passed.
#[must_use]
pub fn pjdfstest(mount: &Path, patterns: &[&str]) -> u32 {
    // The tests of EROFS remount. Among all others that has failed with EBUSY, which the kernel says while something is open
    // for writing or a removed inode is held (by whom was not found out); so they run alone.
    let remounts = patterns == [EROFS];
    // What mount(8) calls to remount a type that the kernel lists as fuse.sealfs.
    let _name = remounts.then(|| InSbin::named("mount.fuse.sealfs"));
    let settings = PJDFSTEST.replace("REMOUNT", if remounts { "true" } else { "false" });
    let outside = tempfile::tempdir().expect("a temporary directory");
    let config = outside.path().join("pjdfstest.toml");
    fs::write(&config, settings).expect("the configuration can be written");
    let output = run(Command::new("pjdfstest")
        .args(["-c".as_ref(), config.as_os_str(), "-p".as_ref(), mount.as_os_str()])
        .args(["-s".as_ref(), outside.path().as_os_str()])
        .args(patterns));
    let text = String::from_utf8_lossy(&output.stdout);
    let summary =
        text.lines().find(|line| line.starts_with("Summary:")).expect("it ends with a summary");
    assert!(summary.contains(" 0 failed"), "{summary}");
    summary
        .split(", ")
        .find_map(|part| part.strip_suffix(" passed"))
        .and_then(|count| count.trim().parse().ok())
        .expect("the summary counts what passed")
}

/// Every operation that fsx knows, small ones in a file of a quarter chunk.
pub const FSX_SMALL: &str = "flen = 262144\n[opsize]\nmax = 65536\n[weights]\n";
/// The same with large operations over several chunks.
pub const FSX_LARGE: &str = "flen = 8388608\n[opsize]\nmax = 2097152\n[weights]\n";
const WEIGHTS: &str = "close_open = 1\ninvalidate = 1\nmapread = 10\nmapwrite = 10\nread = 10\nwrite = 10\n\
    truncate = 5\nfsync = 1\nfdatasync = 1\nposix_fallocate = 2\npunch_hole = 5\nsendfile = 2\n\
    posix_fadvise = 1\ncopy_file_range = 5\n";

/// Runs fsx on a new file, with one of the configurations above. Panics if it finds a difference.
pub fn fsx(mount: &Path, name: &str, config: &str, seed: u32, operations: u32) {
    let file = mount.join(name);
    let outside = tempfile::tempdir().expect("a temporary directory");
    let settings = outside.path().join("fsx.toml");
    fs::write(&settings, format!("{config}{WEIGHTS}")).expect("the configuration can be written");
    run(Command::new("fsx")
        .args(["-S", &seed.to_string(), "-N", &operations.to_string(), "-f"])
        .arg(&settings)
        .arg("-P")
        .arg(outside.path())
        .arg(&file));
}
