//! A program that makes, writes, syncs, moves, reads and removes below a directory of its own until told to stop.
//!
//! `rounds DIR` makes DIR and goes on until its standard input ends, printing a line for every round that is done. It fails
//! with the first operation that fails, and when other bytes are read than were written.
//!
//! A process of its own for the reason that `writers` has.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

#[allow(clippy::print_stdout, reason = "its result is what it prints")]
fn main() {
    let dir = PathBuf::from(std::env::args_os().nth(1).expect("DIR"));
    fs::create_dir(&dir).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            io::stdin().read_to_end(&mut Vec::new()).expect("standard input can be read");
            stop.store(true, Ordering::Relaxed);
        });
        for round in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            one_round(&dir, round).unwrap_or_else(|error| {
                panic!("{}: round {round}: {error}", dir.display());
            });
            println!("{round}");
        }
    });
}

/// Changes on one node and over two, data of one chunk and of two.
fn one_round(dir: &Path, round: usize) -> io::Result<()> {
    let bytes: Vec<u8> = (0..1_100_000_u32).map(|at| (at as usize * 31 + round) as u8).collect();
    let (sub, name) = (dir.join(format!("d{round}")), dir.join("file"));
    fs::create_dir(&sub)?;
    let mut file = File::create(&name)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&name, sub.join("moved"))?;
    let read = fs::read(sub.join("moved"))?;
    if read != bytes {
        return Err(io::Error::other("other bytes were read than written"));
    }
    fs::remove_file(sub.join("moved"))?;
    fs::remove_dir(&sub)
}
