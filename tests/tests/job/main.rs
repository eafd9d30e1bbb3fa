//! `sealfs job` on virtual nodes: real servers and mounts, as a prologue and an epilogue run it. Needs root.
//!
//! Each test ends with the same question to every node: which processes, mounts and files are there that were not there
//! before?

mod nodes;
mod together;

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nodes::{Nodes, OTHER, USER, said};
use sealfs_tests::cluster::{Loop, run};

#[test]
fn a_job_comes_up_on_all_nodes_is_its_users_alone_and_leaves_nothing() {
    let nodes = Nodes::new(3, "");
    let path = nodes.up_well("4711", &[]);
    assert_eq!(path.to_str(), Some("/mnt/sealfs/4711"));
    let file = path.join("file").display().to_string();
    nodes.all[0].shell(USER, &format!("echo hello > {file}")).unwrap();
    assert_eq!(nodes.all[2].shell(USER, &format!("cat {file}")).unwrap(), "hello\n");
    for node in &nodes.all {
        assert_eq!(
            node.shell(0, "stat -c '%u %g %a' /mnt/sealfs/4711").unwrap(),
            "12345 12345 700\n"
        );
        node.shell(OTHER, &format!("cat {file}")).unwrap_err();
        node.shell(OTHER, "cat /run/sealfs/jobs/4711/key").unwrap_err();
        let shown = said(&node.job(&["status"]));
        assert!(shown.contains("4711") && shown.contains(" up "), "{shown}");
    }
    nodes.down("4711");
    nodes.assert_clean();
    nodes.down("4711");
    nodes.assert_clean();
}

#[test]
fn a_node_that_is_missing_is_named_and_all_is_undone() {
    let nodes = Nodes::new(3, "deadline = 3\n");
    let uid = USER.to_string();
    let words = ["up", "--id", "5", "--hosts", "n[1-3]", "--uid", &uid, "--gid", &uid];
    let outputs: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> =
            nodes.all[..2].iter().map(|node| scope.spawn(move || node.job(&words))).collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for output in outputs {
        assert_eq!(output.status.code(), Some(3), "another node's fault");
        let said = said(&output);
        assert!(said.contains("n3 never joined within 3 s"), "{said}");
    }
    nodes.assert_clean();
}

#[test]
fn a_server_that_an_earlier_run_has_left_is_refused_and_ended() {
    let nodes = Nodes::new(3, "");
    nodes.up_well("9", &[]);
    nodes.all[0].shell(USER, "echo old > /mnt/sealfs/9/old").unwrap();
    // All die but the server of n2, which keeps the address, the key and the id of the job.
    assert_eq!(nodes.all[0].kill("serve") + nodes.all[0].kill("mount"), 2);
    assert_eq!(nodes.all[2].kill("serve") + nodes.all[2].kill("mount"), 2);
    assert_eq!(nodes.all[1].kill("mount"), 1);
    let servers = || nodes.all[1].processes().into_iter().filter(|one| one.1.contains(" serve "));
    let old = servers().next().expect("it lives");
    nodes.up_well("9", &[]);
    assert_eq!(servers().filter(|one| one.0 != old.0).count(), 1);
    assert_eq!(servers().count(), 1, "the old one was ended");
    assert_eq!(nodes.all[2].shell(USER, "ls /mnt/sealfs/9").unwrap(), "", "nothing is mixed up");
    nodes.down("9");
    nodes.assert_clean();
}

/// `up` on n1 is killed at moments spread over the time that it takes; n2's runs on.
#[test]
fn an_up_that_is_killed_at_any_moment_is_undone_by_down_and_by_the_next_up() {
    const MOMENTS: u32 = 14;
    let nodes = Nodes::new(2, "");
    let began = Instant::now();
    nodes.up_well("77", &[]);
    let takes = began.elapsed();
    nodes.down("77");
    let uid = USER.to_string();
    let words = ["up", "--id", "77", "--hosts", "n[1-2]", "--uid", &uid, "--gid", &uid];
    for moment in 0..MOMENTS {
        let start = |at: usize| {
            let mut command = nodes.all[at].job_command(&words);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let (mut first, mut second) = (start(0), start(1));
        // The moment is what is tested: wherever it falls, the same must hold.
        thread::sleep(takes * moment / MOMENTS);
        first.kill().unwrap();
        first.wait().unwrap();
        if moment % 2 == 0 {
            nodes.up_well("77", &[]);
            nodes.all[1].shell(USER, "echo x > /mnt/sealfs/77/x").unwrap();
            assert_eq!(nodes.all[0].shell(USER, "cat /mnt/sealfs/77/x").unwrap(), "x\n");
        }
        nodes.down("77");
        second.wait().unwrap();
        nodes.down("77");
        nodes.assert_clean();
    }
}

#[test]
fn two_jobs_at_a_time_with_one_slot_do_not_meet_each_other() {
    let nodes = Nodes::new(2, "slots = 10\n");
    thread::scope(|scope| {
        let jobs = ["3", "13", "23"].map(|id| scope.spawn(|| nodes.up_well(id, &[])));
        jobs.into_iter().for_each(|job| drop(job.join().unwrap()));
    });
    nodes.all[0].shell(USER, "echo 3 > /mnt/sealfs/3/file").unwrap();
    assert_eq!(
        nodes.all[1].shell(USER, "cd /mnt/sealfs; ls 3 13 23").unwrap(),
        "13:\n\n23:\n\n3:\nfile\n"
    );
    nodes.down("13");
    assert_eq!(nodes.all[1].shell(USER, "cat /mnt/sealfs/3/file").unwrap(), "3\n");
    nodes.down("3");
    nodes.down("23");
    nodes.assert_clean();
}

#[test]
fn another_site_key_is_named_as_a_cause() {
    let nodes = Nodes::new(2, "deadline = 2\n");
    let digits = "7".repeat(64);
    nodes.all[1].shell(0, &format!("echo {digits} > /run/site/site.key")).unwrap();
    for (output, parts) in nodes.up("5", &[]).iter().zip([
        ["n2 never joined", "the same site key"],
        ["n1, the first node of the job, was not found", "key is not this end's"],
    ]) {
        let said = said(output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        parts.iter().for_each(|part| assert!(said.contains(part), "{said}"));
    }
    nodes.assert_clean();
}

#[test]
fn a_server_that_cannot_start_is_named_with_its_last_words() {
    let nodes = Nodes::new(2, "");
    nodes.all[1].shell(0, "mount -t tmpfs -o size=64M,mode=755 none /var/lib").unwrap();
    for (output, status) in nodes.up("5", &[]).iter().zip([3, 1]) {
        let said = said(output);
        assert_eq!(output.status.code(), Some(status), "n1 is not to be drained: {said}");
        assert!(said.contains("n2: its server failed: ") && said.contains("no space"), "{said}");
    }
    nodes.all[1].shell(0, "umount /var/lib").unwrap();
    nodes.assert_clean();
}

#[test]
fn a_mount_in_use_is_taken_away_and_its_users_are_named() {
    let nodes = Nodes::new(1, "");
    nodes.up_well("8", &[]);
    let mut command = nodes.all[0].command("/bin/sh");
    command.args(["-c", "cd /mnt/sealfs/8; exec > open; echo held; exec sleep 1000"]);
    let mut user = command.stdout(Stdio::null()).spawn().unwrap();
    let holds = || nodes.all[0].shell(0, "cat /mnt/sealfs/8/open").unwrap_or_default() == "held\n";
    while !holds() {
        thread::sleep(Duration::from_millis(10));
    }
    let output = nodes.all[0].job(&["down", "--id", "8"]);
    assert!(output.status.success(), "{}", said(&output));
    let named = format!("process {} (sleep) of uid 0 uses /mnt/sealfs/8", user.id());
    assert!(said(&output).contains(&named), "{}", said(&output));
    user.kill().unwrap();
    user.wait().unwrap();
    nodes.assert_clean();
}

#[test]
fn reap_removes_what_dead_jobs_have_left_and_nothing_else() {
    let nodes = Nodes::new(1, "");
    let node = &nodes.all[0];
    for id in ["1", "2", "3"] {
        nodes.up_well(id, &[]);
    }
    // Job 1: its server has died. Job 2: the machine was restarted, which nothing in memory survives.
    let server = |id: &str| {
        let part = format!("/sealfs-jobs/{id}/data");
        let found = node.processes().into_iter().find(|one| one.1.contains(&part)).unwrap();
        node.shell(0, &format!("kill -9 {}", found.0)).unwrap();
    };
    server("1");
    server("2");
    node.shell(0, "umount -l /mnt/sealfs/2; rm -r /run/sealfs/jobs/2").unwrap();
    assert!(node.shell(0, "ls /var/lib/sealfs-jobs/2/data /mnt/sealfs/2/sealfs-job").is_ok());
    // What is no job's.
    node.shell(0, "mkdir -p /var/lib/sealfs-jobs/99/data /mnt/sealfs/98").unwrap();
    let shown = node.job(&["status", "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let states: Vec<_> = shown.as_array().unwrap().iter().map(|job| job["state"].clone()).collect();
    assert_eq!(states, ["dead", "up"], "{shown}");
    let output = node.job(&["reap"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n2\n");
    node.shell(USER, "echo x > /mnt/sealfs/3/x").unwrap();
    node.shell(0, "rmdir /var/lib/sealfs-jobs/99/data /var/lib/sealfs-jobs/99 /mnt/sealfs/98")
        .unwrap();
    nodes.down("3");
    nodes.assert_clean();
}

#[test]
fn a_device_is_wiped_and_used_again_and_never_one_that_holds_anything_else() {
    let nodes = Nodes::new(1, "");
    let device = Loop::of(&nodes.outside("device"), 1 << 30);
    let path = device.path().to_str().unwrap();
    for round in 0..2 {
        nodes.up_well("6", &["--data", path]);
        nodes.all[0].shell(USER, "echo x > /mnt/sealfs/6/x").unwrap();
        if round == 1 {
            // The machine was restarted: the state is gone, the mark of the device is not.
            nodes.all[0].kill("serve");
            nodes.all[0].shell(0, "umount -l /mnt/sealfs/6; rm -r /run/sealfs/jobs/6").unwrap();
            let output = nodes.all[0].job(&["reap"]);
            assert_eq!(said(&output).lines().last(), Some("6"), "{}", said(&output));
        } else {
            nodes.down("6");
        }
        nodes.assert_clean();
        let head = nodes.all[0].shell(0, &format!("head -c 2097152 {path} | tr -d '\\0' | wc -c"));
        assert_eq!(head.unwrap(), "0\n");
    }
    // A file system of somebody's.
    run(Command::new("mkfs.ext4").args(["-q", path]));
    let before = nodes.all[0].shell(0, &format!("sha256sum {path}")).unwrap();
    let output = &nodes.up("6", &["--data", path])[0];
    assert!(said(output).contains("ext4"), "{}", said(output));
    nodes.down("6");
    assert_eq!(nodes.all[0].shell(0, &format!("sha256sum {path}")).unwrap(), before);
    nodes.assert_clean();
}

#[test]
fn the_second_of_two_jobs_on_a_device_comes_and_goes_while_the_first_runs() {
    let nodes = Nodes::new(1, "");
    let device = Loop::of(&nodes.outside("device"), 1 << 30);
    let (node, path) = (&nodes.all[0], device.path().to_str().unwrap());
    nodes.up_well("1", &["--data", path]);
    node.shell(USER, "echo mine > /mnt/sealfs/1/file").unwrap();
    let output = &nodes.up("2", &["--data", path])[0];
    assert_eq!(output.status.code(), Some(1));
    assert!(said(output).contains("is in use") && !said(output).contains("undone"), "{output:?}");
    assert!(node.shell(0, "ls /run/sealfs/jobs/2 /var/lib/sealfs-jobs/2").is_err());
    nodes.down("2");
    // One whose `up` was killed: its mark names the device, too.
    let mark = "sed 's/\"1\"/\"2\"/' 1/sealfs-job > 2/sealfs-job; sed -i 's/\"cluster\":\"./&0/' 2/sealfs-job";
    let line = format!("cd /var/lib/sealfs-jobs; mkdir 2; {mark}; grep -q {path} 2/sealfs-job");
    node.shell(0, &line).unwrap();
    let reaped = node.job(&["reap"]);
    assert_eq!((reaped.status.code(), &*reaped.stdout), (Some(0), &b"2\n"[..]), "{reaped:?}");
    assert_eq!(node.shell(USER, "cat /mnt/sealfs/1/file").unwrap(), "mine\n");
    nodes.down("1");
    nodes.assert_clean();
    nodes.up_well("2", &["--data", path]);
    nodes.down("2");
    nodes.assert_clean();
}

#[test]
fn a_device_that_cannot_be_read_keeps_its_mark_until_it_can() {
    let nodes = Nodes::new(1, "");
    let file = nodes.outside("device");
    let device = Loop::of(&file, 1 << 30);
    let (node, path) = (&nodes.all[0], device.path().to_str().unwrap());
    nodes.up_well("6", &["--data", path]);
    node.kill("serve");
    let whole = nodes.outside("whole");
    run(Command::new("cp").arg("--sparse=always").arg(&file).arg(&whole));
    run(Command::new("truncate").args(["-s", "0"]).arg(&file));
    let output = node.job(&["down", "--id", "6"]);
    assert!(!output.status.success() && said(&output).contains("cannot wipe"), "{}", said(&output));
    assert!(
        node.shell(0, "ls /var/lib/sealfs-jobs/6/sealfs-job /run/sealfs/jobs/6/record").is_ok()
    );
    run(Command::new("dd")
        .arg("conv=notrunc,sparse")
        .arg("bs=1M")
        .args([format!("if={}", whole.display()), format!("of={}", file.display())]));
    run(Command::new("truncate").args(["-s", "1G"]).arg(&file));
    nodes.down("6");
    nodes.assert_clean();
    let head = node.shell(0, &format!("head -c 2097152 {path} | tr -d '\\0' | wc -c"));
    assert_eq!(head.unwrap(), "0\n");
}

#[test]
fn a_device_that_cannot_discard_is_emptied_and_says_what_stays() {
    let nodes = Nodes::new(1, "");
    let node = &nodes.all[0];
    // A file system that knows no holes; it lives as long as the device.
    let line =
        "mount -t ramfs none $0 && truncate -s 1G $0/device && losetup --find --show $0/device";
    let place = nodes.outside("project");
    let made = run(Command::new("unshare").args(["-m", "sh", "-c", line]).arg(place));
    let path = String::from_utf8(made.stdout).unwrap();
    let path = path.trim();
    let detached = Detached(path);
    nodes.up_well("6", &["--data", path]);
    node.shell(USER, "echo a secret of mine > /mnt/sealfs/6/x; sync /mnt/sealfs/6/x").unwrap();
    let output = node.job(&["down", "--id", "6"]);
    assert!(output.status.success(), "{}", said(&output));
    let claim = format!("device {path} cannot discard");
    assert!(said(&output).contains(&claim) && said(&output).contains("until"), "{}", said(&output));
    let head = node.shell(0, &format!("head -c 2097152 {path} | tr -d '\\0' | wc -c"));
    assert_eq!(head.unwrap(), "0\n");
    nodes.assert_clean();
    nodes.up_well("6", &["--data", path]);
    nodes.down("6");
    nodes.assert_clean();
    drop(detached);
}

/// A loop device that goes with the test.
struct Detached<'a>(&'a str);

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(self.0).output();
    }
}

#[test]
fn a_job_whose_record_is_torn_is_never_taken_for_none() {
    let nodes = Nodes::new(1, "log-dir = '/run/logs'\n");
    let node = &nodes.all[0];
    for (data, ends_by) in [("/var/lib/sealfs-jobs", "reap"), ("memory", "down")] {
        nodes.up_well("18", &["--data", data]);
        node.shell(USER, "echo mine > /mnt/sealfs/18/file").unwrap();
        node.shell(0, "truncate -s 40 /run/sealfs/jobs/18/record").unwrap();
        let words = [
            &["reap"][..],
            &["down", "--id", "18"],
            &["down", "--id", "18", "--stage-out", "file:/run/project/out"],
            &["up", "--id", "18", "--hosts", "n1", "--uid", "1", "--gid", "1"],
        ];
        for words in words {
            let output = node.job(words);
            let said = said(&output);
            assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
            assert!(said.contains("cannot read the record /run/sealfs/jobs/18/record"), "{said}");
            assert!(said.contains("`sealfs job down --force --id 18`"), "{said}");
        }
        assert!(said(&node.job(&["status"])).contains("unreadable"));
        assert_eq!(node.shell(USER, "cat /mnt/sealfs/18/file").unwrap(), "mine\n");
        if ends_by == "reap" {
            node.kill("serve");
            assert_eq!(node.job(&["reap"]).stdout, b"18\n");
        } else {
            let output = node.job(&["down", "--id", "18", "--force"]);
            assert!(output.status.success(), "{}", said(&output));
        }
        node.shell(0, "grep -q formatted /run/logs/18.server.log; rm -r /run/logs").unwrap();
        nodes.assert_clean();
    }
}

#[test]
fn what_belongs_to_another_state_or_to_no_job_is_left_alone() {
    let nodes = Nodes::new(1, "");
    let node = &nodes.all[0];
    nodes.up_well("21", &[]);
    node.shell(USER, "echo mine > /mnt/sealfs/21/file").unwrap();
    // An administrator's own mount, which has nothing to do with any job but its place.
    let mount = "mkdir /mnt/sealfs/home; sh -c 'exec /run/site/sealfs mount --key /run/sealfs/jobs/21/key \
                 --log-file /run/home.log /run/sealfs/jobs/21/nodes /mnt/sealfs/home'";
    node.shell(0, mount).unwrap();
    let other = ["--state", "/run/other"];
    let reaped = node.job(&[&["reap"][..], &other].concat());
    assert_eq!((reaped.status.code(), &*reaped.stdout), (Some(0), &b""[..]), "{reaped:?}");
    for words in [["down", "--id", "21"], ["down", "--id", "home"]] {
        let output = node.job(&[&words[..], &other].concat());
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("stays"), "{}", said(&output));
    }
    let output = &nodes.up("home", &[])[0];
    assert!(said(output).contains("/mnt/sealfs/home, and is not this job's"), "{}", said(output));
    assert!(node.job(&["reap"]).stdout.is_empty());
    assert_eq!(
        node.shell(0, "cat /mnt/sealfs/home/file /mnt/sealfs/21/file").unwrap(),
        "mine\nmine\n"
    );
    node.shell(0, "/run/site/sealfs umount /mnt/sealfs/home; rmdir /mnt/sealfs/home; rm /run/home.log; rm -r /run/other").unwrap();
    // The state is gone, and so is the log by which the server would be found; the server is not.
    node.shell(0, "rm -r /run/sealfs/jobs/21").unwrap();
    let reaped = node.job(&["reap"]);
    assert_eq!(reaped.status.code(), Some(1));
    assert!(said(&reaped).contains("a server has it open"), "{}", said(&reaped));
    assert!(node.shell(0, "ls /var/lib/sealfs-jobs/21/data/lock").is_ok());
    assert_eq!(node.kill("serve"), 1);
    node.kill("mount");
    assert_eq!(node.job(&["reap"]).stdout, b"21\n");
    nodes.assert_clean();
}

#[test]
fn what_is_wrong_with_one_job_keeps_reap_from_no_other() {
    let nodes = Nodes::new(1, "");
    let node = &nodes.all[0];
    nodes.up_well("42", &[]);
    node.kill("serve");
    // What no `up` makes; and what one leaves that is killed before it has named what it has made.
    let begun = "mkdir /var/lib/sealfs-jobs/.43.new /mnt/sealfs/.43.new";
    node.shell(0, &format!("touch /run/sealfs/jobs/41 /run/sealfs/jobs/5; {begun}")).unwrap();
    let reaped = node.job(&["reap"]);
    assert_eq!((reaped.status.code(), &*reaped.stdout), (Some(1), &b"42\n43\n"[..]), "{reaped:?}");
    for id in ["5", "41"] {
        let named = format!("job {id}: /run/sealfs/jobs/{id}: it is no directory");
        assert!(said(&reaped).contains(&named), "{}", said(&reaped));
    }
    node.shell(0, "rm /run/sealfs/jobs/41 /run/sealfs/jobs/5").unwrap();
    nodes.assert_clean();
}

#[test]
fn data_in_memory_ends_with_the_job() {
    let nodes = Nodes::new(2, "");
    nodes.up_well("6", &["--data", "memory"]);
    nodes.all[0].shell(USER, "head -c 100000000 /dev/urandom > /mnt/sealfs/6/x").unwrap();
    assert!(
        nodes.all[0].shell(0, "cat /proc/self/mounts").unwrap().contains("/jobs/6/memory tmpfs")
    );
    let sums: Vec<_> =
        nodes.all.iter().map(|node| node.shell(USER, "md5sum /mnt/sealfs/6/x").unwrap()).collect();
    assert_eq!(sums[0], sums[1]);
    nodes.down("6");
    nodes.assert_clean();
}

#[test]
fn a_user_needs_no_administrator() {
    let nodes = Nodes::new(2, "");
    let digits = "5".repeat(64);
    // The first call has a login's directory, others have not.
    let on = |node: &nodes::Node, line: &str| {
        let line = format!("export SLURMD_NODENAME={}; {line}", node.name);
        node.shell(USER, &line)
    };
    for node in &nodes.all {
        on(node, &format!("umask 077; mkdir /tmp/run; echo {digits} > /tmp/run/key")).unwrap();
    }
    let up = "XDG_RUNTIME_DIR=/tmp/run /run/site/sealfs job up --unprivileged --key /tmp/run/key --id 31 --hosts 'n[1-2]' --size 256M";
    let paths: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = nodes.all.iter().map(|node| scope.spawn(|| on(node, up))).collect();
        running.into_iter().map(|one| one.join().unwrap().unwrap()).collect()
    });
    assert_eq!(paths, ["/tmp/sealfs-12345/mnt/31\n"; 2]);
    on(&nodes.all[0], "echo mine > /tmp/sealfs-12345/mnt/31/file").unwrap();
    assert_eq!(on(&nodes.all[1], "cat /tmp/sealfs-12345/mnt/31/file").unwrap(), "mine\n");
    nodes.all[0].shell(OTHER, "ls /tmp/sealfs-12345/mnt/31").unwrap_err();
    for node in &nodes.all {
        let owners: Vec<_> =
            node.processes().into_iter().filter(|one| one.1.contains("sealfs")).collect();
        assert_eq!(owners.len(), 2, "a server and a mount: {owners:?}");
        // In use: taken away all the same.
        on(node, "cd /tmp/sealfs-12345/mnt/31; /run/site/sealfs job down --unprivileged --id 31")
            .unwrap();
        on(node, "/run/site/sealfs job down --unprivileged --id 31").unwrap();
        node.shell(0, "rm -r /tmp/run /tmp/sealfs-12345").unwrap();
    }
    nodes.assert_clean();
    let error = on(&nodes.all[0], "/run/site/sealfs job up --id 31 --hosts n1").unwrap_err();
    assert!(error.contains("--unprivileged"), "{error}");
}

/// Where this machine has no control groups with a limit of memory, that is the claim: refused, with the cause.
#[test]
#[expect(clippy::print_stdout, reason = "it says which of two claims the machine lets it test")]
fn a_limit_of_memory_is_kept_where_it_can_be_and_refused_elsewhere() {
    let nodes = Nodes::new(1, "");
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    let output = &nodes.up("5", &["--memory-max", "1G"])[0];
    let said_it = said(output);
    match controllers {
        Ok(names) if names.split_whitespace().any(|name| name == "memory") => {
            println!("this machine has cgroup v2 with the memory controller: the limit is kept");
            assert!(output.status.success(), "{said_it}");
            let group = "/sys/fs/cgroup/sealfs-job-5@n1";
            let line = format!("cd {group}; cat memory.max; wc -l < cgroup.procs");
            assert_eq!(nodes.all[0].shell(0, &line).unwrap(), "1073741824\n1\n");
            nodes.down("5");
        }
        without => {
            println!("this machine has no cgroup v2 with the memory controller: refused");
            let cause = match without {
                Ok(_) => "/sys/fs/cgroup has no memory controller".to_string(),
                Err(error) => format!("/sys/fs/cgroup/cgroup.controllers: {error}"),
            };
            assert_eq!(output.status.code(), Some(1), "{said_it}");
            let claim =
                format!("memory-max cannot be kept: {cause}; leave it out, or mount cgroup2");
            assert!(said_it.contains(&claim), "{said_it}");
        }
    }
    nodes.assert_clean();
    let words = ["--data", "memory", "--size", "1G", "--memory-max", "2G"];
    let output = &nodes.up("5", &words)[0];
    assert_eq!(output.status.code(), Some(4), "{}", said(output));
    assert!(
        said(output).contains("size 1G: in memory it takes up to 2176 MiB"),
        "{}",
        said(output)
    );
    nodes.assert_clean();
}

#[test]
fn a_directory_for_data_that_is_not_there_tells_of_a_drive_that_is_not_mounted() {
    let nodes = Nodes::new(1, "");
    let (node, data) = (&nodes.all[0], ["--data", "/mnt/drive/jobs"]);
    let refused = |words: &[&str]| {
        let output = node.job(&[words, &data].concat());
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("is its drive mounted?"), "{}", said(&output));
        assert!(node.shell(0, "ls /mnt/drive").is_err(), "it was made");
    };
    refused(&["up", "--id", "6", "--hosts", "n1", "--uid", "1", "--gid", "1"]);
    refused(&["reap"]);
    assert!(node.job(&[&["down", "--id", "6"][..], &data].concat()).status.success());
    nodes.assert_clean();
    node.shell(0, "mkdir -p -m 700 /mnt/drive/jobs").unwrap();
    nodes.up_well("6", &data);
    nodes.down("6");
    node.shell(0, "rmdir /mnt/drive/jobs /mnt/drive").unwrap();
    nodes.assert_clean();
}

#[test]
fn what_slurm_does_not_run_any_more_is_reaped_though_its_server_lives() {
    let nodes = Nodes::new(1, "");
    let node = &nodes.all[0];
    for id in ["17", "19", "20", "23"] {
        nodes.up_well(id, &[]);
    }
    assert!(node.job(&["reap"]).stdout.is_empty());
    let output = node.job(&["reap", "--living", "1[7-8],20"]);
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"19\n23\n"[..]), "{output:?}");
    node.shell(USER, "echo x > /mnt/sealfs/17/x; echo x > /mnt/sealfs/20/x").unwrap();
    let wrong = node.job(&["reap", "--living", "1[7"]);
    assert_eq!((wrong.status.code(), &*wrong.stdout), (Some(2), &b""[..]), "{wrong:?}");
    let output = node.job(&["reap", "--living", ""]);
    assert_eq!(output.stdout, b"17\n20\n");
    nodes.assert_clean();
}

#[test]
fn the_exit_status_tells_whose_fault_it_is_and_keys_are_kept_out_of_cores() {
    let nodes = Nodes::new(2, "deadline = 5\n");
    let node = &nodes.all[0];
    let (id, hosts) = (["--id", "../5", "--hosts", "n1"], ["--id", "5", "--hosts", "n[1"]);
    for words in [&[&["up"][..], &id].concat(), &[&["up"][..], &hosts].concat(), &["down"][..]] {
        assert_eq!(node.job(words).status.code(), Some(2), "{words:?}");
    }
    let mut waits =
        node.job_command(&["up", "--id", "5", "--hosts", "n[1-2]", "--uid", "1", "--gid", "1"]);
    let mut waits = waits.stderr(Stdio::null()).spawn().unwrap();
    let up = loop {
        match node.processes().into_iter().find(|one| one.1.contains("job up")) {
            // A program that is just being started is still its parent's copy.
            Some((pid, _)) if node.shell(0, "ls /run/sealfs/jobs/5/record").is_ok() => break pid,
            _ => thread::sleep(Duration::from_millis(10)),
        }
    };
    let limits = std::fs::read_to_string(format!("/proc/{up}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    assert_eq!(waits.wait().unwrap().code(), Some(3), "n2 never came");
    // n1 cannot have what the site asks for.
    node.shell(0, "chmod 644 /run/site/site.key").unwrap();
    assert_eq!(
        node.job(&["up", "--id", "5", "--hosts", "n1", "--uid", "1", "--gid", "1"]).status.code(),
        Some(1)
    );
    node.shell(0, "chmod 600 /run/site/site.key").unwrap();
    let words = ["--stage-in", "/run/project/none:in"];
    for output in nodes.up("5", &words) {
        assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    }
    nodes.assert_clean();
}

#[test]
fn nobody_is_led_astray_by_a_users_directory() {
    let nodes = Nodes::new(1, "");
    let node = &nodes.all[0];
    node.shell(USER, "mkdir /tmp/mine; ln -s /tmp/mine /tmp/link").unwrap();
    for path in ["/tmp/mine", "/tmp/link", "/tmp/mine/deep"] {
        for flag in ["--mount", "--data", "--state", "--log-dir"] {
            let output = &nodes.up("5", &[flag, path])[0];
            let is_missing = (flag, path) == ("--data", "/tmp/mine/deep");
            let cause = if is_missing { "is its drive mounted?" } else { "is not safe to work in" };
            assert!(said(output).contains(cause), "{flag}: {}", said(output));
        }
    }
    assert_eq!(node.shell(0, "find /tmp/mine; rm -r /tmp/mine /tmp/link").unwrap(), "/tmp/mine\n");
    nodes.down("5");
    nodes.assert_clean();
}

#[test]
fn files_are_staged_in_and_out_by_all_nodes_with_the_users_rights() {
    let nodes = Nodes::new(3, "");
    let (first, last) = (&nodes.all[0], &nodes.all[2]);
    let sums = "find . -type f ! -path './.sealfs-stage*' | sort | xargs sha256sum";
    first
        .shell(
            USER,
            "mkdir -p /run/project/in/deep; cd /run/project/in; for n in $(seq 40); do head -c $((n * 9999)) /dev/urandom > \
             deep/$n; done; ln deep/1 one; ln -s deep/2 two",
        )
        .unwrap();
    nodes.up_well("12", &["--stage-in", "/run/project/in:data/in", "--stage-deadline", "60"]);
    let there = last.shell(USER, &format!("cd /mnt/sealfs/12/data/in; {sums}")).unwrap();
    assert_eq!(there, first.shell(USER, &format!("cd /run/project/in; {sums}")).unwrap());
    assert_eq!(last.shell(USER, "stat -c %u /mnt/sealfs/12/data/in/one").unwrap(), "12345\n");
    last.shell(USER, "mv /mnt/sealfs/12/data/in /mnt/sealfs/12/results").unwrap();
    let words = ["down", "--id", "12", "--stage-out", "results:/run/project/out"];
    for output in nodes.job(&words) {
        assert!(output.status.success(), "{}", said(&output));
    }
    assert_eq!(there, first.shell(USER, &format!("cd /run/project/out; {sums}")).unwrap());
    assert_eq!(first.shell(USER, "find /run/project ! -uid 12345").unwrap(), "");
    nodes.assert_clean();
    // An epilogue that comes twice has nothing to copy.
    nodes.job(&words).iter().for_each(|output| assert!(output.status.success()));
    nodes.assert_clean();
}

#[test]
fn what_is_not_staged_out_is_named_on_all_nodes_and_kept_if_the_site_says_so() {
    let nodes = Nodes::new(2, "");
    let words = ["down", "--id", "12", "--stage-out", "none:/run/project/out"];
    nodes.up_well("12", &[]);
    for output in nodes.job(&words) {
        let said = said(&output);
        assert_eq!(output.status.code(), Some(4), "{said}");
        let parts = ["n1: staging out /mnt/sealfs/12/none to /run/project/out", "is wiped"];
        parts.iter().for_each(|part| assert!(said.contains(part), "{said}"));
    }
    nodes.assert_clean();
    nodes.up_well("12", &[]);
    nodes.all[0].shell(USER, "echo kept > /mnt/sealfs/12/file").unwrap();
    for output in nodes.job(&[&words[..], &["--keep-failed"]].concat()) {
        assert_eq!(output.status.code(), Some(1), "something is left");
        assert!(said(&output).contains("everything is kept"), "{}", said(&output));
    }
    assert!(said(&nodes.all[0].job(&["status"])).contains(" kept "));
    for output in nodes.job(&["down", "--id", "12"]).iter().chain(&nodes.up("12", &[])) {
        assert!(said(output).contains("job 12 was kept"), "{}", said(output));
    }
    assert_eq!(nodes.all[1].shell(USER, "cat /mnt/sealfs/12/file").unwrap(), "kept\n");
    assert_eq!(nodes.all[0].job(&["reap"]).stdout, b"", "what is kept is nobody's to take");
    for output in nodes.job(&["down", "--id", "12", "--force"]) {
        assert!(output.status.success(), "{}", said(&output));
    }
    nodes.assert_clean();
}

#[test]
fn what_a_killed_down_has_left_is_dead_and_reaped() {
    let nodes = Nodes::new(2, "");
    let node = &nodes.all[0];
    nodes.up_well("14", &[]);
    node.shell(USER, "mkdir /mnt/sealfs/14/results").unwrap();
    // It waits for the other node when it is killed.
    let words = ["down", "--id", "14", "--stage-out", "results:/run/project/out"];
    let mut down = node.job_command(&words).stderr(Stdio::null()).spawn().unwrap();
    while !said(&node.job(&["status"])).contains(" ending ") {
        thread::sleep(Duration::from_millis(20));
    }
    assert!(node.kill("down") > 0);
    down.wait().unwrap();
    assert!(said(&node.job(&["status"])).contains(" dead "));
    let output = node.job(&["reap"]);
    assert_eq!((output.status.success(), &*output.stdout), (true, &b"14\n"[..]), "{output:?}");
    nodes.down("14");
    nodes.assert_clean();
}

#[test]
fn what_copies_when_a_down_is_killed_is_ended_too() {
    let nodes = Nodes::new(1, "");
    let node = &nodes.all[0];
    nodes.up_well("13", &[]);
    node.shell(USER, "mkdir /mnt/sealfs/13/results; echo x > /mnt/sealfs/13/results/x").unwrap();
    let find = |word: &str| node.processes().into_iter().find(|one| one.1.contains(word));
    let server = find(" serve ").unwrap().0;
    // It copies, and does not come to an end.
    node.shell(0, &format!("kill -STOP {server}")).unwrap();
    let words = ["down", "--id", "13", "--stage-out", "results:/run/project/out"];
    let mut down = node.job_command(&words).stderr(Stdio::null()).spawn().unwrap();
    let copying = loop {
        match find(" stage out ") {
            Some((pid, words)) if !words.contains("setpriv") => break pid,
            _ => thread::sleep(Duration::from_millis(10)),
        }
    };
    let fds = format!("cd /proc/{copying}/fd; readlink 0 2; stat -L -c %U:%a 0");
    let fds = node.shell(0, &fds).unwrap();
    assert!(fds.starts_with("/run/sealfs/jobs/13/stage.log\npipe:"), "{fds}");
    assert!(fds.ends_with("\nroot:600\n"), "{fds}");
    down.kill().unwrap();
    down.wait().unwrap();
    node.kill("down");
    assert!(find(" stage out ").is_some(), "nobody has ended it yet");
    assert_eq!(node.job(&["reap"]).stdout, b"13\n");
    nodes.assert_clean();
}

#[test]
fn a_program_whose_stderr_does_not_answer_keeps_no_other_job_from_ending() {
    let nodes = Nodes::new(1, "");
    let node = &nodes.all[0];
    nodes.up_well("15", &[]);
    nodes.up_well("16", &[]);
    let mut command = node.command("/bin/sh");
    command.args(["-c", "exec sleep 1000 2> /mnt/sealfs/15/errors"]);
    let mut user = command.stdout(Stdio::null()).spawn().unwrap();
    while node.shell(0, "ls /mnt/sealfs/15/errors").is_err() {
        thread::sleep(Duration::from_millis(10));
    }
    let words = node.processes();
    let server = words.iter().find(|one| one.1.contains("/sealfs-jobs/15/data")).unwrap().0;
    node.shell(0, &format!("kill -STOP {server}")).unwrap();
    // The kernel knows attributes for a second; then it would ask for them.
    thread::sleep(Duration::from_millis(1_500));
    let mut bounded = node.command("/usr/bin/timeout");
    bounded.args(["20", "/run/site/sealfs", "job", "down", "--id", "16"]);
    let output = bounded.args(["--config", "/run/site/job.toml"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    node.shell(0, &format!("kill -CONT {server}")).unwrap();
    nodes.down("15");
    user.kill().unwrap();
    user.wait().unwrap();
    nodes.assert_clean();
}

#[test]
fn logs_outlive_a_job_where_the_site_says() {
    let nodes = Nodes::new(1, "log-dir = '/run/logs'\n");
    let node = &nodes.all[0];
    nodes.up_well("17", &[]);
    assert!(node.shell(0, "ls /run/logs/*").is_err(), "processes are found by their logs");
    nodes.down("17");
    let listed = node.shell(0, "stat -c '%n %a' /run/logs/*").unwrap();
    assert_eq!(listed, "/run/logs/17.mount.log 600\n/run/logs/17.server.log 600\n");
    node.shell(0, "grep -q 'formatted' /run/logs/17.server.log; rm -r /run/logs").unwrap();
    nodes.assert_clean();
}

#[test]
fn a_node_that_never_stages_out_is_waited_for_no_longer_than_the_deadline() {
    let nodes = Nodes::new(2, "");
    nodes.up_well("12", &[]);
    let (first, last) = (&nodes.all[0], &nodes.all[1]);
    let made = "mkdir -p /mnt/sealfs/12/results/deep; cd /mnt/sealfs/12/results; echo x > x; touch -d 2001-02-03 deep";
    first.shell(USER, made).unwrap();
    let words = ["down", "--id", "12", "--stage-out", "results:/run/project/out"];
    let output = first.job(&[&words[..], &["--stage-deadline", "30"]].concat());
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("n2 never joined within"), "{}", said(&output));
    // What comes last is done for what is there.
    let time = first.shell(USER, "stat -c %y /run/project/out/deep").unwrap();
    assert!(time.starts_with("2001-02-03"), "{time}");
    nodes.all[0].assert_clean();
    // Its time begins when it does, and n1 is gone.
    let output = last.job(&[&words[..], &["--stage-deadline", "4"]].concat());
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("the time "), "it waits for no dead node: {}", said(&output));
    nodes.assert_clean();
}
