//! What crosses the wire and what the machine must have: a mounted cluster over `$SEALFS_TEST_TRANSPORT`, in the VM.
//!
//! Ignored elsewhere: they take the RDMA device away. Over tcp they show the same promises, so that a failure over rdma
//! alone is one of the transport.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use sealfs_tests::cluster::{Cluster, binary, run, transport};
use sealfs_tests::suites::{FSX_LARGE, FSX_SMALL, fsx, pjdfstest};
use sealfs_tests::{named_content, pattern};

/// As little as a node can do with: what it registers is pinned, and so cleared first, under emulation.
const SMALL: [&str; 4] = ["--size", "256M", "--memory", "32M"];

fn start(count: usize) -> Cluster {
    Cluster::start_with(count, &SMALL)
}

/// Writers in `mount` until their standard input is closed.
fn writers(mount: &Path) -> Child {
    writers_to(mount, Stdio::inherit())
}

fn writers_to(mount: &Path, errors: Stdio) -> Child {
    Command::new(env!("CARGO_BIN_EXE_writers"))
        .arg(mount)
        .arg("2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .unwrap()
}

/// Waits until writers below `folder` have finished `count` more files: transfers are under way.
fn await_files(folder: &Path, count: usize) {
    let names = || -> BTreeSet<_> {
        let folders = fs::read_dir(folder).unwrap().flatten();
        let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten());
        files.flatten().map(|file| file.file_name()).filter(|name| name != "unfinished").collect()
    };
    let before = names();
    while names().difference(&before).count() < count {
        // The guest has little to run on; looking takes from those who write.
        thread::sleep(Duration::from_millis(200));
    }
}

/// Ends the writers; all that they were told is kept must be there, seen from `mount`.
fn assert_kept(mut writers: Child, mount: &Path) {
    drop(writers.stdin.take());
    let output = writers.wait_with_output().unwrap();
    assert!(output.status.success(), "a writer has failed");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().count() > 0, "nothing was written");
    for line in text.lines() {
        let (writer, name) = line.split_once(' ').unwrap();
        let content = fs::read(mount.join(format!("w{writer}")).join(name)).unwrap();
        assert!(content == named_content(name), "{line} has other bytes");
    }
}

#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn large_and_small_files_keep_their_bytes() {
    let mut cluster = start(3);
    let (a, b) = (cluster.mount(), cluster.mount());
    // Around the limits of what rides in a frame, of a chunk, and of what is in flight at once.
    for len in [0, 1, 4095, 4096, 65_535, 65_537, 1 << 20, (1 << 20) + 1, 20_000_003] {
        let content = pattern(len as u64, len);
        let name = format!("f{len}");
        fs::write(a.join(&name), &content).unwrap();
        assert!(fs::read(b.join(&name)).unwrap() == content, "{len} bytes");
    }
}

/// RDMA takes payload from arena to arena; TCP copies what comes along with a header.
#[allow(clippy::print_stdout, reason = "the VM's log shows the counters")]
#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn bulk_is_not_copied() {
    const LEN: usize = 6 << 20;
    let mut cluster = start(3);
    let (a, b) = (cluster.mount(), cluster.mount());
    let content = pattern(3, LEN);
    fs::write(a.join("file"), &content).unwrap();
    assert!(fs::read(b.join("file")).unwrap() == content);
    let nodes = |name: &str| cluster.counter(name);
    let [copied, framed, read, written] = ["copied", "framed", "rdma_read", "rdma_written"]
        .map(|way| nodes(&format!("payload_{way}")));
    let ends = [0, 1].map(|mount| {
        assert!(cluster.unmount(mount));
        let log = cluster.mount_log(mount);
        let of = |what: &str| -> u64 {
            let (before, _) = log.split_once(what).unwrap();
            before.rsplit(' ').next().unwrap().parse().unwrap()
        };
        (of(" bytes copied"), of(" bytes in frames"))
    });
    let len = LEN as u64;
    println!(
        "{len} bytes there and back over {}: nodes copied {copied}, had {framed} in frames, read {read} and wrote {written} \
         by RDMA; mounts (copied, in frames): {ends:?}",
        transport()
    );
    if transport() == "rdma" {
        assert_eq!((copied, framed, ends), (0, 0, [(0, 0); 2]));
        assert!(read >= len && written >= len, "{read} read, {written} written");
    } else {
        assert!(copied > 0 && framed >= 2 * len, "{copied} copied, {framed} in frames");
        assert!(ends.iter().all(|(_, framed)| *framed >= len), "{ends:?}");
        assert_eq!((read, written), (0, 0));
    }
}

#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn a_part_of_pjdfstest_has_no_failures() {
    let mut cluster = start(3);
    // Without those that walk a path of 4 KiB again and again: under emulation the kernel's entries are stale before the
    // path's end, and all of them are asked for at each step.
    let patterns = [
        "symlink::create",
        "link::share_metadata",
        "link::remove_link",
        "unlink::remove",
        "unlink::open_file",
        "rmdir::eexist",
        "open::permission",
    ];
    let passed = pjdfstest(&cluster.mount(), &patterns);
    assert!(passed >= 30, "{passed} passed");
}

#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn fsx_finds_nothing() {
    let mut cluster = start(3);
    let mount = cluster.mount();
    fsx(&mount, "small", FSX_SMALL, 1, 300);
    fsx(&mount, "large", FSX_LARGE, 2, 50);
}

#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn nodes_killed_during_transfers_lose_nothing() {
    let mut cluster = start(3);
    let mount = cluster.mount();
    let writers = writers(&mount);
    for at in 0..3 {
        await_files(&mount, 3);
        cluster.kill_node(at);
        cluster.start_node(at);
    }
    let other = cluster.mount();
    assert_kept(writers, &other);
}

#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn a_client_killed_during_transfers_leaves_the_others_unharmed() {
    let mut cluster = start(3);
    let (doomed, other) = (cluster.mount(), cluster.mount());
    for folder in ["doomed", "other"] {
        fs::create_dir(other.join(folder)).unwrap();
    }
    // Its last words are an error that is expected; between the tests' names they would only confuse.
    let mut dying = writers_to(&doomed.join("doomed"), Stdio::null());
    let living = writers(&other.join("other"));
    for folder in ["doomed", "other"] {
        await_files(&other.join(folder), 3);
    }
    cluster.kill_mount(0);
    assert!(!dying.wait().unwrap().success(), "its mount is gone");
    // What had its final name was closed before, and so is whole.
    for writer in fs::read_dir(other.join("doomed")).unwrap().flatten() {
        for file in fs::read_dir(writer.path()).unwrap().flatten() {
            let name = file.file_name().into_string().unwrap();
            let whole = || fs::read(file.path()).unwrap() == named_content(&name);
            assert!(name == "unfinished" || whole(), "{name} has other bytes");
        }
    }
    let again = cluster.mount();
    assert_kept(living, &again.join("other"));
}

#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn clients_over_tcp_and_over_the_transport_share_files() {
    let mut cluster = Cluster::start_with(3, &[&SMALL[..], &["--transport", "auto"]].concat());
    let mounts = [cluster.mount_with(&["--transport", "tcp"]), cluster.mount()];
    for (at, len) in [100, 70_000, 5_000_000].into_iter().enumerate() {
        for (writer, reader) in [(0, 1), (1, 0)] {
            let content = pattern((2 * at + writer) as u64, len);
            let name = format!("f{len}-{writer}");
            fs::write(mounts[writer].join(&name), &content).unwrap();
            assert!(fs::read(mounts[reader].join(&name)).unwrap() == content, "{name}");
        }
    }
    let mut logs = [0, 1].map(|at: usize| {
        OpenOptions::new().append(true).create(true).open(mounts[at].join("log")).unwrap()
    });
    for index in 0..50 {
        for (at, log) in logs.iter_mut().enumerate() {
            log.write_all(format!("{at} {index}\n").as_bytes()).unwrap();
        }
    }
    drop(logs);
    let expected: String = (0..50).map(|index| format!("0 {index}\n1 {index}\n")).collect();
    assert_eq!(fs::read_to_string(mounts[0].join("log")).unwrap(), expected);
}

#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn a_wrong_key_is_refused_and_says_so() {
    let mut cluster = start(1);
    let wrong = cluster.dir().join("wrong");
    run(Command::new(binary()).arg("key").arg(&wrong));
    let mountpoint = cluster.dir().join("nowhere");
    fs::create_dir(&mountpoint).unwrap();
    let mut mount = Command::new(binary());
    mount.args(["mount", "--timeout", "5", "--transport", &transport(), "--key"]).arg(&wrong);
    let said = refused(mount.arg(cluster.nodes_file()).arg(&mountpoint));
    assert!(said.contains("key"), "{said}");
    let mount = cluster.mount();
    fs::write(mount.join("file"), "the node serves those who have the key").unwrap();
}

#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn too_little_locked_memory_is_refused_with_advice() {
    // Over tcp nothing is locked. CAP_IPC_LOCK would lift the limit, so that root never meets it.
    if transport() == "tcp" {
        return;
    }
    let mut cluster = start(1);
    let serve = cluster.serve_command(0);
    cluster.kill_node(0);
    chown(cluster.dir(), "65534:65534");
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -l 64; exec \"$0\" \"$@\""]).arg(serve.get_program());
    let said = refused(limited.args(serve.get_args()).uid(65_534).gid(65_534));
    assert!(said.contains("memlock") || said.contains("MEMLOCK"), "{said}");
    assert!(said.contains("ulimit -l"), "{said}");
    chown(cluster.dir(), "0:0");
    cluster.start_node(0);
}

/// What nodes and mounts do when nobody says which transport: RDMA is there, but not at this address.
#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn by_default_an_address_without_a_device_is_served_over_tcp() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let local = |verb: &str| {
        let mut command = Command::new(binary());
        command.args(["local", verb, "--dir"]).arg(dir.path().join("data"));
        command
    };
    run(local("up").args(["--nodes", "1", "--size", "256M"]).arg(&mount));
    fs::write(mount.join("file"), "served").unwrap();
    let peers = peers(&mount);
    assert!(!peers.is_empty() && peers.iter().all(|peer| peer["transport"] == "tcp"), "{peers:?}");
    run(&mut local("down"));
}

#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn status_and_doctor_say_by_what_a_mount_is_connected() {
    let mut cluster = start(1);
    let mount = cluster.mount();
    fs::write(mount.join("file"), pattern(1, 1 << 20)).unwrap();
    let peers = peers(&mount);
    let open = |peer: &&serde_json::Value| peer["transport"] == transport().as_str();
    let peer = peers.iter().find(open).unwrap_or_else(|| panic!("{peers:?}"));
    if transport() == "rdma" {
        let known = |name: &str| peer[name].as_u64().unwrap_or_else(|| panic!("{name}: {peer}"));
        assert_eq!((&peer["device"], known("port")), (&"rxe0".into(), 1), "{peer}");
        assert!(known("mtu") >= 1_024 && known("rdma_bytes_sent") >= 1 << 20, "{peer}");
    }
    let mut doctor = Command::new(binary());
    doctor.args(["doctor", "--transport", &transport(), "--key"]).arg(cluster.key());
    let output = doctor.arg(cluster.nodes_file()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{said}");
    assert!(said.contains("round trip"), "{said}");
}

#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn memory_lies_in_huge_pages_that_were_set_aside() {
    const SETTING: &str = "/proc/sys/vm/nr_hugepages";
    let free = || -> u64 {
        let text = fs::read_to_string("/proc/meminfo").unwrap();
        let line = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse().unwrap()
        };
        line("HugePages_Free:") - line("HugePages_Rsvd:")
    };
    fs::write(SETTING, "40").unwrap();
    let before = free();
    assert!(before >= 20, "the guest has memory for {before}");
    let cluster = start(1);
    assert!(before - free() >= 16, "32 MiB of {before} pages: {} are free", free());
    drop(cluster);
    fs::write(SETTING, "0").unwrap();
}

/// The peers that `sealfs status MOUNTPOINT` shows.
fn peers(mount: &Path) -> Vec<serde_json::Value> {
    let output = run(Command::new(binary()).args(["status", "--json"]).arg(mount));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    status["peers"].as_array().unwrap().clone()
}

/// Programs go on while the device is replaced by another one, and while it comes back. A job of its own, for removing a device
/// takes all connections of the guest away.
#[test]
#[ignore = "runs in the VM: cargo ci vm"]
fn transfers_go_on_when_a_device_vanishes_and_when_it_comes_back() {
    let mut cluster = start(3);
    let mount = cluster.mount();
    let writers = writers(&mount);
    for (old, from, new, to) in [("rxe0", "rx0", "rxe1", "rx1"), ("rxe1", "rx1", "rxe0", "rx0")] {
        await_files(&mount, 3);
        // It ends when everyone has let go, and librdmacm lets go of a removed device when it meets another one.
        let mut removal = Command::new("rdma").args(["link", "delete", old]).spawn().unwrap();
        let replace = format!(
            "/usr/bin/ip address del 192.0.2.1/24 dev {from}; \
             /usr/bin/ip link show {to} >/dev/null 2>&1 || /usr/bin/ip link add {to} type dummy; \
             /usr/bin/ip link set {to} mtu 4500 up; /usr/bin/ip address add 192.0.2.1/24 dev {to}; \
             rdma link add {new} type rxe netdev {to}"
        );
        run(Command::new("sh").args(["-euc", &replace]));
        await_files(&mount, 3);
        assert!(removal.wait().unwrap().success(), "{old} is let go");
    }
    let other = cluster.mount();
    assert_kept(writers, &other);
}

/// Runs a command that must fail, and returns what it says.
fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{command:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Gives a cluster's files to somebody.
fn chown(dir: &Path, to: &str) {
    run(Command::new("chown").args(["-R", to]).arg(dir));
}
