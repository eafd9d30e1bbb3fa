//! What is refused when a job is submitted: `options.lua` behind job_submit.lua and burst_buffer.lua.

use crate::cluster::Slurm;
use crate::machines::ALICE;

const COMMENTS: &str = include_str!("../../../tools/slurm/comments.txt");

#[test]
fn wrong_options_are_refused_at_submission() {
    let slurm = Slurm::start();
    let comments: Vec<[&str; 3]> = COMMENTS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut parts = line.splitn(3, ' ');
            [(); 3].map(|()| parts.next().expect("verdict, word, comment"))
        })
        .collect();
    assert!(comments.len() > 30);
    for [verdict, word, comment] in comments {
        let option = format!("--comment={comment}");
        // To the end of the queue: none of them is to run.
        let asks = ["--test-only", "--constraint=sealfs", &option];
        let by_submit = slurm.sbatch(ALICE, &asks, "true");
        let said = String::from_utf8_lossy(&by_submit.stderr);
        assert_eq!(by_submit.status.success(), verdict == "ok", "{comment}: {said}");
        assert!(
            verdict == "ok" || said.contains("sealfs: ") && said.contains(word),
            "{comment}: {said}"
        );
    }
    let said = |options: &[&str], script: &str| {
        let output = slurm.sbatch(ALICE, options, script);
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let without = said(&["--comment=sealfs:size=1G"], "true");
    assert!(without.contains("without --constraint=sealfs"), "{without}");
    slurm.assert_nothing_left();
}

#[test]
fn a_burst_buffer_checks_scripts_at_a_site_without_job_submit() {
    let mut slurm = Slurm::start();
    slurm.controller.print(&["sed", "-i", "/^JobSubmitPlugins/d", "/etc/slurm/sealfs.conf"]);
    slurm.restart_controller();
    let script = |comment: &str| {
        format!("#BB_LUA sealfs\n#SBATCH --constraint=sealfs --nodes=1 {comment}\necho $SEALFS_DIR")
    };
    for (comment, word) in [
        ("--comment=sealfs:syze=1G", "unknown option"),
        ("--comment=\"run 3; sealfs:size=1K\"", "at least 256M"),
        ("--comment 'sealfs:stage_in=relative'", "/absolute"),
    ] {
        let output = slurm.sbatch(ALICE, &[], &script(comment));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{comment}");
        assert!(said.contains("sealfs: ") && said.contains(word), "{comment}: {said}");
    }
    let job = slurm.submit_as(ALICE, &[], &script("--comment=sealfs:size=256M,chunk=64K"));
    assert_eq!(slurm.await_end(job).state, "COMPLETED", "{}", slurm.printed(job));
    assert_eq!(slurm.printed(job), format!("/mnt/sealfs/{job}\n"));
    slurm.assert_nothing_left();
}
