//! The phases of the IO500, in the official order, and what each is measured in.
//!
//! Read from the definition of the phases in the official program (github.com/IO500/io500, `phase-definitions.h` and
//! `phase_*.c`). The timestamp between the easy and the hard writes is no measurement and no phase here.
//!
//! 1. [`Phase::ALL`] is the order in which the phases run.
//! 2. Four phases count as bandwidth, eight as metadata; the random read is measured but does not count.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One measured phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Phase {
    /// A file per worker, large transfers.
    IorEasyWrite,
    /// Empty files, a directory per worker.
    MdtestEasyWrite,
    /// One file, small transfers of all workers in turn.
    IorHardWrite,
    /// Small files, one directory.
    MdtestHardWrite,
    /// All files listed, some found by name, size and time.
    Find,
    /// What `IorEasyWrite` wrote, by another worker.
    IorEasyRead,
    /// What `MdtestEasyWrite` made, by another worker.
    MdtestEasyStat,
    /// What `IorHardWrite` wrote, by another worker.
    IorHardRead,
    /// What `MdtestHardWrite` made, by another worker.
    MdtestHardStat,
    /// What `MdtestEasyWrite` made.
    MdtestEasyDelete,
    /// What `MdtestHardWrite` made, by another worker.
    MdtestHardRead,
    /// What `MdtestHardWrite` made.
    MdtestHardDelete,
    /// Pages of what `IorEasyWrite` wrote, at random.
    IorRandomRead,
}

/// What a phase counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// GiB/s, one of four.
    Bandwidth,
    /// Thousands of operations per second, one of eight.
    Metadata,
    /// GiB/s, not in the score.
    Extra,
}

impl Phase {
    /// All, in the order in which they run.
    pub const ALL: [Self; 13] = [
        Self::IorEasyWrite,
        Self::MdtestEasyWrite,
        Self::IorHardWrite,
        Self::MdtestHardWrite,
        Self::Find,
        Self::IorEasyRead,
        Self::MdtestEasyStat,
        Self::IorHardRead,
        Self::MdtestHardStat,
        Self::MdtestEasyDelete,
        Self::MdtestHardRead,
        Self::MdtestHardDelete,
        Self::IorRandomRead,
    ];

    /// The official name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IorEasyWrite => "ior-easy-write",
            Self::MdtestEasyWrite => "mdtest-easy-write",
            Self::IorHardWrite => "ior-hard-write",
            Self::MdtestHardWrite => "mdtest-hard-write",
            Self::Find => "find",
            Self::IorEasyRead => "ior-easy-read",
            Self::MdtestEasyStat => "mdtest-easy-stat",
            Self::IorHardRead => "ior-hard-read",
            Self::MdtestHardStat => "mdtest-hard-stat",
            Self::MdtestEasyDelete => "mdtest-easy-delete",
            Self::MdtestHardRead => "mdtest-hard-read",
            Self::MdtestHardDelete => "mdtest-hard-delete",
            Self::IorRandomRead => "ior-rnd4K-easy-read",
        }
    }

    /// The phase of an official name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.name() == name)
    }

    /// What it counts for.
    #[must_use]
    pub fn group(self) -> Group {
        match self {
            Self::IorEasyWrite | Self::IorHardWrite | Self::IorEasyRead | Self::IorHardRead => {
                Group::Bandwidth
            }
            Self::IorRandomRead => Group::Extra,
            _ => Group::Metadata,
        }
    }

    /// Whether it counts for the score.
    #[must_use]
    pub fn is_scored(self) -> bool {
        self.group() != Group::Extra
    }

    /// Whether it must last as long as the stonewall.
    #[must_use]
    pub fn is_write(self) -> bool {
        matches!(
            self,
            Self::IorEasyWrite | Self::MdtestEasyWrite | Self::IorHardWrite | Self::MdtestHardWrite
        )
    }

    /// `GiB/s` or `kIOPS`.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self.group() {
            Group::Metadata => "kIOPS",
            Group::Bandwidth | Group::Extra => "GiB/s",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl From<Phase> for String {
    fn from(phase: Phase) -> Self {
        phase.name().into()
    }
}

impl TryFrom<String> for Phase {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::named(&name).ok_or_else(|| format!("{name:?} is no phase of the IO500"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_phases_count_as_bandwidth_and_eight_as_metadata() {
        let of = |group| Phase::ALL.into_iter().filter(|phase| phase.group() == group).count();
        assert_eq!((of(Group::Bandwidth), of(Group::Metadata), of(Group::Extra)), (4, 8, 1));
    }

    #[test]
    fn every_name_leads_back_to_its_phase() {
        for phase in Phase::ALL {
            assert_eq!(Phase::named(phase.name()), Some(phase));
        }
        assert_eq!(Phase::named("timestamp"), None);
    }
}
