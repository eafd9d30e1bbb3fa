//! Large files: cut into segments that all copying threads share, each durable, compared and remembered on its own.
//!
//! ```text
//! begun (nonce) -> segment: copy -> fdatasync -> read back -> record     any number at a time, in any order
//!               -> all segments: attributes -> fsync -> final name -> record
//! ```
//!
//! 1. A segment's record names the nonce in the file's temporary name, and a nonce is used for one file. So a later run
//!    goes on with exactly the file that the records tell of, or begins anew.
//! 2. A segment counts only if the source was the same before and after it was read.
//! 3. Segments without data are never visited: cost follows the data, not the length.
//! 4. Whoever is done with the last segment completes the file, and exactly one thread is.
//! 5. A segment is written by a descriptor of its own. An error of writing back is told once to each descriptor: through one
//!    that threads share, one of them would hear of it and the others take their segments for durable.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, Stat, fdatasync, fstat, fsync, ftruncate, open, openat};

use super::copy::{Copier, Place, create, is_same, known, remove, size};
use super::data::{Copying, copy, next_data, read_back};
use super::manifest::{BEGUN, Fingerprint, Record};
use super::marks::place;
use super::source::look;
use super::tree::Target;
use super::trouble::Trouble;

/// A large file under way.
pub(crate) struct Large {
    place: Place,
    into: Arc<Target>,
    temporary: String,
    nonce: Fingerprint,
    source: OwnedFd,
    target: OwnedFd,
    stat: Stat,
    /// The source's state, if a later run can know it again; else nothing of it is remembered.
    known: Option<Fingerprint>,
    link: Option<Fingerprint>,
    /// Whether an earlier run began it.
    is_resumed: bool,
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    /// Where nobody has copied yet.
    next: u64,
    /// Segments that threads have taken.
    active: u32,
    /// There are no more segments to take.
    is_exhausted: bool,
    /// A thread completes it, or has.
    is_taken: bool,
    is_ended: bool,
    bytes: u64,
    trouble: Option<Trouble>,
}

/// What a thread that wants to help is told.
enum Claim {
    Segment(Range<u64>),
    /// It is the one that completes the file.
    Completion,
    /// Others are at the last segments.
    Nothing,
}

impl Large {
    /// The entry that it is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    fn claim(&self) -> Claim {
        let mut state = self.state.lock().expect(NO_PANIC);
        if !state.is_exhausted {
            match next_data(&self.source, state.next) {
                Ok(Some(start)) if start < size(&self.stat) => {
                    let end = (start - start % SEGMENT + SEGMENT).min(size(&self.stat));
                    state.next = end;
                    state.active += 1;
                    return Claim::Segment(start - start % SEGMENT..end);
                }
                Ok(_) => state.is_exhausted = true,
                Err(trouble) => state.fail(trouble),
            }
        }
        if state.may_complete() { Claim::Completion } else { Claim::Nothing }
    }

    /// A segment is done; whether this thread completes the file.
    fn done(&self, result: Result<u64, Trouble>) -> bool {
        let mut state = self.state.lock().expect(NO_PANIC);
        state.active -= 1;
        match result {
            Ok(bytes) => state.bytes += bytes,
            Err(trouble) => state.fail(trouble),
        }
        state.may_complete()
    }

    fn end(&self) {
        self.state.lock().expect(NO_PANIC).is_ended = true;
        self.ended.notify_all();
    }

    fn await_end(&self) {
        let mut state = self.state.lock().expect(NO_PANIC);
        while !state.is_ended {
            state = self.ended.wait(state).expect(NO_PANIC);
        }
    }
}

impl State {
    fn fail(&mut self, trouble: Trouble) {
        self.is_exhausted = true;
        self.trouble.get_or_insert(trouble);
    }

    fn may_complete(&mut self) -> bool {
        let may = self.is_exhausted && self.active == 0 && !self.is_taken;
        self.is_taken |= may;
        may
    }
}

impl Copier<'_> {
    /// Begins a large file, or goes on with it, until all its segments are taken. All threads are asked to help. The end of
    /// a linked one is waited for.
    pub(crate) fn large(
        &mut self,
        place: &Place,
        source: OwnedFd,
        stat: &Stat,
        link: Option<Fingerprint>,
    ) -> Result<(), Trouble> {
        let large = Arc::new(self.begin(place, source, stat, link)?);
        self.shared.work.add_large(Arc::clone(&large));
        // One at a time, for each is several descriptors.
        while self.help(&large) {}
        if let Some(id) = link {
            large.await_end();
            self.shared.links.end(&id);
        }
        Ok(())
    }

    fn begin(
        &self,
        place: &Place,
        source: OwnedFd,
        stat: &Stat,
        link: Option<Fingerprint>,
    ) -> Result<Large, Trouble> {
        let into = self.target_of(place)?;
        let known = known(&place.dir, stat);
        let manifest = self.shared.manifest();
        let begun = manifest.find(place.key, BEGUN).unwrap_or_default();
        let former = begun.filter(|record| Some(record.source) == known).and_then(|record| {
            let temporary = place.key.temporary_of(&record.target);
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = openat(&into.fd, temporary.as_str(), flags, Mode::empty()).ok()?;
            Some((temporary, record.target, target))
        });
        let is_resumed = former.is_some();
        let (temporary, nonce, target) = match former {
            Some(former) => former,
            None => {
                // What was begun for another state of the source leads nowhere.
                if let Some(record) = begun {
                    remove(&into, &place.key.temporary_of(&record.target));
                }
                let mut nonce = Fingerprint::default();
                getrandom::fill(&mut nonce)
                    .map_err(|error| Trouble::Other(format!("no random number: {error}")))?;
                let temporary = place.key.temporary_of(&nonce);
                let target = create(&into, &temporary)?;
                if let Some(source) = known {
                    let record = Record { key: place.key, index: BEGUN, source, target: nonce };
                    manifest.append(&[record]).map_err(Trouble::writing)?;
                }
                (temporary, nonce, target)
            }
        };
        ftruncate(&target, size(stat)).map_err(Trouble::writing)?;
        let state = State {
            next: 0,
            active: 0,
            is_exhausted: false,
            is_taken: false,
            is_ended: false,
            bytes: 0,
            trouble: None,
        };
        Ok(Large {
            place: place.clone(),
            into,
            temporary,
            nonce,
            source,
            target,
            stat: *stat,
            known,
            link,
            is_resumed,
            state: Mutex::new(state),
            ended: Condvar::new(),
        })
    }

    /// Does one segment, or what else there is to do; whether there was a segment.
    pub(crate) fn help(&mut self, large: &Arc<Large>) -> bool {
        match large.claim() {
            Claim::Segment(range) => {
                let result = self.segment(large, range);
                if large.done(result) {
                    self.complete(large);
                }
                return true;
            }
            Claim::Completion => self.complete(large),
            Claim::Nothing => self.shared.work.remove_large(large),
        }
        false
    }

    /// Copies a segment, and tells how much data it has.
    fn segment(&mut self, large: &Large, range: Range<u64>) -> Result<u64, Trouble> {
        if self.shared.stop.load(Ordering::Relaxed) {
            return Err(Trouble::Stopped);
        }
        let index = 1 + range.start / SEGMENT;
        let manifest = self.shared.manifest();
        let key = large.place.key;
        let record = large.known.map(|source| Record { key, index, source, target: large.nonce });
        if large.is_resumed && manifest.find(key, index).unwrap_or_default() == record {
            return Ok(0);
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let target = open(place(&large.target), flags, Mode::empty()).map_err(Trouble::writing)?;
        let (checksum, tally) = (self.shared.plan.checksum, &self.shared.tally);
        let mut copying = Copying {
            buffer: &mut self.buffer,
            checksum,
            stop: &self.shared.stop,
            tell: &|bytes| tally.moved(bytes),
        };
        let copied = copy(&large.source, &target, range, true, &mut copying)?;
        fdatasync(&target).map_err(|errno| Trouble::Call("cannot be synced", errno))?;
        read_back(&target, &copied, &mut self.buffer, checksum)?;
        let after = look(&large.source, c"").map_err(Trouble::reading)?;
        if !is_same(&after, &large.stat) {
            return Err(Trouble::Changed);
        }
        manifest.append(record.as_slice()).map_err(Trouble::writing)?;
        Ok(copied.bytes())
    }

    /// All segments are there, or one has failed.
    fn complete(&mut self, large: &Arc<Large>) {
        self.shared.work.remove_large(large);
        let (trouble, bytes) = {
            let mut state = large.state.lock().expect(NO_PANIC);
            (state.trouble.take(), state.bytes)
        };
        let result = match trouble {
            Some(trouble) => Err(trouble),
            None => self.complete_whole(large, bytes),
        };
        if let Err(trouble) = result {
            // A later run goes on with what the deadline has cut off, or a full device; not with what is wrong.
            if trouble.is_passing() {
                remove(&large.into, &large.temporary);
            }
            self.give_up(large.place.clone(), trouble);
        }
        self.settle_many_names();
        large.end();
    }

    fn complete_whole(&mut self, large: &Large, bytes: u64) -> Result<(), Trouble> {
        self.shared.finish_file(&large.source, &large.target, &large.stat, &large.into)?;
        fsync(&large.target).map_err(|errno| Trouble::Call("cannot be synced", errno))?;
        let (into, temporary) = (&large.into, &large.temporary);
        let whole = match &large.link {
            Some(id) => self.shared.links.offer(&self.shared.stage, into, temporary, id)?,
            None => fstat(&large.target).map_err(Trouble::writing)?,
        };
        self.put_in_place(
            &large.place,
            Arc::clone(into),
            (temporary, &whole),
            large.known.filter(|_| large.link.is_none()),
            bytes,
        )
    }
}

const NO_PANIC: &str = "nobody panics while he holds it";
/// A piece that one thread copies and syncs: at a slow 100 MB/s less than a second, and what a second run repeats of it.
pub(crate) const SEGMENT: u64 = 64 << 20;
