//! Space: fallocate, holes, copies, and what the nodes have left.
//!
//! 1. What changes many chunks at once has the file alone and is one request per node that may hold a chunk of it.
//! 2. What nodes have given or taken is settled before it is answered, also when one of them failed.

use std::rc::Rc;

use sealfs_proto::{Errno, NodeId, Reply, Request, Space, limits};
use sealfs_transport::tasks::join_all;

use crate::file::{Dirty, File};
use crate::net::unexpected;
use crate::{Fallocate, Fs, Handle, Whence, WriteFlags};

impl Fs {
    /// fallocate(2). One request per node that may hold a chunk of the range (two for zeroing), and one to settle.
    pub async fn fallocate(
        &self,
        handle: Handle,
        mode: Fallocate,
        offset: u64,
        len: u64,
    ) -> Result<(), Errno> {
        let open = self.table().open(handle)?;
        let file = &open.file;
        let _writing = file.begin_write();
        self.ready(handle).await?;
        if !open.flags.write {
            return Err(Errno::EBADF);
        }
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let end = offset.checked_add(len).filter(|end| *end <= limits::FILE_SIZE_MAX);
        let end = end.ok_or(Errno::EFBIG)?;
        let _alone = file.data.exclusive().await;
        let generation = file.generation();

        let allocates = mode != Fallocate::Punch;
        let discards = !matches!(mode, Fallocate::Allocate | Fallocate::AllocateKeepSize);
        let mut blocks = 0;
        let mut result = Ok(());
        if discards {
            // There is nothing beyond the bound, but others may have raised it.
            if end > file.bound() {
                result = self.ask_since(file, file.asked()).await;
            }
            let to = end.min(file.bound());
            if result.is_ok() {
                result = self.change_space(file, Change::Discard, offset, to, &mut blocks).await;
            }
        }
        if allocates && result.is_ok() {
            result = self.raise(file, end).await;
        }
        if allocates && result.is_ok() {
            result = self.change_space(file, Change::Allocate, offset, end, &mut blocks).await;
        }
        let grows = matches!(mode, Fallocate::Allocate | Fallocate::Zero) && end > file.size();
        let size = if grows && result.is_ok() { end } else { 0 };
        let wrote = discards || size > 0;
        if wrote || blocks != 0 {
            self.wrote(file, Dirty { generation, size, blocks, wrote });
        }
        self.settle(file).await.and(result)
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE; ENXIO at or beyond the end of the file. One request to every node that may
    /// hold a chunk behind `offset`.
    pub async fn seek(&self, handle: Handle, offset: u64, whence: Whence) -> Result<u64, Errno> {
        let open = self.ready(handle).await?;
        let file = &open.file;
        self.settle(file).await?;
        let size = self.stat(file.ino).await?.size;
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let nodes = self.routes().holders(file.ino, file.chunk_size(), offset, size);
        let mut at = offset;
        loop {
            let asked = nodes.iter().map(|node| self.extents(file, *node, at, size));
            let mut ranges = Vec::new();
            let mut complete = size;
            for answer in join_all(asked).await {
                let (found, next) = answer?;
                ranges.extend(found);
                complete = next.map_or(complete, |next| complete.min(next));
            }
            match look(&mut ranges, at, complete, whence) {
                Some(found) => return Ok(found),
                None if complete >= size && whence == Whence::Data => return Err(Errno::ENXIO),
                None if complete >= size => return Ok(size),
                None if complete <= at => {
                    tracing::error!(ino = %file.ino, at, "a node does not say where its data goes on");
                    return Err(Errno::EIO);
                }
                None => at = complete,
            }
        }
    }

    /// copy_file_range(2): answers the bytes copied, fewer at the source's end. EINVAL if both are one file and overlap.
    /// Reads and writes through this client, `COPY_STEPS` steps at a time.
    pub async fn copy_range(
        &self,
        source: Handle,
        source_offset: u64,
        target: Handle,
        target_offset: u64,
        len: u64,
    ) -> Result<u64, Errno> {
        let from = self.ready(source).await?;
        let to = self.ready(target).await?;
        if !from.flags.read || !to.flags.write {
            return Err(Errno::EBADF);
        }
        // As Linux has it: first the source's end, then the overlap, then the target's limit.
        let size = self.size_for_read(&from.file, source_offset).await?;
        let len = len.min(size.saturating_sub(source_offset));
        let apart = source_offset.abs_diff(target_offset) >= len;
        if Rc::ptr_eq(&from.file, &to.file) && !apart {
            return Err(Errno::EINVAL);
        }
        if target_offset.checked_add(len).is_none_or(|end| end > limits::FILE_SIZE_MAX) {
            return Err(Errno::EFBIG);
        }
        let mut copied = 0;
        while copied < len {
            let round = (len - copied).min(COPY_STEPS * COPY_STEP);
            let steps = (0..round.div_ceil(COPY_STEP)).map(|step| {
                let at = copied + step * COPY_STEP;
                let len = COPY_STEP.min(len - at) as usize;
                self.copy_step(source, source_offset + at, target, target_offset + at, len)
            });
            let mut done = 0;
            let mut failed = None;
            for (step, result) in join_all(steps).await.into_iter().enumerate() {
                match result {
                    Ok(bytes) if failed.is_none() && done == step as u64 * COPY_STEP => {
                        done += bytes;
                    }
                    Ok(_) => {}
                    Err(errno) => failed = failed.or(Some(errno)),
                }
            }
            copied += done;
            match failed {
                Some(errno) if copied == 0 => return Err(errno),
                Some(_) => return Ok(copied),
                None if done < round => return Ok(copied),
                None => {}
            }
        }
        Ok(copied)
    }

    /// Space of all nodes together.
    pub async fn statfs(&self) -> Result<Space, Errno> {
        let asked = self.routes().nodes().iter().map(|node| async {
            match self.ask_node(*node, Request::Space).await? {
                Reply::Space(space) => Ok(space),
                other => Err(unexpected("Space", &other)),
            }
        });
        let mut sum = Space::default();
        for space in join_all(asked).await {
            let space = space?;
            sum.total = sum.total.saturating_add(space.total);
            sum.free = sum.free.saturating_add(space.free);
            sum.available = sum.available.saturating_add(space.available);
            sum.inodes = sum.inodes.saturating_add(space.inodes);
        }
        Ok(sum)
    }

    /// Discards or allocates on every node that may hold a chunk of the range; adds up what it changed.
    async fn change_space(
        &self,
        file: &File,
        change: Change,
        from: u64,
        to: u64,
        blocks: &mut i64,
    ) -> Result<(), Errno> {
        let (ino, chunk_size) = (file.ino, file.chunk_size());
        let nodes = self.routes().holders(ino, chunk_size, from, to);
        let sent = self.now();
        let asked = nodes.into_iter().map(|node| async move {
            let request = match change {
                Change::Discard => Request::Discard { ino, chunk_size, from, to },
                Change::Allocate => Request::Allocate { ino, chunk_size, from, to },
            };
            let reply = self.ask_node(node, request).await?;
            self.mark(ino, node);
            match reply {
                Reply::Written { attr: Some(attr), .. } => {
                    file.absorb(&attr, sent);
                    Ok(0)
                }
                Reply::Written { blocks, attr: None } => Ok(blocks),
                other => Err(unexpected("space", &other)),
            }
        });
        let mut result = Ok(());
        for answer in join_all(asked).await {
            match answer {
                Ok(delta) => *blocks = blocks.saturating_add(delta),
                Err(errno) => result = result.and(Err(errno)),
            }
        }
        result
    }

    async fn extents(
        &self,
        file: &File,
        node: NodeId,
        from: u64,
        to: u64,
    ) -> Result<(Vec<(u64, u64)>, Option<u64>), Errno> {
        let (ino, chunk_size) = (file.ino, file.chunk_size());
        match self.ask_node(node, Request::Extents { ino, chunk_size, from, to }).await? {
            Reply::Extents { ranges, next } => Ok((ranges, next)),
            other => Err(unexpected("Extents", &other)),
        }
    }

    async fn copy_step(
        &self,
        source: Handle,
        source_offset: u64,
        target: Handle,
        target_offset: u64,
        len: usize,
    ) -> Result<u64, Errno> {
        let (flags, mut copied) = (WriteFlags::default(), 0);
        for piece in self.read(source, source_offset, len).await? {
            let bytes = piece.region.freeze().cut(0, piece.len);
            let written = self.write(target, target_offset + copied, bytes, flags).await?;
            copied += written as u64;
            if written < piece.len {
                break;
            }
        }
        Ok(copied)
    }
}

#[derive(Clone, Copy)]
enum Change {
    Discard,
    Allocate,
}

/// The first data (or hole) at or behind `at`, as far as `ranges` tell, which is up to `complete`.
fn look(ranges: &mut [(u64, u64)], at: u64, complete: u64, whence: Whence) -> Option<u64> {
    ranges.sort_unstable();
    let mut at = at;
    for &(from, to) in ranges.iter().filter(|(from, to)| from < to) {
        if from >= complete {
            break;
        }
        match whence {
            Whence::Data if to > at => return Some(from.max(at)),
            Whence::Hole if from > at => return Some(at),
            _ => at = at.max(to),
        }
    }
    (whence == Whence::Hole && at < complete).then_some(at)
}

/// One chunk by default, so that source and target pieces are each one request.
const COPY_STEP: u64 = limits::CHUNK_SIZE as u64;
/// Keeps several nodes busy with little memory.
const COPY_STEPS: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_holes_are_found_in_ranges_of_several_nodes() {
        let all = || vec![(30, 40), (10, 20), (20, 25)];
        assert_eq!(look(&mut all(), 0, 50, Whence::Data), Some(10));
        assert_eq!(look(&mut all(), 12, 50, Whence::Data), Some(12));
        assert_eq!(look(&mut all(), 25, 50, Whence::Data), Some(30));
        assert_eq!(look(&mut all(), 40, 50, Whence::Data), None);
        assert_eq!(look(&mut all(), 0, 50, Whence::Hole), Some(0));
        assert_eq!(look(&mut all(), 12, 50, Whence::Hole), Some(25));
        assert_eq!(look(&mut all(), 35, 50, Whence::Hole), Some(40));
        assert_eq!(look(&mut all(), 35, 40, Whence::Hole), None, "the end of the file follows");
    }

    #[test]
    fn what_one_node_has_not_told_yet_is_no_hole() {
        assert_eq!(look(&mut [(10, 20), (40, 50)], 10, 30, Whence::Hole), Some(20));
        assert_eq!(look(&mut [(10, 30), (40, 50)], 10, 30, Whence::Hole), None);
        assert_eq!(look(&mut [(40, 50)], 10, 30, Whence::Data), None);
    }
}
