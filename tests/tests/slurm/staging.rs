//! Files that come before a job and go after it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use sealfs_tests::{cluster::run, pattern};

use crate::cluster::Slurm;
use crate::machines::{ALICE, PROJECT};

/// A tree of Alice's project on what all machines see: only members of the group may read it.
fn project(slurm: &Slurm) -> PathBuf {
    let folder = slurm.jobs().join("project");
    for sub in 0..4 {
        let sub = folder.join(format!("sub{sub}"));
        fs::create_dir_all(&sub).unwrap();
        for file in 0..25_u64 {
            fs::write(sub.join(format!("file{file}")), pattern(file, 1 << (file % 21))).unwrap();
        }
    }
    run(std::process::Command::new("chown").args(["-R", &format!("0:{PROJECT}")]).arg(&folder));
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o750)).unwrap();
    folder
}

/// Sums of all files below `folder`, by relative path.
fn sums(folder: &Path) -> String {
    let script = "cd \"$1\" && find . -type f -exec sha256sum {} + | LC_ALL=C sort -k 2";
    let output = run(std::process::Command::new("sh").args(["-c", script, "sh"]).arg(folder));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn files_come_before_the_job_and_go_after_it() {
    let slurm = Slurm::start();
    let source = project(&slurm);
    let expected = sums(&source);
    assert_eq!(expected.lines().count(), 100);
    let target = slurm.jobs().join("results");
    fs::create_dir(&target).unwrap();
    chown(&target, Some(ALICE.uid), Some(ALICE.uid)).unwrap();
    let comment = format!(
        "--comment=sealfs:size=512M,stage_in={}:in,stage_out=out:{}/here",
        source.display(),
        target.display()
    );
    let job = slurm.submit(
        &["--nodelist=n[1-3]", "--nodes=3", &comment],
        "cd $SEALFS_DIR/in && find . -type f -exec sha256sum {} + | LC_ALL=C sort -k 2 > ../sums\n\
         mkdir ../out && cp -r . ../out/ && cp ../sums ../out/ && cat ../sums",
    );
    assert_eq!(slurm.await_end(job).state, "COMPLETED", "{}", slurm.printed(job));
    assert_eq!(slurm.printed(job), expected);
    let copied = target.join("here");
    assert_eq!(fs::read_to_string(copied.join("sums")).unwrap(), expected);
    fs::remove_file(copied.join("sums")).unwrap();
    assert_eq!(sums(&copied), expected);
    slurm.assert_nothing_left();
}

#[test]
fn a_job_whose_files_cannot_be_staged_ends_and_drains_nobody() {
    let slurm = Slurm::start();
    let missing = slurm.jobs().join("missing");
    let comment = format!("--comment=sealfs:stage_in={}", missing.display());
    let job = slurm.submit(&["--nodelist=n[1-2]", "--nodes=2", &comment], "echo ran");
    let end = slurm.await_end(job);
    let printed = slurm.printed(job);
    assert_eq!((end.state.as_str(), end.exit_code.as_str()), ("FAILED", "1:0"), "{printed}");
    assert!(
        printed.contains(&missing.display().to_string()) && !printed.contains("ran"),
        "{printed}"
    );
    slurm.assert_nothing_left();
}

#[test]
fn what_did_not_make_it_out_is_told() {
    let slurm = Slurm::start();
    // Alice may not write there.
    let target = slurm.jobs().join("results");
    fs::create_dir(&target).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
    let comment = format!("--comment=sealfs:stage_out=out:{}/here", target.display());
    let job = slurm.submit(
        &["--nodelist=n[1-2]", "--nodes=2", &comment],
        "mkdir $SEALFS_DIR/out; echo kept > $SEALFS_DIR/out/file; echo ran",
    );
    slurm.await_end(job);
    assert_eq!(slurm.printed(job), "ran\n");
    let told = slurm.said(&format!("sealfs-{job}.stage_out")).expect("it was told");
    assert!(told.contains(&target.display().to_string()), "{told}");
    slurm.assert_nothing_left();
}
