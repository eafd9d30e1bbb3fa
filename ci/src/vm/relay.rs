//! The wire between two guests: forwards their Ethernet frames, loses some, and can be cut.
//!
//! Each guest sends to a socket of the relay's (`-netdev dgram`). What the wire does is told by a guest on its console,
//! so that no test depends on time: `relay: loss PER_MILLE`, `relay: down`, `relay: up`.
//!
//! 1. What is lost follows from the seed and the number of the frame alone.
//! 2. A frame that the other guest does not take within a moment is lost, as at a full switch; nothing is kept.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::tree::named;

/// A wire that is carried by two threads until it is dropped.
pub(crate) struct Relay {
    wire: Arc<Wire>,
    threads: Vec<JoinHandle<()>>,
    folder: PathBuf,
}

/// What the threads and whoever commands them share.
struct Wire {
    seed: u64,
    loss_per_mille: AtomicU32,
    down: AtomicBool,
    ended: AtomicBool,
    passed: AtomicU64,
    lost: AtomicU64,
    cut: AtomicU64,
}

/// The two guests that it joins.
pub(crate) const ENDS: [&str; 2] = ["left", "right"];
/// Longer than any frame: a virtio network without offloads sends no more than its MTU.
const FRAME_LEN_MAX: usize = 1 << 16;
/// How soon an ended relay is noticed, and how long a guest may leave a frame lying.
const PATIENCE: Duration = Duration::from_millis(100);

impl Relay {
    /// A wire without faults, its sockets in a new folder.
    pub(crate) fn start(seed: u64) -> Result<Self, String> {
        // Not in the target directory: the path of a socket has at most 107 bytes.
        let folder = std::env::temp_dir().join(format!("sealfs-vm-{}", std::process::id()));
        fs::create_dir(&folder).map_err(named(&folder))?;
        let mut relay = Self { wire: Arc::new(Wire::new(seed)), threads: Vec::new(), folder };
        for (from, to) in [(ENDS[0], ENDS[1]), (ENDS[1], ENDS[0])] {
            let path = relay.folder.join(format!("{from}.wire"));
            let socket = open(&path).map_err(named(&path))?;
            let (wire, target) = (Arc::clone(&relay.wire), relay.folder.join(to));
            relay.threads.push(thread::spawn(move || wire.carry(&socket, &target)));
        }
        Ok(relay)
    }

    /// QEMU's arguments for the guest at `end`.
    pub(crate) fn devices(&self, end: &str, mac: &str) -> Vec<String> {
        let (local, remote) = (self.folder.join(end), self.folder.join(format!("{end}.wire")));
        let netdev = format!(
            "dgram,id=wire,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            local.display(),
            remote.display()
        );
        let card = format!("virtio-net-pci,netdev=wire,mac={mac}");
        vec!["-netdev".into(), netdev, "-device".into(), card]
    }

    /// Carries out what a line of a console says, if it speaks to the relay.
    pub(crate) fn obey(&self, line: &str) {
        self.wire.obey(line);
    }

    /// How many frames were passed, lost by chance, and lost because the wire was down.
    pub(crate) fn counts(&self) -> [u64; 3] {
        [&self.wire.passed, &self.wire.lost, &self.wire.cut].map(|count| count.load(Relaxed))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.wire.ended.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Wire {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            loss_per_mille: AtomicU32::new(0),
            down: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            passed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        }
    }

    fn obey(&self, line: &str) {
        match line.strip_prefix("relay: ").map(|words| words.split_once(' ').unwrap_or((words, "")))
        {
            Some(("down", "")) => self.down.store(true, Relaxed),
            Some(("up", "")) => self.down.store(false, Relaxed),
            Some(("loss", rate)) => {
                if let Ok(rate) = rate.parse() {
                    self.loss_per_mille.store(rate, Relaxed);
                }
            }
            _ => {}
        }
    }

    /// Forwards what arrives until told to end.
    fn carry(&self, socket: &UnixDatagram, target: &Path) {
        let mut frame = vec![0; FRAME_LEN_MAX];
        let mut number = 0;
        while !self.ended.load(Relaxed) {
            let Ok(len) = socket.recv(&mut frame) else { continue };
            number += 1;
            let fate = if self.down.load(Relaxed) {
                &self.cut
            } else if self.loses(number) || socket.send_to(&frame[..len], target).is_err() {
                &self.lost
            } else {
                &self.passed
            };
            fate.fetch_add(1, Relaxed);
        }
    }

    fn loses(&self, number: u64) -> bool {
        mixed(self.seed ^ number) % 1000 < u64::from(self.loss_per_mille.load(Relaxed))
    }
}

/// The finaliser of `SplitMix64` (Steele, Lea, Flood 2014): numbers in a row become bits without a pattern.
fn mixed(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

fn open(path: &Path) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::bind(path)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_pass_both_ways_and_a_cut_wire_passes_none() {
        let relay = Relay::start(1).unwrap();
        let ends = ENDS.map(|end| open(&relay.folder.join(end)).unwrap());
        let mut frame = [0; 16];
        for (from, to) in [(0, 1), (1, 0)] {
            ends[from]
                .send_to(b"frame", relay.folder.join(format!("{}.wire", ENDS[from])))
                .unwrap();
            ends[to].set_read_timeout(None).unwrap();
            assert_eq!(ends[to].recv(&mut frame).unwrap(), 5);
        }
        relay.obey("relay: down");
        ends[0].send_to(b"lost", relay.folder.join("left.wire")).unwrap();
        while relay.counts()[2] == 0 {
            thread::yield_now();
        }
        relay.obey("relay: up");
        ends[0].send_to(b"arrives", relay.folder.join("left.wire")).unwrap();
        assert_eq!(ends[1].recv(&mut frame).unwrap(), 7);
    }

    #[test]
    fn losses_follow_the_rate_and_the_seed() {
        let lost = |seed: u64, line: &str| {
            let wire = Wire::new(seed);
            wire.obey(line);
            (0..10_000).filter(|number| wire.loses(*number)).collect::<Vec<u64>>()
        };
        assert!((150..250).contains(&lost(7, "relay: loss 20").len()));
        assert_eq!(lost(7, "relay: loss 20"), lost(7, "relay: loss 20"));
        assert_ne!(lost(7, "relay: loss 20"), lost(8, "relay: loss 20"));
        assert_eq!(lost(7, "loss 1000 on the way"), [0; 0]);
    }
}
