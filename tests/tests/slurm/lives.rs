//! Jobs that end, begin again and die in other ways than they should.

use crate::cluster::{Slurm, left_on};
use crate::wait_for;

/// The process ids of `name` on node `number`.
fn pids(slurm: &Slurm, number: usize, name: &str) -> Vec<String> {
    let output = slurm.node(number).output(&["pgrep", "-x", name]);
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// kill -9 of all processes `name` on node `number`, of which there must be some.
fn kill(slurm: &Slurm, number: usize, name: &str) {
    let pids = pids(slurm, number, name);
    assert!(!pids.is_empty(), "no {name} on n{number}");
    let words: Vec<&str> =
        ["kill", "-9"].into_iter().chain(pids.iter().map(String::as_str)).collect();
    slurm.node(number).print(&words);
}

#[test]
fn a_requeued_job_starts_anew_and_empty() {
    let slurm = Slurm::start();
    let script = format!(
        "ls -A $SEALFS_DIR | wc -l; echo run ${{SLURM_RESTART_COUNT-0}} > $SEALFS_DIR/file; cat $SEALFS_DIR/file\n\
         : > ready.${{SLURM_RESTART_COUNT-0}}\n{}",
        wait_for("go.${SLURM_RESTART_COUNT-0}")
    );
    let job = slurm.submit(&["--nodelist=n[1-3]", "--nodes=3", "--requeue"], &script);
    slurm.await_file("ready.0");
    slurm.scontrol(&["requeue", &job.to_string()]);
    slurm.await_job(job, "waits again", |job| job.state == "PENDING");
    slurm.assert_nothing_left();
    slurm.await_file("ready.1");
    slurm.signal("go.1");
    assert_eq!(slurm.await_end(job).state, "COMPLETED", "{}", slurm.printed(job));
    let printed = slurm.printed(job);
    let lines: Vec<&str> = printed.lines().filter(|line| !line.contains("slurmstepd")).collect();
    assert_eq!(lines, ["0", "run 0", "0", "run 1"]);
    slurm.assert_nothing_left();
}

#[test]
fn a_cancelled_job_leaves_nothing_though_a_program_holds_its_files() {
    let slurm = Slurm::start();
    // Neither the shell in the background nor its open file go by a polite request.
    let script = "cd $SEALFS_DIR; (trap '' TERM HUP INT; exec 5> held; : > $SLURM_SUBMIT_DIR/ready; \
                  while :; do sleep 0.1; done)";
    let job = slurm.submit(&["--nodelist=n[1-2]", "--nodes=2"], script);
    slurm.await_file("ready");
    slurm.cancel(job);
    assert_eq!(slurm.await_end(job).state, "CANCELLED");
    slurm.assert_nothing_left();
}

#[test]
fn an_epilogue_may_come_twice_or_without_a_prologue() {
    let slurm = Slurm::start();
    let job = slurm.submit(&["--nodelist=n[1-2]", "--nodes=2"], "echo > $SEALFS_DIR/file");
    assert_eq!(slurm.await_end(job).state, "COMPLETED");
    for (job, hosts) in [(job, "n[1-2]"), (job, "n[1-2]"), (job + 1_000, "n[1-2]")] {
        for number in [1, 2] {
            let output = slurm.run_script("epilog", number, job, hosts);
            assert!(output.status.success(), "{output:?}");
        }
    }
    slurm.assert_nothing_left();
}

#[test]
fn a_second_prologue_of_a_job_begins_anew() {
    // As when Slurm runs a prologue again whose first run was killed.
    let slurm = Slurm::start();
    for _ in 0..2 {
        let output = slurm.run_script("prolog", 1, 900, "n1");
        assert!(output.status.success(), "{output:?}");
        let listed = slurm.node(1).print(&["ls", "-A", "/mnt/sealfs/900"]);
        assert_eq!(listed, "");
        slurm.node(1).print(&["touch", "/mnt/sealfs/900/file"]);
    }
    let output = slurm.run_script("epilog", 1, 900, "n1");
    assert!(output.status.success(), "{output:?}");
    slurm.assert_nothing_left();
}

#[test]
fn a_job_outlives_its_slurmd_and_reap_spares_it() {
    let slurm = Slurm::start();
    let script = format!(
        "echo one > $SEALFS_DIR/file; : > ready; {}; srun -N2 cat $SEALFS_DIR/file",
        wait_for("go")
    );
    let job = slurm.submit(&["--nodelist=n[1-2]", "--nodes=2"], &script);
    slurm.await_file("ready");
    kill(&slurm, 2, "slurmd");
    // As systemd starts it again.
    slurm.node(2).print(&["sealfs", "job", "reap"]);
    slurm.node(2).print(&["slurmd", "-N", "n2"]);
    slurm.wait_until("slurmd is back", || !slurm.states()[1].0.contains('*'));
    slurm.signal("go");
    assert_eq!(slurm.await_end(job).state, "COMPLETED", "{}", slurm.printed(job));
    assert_eq!(slurm.printed(job), "one\none\n");
    slurm.assert_nothing_left();
}

#[test]
fn a_job_that_has_ended_while_slurmd_was_dead_is_reaped_before_it_starts_again() {
    let slurm = Slurm::start();
    let script = format!("echo > $SEALFS_DIR/file; : > ready; {}", wait_for("go"));
    let job = slurm.submit(&["--nodelist=n[1-2]", "--nodes=2", "--no-requeue"], &script);
    slurm.await_file("ready");
    // Slurm knows it: it is spared.
    slurm.node(2).print(&["/etc/slurm/sealfs/reap"]);
    assert_ne!(left_on(slurm.node(2)), Vec::<String>::new());
    kill(&slurm, 2, "slurmd");
    slurm.scontrol(&["update", "nodename=n2", "state=down", "reason=dead"]);
    assert_eq!(slurm.await_end(job).state, "NODE_FAIL");
    let job = job.to_string();
    assert_eq!(slurm.node(2).print(&["sealfs", "job", "reap"]), "", "its server lives");
    assert_eq!(slurm.node(2).print(&["/etc/slurm/sealfs/reap"]), format!("{job}\n"));
    assert_eq!(left_on(slurm.node(2)), Vec::<String>::new());
    slurm.node(2).print(&["slurmd", "-N", "n2"]);
    slurm.wait_until("slurmd is back", || slurm.states()[1].0 == "idle");
    slurm.assert_nothing_left();
}

#[test]
fn a_node_that_loses_power_is_reaped_at_boot() {
    let mut slurm = Slurm::start();
    let job = slurm.submit(
        &["--nodelist=n[1-2]", "--nodes=2", "--no-requeue"],
        &format!("head -c 2000000 /dev/zero > $SEALFS_DIR/file; : > ready; {}", wait_for("go")),
    );
    slurm.await_file("ready");
    let data = ["find", "/var/lib/sealfs-jobs", "-mindepth", "1"];
    assert_ne!(slurm.node(2).print(&data), "");
    slurm.node_mut(2).reboot();
    // `sealfs job reap` has run before slurmd.
    assert_eq!(left_on(slurm.node(2)), Vec::<String>::new());
    // Slurm itself would look at the time since boot, which is the real machine's.
    slurm.cancel(job);
    assert_ne!(slurm.await_end(job).state, "COMPLETED");
    slurm.assert_nothing_left();
    // The node is as good as before.
    let job = slurm.submit(&["--nodelist=n[1-2]", "--nodes=2"], "srun -N2 ls -d $SEALFS_DIR");
    assert_eq!(slurm.await_end(job).state, "COMPLETED", "{}", slurm.printed(job));
    slurm.assert_nothing_left();
}

#[test]
fn servers_that_die_under_a_job_are_cleared_away() {
    let slurm = Slurm::start();
    let script = format!("echo > $SEALFS_DIR/file; : > ready; {}", wait_for("go"));
    let job = slurm.submit(&["--nodelist=n[1-2]", "--nodes=2"], &script);
    slurm.await_file("ready");
    kill(&slurm, 2, "sealfs");
    slurm.signal("go");
    slurm.await_end(job);
    slurm.assert_nothing_left();
}

#[test]
fn a_user_without_an_administrator_starts_it_in_the_script() {
    let slurm = Slurm::start();
    // As docs/slurm.md has it.
    let job = slurm.submit_as(
        crate::machines::ALICE,
        &["--nodelist=n[1-3]", "--nodes=3", "--ntasks-per-node=1"],
        include_str!("../../../tools/slurm/unprivileged.sh"),
    );
    assert_eq!(slurm.await_end(job).state, "COMPLETED", "{}", slurm.printed(job));
    let printed = slurm.printed(job);
    assert_eq!(
        printed.lines().filter(|line| line.contains("hello from n1")).count(),
        3,
        "{printed}"
    );
    slurm.assert_nothing_left();
}
