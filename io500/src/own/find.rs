//! The find phase: one directory looked through, and how many files must match.
//!
//! A match is newer than the timestamp, has exactly 3,901 bytes and `01` in its name. The name is looked at first, so
//! that only files with the right name are asked for size and time, as pfind does it
//! (github.com/VI4IO/pfind, `pfind.c`, `find_do_readdir`).
//!
//! The phase's rate is pfind's `total_files` per second: every entry that is no directory, whatever its name
//! (`total_files` grows where a name does not match, and in `find_do_lstat`, which directories never come to). pfind
//! compares times (of change) by the second and lets equal ones match; here a match must be newer by the nanosecond, since
//! exact times are what is measured.

use std::fs;
use std::io::Result;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::protocol::{Listing, Search};
use super::tasks::{SMALL, small_file_name};

/// Looks through one directory.
pub(super) fn list(root: &Path, search: &Search) -> Result<Listing> {
    let mut listing = Listing::default();
    for entry in fs::read_dir(root.join(&search.directory))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            listing.directories.push(search.directory.join(entry.file_name()));
            continue;
        }
        listing.files += 1;
        if is_named(&entry.file_name().to_string_lossy()) {
            let attributes = entry.metadata()?;
            let time = (attributes.mtime(), attributes.mtime_nsec());
            if attributes.len() == SMALL as u64 && time > search.newer_than {
                listing.matches += 1;
            }
        }
    }
    Ok(listing)
}

/// How many of the files that `workers` workers made in mdtest-hard, `files` each, must match.
pub(super) fn expected(workers: u64, files: u64) -> u64 {
    let of_one =
        |owner| (0..files).filter(|index| is_named(&small_file_name(owner, *index))).count();
    (0..workers).map(|owner| of_one(owner) as u64).sum()
}

fn is_named(name: &str) -> bool {
    name.contains("01")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, FileTimes};
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn name_size_and_time_must_all_match() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, len: u64, seconds: u64, nanos: u32| {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_len(len).unwrap();
            let time = UNIX_EPOCH + Duration::new(seconds, nanos);
            file.set_times(FileTimes::new().set_modified(time)).unwrap();
        };
        make("file.mdtest.0.101", 3_901, 1_000, 6);
        make("as old as the timestamp 01", 3_901, 1_000, 5);
        make("older 01", 3_901, 999, 999_999_999);
        make("short 01", 3_900, 1_001, 0);
        make("long 01", 3_902, 1_001, 0);
        make("file.mdtest.0.110", 3_901, 1_001, 0);
        fs::create_dir(dir.path().join("dir01")).unwrap();
        std::os::unix::fs::symlink("dir01", dir.path().join("link 01")).unwrap();
        let search = Search { directory: "".into(), newer_than: (1_000, 5) };
        let listing = list(dir.path(), &search).unwrap();
        // Everything but the directory is counted, a link, too.
        let expected = Listing { directories: vec!["dir01".into()], files: 7, matches: 1 };
        assert_eq!(listing, expected);
    }

    #[test]
    fn expected_counts_names_of_all_workers() {
        // 101 of worker 0; .01 appears nowhere in 0..=102 but in 101 (01 alone has no leading zero), for each of two.
        assert_eq!(expected(2, 103), 2);
        // Worker 101's own number matches in all of its files.
        assert_eq!(expected(102, 1), 1);
    }
}
