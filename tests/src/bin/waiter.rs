//! A program that will wait for a dead node: `waiter DIR OPERATION`.
//!
//! It repeats an operation in DIR, says `ready` when it has succeeded once, and ends when it fails.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().expect("DIR");
    let (dir, operation) = (Path::new(&dir), args.next().expect("OPERATION"));
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).open(dir.join("file"))?;
    file.set_len(1 << 34)?;
    let mut said = false;
    for round in 0.. {
        repeat(dir, &file, &operation, round)?;
        if !said {
            said = true;
            say("ready");
        }
    }
    Ok(())
}

fn repeat(dir: &Path, file: &File, operation: &str, round: u64) -> io::Result<()> {
    let (a, b) = (dir.join("a"), dir.join("b"));
    match operation {
        "read" => file.read_exact_at(&mut vec![0; 1 << 20], (round << 20) % (1 << 33)),
        "read-direct" => {
            let direct = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECT)
                .open(dir.join("file"))?;
            let mut room = vec![0; 3 << 12];
            let aligned = room.as_ptr().align_offset(1 << 12);
            direct.read_exact_at(&mut room[aligned..aligned + (1 << 12)], 0)
        }
        "write" => file.write_all_at(&[1; 5_000], round * 3_000),
        "write-chunks" => file.write_all_at(&[1; 5_000], (round % 64) << 20),
        "create" => File::create(&a).and_then(|_| fs::remove_file(&a)),
        "open" => File::open(dir.join("file")).map(drop),
        "stat" => match fs::metadata(&a) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        },
        "list" => fs::read_dir(dir).map(|entries| entries.flatten().for_each(drop)),
        "rename" => File::create(&a).and_then(|_| fs::rename(&a, &b)),
        "mkdir" => fs::create_dir(&a).and_then(|()| fs::remove_dir(&a)),
        "chmod" => file.set_permissions(fs::Permissions::from_mode(0o600)),
        "truncate" => file.set_len((round % 3) << 20),
        "fsync" => file.write_all_at(b"x", 0).and_then(|()| file.sync_all()),
        "lock" => {
            flock(file, FlockOperation::LockExclusive)?;
            Ok(flock(file, FlockOperation::Unlock)?)
        }
        other => panic!("there is no operation {other}"),
    }
}

#[allow(clippy::print_stdout, reason = "the test waits for it")]
fn say(word: &str) {
    println!("{word}");
}
