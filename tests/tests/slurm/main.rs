//! sealfs under a real Slurm of a controller and four nodes: `tools/slurm/` as docs/slurm.md sets it up.
//!
//! Each test has a cluster of its own, and ends by asserting that no process, mount, key, state or data is left on any node.
//! As root, with Debian's slurm-wlm and munge.

mod cluster;
mod failures;
mod lives;
mod machines;
mod staging;
mod submission;

use cluster::{SLOTS, Slurm};
use machines::{ALICE, BOB};

/// Of a job's script: waits until the test has written `name` into the jobs' directory.
fn wait_for(name: &str) -> String {
    format!("until [ -e {name} ]; do sleep 0.05; done")
}

#[test]
fn a_file_written_by_a_task_on_n1_is_read_on_n3() {
    let slurm = Slurm::start();
    let job = slurm.submit(
        &["--nodelist=n[1-3]", "--nodes=3"],
        "echo dir $SEALFS_DIR\n\
         srun -N1 -w n1 sh -c 'head -c 5000000 /dev/urandom > $SEALFS_DIR/file; sha256sum < $SEALFS_DIR/file'\n\
         srun -N1 -w n3 sh -c 'sha256sum < $SEALFS_DIR/file; hostname'",
    );
    let end = slurm.await_end(job);
    let printed = slurm.printed(job);
    assert_eq!(end.state, "COMPLETED", "{printed}");
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[0], format!("dir /mnt/sealfs/{job}"));
    assert_eq!(lines[1].len(), 64 + 3, "a sum: {printed}");
    assert_eq!((lines[2], lines[3]), (lines[1], "n3"));
    slurm.assert_nothing_left();
}

#[test]
fn the_batch_script_never_starts_before_all_servers_are_up() {
    let slurm = Slurm::start();
    slurm.hold_prolog(3, "n3.may");
    let job = slurm.submit(
        &["--nodelist=n[1-3]", "--nodes=3"],
        "cat /proc/net/tcp > sockets; : > started\n\
         for n in $(seq 60); do mkdir $SEALFS_DIR/$n && echo $n > $SEALFS_DIR/$n/file || exit 1; done\n\
         srun -N3 sh -c 'cat $SEALFS_DIR/*/file | wc -l'",
    );
    slurm.await_file("n3.may.waits");
    // The other two have begun, and wait for the third one.
    for number in [1, 2] {
        slurm.wait_until("the prologue runs", || {
            slurm.node(number).processes().iter().any(|args| args.contains("job up"))
        });
    }
    assert_eq!(slurm.said("started"), None);
    slurm.signal("n3.may");
    let end = slurm.await_end(job);
    assert_eq!(end.state, "COMPLETED", "{}", slurm.printed(job));
    assert_eq!(slurm.printed(job), "60\n60\n60\n");
    // When the script began, a server was listening on each node: 127.1.0.N in the kernel's notation, state 0A.
    let sockets = slurm.said("sockets").expect("the script has written it");
    let ports = slurm.port_base()..slurm.port_base() + SLOTS.parse::<u16>().unwrap() * 16;
    for number in 1..=3 {
        let address = format!("0{number}00017F:");
        let listens = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let port = words[1].strip_prefix(&address).map(|port| u16::from_str_radix(port, 16));
            words[3] == "0A" && port.is_some_and(|port| ports.contains(&port.unwrap()))
        };
        assert!(sockets.lines().skip(1).any(listens), "no server on n{number}:\n{sockets}");
    }
    slurm.assert_nothing_left();
}

#[test]
fn nobody_else_can_enter_or_read_the_key() {
    let slurm = Slurm::start();
    let script = format!("echo mine > $SEALFS_DIR/file; : > ready\n{}", wait_for("go"));
    let job = slurm.submit(&["--nodes=2", "--nodelist=n[1-2]"], &script);
    slurm.await_file("ready");
    for number in [1, 2] {
        let node = slurm.node(number);
        let file = format!("/mnt/sealfs/{job}/file");
        let cat = |user, path: &str| {
            let output = node.command_as(user, &["cat", path]).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        assert_eq!(cat(ALICE, &file), (true, String::new()));
        let (is_read, why) = cat(BOB, &file);
        assert!(!is_read && why.contains("Permission denied"), "{why}");
        // Neither keys nor what else the servers live by are hers, and nothing of it is on a command line.
        let files = node.print(&["find", "/run/sealfs/jobs", "/etc/sealfs/site.key", "-type", "f"]);
        assert!(files.lines().count() >= 2, "{files}");
        for file in files.lines() {
            for user in [ALICE, BOB] {
                let (is_read, why) = cat(user, file);
                assert!(!is_read && why.contains("Permission denied"), "{file}: {why}");
            }
        }
        let keys: Vec<&str> = files.lines().filter(|file| file.contains("key")).collect();
        assert!(keys.len() >= 2, "the site's and the job's: {files}");
        let is_key =
            |word: &str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        for args in node.processes() {
            assert!(!args.split(|c: char| !c.is_alphanumeric()).any(is_key), "{args}");
        }
    }
    slurm.signal("go");
    assert_eq!(slurm.await_end(job).state, "COMPLETED");
    slurm.assert_nothing_left();
}

#[test]
fn two_jobs_at_once_on_the_same_nodes_see_their_own_files_only() {
    let slurm = Slurm::start();
    let script = format!(
        "echo $SLURM_JOB_ID > $SEALFS_DIR/$SLURM_JOB_ID; : > ready.$SLURM_JOB_ID\n{}\n\
         srun -N2 sh -c 'ls $SEALFS_DIR; cat $SEALFS_DIR/*'",
        wait_for("go")
    );
    let options = ["--nodes=2", "--nodelist=n[1-2]", "--ntasks-per-node=1"];
    let with = [&options[..], &["--constraint=sealfs"]].concat();
    let jobs = [ALICE, BOB].map(|user| slurm.submit_as(user, &with, &script));
    for job in jobs {
        slurm.await_file(&format!("ready.{job}"));
    }
    slurm.signal("go");
    for job in jobs {
        assert_eq!(slurm.await_end(job).state, "COMPLETED", "{}", slurm.printed(job));
        assert_eq!(slurm.printed(job), format!("{job}\n").repeat(4));
    }
    slurm.assert_nothing_left();
}

#[test]
fn a_job_without_the_constraint_costs_nothing() {
    let slurm = Slurm::start();
    // Whoever runs sealfs on n1 from now on is seen.
    let traced = "#!/bin/sh\necho \"$@\" >> /var/log/traced\nexec /usr/local/bin/sealfs \"$@\"\n";
    slurm.node(1).write_script("/usr/local/sbin/sealfs", traced);
    let script = "echo dir ${SEALFS_DIR-none}";
    let runs = |options: &[&str]| {
        let job = slurm.submit_as(ALICE, &[&["--nodelist=n1"], options].concat(), script);
        assert_eq!(slurm.await_end(job).state, "COMPLETED", "{}", slurm.printed(job));
        (job, slurm.printed(job), slurm.node(1).output(&["cat", "/var/log/traced"]).stdout)
    };
    let (_, printed, traced) = runs(&[]);
    assert_eq!((printed.as_str(), traced.len()), ("dir none\n", 0));
    let (job, printed, traced) = runs(&["--constraint=sealfs"]);
    assert_eq!(printed, format!("dir /mnt/sealfs/{job}\n"));
    assert_eq!(String::from_utf8_lossy(&traced), "job up --slurm\njob down --slurm\n");
    slurm.assert_nothing_left();
}
