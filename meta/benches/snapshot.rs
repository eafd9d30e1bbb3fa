//! How long a snapshot of a shard with a directory of 200,000 files stops its core: in one pass, and its longest slice.
//!
//! `cargo bench -p sealfs-meta --bench snapshot`

use std::time::{Duration, Instant};

use sealfs_meta::snapshot::{Encoder, encode};
use sealfs_meta::{Answer, Change, Record, RootOptions, State, apply};
use sealfs_proto::{Attr, ClusterId, Ino, Kind, NodeId, Part, ShardId, Time, Who};

const FILES: u64 = 200_000;

#[allow(clippy::print_stdout, reason = "its result is what it prints")]
fn main() {
    let mut state = State::with_root(RootOptions::default(), Time::default());
    (0..FILES).for_each(|number| add(&mut state, number));
    let (cluster, node) = (ClusterId([7; 16]), NodeId(1));

    let begun = Instant::now();
    let whole = encode(cluster, node, &state, &[]);
    println!("one pass: {} bytes in {:?}", whole.len(), begun.elapsed());

    let mut times = Vec::new();
    let mut changes = Vec::new();
    let begun = Instant::now();
    let mut encoder = Encoder::begin(cluster, node, &mut state);
    times.push(begun.elapsed());
    for number in FILES.. {
        let begun = Instant::now();
        let whole = encoder.state_slice(&mut state);
        times.push(begun.elapsed());
        if whole {
            break;
        }
        let begun = Instant::now();
        (0..10).for_each(|more| add(&mut state, 10 * number + more));
        changes.push(begun.elapsed());
    }
    let begun = Instant::now();
    let sliced = encoder.finish();
    times.push(begun.elapsed());
    assert!(sliced.concat() == whole, "what came meanwhile is not in it");
    show("slices", &mut times);
    show("ten creates between slices", &mut changes);
}

#[allow(clippy::print_stdout, reason = "its result is what it prints")]
fn show(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let sum: Duration = times.iter().sum();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: {} in {sum:?}, median {median:?}, longest {longest:?}", times.len());
}

fn add(state: &mut State, number: u64) {
    let ino = Ino::new(ShardId(0), 10 + number);
    let attr = Attr {
        ino,
        kind: Kind::File,
        mode: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        chunk_size: 1 << 20,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        change: 1,
        generation: 1,
        bound: 1 << 20,
    };
    let new = Part::NewInode { attr, parent: Ino(0), target: Vec::new(), xattrs: Vec::new() };
    let (name, kind) = (format!("file-{number:09}").into_bytes(), Kind::File);
    let entry = Part::AddEntry { who: Who::root(), dir: Ino::ROOT, name, ino, kind };
    let change = Change::Parts { parts: vec![new, entry], answer: Answer::Done };
    apply(state, &Record { origin: None, now: Time::default(), change });
}
