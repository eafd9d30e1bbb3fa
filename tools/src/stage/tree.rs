//! Folders of SOURCE and DEST by descriptors: nothing below the two roots is ever reached through a symbolic link.
//!
//! 1. A path is opened below its root by openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS: whoever replaces a folder by a
//!    link while it is staged makes it fail, not lead elsewhere.
//! 2. A folder of DEST is made when something in it is, mode 0700 until all is there.

use std::ffi::CString;
use std::sync::{Arc, Mutex};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags, fchmod, fgetxattr, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;

use super::names::join;

/// One name in a folder of the source.
pub(crate) struct Entry {
    pub(crate) name: CString,
}

/// A folder that is walked, on both sides.
pub(crate) struct Dir {
    pub(crate) path: Vec<u8>,
    /// Which mount it is in.
    pub(crate) mount: [u8; 16],
    pub(crate) source: OwnedFd,
    target: Mutex<Option<Arc<Target>>>,
}

/// A folder of DEST.
pub(crate) struct Target {
    pub(crate) fd: OwnedFd,
    /// New files in it get a POSIX ACL by themselves.
    pub(crate) gives_acl: bool,
}

impl Dir {
    pub(crate) fn new(path: Vec<u8>, mount: [u8; 16], source: OwnedFd) -> Self {
        Self { path, mount, source, target: Mutex::new(None) }
    }

    /// The path of an entry.
    pub(crate) fn join(&self, entry: &Entry) -> Vec<u8> {
        join(&self.path, entry.name.as_bytes())
    }

    /// The folder in DEST, made if it is not there.
    pub(crate) fn target(&self, root: &OwnedFd) -> Result<Arc<Target>, Errno> {
        let mut target = self.target.lock().expect("nobody panics while he holds it");
        if let Some(target) = &*target {
            return Ok(Arc::clone(target));
        }
        let fd = make_below(root, &self.path)?;
        let_owner_write(&fd)?;
        let acl = fgetxattr(&fd, ACL_DEFAULT, &mut [0_u8; 1][..]);
        // It is longer than the byte that there is room for.
        let gives_acl = matches!(acl, Ok(_) | Err(Errno::RANGE));
        let made = Arc::new(Target { fd, gives_acl });
        *target = Some(Arc::clone(&made));
        Ok(made)
    }
}

/// Opens a folder below a root; the empty path is the root itself, anew.
pub(crate) fn open_below(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut dir = openat(root, c".", FOLDER, Mode::empty())?;
    let mut rest = path;
    while !rest.is_empty() {
        // A path that the kernel takes no more of at a time goes in pieces.
        let cut = if rest.len() <= PATH_LEN_MAX {
            rest.len()
        } else {
            let slash = rest[..PATH_LEN_MAX].iter().rposition(|byte| *byte == b'/');
            slash.ok_or(Errno::NAMETOOLONG)?
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        dir = loop {
            match openat2(&dir, &rest[..cut], FOLDER, Mode::empty(), resolve) {
                // Something was renamed meanwhile, or a signal came.
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => break opened?,
            }
        };
        rest = rest[cut..].strip_prefix(b"/").unwrap_or(&rest[cut..]);
    }
    Ok(dir)
}

/// Opens a folder below a root and makes what is missing of its path.
fn make_below(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    match open_below(root, path) {
        Err(Errno::NOENT) => {}
        opened => return opened,
    }
    let mut dir = openat(root, c".", FOLDER, Mode::empty())?;
    for name in path.split(|byte| *byte == b'/') {
        dir = match openat(&dir, name, FOLDER, Mode::empty()) {
            Err(Errno::NOENT) => {
                match mkdirat(&dir, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                openat(&dir, name, FOLDER, Mode::empty())?
            }
            opened => opened?,
        };
    }
    Ok(dir)
}

/// A folder of ours that its owner may not write into: an earlier run gave it the source's mode. It gets it again at the end.
/// Tells the mode that it had, if that was changed.
pub(crate) fn let_owner_write(dir: &OwnedFd) -> Result<Option<Mode>, Errno> {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return Ok(None);
    }
    let stat = fstat(dir)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    if stat.st_uid == uid.as_raw() && !mode.contains(Mode::RWXU) {
        fchmod(dir, mode | Mode::RWXU)?;
        return Ok(Some(mode));
    }
    Ok(None)
}

/// How folders are opened: as folders, never through a link.
pub(crate) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The POSIX ACL that new entries of a folder get.
const ACL_DEFAULT: &str = "system.posix_acl_default";
/// PATH_MAX without the 0 at the end, and some room.
const PATH_LEN_MAX: usize = 4_000;

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::open;

    fn root(dir: &tempfile::TempDir) -> OwnedFd {
        open(dir.path(), FOLDER, Mode::empty()).unwrap()
    }

    #[test]
    fn a_link_in_a_path_is_refused_wherever_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("real/inner")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("inner", dir.path().join("real/last")).unwrap();
        let root = root(&dir);
        assert!(open_below(&root, b"real/inner").is_ok());
        assert_eq!(open_below(&root, b"link/inner").err(), Some(Errno::LOOP));
        assert!(open_below(&root, b"real/last").is_err());
        assert!(open_below(&root, b"real/../..").is_err());
        assert!(make_below(&root, b"link/new").is_err());
        assert!(!dir.path().join("real/new").exists());
    }

    #[test]
    fn folders_deeper_than_a_path_may_be_long_are_made_and_opened() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(&dir);
        let path = vec!["d".repeat(250); 40].join("/").into_bytes();
        assert!(path.len() > 8_192);
        make_below(&root, &path).unwrap();
        let opened = open_below(&root, &path).unwrap();
        mkdirat(&opened, c"leaf", Mode::RWXU).unwrap();
        assert!(open_below(&root, &join(&path, b"leaf")).is_ok());
    }
}
