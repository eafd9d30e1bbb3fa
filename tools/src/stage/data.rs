//! A file's data: from the source to the target, holes left out, and back again to see what arrived.
//!
//! 1. What is compared is what read(2) gave of the source against what read(2) gives of the target after a sync, past
//!    this machine's page cache: O_DIRECT where the file system knows it, else the pages are dropped first.
//! 2. Only data is written: a target that was new and is now as long as the source has the source's holes.
//! 3. Memory is one [`Buffer`] per thread, whatever the file's size.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use rustix::fd::OwnedFd;
use rustix::fs::{Advice, OFlags, SeekFrom, fadvise, fcntl_getfl, fcntl_setfl, seek};
use rustix::io::{Errno, pread, pwrite};
use sha2::{Digest, Sha256};

use super::trouble::Trouble;

/// How data is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Checksum {
    /// Not at all: nothing is read back.
    None,
    /// CRC32C: finds what breaks by accident; costs next to nothing.
    Crc32c,
    /// SHA-256: finds what was made to deceive, too.
    Sha256,
}

/// Memory that O_DIRECT may read into.
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

/// What was copied of a file.
pub(crate) struct Copied {
    /// Where there is data: ascending, not empty, not touching.
    extents: Vec<Range<u64>>,
    /// Of all of it in this order.
    sum: Sum,
}

/// A sum under way, and its result.
#[derive(Clone)]
enum Sum {
    None,
    Crc32c(u32),
    Sha256(Box<Sha256>),
}

impl Buffer {
    pub(crate) fn new() -> Self {
        let memory = vec![0; BUFFER_LEN + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BUFFER_LEN]
    }
}

impl Copied {
    /// How many bytes of data.
    pub(crate) fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.end - extent.start).sum()
    }
}

impl Sum {
    fn new(checksum: Checksum) -> Self {
        match checksum {
            Checksum::None => Self::None,
            Checksum::Crc32c => Self::Crc32c(0),
            Checksum::Sha256 => Self::Sha256(Box::default()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Crc32c(sum) => *sum = crc32c::crc32c_append(*sum, bytes),
            Self::Sha256(hash) => hash.update(bytes),
        }
    }

    fn result(self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Crc32c(sum) => sum.to_le_bytes().into(),
            Self::Sha256(hash) => hash.finalize().to_vec(),
        }
    }
}

/// Copies what data `source` has in `range` to the same place in `target`. `has_holes` false: all of it is data.
/// `tell` hears of every piece. A source that ends before the range does has changed.
pub(crate) fn copy(
    source: &OwnedFd,
    target: &OwnedFd,
    range: Range<u64>,
    has_holes: bool,
    copying: &mut Copying<'_>,
) -> Result<Copied, Trouble> {
    let mut copied = Copied { extents: Vec::new(), sum: Sum::new(copying.checksum) };
    let mut from = range.start;
    while from < range.end {
        let extent = if has_holes {
            match next_data(source, from)? {
                Some(start) if start < range.end => start..next_hole(source, start)?.min(range.end),
                _ => break,
            }
        } else {
            from..range.end
        };
        from = extent.end;
        copy_extent(source, target, extent.clone(), &mut copied.sum, copying)?;
        copied.extents.push(extent);
    }
    Ok(copied)
}

/// What a copying thread brings along.
pub(crate) struct Copying<'a> {
    pub(crate) buffer: &'a mut Buffer,
    pub(crate) checksum: Checksum,
    /// Ends the copying between two pieces.
    pub(crate) stop: &'a AtomicBool,
    /// Hears the length of every piece that was written.
    pub(crate) tell: &'a dyn Fn(u64),
}

fn copy_extent(
    source: &OwnedFd,
    target: &OwnedFd,
    extent: Range<u64>,
    sum: &mut Sum,
    copying: &mut Copying<'_>,
) -> Result<(), Trouble> {
    let mut at = extent.start;
    while at < extent.end {
        if copying.stop.load(Ordering::Relaxed) {
            return Err(Trouble::Stopped);
        }
        let bytes = copying.buffer.bytes();
        let wanted = bytes.len().min(usize::try_from(extent.end - at).unwrap_or(usize::MAX));
        let got = retry(|| pread(source, &mut bytes[..wanted], at)).map_err(Trouble::reading)?;
        if got == 0 {
            return Err(Trouble::Changed);
        }
        sum.update(&bytes[..got]);
        let mut written = 0;
        while written < got {
            let offset = at + written as u64;
            let piece = &bytes[written..got];
            written += retry(|| pwrite(target, piece, offset)).map_err(Trouble::writing)?;
        }
        at += got as u64;
        (copying.tell)(got as u64);
    }
    Ok(())
}

/// Reads what was copied back from `file`, which nobody writes through: its O_DIRECT flag is set meanwhile.
pub(crate) fn read_back(
    file: &OwnedFd,
    copied: &Copied,
    buffer: &mut Buffer,
    checksum: Checksum,
) -> Result<(), Trouble> {
    if checksum == Checksum::None {
        return Ok(());
    }
    let flags = fcntl_getfl(file).map_err(Trouble::verifying)?;
    let is_direct = fcntl_setfl(file, flags | OFlags::DIRECT).is_ok();
    let mut result = sum_of(file, &copied.extents, buffer, checksum);
    if is_direct {
        fcntl_setfl(file, flags).map_err(Trouble::verifying)?;
    }
    if !is_direct || matches!(result, Err(Errno::INVAL)) {
        // Clean pages only are dropped, and these are: the file was synced.
        fadvise(file, 0, None, Advice::DontNeed).map_err(Trouble::verifying)?;
        result = sum_of(file, &copied.extents, buffer, checksum);
    }
    let sum = result.map_err(Trouble::verifying)?;
    if sum.result() == copied.sum.clone().result() { Ok(()) } else { Err(Trouble::Differs) }
}

/// Whether two files of a length have the same data. What neither has written is not read.
pub(crate) fn is_equal(
    one: &OwnedFd,
    other: &OwnedFd,
    len: u64,
    buffer: &mut Buffer,
    stop: &AtomicBool,
) -> Result<bool, Trouble> {
    let (ours, theirs) = buffer.bytes().split_at_mut(BUFFER_LEN / 2);
    let mut at = 0;
    loop {
        let starts = [next_data(one, at)?, next_data(other, at)?];
        let Some(start) = starts.into_iter().flatten().min().filter(|start| *start < len) else {
            return Ok(true);
        };
        if stop.load(Ordering::Relaxed) {
            return Err(Trouble::Stopped);
        }
        let got = retry(|| pread(one, &mut *ours, start)).map_err(Trouble::reading)?;
        let mut read = 0;
        while read < got {
            let rest = &mut theirs[read..got];
            match retry(|| pread(other, &mut *rest, start + read as u64)) {
                Ok(0) => return Ok(false),
                Ok(more) => read += more,
                Err(errno) => return Err(Trouble::verifying(errno)),
            }
        }
        if got == 0 {
            return Err(Trouble::Changed);
        }
        if ours[..got] != theirs[..got] {
            return Ok(false);
        }
        at = start + got as u64;
    }
}

fn sum_of(
    file: &OwnedFd,
    extents: &[Range<u64>],
    buffer: &mut Buffer,
    checksum: Checksum,
) -> Result<Sum, Errno> {
    let mut sum = Sum::new(checksum);
    for extent in extents {
        let mut at = extent.start;
        while at < extent.end {
            // O_DIRECT reads from an aligned place, whole blocks; only the file's end makes them short.
            let base = at - at % ALIGN as u64;
            let left = usize::try_from(extent.end - base).unwrap_or(usize::MAX);
            let wanted = BUFFER_LEN.min(left.next_multiple_of(ALIGN));
            let bytes = &mut buffer.bytes()[..wanted];
            let got = retry(|| pread(file, &mut *bytes, base))?;
            let skip = usize::try_from(at - base).expect("it is less than a block");
            if got <= skip {
                break; // It is shorter than what was written, so that the sums differ.
            }
            let end = got.min(left);
            sum.update(&bytes[skip..end]);
            at = base + end as u64;
        }
    }
    Ok(sum)
}

/// Where data begins at or behind `from`; nothing if only a hole follows.
pub(crate) fn next_data(file: &OwnedFd, from: u64) -> Result<Option<u64>, Trouble> {
    match seek(file, SeekFrom::Data(from)) {
        Ok(start) => Ok(Some(start)),
        Err(Errno::NXIO) => Ok(None),
        // It does not know of holes: all is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => Ok(Some(from)),
        Err(errno) => Err(Trouble::reading(errno)),
    }
}

/// Where the data at `from` ends.
fn next_hole(file: &OwnedFd, from: u64) -> Result<u64, Trouble> {
    match seek(file, SeekFrom::Hole(from)) {
        Ok(end) => Ok(end),
        Err(Errno::NXIO) => Err(Trouble::Changed),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => Ok(u64::MAX),
        Err(errno) => Err(Trouble::reading(errno)),
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// One read, write or piece of a sum: large enough that system calls do not count, small enough for a cache.
const BUFFER_LEN: usize = 1 << 20;
/// What O_DIRECT wants of memory, offset and length on every device of today.
const ALIGN: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Seek, Write};

    fn pair(content: impl Fn(&mut File)) -> (OwnedFd, OwnedFd, u64) {
        let mut source = tempfile::tempfile().unwrap();
        content(&mut source);
        let len = source.metadata().unwrap().len();
        (source.into(), tempfile::tempfile().unwrap().into(), len)
    }

    fn copy_all(source: &OwnedFd, target: &OwnedFd, len: u64, checksum: Checksum) -> Copied {
        let (mut buffer, stop) = (Buffer::new(), AtomicBool::new(false));
        let mut copying = Copying { buffer: &mut buffer, checksum, stop: &stop, tell: &|_| {} };
        copy(source, target, 0..len, true, &mut copying).unwrap()
    }

    #[test]
    fn a_byte_that_did_not_arrive_is_found_by_either_sum() {
        for checksum in [Checksum::Crc32c, Checksum::Sha256] {
            let (source, target, len) = pair(|file| file.write_all(&[7; 3_000_001]).unwrap());
            let copied = copy_all(&source, &target, len, checksum);
            assert_eq!(copied.bytes(), 3_000_001);
            assert!(read_back(&target, &copied, &mut Buffer::new(), checksum).is_ok());
            pwrite(&target, &[8], 2_999_999).unwrap();
            let result = read_back(&target, &copied, &mut Buffer::new(), checksum);
            assert!(matches!(result, Err(Trouble::Differs)));
            pwrite(&target, &[7], 2_999_999).unwrap();
            rustix::fs::ftruncate(&target, 3_000_000).unwrap();
            let result = read_back(&target, &copied, &mut Buffer::new(), checksum);
            assert!(matches!(result, Err(Trouble::Differs)));
        }
    }

    #[test]
    fn holes_are_neither_read_nor_written() {
        let (source, target, len) = pair(|file| {
            file.seek(std::io::SeekFrom::Start(1 << 30)).unwrap();
            file.write_all(b"data").unwrap();
            file.set_len(1 << 40).unwrap();
        });
        let copied = copy_all(&source, &target, len, Checksum::Crc32c);
        assert!(copied.bytes() <= 1 << 20, "{} bytes were read", copied.bytes());
        assert!(read_back(&target, &copied, &mut Buffer::new(), Checksum::Crc32c).is_ok());
        let mut bytes = [0; 4];
        pread(&target, &mut bytes, 1 << 30).unwrap();
        assert_eq!(&bytes, b"data");
    }

    #[test]
    fn files_are_equal_by_their_data_wherever_their_holes_are() {
        let sparse = |file: &mut File| {
            file.set_len(5 << 20).unwrap();
            file.seek(std::io::SeekFrom::Start(3 << 20)).unwrap();
            file.write_all(b"data").unwrap();
        };
        let (one, _, len) = pair(sparse);
        let (other, ..) = pair(|file| {
            file.write_all(&[0; 2 << 20]).unwrap();
            sparse(file);
        });
        let stop = AtomicBool::new(false);
        let equal = |one: &OwnedFd, other: &OwnedFd| {
            is_equal(one, other, len, &mut Buffer::new(), &stop).unwrap()
        };
        assert!(equal(&one, &other) && equal(&other, &one));
        for at in [0, 1_000_000, (3 << 20) + 3, (5 << 20) - 1] {
            let (wrong, ..) = pair(sparse);
            pwrite(&wrong, &[9], at).unwrap();
            assert!(!equal(&one, &wrong) && !equal(&wrong, &one), "{at}");
        }
    }

    #[test]
    fn a_source_that_became_shorter_has_changed() {
        let (source, target, len) = pair(|file| file.write_all(&[1; 10]).unwrap());
        let (mut buffer, stop) = (Buffer::new(), AtomicBool::new(false));
        let mut copying =
            Copying { buffer: &mut buffer, checksum: Checksum::Crc32c, stop: &stop, tell: &|_| {} };
        let result = copy(&source, &target, 0..len + 1, false, &mut copying);
        assert!(matches!(result, Err(Trouble::Changed)));
    }
}
