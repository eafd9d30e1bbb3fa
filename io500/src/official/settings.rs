//! The configuration of a run, and how large it must be to last.
//!
//! The program stops a writing phase at its stonewall, so sizes and counts are only limits: too small a limit ends a
//! phase early and makes the run invalid, too large a one costs nothing. The space is another matter: a phase that finds
//! none aborts the run. Both follow from rates that a short run of the same program gave.

use std::path::Path;

use super::ini::Ini;
use super::result::Report;
use crate::Error;
use crate::own::OFFICIAL_TRANSFER;
use crate::phase::Phase;

/// Whether a path comes through the program as it is: its configuration begins a comment with `#` or `;` and knows no
/// quotes, and IOR's own options end at a comma or a blank.
///
/// # Errors
/// Names the first letter that does not.
pub fn check_path(path: &Path) -> Result<(), Error> {
    let shown = path.display();
    let text = path.to_str().ok_or_else(|| {
        Error::Plan(format!(
            "{shown}: the official program cannot be told a path that is not UTF-8; use another one"
        ))
    })?;
    let is_bad = |letter: &char| {
        matches!(letter, '#' | ';' | ',') || letter.is_whitespace() || letter.is_control()
    };
    match text.chars().find(is_bad) {
        None => Ok(()),
        Some(letter) => Err(Error::Plan(format!(
            "{shown}: the official program cannot be told a path with {letter:?} in it; use another one"
        ))),
    }
}

/// What a configuration follows from.
#[derive(Clone, Debug)]
pub(super) struct Wish<'a> {
    /// Where the program works.
    pub data: &'a Path,
    /// Where it writes its results.
    pub results: &'a Path,
    /// Seconds.
    pub stonewall: u64,
    /// The limits.
    pub limits: Limits,
}

/// At most so much, of each rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// MiB of ior-easy.
    pub easy_mib: u64,
    /// Transfers of ior-hard.
    pub hard_transfers: u64,
    /// Files of mdtest-easy.
    pub easy_files: u64,
    /// Files of mdtest-hard.
    pub hard_files: u64,
}

impl Limits {
    /// The program's own.
    pub(super) const OFFICIAL: Self = Self {
        easy_mib: 9_920_000,
        hard_transfers: 10_000_000,
        easy_files: 1_000_000,
        hard_files: 1_000_000,
    };

    /// Four times what these rates reach by the stonewall: a phase that starts slowly must not end early either.
    #[must_use]
    pub(super) fn for_rates(rates: &Rates, ranks: u64, stonewall: u64) -> Self {
        let reached = |per_second: f64| (per_second * 4.0 * stonewall as f64 / ranks as f64) as u64;
        let Self { easy_mib, hard_transfers, easy_files, hard_files } = Self::OFFICIAL;
        // A multiple of the transfer.
        let mib = OFFICIAL_TRANSFER >> 20;
        Self {
            easy_mib: reached(rates.easy_bytes / f64::from(1 << 20))
                .next_multiple_of(mib)
                .max(easy_mib),
            hard_transfers: reached(rates.hard_bytes / 47_008.0).max(hard_transfers),
            easy_files: reached(rates.easy_files).max(easy_files),
            hard_files: reached(rates.hard_files).max(hard_files),
        }
    }
}

/// What the writing phases reach per second, over all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    /// Bytes of ior-easy.
    pub easy_bytes: f64,
    /// Bytes of ior-hard.
    pub hard_bytes: f64,
    /// Files of mdtest-easy.
    pub easy_files: f64,
    /// Files of mdtest-hard.
    pub hard_files: f64,
}

impl Rates {
    /// As a short run measured them.
    #[must_use]
    pub(super) fn of(report: &Report) -> Option<Self> {
        let value = |phase| {
            let outcome = report.outcomes.iter().find(|outcome| outcome.phase == phase)?;
            (outcome.value > 0.0).then_some(outcome.value)
        };
        Some(Self {
            easy_bytes: value(Phase::IorEasyWrite)? * GIB,
            hard_bytes: value(Phase::IorHardWrite)? * GIB,
            easy_files: value(Phase::MdtestEasyWrite)? * 1e3,
            hard_files: value(Phase::MdtestHardWrite)? * 1e3,
        })
    }

    /// Bytes that a run needs: all four phases' data are there at once. A quarter more, for ranks that go on after the
    /// stonewall until all are equal.
    #[must_use]
    pub(super) fn space(&self, stonewall: u64) -> u64 {
        let data = self.easy_bytes + self.hard_bytes;
        // A block of 4 KiB and what is kept about the file.
        let files = self.hard_files * 6_144.0 + self.easy_files * 1_024.0;
        ((data + files) * stonewall as f64 * 1.25) as u64
    }
}

/// The configuration of a whole run.
#[must_use]
pub(super) fn configuration(wish: &Wish<'_>) -> Ini {
    let mut ini = Ini::default();
    let mut set = |section: &str, name: &str, value: String| ini.set(section, name, value);
    set("global", "datadir", wish.data.display().to_string());
    set("global", "timestamp-datadir", "FALSE".into());
    set("global", "resultdir", wish.results.display().to_string());
    set("global", "timestamp-resultdir", "FALSE".into());
    set("global", "api", "POSIX".into());
    set("global", "drop-caches", "FALSE".into());
    set("global", "verbosity", "1".into());
    set("debug", "stonewall-time", wish.stonewall.to_string());
    set("ior-easy", "transferSize", format!("{}m", OFFICIAL_TRANSFER >> 20));
    set("ior-easy", "blockSize", format!("{}m", wish.limits.easy_mib));
    // A file per rank spreads over all nodes by itself.
    set("ior-easy", "filePerProc", "TRUE".into());
    set("mdtest-easy", "n", wish.limits.easy_files.to_string());
    set("ior-hard", "segmentCount", wish.limits.hard_transfers.to_string());
    set("mdtest-hard", "n", wish.limits.hard_files.to_string());
    set("find", "pfind-queue-length", "10000".into());
    for phase in Phase::ALL {
        set(phase.name(), "run", "TRUE".into());
    }
    ini
}

/// The same with nothing but the writing phases and a short stonewall: never to be submitted.
#[must_use]
pub(super) fn calibration(wish: &Wish<'_>) -> Ini {
    let mut ini = configuration(wish);
    for phase in Phase::ALL.into_iter().filter(|phase| !phase.is_write()) {
        ini.set(phase.name(), "run", "FALSE");
    }
    ini
}

const GIB: f64 = (1u64 << 30) as f64;

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates =
        Rates { easy_bytes: 10.0 * GIB, hard_bytes: GIB, easy_files: 2e6, hard_files: 1e5 };

    #[test]
    fn limits_outlast_the_stonewall_and_are_never_below_the_official_ones() {
        let limits = Limits::for_rates(&RATES, 10, 300);
        assert_eq!(limits.easy_mib, 9_920_000);
        assert_eq!(limits.easy_files, 2_000_000 * 4 * 300 / 10);
        let one = Limits::for_rates(&RATES, 1, 300);
        assert_eq!(one.easy_mib, 10 * 1_024 * 4 * 300);
        for ranks in 1..100 {
            let limits = Limits::for_rates(&RATES, ranks, 300);
            assert!(limits.easy_mib.is_multiple_of(2));
            assert!(limits.hard_transfers * ranks * 47_008 >= 300 * (1 << 30));
            assert!(limits.hard_files * ranks >= 300 * 100_000);
        }
    }

    #[test]
    fn paths_that_the_program_would_cut_are_refused_with_the_letter() {
        use std::os::unix::ffi::OsStrExt;
        for path in ["/mnt/seal", "/srv/é/a=b_c-1.2"] {
            assert!(check_path(Path::new(path)).is_ok(), "{path}");
        }
        for (path, letter) in
            [("/a#b", "'#'"), ("/a;b", "';'"), ("/a,b", "','"), ("/a b", "' '"), ("/a\nb", "'\\n'")]
        {
            let error = check_path(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(letter), "{path}: {error}");
        }
        assert!(check_path(Path::new(std::ffi::OsStr::from_bytes(b"/\xff"))).is_err());
    }

    #[test]
    fn the_space_is_that_of_all_writing_phases_together() {
        let gib = RATES.space(300) as f64 / GIB;
        let expected = 300.0 * 1.25 * (11.0 + (1e5 * 6_144.0 + 2e6 * 1_024.0) / GIB);
        assert!((gib - expected).abs() < 0.01, "{gib} {expected}");
    }

    #[test]
    fn a_run_has_every_phase_and_a_calibration_only_the_writing_ones() {
        let wish = Wish {
            data: Path::new("/mnt/d"),
            results: Path::new("/r"),
            stonewall: 300,
            limits: Limits::OFFICIAL,
        };
        let (whole, short) = (configuration(&wish), calibration(&wish));
        for phase in Phase::ALL {
            assert_eq!(whole.get(phase.name(), "run"), Some("TRUE"));
            let expected = if phase.is_write() { "TRUE" } else { "FALSE" };
            assert_eq!(short.get(phase.name(), "run"), Some(expected), "{phase}");
        }
        assert_eq!(whole.get("ior-easy", "blockSize"), Some("9920000m"));
        assert_eq!(whole.get("debug", "stonewall-time"), Some("300"));
    }
}
