//! What each node says when it joins the others, and what the first one makes of it: the nodes' list.
//!
//! 1. Nodes whose settings would make a file system that is not one are told apart before anything is begun. What most have
//!    counts; the first node's, if there is no majority.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::meeting::{Blame, named};

/// A node's part of the first round.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Joining {
    /// Where its server will listen.
    pub(super) port: u16,
    /// What must be the same on all nodes, by name.
    pub(super) settings: BTreeMap<String, String>,
}

/// The nodes' list of a new cluster, from all parts and addresses in the order of the hosts.
pub(super) fn nodes_list(
    hosts: &[String],
    addresses: &[String],
    parts: &[String],
) -> Result<String, Blame> {
    let own = |text: String| Blame { at: vec![0], text };
    let mut all: Vec<Joining> = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let read = serde_json::from_str(part).map_err(|_| {
            let text = format!("{} says what is not understood: another release?", hosts[at]);
            Blame { at: vec![at], text }
        });
        all.push(read?);
    }
    check_same(hosts, &all)?;
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| own(format!("no random bytes: {error}")))?;
    let cluster = sealfs_proto::ClusterId(id);
    let mut list = format!("cluster={cluster}\n");
    if let Some(chunk) = all[0].settings.get(CHUNK).filter(|chunk| !chunk.is_empty()) {
        list.push_str(&format!("chunk={chunk}\n"));
    }
    for ((id, address), joining) in (1..).zip(addresses).zip(&all) {
        list.push_str(&format!("{id}@{address}:{}\n", joining.port));
    }
    sealfs_proto::nodes::parse(&list).map_err(|error| own(error.to_string()))?;
    Ok(list)
}

/// Refuses what differs, and names who differs from most.
fn check_same(hosts: &[String], all: &[Joining]) -> Result<(), Blame> {
    for name in all[0].settings.keys() {
        let value = |joining: &Joining| joining.settings.get(name).cloned().unwrap_or_default();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        all.iter().for_each(|joining| *counts.entry(value(joining)).or_default() += 1);
        let firsts = value(&all[0]);
        let most = counts.iter().find(|(_, count)| **count * 2 > all.len());
        let usual = most.map_or(&firsts, |(usual, _)| usual);
        let odd = all.iter().enumerate().filter(|(_, joining)| value(joining) != *usual);
        let at: Vec<usize> = odd.map(|(at, _)| at).collect();
        if let Some(one) = at.first() {
            let shown = |value: &str| match value {
                "" => "not set".to_string(),
                value => format!("{value:?}"),
            };
            let names: Vec<&str> = at.iter().map(|at| hosts[*at].as_str()).collect();
            let text = format!(
                "`{name}` differs: on {} it is {}, elsewhere {}; give all nodes of the job the same command and job.toml",
                named(&names),
                shown(&value(&all[*one])),
                shown(usual)
            );
            return Err(Blame { at, text });
        }
    }
    Ok(())
}

/// The setting that the list carries.
pub(super) const CHUNK: &str = "chunk";

#[cfg(test)]
mod tests {
    use super::*;

    fn words(all: &[&str]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }

    fn part(port: u16, settings: &[(&str, &str)]) -> String {
        let settings = settings.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        serde_json::to_string(&Joining { port, settings: settings.collect() }).unwrap()
    }

    #[test]
    fn each_run_has_a_cluster_of_its_own() {
        let hosts = words(&["a", "b"]);
        let parts = [5, 6].map(|port| part(port, &[("chunk", "64K"), ("transport", "")]));
        let list = || nodes_list(&hosts, &hosts, &parts).unwrap();
        let parsed = sealfs_proto::nodes::parse(&list()).unwrap();
        assert_eq!((parsed.nodes.len(), parsed.chunk_size), (2, 65_536));
        assert_ne!(parsed.cluster, sealfs_proto::nodes::parse(&list()).unwrap().cluster);
        assert!(nodes_list(&hosts[..1], &hosts[..1], &[part(5, &[("chunk", "3K")])]).is_err());
    }

    #[test]
    fn who_differs_from_most_is_named_with_what_differs() {
        let hosts = words(&["a", "b", "c"]);
        let parts = ["tcp", "rdma", "rdma"].map(|how| part(5, &[("uid", "7"), ("transport", how)]));
        let blame = nodes_list(&hosts, &hosts, &parts).unwrap_err();
        assert_eq!(blame.at, [0]);
        assert!(
            blame.text.contains("`transport` differs: on a it is \"tcp\", elsewhere \"rdma\""),
            "{}",
            blame.text
        );
        let blame = nodes_list(&hosts[..2], &hosts[..2], &parts[..2]).unwrap_err();
        assert_eq!(blame.at, [1], "the first node's counts");
        let odd = [part(5, &[]), "x".into()];
        assert_eq!(nodes_list(&hosts[..2], &hosts[..2], &odd).unwrap_err().at, [1]);
    }
}
