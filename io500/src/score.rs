//! The score: the square root of the geometric mean of four bandwidths times the geometric mean of eight rates.
//!
//! The official program leaves a phase without a result out of its means, which makes a score of fewer phases look like
//! one of all. Here a score needs all twelve: without one of them there is none.

use serde::{Deserialize, Serialize};

use crate::phase::{Group, Phase};

/// A score and the two means that it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Geometric mean of the four bandwidths, GiB/s.
    pub bandwidth: f64,
    /// Geometric mean of the eight rates, thousands of operations per second.
    pub metadata: f64,
    /// The score.
    pub total: f64,
}

impl Score {
    /// The score of these results, if every phase that counts is there and above zero.
    #[must_use]
    pub fn of(results: &[(Phase, f64)]) -> Option<Self> {
        let bandwidth = mean(results, Group::Bandwidth)?;
        let metadata = mean(results, Group::Metadata)?;
        Some(Self { bandwidth, metadata, total: (bandwidth * metadata).sqrt() })
    }
}

/// By logarithms: the product of eight rates may leave the range of a double.
fn mean(results: &[(Phase, f64)], group: Group) -> Option<f64> {
    let wanted = Phase::ALL.into_iter().filter(|phase| phase.group() == group);
    let mut sum = 0.0;
    let mut count = 0.0;
    for phase in wanted {
        let (_, value) = results.iter().find(|(of, _)| *of == phase)?;
        if !value.is_finite() || *value <= 0.0 {
            return None;
        }
        sum += value.ln();
        count += 1.0;
    }
    Some((sum / count).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of io500-sc20_v3 on 8 clients, as its vendor published it with its score: 1.868072 GiB/s, 22.952705 kIOPS,
    /// 6.548076.
    const PUBLISHED: [(Phase, f64); 12] = [
        (Phase::IorEasyWrite, 6.173493),
        (Phase::MdtestEasyWrite, 21.002955),
        (Phase::IorHardWrite, 0.328757),
        (Phase::MdtestHardWrite, 9.818279),
        (Phase::Find, 255.641154),
        (Phase::IorEasyRead, 6.647157),
        (Phase::MdtestEasyStat, 63.395256),
        (Phase::IorHardRead, 0.902677),
        (Phase::MdtestHardStat, 27.472745),
        (Phase::MdtestEasyDelete, 11.505903),
        (Phase::MdtestHardRead, 10.385374),
        (Phase::MdtestHardDelete, 7.021386),
    ];

    #[test]
    fn a_published_run_has_its_published_score() {
        let score = Score::of(&PUBLISHED).unwrap();
        let round = |value: f64| format!("{value:.6}");
        assert_eq!(round(score.bandwidth), "1.868072");
        assert_eq!(round(score.metadata), "22.952705");
        assert_eq!(round(score.total), "6.548076");
    }

    #[test]
    fn the_random_read_does_not_count() {
        let mut results = PUBLISHED.to_vec();
        results.push((Phase::IorRandomRead, 1e6));
        assert_eq!(Score::of(&results), Score::of(&PUBLISHED));
    }

    #[test]
    fn there_is_no_score_without_every_phase() {
        for at in 0..PUBLISHED.len() {
            let mut results = PUBLISHED.to_vec();
            results[at].1 = 0.0;
            assert_eq!(Score::of(&results), None, "{}", PUBLISHED[at].0);
            results.remove(at);
            assert_eq!(Score::of(&results), None, "{}", PUBLISHED[at].0);
        }
        let mut results = PUBLISHED.to_vec();
        results[0].1 = f64::NAN;
        assert_eq!(Score::of(&results), None);
    }
}
