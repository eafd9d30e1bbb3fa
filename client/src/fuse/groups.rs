//! Supplementary groups of the processes that ask: the kernel sends uid and gid only.
//!
//! They are read from /proc/TID/status and believed for at most a second, and not beyond the thread's end: the cache holds
//! a pidfd of each thread, which becomes readable when the thread has gone, so that a number that is used again is
//! noticed. (Comparing start times, as usual, reads a file of /proc each time: as dear as reading the groups.)
//!
//! 1. The superuser needs none: no shard looks at them.
//! 2. Who cannot be looked up (it has gone, or lives in another pid namespace) has none: less rights, never more.

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;

use sealfs_proto::{Who, limits};
use sealfs_transport::Instant;

use crate::sys;

/// What is known of the threads that have asked lately.
#[derive(Debug, Default)]
pub(crate) struct GroupCache {
    threads: HashMap<u32, Known>,
}

#[derive(Debug)]
struct Known {
    pidfd: OwnedFd,
    uid: u32,
    gid: u32,
    until: Instant,
    groups: Vec<u32>,
}

impl GroupCache {
    /// The person behind a request. Cost: one system call when known, four when not; none for the superuser.
    pub(crate) fn who(&mut self, uid: u32, gid: u32, pid: u32, now: Instant) -> Who {
        if uid == 0 || pid == 0 {
            return Who { uid, gid, groups: Vec::new() };
        }
        let known = self.threads.get(&pid).filter(|known| {
            known.until > now
                && (known.uid, known.gid) == (uid, gid)
                && !sys::is_readable(&known.pidfd)
        });
        if let Some(known) = known {
            return Who { uid, gid, groups: known.groups.clone() };
        }
        // The descriptor is opened first: if the thread has not ended afterwards, the groups are its own.
        let pidfd = sys::open_thread(pid);
        let groups = read_groups(pid);
        if self.threads.len() >= THREADS_MAX {
            self.threads.clear();
        }
        match pidfd {
            Ok(pidfd) => {
                let until = now.after_ms(BELIEVED_MS);
                let known = Known { pidfd, uid, gid, until, groups: groups.clone() };
                self.threads.insert(pid, known);
            }
            Err(_) => drop(self.threads.remove(&pid)),
        }
        Who { uid, gid, groups }
    }

    /// Forgets threads that have not asked for a while, so that their descriptors are closed.
    pub(crate) fn forget_old(&mut self, now: Instant) {
        self.threads.retain(|_, known| known.until > now);
    }
}

fn read_groups(pid: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{pid}/status")).map_or(Vec::new(), |status| parse(&status))
}

/// The line "Groups:" of /proc/PID/status.
fn parse(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or("");
    let mut groups: Vec<u32> =
        line.split_ascii_whitespace().filter_map(|gid| gid.parse().ok()).collect();
    if groups.len() > limits::GROUPS_MAX {
        tracing::warn!(
            groups = groups.len(),
            "a process has more groups than a request carries; the first {} count",
            limits::GROUPS_MAX
        );
        groups.truncate(limits::GROUPS_MAX);
    }
    groups
}

/// Groups are believed for so long.
const BELIEVED_MS: u64 = 1_000;
/// Bounds memory and descriptors; beyond it the cache starts anew.
const THREADS_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_line_of_groups_is_found() {
        assert_eq!(parse("Name:\tx\nGroups:\t4 24 1000 \nVmPeak: 1"), [4, 24, 1_000]);
        assert_eq!(parse("Name:\tx\nGroups:\t \n"), [0; 0]);
        assert_eq!(parse(""), [0; 0]);
    }

    #[test]
    fn a_thread_is_believed_while_it_lives_and_for_a_second() {
        let mut cache = GroupCache::default();
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let (pid, start) = (child.id(), Instant(0));
        let expected = read_groups(pid);
        assert_eq!(cache.who(7, 8, pid, start), Who { uid: 7, gid: 8, groups: expected });
        // What the cache says is told apart from what /proc says.
        cache.threads.get_mut(&pid).unwrap().groups = vec![99];
        assert_eq!(cache.who(7, 8, pid, start.after_ms(999)).groups, [99]);
        assert_ne!(cache.who(9, 8, pid, start.after_ms(999)).groups, [99], "other credentials");
        cache.threads.get_mut(&pid).unwrap().groups = vec![99];
        assert_ne!(cache.who(9, 8, pid, start.after_ms(2_500)).groups, [99], "it is too old");
        cache.threads.get_mut(&pid).unwrap().groups = vec![99];
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(cache.who(9, 8, pid, start.after_ms(2_600)).groups, [0; 0], "it has ended");
    }

    #[test]
    fn the_superuser_needs_no_groups() {
        let mut cache = GroupCache::default();
        assert_eq!(cache.who(0, 5, std::process::id(), Instant(0)).groups, [0; 0]);
        assert!(cache.threads.is_empty());
    }
}
