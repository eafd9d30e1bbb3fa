//! A walking thread: reads folders of the source and hands out what this part copies.
//!
//! 1. An entry belongs to the part that its path's [`Key`] says; a folder, too: that part makes it, so that empty ones are made.
//! 2. What lies on another mount is walked like the rest, or with `--one-file-system` made as an empty folder.
//! 3. DEST is never walked, even if a bind mount shows it inside SOURCE.
//! 4. After the deadline the walk goes on for a while, and lists what is missing instead of handing it out.

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Dir as Listing, FileType, Stat, fstat, statat};
use rustix::io::Errno;

use super::Shared;
use super::names::{Key, STAGE_DIR, is_temporary, join};
use super::source::{mount_id, open_folder};
use super::tree::{Dir, Entry, open_below};
use super::trouble::Trouble;
use super::work::{Batch, Folder, Work};

/// What [`Shared::walk`] does with a folder whose entries it has read.
pub(crate) enum Visit<'a> {
    /// Entries of this part, some at a time.
    Entries(Batch),
    /// The folder, behind its last entry.
    End(&'a Arc<Dir>),
}

impl Shared {
    /// Walks folders until all are walked.
    pub(crate) fn walk(&self, work: &Work, visit: &mut dyn FnMut(Visit<'_>)) {
        loop {
            let folder = match work.folder() {
                Ok(Some(folder)) => folder,
                Ok(None) => return,
                Err(error) => {
                    work.cut();
                    return self.tally.fail_walk(&error);
                }
            };
            let result = if folder.is_left {
                self.clean_left(work, &folder)
            } else {
                self.walk_folder(work, &folder, visit)
            };
            if let Err(trouble) = result
                && self.is_new_failure(&folder)
            {
                self.tally.failed(&folder.path, &trouble);
            }
            work.close_folder();
        }
    }

    /// Whether the folder has not failed in the walk before, too.
    fn is_new_failure(&self, folder: &Folder) -> bool {
        let mut failed = self.failed_folders.lock().expect("nobody panics while he holds it");
        // More are told of twice rather than kept in memory.
        failed.len() >= FAILED_FOLDERS_MAX || failed.insert(Key::of(&folder.path))
    }

    fn walk_folder(
        &self,
        work: &Work,
        folder: &Folder,
        visit: &mut dyn FnMut(Visit<'_>),
    ) -> Result<(), Trouble> {
        let source = open_below(&self.source, &folder.path).map_err(|errno| match errno {
            Errno::LOOP | Errno::NOTDIR | Errno::XDEV => Trouble::Changed,
            errno => Trouble::reading(errno),
        })?;
        let stat = fstat(&source).map_err(Trouble::reading)?;
        if (stat.st_dev, stat.st_ino) == self.target_id {
            return Err(Trouble::Other("is DEST itself, shown inside SOURCE: left out".into()));
        }
        let is_crossing = stat.st_dev != folder.device && !folder.path.is_empty();
        let mount = if is_crossing {
            mount_id(&source, &folder.path).map_err(Trouble::reading)?
        } else {
            folder.mount
        };
        let dir = Arc::new(Dir::new(folder.path.clone(), mount, source));
        if self.is_own(Key::of(&folder.path)) && !self.stop.load(Ordering::Relaxed) {
            dir.target(&self.target).map_err(|errno| match errno {
                Errno::LOOP | Errno::NOTDIR => Trouble::Other(
                    "its place in DEST is taken by something that is no folder".into(),
                ),
                errno => Trouble::Call("cannot be made in DEST", errno),
            })?;
        }
        if !(is_crossing && self.plan.one_file_system) {
            self.list(work, &dir, &stat, visit)?;
        }
        visit(Visit::End(&dir));
        Ok(())
    }

    fn list(
        &self,
        work: &Work,
        dir: &Arc<Dir>,
        stat: &Stat,
        visit: &mut dyn FnMut(Visit<'_>),
    ) -> Result<(), Trouble> {
        let quiet = open_folder(&dir.source, stat).map_err(Trouble::reading)?;
        let mut listing = Listing::new(quiet).map_err(Trouble::reading)?;
        let (mut entries, mut result) = (Vec::new(), Ok(()));
        while let Some(entry) = listing.read() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => {
                    // What was listed before is copied.
                    result = Err(Trouble::Call("cannot be listed to its end", errno));
                    break;
                }
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") || self.is_left_out(dir, name) {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match statat(&dir.source, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    // Whoever copies it finds out why.
                    Err(_) => FileType::Unknown,
                },
                kind => kind,
            };
            let path = join(&dir.path, name.to_bytes());
            if kind == FileType::Directory {
                let (device, mount) = (stat.st_dev, dir.mount);
                let folder = Folder { path, device, mount, is_left: false };
                if let Err(error) = work.add_folder(folder) {
                    result = Err(Trouble::Other(error.to_string()));
                    break;
                }
            } else if self.is_own(Key::of(&path)) {
                entries.push(Entry { name: name.to_owned() });
                if entries.len() == BATCH_LEN {
                    let entries = std::mem::take(&mut entries);
                    visit(Visit::Entries(Batch { dir: Arc::clone(dir), entries }));
                }
            }
        }
        if !entries.is_empty() {
            visit(Visit::Entries(Batch { dir: Arc::clone(dir), entries }));
        }
        result
    }

    /// What staging itself has left in the source.
    fn is_left_out(&self, dir: &Dir, name: &CStr) -> bool {
        let name = name.to_bytes();
        let is_ours = (dir.path.is_empty() && name == STAGE_DIR.as_bytes()) || is_temporary(name);
        if is_ours {
            self.tally.note("what an unfinished staging left in SOURCE (.sealfs-*) is left out");
        }
        is_ours
    }

    /// Whether this process does it: the part's share, or everything at the end.
    pub(crate) fn is_own(&self, key: Key) -> bool {
        self.plan.finish || key.part(self.parts) == self.part
    }
}

/// Folders whose failure is remembered: 100,000 x 16 bytes and a little.
const FAILED_FOLDERS_MAX: usize = 100_000;
/// Entries that are handed out at a time: few, so that threads share a folder's entries.
const BATCH_LEN: usize = 32;
