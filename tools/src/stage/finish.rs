//! The end of staging: folders get what is theirs, and a last look says whether all is there.
//!
//! Folders come last because every entry that is made in one changes its times, and a mode may forbid making any. The order
//! among them does not matter: giving one its marks changes nothing in another.
//!
//! 1. With `--finish` each entry of the source is looked up in DEST: a part that died silently is found by what is missing.
//! 2. The stage's folder goes when nothing is amiss, as the last thing but the root's times: a crash before means one more
//!    run that finds everything there.
//! 3. A DEST that was there before keeps its own owner, mode and times: it is somebody's mountpoint or home.

use std::io::Read;
use std::sync::atomic::Ordering;

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, Dir as Listing, FileType, Mode, OFlags, fchmod, fstat, openat, readlinkat, statat,
    syncfs, unlinkat,
};
use rustix::io::Errno;

use super::Shared;
use super::copy::{is_same_time, remove, size};
use super::ends::FORMER_MODE;
use super::links::LINKS_DIR;
use super::manifest::part_of;
use super::marks::{self, Opened};
use super::names::{STAGE_DIR, is_temporary};
use super::tally::Counts;
use super::tree::{Dir, FOLDER};
use super::trouble::Trouble;
use super::walk::Visit;
use super::work::{Batch, Work};
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
                if let Err(trouble) = self.finish_folder(dir) {
                    self.tally.failed(&dir.path, &trouble);
                }
            }
        });
    }

    fn finish_folder(&self, dir: &Dir) -> Result<(), Trouble> {
        let target = dir
            .target(&self.target)
            .map_err(|errno| Trouble::Call("cannot be made in DEST", errno))?;
        if self.cleans.load(Ordering::Relaxed) {
            let listing = Listing::read_from(&target.fd).map_err(Trouble::writing)?;
            for entry in listing.flatten() {
                if let Ok(name) = entry.file_name().to_str()
                    && is_temporary(name.as_bytes())
                {
                    remove(&target, name);
                }
            }
        }
        if !dir.path.is_empty() {
            self.finish_dir(dir, &target.fd, target.gives_acl)?;
        }
        Ok(())
    }

    fn finish_dir(&self, dir: &Dir, target: &OwnedFd, gives_acl: bool) -> Result<(), Trouble> {
        let stat = fstat(&dir.source).map_err(Trouble::reading)?;
        let attributes = marks::attributes(&dir.source, Opened::Itself)?;
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

    /// Whether entries are in DEST as they are in SOURCE, as far as stat(2) tells.
    fn check(&self, batch: &Batch) {
        for entry in &batch.entries {
            if let Err(trouble) = self.check_entry(&batch.dir, entry.name.as_c_str()) {
                self.tally.failed(&batch.dir.join(entry), &trouble);
            }
        }
    }

    fn check_entry(&self, dir: &Dir, name: &std::ffi::CStr) -> Result<(), Trouble> {
        let look = |fd: &OwnedFd| statat(fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let source = look(&dir.source).map_err(Trouble::reading)?;
        let into = dir.target(&self.target).map_err(Trouble::writing)?;
        let target = match look(&into.fd) {
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
    pub(crate) fn finish_root(&self, is_complete: bool) -> Result<(), Trouble> {
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
                unlinkat(&self.target, STAGE_DIR, AtFlags::REMOVEDIR).map_err(failed)?;
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
            let source = super::tree::open_below(&self.source, b"").map_err(Trouble::reading)?;
            let dir = Dir::new(Vec::new(), [0; 16], source);
            self.finish_dir(&dir, &self.target, true)?;
        }
        if self.syncs_each { rustix::fs::fsync(&self.target) } else { syncfs(&self.target) }
            .map_err(|errno| Trouble::Call("cannot be synced", errno))
    }
}

impl Shared {
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

/// Removes all files of a folder, however many they are.
fn empty(folder: &OwnedFd) -> Result<(), Errno> {
    loop {
        let mut removed = 0;
        for entry in Listing::read_from(folder)? {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
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
