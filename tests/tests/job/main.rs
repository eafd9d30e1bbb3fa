//! `sealfs job` on virtual nodes: real servers and mounts, as a prologue and an epilogue run it. Needs root.
//!
//! Each test ends with the same question to every node: which processes, mounts and files are there that were not there
//! before?

mod nodes;

use std::thread;

use nodes::{Nodes, OTHER, USER, said};

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
    let outputs: Vec<_> = thread::scope(|scope| {
        let words = ["up", "--id", "5", "--hosts", "n[1-3]"];
        let running: Vec<_> =
            nodes.all[..2].iter().map(|node| scope.spawn(move || node.job(&words))).collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for output in outputs {
        assert_eq!(output.status.code(), Some(1));
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
