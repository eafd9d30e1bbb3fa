//! Random operations on one file, through two handles and over cut connections, against a `Vec` of bytes.

use sealfs_client_core::{Fallocate, OpenFlags};
use sealfs_proto::{SetAttr, Who};

use crate::fake::World;
use crate::{CHUNK_LEN, READ_WRITE};

/// A file as the reference has it.
#[derive(Default)]
struct Reference(Vec<u8>);

impl Reference {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        self.0.resize(self.0.len().max(end), 0);
        self.0[offset..end].copy_from_slice(bytes);
    }
}

#[test]
fn random_operations_agree_with_a_reference() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new(1 + seed as u16 % 4);
        let (attr, mut handle) = world.create("a");
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        let fs = world.fs.clone();
        let open = async move { fs.open(&Who::root(), attr.ino, flags).await };
        let (_, log) = world.run(open).unwrap();
        let mut file = Reference::default();
        for _ in 0..100 {
            let offset = random.usize(..4 * CHUNK_LEN);
            let len = random.usize(1..2 * CHUNK_LEN);
            let bytes: Vec<u8> = (0..len).map(|_| random.u8(1..)).collect();
            let fs = world.fs.clone();
            match random.u8(..9) {
                0 | 1 => {
                    assert_eq!(world.write(handle, offset as u64, &bytes), Ok(len));
                    file.write(offset, &bytes);
                }
                2 => {
                    assert_eq!(world.append(log, &bytes[..len / 8 + 1]), Ok(len / 8 + 1));
                    file.write(file.0.len(), &bytes[..len / 8 + 1]);
                }
                3 => {
                    let set = SetAttr { size: Some(offset as u64), ..SetAttr::default() };
                    let cut =
                        async move { fs.setattr(&Who::root(), attr.ino, Some(handle), set).await };
                    assert_eq!(world.run(cut).unwrap().size, offset as u64);
                    file.0.resize(offset, 0);
                }
                4 => {
                    let (from, to) = (offset / 4_096 * 4_096, (offset + len) / 4_096 * 4_096);
                    if from < to {
                        let (at, len) = (from as u64, (to - from) as u64);
                        let punch =
                            async move { fs.fallocate(handle, Fallocate::Punch, at, len).await };
                        world.run(punch).unwrap();
                        let end = to.min(file.0.len());
                        file.0[from.min(end)..end].fill(0);
                    }
                }
                5 => {
                    world.close(handle).unwrap();
                    let fs = world.fs.clone();
                    let open = async move { fs.open(&Who::root(), attr.ino, READ_WRITE).await };
                    let (found, again) = world.run(open).unwrap();
                    assert_eq!(found.size, file.0.len() as u64);
                    handle = again;
                }
                6 => world.pass_ms(random.u64(..900)),
                7 => world.net.borrow_mut().cut(),
                _ => assert_eq!(world.stat(attr.ino).unwrap().size, file.0.len() as u64),
            }
            let end = (offset + len).min(file.0.len());
            let expected = &file.0[offset.min(end)..end];
            assert!(world.read(handle, offset as u64, len).unwrap() == expected, "seed {seed}");
        }
        world.fsync(handle).unwrap();
        let blocks = world.net.borrow().model.blocks.len() as i64 * 8;
        assert_eq!(world.stat(attr.ino).unwrap().blocks, blocks, "seed {seed}");
    }
}
