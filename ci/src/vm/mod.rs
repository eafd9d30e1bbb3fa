//! `cargo ci vm`: what needs RDMA runs in a VM whose kernel has it, over soft-RoCE.
//!
//! A guest starts from the cached image ([`image`]) and an archive of this run: fresh binaries and `ci/vm`. Its init
//! runs a list of jobs (`ci/vm/*.jobs`), says `vm: JOB ok|FAILED (seconds)` of each on the console and how many failed as
//! its verdict ([`machine`]). Log and artefacts end up in `target/vm/out`.
//!
//! Speed in the guest means nothing: it is emulated in software, 20 to 70 times slower. Jobs assert on results and
//! counters, and have generous limits against hanging.

mod image;
mod machine;
mod relay;
mod tree;

use std::fs;
use std::io::copy;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{output, run};
use crate::stages::Outcome;
use image::Image;
use machine::{Guest, Machine};
use relay::{ENDS, Relay};
use tree::{Tree, named};

/// Integration tests that the guest gets: package and name. They lie in its `/tests`.
const TESTS: &[(&str, &str)] = &[("sealfs-rdma", "verbs"), ("sealfs-tests", "vm")];
/// Public test suites, installed by ci/test.sh.
const SUITES: &[&str] = &["pjdfstest", "fsx"];
/// Chooses jobs by name, separated by commas, while one is worked on.
const ONLY: &str = "SEALFS_VM_JOBS";
/// Of the losses on the wire between two guests.
const SEED: u64 = 1;
/// A guest has this long for all its jobs. Two of them and the image fit in the stage's budget.
const SECONDS_MAX: u32 = 480;

/// Runs all guests.
pub(crate) fn stage() -> Outcome {
    let home = target_directory()?.join("vm");
    let out = home.join("out");
    fs::create_dir_all(&out).map_err(named(&out))?;
    let image = image::image(&home.join("image"))?;
    let root = home.join("root.cpio");
    add_payload(&image, &home.join("payload"), &root)?;
    let machine = |name, only: String, addresses: &str, devices| Machine {
        name,
        kernel: &image.kernel,
        root: &root,
        out: &out,
        variables: vec![format!("only={only}"), format!("addresses={addresses}")],
        devices,
        seconds_max: SECONDS_MAX,
    };
    if let Some(only) = chosen("one")? {
        let addresses = "192.0.2.1,192.0.2.2,192.0.2.3,192.0.2.4";
        machine("one", only, addresses, Vec::new()).boot()?.wait(show)?;
    }
    if let Some(only) = chosen(ENDS[1])? {
        let relay = Relay::start(SEED)?;
        let [left, right] = [
            (ENDS[0], String::new(), "198.51.100.1", "52:54:00:00:00:01"),
            (ENDS[1], format!("meet,{only},end"), "198.51.100.2", "52:54:00:00:00:02"),
        ]
        .map(|(end, only, address, mac)| {
            machine(end, only, address, relay.devices(end, mac)).boot()
        });
        pair(left?, right?, &relay)?;
    }
    Ok(())
}

/// The names in a list of jobs that are to run, separated by commas; none: the guest is not needed.
fn chosen(list: &str) -> Result<Option<String>, String> {
    let path = scripts().join(format!("{list}.jobs"));
    let text = fs::read_to_string(&path).map_err(named(&path))?;
    Ok(names(&text, &std::env::var(ONLY).unwrap_or_default()))
}

fn names(list: &str, only: &str) -> Option<String> {
    let names: Vec<&str> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| !name.starts_with('#'))
        .filter(|name| only.is_empty() || only.split(',').any(|wanted| wanted == *name))
        .collect();
    (!names.is_empty()).then(|| names.join(","))
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vm")
}

/// Runs two guests to their ends. The right one drives; when it has failed, the left one waits in vain.
fn pair(left: Guest, right: Guest, relay: &Relay) -> Outcome {
    let left_pid = left.pid();
    let (left, right) = std::thread::scope(|scope| {
        let left = scope.spawn(|| left.wait(|_| {}));
        let right = right.wait(|line| {
            relay.obey(line);
            show(line);
        });
        if right.is_err() {
            machine::end(left_pid);
        }
        (left.join().expect("a guest's console is read to its end"), right)
    });
    let [passed, lost, cut] = relay.counts();
    println!("the wire passed {passed} frames, lost {lost}, and {cut} while it was down");
    right.and(left)
}

/// Shows what a job says of itself and its tests; everything is in the log.
fn show(line: &str) {
    if line.starts_with("vm: ") || line.starts_with("test ") {
        println!("{line}");
    }
}

/// Builds what is tested, and writes the guest's whole root: the image's archive and the one of this run.
fn add_payload(image: &Image, place: &Path, root: &Path) -> Outcome {
    let tree = Tree::new(place.to_owned())?;
    tree.copy_all(&scripts(), Path::new("vm"))?;
    tree.copy_to(&scripts().join("../rxe-setup.sh"), Path::new("vm/rxe-setup.sh"))?;
    run(Command::new("cargo").args(["build", "--release", "--quiet", "-p", "sealfs"]))?;
    let binary = target_directory()?.join("release/sealfs");
    tree.program(&binary)?;
    tree.link("usr/bin/sealfs", &binary)?;
    for (package, test) in TESTS {
        for (name, path) in executables(package, test)? {
            tree.program(&path)?;
            tree.link(&format!("tests/{name}"), &path)?;
        }
    }
    for suite in SUITES {
        let path = output(Command::new("which").arg(suite))
            .map_err(|_| format!("{suite} is not installed; ci/test.sh installs it"))?;
        tree.program(Path::new(path.trim()))?;
        tree.link(&format!("usr/bin/{suite}"), Path::new(path.trim()))?;
    }
    let fresh = place.with_extension("cpio");
    tree.pack(&fresh)?;
    let mut whole = fs::File::create(root).map_err(named(root))?;
    for part in [&image.root, &fresh] {
        let mut part_file = fs::File::open(part).map_err(named(part))?;
        copy(&mut part_file, &mut whole).map_err(named(root))?;
    }
    Ok(())
}

/// Builds a test and returns it with the programs that it uses, by name.
fn executables(package: &str, test: &str) -> Result<Vec<(String, PathBuf)>, String> {
    let args = ["test", "--no-run", "--quiet", "-p", package, "--test", test];
    let mut command = Command::new("cargo");
    let text = output(command.args(args).args(["--message-format", "json"]))?;
    let found: Vec<_> = text.lines().filter_map(executable).collect();
    if found.iter().any(|(name, _)| name == test) {
        Ok(found)
    } else {
        Err(format!("cargo built no test {test} of {package}"))
    }
}

/// Name and path of the program that a line of cargo's tells of.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let path = message["executable"].as_str()?;
    Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
}

fn target_directory() -> Result<PathBuf, String> {
    let mut command = Command::new("cargo");
    let text = output(command.args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("cargo metadata: {error}"))?;
    let path = metadata["target_directory"].as_str().ok_or("cargo metadata names no target")?;
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_chosen_by_name() {
        let list = "# NAME SECONDS COMMAND\nfirst 10 true\n\nsecond  20  false\n";
        assert_eq!(names(list, "").as_deref(), Some("first,second"));
        assert_eq!(names(list, "second,other").as_deref(), Some("second"));
        assert_eq!(names(list, "other"), None);
    }
}
