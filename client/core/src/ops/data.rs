//! Bytes: reads and writes, cut at chunk borders, all chunks of one operation in flight at once.
//!
//! 1. Before a byte at or beyond `bound` is written, `bound` is raised above it and is durable. It begins at the end of the
//!    first chunk, so that a small file needs no raise.
//! 2. A read answers fewer bytes than it was asked for only at the end of the file.
//! 3. A read takes all its regions at once or none, so that two reads never wait for each other's; reads of a node that
//!    does not answer hold no more than its share of them.

use std::rc::Rc;

use sealfs_proto::{Errno, Reply, Request, SetAttr, Who, limits};
use sealfs_transport::tasks::join_all;
use sealfs_transport::{Region, Slice};

use crate::file::{Dirty, File};
use crate::net::unexpected;
use crate::route::{Part, parts};
use crate::{Fs, Handle, Piece, WriteFlags};

impl Fs {
    /// Up to `len` bytes at `offset`; fewer only at the end of the file. One piece per chunk that is touched, in order.
    /// One request per piece; one more when the known size is too old or lies at or before `offset`.
    pub async fn read(&self, handle: Handle, offset: u64, len: usize) -> Result<Vec<Piece>, Errno> {
        let open = self.ready(handle).await?;
        let file = &open.file;
        let _pass = file.data.shared().await;
        let size = self.size_for_read(file, offset).await?;
        let end = offset.saturating_add(len as u64).min(size);
        if offset >= end {
            return Ok(Vec::new());
        }
        let parts = parts(file.chunk_size(), offset, (end - offset) as usize);
        let node = |part: &Part| self.routes().node(self.chunk_shard(file.ino, part.index));
        let wanted: Vec<_> = parts.iter().map(|part| (node(part), part.len as usize)).collect();
        let regions = self.regions(&wanted).await;
        let reads = parts.iter().zip(regions);
        let pieces =
            join_all(reads.map(|(part, region)| self.read_part(file, *part, region))).await;
        pieces.into_iter().collect()
    }

    /// Writes at `offset`, or at the end of the file with `flags.append` (then at most `limits::BULK_LEN_MAX` bytes, as
    /// one). Answers the bytes written: fewer than given if some of it failed.
    pub async fn write(
        &self,
        handle: Handle,
        offset: u64,
        bytes: Slice,
        flags: WriteFlags,
    ) -> Result<usize, Errno> {
        let file = Rc::clone(&self.table().open(handle)?.file);
        let written = self.write_open(handle, &file, offset, bytes, flags).await;
        // It may have been the last that kept a file which was closed meanwhile.
        self.table().forget_idle(file.ino);
        written
    }

    async fn write_open(
        &self,
        handle: Handle,
        file: &File,
        offset: u64,
        bytes: Slice,
        flags: WriteFlags,
    ) -> Result<usize, Errno> {
        // From now on who gives up a lock waits for it.
        let _writing = file.begin_write();
        let _open = self.ready(handle).await?;
        if bytes.is_empty() {
            return Ok(0);
        }
        if flags.kill_suid_sgid {
            self.kill_suid_sgid(file, handle).await?;
        }
        let _pass = file.data.shared().await;
        if flags.append {
            let bytes = bytes.cut(0, bytes.len().min(limits::BULK_LEN_MAX as usize));
            let offset = self.reserve(file, bytes.len() as u32).await?;
            return self.write_at(file, offset, &bytes).await?.reported();
        }
        self.write_here(file, offset, &bytes).await?.reported()
    }

    /// Writes what a shared mapping has changed: all of it, or it is an error, for no program is there to write the rest.
    pub async fn write_back(&self, handle: Handle, offset: u64, bytes: Slice) -> Result<(), Errno> {
        let open = self.table().open(handle)?;
        let _writing = open.file.begin_write();
        self.ready(handle).await?;
        let _pass = open.file.data.shared().await;
        match self.write_here(&open.file, offset, &bytes).await? {
            Written { failed: Some(errno), .. } => Err(errno),
            Written { len, failed: None } if len < bytes.len() => Err(Errno::EFBIG),
            Written { .. } => Ok(()),
        }
    }

    /// The same as [`WriteFlags::kill_suid_sgid`], before another change of the content: the kernel leaves it to us.
    pub async fn kill_set_id(&self, handle: Handle) -> Result<(), Errno> {
        let open = self.ready(handle).await?;
        self.kill_suid_sgid(&open.file, handle).await
    }

    /// Takes set-id bits away before the first byte is written. A mode that is as old as attributes may be is believed: who
    /// has set such a bit since then could not know what had been written just before, either.
    async fn kill_suid_sgid(&self, file: &File, handle: Handle) -> Result<(), Errno> {
        self.refresh(file).await?;
        if file.attr().mode & SET_ID_BITS != 0 {
            let set = SetAttr { kill_suid_sgid: true, ..SetAttr::default() };
            self.setattr(&Who::root(), file.ino, Some(handle), set).await?;
        }
        Ok(())
    }

    /// Writes at `offset` what fits below the largest file.
    async fn write_here(&self, file: &File, offset: u64, bytes: &Slice) -> Result<Written, Errno> {
        let room = limits::FILE_SIZE_MAX.saturating_sub(offset);
        if room == 0 {
            return Err(Errno::EFBIG);
        }
        let len = usize::try_from(room).map_or(bytes.len(), |room| bytes.len().min(room));
        self.write_at(file, offset, &bytes.cut(0, len)).await
    }

    /// Where the file ends, for a read at `offset`. Asks if what is known is too old, and also before it says that there is
    /// nothing at `offset`.
    pub(crate) async fn size_for_read(&self, file: &File, offset: u64) -> Result<u64, Errno> {
        let asked = file.asked();
        let known = file.size();
        if offset < known && file.is_fresh(self.now(), self.options().size_age_ms) {
            return Ok(known);
        }
        self.ask_since(file, asked).await?;
        Ok(file.size())
    }

    /// Asks for the attributes unless they are young enough.
    async fn refresh(&self, file: &File) -> Result<(), Errno> {
        if file.is_fresh(self.now(), limits::CACHE_MS) {
            return Ok(());
        }
        self.ask_since(file, file.asked()).await
    }

    /// Attributes that were asked for after `asked` questions.
    pub(crate) async fn ask_since(&self, file: &File, asked: u64) -> Result<(), Errno> {
        let _one = file.asking.exclusive().await;
        // Somebody else may have asked meanwhile: a question that began after this read is good enough.
        if !file.is_answered_since(asked) {
            let (number, sent) = (file.ask(), self.now());
            let attr = self.ask_attr(file.ino, Request::Stat { ino: file.ino }).await?;
            file.absorb(&attr, sent);
            file.answered(number);
        }
        Ok(())
    }

    async fn read_part(&self, file: &File, part: Part, region: Region) -> Result<Piece, Errno> {
        let request = Request::Read {
            ino: file.ino,
            index: part.index,
            offset: part.offset,
            length: part.len,
        };
        let shard = self.chunk_shard(file.ino, part.index);
        let (reply, mut region, filled) = self.ask_into(shard, request, region).await?;
        let len = part.len as usize;
        match reply {
            Reply::Data { length } if length <= filled && length as usize <= len => {
                region.bytes_mut()[length as usize..len].fill(0);
                Ok(Piece { region, len })
            }
            other => Err(unexpected("Read", &other)),
        }
    }

    /// Writes all of `bytes`, which lie within the largest file. The caller has passed the data gate.
    async fn write_at(&self, file: &File, offset: u64, bytes: &Slice) -> Result<Written, Errno> {
        if offset + bytes.len() as u64 > u64::from(file.chunk_size()) {
            // The settlement moves mtime unless somebody has set it under a generation that this write did not know.
            self.refresh(file).await?;
        }
        let generation = file.generation();
        self.raise(file, offset + bytes.len() as u64).await?;
        let parts = parts(file.chunk_size(), offset, bytes.len());
        let writes = parts.iter().map(|part| self.write_part(file, *part, bytes));
        let results = join_all(writes).await;

        let mut failed = None;
        let mut written = 0;
        let mut unsettled = false;
        let mut blocks = 0_i64;
        for (part, result) in parts.iter().zip(results) {
            match result {
                Ok(delta) => {
                    unsettled |= delta.is_some();
                    blocks = blocks.saturating_add(delta.unwrap_or(0));
                    if failed.is_none() {
                        written += part.len as usize;
                    }
                }
                Err(errno) => failed = failed.or(Some(errno)),
            }
        }
        if unsettled {
            let size = if written > 0 { offset + written as u64 } else { 0 };
            self.wrote(file, Dirty { generation, size, blocks, wrote: true });
            if self.options().settle_ms == 0 {
                self.settle(file).await?;
            }
        }
        Ok(Written { len: written, failed })
    }

    /// Writes one part; gives the blocks that are still to be settled, `None` if the shard has settled them itself.
    async fn write_part(
        &self,
        file: &File,
        part: Part,
        bytes: &Slice,
    ) -> Result<Option<i64>, Errno> {
        let shard = self.chunk_shard(file.ino, part.index);
        let request = Request::Write { ino: file.ino, index: part.index, offset: part.offset };
        let slice = bytes.cut(part.at, part.at + part.len as usize);
        let sent = self.now();
        let reply = self.ask_with(shard, request, slice).await?;
        self.mark(file.ino, self.routes().node(shard));
        match reply {
            Reply::Written { attr: Some(attr), .. } => {
                file.absorb(&attr, sent);
                Ok(None)
            }
            Reply::Written { blocks, attr: None } => Ok(Some(blocks)),
            other => Err(unexpected("Write", &other)),
        }
    }

    /// Reserves `len` bytes at the end of the file for this write alone.
    async fn reserve(&self, file: &File, len: u32) -> Result<u64, Errno> {
        // The shard must know how far other writes of this client reach, or it would reserve what they have written.
        self.settle(file).await?;
        let request = Request::Reserve { ino: file.ino, length: len };
        let offset = match self.ask(file.ino.shard(), request).await? {
            Reply::Offset(offset) => offset,
            other => return Err(unexpected("Reserve", &other)),
        };
        if offset > limits::FILE_SIZE_MAX - u64::from(len) {
            return Err(Errno::EFBIG);
        }
        Ok(offset)
    }

    /// Makes sure that bytes below `end` may be written.
    pub(crate) async fn raise(&self, file: &File, end: u64) -> Result<(), Errno> {
        if end <= file.bound() {
            return Ok(());
        }
        let _one = file.raising.exclusive().await;
        if end <= file.bound() {
            return Ok(());
        }
        let sent = self.now();
        let request = Request::Raise { ino: file.ino, bound: raised(end) };
        let attr = self.ask_attr(file.ino, request).await?;
        file.absorb(&attr, sent);
        if attr.bound < end {
            tracing::error!(ino = %file.ino, bound = attr.bound, end, "bound was not raised");
            return Err(Errno::EIO);
        }
        Ok(())
    }
}

/// What became of a write.
struct Written {
    /// Bytes from its beginning that were written.
    len: usize,
    /// Why the rest, or some of it, was not.
    failed: Option<Errno>,
}

impl Written {
    /// What write(2) says: how far it came, or why it came nowhere.
    const fn reported(self) -> Result<usize, Errno> {
        match self {
            Self { len: 0, failed: Some(errno) } => Err(errno),
            Self { len, .. } => Ok(len),
        }
    }
}

/// The bound to ask for so that `end` lies below it: the next power of two, so that a growing file costs a request per
/// doubling, and from [`RAISE_MAX`] on the next multiple of it, for the bound also says how many nodes a truncate asks.
fn raised(end: u64) -> u64 {
    let bound = if end <= RAISE_MAX {
        end.next_power_of_two()
    } else {
        end.checked_next_multiple_of(RAISE_MAX).unwrap_or(u64::MAX)
    };
    bound.min(limits::FILE_SIZE_MAX)
}

/// A quarter of a second of writing at 4 GB/s.
const RAISE_MAX: u64 = 1 << 30;
/// S_ISUID and S_ISGID.
const SET_ID_BITS: u32 = 0o6000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_is_raised_in_doubling_steps_and_then_by_a_gibibyte() {
        assert_eq!(raised(1_048_577), 2 << 20);
        assert_eq!(raised(2 << 20), 2 << 20);
        assert_eq!(raised((1 << 30) + 1), 2 << 30);
        assert_eq!(raised((5 << 30) + 1), 6 << 30);
        assert_eq!(raised(limits::FILE_SIZE_MAX), limits::FILE_SIZE_MAX);
    }
}
