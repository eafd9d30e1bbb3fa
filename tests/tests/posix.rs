//! The public conformance suites on a real mount of three nodes: pjdfstest (as root) and fsx.

use sealfs_tests::cluster::Cluster;
use sealfs_tests::suites::{EROFS, FSX_LARGE, FSX_SMALL, fsx, pjdfstest};

#[test]
fn pjdfstest_has_no_failures() {
    let mut cluster = Cluster::start(3);
    let passed = pjdfstest(&cluster.mount(), &[]);
    assert!(passed >= 375, "{passed} passed");
}

#[test]
fn a_mount_that_is_remounted_read_only_refuses_every_change() {
    let mut cluster = Cluster::start(3);
    assert_eq!(pjdfstest(&cluster.mount(), &[EROFS]), 13);
}

#[test]
fn fsx_finds_nothing_in_a_small_file() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    for seed in [1, 2, 3] {
        fsx(&mount, &format!("small{seed}"), FSX_SMALL, seed, 20_000);
    }
}

#[test]
fn fsx_finds_nothing_in_a_file_over_several_nodes() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    for seed in [4, 5] {
        fsx(&mount, &format!("large{seed}"), FSX_LARGE, seed, 5_000);
    }
}
