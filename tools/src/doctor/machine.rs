//! What sealfs needs of any machine: FUSE, io_uring, limits, memory, a key, a port.

use std::io::{self, ErrorKind};
use std::net::ToSocketAddrs;
use std::path::Path;

use super::{Finding, Root};

/// Looks at the machine.
pub(crate) fn findings(root: &Root) -> Vec<Finding> {
    vec![
        kernel(root),
        fuse(root),
        fuse_uring(root),
        io_uring(root),
        files(root),
        huge_pages(root),
        clock(root),
    ]
}

fn kernel(root: &Root) -> Finding {
    let release = root.text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_MIN {
        return Finding::fine("kernel", release);
    }
    let (major, minor) = KERNEL_MIN;
    let next = format!("boot Linux {major}.{minor} or newer");
    Finding::unusable("kernel", format!("{release} is too old for io_uring as it is used"), next)
}

fn fuse(root: &Root) -> Finding {
    match root.cannot_open("/dev/fuse") {
        None => Finding::fine("/dev/fuse", "can be opened"),
        Some(error) if error.kind() == ErrorKind::NotFound => Finding::unusable(
            "/dev/fuse",
            "is not there: nothing can be mounted",
            "run `modprobe fuse`; in a container give it the device (`--device /dev/fuse`)",
        ),
        Some(error) => Finding::unusable(
            "/dev/fuse",
            format!("cannot be opened: {error}"),
            "give it mode 0666, as udev does; in a container allow the device",
        ),
    }
}

fn fuse_uring(root: &Root) -> Finding {
    let text = match root.text("/sys/module/fuse/parameters/enable_uring").as_deref() {
        None => "not known to this kernel; /dev/fuse is read instead",
        Some("Y" | "1") => "on; /dev/fuse is read all the same",
        Some(_) => "off; /dev/fuse is read",
    };
    Finding::fine("fuse.enable_uring", text)
}

fn io_uring(root: &Root) -> Finding {
    let disabled = root.text("/proc/sys/kernel/io_uring_disabled");
    match sealfs_ring::Ring::new(sealfs_ring::Config::default()) {
        Ok(_) if disabled.as_deref() == Some("1") => Finding::degraded(
            "io_uring",
            "works here, but kernel.io_uring_disabled is 1: other users cannot use it",
            "run `sysctl -w kernel.io_uring_disabled=0`",
        ),
        Ok(_) => Finding::fine("io_uring", "works"),
        Err(error) => {
            let next = io_uring_next(&error, disabled.as_deref());
            Finding::unusable("io_uring", error.to_string(), next)
        }
    }
}

/// What to do about an io_uring that cannot be had. A seccomp profile and the sysctl both show as EPERM.
fn io_uring_next(error: &io::Error, disabled: Option<&str>) -> &'static str {
    match (error.kind(), disabled) {
        (ErrorKind::OutOfMemory, _) => {
            "run `ulimit -l unlimited`, or set LimitMEMLOCK=infinity in the unit"
        }
        (ErrorKind::InvalidInput, _) => "boot Linux 6.1 or newer",
        (ErrorKind::PermissionDenied, Some("1" | "2")) => {
            "run `sysctl -w kernel.io_uring_disabled=0`"
        }
        (ErrorKind::PermissionDenied | ErrorKind::Unsupported, _) => {
            "in a container allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile (docs/rdma.md, \
             Containers)"
        }
        _ => "see `dmesg`",
    }
}

fn files(root: &Root) -> Finding {
    let limit = limit(root, "Max open files").unwrap_or(u64::MAX);
    if limit >= FILES_MIN {
        return Finding::fine("open files", format!("limit {limit}"));
    }
    Finding::degraded(
        "open files",
        format!("limit {limit}: a node takes one per connection"),
        format!("raise it: `ulimit -n {FILES_MIN}`, or LimitNOFILE={FILES_MIN} in the unit"),
    )
}

fn huge_pages(root: &Root) -> Finding {
    let set_aside = |name: &str| -> u64 {
        let text = root.text(&format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}"));
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    let (all, free) = (set_aside("nr_hugepages"), set_aside("free_hugepages"));
    if all > 0 {
        return Finding::fine(
            "huge pages",
            format!("{all} of 2 MiB are set aside, {free} are free"),
        );
    }
    let transparent = root.text("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if transparent.contains("[never]") || transparent.is_empty() {
        return Finding::degraded(
            "huge pages",
            "transparent huge pages are off: buffers take more page table and NIC translation entries",
            "run `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`",
        );
    }
    Finding::fine("huge pages", format!("transparent: {transparent}"))
}

/// Whether somebody keeps the clock right; with nodes given their clocks are compared besides.
fn clock(root: &Root) -> Finding {
    let source = root
        .text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        .unwrap_or_else(|| "unknown".into());
    let kept = KEEPERS.iter().find(|keeper| root.has(keeper.1));
    match kept {
        Some((name, _)) => Finding::fine("clock", format!("kept by {name}, source {source}")),
        None => Finding::degraded(
            "clock",
            format!("source {source}; no chrony, ntpd or timesyncd keeps it right"),
            "run one of them: file times come from clients' and nodes' clocks",
        ),
    }
}

/// What a process registers with RDMA devices, of which the kernel pins all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pinned {
    /// A mount's `--memory`, or a node's times its cores.
    pub(crate) arena: u64,
    /// Peers that it is connected with.
    pub(crate) peers: usize,
}

/// Whether so much may be pinned.
pub(crate) fn memlock(root: &Root, pinned: Pinned) -> Finding {
    let Pinned { arena, peers } = pinned;
    let beside = sealfs_client::memory_beside_arena(peers) as u64;
    let needed = arena.saturating_add(beside);
    let counted = format!(
        "{} MiB of --memory, and {} MiB at most for messages with {peers} peers",
        arena >> 20,
        beside >> 20
    );
    let what = "RLIMIT_MEMLOCK";
    if may_lock_any(root) {
        return Finding::fine(what, "does not bind this process (CAP_IPC_LOCK)");
    }
    match limit(root, "Max locked memory") {
        Some(limit) if limit < needed => Finding::unusable(
            what,
            format!("{} KiB, but {} KiB are pinned: {counted}", limit >> 10, needed >> 10),
            "run `ulimit -l unlimited`; LimitMEMLOCK=infinity in a unit; PropagateResourceLimitsExcept=MEMLOCK in slurm.conf",
        ),
        Some(limit) => Finding::fine(
            what,
            format!("{} KiB, enough for {counted}; a node pins as much for each core", limit >> 10),
        ),
        None => Finding::fine(what, "unlimited"),
    }
}

/// CAP_IPC_LOCK, capabilities(7).
fn may_lock_any(root: &Root) -> bool {
    let status = root.text("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << CAP_IPC_LOCK) != 0)
}

/// A soft limit of this process; `None`: unlimited.
fn limit(root: &Root, name: &str) -> Option<u64> {
    let limits = root.text("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether a node could listen there.
pub(crate) fn port(listen: &str) -> Finding {
    let what = format!("port {listen}");
    let address = match listen.to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(address)) => address,
        Ok(None) => return Finding::unusable(&what, "the name has no address", "write ADDR:PORT"),
        Err(error) => return Finding::unusable(&what, error.to_string(), "write ADDR:PORT"),
    };
    match sealfs_ring::bind_listener(&address, 1, false) {
        Ok(_) => Finding::fine(&what, "free"),
        Err(error) => Finding::degraded(
            &what,
            error.to_string(),
            "fine if it is this machine's node; else choose another port",
        ),
    }
}

/// Whether the key file can be used.
pub(crate) fn key(path: &Path) -> Finding {
    let what = format!("key {}", path.display());
    match sealfs_client::read_key(path) {
        Ok(_) => Finding::fine(&what, "readable by its owner only"),
        Err(error) => Finding::unusable(&what, error.to_string(), KEY_NEXT),
    }
}

/// SINGLE_ISSUER and DEFER_TASKRUN, io_uring_setup(2).
const KERNEL_MIN: (u32, u32) = (6, 1);
/// Connections of a large job's clients, and files.
const FILES_MIN: u64 = 4_096;
const CAP_IPC_LOCK: u32 = 14;
const KEY_NEXT: &str = "give with --key a copy of the cluster's key file (64 hexadecimal digits) that belongs to you or \
                        root, with mode 600";
/// Who keeps clocks, and what shows that he runs.
const KEEPERS: [(&str, &str); 4] = [
    ("chrony", "/run/chrony"),
    ("ntpd", "/run/ntpd.pid"),
    ("systemd-timesyncd", "/run/systemd/timesync/synchronized"),
    ("the hypervisor (PTP)", "/dev/ptp0"),
];

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use std::fs;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root(dir.path().to_owned());
        for (path, text) in files {
            let path = root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (dir, root)
    }

    #[test]
    fn an_old_kernel_is_unusable_and_a_new_one_is_fine() {
        for (release, verdict) in [
            ("6.18.5-amd64\n", Verdict::Fine),
            ("6.1.0-31-amd64", Verdict::Fine),
            ("5.15.0", Verdict::Unusable),
            ("rubbish", Verdict::Unusable),
        ] {
            let (_dir, root) = machine(&[("/proc/sys/kernel/osrelease", release)]);
            assert_eq!(kernel(&root).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn a_missing_fuse_device_says_how_to_get_it() {
        let (_dir, root) = machine(&[]);
        let found = fuse(&root);
        assert_eq!(found.verdict, Verdict::Unusable);
        assert!(found.next.contains("modprobe fuse"), "{found:?}");
        let (_dir, root) = machine(&[("/dev/fuse", "")]);
        assert_eq!(fuse(&root).verdict, Verdict::Fine);
    }

    #[test]
    fn huge_pages_are_set_aside_or_transparent() {
        const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
        const ALL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
        let off = (SWITCH, "always madvise [never]\n");
        let (_dir, root) = machine(&[off, (ALL, "0\n")]);
        assert_eq!(huge_pages(&root).verdict, Verdict::Degraded);
        let (_dir, root) = machine(&[off, (ALL, "128\n")]);
        let found = huge_pages(&root);
        assert!(found.verdict == Verdict::Fine && found.text.starts_with("128"), "{found:?}");
        let (_dir, root) = machine(&[(SWITCH, "always [madvise] never\n")]);
        assert_eq!(huge_pages(&root).verdict, Verdict::Fine);
    }

    #[test]
    fn locked_memory_binds_unless_the_process_may_lock_any() {
        let limits =
            "Limit  Soft Limit  Hard Limit  Units\nMax locked memory  8388608  8388608  bytes\n";
        let nobody = "Name:\tx\nCapEff:\t0000000000000000\n";
        let (_dir, root) = machine(&[("/proc/self/limits", limits), ("/proc/self/status", nobody)]);
        let of = |arena| Pinned { arena, peers: 2 };
        let found = memlock(&root, of(128 << 20));
        assert_eq!(found.verdict, Verdict::Unusable);
        for part in ["8192 KiB", "128 MiB of --memory", "2 peers"] {
            assert!(found.text.contains(part), "{part}: {found:?}");
        }
        assert!(found.next.contains("ulimit -l"), "{found:?}");
        let root_user = "CapEff:\t000001ffffffffff\n";
        let (_dir, root) =
            machine(&[("/proc/self/limits", limits), ("/proc/self/status", root_user)]);
        assert_eq!(memlock(&root, of(128 << 20)).verdict, Verdict::Fine);
        let unlimited = "Max locked memory  unlimited  unlimited  bytes";
        let (_dir, root) = machine(&[("/proc/self/limits", unlimited)]);
        assert_eq!(memlock(&root, of(128 << 20)).verdict, Verdict::Fine);
    }

    #[test]
    fn a_limit_of_the_arena_alone_is_too_little_and_with_messages_it_is_enough() {
        let arena = 256 << 20;
        let pinned = |peers, limit: u64| {
            let limits = format!("Max locked memory  {limit}  {limit}  bytes\n");
            let (_dir, root) = machine(&[("/proc/self/limits", &limits)]);
            memlock(&root, Pinned { arena, peers })
        };
        let beside = sealfs_client::memory_beside_arena(1) as u64;
        assert_eq!(pinned(1, arena).verdict, Verdict::Unusable);
        assert_eq!(pinned(1, arena + beside - 1).verdict, Verdict::Unusable);
        let found = pinned(1, arena + beside);
        assert!(
            found.verdict == Verdict::Fine && found.text.contains("for each core"),
            "{found:?}"
        );
        assert_eq!(
            pinned(100, arena + beside).verdict,
            Verdict::Unusable,
            "more peers, more messages"
        );
    }

    #[test]
    fn what_to_do_about_io_uring_follows_from_what_the_kernel_said() {
        let next = |code, disabled| io_uring_next(&io::Error::from_raw_os_error(code), disabled);
        let [perm, memory, invalid, absent] = [1, 12, 22, 38];
        assert!(next(memory, Some("0")).contains("ulimit -l"));
        assert!(next(perm, Some("2")).contains("io_uring_disabled=0"));
        for seccomp in [next(perm, Some("0")), next(perm, None), next(absent, Some("0"))] {
            assert!(seccomp.contains("seccomp"), "{seccomp}");
        }
        assert!(next(invalid, Some("0")).contains("6.1"));
    }

    #[test]
    fn a_key_that_cannot_be_used_says_what_to_give() {
        let found = key(Path::new("/nowhere/key"));
        assert_eq!(found.verdict, Verdict::Unusable);
        assert!(found.next.contains("--key") && found.next.contains("600"), "{found:?}");
    }

    #[test]
    fn a_port_in_use_is_told() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = port(&taken.local_addr().unwrap().to_string());
        assert_eq!(found.verdict, Verdict::Degraded, "{found:?}");
        assert_eq!(port("nowhere").verdict, Verdict::Unusable);
    }
}
