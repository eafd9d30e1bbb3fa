//! Generated operations on a real mount and on a local directory side by side: same answers, same errors, same trees.
//!
//! The local file system is the model. Names come from a small set, so that operations meet: renames over each other,
//! links of what was unlinked, directories that are full. At the end a second, fresh mount must show the same tree, and the
//! first one still after the death of all nodes.

use std::fs::{self, OpenOptions};
use std::io::Result;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, XattrFlags};
use sealfs_tests::cluster::Cluster;

/// One operation, on paths relative to the root.
#[derive(Debug)]
enum Operation {
    Create { path: PathBuf, exclusive: bool },
    Write { path: PathBuf, offset: u64, len: usize, seed: u64 },
    Truncate { path: PathBuf, size: u64 },
    Read { path: PathBuf, offset: u64, len: usize },
    Mkdir { path: PathBuf },
    Rmdir { path: PathBuf },
    Unlink { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, flags: RenameFlags },
    Link { from: PathBuf, to: PathBuf },
    Symlink { target: PathBuf, path: PathBuf },
    Chmod { path: PathBuf, mode: u32 },
    SetXattr { path: PathBuf, name: String, value: Vec<u8> },
    RemoveXattr { path: PathBuf, name: String },
    List { path: PathBuf },
    Stat { path: PathBuf },
}

fn path(random: &mut fastrand::Rng) -> PathBuf {
    let depth = random.usize(1..=3);
    (0..depth).map(|_| ["a", "b", "c", "d"][random.usize(..4)]).collect()
}

fn generate(random: &mut fastrand::Rng) -> Operation {
    // Offsets near the borders of blocks and chunks, and now and then far out.
    let borders = [0, 1, 4_095, 4_096, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 4_097, 3 << 20];
    let offset = borders[random.usize(..borders.len())] + random.u64(..8);
    let len = [1, 100, 4_096, 70_000, 1_500_000][random.usize(..5)];
    let path = path(random);
    match random.u32(..22) {
        0..3 => Operation::Create { path, exclusive: random.bool() },
        3..6 => Operation::Write { path, offset, len, seed: random.u64(..) },
        6 => Operation::Truncate { path, size: offset },
        7..9 => Operation::Read { path, offset, len },
        9..12 => Operation::Mkdir { path },
        12 => Operation::Rmdir { path },
        13 => Operation::Unlink { path },
        14..16 => {
            let flags = [RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE];
            Operation::Rename {
                from: path,
                to: self::path(random),
                flags: flags[random.usize(..3)],
            }
        }
        16 => Operation::Link { from: path, to: self::path(random) },
        17 => Operation::Symlink { target: self::path(random), path },
        18 => Operation::Chmod { path, mode: random.u32(..0o10000) },
        19 => {
            let name = format!("user.{}", random.u32(..3));
            if random.bool() {
                Operation::SetXattr { path, name, value: vec![random.u8(..); random.usize(..200)] }
            } else {
                Operation::RemoveXattr { path, name }
            }
        }
        20 => Operation::List { path },
        _ => Operation::Stat { path },
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

/// What can be compared of an inode: not its number, times, or the size of a directory.
fn stat(path: &Path) -> Result<String> {
    let meta = fs::symlink_metadata(path)?;
    let size = if meta.is_dir() { 0 } else { meta.len() };
    Ok(format!(
        "mode {:o} nlink {} uid {} gid {} size {size}",
        meta.mode(),
        meta.nlink(),
        meta.uid(),
        meta.gid()
    ))
}

/// Does it below `root`; the answer as text.
fn execute(root: &Path, operation: &Operation) -> Result<String> {
    let done = |()| String::new();
    match operation {
        Operation::Create { path, exclusive } => {
            let mut options = OpenOptions::new();
            options.write(true).create(true).create_new(*exclusive);
            options.open(root.join(path)).map(|_| String::new())
        }
        Operation::Write { path, offset, len, seed } => {
            let file = OpenOptions::new().write(true).open(root.join(path))?;
            file.write_all_at(&bytes(*seed, *len), *offset).map(done)
        }
        Operation::Truncate { path, size } => {
            let file = OpenOptions::new().write(true).open(root.join(path))?;
            file.set_len(*size).map(done)
        }
        Operation::Read { path, offset, len } => {
            let file = OpenOptions::new().read(true).open(root.join(path))?;
            let mut content = vec![0; *len];
            let mut filled = 0;
            while filled < *len {
                match file.read_at(&mut content[filled..], offset + filled as u64)? {
                    0 => break,
                    count => filled += count,
                }
            }
            let sum = content[..filled]
                .iter()
                .fold(7_u64, |sum, byte| sum.wrapping_mul(31) ^ u64::from(*byte));
            Ok(format!("{filled} bytes, sum {sum:x}"))
        }
        Operation::Mkdir { path } => fs::create_dir(root.join(path)).map(done),
        Operation::Rmdir { path } => fs::remove_dir(root.join(path)).map(done),
        Operation::Unlink { path } => Ok(rustix::fs::unlink(root.join(path)).map(done)?),
        Operation::Rename { from, to, flags } => {
            Ok(rustix::fs::renameat_with(CWD, root.join(from), CWD, root.join(to), *flags)
                .map(done)?)
        }
        Operation::Link { from, to } => fs::hard_link(root.join(from), root.join(to)).map(done),
        Operation::Symlink { target, path } => symlink(target, root.join(path)).map(done),
        Operation::Chmod { path, mode } => {
            // Through a symlink that may lead anywhere below the root.
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(*mode)).map(done)
        }
        Operation::SetXattr { path, name, value } => {
            Ok(rustix::fs::setxattr(root.join(path), name, value, XattrFlags::empty()).map(done)?)
        }
        Operation::RemoveXattr { path, name } => {
            Ok(rustix::fs::removexattr(root.join(path), name).map(done)?)
        }
        Operation::List { path } => {
            let mut names = Vec::new();
            for entry in fs::read_dir(root.join(path))? {
                let entry = entry?;
                names.push(format!("{:?} {:?}", entry.file_name(), entry.file_type()?));
            }
            names.sort();
            Ok(names.join(","))
        }
        Operation::Stat { path } => stat(&root.join(path)),
    }
}

/// Everything below `root`: names, attributes, contents, targets, extended attributes.
fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            let content = if kind.is_file() {
                let content = fs::read(&path).unwrap();
                let mut names = vec![0; 4_096];
                let len = rustix::fs::listxattr(&path, &mut names[..]).unwrap();
                let mut names: Vec<_> =
                    names[..len].split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
                names.sort();
                let sum =
                    content.iter().fold(7_u64, |sum, byte| sum.wrapping_mul(31) ^ u64::from(*byte));
                format!("{sum:x} {names:?}")
            } else if kind.is_symlink() {
                format!("{:?}", fs::read_link(&path).unwrap())
            } else {
                folders.push(path.clone());
                String::new()
            };
            let name = path.strip_prefix(root).unwrap().display().to_string();
            lines.push(format!("{name}: {} {content}", stat(&path).unwrap()));
        }
    }
    lines.sort();
    lines
}

fn compare(seed: u64, count: usize) {
    let mut cluster = Cluster::start(3);
    let mount = cluster.mount();
    let local = tempfile::tempdir().expect("a temporary directory");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut history = Vec::new();
    for step in 0..count {
        let operation = generate(&mut random);
        let expected = execute(local.path(), &operation).map_err(|error| error.raw_os_error());
        let found = execute(&mount, &operation).map_err(|error| error.raw_os_error());
        history.push(format!("{step}: {operation:?} -> {found:?}"));
        if found != expected {
            let recent = history[history.len().saturating_sub(25)..].join("\n");
            panic!("seed {seed}: expected {expected:?}\n{recent}");
        }
    }
    let expected = tree(local.path());
    assert_eq!(tree(&cluster.mount()), expected, "seed {seed}: another mount shows another tree");
    (0..3).for_each(|at| cluster.kill_node(at));
    (0..3).for_each(|at| cluster.start_node(at));
    assert_eq!(
        tree(&mount),
        tree(local.path()),
        "seed {seed}: the trees differ after kill -9 of all nodes"
    );
}

#[test]
fn a_mount_answers_as_a_local_file_system_does() {
    for seed in 1..=4 {
        compare(seed, 1_500);
    }
}
