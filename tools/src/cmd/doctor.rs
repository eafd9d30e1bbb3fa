//! `sealfs doctor`.

use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use sealfs_client::{Choice, Network};
use sealfs_proto::Address;

use crate::Failure;
use crate::doctor::{Finding, Root, Verdict, machine, nodes, rdma};

/// Checks this machine, and with NODES the way to each of them; says what to do. Exit status: 0 fine, 1 degraded, 2
/// unusable, or the command line is wrong. With `--transport rdma` RDMA must work; with `--transport tcp` it is not
/// looked at.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Some or all nodes, to be probed: `HOST:PORT,...` or the nodes file.
    nodes: Option<String>,
    #[command(flatten)]
    network: super::NetworkArgs,
    /// The cluster's key file; needed with NODES.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// See whether a node could listen here, and whether RDMA reaches it.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Buffers that are to be pinned for RDMA: the `--memory` of a mount, or of a node for all its cores.
    #[arg(long, value_name = "SIZE", default_value = MEMORY)]
    memory: String,
    /// Seconds to wait for a node, 1 to 3600.
    #[arg(long, default_value_t = 5)]
    timeout: u64,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let (findings, worst) = match Wanted::of(args) {
        Ok(wanted) => {
            let findings = findings(&wanted);
            let worst = findings.iter().map(|finding| finding.verdict).max();
            (findings, worst.unwrap_or(Verdict::Fine))
        }
        Err(error) if args.json => {
            let next = "`sealfs doctor --help` shows what there is";
            let wrong = Finding::unusable("command line", error.to_string(), next);
            (vec![wrong], Verdict::Unusable)
        }
        Err(error) => {
            eprintln!("sealfs: {error}");
            return ExitCode::from(Verdict::Unusable as u8);
        }
    };
    if args.json {
        println!("{:#}", json(&findings, worst));
    } else {
        print!("{}", text(&findings, worst));
    }
    ExitCode::from(worst as u8)
}

/// A command line that makes sense.
struct Wanted<'a> {
    args: &'a Args,
    network: Network,
    /// RDMA was asked for.
    rdma: bool,
    memory: u64,
    /// The nodes to probe, and the key to do it with.
    cluster: Option<(Vec<Address>, &'a PathBuf)>,
}

impl<'a> Wanted<'a> {
    fn of(args: &'a Args) -> Result<Self, Failure> {
        let network = args.network.network()?;
        let memory = sealfs_proto::nodes::bytes(&args.memory)
            .ok_or_else(|| format!("--memory {}: no size; write --memory 512M", args.memory))?;
        // 0 would be "for ever" to `mount`.
        if !(1..=3_600).contains(&args.timeout) {
            let timeout = args.timeout;
            return Err(format!("--timeout {timeout}: give 1 to 3600 seconds").into());
        }
        let cluster = match &args.nodes {
            None => None,
            Some(list) => {
                let key = args.key.as_ref().ok_or("to probe NODES give their key: --key FILE")?;
                Some((super::mount::addresses(list)?, key))
            }
        };
        let rdma = network.choice == Choice::Rdma
            || (network.choice == Choice::Auto && network.rdma_device.is_some());
        Ok(Self { args, network, rdma, memory, cluster })
    }
}

fn findings(wanted: &Wanted<'_>) -> Vec<Finding> {
    let root = Root("/".into());
    let Wanted { args, network, cluster, .. } = wanted;
    let mut found = machine::findings(&root);
    let with_rdma = wanted.rdma || (network.choice == Choice::Auto && rdma::is_usable(&root));
    if with_rdma {
        let of_rdma = rdma_findings(&root, wanted).into_iter();
        // TCP is there for whoever has not asked for RDMA.
        found.extend(of_rdma.map(|it| if wanted.rdma { it } else { it.at_most_degraded() }));
    } else if network.choice == Choice::Auto {
        found.push(Finding::fine("rdma", "no device with an active port: TCP is used"));
    }
    found.extend(args.listen.as_deref().map(machine::port));
    found.extend(args.key.as_deref().map(machine::key));
    if let Some((addresses, key)) = cluster {
        let timeout = Duration::from_secs(args.timeout);
        // Whatever stands in the way here would be told once more, as if it were the nodes' fault.
        found.extend(not_probed(&found).map_or_else(
            || match sealfs_client::probe_nodes(addresses, key, network, timeout) {
                Ok(probed) => nodes::findings(&probed),
                Err(error) => vec![nodes::unreached(&error.to_string())],
            },
            |finding| vec![finding],
        ));
    }
    found
}

fn rdma_findings(root: &Root, wanted: &Wanted<'_>) -> Vec<Finding> {
    let only = wanted.network.rdma_device.as_deref();
    let verbs =
        rdma::Verbs { libraries: sealfs_client::libraries(), port_mtu: &sealfs_client::port_mtu };
    let mut found = rdma::findings(root, only, &verbs);
    let peers = wanted.cluster.as_ref().map_or(0, |(addresses, _)| addresses.len()).max(PEERS);
    found.push(machine::memlock(root, machine::Pinned { arena: wanted.memory, peers }));
    let address = wanted.args.listen.as_deref().and_then(address_of);
    found.extend(address.map(|address| rdma::listen(root, only, address, wanted.rdma)));
    found
}

/// `None`: it has none, which [`machine::port`] tells.
fn address_of(listen: &str) -> Option<IpAddr> {
    listen.to_socket_addrs().ok()?.next().map(|address| address.ip())
}

/// Why nodes are not probed, if there is anything that must be mended here first.
fn not_probed(found: &[Finding]) -> Option<Finding> {
    let in_the_way = |finding: &&Finding| {
        finding.verdict == Verdict::Unusable
            && !NOT_FOR_PROBES.iter().any(|beginning| finding.what.starts_with(beginning))
    };
    let first: Vec<&str> = found.iter().filter(in_the_way).map(|it| it.what.as_str()).collect();
    (!first.is_empty()).then(|| {
        let text = format!("not probed, because of {}", first.join(", "));
        Finding::unusable("cluster", text, "mend that first, then check again")
    })
}

fn text(findings: &[Finding], worst: Verdict) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { what, verdict, text: found, next } in findings {
        let mark = match verdict {
            Verdict::Fine => "ok",
            Verdict::Degraded => "!",
            Verdict::Unusable => "!!",
        };
        text.push_str(&format!("{mark:2}  {what:width$}  {found}\n"));
        if !next.is_empty() {
            text.push_str(&format!("{:4}{:width$}  -> {next}\n", "", ""));
        }
    }
    text.push_str(&format!("this machine is {}\n", worst.word()));
    text
}

fn json(findings: &[Finding], worst: Verdict) -> serde_json::Value {
    let findings: Vec<_> = findings
        .iter()
        .map(|Finding { what, verdict, text, next }| {
            serde_json::json!({ "what": what, "verdict": verdict.word(), "text": text, "next": next })
        })
        .collect();
    serde_json::json!({ "verdict": worst.word(), "findings": findings })
}

/// What `mount` takes if it is not told.
const MEMORY: &str = "256M";
/// What messages are counted for at least: NODES may be some of the cluster's only.
const PEERS: usize = 64;
/// Findings without which nodes can be probed.
const NOT_FOR_PROBES: [&str; 3] = ["/dev/fuse", "port ", "rdma at "];

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn findings_are_shown_with_their_next_steps_and_the_worst_verdict() {
        let findings = [Finding::fine("a", "good"), Finding::degraded("long", "bad", "do it")];
        let shown = text(&findings, Verdict::Degraded);
        assert_eq!(
            shown,
            "ok  a     good\n!   long  bad\n          -> do it\nthis machine is degraded\n"
        );
        let value = json(&findings, Verdict::Degraded);
        assert_eq!(value["findings"][1]["next"], "do it");
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &str) -> Args {
        Line::parse_from(["doctor"].into_iter().chain(words.split_whitespace())).args
    }

    #[test]
    fn a_wrong_command_line_is_unusable_and_never_only_degraded() {
        for (words, says) in [
            ("--transport foo", "rdma, tcp or auto"),
            ("a:1", "--key FILE"),
            ("/nowhere/nodes --key /k", "/nowhere/nodes"),
            ("--timeout 0", "1 to 3600"),
            ("--memory much", "--memory 512M"),
        ] {
            let args = args(words);
            let error = Wanted::of(&args).err().unwrap().to_string();
            assert!(error.contains(says), "{words}: {error}");
            for args in [args, self::args(&format!("{words} --json"))] {
                assert_eq!(run(&args), ExitCode::from(2), "{words}");
            }
        }
    }

    #[test]
    fn memory_is_the_mounts_unless_another_is_named() {
        let args = args("");
        assert_eq!(Wanted::of(&args).ok().unwrap().memory, sealfs_client::POOL_LEN as u64);
    }

    #[test]
    fn nodes_are_not_blamed_for_what_is_missing_here() {
        let port = Finding::unusable("port x", "no address", "write it");
        assert_eq!(not_probed(&[Finding::degraded("a", "", ""), port.clone()]), None);
        let device = Finding::unusable("rdma device", "there is none", "load it");
        let found = not_probed(&[port, device]).unwrap();
        assert_eq!(found.text, "not probed, because of rdma device");
    }
}
