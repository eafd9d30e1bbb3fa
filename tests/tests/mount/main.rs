//! What a user sees of a mount: several mounts of one cluster, nodes that die, errors that help.

mod clients;
mod local;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::Signal;
use sealfs_tests::cluster::{Cluster, Loop, binary, run, transport};
use sealfs_tests::{named_content, pattern};

#[test]
fn a_file_survives_the_death_of_every_node() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    let content = pattern(1, 10 << 20);
    fs::create_dir_all(mount.join("a/b/c")).unwrap();
    fs::write(mount.join("a/b/c/file"), &content).unwrap();
    for at in 0..3 {
        cluster.kill_node(at);
    }
    for at in 0..3 {
        cluster.start_node(at);
    }
    assert!(fs::read(mount.join("a/b/c/file")).unwrap() == content);
    let again = cluster.mount();
    assert!(fs::read(again.join("a/b/c/file")).unwrap() == content);
    assert_eq!(fs::metadata(again.join("a/b/c/file")).unwrap().len(), content.len() as u64);
}

/// Programs that write to `mount` until [`end_writers`], in a process of their own.
fn start_writers(mount: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_writers"));
    command.arg(mount).arg("4").stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// Ends the writers, of which no operation may have failed, and checks what they wrote at a mount of its own.
fn end_writers(mut writers: Child, cluster: &mut Cluster) {
    drop(writers.stdin.take());
    let output = writers.wait_with_output().unwrap();
    assert!(output.status.success(), "a writer has failed");
    let mut written = vec![BTreeSet::new(); 4];
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let (writer, name) = line.split_once(' ').unwrap();
        written[writer.parse::<usize>().unwrap()].insert(name.to_owned());
    }
    let again = cluster.mount();
    for (writer, names) in written.iter().enumerate() {
        let dir = again.join(format!("w{writer}"));
        let found: BTreeSet<String> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(!names.is_empty(), "writer {writer} wrote nothing");
        assert_eq!(found, *names, "names of writer {writer}");
        for name in names {
            let read = fs::read(dir.join(name)).unwrap();
            assert!(read == named_content(name), "content of {writer}/{name}");
        }
    }
}

#[test]
fn everything_acknowledged_survives_kill_9_under_load() {
    let mut cluster = Cluster::start(3);
    let writers = start_writers(&cluster.mount());
    for round in 0..6 {
        thread::sleep(Duration::from_millis(700));
        let at = round % 3;
        cluster.kill_node(at);
        cluster.start_node(at);
    }
    end_writers(writers, &mut cluster);
}

#[test]
fn a_node_moves_to_another_address_and_nothing_fails() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    let writers = start_writers(&mount);
    thread::sleep(Duration::from_millis(500));
    cluster.kill_node(1);
    cluster.move_node(1);
    cluster.start_node(1);
    for at in [0, 2] {
        thread::sleep(Duration::from_millis(500));
        assert!(cluster.stop_node(at));
        cluster.start_node(at);
    }
    thread::sleep(Duration::from_millis(500));
    let status = cluster.status();
    assert_eq!(status["epoch"], 2, "{status}");
    end_writers(writers, &mut cluster);
    // Nodes reach each other, too: directories are made on all of them.
    (0..30).for_each(|number| fs::create_dir(mount.join(format!("d{number}"))).unwrap());
}

#[test]
fn operations_wait_for_a_dead_node_and_go_on_when_it_is_back() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    fs::write(mount.join("before"), "x").unwrap();
    (0..3).for_each(|at| cluster.kill_node(at));
    // Who starts nodes holds no files.
    let script = "echo && printf y > \"$0\"";
    let mut writer = Command::new("sh");
    writer.args(["-c", script]).arg(mount.join("during")).stdout(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    BufReader::new(writer.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    (0..3).for_each(|at| cluster.start_node(at));
    assert!(writer.wait().unwrap().success());
    assert_eq!(fs::read_to_string(mount.join("during")).unwrap(), "y");
}

/// Not even by who opens it for reading only, of which the kernel finds out after the open.
#[test]
fn a_program_that_runs_is_not_truncated() {
    let mut cluster = Cluster::start(1);
    let program = cluster.mount().join("sleep");
    run(Command::new("cp").arg("/usr/bin/sleep").arg(&program));
    let mut runs = Command::new(&program).arg("1000").spawn().unwrap();
    let error = open(&program, OFlags::RDONLY | OFlags::TRUNC, Mode::empty()).unwrap_err();
    assert_eq!(error, rustix::io::Errno::TXTBSY);
    run(Command::new("cmp").arg("/usr/bin/sleep").arg(&program));
    assert!(runs.try_wait().unwrap().is_none());
    runs.kill().unwrap();
    runs.wait().unwrap();
}

#[test]
fn after_the_timeout_a_dead_node_is_eio_and_the_log_names_it() {
    let mut cluster = Cluster::start(1);
    let mount = cluster.mount_with(&["--timeout", "2"]);
    cluster.kill_node(0);
    let error = fs::read_dir(&mount).and_then(|_| fs::write(mount.join("x"), "x")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert!(cluster.logs().contains("node 1"), "{}", cluster.logs());
    cluster.start_node(0);
    fs::write(mount.join("x"), "x").unwrap();
}

#[test]
fn large_directories_long_names_and_deep_paths() {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    let dir = mount.join("many");
    fs::create_dir(&dir).unwrap();
    for index in 0..20_000 {
        File::create(dir.join(format!("f{index}"))).unwrap();
    }
    let names: BTreeSet<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 20_000);
    let long = "n".repeat(255);
    fs::write(mount.join(&long), "long").unwrap();
    assert_eq!(fs::read_to_string(mount.join(&long)).unwrap(), "long");
    let error = fs::write(mount.join("n".repeat(256)), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(36));
    let mut deep = mount.clone();
    for _ in 0..15 {
        deep.push(&long);
        let _ = fs::remove_file(&deep);
        fs::create_dir(&deep).unwrap();
    }
    fs::write(deep.join("leaf"), "deep").unwrap();
    assert_eq!(fs::read_to_string(deep.join("leaf")).unwrap(), "deep");
}

#[test]
fn status_names_what_cannot_be_reached() {
    let mut cluster = Cluster::start(3);
    let status = cluster.status();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3);
    assert!(
        status["nodes"].as_array().unwrap().iter().all(|node| node["reachable"] == true),
        "{status}"
    );
    cluster.kill_node(1);
    let output = cluster.status_command().output().unwrap();
    assert!(!output.status.success());
    let status = cluster.status();
    assert_eq!(status["nodes"][1]["reachable"], false);
    assert!(status["nodes"][1]["error"].as_str().unwrap().contains("refused"), "{status}");
}

#[test]
fn set_id_bits_go_whatever_way_another_than_root_changes_the_content() {
    const CHANGES: &str = "
import ctypes, os
os.setgroups([]); os.setgid(65534); os.setuid(65534)
libc = ctypes.CDLL(None, use_errno=True)
source = os.open('source', os.O_RDWR | os.O_CREAT); os.write(source, b'x' * 8192)
fallocate = lambda mode: lambda fd: libc.fallocate(fd, mode, ctypes.c_long(4096), ctypes.c_long(8192))
changes = {'write': lambda fd: os.write(fd, b'x'), 'truncate': lambda fd: os.ftruncate(fd, 5),
           'copy': lambda fd: os.copy_file_range(source, fd, 4096, 0, 0),
           'allocate': fallocate(0), 'keep': fallocate(1), 'punch': fallocate(3), 'zero': fallocate(16)}
for name, change in changes.items():
    fd = os.open(name, os.O_RDWR | os.O_CREAT); os.write(fd, b'y' * 8192); os.chmod(name, 0o6777)
    assert os.stat(name).st_mode & 0o6000 == 0o6000
    assert change(fd) != -1, name
    assert os.stat(name).st_mode & 0o6000 == 0, (name, oct(os.stat(name).st_mode))
";
    let mut cluster = Cluster::start(2);
    let mount = cluster.mount();
    fs::set_permissions(&mount, PermissionsExt::from_mode(0o777)).unwrap();
    run(Command::new("python3").args(["-c", CHANGES]).current_dir(&mount));
}

#[test]
fn a_cluster_for_one_user_is_closed_to_others() {
    let mut cluster = Cluster::start_with(2, &["--only-uid", "65534"]);
    let mount = cluster.mount();
    fs::set_permissions(&mount, PermissionsExt::from_mode(0o777)).unwrap();
    fs::write(mount.join("of root"), b"open to all").unwrap();
    let at_once = |uid: &str, script: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", uid, "--regid", uid, "--clear-groups", "sh", "-c", script]);
        command.current_dir(&mount).output().unwrap()
    };
    let output = at_once("65534", "cat 'of root' && mkdir mine && echo text > mine/file");
    assert!(output.status.success(), "{output:?}");
    for script in ["cat 'of root'", "ls", "mkdir theirs", "cat mine/file", "rm -r mine"] {
        let output = at_once("65533", script);
        assert!(!output.status.success(), "{script}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("Permission denied"), "{script}: {said}");
    }
    assert_eq!(fs::read(mount.join("mine/file")).unwrap(), b"text\n");
}

/// A node that hangs does not even say no; the first of the list is the one that is asked first.
#[test]
fn a_node_that_hangs_is_the_only_one_that_is_missed_and_keeps_nobody_from_mounting() {
    let mut cluster = Cluster::start(3);
    cluster.signal_node(0, Signal::STOP);
    let status = cluster.status();
    let nodes = status["nodes"].as_array().unwrap();
    let reachable: Vec<_> = nodes.iter().map(|node| node["reachable"].as_bool().unwrap()).collect();
    assert_eq!(reachable, [false, true, true], "{status}");
    // Of what it holds the root is no part.
    let mount = cluster.mount_with(&["--timeout", "3"]);
    assert!(fs::metadata(&mount).unwrap().is_dir());
    cluster.signal_node(0, Signal::CONT);
}

/// The peers that `sealfs status MOUNTPOINT` shows.
fn status_of(mount: &Path) -> serde_json::Value {
    let mut command = Command::new(binary());
    let output = run(command.args(["status", "--json"]).arg(mount));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn peers_of(mount: &Path) -> Vec<serde_json::Value> {
    let status = status_of(mount);
    assert_eq!(status["transport"], transport(), "{status}");
    assert_eq!((&status["poll"], &status["memory"]), (&"adaptive".into(), &(256 << 20).into()));
    status["peers"].as_array().unwrap().clone()
}

fn sum(peers: &[serde_json::Value], name: &str) -> u64 {
    peers.iter().map(|peer| peer[name].as_u64().unwrap()).sum()
}

#[test]
fn status_tells_by_what_a_mount_and_nodes_are_connected_and_goes_on_counting_over_reconnects() {
    const LEN: u64 = 3 << 20;
    let mut cluster = Cluster::start(2);
    let mount = cluster.mount();
    fs::write(mount.join("file"), vec![7; LEN as usize]).unwrap();
    let (carries, other) = match transport().as_str() {
        "rdma" => ("rdma_bytes_sent", "frame_bytes_sent"),
        _ => ("frame_bytes_sent", "rdma_bytes_sent"),
    };
    let before = peers_of(&mount);
    assert_eq!(before.len(), 2);
    for peer in &before {
        assert_eq!((&peer["connected"], &peer["peer"]), (&true.into(), &"node".into()), "{peer}");
        assert_eq!(
            (peer["transport"].as_str(), peer["reconnects"].as_u64()),
            (Some(&*transport()), Some(0))
        );
        assert_eq!(transport() == "rdma", peer["device"].is_string(), "{peer}");
    }
    assert!(sum(&before, carries) >= LEN && sum(&before, other) < LEN, "{before:?}");
    let payload = &status_of(&mount)["payload"];
    let moved = |name: &str| payload[name].as_u64().unwrap();
    assert_eq!(moved("payload_framed") >= LEN, transport() != "rdma", "{payload}");
    // Small writes are copied, once.
    assert!(moved("payload_copied") < LEN, "{payload}");

    cluster.kill_node(0);
    cluster.start_node(0);
    assert_eq!(fs::read(mount.join("file")).unwrap().len() as u64, LEN);
    fs::write(mount.join("file"), vec![8; LEN as usize]).unwrap();
    (0..20).for_each(|number| fs::write(mount.join(format!("f{number}")), "x").unwrap());
    let after = peers_of(&mount);
    assert_eq!(sum(&after, "reconnects"), 1, "{after:?}");
    assert!(sum(&after, "failures") >= 1 && sum(&after, carries) >= 2 * LEN, "{after:?}");

    let status = cluster.status();
    for node in status["nodes"].as_array().unwrap() {
        let peers = node["peers"].as_array().unwrap();
        let clients: Vec<_> = peers.iter().filter(|peer| peer["peer"] == "client").collect();
        let [client] = &clients[..] else { panic!("the mount alone, not who asks: {peers:?}") };
        assert_eq!(
            (&client["transport"], &client["accepted"]),
            (&transport().into(), &true.into())
        );
        assert!(peers.iter().any(|peer| peer["peer"] == "node"), "{peers:?}");
    }

    fs::set_permissions(mount.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut nobody = Command::new(binary());
    let said = refused(nobody.arg("status").arg(&mount).uid(65_534).gid(65_534));
    assert_says(&said, &["ask as root"]);
    let said = refused(Command::new(binary()).arg("status").arg(mount.parent().unwrap()));
    assert_says(&said, &["no sealfs is mounted at", "/proc/mounts"]);
}

/// Runs a command that must fail, and returns what it says.
fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{command:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(
            text.to_lowercase().contains(&word.to_lowercase()),
            "{word:?} is missing in: {text}"
        );
    }
}

#[test]
fn errors_say_what_why_and_what_to_do() {
    let mut cluster = Cluster::start(2);
    let mountpoint = cluster.dir().join("nowhere");
    fs::create_dir(&mountpoint).unwrap();
    let mount = |key: &Path, nodes: &str| {
        let mut command = Command::new(binary());
        command
            .args(["mount", "--transport", "tcp", "--timeout", "3", "--key"])
            .arg(key)
            .arg(nodes)
            .arg(&mountpoint);
        command
    };
    // A wrong address.
    let closed =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    assert_says(&refused(&mut mount(&cluster.key(), &closed)), &[&closed, "refused"]);
    // A wrong key.
    let wrong = cluster.dir().join("wrong");
    run(Command::new(binary()).arg("key").arg(&wrong));
    assert_says(&refused(&mut mount(&wrong, cluster.address(0))), &["key"]);
    // A missing key.
    assert_says(
        &refused(&mut mount(Path::new("/nonexistent"), cluster.address(0))),
        &["/nonexistent"],
    );
    // A data directory in use, then a port in use.
    assert_says(&refused(&mut cluster.serve_command(0)), &["in use"]);
    let mut other = cluster.serve_command(1);
    other.args(["--log", "info"]);
    // A data directory of another node.
    assert!(cluster.stop_node(1));
    let mut foreign = Command::new(binary());
    foreign
        .args(["serve", "--listen", cluster.address(1), "--id", "2", "--nodes"])
        .arg(cluster.nodes_file());
    foreign.arg("--key").arg(&wrong).arg("--data").arg(cluster.data(1));
    assert_says(&refused(&mut foreign), &["cluster"]);
    // An unknown field of the configuration.
    let config = cluster.dir().join("config.toml");
    fs::write(&config, "data = \"/x\"\nlisten_on = \"y\"\n").unwrap();
    let mut unknown = Command::new(binary());
    assert_says(
        &refused(unknown.args(["serve", "--config"]).arg(&config)),
        &["listen_on", "config.toml"],
    );
    cluster.start_node(1);
}

/// Whoever asks for RDMA does not get TCP, though the nodes would answer.
#[test]
fn rdma_that_is_asked_for_and_missing_ends_the_start_and_says_what_is_missing() {
    let cluster = Cluster::start(1);
    let mountpoint = cluster.dir().join("nowhere");
    fs::create_dir(&mountpoint).unwrap();
    let no_device = fs::read_dir("/sys/class/infiniband").map_or(0, Iterator::count) == 0;
    let mut mount = Command::new(binary());
    mount.args(["mount", "--transport", "rdma", "--key"]).arg(cluster.key());
    // Where there is RDMA, a device that is not there is asked for.
    mount.args((!no_device).then_some("--rdma-device=none0"));
    let said = refused(mount.arg(cluster.address(0)).arg(&mountpoint));
    let missing = ["no RDMA device", "modprobe ib_uverbs", "install rdma-core"];
    assert!(missing.iter().any(|missing| said.contains(missing)), "{said}");
    assert_says(&said, &["transport rdma", "--transport tcp", "sealfs doctor --transport rdma"]);

    let mut doctor = Command::new(binary());
    doctor.args(["doctor", "--json", "--transport", "rdma"]);
    let output = doctor.args((!no_device).then_some("--rdma-device=none0")).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["verdict"], "unusable", "{told}");
    let findings = told["findings"].as_array().unwrap();
    let device = findings.iter().find(|finding| finding["what"] == "rdma device").unwrap();
    assert_eq!((&device["verdict"], device["next"] != ""), (&"unusable".into(), true), "{told}");
    assert!(!fs::read_to_string("/proc/mounts").unwrap().contains(mountpoint.to_str().unwrap()));
}

#[test]
fn bad_bytes_on_the_port_close_that_connection_only() {
    let mut cluster = Cluster::start(1);
    let mount = cluster.mount();
    for seed in 0..50 {
        let mut stream = std::net::TcpStream::connect(cluster.address(0)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.write_all(&pattern(seed, 1 << (seed % 17)));
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    fs::write(mount.join("alive"), "yes").unwrap();
    assert_eq!(fs::read_to_string(mount.join("alive")).unwrap(), "yes");
}

#[test]
fn a_full_volume_is_enospc_and_loses_nothing() {
    let mut cluster = Cluster::start_with(1, &["--size", "256M"]);
    let mount = cluster.mount();
    fs::write(mount.join("kept"), pattern(1, 1 << 20)).unwrap();
    let mut filler = File::create(mount.join("filler")).unwrap();
    let block = pattern(2, 1 << 20);
    let error =
        (0..512).find_map(|_| filler.write_all(&block).err()).expect("256 MiB are not enough");
    assert_eq!(error.raw_os_error(), Some(28), "{error}");
    assert!(fs::read(mount.join("kept")).unwrap() == pattern(1, 1 << 20));
    drop(filler);
    fs::remove_file(mount.join("filler")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::write(mount.join("again"), &block).is_err() {
        assert!(Instant::now() < deadline, "the space never comes back");
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn unmounting_ends_the_client_cleanly_and_nodes_stop_on_sigterm() {
    let mut cluster = Cluster::start(2);
    let mount = cluster.mount();
    fs::write(mount.join("file"), pattern(3, 100_000)).unwrap();
    let sessions = |cluster: &Cluster| {
        let status = cluster.status();
        [0, 1].map(|at| status["nodes"][at]["sessions"].as_u64().unwrap())
    };
    let other = cluster.mount();
    // A mount has a session with each node that it has asked something: space is asked of all.
    run(Command::new("df").args([&mount, &other]));
    assert_eq!(sessions(&cluster), [2, 2], "two mounts, and not who asks");
    assert!(cluster.unmount(0));
    assert_eq!(sessions(&cluster), [1, 1]);
    assert!(cluster.unmount(1));
    assert_eq!(sessions(&cluster), [0, 0]);
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 0, "nothing is mounted any more");
    assert!(cluster.stop_node(0) && cluster.stop_node(1));
    cluster.start_node(0);
    cluster.start_node(1);
    let again = cluster.mount();
    assert!(fs::read(again.join("file")).unwrap() == pattern(3, 100_000));
}

#[test]
fn a_mount_whose_client_was_killed_is_cleaned_up_by_the_next_mount() {
    let mut cluster = Cluster::start(1);
    let mount = cluster.mount();
    fs::write(mount.join("file"), "x").unwrap();
    cluster.kill_mount(0);
    assert!(fs::metadata(mount.join("file")).is_err());
    let mut again = Command::new(binary());
    again
        .args(["mount", "--transport", "tcp", "--key"])
        .arg(cluster.key())
        .arg(cluster.nodes_file())
        .arg(&mount);
    run(&mut again);
    assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), "x");
    run(Command::new(binary()).arg("umount").arg(&mount));
}

#[test]
fn a_listing_under_change_shows_what_stays_exactly_once() {
    let mut cluster = Cluster::start(3);
    let (a, b) = (cluster.mount(), cluster.mount());
    for index in 0..2_000 {
        File::create(a.join(format!("stays{index}"))).unwrap();
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for index in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let name = b.join(format!("comes{}", index % 50));
                if fs::remove_file(&name).is_err() {
                    File::create(&name).unwrap();
                }
            }
        });
        for _ in 0..10 {
            let names = fs::read_dir(&a)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut stays: Vec<String> = names.filter(|name| name.starts_with("stays")).collect();
            assert_eq!(stays.len(), 2_000);
            stays.sort();
            stays.dedup();
            assert_eq!(stays.len(), 2_000, "no name comes twice");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_flipped_bit_on_the_device_is_eio() {
    let mut cluster = Cluster::start_with(1, &["--size", "256M"]);
    let mount = cluster.mount();
    let content = pattern(4, 64 << 10);
    fs::write(mount.join("file"), &content).unwrap();
    assert!(cluster.unmount(0) && cluster.stop_node(0));
    let volume =
        OpenOptions::new().read(true).write(true).open(cluster.data(0).join("volume")).unwrap();
    let mut block = vec![0; 4_096];
    // The sixth block of the file, wherever it lies.
    let wanted = &content[5 * 4_096..6 * 4_096];
    let blocks = volume.metadata().unwrap().len() / 4_096;
    let at = (0..blocks).map(|number| number * 4_096).find(|&offset| {
        volume.read_exact_at(&mut block, offset).unwrap();
        block == wanted
    });
    let at = at.expect("the block is in the volume");
    volume.write_all_at(&[wanted[100] ^ 1], at + 100).unwrap();
    cluster.start_node(0);
    let again = cluster.mount();
    let file = File::open(again.join("file")).unwrap();
    let error = fs::read(again.join("file")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    file.read_exact_at(&mut block, 0).unwrap();
    assert!(block == content[..4_096], "blocks that are not damaged are still read");
    assert!(cluster.logs().contains("checksum"), "{}", cluster.logs());
}

/// Writes files to `mount`, some small and one large, and returns what was written.
fn fill(mount: &Path, seed: u64) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> =
        (0..100).map(|n| (format!("s{seed}-{n}"), pattern(seed + n, 100 * n as usize))).collect();
    files.push((format!("l{seed}"), pattern(seed, 20 << 20)));
    for (name, content) in &files {
        fs::write(mount.join(name), content).unwrap();
    }
    files
}

fn compare(mount: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        assert!(fs::read(mount.join(name)).unwrap() == *content, "content of {name}");
    }
    assert_eq!(fs::read_dir(mount).unwrap().count(), files.len());
}

#[test]
fn nodes_on_block_devices_keep_everything_through_kill_9_stop_other_cores_and_a_move() {
    let mut cluster = Cluster::start_on_devices(3, 2 << 30, &[]);
    let mount = cluster.mount();
    let mut files = fill(&mount, 1);
    for at in 0..3 {
        cluster.kill_node(at);
    }
    for at in 0..3 {
        cluster.start_node(at);
    }
    compare(&mount, &files);
    files.extend(fill(&mount, 1_000));
    // Whoever starts another process on a device in use is told so.
    let mut second = Command::new(binary());
    second.args(["serve", "--listen", "127.0.0.1:0", "--id", "1", "--data"]).arg(cluster.data(0));
    second.arg("--nodes").arg(cluster.nodes_file()).arg("--key").arg(cluster.key());
    let error = refused(&mut second);
    assert!(error.contains("is in use"), "{error}");
    // In order, and then with one core each: every shard goes through a snapshot.
    for at in 0..3 {
        assert!(cluster.stop_node(at));
    }
    cluster.add_settings(&["--cores", "0"]);
    for at in 0..3 {
        cluster.start_node(at);
    }
    compare(&mount, &files);
    files.extend(fill(&mount, 2_000));
    // A copy of a device is refused until it is adopted.
    assert!(cluster.unmount(0) && cluster.stop_node(2));
    let copy = cluster.dir().join("copy");
    run(Command::new("cp").arg("--sparse=always").arg(cluster.dir().join("device3")).arg(&copy));
    cluster.set_device(2, Loop::of(&copy, 0));
    let error = refused(&mut cluster.serve_command(2));
    assert!(error.contains("--adopt"), "{error}");
    cluster.add_settings(&["--adopt"]);
    cluster.start_node(2);
    let again = cluster.mount();
    compare(&again, &files);
    let status = cluster.status_command().output().unwrap();
    assert!(status.status.success(), "{status:?}");
}

#[test]
fn a_device_that_holds_something_is_refused_and_left_alone_until_it_is_emptied() {
    let cluster = Cluster::start_with(1, &["--size", "256M"]);
    let file = cluster.dir().join("foreign");
    let device = Loop::of(&file, 512 << 20);
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(device.path()));
    let serve = || {
        let mut command = Command::new(binary());
        command.args(["serve", "--listen", "127.0.0.1:0", "--id", "1", "--cores", "0", "--data"]);
        command.arg(device.path()).arg("--nodes").arg(cluster.nodes_file());
        command.arg("--key").arg(cluster.key());
        command
    };
    let mountpoint = cluster.dir().join("ext4");
    fs::create_dir(&mountpoint).unwrap();
    run(Command::new("mount").arg(device.path()).arg(&mountpoint));
    let mounted = refused(&mut serve());
    run(Command::new("umount").arg(&mountpoint));
    assert!(mounted.contains(&format!("mounted at {}", mountpoint.display())), "{mounted}");
    let before = fs::read(&file).unwrap();
    let error = refused(&mut serve());
    assert!(error.contains("ext4 file system"), "{error}");
    run(Command::new("sync").arg("-f").arg(&file));
    assert!(fs::read(&file).unwrap() == before, "a refused device is untouched");
    // The next step that the error names is one.
    let next = error.split('`').nth(1).expect("the error names a command");
    run(Command::new("sh").arg("-c").arg(next));
    let mut node = serve().stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(node.stdout.take().unwrap()).read_line(&mut line).unwrap();
    node.kill().unwrap();
    node.wait().unwrap();
    assert!(line.contains("is ready"), "{line}");
}
