//! Directories in which only this user works, and paths on which nobody else can lay a snare.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::Failure;

/// In /var/tmp anybody may have made it first. What is another's, or a symbolic link, or open to others is not used: key
/// and pid files in it would be theirs. What is not there is fine. `next` is what to do about it.
pub(crate) fn check_own(directory: &Path, next: &str) -> Result<(), Failure> {
    let Ok(found) = fs::symlink_metadata(directory) else { return Ok(()) };
    let cause = if !found.is_dir() {
        "it is no directory"
    } else if found.uid() != rustix::process::geteuid().as_raw() {
        "it belongs to another user"
    } else if found.mode() & 0o022 != 0 {
        "others may write in it"
    } else {
        return Ok(());
    };
    Err(format!("{}: {cause}; {next}", directory.display()).into())
}

/// Makes the directory, with those above it, for this user only.
pub(crate) fn make_own(directory: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| format!("cannot make {}: {error}", directory.display()).into())
}

/// `path` without symbolic links, if nobody but root and this user can change what it leads to: each directory on the way
/// is one of theirs, and others may not write in it but by the rules of a sticky one (/tmp). What is missing at the end is
/// made, with `mode` for the last. A process of root's that creates, mounts and removes below it cannot be led astray.
pub(crate) fn trusted(path: &Path, mode: u32) -> Result<PathBuf, Failure> {
    let failed = |error: io::Error| Failure::from(format!("{}: {error}", path.display()));
    let absolute = std::path::absolute(path).map_err(failed)?;
    let mut there = absolute.as_path();
    while fs::symlink_metadata(there).is_err() {
        there = there.parent().unwrap_or(Path::new("/"));
    }
    check_way(&fs::canonicalize(there).map_err(failed)?, there == absolute)?;
    // What it lies in may be anybody's way to other things.
    let above = absolute.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o755).create(above).map_err(failed)?;
    fs::DirBuilder::new().recursive(true).mode(mode).create(&absolute).map_err(failed)?;
    let real = fs::canonicalize(&absolute).map_err(failed)?;
    check_way(&real, true)?;
    Ok(real)
}

/// `is_end`: nothing will be made below it by way of a sticky directory's rules.
fn check_way(path: &Path, is_end: bool) -> Result<(), Failure> {
    for directory in path.ancestors() {
        let found = fs::symlink_metadata(directory)
            .map_err(|error| format!("{}: {error}", directory.display()))?;
        if let Some(cause) = snare(&found, is_end && directory == path) {
            let (shown, way) = (path.display(), directory.display());
            return Err(format!(
                "{shown} is not safe to work in: {way} {cause}; name a directory that only root can change, on a way that \
                 only root can change"
            )
            .into());
        }
    }
    Ok(())
}

fn snare(found: &Metadata, is_end: bool) -> Option<&'static str> {
    let me = rustix::process::geteuid().as_raw();
    let is_sticky = found.mode() & 0o1000 != 0 && !is_end;
    if !found.is_dir() {
        Some("is no directory")
    } else if found.uid() != 0 && found.uid() != me {
        Some("belongs to another user")
    } else if found.mode() & 0o022 != 0 && !is_sticky {
        Some("can be written by others")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_directory_that_others_could_have_laid_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        let refused =
            |home: &Path| check_own(home, "use --dir").err().map(|error| error.to_string());
        assert_eq!(refused(&home), None, "it will be made");
        fs::create_dir(&home).unwrap();
        fs::set_permissions(&home, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(refused(&home), None);
        fs::set_permissions(&home, Permissions::from_mode(0o777)).unwrap();
        assert!(refused(&home).unwrap().contains("others may write"));
        let link = dir.path().join("link");
        symlink(dir.path(), &link).unwrap();
        assert!(refused(&link).unwrap().contains("no directory"));
        assert!(refused(Path::new("/tmp")).unwrap().contains("--dir"));
    }

    #[test]
    fn a_way_on_which_others_can_write_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        assert_eq!(trusted(&below, 0o755).unwrap(), fs::canonicalize(&below).unwrap());
        let link = dir.path().join("link");
        symlink(dir.path().join("a"), &link).unwrap();
        assert_eq!(trusted(&link.join("b"), 0o755).unwrap(), fs::canonicalize(&below).unwrap());
        fs::set_permissions(dir.path().join("a"), Permissions::from_mode(0o777)).unwrap();
        for path in [&below, &link.join("c")] {
            let error = trusted(path, 0o755).unwrap_err().to_string();
            assert!(error.contains("can be written by others"), "{error}");
        }
        assert!(!dir.path().join("a/c").exists(), "it was made before it was checked");
        assert!(trusted(Path::new("/tmp"), 0o755).is_err(), "sticky is safe on the way only");
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(trusted(&dir.path().join("file/x"), 0o755).is_err());
    }
}
