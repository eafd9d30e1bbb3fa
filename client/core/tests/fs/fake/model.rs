//! A cluster of nodes in a few maps: it answers requests as shards would, checks that each came to the right place, and
//! remembers them. Nothing is concurrent in it, nothing is durable, nobody is refused for their uid.

use std::collections::{BTreeMap, BTreeSet};

use sealfs_proto::{
    Attr, ClusterId, ClusterMap, Entry, Epoch, Errno, Ino, Kind, Listed, Lock, LockKind, LockSpace,
    New, Node, NodeId, Placement, RenameFlag, Reply, Request, SetAttr, ShardId, Space, Time,
    chunk_shard, directory_shard, name_hash,
};

pub(crate) const CHUNK: u32 = 65_536;
const BLOCK: u64 = 4_096;

/// Picks requests.
pub(crate) type Accepts = fn(&Request) -> bool;

pub(crate) struct Model {
    pub(crate) map: ClusterMap,
    pub(crate) placement: Placement,
    pub(crate) inodes: BTreeMap<Ino, Inode>,
    /// Blocks of files that have space.
    pub(crate) blocks: BTreeMap<(Ino, u64), Vec<u8>>,
    /// Everything that was asked.
    pub(crate) log: Vec<(NodeId, Request)>,
    pub(crate) locks: Vec<(Ino, Lock)>,
    /// The next request that this accepts fails so.
    pub(crate) fail: Option<(Accepts, Errno)>,
    next: u64,
}

#[derive(Clone)]
pub(crate) struct Inode {
    pub(crate) attr: Attr,
    pub(crate) opens: u32,
    target: Vec<u8>,
    parent: Ino,
    pub(crate) entries: BTreeMap<(u64, Vec<u8>), (Ino, Kind)>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Model {
    pub(crate) fn new(nodes: u16) -> Self {
        let nodes = (1..=nodes).map(|id| Node { id: NodeId(id), weight: 1, addresses: vec![] });
        let map = ClusterMap {
            cluster: ClusterId([7; 16]),
            epoch: Epoch(1),
            shards_log2: 12,
            chunk_size: CHUNK,
            nodes: nodes.collect(),
        };
        let placement = Placement::new(&map);
        let mut model = Self {
            map,
            placement,
            inodes: BTreeMap::new(),
            blocks: BTreeMap::new(),
            log: Vec::new(),
            locks: Vec::new(),
            fail: None,
            next: 2,
        };
        model.add(Ino::ROOT, Kind::Directory, 0o755, Ino::ROOT);
        model
    }

    pub(crate) fn node(&self, shard: ShardId) -> NodeId {
        self.placement.node(shard).expect("requests name shards that exist")
    }

    /// Names of the requests since the last call.
    pub(crate) fn take_log(&mut self) -> Vec<String> {
        let name = |request: &Request| {
            let text = format!("{request:?}");
            text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
        };
        self.log.drain(..).map(|(_, request)| name(&request)).collect()
    }

    /// The nodes that were asked what `accept` accepts, since the last look at the log.
    pub(crate) fn asked(&self, accept: Accepts) -> BTreeSet<NodeId> {
        self.log.iter().filter(|(_, request)| accept(request)).map(|(node, _)| *node).collect()
    }

    /// Answers one request with its bulk; gives the reply and its bulk.
    pub(crate) fn answer(
        &mut self,
        node: NodeId,
        shard: ShardId,
        request: Request,
        bulk: &[u8],
    ) -> Result<(Reply, Vec<u8>), Errno> {
        self.log.push((node, request.clone()));
        if let Some(expected) = self.place(&request) {
            assert_eq!(shard, expected, "{request:?}");
            assert_eq!(node, self.node(shard), "{request:?}");
        }
        if let Some((accepts, errno)) = self.fail
            && accepts(&request)
        {
            self.fail = None;
            return Err(errno);
        }
        if let Request::Read { ino, index, offset, length } = request {
            let from = index * u64::from(CHUNK) + u64::from(offset);
            let mut bytes = self.bytes(ino, from, u64::from(length));
            let filled = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            bytes.truncate(filled);
            return Ok((Reply::Data { length: filled as u32 }, bytes));
        }
        self.act(node, request, bulk).map(|reply| (reply, Vec::new()))
    }

    /// The shard that a request belongs to; `None` for requests of a node.
    fn place(&self, request: &Request) -> Option<ShardId> {
        use Request as R;
        match request {
            R::Lookup { dir, .. }
            | R::Create { dir, .. }
            | R::CreateUnnamed { dir, .. }
            | R::Mkdir { dir, .. }
            | R::Unlink { dir, .. }
            | R::Rmdir { dir, .. }
            | R::Rename { dir, .. }
            | R::Link { dir, .. }
            | R::List { dir, .. } => Some(dir.shard()),
            R::Read { ino, index, .. } | R::Write { ino, index, .. } => {
                Some(chunk_shard(*ino, *index, self.map.shards()))
            }
            R::Stat { ino }
            | R::SetAttr { ino, .. }
            | R::ReadLink { ino }
            | R::Open { ino, .. }
            | R::Close { ino, .. }
            | R::Raise { ino, .. }
            | R::Settle { ino, .. }
            | R::Reserve { ino, .. }
            | R::XattrGet { ino, .. }
            | R::XattrList { ino, .. }
            | R::XattrSet { ino, .. }
            | R::XattrRemove { ino, .. }
            | R::Lock { ino, .. }
            | R::LockTest { ino, .. }
            | R::LockCancel { ino, .. }
            | R::Parent { ino } => Some(ino.shard()),
            _ => None,
        }
    }

    fn act(&mut self, node: NodeId, request: Request, bulk: &[u8]) -> Result<Reply, Errno> {
        use Request as R;
        match request {
            R::Lookup { dir, name, .. } => {
                let (ino, kind) = self.entry(dir, &name).ok_or(Errno::ENOENT)?;
                let near = ino.shard() == dir.shard();
                let attr = near.then(|| self.inodes[&ino].attr.clone());
                Ok(Reply::Entry(Entry { ino, kind, attr }))
            }
            R::Create { dir, name, new, mode, umask, open, .. } => {
                let (kind, target) = match new {
                    New::File => (Kind::File, Vec::new()),
                    New::Symlink(target) => (Kind::Symlink, target),
                    New::Special(kind, _) => (kind, Vec::new()),
                };
                let ino = self.make(dir, &name, dir.shard(), kind, mode & !umask)?;
                let inode = self.inode(ino)?;
                inode.opens += u32::from(open);
                inode.attr.size = target.len() as u64;
                inode.target = target;
                self.entry_reply(ino)
            }
            R::CreateUnnamed { dir, mode, umask, .. } => {
                let ino = self.draw(dir.shard());
                self.add(ino, Kind::File, mode & !umask, dir);
                let inode = self.inode(ino)?;
                (inode.opens, inode.attr.nlink) = (1, 0);
                self.entry_reply(ino)
            }
            R::Mkdir { dir, name, mode, umask, .. } => {
                let shard = directory_shard(dir, &name, self.map.shards());
                let ino = self.make(dir, &name, shard, Kind::Directory, mode & !umask)?;
                self.entry_reply(ino)
            }
            R::Link { ino, dir, name, .. } => {
                self.put(dir, &name, ino, Kind::File)?;
                self.inode(ino)?.attr.nlink += 1;
                let near = ino.shard() == dir.shard();
                let attr = near.then(|| self.inodes[&ino].attr.clone());
                Ok(Reply::Entry(Entry { ino, kind: Kind::File, attr }))
            }
            R::Unlink { dir, name, .. } => self.unlink(dir, &name).map(|()| Reply::Done),
            R::Rmdir { dir, name, .. } => {
                let (ino, _) = self.entry(dir, &name).ok_or(Errno::ENOENT)?;
                if !self.inode(ino)?.entries.is_empty() {
                    return Err(Errno::ENOTEMPTY);
                }
                self.take(dir, &name);
                self.inodes.remove(&ino);
                Ok(Reply::Done)
            }
            R::Rename { dir, name, target_dir, target_name, flag, .. } => {
                let (ino, kind) = self.entry(dir, &name).ok_or(Errno::ENOENT)?;
                match (self.entry(target_dir, &target_name), flag) {
                    (Some(_), RenameFlag::NoReplace) => return Err(Errno::EEXIST),
                    (Some(_), _) => self.unlink(target_dir, &target_name)?,
                    (None, _) => {}
                }
                self.take(dir, &name);
                self.put(target_dir, &target_name, ino, kind)?;
                Ok(Reply::Done)
            }
            R::List { dir, cookie, bytes, attributes, .. } => {
                self.list(dir, cookie, bytes, attributes)
            }
            R::Parent { ino } => Ok(Reply::Parent(self.inode(ino)?.parent)),
            R::Discard { ino, from, to, .. } => Ok(self.discard(node, ino, from, to)),
            R::Allocate { ino, from, to, .. } => Ok(self.allocate(node, ino, from, to)),
            R::Extents { ino, from, to, .. } => Ok(self.extents(node, ino, from, to)),
            R::Sync | R::LockCancel { .. } | R::Claim { .. } | R::Ping | R::Leave => {
                Ok(Reply::Done)
            }
            R::Space => Ok(Reply::Space(Space { total: 10, free: 8, available: 7, inodes: 2 })),
            other => self.act_on_inode(other, bulk),
        }
    }

    fn act_on_inode(&mut self, request: Request, bulk: &[u8]) -> Result<Reply, Errno> {
        use Request as R;
        match request {
            R::Stat { ino } => self.attr_reply(ino),
            R::SetAttr { ino, set, .. } => self.set(ino, &set),
            R::ReadLink { ino } => Ok(Reply::Bytes(self.inode(ino)?.target.clone())),
            R::Open { ino, truncate, .. } => {
                if truncate {
                    self.set(ino, &SetAttr { size: Some(0), ..SetAttr::default() })?;
                }
                self.inode(ino)?.opens += 1;
                self.attr_reply(ino)
            }
            R::Close { ino, opens } => {
                let inode = self.inode(ino)?;
                inode.opens = inode.opens.saturating_sub(opens);
                if inode.opens == 0 && inode.attr.nlink == 0 {
                    self.inodes.remove(&ino);
                    self.blocks.retain(|(of, _), _| *of != ino);
                }
                Ok(Reply::Done)
            }
            R::Raise { ino, bound } => {
                let attr = self.change(ino)?;
                attr.bound = attr.bound.max(bound);
                self.attr_reply(ino)
            }
            R::Settle { ino, generation, size, blocks, wrote } => {
                let attr = self.change(ino)?;
                assert_eq!(generation, attr.generation, "nobody else truncates here");
                attr.size = attr.size.max(size);
                attr.blocks += blocks;
                attr.mtime.seconds += i64::from(wrote);
                self.attr_reply(ino)
            }
            R::Reserve { ino, length } => {
                let attr = self.change(ino)?;
                let offset = attr.size;
                attr.size += u64::from(length);
                Ok(Reply::Offset(offset))
            }
            R::XattrGet { ino, name, .. } => {
                let value = self.inode(ino)?.xattrs.get(&name).cloned();
                value.map(Reply::Bytes).ok_or(Errno::ENODATA)
            }
            R::XattrList { ino, .. } => {
                Ok(Reply::Names(self.inode(ino)?.xattrs.keys().cloned().collect()))
            }
            R::XattrSet { ino, xattr, .. } => {
                self.inode(ino)?.xattrs.insert(xattr.name, xattr.value);
                Ok(Reply::Done)
            }
            R::XattrRemove { ino, name, .. } => {
                let removed = self.inode(ino)?.xattrs.remove(&name);
                removed.map(|_| Reply::Done).ok_or(Errno::ENODATA)
            }
            R::Lock { ino, lock, .. } => {
                // One lock per owner and space is enough here.
                let is_own = |of: Ino, held: Lock| {
                    (of, held.owner, held.space) == (ino, lock.owner, lock.space)
                };
                if lock.kind != LockKind::Unlock && self.conflict(ino, lock).is_some() {
                    if lock.space == LockSpace::Flock {
                        self.locks.retain(|(of, held)| !is_own(*of, *held));
                    }
                    return Err(Errno::EAGAIN);
                }
                self.locks.retain(|(of, held)| !is_own(*of, *held));
                if lock.kind != LockKind::Unlock {
                    self.locks.push((ino, lock));
                }
                Ok(Reply::Done)
            }
            R::LockTest { ino, lock } => Ok(Reply::Conflict(self.conflict(ino, lock))),
            R::Write { ino, index, offset } => self.write(ino, index, offset, bulk),
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn write(&mut self, ino: Ino, index: u64, offset: u32, bytes: &[u8]) -> Result<Reply, Errno> {
        let from = index * u64::from(CHUNK) + u64::from(offset);
        let end = from + bytes.len() as u64;
        assert!(!bytes.is_empty() && u64::from(offset) + bytes.len() as u64 <= u64::from(CHUNK));
        assert!(end <= self.inode(ino)?.attr.bound, "written beyond the bound");
        let before = self.blocks.len();
        let mut at = 0;
        while at < bytes.len() {
            let position = from + at as u64;
            let within = (position % BLOCK) as usize;
            let len = (BLOCK as usize - within).min(bytes.len() - at);
            let block = self.blocks.entry((ino, position / BLOCK));
            let block = block.or_insert_with(|| vec![0; BLOCK as usize]);
            block[within..within + len].copy_from_slice(&bytes[at..at + len]);
            at += len;
        }
        let blocks = (self.blocks.len() - before) as i64 * 8;
        if index > 0 {
            return Ok(Reply::Written { blocks, attr: None });
        }
        let attr = self.change(ino)?;
        attr.size = attr.size.max(end);
        attr.blocks += blocks;
        attr.mtime.seconds += 1;
        Ok(Reply::Written { blocks, attr: Some(attr.clone()) })
    }

    pub(crate) fn bytes(&self, ino: Ino, from: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        let blocks = (ino, from / BLOCK)..(ino, (from + len).div_ceil(BLOCK));
        for ((_, number), block) in self.blocks.range(blocks) {
            let (first, last) = (from.max(number * BLOCK), (from + len).min((number + 1) * BLOCK));
            let (at, within) = ((first - from) as usize, (first % BLOCK) as usize);
            let len = (last - first) as usize;
            bytes[at..at + len].copy_from_slice(&block[within..within + len]);
        }
        bytes
    }

    fn holds(&self, node: NodeId, ino: Ino, block: u64) -> bool {
        let index = block * BLOCK / u64::from(CHUNK);
        self.node(chunk_shard(ino, index, self.map.shards())) == node
    }

    fn discard(&mut self, node: NodeId, ino: Ino, from: u64, to: u64) -> Reply {
        assert!(from.is_multiple_of(BLOCK) && to.is_multiple_of(BLOCK), "the model knows blocks");
        let range = (ino, from / BLOCK)..(ino, to / BLOCK);
        let all: Vec<_> = self.blocks.range(range).map(|(key, _)| *key).collect();
        let mine: Vec<_> = all.into_iter().filter(|(_, at)| self.holds(node, ino, *at)).collect();
        mine.iter().for_each(|key| drop(self.blocks.remove(key)));
        Reply::Written { blocks: -8 * mine.len() as i64, attr: None }
    }

    fn allocate(&mut self, node: NodeId, ino: Ino, from: u64, to: u64) -> Reply {
        let before = self.blocks.len();
        let range = from / BLOCK..to.div_ceil(BLOCK);
        let mine: Vec<u64> = range.filter(|at| self.holds(node, ino, *at)).collect();
        for at in mine {
            self.blocks.entry((ino, at)).or_insert_with(|| vec![0; BLOCK as usize]);
        }
        Reply::Written { blocks: 8 * (self.blocks.len() - before) as i64, attr: None }
    }

    /// One range at a time, so that asking on is tried.
    fn extents(&self, node: NodeId, ino: Ino, from: u64, to: u64) -> Reply {
        let all = self.blocks.range((ino, from / BLOCK)..(ino, to.div_ceil(BLOCK)));
        let mut mine = all.map(|((_, at), _)| *at).filter(|at| self.holds(node, ino, *at));
        let Some(first) = mine.next() else { return Reply::Extents { ranges: vec![], next: None } };
        let range = ((first * BLOCK).max(from), ((first + 1) * BLOCK).min(to));
        Reply::Extents { ranges: vec![range], next: mine.next().map(|_| range.1) }
    }

    fn list(&self, dir: Ino, cookie: u64, bytes: u32, attributes: bool) -> Result<Reply, Errno> {
        let inode = self.inodes.get(&dir).ok_or(Errno::ENOENT)?;
        let mut behind = inode.entries.iter().filter(|((hash, _), _)| *hash > cookie);
        let count = (bytes / 64).max(1) as usize;
        let entries = behind.by_ref().take(count).map(|((hash, name), (ino, kind))| {
            let near = attributes && ino.shard() == dir.shard();
            let attr = near.then(|| self.inodes[ino].attr.clone());
            let entry = Entry { ino: *ino, kind: *kind, attr };
            Listed { cookie: *hash, name: name.clone(), entry }
        });
        let entries = entries.collect();
        Ok(Reply::List { entries, end: behind.next().is_none() })
    }

    fn set(&mut self, ino: Ino, set: &SetAttr) -> Result<Reply, Errno> {
        if let Some(size) = set.size {
            let keep = size.div_ceil(BLOCK);
            self.blocks.retain(|(of, at), _| *of != ino || *at < keep);
            if let Some(block) = self.blocks.get_mut(&(ino, size / BLOCK)) {
                block[(size % BLOCK) as usize..].fill(0);
            }
        }
        let blocks = self.blocks.range((ino, 0)..=(ino, u64::MAX)).count() as i64 * 8;
        let attr = self.change(ino)?;
        if let Some(size) = set.size {
            (attr.size, attr.blocks) = (size, blocks);
            attr.generation += 1;
        }
        attr.mode = set.mode.unwrap_or(attr.mode);
        if set.kill_suid_sgid {
            attr.mode &= 0o1777;
        }
        if let Some(sealfs_proto::SetTime::At(time)) = set.mtime {
            attr.mtime = time;
            attr.generation += 1;
        }
        self.attr_reply(ino)
    }

    fn unlink(&mut self, dir: Ino, name: &[u8]) -> Result<(), Errno> {
        let (ino, _) = self.take(dir, name).ok_or(Errno::ENOENT)?;
        let inode = self.inode(ino)?;
        inode.attr.nlink -= 1;
        if inode.attr.nlink == 0 && inode.opens == 0 {
            self.inodes.remove(&ino);
        }
        Ok(())
    }

    fn conflict(&self, ino: Ino, lock: Lock) -> Option<Lock> {
        let others = self.locks.iter().filter(|(of, held)| (*of, held.owner) != (ino, lock.owner));
        let excludes = |held: &Lock| {
            held.space == lock.space && (held.kind, lock.kind) != (LockKind::Read, LockKind::Read)
        };
        others.filter(|(of, held)| *of == ino && excludes(held)).map(|(_, held)| *held).next()
    }

    fn draw(&mut self, shard: ShardId) -> Ino {
        self.next += 1;
        Ino::new(shard, self.next)
    }

    fn make(
        &mut self,
        dir: Ino,
        name: &[u8],
        shard: ShardId,
        kind: Kind,
        mode: u32,
    ) -> Result<Ino, Errno> {
        let ino = self.draw(shard);
        self.put(dir, name, ino, kind)?;
        self.add(ino, kind, mode, dir);
        Ok(ino)
    }

    fn put(&mut self, dir: Ino, name: &[u8], ino: Ino, kind: Kind) -> Result<(), Errno> {
        if self.entry(dir, name).is_some() {
            return Err(Errno::EEXIST);
        }
        self.inode(dir)?.entries.insert((name_hash(name), name.to_vec()), (ino, kind));
        Ok(())
    }

    fn take(&mut self, dir: Ino, name: &[u8]) -> Option<(Ino, Kind)> {
        self.inodes.get_mut(&dir)?.entries.remove(&(name_hash(name), name.to_vec()))
    }

    pub(crate) fn entry(&self, dir: Ino, name: &[u8]) -> Option<(Ino, Kind)> {
        self.inodes.get(&dir)?.entries.get(&(name_hash(name), name.to_vec())).copied()
    }

    fn add(&mut self, ino: Ino, kind: Kind, mode: u32, parent: Ino) {
        let attr = Attr {
            ino,
            kind,
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            chunk_size: CHUNK,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            change: 1,
            generation: 1,
            bound: u64::from(CHUNK),
        };
        let inode = Inode {
            attr,
            opens: 0,
            target: Vec::new(),
            parent,
            entries: BTreeMap::new(),
            xattrs: BTreeMap::new(),
        };
        self.inodes.insert(ino, inode);
    }

    fn inode(&mut self, ino: Ino) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&ino).ok_or(Errno::ENOENT)
    }

    fn change(&mut self, ino: Ino) -> Result<&mut Attr, Errno> {
        let attr = &mut self.inode(ino)?.attr;
        attr.change += 1;
        Ok(attr)
    }

    fn attr_reply(&mut self, ino: Ino) -> Result<Reply, Errno> {
        Ok(Reply::Attr(self.inode(ino)?.attr.clone()))
    }

    fn entry_reply(&mut self, ino: Ino) -> Result<Reply, Errno> {
        let attr = self.inode(ino)?.attr.clone();
        Ok(Reply::Entry(Entry { ino, kind: attr.kind, attr: Some(attr) }))
    }
}
