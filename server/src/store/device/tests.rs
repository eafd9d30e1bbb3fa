//! The device's layout over a plain file: which states are opened, and what a crash leaves.

use std::os::unix::fs::FileExt;

use super::*;
use crate::store::medium::Step;

const SMALL: Geometry = Geometry {
    format: 5,
    device_len: 16 << 20,
    volume_at: 6 << 20,
    volume_len: 10 << 20,
    pages: 2,
};
const JOURNAL: JournalId = JournalId { generation: 1, core: 0 };
const SHARD: ShardId = ShardId(3);

/// A device of a few MiB in a file that goes with it.
struct Small {
    file: tempfile::NamedTempFile,
}

impl Small {
    fn new() -> Self {
        Self::holding(&[])
    }

    fn holding(bytes: &[u8]) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file.as_file().set_len(SMALL.device_len).unwrap();
        Self { file }
    }

    fn open(&self) -> Result<Device, StartError> {
        let file = File::options().read(true).write(true).open(self.file.path()).unwrap();
        Device::on(file, self.file.path(), 1)
    }

    fn refusal(&self) -> String {
        self.open().unwrap_err().to_string()
    }

    /// Formatted, with a superblock `first`.
    fn formatted() -> (Self, Device) {
        let small = Self::new();
        let device = small.open().unwrap();
        device.format_to(SMALL).unwrap();
        device.set_superblock(b"first").unwrap();
        (small, device)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.file.path()).unwrap()
    }
}

/// What of a device's content is promised to survive.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    superblock: Option<Vec<u8>>,
    snapshot: Option<Vec<u8>>,
    segments: Vec<u64>,
}

fn content(device: &Device) -> Content {
    let superblock = device.superblock().unwrap();
    if superblock.is_none() {
        return Content { superblock, snapshot: None, segments: Vec::new() };
    }
    let segments = device.segments(JOURNAL).unwrap();
    Content {
        superblock,
        snapshot: device.snapshot(SHARD).unwrap(),
        segments: segments.iter().map(|(first, _)| *first).collect(),
    }
}

/// Everything that a crash during `tape` can leave of `before`: what was synced is there, of what was not any part may be,
/// in any order, each write whole, its first half or its second half.
fn wrecks(before: &[u8], tape: &[Step]) -> Vec<Vec<u8>> {
    let mut wrecks = vec![before.to_vec()];
    let mut synced = before.to_vec();
    let mut doubtful: Vec<(u64, &[u8])> = Vec::new();
    let put = |image: &mut Vec<u8>, at: u64, bytes: &[u8]| {
        image[at as usize..][..bytes.len()].copy_from_slice(bytes);
    };
    for step in tape {
        match step {
            Step::Write(at, bytes) => {
                doubtful.push((*at, bytes));
                assert!(doubtful.len() < 7, "a sync comes before so many writes");
                for choice in 0..4_u32.pow(doubtful.len() as u32) {
                    let mut image = synced.clone();
                    for (index, (at, bytes)) in doubtful.iter().enumerate() {
                        let half = bytes.len() / 2;
                        match choice / 4_u32.pow(index as u32) % 4 {
                            0 => {}
                            1 => put(&mut image, *at, bytes),
                            2 => put(&mut image, *at, &bytes[..half]),
                            _ => put(&mut image, *at + half as u64, &bytes[half..]),
                        }
                    }
                    wrecks.push(image);
                }
            }
            Step::Sync => {
                for (at, bytes) in doubtful.drain(..) {
                    put(&mut synced, at, bytes);
                }
            }
        }
    }
    assert!(doubtful.is_empty(), "what has returned is on the device");
    wrecks
}

/// Carries `change` out, and crashes it everywhere: each wreck holds the content before or the one after it, and takes a
/// further change of each kind. Gives the number of wrecks.
fn crash_everywhere(small: &Small, device: &Device, change: impl FnOnce(&Device)) -> usize {
    let (old, before) = (content(device), small.bytes());
    device.medium.take_tape();
    change(device);
    let tape = device.medium.take_tape();
    let new = content(device);
    let wrecks = wrecks(&before, &tape);
    let count = wrecks.len();
    for (index, wreck) in wrecks.into_iter().enumerate() {
        let wreck = Small::holding(&wreck);
        let device = wreck.open().unwrap_or_else(|error| panic!("wreck {index}: {error}"));
        let found = content(&device);
        assert!(found == old || found == new, "wreck {index}: {found:?}");
        if found.superblock.is_none() {
            device.format_to(SMALL).unwrap();
        }
        device.set_snapshot(SHARD, Some(&[b"after".to_vec()])).unwrap();
        device.set_snapshot(ShardId(4), Some(&[b"another".to_vec()])).unwrap();
        device.set_superblock(b"after").unwrap();
        drop(device);
        let again = wreck.open().unwrap();
        assert_eq!(again.superblock().unwrap().unwrap(), b"after", "wreck {index}");
        assert_eq!(again.snapshot(SHARD).unwrap().unwrap(), b"after", "wreck {index}");
        assert_eq!(again.snapshot(ShardId(4)).unwrap().unwrap(), b"another", "wreck {index}");
        let segments = content(&again).segments;
        assert_eq!(segments, found.segments, "wreck {index}");
    }
    count
}

fn add_segment(device: &Device, first: u64) {
    let owner = SegmentHeader {
        cluster: sealfs_proto::ClusterId([1; 16]),
        node: sealfs_proto::NodeId(1),
        core: 0,
        first,
    };
    let spare = device.spare(JOURNAL, 8_192).unwrap();
    spare.write_at(&owner.to_bytes(), 0).unwrap();
    device.publish(JOURNAL, first, spare).unwrap();
}

#[test]
fn a_crash_in_a_format_leaves_an_empty_device_or_a_formatted_one() {
    let small = Small::new();
    let device = small.open().unwrap();
    let count = crash_everywhere(&small, &device, |device| {
        device.format_to(SMALL).unwrap();
        device.set_superblock(b"first").unwrap();
    });
    assert!(count > 8);
}

#[test]
fn a_crash_in_replacing_a_superblock_leaves_the_old_or_the_new_one() {
    let (small, device) = Small::formatted();
    for superblock in ["second", "third", "fourth"] {
        let change = |device: &Device| device.set_superblock(superblock.as_bytes()).unwrap();
        assert!(crash_everywhere(&small, &device, change) > 4);
        assert_eq!(device.superblock().unwrap().unwrap(), superblock.as_bytes());
    }
}

#[test]
fn a_crash_in_replacing_a_snapshot_leaves_the_old_or_the_new_one() {
    let (small, device) = Small::formatted();
    for bytes in [Some(vec![1; 5_000]), Some(vec![2; 9_000]), Some(vec![3; 10]), None, None] {
        crash_everywhere(&small, &device, |device| {
            let pieces = |bytes: &[u8]| vec![bytes[..4].to_vec(), bytes[4..].to_vec()];
            device.set_snapshot(SHARD, bytes.as_deref().map(pieces).as_deref()).unwrap();
        });
        assert_eq!(device.snapshot(SHARD).unwrap(), bytes);
    }
}

#[test]
fn a_crash_in_making_or_removing_a_segment_leaves_it_or_not() {
    let (small, device) = Small::formatted();
    add_segment(&device, 0);
    let spare = |device: &Device| drop(device.spare(JOURNAL, 8_192).unwrap());
    assert!(crash_everywhere(&small, &device, spare) > 8);
    add_segment(&device, 100);
    let remove = |device: &Device| {
        let (_, extent) = device.segments(JOURNAL).unwrap().remove(0);
        device.remove(&[extent.place().clone(), extent.place().clone()]).unwrap();
    };
    assert!(crash_everywhere(&small, &device, remove) > 4);
    assert_eq!(content(&device).segments, [100]);
    let renew = |device: &Device| device.keep_journals(2).unwrap();
    crash_everywhere(&small, &device, renew);
    assert_eq!(content(&device).segments, [] as [u64; 0]);
}

#[test]
fn space_that_was_given_back_is_used_again() {
    let (_small, device) = Small::formatted();
    for round in 0..200_u32 {
        let bytes = vec![round as u8; 1 << 20];
        device.set_snapshot(SHARD, Some(&[bytes])).unwrap();
        add_segment(&device, u64::from(round));
        let (_, extent) = device.segments(JOURNAL).unwrap().remove(0);
        device.remove(&[extent.place().clone()]).unwrap();
    }
    let error = device.set_snapshot(SHARD, Some(&[vec![0; 5 << 20]])).unwrap_err().to_string();
    assert!(error.contains("5242880 bytes are not free in one piece"), "{error}");
    assert_eq!(device.snapshot(SHARD).unwrap().unwrap(), vec![199; 1 << 20]);
    device.set_snapshot(SHARD, Some(&[b"goes on".to_vec()])).unwrap();
}

#[test]
fn snapshots_and_segments_survive_an_opening() {
    let (small, device) = Small::formatted();
    device.set_snapshot(SHARD, Some(&[b"three".to_vec()])).unwrap();
    device.set_snapshot(ShardId(65_535), Some(&[b"last".to_vec()])).unwrap();
    add_segment(&device, 7);
    drop(device);
    let device = small.open().unwrap();
    assert_eq!(device.snapshot(SHARD).unwrap().unwrap(), b"three");
    assert_eq!(device.snapshot(ShardId(65_535)).unwrap().unwrap(), b"last");
    assert_eq!(device.snapshot(ShardId(4)).unwrap(), None);
    assert_eq!(content(&device).segments, [7]);
}

/// What a slot of the head may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Zeros,
    First,
    Third,
    Fourth,
    Torn,
    /// A torn slot in which somebody else has left a signature.
    Overwritten,
    Foreign,
    Newer,
}

fn slot(is: Is) -> Vec<u8> {
    let head = |sequence: u64| {
        let superblock = format!("number {sequence}").into_bytes();
        Head { sequence, geometry: SMALL, superblock }.to_bytes()
    };
    let mut bytes = match is {
        Is::Zeros | Is::Foreign => vec![0; Head::SLOT_LEN as usize],
        Is::First => head(1),
        Is::Third => head(3),
        Is::Fourth | Is::Torn | Is::Overwritten | Is::Newer => head(4),
    };
    match is {
        Is::Torn => bytes[100] ^= 1,
        Is::Overwritten | Is::Foreign => bytes[1_080..1_082].copy_from_slice(b"\x53\xef"),
        Is::Newer => {
            bytes[8] = 2;
            let end = bytes.len() - 4;
            let crc = crc32c::crc32c(&bytes[..end]);
            bytes[end..].copy_from_slice(&crc.to_le_bytes());
        }
        _ => {}
    }
    bytes
}

#[test]
fn every_state_of_the_slots_is_opened_or_refused_as_the_table_says() {
    const ALL: [Is; 8] = [
        Is::Zeros,
        Is::First,
        Is::Third,
        Is::Fourth,
        Is::Torn,
        Is::Overwritten,
        Is::Foreign,
        Is::Newer,
    ];
    let table = Table::blank(SMALL.format, SMALL.pages);
    let states = ALL.iter().flat_map(|first| ALL.iter().map(move |second| (*first, *second)));
    for (first, second) in states {
        let image = [slot(first), slot(second), table.clone()].concat();
        let small = Small::holding(&image);
        let valid = [Is::First, Is::Third, Is::Fourth];
        let expected = match (first, second) {
            (Is::Newer, _) | (_, Is::Newer) => Err("format version 2"),
            (Is::Foreign | Is::Overwritten, _) => Err("an ext2, ext3 or ext4 file system"),
            (a, b) if valid.contains(&a) && valid.contains(&b) => {
                let order = |is| valid.iter().position(|valid| *valid == is).unwrap();
                Ok(Some(if order(a) > order(b) { a } else { b }))
            }
            (a, _) if valid.contains(&a) => Ok(Some(a)),
            (Is::Zeros, Is::First) => Ok(Some(Is::First)),
            (Is::Torn, b) if valid.contains(&b) => Ok(Some(b)),
            (Is::Zeros, b) if !valid.contains(&b) => Ok(None),
            _ => Err("its superblock is damaged"),
        };
        match (small.open(), expected) {
            (Ok(device), Ok(expected)) => {
                let number = |is| match is {
                    Is::First => "number 1",
                    Is::Third => "number 3",
                    _ => "number 4",
                };
                let expected = expected.map(|is| number(is).as_bytes().to_vec());
                assert_eq!(device.superblock().unwrap(), expected, "{first:?}, {second:?}");
            }
            (Err(error), Err(part)) => {
                let error = error.to_string();
                assert!(error.contains(part), "{first:?}, {second:?}: {error}");
                let next = error.contains("wipefs -a") || error.contains("the sealfs release");
                assert!(next, "{error}");
                assert_eq!(small.bytes()[..image.len()], image, "a refused device is untouched");
            }
            (found, expected) => panic!("{first:?}, {second:?}: {found:?}, {expected:?}"),
        }
    }
}

#[test]
fn whoever_writes_into_the_first_mib_of_our_device_is_noticed() {
    let (small, device) = Small::formatted();
    device.set_superblock(b"second").unwrap();
    drop(device);
    small.file.as_file().write_all_at(b"\xfc\x4e\x2b\xa9", 4_096).unwrap();
    let error = small.refusal();
    assert!(error.contains("a member of an md RAID") && error.contains("wipefs -a"), "{error}");
}

#[test]
fn whose_a_device_is_can_be_told_until_its_head_is_emptied_from_the_front() {
    let (small, device) = Small::formatted();
    let told = || superblock_on(small.file.path()).unwrap();
    assert_eq!(told().as_deref(), Some(&b"first"[..]), "while it is open");
    device.set_superblock(b"second").unwrap();
    assert_eq!(told().as_deref(), Some(&b"second"[..]));
    drop(device);
    let zeros = vec![0; Head::SLOT_LEN as usize];
    let write = |bytes: &[u8], at| small.file.as_file().write_all_at(bytes, at).unwrap();
    write(&zeros[512..], 512);
    assert!(told().is_some(), "the first slot is torn");
    write(&zeros, 0);
    assert!(told().is_some(), "the first slot is empty");
    write(b"somebody's", 100);
    assert_eq!(told(), None, "written over");
    write(&zeros, 0);
    write(&zeros[512..], Head::SLOT_LEN + 512);
    assert_eq!(told(), None);
    assert_eq!(small.open().unwrap().superblock().unwrap(), None, "it counts as empty");
    assert!(superblock_on(Path::new("/no/such/device")).is_err());
    let short = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(superblock_on(short.path()).unwrap(), None);
}

#[test]
fn a_damaged_table_is_refused() {
    let (small, device) = Small::formatted();
    drop(device);
    small.file.as_file().write_all_at(b"x", TABLE_AT + 4_096).unwrap();
    assert!(small.refusal().contains("neither copy of page 1"));
}

#[test]
fn a_head_whose_parts_overlap_is_refused() {
    let wrong = [
        Geometry { volume_at: TABLE_AT, ..SMALL },
        Geometry { volume_len: u64::MAX, ..SMALL },
        Geometry { volume_at: u64::MAX - 5, ..SMALL },
    ];
    for geometry in wrong {
        let head = Head { sequence: 1, geometry, superblock: Vec::new() };
        let image = [slot(Is::Zeros), head.to_bytes()].concat();
        assert!(Small::holding(&image).refusal().contains("overlap"), "{geometry:?}");
    }
}

#[test]
fn a_device_is_divided_by_its_size_and_cores() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let divide = |mib: u64, wanted: Option<u64>, cores: u16| {
        file.as_file().set_len(mib << 20).unwrap();
        Device::on(file.reopen().unwrap(), file.path(), 0)?.divide(wanted, cores)
    };
    let geometry = divide(1 << 20, None, 4).unwrap();
    assert_eq!((geometry.volume_at >> 20, geometry.volume_len >> 20), (1 << 15, 31 << 15));
    let geometry = divide(2_048, Some(1 << 30), 2).unwrap();
    assert_eq!((geometry.volume_at >> 20, geometry.volume_len >> 20), (448, 1_024));
    for (mib, wanted, cores, parts) in [
        (8, None, 1, ["has 8 MiB", "16 MiB are needed"]),
        (300, None, 1, ["288 MiB of journals and snapshots for 1 cores", "352 MiB are needed"]),
        (1_024, Some(1 << 30), 1, ["and 1024 MiB of volume", "1312 MiB are needed"]),
    ] {
        let error = divide(mib, wanted, cores).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn a_superblock_that_no_slot_takes_is_an_error() {
    let (_small, device) = Small::formatted();
    assert!(device.set_superblock(&vec![1; 1 << 20]).is_err());
    assert_eq!(device.superblock().unwrap().unwrap(), b"first");
}
