//! Whether every node of a job reaches every server, as a mount would, before anybody relies on it.
//!
//! Each node asks all servers and reports what does not answer; the first one finds out whose fault that is.
//!
//! 1. A node that does not reach most others is at fault itself; else those are that it does not reach.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sealfs_client::Network;
use serde::{Deserialize, Serialize};

use super::meeting::{Blame, joined};
use super::site::Site;
use super::state::{Home, Record};
use crate::Failure;

/// What a node has found; empty when all is well.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    /// What has failed because of it.
    failed: Option<String>,
    /// The places of the servers that do not answer, and why.
    silent: BTreeMap<usize, String>,
}

impl Report {
    /// Asks all servers. An error is this node's own.
    pub(super) fn new(
        site: &Site,
        home: &Home,
        record: &Record,
        until: Instant,
    ) -> Result<Self, Failure> {
        let transport = site.words.transport.as_deref().unwrap_or("auto");
        let choice = transport.parse().map_err(|error| format!("transport: {error}"))?;
        let network = Network { choice, ..Network::default() };
        let list = sealfs_client::read_nodes(&home.nodes().display().to_string())?;
        let mut addresses: Vec<_> =
            list.nodes.into_iter().flat_map(|node| node.addresses).collect();
        // This node's own server, which lives, tells who the others are.
        addresses.rotate_left(record.me);
        // It is asked for the map first, and then everybody at a time.
        let wait = until.saturating_duration_since(Instant::now()) / 2;
        let wait = wait.clamp(ANSWER_MIN, ANSWER_MAX);
        let status = sealfs_client::cluster_status(&addresses, &home.key(), &network, wait, false)?;
        let silent = status.nodes.into_iter().filter_map(|node| {
            let why = format!("{}: {}", node.address, node.status.err()?);
            Some((usize::from(node.id.0) - 1, why))
        });
        Ok(Self { failed: None, silent: silent.collect() })
    }

    /// Whether all have answered.
    pub(super) fn is_good(&self) -> bool {
        self.silent.is_empty()
    }

    /// As this node's part of a round.
    pub(super) fn part(&self) -> String {
        // Numbers and texts can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Asks all servers because something has failed: that is this node's fault only if all answer.
    pub(super) fn after(
        failed: Failure,
        (site, home, record): (&Site, &Home, &Record),
        until: Instant,
    ) -> Result<Self, Failure> {
        match Self::new(site, home, record, until) {
            Ok(report) if report.silent.is_empty() => Err(failed),
            Ok(report) => Ok(Self { failed: Some(failed.to_string()), ..report }),
            Err(why) => Err(format!("{failed}; {why}").into()),
        }
    }
}

/// Nothing, if all parts are well; else who is at fault.
pub(super) fn judged(hosts: &[String], parts: &[String]) -> Result<String, Blame> {
    let mut all: Vec<Report> = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let read = serde_json::from_str(part);
        all.push(read.map_err(|error| Blame {
            at: vec![at],
            text: format!("{} says what is not understood: {error}", hosts[at]),
        })?);
    }
    let others = hosts.len() - 1;
    let is_deaf = |report: &Report| others > 1 && report.silent.len() * 2 > others;
    let (mut at, mut causes) = (Vec::new(), Vec::new());
    for (asks, report) in all.iter().enumerate().filter(|(_, report)| !report.silent.is_empty()) {
        let silent = report.silent.iter().filter(|(at, _)| **at < hosts.len());
        let shown: Vec<String> =
            silent.clone().map(|(at, why)| format!("{} at {why}", hosts[*at])).collect();
        let failed = report.failed.iter().map(|failed| format!("{failed}; ")).collect::<String>();
        causes.push(format!(
            "{}: {failed}it does not reach the server of {}",
            hosts[asks],
            joined(&shown)
        ));
        match is_deaf(report) {
            true => at.push(asks),
            false => at.extend(silent.map(|(at, _)| *at)),
        }
    }
    if causes.is_empty() {
        return Ok(String::new());
    }
    at.sort_unstable();
    at.dedup();
    Err(Blame { at, text: format!("{}; {HINT}", joined(&causes)) })
}

const HINT: &str = "does a firewall keep the nodes from one another's ports from `port-base` on?";
/// A server that says nothing for so long is as good as none.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Even if the time is over: why it is over is worth knowing.
const ANSWER_MIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn part(silent: &[usize]) -> String {
        let silent = silent.iter().map(|at| (*at, format!("h:{at}: refused")));
        Report { failed: None, silent: silent.collect() }.part()
    }

    #[test]
    fn a_server_that_others_do_not_reach_is_at_fault_unless_they_reach_nobody() {
        let hosts: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).into();
        let all = |silent: [&[usize]; 4]| judged(&hosts, &silent.map(part));
        assert_eq!(all([&[], &[], &[], &[]]), Ok(String::new()));
        let blame = all([&[], &[2], &[], &[]]).unwrap_err();
        assert_eq!(blame.at, [2]);
        assert!(
            blame.text.starts_with("b: it does not reach the server of c at h:2: refused; "),
            "{}",
            blame.text
        );
        assert_eq!(all([&[2], &[2], &[], &[2]]).unwrap_err().at, [2]);
        assert_eq!(all([&[], &[0, 2, 3], &[1], &[1]]).unwrap_err().at, [1]);
        let two = judged(&hosts[..2], &[part(&[1]), part(&[])]).unwrap_err();
        assert_eq!(two.at, [1]);
        assert_eq!(judged(&hosts[..2], &[part(&[]), "x".into()]).unwrap_err().at, [1]);
    }
}
