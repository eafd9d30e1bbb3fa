//! Hard links: a file of several names is copied once, by whichever part comes first, and linked by all others.
//!
//! What is whole gets one more name, `.sealfs-stage/links/ID`. ID is a hash of the source's mount, inode, size and times: all
//! parts compute the same, and a source that changed has another one. So no part asks another one, and none waits.
//!
//! 1. What gets a name there is whole, durable and compared. Somebody may write into it later, through its name in DEST, and
//!    a source may change within a tick of its clock. So one whose ctime is not newer than the run is compared once more; then
//!    its ctime is new, which tells all others.
//! 2. Two threads of a part do not copy the same file: one says that it is [`Links::begin`]ing it, and the others put it off
//!    until they have settled what they have begun themselves, so that nobody waits for one who waits. Two parts may copy
//!    the same file, and the one that comes second throws its copy away.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, OnceLock};

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, chmodat, linkat, mkdirat, openat, readlinkat, statat,
    unlinkat,
};
use rustix::io::Errno;

use super::copy::{Copier, Place, is_same_time, remove, size};
use super::data::is_equal;
use super::manifest::{Fingerprint, fingerprint};
use super::names::hex;
use super::source::{look, open_file};
use super::tree::{FOLDER, Target};
use super::trouble::Trouble;

/// The names by which links find a file.
pub(crate) struct Links {
    dir: OnceLock<OwnedFd>,
    /// What threads of this part copy at the moment.
    begun: Mutex<BTreeSet<Fingerprint>>,
    ended: Condvar,
}

/// The folder in the stage's folder.
pub(crate) const LINKS_DIR: &str = "links";

impl Links {
    pub(crate) fn new() -> Self {
        Self { dir: OnceLock::new(), begun: Mutex::default(), ended: Condvar::new() }
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

    /// Takes a file for this thread, unless another one has it. With `waits` only then, when that has ended it.
    fn begin(&self, id: Fingerprint, waits: bool) -> bool {
        let mut begun = self.begun.lock().expect(NO_PANIC);
        while waits && begun.contains(&id) {
            begun = self.ended.wait(begun).expect(NO_PANIC);
        }
        begun.insert(id)
    }

    /// It is there, or has failed.
    pub(crate) fn end(&self, id: &Fingerprint) {
        self.begun.lock().expect(NO_PANIC).remove(id);
        self.ended.notify_all();
    }

    /// Gives what lies under a temporary name to other links, or takes what another part has given; tells which file it is.
    pub(crate) fn offer(
        &self,
        stage: &OwnedFd,
        into: &Target,
        temporary: &str,
        id: &Fingerprint,
    ) -> Result<Stat, Trouble> {
        let (dir, id) = (self.dir(stage)?, hex(id));
        let failed = |errno| Trouble::Call("cannot be linked", errno);
        match linkat(&into.fd, temporary, dir, id.as_str(), AtFlags::empty()) {
            Err(Errno::EXIST) => {
                remove(into, temporary);
                linkat(dir, id.as_str(), &into.fd, temporary, AtFlags::empty()).map_err(failed)?;
            }
            result => result.map_err(failed)?,
        }
        statat(dir, id, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }
}

impl Copier<'_> {
    /// An entry that has other names.
    pub(crate) fn linked(&mut self, place: &Place, stat: &Stat) -> Result<(), Trouble> {
        let id = fingerprint(&place.dir.mount, stat);
        if !self.shared.links.begin(id, !self.has_begun_links()) {
            self.put_off(place.clone());
            return Ok(());
        }
        let is_begun = self.link_or_make(place, stat, id);
        if !matches!(is_begun, Ok(true)) {
            self.shared.links.end(&id);
        }
        is_begun.map(|_| ())
    }

    /// Whether the file is being copied now: its end comes with the group's.
    fn link_or_make(
        &mut self,
        place: &Place,
        stat: &Stat,
        id: Fingerprint,
    ) -> Result<bool, Trouble> {
        let (shared, name) = (self.shared, hex(&id));
        let dir = shared.links.dir(&shared.stage)?;
        let failed = |errno| Trouble::Call("cannot be linked", errno);
        let whole = match look_up(dir, &name).map_err(failed)? {
            Some(now) if self.is_still(place, stat, (dir, &name, &now))? => now,
            found => {
                if found.is_some() {
                    unlinkat(dir, name.as_str(), AtFlags::empty()).map_err(failed)?;
                }
                return self.make(place, stat, Some(id));
            }
        };
        if is_at(&shared.target, place, &whole) {
            shared.tally.kept();
            return Ok(false);
        }
        let into = self.target_of(place)?;
        let temporary = place.key.temporary_of(&shared.nonce);
        remove(&into, &temporary);
        linkat(dir, name.as_str(), &into.fd, temporary.as_str(), AtFlags::empty())
            .map_err(failed)?;
        self.put_in_place(place, into, (&temporary, &whole), None, 0)?;
        self.settle_many_names();
        Ok(false)
    }

    /// Whether what has a name for links is what the source is now.
    fn is_still(
        &mut self,
        place: &Place,
        stat: &Stat,
        (dir, name, now): (&OwnedFd, &str, &Stat),
    ) -> Result<bool, Trouble> {
        let failed = |errno| Trouble::Call("cannot be compared", errno);
        let kind = FileType::from_raw_mode(stat.st_mode);
        // The group's rights and set-id bits are not always kept.
        let is_same_mode = (stat.st_mode ^ now.st_mode) & 0o170_707 == 0;
        if kind == FileType::Symlink {
            let text = |fd: &OwnedFd, name: &std::ffi::CStr| readlinkat(fd, name, Vec::new());
            let own = readlinkat(dir, name, Vec::new()).map_err(failed)?;
            let source = text(&place.dir.source, &place.name).map_err(Trouble::reading)?;
            return Ok(own == source && is_same_mode);
        }
        if kind != FileType::RegularFile {
            return Ok(stat.st_rdev == now.st_rdev && is_same_mode);
        }
        if size(stat) != size(now) || !is_same_time(stat, now) || !is_same_mode {
            return Ok(false);
        }
        // In the tick of the clock in which the run began somebody else may have written before it.
        if (now.st_ctime, now.st_ctime_nsec) > self.shared.began {
            return Ok(true);
        }
        let (source, opened) = open_file(&place.dir.source, &place.name, stat)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(dir, name, flags, Mode::empty()).map_err(failed)?;
        let is_equal =
            is_equal(&source, &target, size(&opened), &mut self.buffer, &self.shared.stop)?;
        if is_equal {
            // It gets a new ctime, and keeps its mode.
            let mode = Mode::from_raw_mode(now.st_mode);
            chmodat(dir, name, mode, AtFlags::empty()).map_err(failed)?;
        }
        Ok(is_equal)
    }
}

fn look_up(dir: &OwnedFd, name: &str) -> Result<Option<Stat>, Errno> {
    let name = std::ffi::CString::new(name).expect("it has digits only");
    match look(dir, &name) {
        Err(Errno::NOENT) => Ok(None),
        found => found.map(Some),
    }
}

/// Whether the entry's name in DEST is already one of the file's.
fn is_at(root: &OwnedFd, place: &Place, whole: &Stat) -> bool {
    let Ok(target) = place.dir.target(root) else { return false };
    let now = statat(&target.fd, place.name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW);
    now.is_ok_and(|now| (whole.st_dev, whole.st_ino) == (now.st_dev, now.st_ino))
}

/// Whether what is in DEST is not what was copied of this state of a source with several names, as far as that is known.
pub(crate) fn is_other(stage: &OwnedFd, id: &Fingerprint, target: &Stat) -> bool {
    let Ok(dir) = openat(stage, LINKS_DIR, FOLDER, Mode::empty()) else { return false };
    let whole = statat(&dir, hex(id), AtFlags::SYMLINK_NOFOLLOW);
    whole.map_or(true, |whole| (whole.st_dev, whole.st_ino) != (target.st_dev, target.st_ino))
}

const NO_PANIC: &str = "nobody panics while he holds it";
