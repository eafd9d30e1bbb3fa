//! Mount options as fstab and `-o` write them: a comma-separated list of words.
//!
//! 1. A word that is not known is refused by name: a mistyped `ro` must not give a writable mount.
//! 2. Words that mount(8), systemd or fstab keep for themselves are accepted and do nothing.

use std::path::PathBuf;

use sealfs_proto::{limits, nodes};

use crate::MountError;
use crate::link::Network;
use crate::mount::POOL_LEN;

/// When a client sees what another one has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// When it opens the file after the other has closed it, and within a second without that.
    #[default]
    CloseToOpen,
    /// At once: nothing is cached but what is mapped.
    Strict,
}

/// How to mount; [`MountOptions::default`] is what `sealfs mount` does when told nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Not a mount but other flags for one that is there (`remount`): [`crate::remount`].
    pub remount: bool,
    /// No writes through this mount (`ro`).
    pub read_only: bool,
    /// Devices cannot be opened (`nodev`).
    pub nodev: bool,
    /// Set-user-id bits do nothing (`nosuid`).
    pub nosuid: bool,
    /// Nothing can be executed (`noexec`).
    pub noexec: bool,
    /// Access times are not asked for (`noatime`; sealfs never changes them on reads anyway).
    pub noatime: bool,
    /// Every user may enter (`allow_other`), not only the one who mounts. A mount by root always allows it.
    pub allow_other: bool,
    /// `transport=`, `rdma_device=` and `poll=`.
    pub network: Network,
    /// `consistency=`.
    pub consistency: Consistency,
    /// How long an operation waits for a node before EIO, milliseconds; 0: for ever (`timeout=` in seconds).
    pub timeout_ms: u64,
    /// Memory for data in flight, bytes; pinned with RDMA (`memory=`).
    pub memory: usize,
    /// File with the cluster's key (`key=`).
    pub key: Option<PathBuf>,
    /// File for the log of a mount in the background (`log=`).
    pub log: Option<PathBuf>,
    /// Where the mount's metrics can be scraped, `ADDR:PORT` (`metrics=`). The program that mounts offers them.
    pub metrics: Option<String>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            remount: false,
            read_only: false,
            nodev: false,
            nosuid: false,
            noexec: false,
            noatime: false,
            allow_other: false,
            network: Network::default(),
            consistency: Consistency::CloseToOpen,
            timeout_ms: limits::TIMEOUT_MS,
            memory: POOL_LEN,
            key: None,
            log: None,
            metrics: None,
        }
    }
}

impl MountOptions {
    /// Applies a list, later words over earlier ones. On an error some words of the list may have been applied.
    pub fn apply(&mut self, list: &str) -> Result<(), MountError> {
        list.split(',').filter(|word| !word.is_empty()).try_for_each(|word| self.apply_one(word))
    }

    fn apply_one(&mut self, word: &str) -> Result<(), MountError> {
        match word {
            "remount" => self.remount = true,
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "nodev" => self.nodev = true,
            "dev" => self.nodev = false,
            "nosuid" => self.nosuid = true,
            "suid" => self.nosuid = false,
            "noexec" => self.noexec = true,
            "exec" => self.noexec = false,
            "noatime" => self.noatime = true,
            "atime" => self.noatime = false,
            "allow_other" => self.allow_other = true,
            _ => return self.apply_pair(word),
        }
        Ok(())
    }

    fn apply_pair(&mut self, word: &str) -> Result<(), MountError> {
        match word.split_once('=') {
            Some(("transport", choice)) => {
                let wrong = |error| MountError(format!("mount option `{word}`: {error}"));
                self.network.choice = choice.parse().map_err(wrong)?;
            }
            Some(("rdma_device", device)) => self.network.rdma_device = Some(device.to_owned()),
            Some(("poll", poll)) => {
                let wrong = |error| MountError(format!("mount option `{word}`: {error}"));
                self.network.poll = poll.parse().map_err(wrong)?;
            }
            Some(("consistency", "close-to-open")) => self.consistency = Consistency::CloseToOpen,
            Some(("consistency", "strict")) => self.consistency = Consistency::Strict,
            Some(("consistency", other)) => {
                return Err(MountError(format!(
                    "mount option `consistency={other}`: there is no such consistency; use close-to-open or strict"
                )));
            }
            Some(("timeout", seconds)) => self.timeout_ms = timeout_ms(seconds)?,
            Some(("memory", size)) => self.memory = memory(size)?,
            Some(("key", "")) => {
                return Err(MountError("mount option `key=` names no file".into()));
            }
            Some(("key", path)) => self.key = Some(PathBuf::from(path)),
            Some(("log", "")) => {
                return Err(MountError("mount option `log=` names no file".into()));
            }
            Some(("log", path)) => self.log = Some(PathBuf::from(path)),
            Some(("metrics", "")) => {
                return Err(MountError("mount option `metrics=` names no ADDR:PORT".into()));
            }
            Some(("metrics", address)) => self.metrics = Some(address.to_owned()),
            _ if is_for_mount(word) => {}
            _ => {
                return Err(MountError(format!(
                    "unknown mount option `{word}`; known are ro, rw, nodev, nosuid, noexec, noatime, allow_other, \
                     transport=auto|tcp|rdma, rdma_device=DEVICE, poll=adaptive|spin|sleep, \
                     consistency=close-to-open|strict, timeout=SECONDS, memory=SIZE, key=FILE, log=FILE, \
                     metrics=ADDR:PORT"
                )));
            }
        }
        Ok(())
    }
}

/// A timeout of at most a year; beyond that somebody has mistaken the unit.
fn timeout_ms(seconds: &str) -> Result<u64, MountError> {
    let parsed = seconds.parse::<u64>().ok().filter(|&seconds| seconds <= 366 * 86_400);
    parsed.map(|seconds| seconds * 1_000).ok_or_else(|| {
        MountError(format!(
            "mount option `timeout={seconds}` is no number of seconds; write timeout=60, or timeout=0 to wait for ever"
        ))
    })
}

/// Memory of which reads and writes that wait for a dead node leave some to others, and of which a machine has that much.
fn memory(size: &str) -> Result<usize, MountError> {
    let parsed = nodes::bytes(size).and_then(|bytes| usize::try_from(bytes).ok());
    parsed.filter(|bytes| (MEMORY_MIN..=MEMORY_MAX).contains(bytes)).ok_or_else(|| {
        MountError(format!(
            "mount option `memory={size}` is no size from 64M to 16G; write memory=512M, or leave it out for 256M"
        ))
    })
}

/// Twice what the reads of one dead node hold, beside what writes hold.
const MEMORY_MIN: usize = 64 << 20;
/// Ten thousand requests in flight; more is a mistaken unit.
const MEMORY_MAX: usize = 16 << 30;

/// Words of mount(8), fstab(5) and systemd.mount(5) that are not for the file system, and those that the kernel lists of a
/// FUSE mount, which mount(8) gives back when it is to remount.
fn is_for_mount(word: &str) -> bool {
    const WORDS: [&str; 24] = [
        "defaults",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "_netdev",
        "nofail",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
        "nolazytime",
        "diratime",
        "nodiratime",
        "async",
        "default_permissions",
        "nomand",
        "noiversion",
        "silent",
        "loud",
    ];
    const BEGINNINGS: [&str; 8] =
        ["x-", "X-", "comment=", "uhelper=", "helper=", "user_id=", "group_id=", "max_read="];
    WORDS.contains(&word) || BEGINNINGS.iter().any(|beginning| word.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use sealfs_net::Choice;
    use sealfs_ring::Poll;

    use super::*;

    #[test]
    fn a_list_is_applied_from_left_to_right() {
        let mut options = MountOptions::default();
        let list = "ro,defaults,_netdev,x-systemd.automount,nosuid,timeout=5,key=/etc/sealfs.key,transport=tcp,log=/l,rw,\
                    poll=spin,memory=1G,\
                    consistency=close-to-open,consistency=strict,";
        options.apply(list).unwrap();
        let expected = MountOptions {
            nosuid: true,
            timeout_ms: 5_000,
            memory: 1 << 30,
            key: Some("/etc/sealfs.key".into()),
            log: Some("/l".into()),
            network: Network { choice: Choice::Tcp, rdma_device: None, poll: Poll::Spin },
            consistency: Consistency::Strict,
            ..MountOptions::default()
        };
        assert_eq!(options, expected);
        // As mount(8) puts it together from the mount table.
        let mut options = MountOptions::default();
        let list = "rw,nosuid,relatime,user_id=0,group_id=0,default_permissions,allow_other,max_read=1048576,remount,ro";
        options.apply(list).unwrap();
        assert!(options.remount && options.read_only && options.nosuid, "{options:?}");
    }

    #[test]
    fn an_unknown_word_is_refused_by_name() {
        let words =
            ["raedonly", "timeout=soon", "timeout=-1", "transport=ib", "key=", "log=", "ro=1"];
        let more = [
            "metrics=",
            "consistency=some",
            "poll=never",
            "memory=much",
            "memory=63M",
            "memory=17G",
        ];
        for word in words.into_iter().chain(more) {
            let error = MountOptions::default().apply(&format!("ro,{word}")).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
