//! Who does what next: folders for the walkers, entries and segments of large files for the copiers.
//!
//! ```text
//! folders (any number, on disk) --walkers--> batches (bounded) --copiers--> DEST
//!                     ^------------'               '--> large files --segments--> all copiers
//! ```
//!
//! 1. Memory is bounded: folders beyond [`FOLDERS_LEN_MAX`] bytes lie in a file, a full queue of batches makes walkers wait.
//! 2. A folder that a walker has taken counts as open until he says so: the walk is over when none is open and none waits.
//!    The copying is over when, besides, every copier waits: one that does not may still find a large file.
//! 3. Large files come before batches, so that few are open at a time.
//! 4. After [`Work::stop`] nothing more is handed out to copiers; what is left comes out of [`Work::leftovers`].

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::large::Large;
use super::tree::{Dir, Entry};

/// A folder that is to be walked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Folder {
    /// Relative to the roots.
    pub(crate) path: Vec<u8>,
    /// Its parent's device.
    pub(crate) device: u64,
    /// Which mount it is in, told alike on all nodes.
    pub(crate) mount: [u8; 16],
    /// SOURCE has none of that path: what an earlier run left in DEST's is removed, and nothing else is done.
    pub(crate) is_left: bool,
}

/// Entries of one folder.
pub(crate) struct Batch {
    pub(crate) dir: Arc<Dir>,
    pub(crate) entries: Vec<Entry>,
}

/// What a copier does next.
pub(crate) enum Task {
    Batch(Batch),
    /// To help with: it may have no segment left.
    Large(Arc<Large>),
    /// There is nothing at the moment; only who asked not to wait is told.
    Nothing,
    /// There will be nothing any more.
    End,
}

/// Shared by all threads.
pub(crate) struct Work {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    folders: Backlog,
    /// Folders that walkers have taken.
    open: usize,
    /// Copiers that have something which may lead to more, be it an entry that is tried again.
    busy: usize,
    batches: VecDeque<Batch>,
    large: Vec<Arc<Large>>,
    is_stopped: bool,
    is_cut: bool,
}

impl Work {
    /// With the folder that all begins with; `spill` holds the folders that memory does not. All `copiers` count as busy
    /// until they wait.
    pub(crate) fn new(
        first: Folder,
        spill: std::fs::File,
        copiers: usize,
    ) -> std::io::Result<Self> {
        let mut folders = Backlog::new(spill);
        folders.push(first)?;
        let state = State {
            folders,
            open: 0,
            busy: copiers,
            batches: VecDeque::new(),
            large: Vec::new(),
            is_stopped: false,
            is_cut: false,
        };
        Ok(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// The next folder, waiting for it; none when all are walked.
    pub(crate) fn folder(&self) -> std::io::Result<Option<Folder>> {
        let mut state = self.lock();
        loop {
            if state.is_cut {
                return Ok(None);
            }
            if let Some(folder) = state.folders.pop()? {
                state.open += 1;
                return Ok(Some(folder));
            }
            if state.open == 0 {
                return Ok(None);
            }
            state = self.changed.wait(state).expect(NO_PANIC);
        }
    }

    /// A folder that was found.
    pub(crate) fn add_folder(&self, folder: Folder) -> std::io::Result<()> {
        self.lock().folders.push(folder)?;
        self.changed.notify_all();
        Ok(())
    }

    /// The walker is done with a folder that he took.
    pub(crate) fn close_folder(&self) {
        self.lock().open -= 1;
        self.changed.notify_all();
    }

    /// Entries that were found; they come back when the run is to end.
    pub(crate) fn add_batch(&self, batch: Batch) -> Result<(), Batch> {
        let mut state = self.lock();
        while state.batches.len() >= BATCHES_MAX && !state.is_stopped {
            state = self.changed.wait(state).expect(NO_PANIC);
        }
        if state.is_stopped {
            return Err(batch);
        }
        state.batches.push_back(batch);
        self.changed.notify_all();
        Ok(())
    }

    /// A large file that all may help with.
    pub(crate) fn add_large(&self, large: Arc<Large>) {
        self.lock().large.push(large);
        self.changed.notify_all();
    }

    /// It has no segment left to hand out.
    pub(crate) fn remove_large(&self, large: &Arc<Large>) {
        self.lock().large.retain(|other| !Arc::ptr_eq(other, large));
    }

    /// What to do next. Who `waits` has nothing left of what he did before.
    pub(crate) fn next(&self, waits: bool) -> Task {
        let mut state = self.lock();
        state.busy -= usize::from(waits);
        loop {
            if let Some(task) = state.task() {
                state.busy += usize::from(waits && !matches!(task, Task::End));
                // There is room for a batch, or all others end, too.
                self.changed.notify_all();
                return task;
            }
            if !waits {
                return Task::Nothing;
            }
            state = self.changed.wait(state).expect(NO_PANIC);
        }
    }

    /// Nothing more is copied. Walkers go on, to say what is missing.
    pub(crate) fn stop(&self) {
        self.lock().is_stopped = true;
        self.changed.notify_all();
    }

    /// Walkers end, too.
    pub(crate) fn cut(&self) {
        self.lock().is_cut = true;
        self.changed.notify_all();
    }

    /// What nobody took, when all threads have ended: batches, and large files that are not complete.
    pub(crate) fn leftovers(&self) -> (Vec<Batch>, Vec<Arc<Large>>) {
        let mut state = self.lock();
        (state.batches.drain(..).collect(), state.large.drain(..).collect())
    }

    /// A folder that nobody looked into, when all threads have ended.
    pub(crate) fn unread_folder(&self) -> std::io::Result<Option<Folder>> {
        self.lock().folders.pop()
    }

    /// Lets go of the file for folders, when all threads have ended.
    pub(crate) fn close(&self) {
        self.lock().folders.file = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }
}

impl State {
    fn task(&mut self) -> Option<Task> {
        if self.is_stopped {
            return Some(Task::End);
        }
        if let Some(large) = self.large.first() {
            return Some(Task::Large(Arc::clone(large)));
        }
        if let Some(batch) = self.batches.pop_front() {
            return Some(Task::Batch(batch));
        }
        let is_walked = self.open == 0 && (self.folders.is_empty() || self.is_cut);
        (is_walked && self.busy == 0).then_some(Task::End)
    }
}

/// Folders in memory, and in a file those that are too many.
struct Backlog {
    memory: Vec<Folder>,
    memory_len: usize,
    /// None when all are walked.
    file: Option<std::fs::File>,
    /// Of the file: what was taken out again, and what was put in.
    read: u64,
    written: u64,
}

impl Backlog {
    fn new(file: std::fs::File) -> Self {
        Self { memory: Vec::new(), memory_len: 0, file: Some(file), read: 0, written: 0 }
    }

    fn file(&self) -> &std::fs::File {
        self.file.as_ref().expect("it is open until all are walked")
    }

    fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.read == self.written
    }

    fn push(&mut self, folder: Folder) -> std::io::Result<()> {
        self.memory_len += folder.path.len() + FOLDER_LEN;
        self.memory.push(folder);
        if self.memory_len <= FOLDERS_LEN_MAX {
            return Ok(());
        }
        // The older half goes: what was found last is deepest, and leads to the end soonest.
        let half = self.memory.len().div_ceil(2);
        let mut bytes = Vec::new();
        for folder in &self.memory[..half] {
            let len = u32::try_from(folder.path.len()).expect("paths are shorter than 4 GiB");
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&folder.device.to_le_bytes());
            bytes.extend_from_slice(&folder.mount);
            bytes.push(u8::from(folder.is_left));
            bytes.extend_from_slice(&folder.path);
        }
        self.file().write_all_at(&bytes, self.written)?;
        for folder in self.memory.drain(..half) {
            self.memory_len -= folder.path.len() + FOLDER_LEN;
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pop(&mut self) -> std::io::Result<Option<Folder>> {
        if let Some(folder) = self.memory.pop() {
            self.memory_len -= folder.path.len() + FOLDER_LEN;
            return Ok(Some(folder));
        }
        if self.read == self.written {
            // All of it was read; it begins anew.
            (self.read, self.written) = (0, 0);
            return Ok(None);
        }
        let mut head = [0; 29];
        self.file().read_exact_at(&mut head, self.read)?;
        let len = u32::from_le_bytes(head[..4].try_into().expect("4 bytes"));
        let mut path = vec![0; len as usize];
        self.file().read_exact_at(&mut path, self.read + 29)?;
        self.read += 29 + u64::from(len);
        Ok(Some(Folder {
            path,
            device: u64::from_le_bytes(head[4..12].try_into().expect("8 bytes")),
            mount: head[12..28].try_into().expect("16 bytes"),
            is_left: head[28] != 0,
        }))
    }
}

const NO_PANIC: &str = "nobody panics while he holds it";
/// Batches that wait for copiers: with two descriptors each they stay far below what a process may open.
const BATCHES_MAX: usize = 64;
/// Paths of folders in memory.
const FOLDERS_LEN_MAX: usize = if cfg!(test) { 10_000 } else { 8 << 20 };
/// What a folder takes in memory beside its path.
const FOLDER_LEN: usize = size_of::<Folder>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copying_is_not_over_while_a_copier_may_find_more() {
        let first = Folder { path: Vec::new(), device: 0, mount: [0; 16], is_left: false };
        let work = Work::new(first, tempfile::tempfile().unwrap(), 2).unwrap();
        work.folder().unwrap().unwrap();
        work.close_folder();
        assert!(matches!(work.next(false), Task::Nothing));
        std::thread::scope(|scope| {
            let other = scope.spawn(|| work.next(true));
            while work.lock().busy == 2 {
                std::thread::yield_now();
            }
            assert_eq!(work.lock().busy, 1);
            assert!(matches!(work.next(false), Task::Nothing), "this one has something left");
            assert!(matches!(work.next(true), Task::End));
            assert!(matches!(other.join().unwrap(), Task::End));
        });
    }

    #[test]
    fn folders_beyond_the_memory_come_back_all_and_once() {
        let mut backlog = Backlog::new(tempfile::tempfile().unwrap());
        let folder = |number: u64| Folder {
            path: vec![b'x'; usize::try_from(number % 300).unwrap()],
            device: number,
            mount: [3; 16],
            is_left: number.is_multiple_of(2),
        };
        let mut seen = Vec::new();
        for number in 0..5_000 {
            backlog.push(folder(number)).unwrap();
            assert!(backlog.memory_len <= FOLDERS_LEN_MAX);
            if number % 3 == 0 {
                seen.push(backlog.pop().unwrap().unwrap());
            }
        }
        while let Some(folder) = backlog.pop().unwrap() {
            seen.push(folder);
        }
        assert!(backlog.is_empty());
        seen.sort_by_key(|folder| folder.device);
        assert_eq!(seen, (0..5_000).map(folder).collect::<Vec<_>>());
    }
}
