//! What must not be: findings of one shard, and of all shards together.
//!
//! A finding is a bug of ours or damage that the checksums did not see; the simulation demands that there are none after
//! every step, `sealfs` shows them to people.

use std::collections::{BTreeMap, BTreeSet};

use sealfs_proto::{Ino, Kind, ShardId};

use crate::State;
use crate::part::ENTRY_SIZE;
use crate::state::{Body, Directory, Inode};

/// Something that contradicts an invariant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Where.
    pub shard: ShardId,
    /// What, with the numbers of the inodes concerned.
    pub text: String,
}

/// Findings that one shard shows by itself, at any moment.
#[must_use]
pub fn check(state: &State) -> Vec<Finding> {
    let mut texts = Vec::new();
    for (ino, inode) in state.inodes() {
        check_inode(state, ino, inode, &mut texts);
    }
    for (ino, stage) in state.unlinked() {
        match state.inode(ino) {
            None => texts.push(format!("inode {ino} is {stage:?}, but there is none")),
            Some(inode) if inode.attr.nlink > 0 => {
                texts.push(format!("inode {ino} is {stage:?}, but has links"));
            }
            Some(_) => {}
        }
    }
    for (tx, prepare) in state.prepared() {
        if !state.holds.all_held(tx, &prepare.parts) {
            texts.push(format!("transaction {tx:?} is prepared, but does not hold its keys"));
        }
    }
    for (session, known) in &state.sessions.0 {
        if known.replies.keys().any(|kept| *kept < known.watermark(kept.endpoint())) {
            texts.push(format!("session {session} keeps a reply below its watermark"));
        }
    }
    texts.into_iter().map(|text| Finding { shard: state.shard(), text }).collect()
}

fn check_inode(state: &State, ino: Ino, inode: &Inode, texts: &mut Vec<String>) {
    let attr = &inode.attr;
    let mut find = |wrong: bool, text: &str| {
        if wrong {
            texts.push(format!("inode {ino} {text}"));
        }
    };
    find(attr.ino != ino, "carries another number");
    find(ino.shard() != state.shard(), "is of another shard");
    find(
        ino != Ino::ROOT && ino.number() >= state.numbers.inode,
        "has a number that was not drawn",
    );
    find(
        (attr.nlink == 0) != state.unlinked.contains_key(&ino),
        "has no links and is not unlinked, or the reverse",
    );
    match &inode.body {
        Body::Directory(directory) => {
            let subdirectories = entries(directory).filter(|(_, kind)| *kind == Kind::Directory);
            let links = 2 + subdirectories.count() as u64;
            let dead = attr.nlink == 0 && directory.is_empty();
            find(u64::from(attr.nlink) != links && !dead, "counts its subdirectories wrongly");
            find(attr.size != directory.len() as u64 * ENTRY_SIZE, "has a wrong size");
            let found = directory.behind(0).all(|(_, entry)| directory.find(&entry.name).is_some());
            find(!found, "has an entry that is not found by its name");
        }
        Body::Symlink(target) => {
            find(attr.size != target.len() as u64, "has another size than its target");
        }
        Body::File { cut } => {
            let beyond = cut.is_some_and(|cut| attr.size > cut);
            find(beyond, "has grown while its cut is pending");
        }
        Body::Special => find(attr.size != 0 || attr.blocks != 0, "is special, but has data"),
    }
}

/// Findings of a whole cluster at rest (no open transaction): entries without inode, inodes without entry, link counts,
/// kinds, parents, directories that are not below the root.
pub fn check_all<'a>(states: impl IntoIterator<Item = &'a State>) -> Vec<Finding> {
    let states: Vec<&State> = states.into_iter().collect();
    let mut findings: Vec<Finding> = states.iter().flat_map(|state| check(state)).collect();
    let inodes: BTreeMap<Ino, &Inode> = states.iter().flat_map(|state| state.inodes()).collect();
    let mut names: BTreeMap<Ino, Vec<Ino>> = BTreeMap::new();
    let mut find = |ino: Ino, text: String| {
        findings.push(Finding { shard: ino.shard(), text });
    };
    for (dir, inode) in &inodes {
        for (ino, kind) in inode.directory().into_iter().flat_map(entries) {
            names.entry(ino).or_default().push(*dir);
            match inodes.get(&ino) {
                None => find(*dir, format!("directory {dir} names inode {ino}, but there is none")),
                Some(named) if named.attr.kind != kind => {
                    find(*dir, format!("directory {dir} names inode {ino} as {kind:?}"));
                }
                Some(_) => {}
            }
        }
    }
    for (ino, inode) in &inodes {
        let dirs = names.get(ino).map_or(&[][..], Vec::as_slice);
        if let Some(text) = wrong_names(*ino, inode, dirs) {
            find(*ino, text);
        }
    }
    let parents: BTreeMap<Ino, Ino> =
        inodes.iter().filter_map(|(ino, inode)| Some((*ino, inode.directory()?.parent))).collect();
    for ino in adrift(&parents, &inodes) {
        find(ino, format!("directory {ino} is not below the root"));
    }
    findings.sort();
    findings
}

/// What is wrong with the entries of an inode: `dirs` are the directories that name it, once per entry.
fn wrong_names(ino: Ino, inode: &Inode, dirs: &[Ino]) -> Option<String> {
    let nlink = inode.attr.nlink as usize;
    match inode.directory() {
        _ if ino == Ino::ROOT => (!dirs.is_empty()).then(|| "the root has a name".into()),
        Some(_) if nlink == 0 && dirs.is_empty() => None,
        Some(directory) => (dirs != [directory.parent]).then(|| {
            let parent = directory.parent;
            format!("directory {ino} of {parent} is named by {dirs:?}")
        }),
        None => (nlink != dirs.len())
            .then(|| format!("inode {ino} has {nlink} links, but {} entries", dirs.len())),
    }
}

/// Linked directories from which the walk over the parents does not end at the root.
fn adrift(parents: &BTreeMap<Ino, Ino>, inodes: &BTreeMap<Ino, &Inode>) -> Vec<Ino> {
    let mut below_root = BTreeSet::from([Ino::ROOT]);
    let mut adrift = Vec::new();
    for start in parents.keys().filter(|ino| inodes[ino].attr.nlink > 0) {
        let mut path = BTreeSet::new();
        let mut at = *start;
        while !below_root.contains(&at) && path.insert(at) {
            at = parents.get(&at).copied().unwrap_or(at);
        }
        if below_root.contains(&at) {
            below_root.append(&mut path);
        } else {
            adrift.push(*start);
        }
    }
    adrift
}

fn entries(directory: &Directory) -> impl Iterator<Item = (Ino, Kind)> + '_ {
    directory.behind(0).map(|(_, entry)| (entry.ino, entry.kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;

    /// What is found after `damage` to shard 0 of a sound cluster with a file and two directories.
    fn found(damage: impl FnOnce(&mut State, Ino, Ino)) -> Vec<String> {
        let mut world = World::new();
        let file = world.create(Ino::ROOT, "file");
        let mut names = (0..).map(|number| format!("dir-{number}"));
        let dir = loop {
            let name = names.next().expect("they do not end");
            let dir = world.mkdir(Ino::ROOT, &name);
            if dir.shard() == Ino::ROOT.shard() {
                break dir;
            }
        };
        world.mkdir(dir, "sub");
        assert_eq!(check_all(&world.states), []);
        damage(world.state(ShardId(0)), file, dir);
        check_all(&world.states).into_iter().map(|finding| finding.text).collect()
    }

    fn directory(state: &mut State, ino: Ino) -> &mut Directory {
        match &mut state.inodes.get_mut(&ino).expect("it exists").body {
            Body::Directory(directory) => directory,
            other => panic!("{other:?}"),
        }
    }

    fn one(texts: &[String], part: &str) {
        assert!(texts.iter().any(|text| text.contains(part)), "{part}: {texts:?}");
    }

    #[test]
    fn every_kind_of_damage_is_found() {
        one(&found(|state, file, _| _ = state.inodes.remove(&file)), "but there is none");
        one(&found(|state, _, _| _ = directory(state, Ino::ROOT).remove(b"file")), "0 entries");
        one(
            &found(|state, file, _| {
                state.inodes.get_mut(&file).expect("it exists").attr.nlink = 2;
            }),
            "2 links, but 1 entries",
        );
        one(
            &found(|state, file, _| {
                directory(state, Ino::ROOT).replace(b"file", file, Kind::Fifo);
            }),
            "as Fifo",
        );
        one(
            &found(|state, _, dir| {
                directory(state, dir).parent = dir;
            }),
            "not below the root",
        );
        one(
            &found(|state, _, dir| {
                state.inodes.get_mut(&dir).expect("it exists").attr.nlink = 2;
            }),
            "counts its subdirectories wrongly",
        );
        one(
            &found(|state, file, _| _ = state.unlinked.insert(file, crate::Unlinked::Waiting)),
            "has links",
        );
        one(&found(|state, file, _| state.numbers.inode = file.number()), "not drawn");
    }
}
