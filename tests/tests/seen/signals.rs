//! Signals that come at a bad moment: while nobody takes the log, while a node starts, to a mount that has nothing to reload.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sealfs_tests::cluster::Cluster;

use crate::scrape::await_some;

/// How it ends, within half a minute; one that does not is killed.
fn end(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it does not end: {:?}", child.wait());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program that is killed at the latest when the test ends; what it traces goes on or ends by itself.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn tell(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A pipe that takes no more, and the end of it that a program can have.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    // Opened anew, so that only this description of it does not wait.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut filling =
        File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    loop {
        match filling.write(&[b'x'; 4_096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (reader, writer),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_log_that_nobody_takes_keeps_no_node_from_ending() {
    let mut cluster = Cluster::start_with(1, &["--size", "512M"]);
    assert!(cluster.stop_node(0));
    let (_reader, writer) = full_pipe();
    let mut command = cluster.serve_command(0);
    command.env("SEALFS_LOG", "debug").stdout(Stdio::piped()).stderr(Stdio::from(writer));
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("is ready"), "{line}");
    tell(&child, Signal::TERM);
    let status = end(&mut child);
    assert_eq!(status.code(), Some(0), "{status:?}");
    // It has ended in order.
    cluster.start_node(0);
}

#[test]
fn a_node_that_still_starts_ends_when_it_is_asked_to() {
    let mut cluster = Cluster::start_with(1, &["--size", "512M"]);
    assert!(cluster.stop_node(0));
    // It gets no further than to the lock on its data, for ten minutes.
    let serve = cluster.serve_command(0);
    let mut command = Command::new("strace");
    let trace = cluster.dir().join("trace");
    command.args(["-f", "-qq", "-e", "trace=flock,exit_group", "-o"]).arg(&trace);
    command.args(["-e", "inject=flock:delay_enter=600000000"]);
    command.arg(serve.get_program()).args(serve.get_args());
    let tracer = Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let children = format!("/proc/{0}/task/{0}/children", tracer.0.id());
    let node = await_some("the node takes signals", || {
        let pid: i32 = fs::read_to_string(&children).ok()?.split(' ').next()?.parse().ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        let is_caught = u64::from_str_radix(caught.trim(), 16).ok()? >> (15 - 1) & 1 == 1;
        is_caught.then_some(pid)
    });
    kill_process(Pid::from_raw(node).unwrap(), Signal::TERM).unwrap();
    await_some("the node ends", || {
        fs::read_to_string(&trace).ok().filter(|trace| trace.contains("exit_group(0)"))
    });
    drop(tracer);
    cluster.start_node(0);
}

#[test]
fn a_mount_that_is_told_to_reload_stays() {
    let mut cluster = Cluster::start_with(1, &["--size", "512M"]);
    let mount = cluster.mount();
    fs::write(mount.join("file"), "x").unwrap();
    let pid = await_some("the mount's process is found", || {
        let name = mount.to_str()?;
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let words = fs::read(entry.path().join("cmdline")).ok()?;
            let is_it = words.split(|byte| *byte == 0).any(|word| word == name.as_bytes());
            entry.file_name().to_str()?.parse::<i32>().ok().filter(|_| is_it)
        })
    });
    kill_process(Pid::from_raw(pid).unwrap(), Signal::HUP).unwrap();
    // A second signal is taken after the first one: when it has had its effect, so has that.
    for number in 0..20 {
        fs::write(mount.join(format!("f{number}")), "y").unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), "x");
}
