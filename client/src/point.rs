//! The mountpoint: how a FUSE mount is made, changed and undone in the kernel.
//!
//! The superuser mounts with mount(2). Anybody else asks fusermount3 (set-user-id, of the package fuse3), which mounts and
//! sends the descriptor of /dev/fuse back over a socket whose number is in the environment variable `_FUSE_COMMFD`.
//!
//! 1. The descriptor is O_NONBLOCK and close-on-exec.
//! 2. A mount whose client is dead ("Transport endpoint is not connected") is taken away before a new one is made at its
//!    path; a living one never.
//! 3. The source in the mount table is what the user has named: `mount -a` finds by it and the mountpoint what is mounted.
//! 4. An error names the mountpoint or device, the cause and what to do.

use std::ffi::{CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{MountError, MountOptions, sys};

/// Makes the mount; the descriptor through which the kernel asks. Dropping it ends the mount's life, not its entry in the
/// mount table: that is [`detach`]'s.
pub(crate) fn attach(
    mountpoint: &Path,
    source: &str,
    options: &MountOptions,
) -> Result<File, MountError> {
    let mountpoint = ready(mountpoint)?;
    let source = shown_source(source);
    let device = if sys::is_root() {
        attach_as_root(&mountpoint, source, options)?
    } else {
        attach_as_user(&mountpoint, source, options)?
    };
    sys::set_nonblocking(&device).map_err(|error| {
        let _ = detach(&mountpoint, InUse::IsLeft);
        MountError(format!("cannot make {DEVICE} non-blocking: {error}"))
    })?;
    Ok(device)
}

/// What of a mount in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InUse {
    /// It stays, which is an error.
    Stays,
    /// It is taken away; files that are open stay usable until they are closed.
    IsLeft,
    /// It is taken away, and whatever still waits for or uses it gets an error at once.
    IsEnded,
}

/// Takes the mount at `mountpoint` away. Asks nothing of the mount itself, which may not answer.
pub(crate) fn detach(mountpoint: &Path, in_use: InUse) -> Result<(), MountError> {
    let shown = mountpoint.display();
    if !sys::is_root() {
        if in_use == InUse::IsEnded {
            abort(mountpoint);
        }
        let lazy = in_use != InUse::Stays;
        let mut command = Command::new(FUSERMOUNT);
        command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
        let output = command.output().map_err(|error| no_fusermount(&error))?;
        if output.status.success() {
            return Ok(());
        }
        let cause = String::from_utf8_lossy(&output.stderr);
        return Err(MountError(format!(
            "cannot unmount {shown}: {}; only root and who has mounted it may",
            cause.trim()
        )));
    }
    let path = c_string(mountpoint)?;
    let flags = match in_use {
        InUse::Stays => 0,
        InUse::IsLeft => libc::MNT_DETACH,
        InUse::IsEnded => libc::MNT_DETACH | libc::MNT_FORCE,
    };
    let Err(error) = sys::unmount(&path, flags | libc::UMOUNT_NOFOLLOW) else { return Ok(()) };
    let next = match error.raw_os_error() {
        Some(libc::EBUSY) => "files are open or shells stand in it; close them, or use --force",
        Some(libc::EINVAL) => "nothing is mounted there; /proc/mounts shows what is",
        _ => "see /proc/mounts",
    };
    Err(MountError(format!("cannot unmount {shown}: {error}; {next}")))
}

/// Ends the connection of the mount at `mountpoint`, as its owner may through fusectl where that is mounted.
fn abort(mountpoint: &Path) {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let line = table.split(|&byte| byte == b'\n').find(|line| {
        let (point, tail) = split_mountinfo(line);
        tail.starts_with(FS_TYPE.as_bytes()) && point == mountpoint.as_os_str().as_bytes()
    });
    // Field 3 is major:minor, and the minor number is the connection's.
    let device =
        line.and_then(|line| std::str::from_utf8(line.split(|&byte| byte == b' ').nth(2)?).ok());
    if let Some((_, connection)) = device.and_then(|device| device.split_once(':')) {
        let path = format!("/sys/fs/fuse/connections/{connection}/abort");
        if let Err(error) = fs::write(&path, "1") {
            tracing::warn!(path, %error, "programs that wait for the mount are not ended");
        }
    }
}

/// Whether `path` is the root of a mount whose client is dead.
pub(crate) fn is_dead(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| {
        matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
    })
}

/// Whether the kernel's table holds a sealfs mount at `path` (absolute, without symbolic links). Asks nothing of the mount.
pub fn is_mounted(path: &Path) -> bool {
    mount_source(path).is_some()
}

/// The source of the sealfs mount at `path`, of the upmost one; otherwise as [`is_mounted`].
pub fn mount_source(path: &Path) -> Option<PathBuf> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    source_in(&table, path)
}

fn source_in(table: &[u8], path: &Path) -> Option<PathBuf> {
    let mut sources = table.split(|&byte| byte == b'\n').filter_map(|line| {
        let (head, tail) = split_mountinfo(line);
        let source = tail.strip_prefix(FS_TYPE.as_bytes())?.split(|&byte| byte == b' ').next()?;
        (head == path.as_os_str().as_bytes()).then(|| unescape(source))
    });
    sources.next_back().map(|source| OsString::from_vec(source).into())
}

/// Gives the mount at `mountpoint` the flags of `options` (`ro`, `nodev`, `nosuid`, `noexec`, `noatime`; what is not named
/// is unset, and mount(8) names what was set). Everything else stays as it was mounted.
pub fn remount(mountpoint: &Path, options: &MountOptions) -> Result<(), MountError> {
    let shown = mountpoint.display();
    let path = fs::canonicalize(mountpoint)
        .map_err(|error| MountError(format!("mountpoint {shown}: {error}")))?;
    if !is_mounted(&path) {
        return Err(MountError(format!(
            "no sealfs is mounted at {shown}; /proc/mounts shows where, or mount without `remount`"
        )));
    }
    let flags = mount_flags(options) | libc::MS_REMOUNT;
    sys::mount(c"", &c_string(&path)?, c"", flags, c"").map_err(|error| {
        let next = match error.raw_os_error() {
            Some(libc::EPERM) => "only root may; others unmount it and mount it anew",
            Some(libc::EBUSY) => {
                "files are open for writing, or removed and in use yet; close them"
            }
            _ => "see dmesg",
        };
        MountError(format!("cannot remount {shown}: {error}; {next}"))
    })
}

/// Of a line of /proc/self/mountinfo: the mountpoint (field 5, unescaped) and what begins with the type (after " - ").
fn split_mountinfo(line: &[u8]) -> (Vec<u8>, &[u8]) {
    let point = line.split(|&byte| byte == b' ').nth(4).unwrap_or_default();
    let separator = line.windows(3).position(|three| three == b" - ");
    (unescape(point), separator.map_or(&[], |at| &line[at + 3..]))
}

/// The kernel writes blank, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, behind @ ..] = rest {
        let digits = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                plain.push(byte);
                rest = &behind[3..];
            }
            _ => {
                plain.push(*first);
                rest = behind;
            }
        }
    }
    plain
}

/// The mountpoint without symbolic links, after a dead mount was cleared away.
fn ready(mountpoint: &Path) -> Result<PathBuf, MountError> {
    let shown = mountpoint.display();
    if is_dead(mountpoint) {
        tracing::info!("{shown} was left behind by a client that is dead; unmounting it");
        detach(
            &std::path::absolute(mountpoint).unwrap_or_else(|_| mountpoint.into()),
            InUse::IsLeft,
        )?;
    }
    let found = fs::metadata(mountpoint).map_err(|error| {
        let next = match error.kind() {
            io::ErrorKind::NotFound => format!("; create it: mkdir -p {shown}"),
            _ => String::new(),
        };
        MountError(format!("mountpoint {shown}: {error}{next}"))
    })?;
    if !found.is_dir() {
        return Err(MountError(format!(
            "mountpoint {shown} is not a directory; name an empty directory"
        )));
    }
    let mountpoint = fs::canonicalize(mountpoint)
        .map_err(|error| MountError(format!("mountpoint {shown}: {error}")))?;
    if is_mounted(&mountpoint) {
        return Err(MountError(format!(
            "a sealfs is mounted at {shown} already; unmount it first: sealfs umount {shown}"
        )));
    }
    if fs::read_dir(&mountpoint).is_ok_and(|mut entries| entries.next().is_some()) {
        tracing::warn!("mountpoint {shown} is not empty; what it holds is hidden by the mount");
    }
    Ok(mountpoint)
}

/// `source` as long as the kernel takes it.
fn shown_source(source: &str) -> &str {
    let is_shown = source.len() <= SOURCE_LEN && !source.contains(['\0', '\n']);
    if is_shown { source } else { "sealfs" }
}

/// As the value of an option of fusermount3, which takes a comma for the end.
fn option_value(source: &str) -> String {
    source.replace('\\', r"\\").replace(',', r"\,")
}

fn attach_as_root(
    mountpoint: &Path,
    source: &str,
    options: &MountOptions,
) -> Result<File, MountError> {
    let shown = mountpoint.display();
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(|error| no_device(&error))?;
    let root = fs::metadata(mountpoint)
        .map_err(|error| MountError(format!("mountpoint {shown}: {error}")))?;
    let data = format!(
        "fd={},rootmode={:o},user_id=0,group_id=0,default_permissions,allow_other,max_read={}",
        device.as_raw_fd(),
        root.mode() & libc::S_IFMT,
        crate::fuse::MAX_WRITE,
    );
    let (target, data) = (c_string(mountpoint)?, CString::new(data).expect("numbers hold no zero"));
    let source = CString::new(source).expect("it was looked through for zeroes");
    let mounted = sys::mount(&source, &target, c"fuse.sealfs", mount_flags(options), &data);
    let Err(error) = mounted else { return Ok(device) };
    let next = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "this root may not mount (CAP_SYS_ADMIN is missing, as in a container)"
        }
        Some(libc::ENODEV) => "the kernel has no FUSE; run `modprobe fuse`",
        _ => "see dmesg",
    };
    Err(MountError(format!("cannot mount at {shown}: {error}; {next}")))
}

fn mount_flags(options: &MountOptions) -> libc::c_ulong {
    [
        (options.read_only, libc::MS_RDONLY),
        (options.nodev, libc::MS_NODEV),
        (options.nosuid, libc::MS_NOSUID),
        (options.noexec, libc::MS_NOEXEC),
        (options.noatime, libc::MS_NOATIME),
    ]
    .into_iter()
    .filter_map(|(wanted, flag)| wanted.then_some(flag))
    .fold(0, |flags, flag| flags | flag)
}

/// fusermount3 forces nodev and nosuid, and checks whether the user may write the mountpoint.
fn attach_as_user(
    mountpoint: &Path,
    source: &str,
    options: &MountOptions,
) -> Result<File, MountError> {
    if let Err(error) = fs::metadata(DEVICE) {
        return Err(no_device(&error));
    }
    let mut words = vec![format!("fsname={}", option_value(source))];
    words.push("subtype=sealfs,default_permissions".to_string());
    words.push(format!("max_read={}", crate::fuse::MAX_WRITE));
    for (wanted, word) in [
        (options.read_only, "ro"),
        (options.noexec, "noexec"),
        (options.noatime, "noatime"),
        (options.allow_other, "allow_other"),
    ] {
        words.extend(wanted.then(|| word.to_string()));
    }
    let broken = |error: io::Error| MountError(format!("cannot talk to {FUSERMOUNT}: {error}"));
    let (ours, theirs) = UnixStream::pair().map_err(broken)?;
    // The child must inherit its end. No other thread of ours starts programs meanwhile, and one that did would only hold
    // an end of a socket open until it ends.
    sys::set_inherited(&theirs).map_err(broken)?;
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(words.join(","))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .map_err(|error| no_fusermount(&error))?;
    drop(theirs);
    let received = sys::receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(broken)?;
    if let (true, Ok(Some(device))) = (output.status.success(), received) {
        return Ok(File::from(device));
    }
    let cause = String::from_utf8_lossy(&output.stderr);
    let next = if cause.contains("user_allow_other") {
        "root can write user_allow_other into /etc/fuse.conf"
    } else if cause.contains(DEVICE) {
        "root can run `chmod 666 /dev/fuse`"
    } else {
        "the mountpoint must be yours and writable"
    };
    Err(MountError(format!("cannot mount at {}: {}; {next}", mountpoint.display(), cause.trim())))
}

fn no_device(error: &io::Error) -> MountError {
    let next = match error.kind() {
        io::ErrorKind::NotFound => {
            "the kernel has no FUSE or this container lacks the device: run `modprobe fuse`, or start it with \
             `--device /dev/fuse --cap-add SYS_ADMIN`"
        }
        io::ErrorKind::PermissionDenied => "its mode should be 0666: run `chmod 666 /dev/fuse`",
        _ => "see dmesg",
    };
    MountError(format!("cannot open {DEVICE}: {error}; {next}"))
}

fn no_fusermount(error: &io::Error) -> MountError {
    MountError(format!(
        "cannot run {FUSERMOUNT}: {error}; install the package fuse3, or mount as root"
    ))
}

fn c_string(path: &Path) -> Result<CString, MountError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| MountError(format!("path {path:?} has a zero byte")))
}

const DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";
const FS_TYPE: &str = "fuse.sealfs ";
/// mount(2) takes a path's length, 4096, and fusermount3 a page of options.
const SOURCE_LEN: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountpoint_that_cannot_be_is_named_with_the_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let missing = ready(&dir.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("none") && missing.contains("mkdir -p"), "{missing}");
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(ready(&file).unwrap_err().to_string().contains("not a directory"));
        assert_eq!(ready(dir.path()).unwrap(), fs::canonicalize(dir.path()).unwrap());
    }

    #[test]
    fn only_a_mount_of_ours_is_remounted() {
        let dir = tempfile::tempdir().unwrap();
        let error = remount(dir.path(), &MountOptions::default()).unwrap_err().to_string();
        assert!(error.contains("no sealfs is mounted"), "{error}");
    }

    #[test]
    fn a_source_is_the_users_words_unless_the_kernel_would_refuse_them() {
        assert_eq!(shown_source("n1:7000,n2:7000"), "n1:7000,n2:7000");
        let long = "n".repeat(SOURCE_LEN + 1);
        assert_eq!(shown_source(&long[1..]), &long[1..]);
        assert_eq!([shown_source(&long), shown_source("a\0b")], ["sealfs"; 2]);
        assert_eq!(option_value(r"a\b,c"), r"a\\b\,c");
    }

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let line = br"36 35 0:40 / /mnt/a\040b\134c rw,nosuid shared:1 - fuse.sealfs sealfs rw";
        let (point, kind) = split_mountinfo(line);
        assert_eq!(point, br"/mnt/a b\c");
        assert!(kind.starts_with(b"fuse.sealfs "));
        assert!(!is_mounted(Path::new("/")));
        assert_eq!(split_mountinfo(b""), (vec![], &b""[..]));
        let table = br"1 2 0:4 / /m rw - fuse.sealfs /run/a\040b/nodes rw
3 1 0:5 / /m rw - fuse.sealfs n1:7000 rw
4 3 0:6 / /n rw - nfs n1:/x rw";
        assert_eq!(source_in(table, Path::new("/m")).as_deref(), Some(Path::new("n1:7000")));
        let below = source_in(table.split(|&byte| byte == b'\n').next().unwrap(), Path::new("/m"));
        assert_eq!(below.as_deref(), Some(Path::new("/run/a b/nodes")));
        assert_eq!(source_in(table, Path::new("/n")), None);
    }
}
