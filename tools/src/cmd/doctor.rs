//! `sealfs doctor`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use sealfs_client::Choice;

use crate::Failure;
use crate::doctor::{Finding, Root, Verdict, machine, nodes, rdma};

/// Checks this machine, and with NODES the way to each of them; says what to do. Exit status: 0 fine, 1 degraded, 2
/// unusable. With `--transport rdma` RDMA must work; with `--transport tcp` it is not looked at.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Some or all nodes, to be probed: `HOST:PORT,...` or the nodes file.
    nodes: Option<String>,
    #[command(flatten)]
    network: super::NetworkArgs,
    /// The cluster's key file; needed with NODES.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// See whether a node could listen here.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Seconds to wait for a node.
    #[arg(long, default_value_t = 5)]
    timeout: u64,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let findings = findings(args)?;
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Fine);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&json(&findings, worst))?);
    } else {
        print!("{}", text(&findings, worst));
    }
    Ok(ExitCode::from(worst as u8))
}

fn findings(args: &Args) -> Result<Vec<Finding>, Failure> {
    let root = Root("/".into());
    let network = args.network.network()?;
    let wanted = network.choice == Choice::Rdma || network.rdma_device.is_some();
    let with_rdma = network.choice != Choice::Tcp && (wanted || rdma::is_usable(&root));
    let mut found = machine::findings(&root, if with_rdma { PINNED } else { 0 });
    if with_rdma {
        let only = network.rdma_device.as_deref();
        let of_rdma = rdma::findings(&root, only, &sealfs_client::port_mtu).into_iter();
        // TCP is there for whoever has not asked for RDMA.
        let bound = |finding: Finding| if wanted { finding } else { finding.at_most_degraded() };
        found.extend(of_rdma.map(bound));
    } else if network.choice == Choice::Auto {
        found.push(Finding::fine("rdma", "no device with an active port: TCP is used"));
    }
    found.extend(args.listen.as_deref().map(machine::port));
    found.extend(args.key.as_deref().map(machine::key));
    if let Some(list) = &args.nodes {
        let key = args.key.as_ref().ok_or("to probe NODES give their key: --key FILE")?;
        let addresses = super::mount::addresses(list)?;
        let timeout = Duration::from_secs(args.timeout);
        match sealfs_client::probe_nodes(&addresses, key, &network, timeout) {
            Ok(probed) => found.extend(nodes::findings(&probed)),
            Err(error) => {
                let next =
                    "see that `sealfs serve` runs there, and that no firewall stands between";
                found.push(Finding::unusable("cluster", error.to_string(), next));
            }
        }
    }
    Ok(found)
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

/// What a client registers: a mount's buffers.
const PINNED: u64 = sealfs_client::POOL_LEN as u64;

#[cfg(test)]
mod tests {
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
}
