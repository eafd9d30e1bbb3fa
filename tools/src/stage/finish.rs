//! The end of staging: folders get what is theirs, and a last look says whether all is there.
//!
//! Folders come last because every entry that is made in one changes its times, and a mode may forbid making any. The order
//! among them does not matter: giving one its marks changes nothing in another.
//!
//! 1. With `--finish` each entry of the source is looked up in DEST: a part that died silently is found by what is missing.
//! 2. The stage's folder goes when nothing is amiss, as the last thing but the root's times: a crash before means one more
//!    run that finds everything there.
//! 3. A DEST that was there before keeps its own owner, mode and times: it is somebody's mountpoint or home.

use std::ffi::CStr;
use std::io::Read;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, Dir as Listing, FileType, Mode, OFlags, fchmod, fstat, openat, readlinkat, statat,
    syncfs, unlinkat,
};
use rustix::io::Errno;

use super::Shared;
use super::copy::{is_same_time, size};
use super::ends::FORMER_MODE;
use super::links::{LINKS_DIR, is_other};
use super::manifest::{WHOLE, fingerprint, part_of};
use super::marks::{self, Opened};
use super::names::{Key, STAGE_DIR, is_temporary, join};
use super::source::look;
use super::tally::Counts;
use super::tree::{Dir, FOLDER, open_below};
use super::trouble::Trouble;
use super::walk::Visit;
use super::work::{Batch, Folder, Work};
use crate::Failure;

/// How a part ended, as its state file has it.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct PartState {
    pub(crate) counts: Counts,
}

impl Shared {
    /// A finishing thread.
    pub(crate) fn finish_folders(&self, work: &Work) {
        self.walk(work, &mut |visit| match visit {
            Visit::Entries(batch) if self.plan.finish => self.check(&batch),
            Visit::Entries(_) => {}
            Visit::End(dir) => {
                if let Err(trouble) = self.finish_folder(work, dir) {
                    self.tally.failed(&dir.path, &trouble);
                }
            }
        });
    }

    fn finish_folder(&self, work: &Work, dir: &Dir) -> Result<(), Trouble> {
        let target = dir
            .target(&self.target)
            .map_err(|errno| Trouble::Call("cannot be made in DEST", errno))?;
        if self.cleans.load(Ordering::Relaxed) {
            let is_in_source =
                |name: &CStr| statat(&dir.source, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            self.clean(work, &dir.path, &target.fd, &is_in_source).map_err(Trouble::writing)?;
        }
        if !dir.path.is_empty() {
            self.finish_dir(dir, &target.fd, target.gives_acl)?;
        }
        Ok(())
    }

    fn finish_dir(&self, dir: &Dir, target: &OwnedFd, gives_acl: bool) -> Result<(), Trouble> {
        let stat = fstat(&dir.source).map_err(Trouble::reading)?;
        let attributes = marks::attributes(&dir.source, Opened::Itself, &self.tally)?;
        if gives_acl {
            marks::drop_given_acl(target, &attributes)?;
        }
        let now = fstat(target).map_err(Trouble::writing)?;
        marks::apply(target, Opened::Itself, &now, &stat, &attributes, &self.tally)?;
        if self.syncs(target).map_err(Trouble::writing)? {
            rustix::fs::fsync(target).map_err(|errno| Trouble::Call("cannot be synced", errno))?;
        }
        Ok(())
    }

    /// What an earlier run left in a folder of DEST that SOURCE does not have any more.
    pub(crate) fn clean_left(&self, work: &Work, folder: &Folder) -> Result<(), Trouble> {
        let clean = || {
            let target = open_below(&self.target, &folder.path)?;
            // Staging has made nothing on what somebody mounted where SOURCE has nothing.
            if fstat(&target)?.st_dev != self.target_id.0 {
                return Ok(());
            }
            self.clean(work, &folder.path, &target, &|_| false)
        };
        match clean() {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => {
                let cause = std::io::Error::from(errno);
                self.tally.note(&format!(
                    "folders that only DEST has could not all be searched for temporary files ({cause})"
                ));
            }
        }
        Ok(())
    }

    /// Removes temporary files from a folder of DEST, unless it is where another staging works, and has those searched that
    /// SOURCE has not.
    fn clean(
        &self,
        work: &Work,
        path: &[u8],
        target: &OwnedFd,
        is_in_source: &dyn Fn(&CStr) -> bool,
    ) -> Result<(), Errno> {
        let is_others = statat(target, STAGE_DIR, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if is_others && !path.is_empty() {
            return Ok(());
        }
        for entry in Listing::read_from(target)? {
            let entry = entry?;
            let name = entry.file_name();
            let bytes = name.to_bytes();
            if is_temporary(bytes) {
                let _ = unlinkat(target, name, AtFlags::empty());
            } else if matches!(entry.file_type(), FileType::Directory | FileType::Unknown)
                && !matches!(bytes, b"." | b"..")
                && bytes != STAGE_DIR.as_bytes()
                && !is_in_source(name)
            {
                let path = join(path, bytes);
                let left = Folder { path, device: 0, mount: [0; 16], is_left: true };
                work.add_folder(left)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            }
        }
        Ok(())
    }

    /// Whether entries are in DEST as they are in SOURCE, as far as stat(2) tells.
    fn check(&self, batch: &Batch) {
        for entry in &batch.entries {
            let path = batch.dir.join(entry);
            if let Err(trouble) = self.check_entry(&batch.dir, &entry.name, Key::of(&path)) {
                self.tally.failed(&path, &trouble);
            }
        }
    }

    fn check_entry(&self, dir: &Dir, name: &CStr, key: Key) -> Result<(), Trouble> {
        let source = look(&dir.source, name).map_err(Trouble::reading)?;
        let into = dir.target(&self.target).map_err(Trouble::writing)?;
        let target = match look(&into.fd, name) {
            Err(Errno::NOENT) => return Err(Trouble::Other("is not in DEST".into())),
            target => target.map_err(|errno| Trouble::Call("cannot be looked up", errno))?,
        };
        let kind = FileType::from_raw_mode(source.st_mode);
        if kind != FileType::from_raw_mode(target.st_mode) {
            return Err(Trouble::Other("is something else in DEST".into()));
        }
        let is_same = size(&source) == size(&target) && is_same_time(&source, &target);
        if kind == FileType::RegularFile && !is_same {
            let text =
                "has another size or time in DEST: it changed after it was copied; run again";
            return Err(Trouble::Other(text.into()));
        }
        let record = self.manifest().find(key, WHOLE).unwrap_or_default();
        let known = record.filter(|record| record.target == fingerprint(b"", &target));
        let now = fingerprint(&dir.mount, &source);
        let is_other_link = source.st_nlink > 1 && is_other(&self.stage, &now, &target);
        if is_other_link || known.is_some_and(|record| record.source != now) {
            return Err(Trouble::Other("changed after it was copied; run again".into()));
        }
        if kind == FileType::Symlink {
            let text = readlinkat(&dir.source, name, Vec::new()).map_err(Trouble::reading)?;
            if readlinkat(&into.fd, name, Vec::new()).map_err(Trouble::verifying)? != text {
                return Err(Trouble::Other("leads elsewhere in DEST; run again".into()));
            }
        }
        Ok(())
    }

    /// What the parts say of themselves.
    pub(crate) fn parts_counts(&self) -> Result<Counts, Failure> {
        let (mut states, mut of) = (Vec::new(), None);
        for entry in Listing::read_from(&self.stage)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if let Some((part, parts)) = part_of(name, ".state") {
                if of.is_some_and(|other| other != parts) {
                    return Err("parts of different N have run; run all parts of one N".into());
                }
                of = Some(parts);
                let text = std::fs::read(self.stage_path(name))?;
                let state: PartState = serde_json::from_slice(&text)
                    .map_err(|error| format!("{name} is damaged ({error}); run the part again"))?;
                states.push((part, state));
            }
        }
        let Some(parts) = of else {
            return Err("no part has run to its end here; run `sealfs stage ... --part K/N`".into());
        };
        let mut sum = Counts::default();
        for (part, PartState { counts }) in &states {
            sum.add(counts);
            if !counts.is_complete() {
                self.tally.note(&format!(
                    "part {part} of {parts}: {} failed, {} missing; report-{part}-of-{parts}.jsonl has them",
                    counts.failed,
                    counts.missing + counts.unread
                ));
            }
        }
        for part in 1..=parts {
            if !states.iter().any(|(number, _)| *number == part) {
                let text = format!("part {part} of {parts} has not run to its end; run it again");
                self.tally.failed(b"", &Trouble::Other(text));
            }
        }
        Ok(sum)
    }

    /// Removes the stage's folder, or what only this run needed of it; then the root gets its marks, if it is ours.
    pub(crate) fn finish_root(&mut self, is_complete: bool) -> Result<(), Trouble> {
        let failed = |errno| Trouble::Call("the stage's folder cannot be removed", errno);
        let is_made = self.made_dest();
        let former_mode = if is_complete && !is_made { self.take_former_mode() } else { None };
        if is_complete {
            match openat(&self.stage, LINKS_DIR, FOLDER, Mode::empty()) {
                Ok(links) => {
                    empty(&links).map_err(failed)?;
                    unlinkat(&self.stage, LINKS_DIR, AtFlags::REMOVEDIR).map_err(failed)?;
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
            if !self.plan.keep_manifest {
                empty(&self.stage).map_err(failed)?;
                // NFS keeps what is open under another name.
                self.manifest = None;
                self.work.close();
                self.remove_stage().map_err(failed)?;
            }
        }
        if let Some(mode) = former_mode {
            let now = Mode::from_raw_mode(fstat(&self.target).map_err(Trouble::writing)?.st_mode);
            if now == mode | Mode::RWXU {
                fchmod(&self.target, mode).map_err(|errno| {
                    Trouble::Call("cannot be given the mode back that it had", errno)
                })?;
            }
        }
        if is_made {
            let source = open_below(&self.source, b"").map_err(Trouble::reading)?;
            let dir = Dir::new(Vec::new(), [0; 16], source);
            self.finish_dir(&dir, &self.target, true)?;
        }
        if self.syncs_each { rustix::fs::fsync(&self.target) } else { syncfs(&self.target) }
            .map_err(|errno| Trouble::Call("cannot be synced", errno))
    }
}

impl Shared {
    /// Removes the stage's folder, which is empty but for what NFS removes by itself in a moment.
    fn remove_stage(&self) -> Result<(), Errno> {
        for _ in 0..NFS_ATTEMPTS {
            match unlinkat(&self.target, STAGE_DIR, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                result => return result,
            }
            let mut names = Listing::read_from(&self.stage)?;
            let is_nfs = names.all(|entry| {
                entry.is_ok_and(|entry| {
                    let name = entry.file_name().to_bytes();
                    matches!(name, b"." | b"..") || is_kept_by_nfs(name)
                })
            });
            if !is_nfs {
                return Err(Errno::NOTEMPTY);
            }
            thread::sleep(NFS_PAUSE);
        }
        self.tally.note(&format!(
            "{} stays: it has files that NFS still keeps open (.nfs*); remove it later",
            self.stage_path.display()
        ));
        Ok(())
    }

    /// The mode that DEST gets back, and no later run gives it again.
    fn take_former_mode(&self) -> Option<Mode> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.stage, FORMER_MODE, flags, Mode::empty()).ok()?;
        let mut bytes = [0; 4];
        std::fs::File::from(file).read_exact(&mut bytes).ok()?;
        unlinkat(&self.stage, FORMER_MODE, AtFlags::empty()).ok()?;
        Some(Mode::from_raw_mode(u32::from_le_bytes(bytes)))
    }
}

/// Whether NFS gave an open file that name when it was removed; it goes when the file is closed.
fn is_kept_by_nfs(name: &[u8]) -> bool {
    name.starts_with(b".nfs")
}

/// Removes all files of a folder, however many they are.
fn empty(folder: &OwnedFd) -> Result<(), Errno> {
    loop {
        let mut removed = 0;
        for entry in Listing::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || is_kept_by_nfs(name) {
                continue;
            }
            unlinkat(folder, entry.file_name(), AtFlags::empty())?;
            removed += 1;
        }
        if removed == 0 {
            return Ok(());
        }
    }
}

/// A second for NFS to remove what was just closed.
const NFS_ATTEMPTS: u32 = 20;
const NFS_PAUSE: Duration = Duration::from_millis(50);
