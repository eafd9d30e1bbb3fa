//! A directory that becomes an initial file system of the guest: files, programs with their libraries, one archive.
//!
//! Everything lies in the guest where it lies on the host, so that a test finds the programs whose paths were built into
//! it. Several archives can follow one another; the kernel unpacks them in order.
//!
//! 1. Directories on the way to a file are resolved (`/lib` is `/usr/lib`): an archive never puts a directory where an
//!    earlier one put a link.
//! 2. An archive is closed: each program comes with the libraries that it loads at its start.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command::{output, run};

/// Files that wait to be packed.
pub(crate) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// An empty one at `root`; what was there is gone.
    pub(crate) fn new(root: PathBuf) -> Result<Self, String> {
        if root.exists() {
            fs::remove_dir_all(&root).map_err(named(&root))?;
        }
        fs::create_dir_all(&root).map_err(named(&root))?;
        Ok(Self { root })
    }

    /// Where it lies on the host.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a directory.
    pub(crate) fn dir(&self, path: &str) -> Result<(), String> {
        let inside = self.inside(Path::new(path));
        fs::create_dir_all(&inside).map_err(named(&inside))
    }

    /// Makes a symbolic link, unless something has that name.
    pub(crate) fn link(&self, path: &str, target: &Path) -> Result<(), String> {
        let inside = self.inside(Path::new(path));
        if inside.symlink_metadata().is_ok() {
            return Ok(());
        }
        make_parent(&inside)?;
        symlink(target, &inside).map_err(named(&inside))
    }

    /// Writes a file.
    pub(crate) fn write(&self, path: &str, text: &str) -> Result<(), String> {
        let inside = self.inside(Path::new(path));
        make_parent(&inside)?;
        fs::write(&inside, text).map_err(named(&inside))
    }

    /// Copies a file of the host to the same place.
    pub(crate) fn copy(&self, source: &Path) -> Result<(), String> {
        self.copy_to(source, &resolved(source)?)
    }

    /// Copies a file of the host to `place`.
    pub(crate) fn copy_to(&self, source: &Path, place: &Path) -> Result<(), String> {
        let inside = self.inside(place);
        make_parent(&inside)?;
        fs::copy(source, &inside).map(drop).map_err(named(source))
    }

    /// Copies a folder with all that is below it to `place`.
    pub(crate) fn copy_all(&self, source: &Path, place: &Path) -> Result<(), String> {
        for entry in fs::read_dir(source).map_err(named(source))? {
            let path = entry.map_err(named(source))?.path();
            let target = place.join(path.file_name().unwrap_or_default());
            if path.is_dir() {
                self.copy_all(&path, &target)?;
            } else {
                self.copy_to(&path, &target)?;
            }
        }
        Ok(())
    }

    /// Copies a program, without what only a debugger reads, and the libraries that its loader would load.
    pub(crate) fn program(&self, path: &Path) -> Result<(), String> {
        self.copy(path)?;
        let copied = self.inside(&resolved(path)?);
        run(Command::new("strip").arg("--strip-debug").arg(&copied))?;
        let text = output(Command::new("ldd").arg(path))?;
        libraries(&text)
            .map_err(|missing| format!("{}: {missing} is not installed", path.display()))?
            .into_iter()
            .try_for_each(|library| self.copy(library))
    }

    /// Packs everything, owned by root, as the archive that the kernel unpacks.
    pub(crate) fn pack(self, archive: &Path) -> Result<(), String> {
        let file = fs::File::create(archive).map_err(named(archive))?;
        let script = "find . -print0 | sort -z | cpio --null --quiet -o -H newc -R 0:0";
        let mut command = Command::new("sh");
        run(command.args(["-euc", script]).current_dir(&self.root).stdout(Stdio::from(file)))?;
        fs::remove_dir_all(&self.root).map_err(named(&self.root))
    }

    fn inside(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// The libraries in what ldd prints, else the name of one that is missing.
fn libraries(text: &str) -> Result<Vec<&Path>, &str> {
    let mut found = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [name, "=>", "not", "found"] => return Err(name),
            [_, "=>", path, _] => found.push(Path::new(path)),
            // The loader itself; the kernel's own library has no path.
            [path, _] if path.starts_with('/') => found.push(Path::new(path)),
            _ => {}
        }
    }
    Ok(found)
}

/// The path with its directory resolved, but not its last name.
fn resolved(path: &Path) -> Result<PathBuf, String> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(format!("{} is not a file", path.display()));
    };
    Ok(fs::canonicalize(folder).map_err(named(folder))?.join(name))
}

fn make_parent(path: &Path) -> Result<(), String> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(named(parent))
}

/// Turns an error of a file call into one that names the file.
pub(crate) fn named(path: &Path) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_and_a_missing_one_is_named() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = [Path::new("/lib/x/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")];
        assert_eq!(libraries(text), Ok(expected.to_vec()));
        assert_eq!(libraries("\tlibfoo.so.1 => not found\n"), Err("libfoo.so.1"));
    }
}
