//! Hard links: a file of several names is copied once, by whichever part comes first, and linked by all others.
//!
//! What is whole gets one more name, `.sealfs-stage/links/ID`. ID is a hash of the source's mount, inode, size and times: all
//! parts compute the same, and a source that changed has another one. So no part asks another one, and none waits.
//!
//! 1. What has a name there is whole, durable and compared.
//! 2. Two threads of a part do not copy the same file: they exclude each other by a lock that ID chooses. Two parts may, and
//!    the one that comes second throws its copy away.

use std::sync::{Mutex, MutexGuard, OnceLock};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode, Stat, linkat, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;

use super::copy::{Copier, Place, is_same_time, remove};
use super::manifest::{Fingerprint, fingerprint};
use super::names::{digest, hex};
use super::tree::{FOLDER, Target};
use super::trouble::Trouble;

/// The names by which links find a file.
pub(crate) struct Links {
    dir: OnceLock<OwnedFd>,
    locks: [Mutex<()>; LOCKS],
}

/// The folder in the stage's folder.
pub(crate) const LINKS_DIR: &str = "links";

impl Links {
    pub(crate) fn new() -> Self {
        Self { dir: OnceLock::new(), locks: std::array::from_fn(|_| Mutex::new(())) }
    }

    fn dir(&self, stage: &OwnedFd) -> Result<&OwnedFd, Trouble> {
        if self.dir.get().is_none() {
            let make = || {
                match mkdirat(stage, LINKS_DIR, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                openat(stage, LINKS_DIR, FOLDER, Mode::empty())
            };
            let dir = make().map_err(|errno| Trouble::Call("links cannot be kept", errno))?;
            // Another thread may have been faster; both are the same folder.
            let _ = self.dir.set(dir);
        }
        Ok(self.dir.get().expect("it was just set"))
    }

    fn lock(&self, id: &Fingerprint) -> MutexGuard<'_, ()> {
        self.locks[usize::from(id[0]) % LOCKS].lock().expect("nobody panics while he holds it")
    }

    /// Gives what lies under a temporary name to other links, or takes what another part has given; tells which file it is.
    pub(crate) fn offer(
        &self,
        stage: &OwnedFd,
        into: &Target,
        temporary: &str,
        id: &str,
    ) -> Result<Stat, Trouble> {
        let dir = self.dir(stage)?;
        let failed = |errno| Trouble::Call("cannot be linked", errno);
        match linkat(&into.fd, temporary, dir, id, AtFlags::empty()) {
            Err(Errno::EXIST) => {
                remove(into, temporary);
                linkat(dir, id, &into.fd, temporary, AtFlags::empty()).map_err(failed)?;
            }
            result => result.map_err(failed)?,
        }
        statat(dir, id, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }
}

impl Copier<'_> {
    /// An entry that has other names.
    pub(crate) fn linked(&mut self, place: &Place, stat: &Stat) -> Result<(), Trouble> {
        let source = fingerprint(stat);
        let id = digest(&[&place.dir.mount, &source]);
        let name = hex(&id);
        let shared = self.shared;
        let _alone = shared.links.lock(&id);
        let dir = shared.links.dir(&shared.stage)?;
        let found = match statat(dir, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            // Somebody has written into it through a name in DEST: it is copied anew.
            Ok(now) if !is_unchanged(stat, &now) => {
                unlinkat(dir, name.as_str(), AtFlags::empty())
                    .map_err(|errno| Trouble::Call("cannot be linked", errno))?;
                Err(Errno::NOENT)
            }
            found => found,
        };
        let whole = match found {
            Err(Errno::NOENT) => {
                self.make(place, stat, Some(name))?;
                // The others wait for the lock until it is there.
                self.settle();
                return Ok(());
            }
            Err(errno) => return Err(Trouble::Call("cannot be linked", errno)),
            Ok(whole) => whole,
        };
        if shared.is_linked(place, &name) {
            shared.tally.kept();
            return Ok(());
        }
        let into = self.target_of(place)?;
        let temporary = place.key.temporary_of(&shared.nonce);
        remove(&into, &temporary);
        linkat(dir, name.as_str(), &into.fd, temporary.as_str(), AtFlags::empty())
            .map_err(|errno| Trouble::Call("cannot be linked", errno))?;
        self.put_in_place(place, into, (&temporary, &whole), source, true, 0)?;
        self.settle_many_names();
        Ok(())
    }
}

impl super::Shared {
    /// Whether the entry's name in DEST is already one of the file's.
    fn is_linked(&self, place: &Place, id: &str) -> bool {
        let same = || {
            let dir = self.links.dir(&self.stage).ok()?;
            let wanted = statat(dir, id, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            let target = place.dir.target(&self.target).ok()?;
            let name = place.name.as_c_str();
            let now = statat(&target.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some((wanted.st_dev, wanted.st_ino) == (now.st_dev, now.st_ino))
        };
        same().unwrap_or(false)
    }
}

/// Whether what was linked is still the source, as far as size, mtime and mode tell. The group's rights and set-id bits
/// are not always kept.
fn is_unchanged(source: &Stat, target: &Stat) -> bool {
    let is_file = FileType::from_raw_mode(source.st_mode) == FileType::RegularFile;
    let is_same_mode = (source.st_mode ^ target.st_mode) & 0o707 == 0;
    !is_file || (source.st_size == target.st_size && is_same_time(source, target) && is_same_mode)
}

/// More than threads, so that different files seldom wait for each other.
const LOCKS: usize = 64;
