//! What is wrong with a node drains this node and names it; what is wrong with a job ends the job and drains none.

use crate::cluster::{Slurm, left_on};
use crate::machines::ALICE;

/// Has the server of node `number` ask for a processor that it does not have.
fn break_node(slurm: &Slurm, number: usize) {
    let script = "echo 'cores = \"900\"' >> /etc/sealfs/job.toml";
    slurm.node(number).print(&["sh", "-c", script]);
}

#[test]
fn a_prologue_that_fails_drains_its_node_by_name_and_requeues_the_job() {
    let slurm = Slurm::start();
    break_node(&slurm, 2);
    let job = slurm.submit(&["--nodelist=n[1-3]", "--nodes=3"], "echo ran");
    let reason = slurm.await_drained(2);
    assert!(reason.contains("sealfs") && reason.contains("processor 900"), "{reason}");
    let log = slurm.slurmd_log(2);
    let said: Vec<&str> = log.lines().filter(|line| line.contains("prolog failed")).collect();
    assert!(said.iter().any(|line| line.contains("sealfs: n2: ")), "{log}");
    let end = slurm.await_job(job, "waits again", |job| job.state == "PENDING");
    assert_eq!(end.restarts, 1);
    assert_eq!(slurm.printed(job), "");
    // The others are as they were: they take part in the next job.
    slurm.wait_until("the others are idle", || {
        let states = slurm.states();
        [0, 2, 3].iter().all(|&at| states[at].0 == "idle")
    });
    for node in slurm.nodes() {
        assert_eq!(left_on(node), Vec::<String>::new(), "left on {}", node.name());
    }
    slurm.cancel(job);
    let other = slurm.submit(&["--nodelist=n[1,3-4]", "--nodes=3"], "srun -N3 ls -d $SEALFS_DIR");
    assert_eq!(slurm.await_end(other).state, "COMPLETED", "{}", slurm.printed(other));
    slurm.resume(2);
    slurm.assert_nothing_left();
}

/// Slurm requeues a job itself when a prologue fails, between any two steps of a node that speaks for all.
#[test]
fn a_job_that_slurm_has_requeued_meanwhile_is_not_ended() {
    let slurm = Slurm::start();
    break_node(&slurm, 2);
    // The first answer of Slurm's is as old as can be when the node hears it.
    slurm.node(1).write_script(
        "/usr/local/sbin/squeue",
        "#!/bin/sh\n[ -e /run/asked ] && exec /usr/bin/squeue \"$@\"\n\
         while /usr/bin/squeue \"$@\" | grep -q 'RUN\\|CONF'; do sleep 0.1; done\n\
         : > /run/asked\necho RUNNING\n",
    );
    let job = slurm.submit(&["--nodelist=n[1-3]", "--nodes=3"], "echo ran");
    slurm.await_drained(2);
    slurm.wait_until("n1 has spoken", || slurm.node(1).succeeds(&["test", "-e", "/run/asked"]));
    let end = slurm.await_job(job, "waits again", |job| job.state == "PENDING");
    assert_eq!((end.restarts, slurm.printed(job).as_str()), (1, ""));
    slurm.cancel(job);
    slurm.resume(2);
    slurm.assert_nothing_left();
}

#[test]
fn a_node_that_comes_too_late_is_drained_by_name() {
    let slurm = Slurm::start_with(&[("deadline", "10")]);
    slurm.hold_prolog(3, "n3.may");
    let job = slurm.submit(&["--nodelist=n[1-3]", "--nodes=3"], "echo ran");
    slurm.wait_until("n3 is drained", || slurm.states()[2].0.starts_with("drain"));
    let (_, reason) = slurm.states().swap_remove(2);
    assert!(reason.contains("sealfs") && reason.contains("10 s"), "{reason}");
    slurm.signal("n3.may");
    let end = slurm.await_job(job, "waits again", |job| job.state == "PENDING");
    assert_eq!((end.restarts, slurm.printed(job).as_str()), (1, ""));
    slurm.cancel(job);
    slurm.wait_until("the others are idle", || {
        let states = slurm.states();
        [0, 1, 3].iter().all(|&at| states[at].0 == "idle")
    });
    slurm.await_drained(3);
    slurm.resume(3);
    slurm.assert_nothing_left();
}

#[test]
fn scancel_during_the_prologue_leaves_nothing_and_drains_nobody() {
    let slurm = Slurm::start();
    slurm.hold_prolog(3, "n3.may");
    let job = slurm.submit(&["--nodelist=n[1-3]", "--nodes=3"], "echo ran");
    slurm.await_file("n3.may.waits");
    slurm.cancel(job);
    slurm.signal("n3.may");
    let end = slurm.await_end(job);
    assert_eq!((end.state.as_str(), slurm.printed(job).as_str()), ("CANCELLED", ""));
    slurm.assert_nothing_left();
}

#[test]
fn scancel_before_a_prologue_has_come_drains_nobody() {
    let slurm = Slurm::start_with(&[("deadline", "10")]);
    slurm.hold_prolog(3, "n3.may");
    let job = slurm.submit(&["--nodelist=n[1-3]", "--nodes=3"], "echo ran");
    slurm.await_file("n3.may.waits");
    slurm.cancel(job);
    // The other two wait for their deadline, and must not hold n3 for the one to blame.
    slurm.wait_until("the prologues have ended", || {
        [1, 2].iter().all(|&number| {
            !slurm.node(number).processes().iter().any(|args| args.contains("job up"))
        })
    });
    slurm.signal("n3.may");
    assert_eq!(slurm.await_end(job).state, "CANCELLED");
    slurm.assert_nothing_left();
}

#[test]
fn wrong_options_that_nobody_has_checked_end_the_job_and_drain_nobody() {
    let mut slurm = Slurm::start();
    slurm.controller.print(&["sed", "-i", "/^JobSubmitPlugins/d", "/etc/slurm/sealfs.conf"]);
    slurm.restart_controller();
    let options = ["--nodelist=n[1-2]", "--nodes=2", "--comment=sealfs:size=1K"];
    let job = slurm.submit(&options, "echo ran");
    let end = slurm.await_end(job);
    let printed = slurm.printed(job);
    assert_eq!((end.state.as_str(), end.exit_code.as_str()), ("FAILED", "1:0"), "{printed}");
    assert!(printed.contains("sealfs: size=1K: ") && !printed.contains("ran"), "{printed}");
    slurm.assert_nothing_left();
}

#[test]
fn a_node_without_site_key_says_so() {
    let slurm = Slurm::start();
    slurm.node(1).print(&["rm", "/etc/sealfs/site.key"]);
    let job = slurm.submit_as(ALICE, &["--constraint=sealfs", "--nodelist=n1"], "echo ran");
    let reason = slurm.await_drained(1);
    assert!(reason.contains("/etc/sealfs/site.key"), "{reason}");
    slurm.cancel(job);
    slurm.resume(1);
    slurm.assert_nothing_left();
}
