//! What sealfs needs of any machine: FUSE, io_uring, limits, memory, a key, a port.

use std::io::ErrorKind;
use std::net::ToSocketAddrs;
use std::path::Path;

use super::{Finding, Root};

/// Looks at the machine. `needs_pinned`: bytes that a transport will pin (0: none).
pub(crate) fn findings(root: &Root, needs_pinned: u64) -> Vec<Finding> {
    let mut found = vec![
        kernel(root),
        fuse(root),
        fuse_uring(root),
        io_uring(root),
        files(root),
        huge_pages(root),
        clock(root),
    ];
    found.extend((needs_pinned > 0).then(|| memlock(root, needs_pinned)));
    found
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
        Err(error) => Finding::unusable(
            "io_uring",
            error.to_string(),
            "run `sysctl -w kernel.io_uring_disabled=0`; in a container allow the io_uring_* system calls",
        ),
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

fn memlock(root: &Root, needed: u64) -> Finding {
    let what = "RLIMIT_MEMLOCK";
    if may_lock_any(root) {
        return Finding::fine(what, "does not bind this process (CAP_IPC_LOCK)");
    }
    match limit(root, "Max locked memory") {
        Some(limit) if limit < needed => Finding::unusable(
            what,
            format!("{} KiB, but {} KiB are registered", limit >> 10, needed >> 10),
            "run `ulimit -l unlimited`; LimitMEMLOCK=infinity in a unit; PropagateResourceLimitsExcept=MEMLOCK in slurm.conf",
        ),
        Some(limit) => Finding::fine(what, format!("{} KiB", limit >> 10)),
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
        Err(error) => Finding::unusable(&what, error.to_string(), "see above"),
    }
}

/// SINGLE_ISSUER and DEFER_TASKRUN, io_uring_setup(2).
const KERNEL_MIN: (u32, u32) = (6, 1);
/// Connections of a large job's clients, and files.
const FILES_MIN: u64 = 4_096;
const CAP_IPC_LOCK: u32 = 14;
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
    fn locked_memory_binds_unless_the_process_may_lock_any() {
        let limits =
            "Limit  Soft Limit  Hard Limit  Units\nMax locked memory  8388608  8388608  bytes\n";
        let nobody = "Name:\tx\nCapEff:\t0000000000000000\n";
        let (_dir, root) = machine(&[("/proc/self/limits", limits), ("/proc/self/status", nobody)]);
        let found = memlock(&root, 128 << 20);
        assert_eq!(found.verdict, Verdict::Unusable);
        assert!(found.text.contains("8192 KiB") && found.next.contains("ulimit -l"), "{found:?}");
        assert_eq!(memlock(&root, 1 << 20).verdict, Verdict::Fine);
        let root_user = "CapEff:\t000001ffffffffff\n";
        let (_dir, root) =
            machine(&[("/proc/self/limits", limits), ("/proc/self/status", root_user)]);
        assert_eq!(memlock(&root, 128 << 20).verdict, Verdict::Fine);
        let unlimited = "Max locked memory  unlimited  unlimited  bytes";
        let (_dir, root) = machine(&[("/proc/self/limits", unlimited)]);
        assert_eq!(memlock(&root, 128 << 20).verdict, Verdict::Fine);
    }

    #[test]
    fn a_port_in_use_is_told() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = port(&taken.local_addr().unwrap().to_string());
        assert_eq!(found.verdict, Verdict::Degraded, "{found:?}");
        assert_eq!(port("nowhere").verdict, Verdict::Unusable);
    }
}
