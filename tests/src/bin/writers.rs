//! Writers that go on until told to stop, each in a directory of its own, and whose every operation must succeed.
//!
//! `writers DIR COUNT` writes until its standard input ends, then prints `WRITER NAME` for every file that must be there.
//!
//! A process of its own, because a test that starts nodes must not write: a child is born with its parent's open files,
//! and closing them before it becomes the node (flush) would wait for that very node.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use sealfs_tests::named_content;

#[allow(clippy::print_stdout, reason = "its result is what it prints")]
fn main() {
    let mut args = std::env::args_os().skip(1);
    let dir = PathBuf::from(args.next().expect("DIR"));
    let count: u64 =
        args.next().and_then(|count| count.to_str()?.parse().ok()).expect("COUNT is a number");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..count)
            .map(|writer| {
                let (stop, dir) = (&stop, dir.join(format!("w{writer}")));
                scope.spawn(move || write_until(stop, &dir, writer))
            })
            .collect();
        io::stdin().read_to_end(&mut Vec::new()).expect("standard input can be read");
        stop.store(true, Ordering::Relaxed);
        for (number, writer) in writers.into_iter().enumerate() {
            for name in writer.join().expect("no operation fails") {
                println!("{number} {name}");
            }
        }
    });
}

/// Makes files until told to stop. Returns the names that must be there.
fn write_until(stop: &AtomicBool, dir: &Path, writer: u64) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(writer);
    let mut names = Vec::new();
    fs::create_dir(dir).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let (unfinished, name) = (dir.join("unfinished"), random.u64(..1 << 40).to_string());
        fs::write(&unfinished, named_content(&name)).unwrap();
        fs::rename(&unfinished, dir.join(&name)).unwrap();
        names.push(name);
        if names.len().is_multiple_of(5) {
            fs::remove_file(dir.join(names.swap_remove(random.usize(..names.len())))).unwrap();
        }
    }
    names
}
