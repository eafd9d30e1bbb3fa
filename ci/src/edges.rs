//! Which crate may depend on which: arrows point down only, and the cores see no system.
//!
//! binaries > shells > cores > meta > proto; transport beside meta, above proto. Read from `cargo metadata`, normal
//! dependencies only: tests may use what they like.

use std::process::Command;

use crate::stages::Outcome;

/// Crate -> the workspace's crates that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("sealfs-proto", &[]),
    ("sealfs-transport", &["sealfs-proto"]),
    ("sealfs-ring", &["sealfs-proto", "sealfs-transport"]),
    ("sealfs-tcp", &["sealfs-proto", "sealfs-transport", "sealfs-ring"]),
    ("sealfs-rdma", &["sealfs-proto", "sealfs-transport", "sealfs-ring"]),
    (
        "sealfs-net",
        &["sealfs-proto", "sealfs-transport", "sealfs-ring", "sealfs-tcp", "sealfs-rdma"],
    ),
    ("sealfs-metrics", &[]),
    ("sealfs-meta", &["sealfs-proto"]),
    ("sealfs-server-core", &["sealfs-proto", "sealfs-transport", "sealfs-metrics", "sealfs-meta"]),
    (
        "sealfs-server",
        &[
            "sealfs-proto",
            "sealfs-transport",
            "sealfs-ring",
            "sealfs-net",
            "sealfs-metrics",
            "sealfs-meta",
            "sealfs-server-core",
        ],
    ),
    ("sealfs-client-core", &["sealfs-proto", "sealfs-transport"]),
    (
        "sealfs-client",
        &[
            "sealfs-proto",
            "sealfs-transport",
            "sealfs-ring",
            "sealfs-net",
            "sealfs-metrics",
            "sealfs-client-core",
        ],
    ),
    ("sealfs-io500", &[]),
    (
        "sealfs",
        &[
            "sealfs-proto",
            "sealfs-transport",
            "sealfs-ring",
            "sealfs-net",
            "sealfs-metrics",
            "sealfs-meta",
            "sealfs-server-core",
            "sealfs-server",
            "sealfs-client-core",
            "sealfs-client",
            "sealfs-io500",
        ],
    ),
    (
        "sealfs-tests",
        &[
            "sealfs-proto",
            "sealfs-transport",
            "sealfs-meta",
            "sealfs-server-core",
            "sealfs-client-core",
            "sealfs-client",
        ],
    ),
    ("sealfs-ci", &[]),
];

/// Crates that do no I/O, and what they must therefore not see.
const PURE: &[&str] = &[
    "sealfs-proto",
    "sealfs-transport",
    "sealfs-metrics",
    "sealfs-meta",
    "sealfs-server-core",
    "sealfs-client-core",
];
const IMPURE: &[&str] =
    &["libc", "io-uring", "memmap2", "getrandom", "core_affinity", "crossbeam-channel", "tokio"];

/// Fails with every edge that is not allowed.
pub(crate) fn check() -> Outcome {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .map_err(|error| format!("cannot start cargo metadata: {error}"))?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("cargo metadata: {error}"))?;
    let wrong = forbidden_edges(&metadata);
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("edges that may not be:\n{}", wrong.join("\n")))
    }
}

fn forbidden_edges(metadata: &serde_json::Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            wrong.push(format!("{name}: not in the table of ci/src/edges.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let ours = target == "sealfs" || target.starts_with("sealfs-");
            let breaks_layer = ours && !allowed.contains(&target);
            let breaks_purity = PURE.contains(&name) && IMPURE.contains(&target);
            if dependency["kind"].is_null() && (breaks_layer || breaks_purity) {
                wrong.push(format!("{name} -> {target}"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upward_edge_and_a_system_call_crate_are_refused() {
        let metadata = serde_json::json!({ "packages": [{
            "name": "sealfs-meta",
            "dependencies": [
                { "name": "sealfs-proto", "kind": null },
                { "name": "sealfs-server", "kind": null },
                { "name": "libc", "kind": null },
                { "name": "libc", "kind": "dev" },
            ],
        }]});
        assert_eq!(
            forbidden_edges(&metadata),
            ["sealfs-meta -> sealfs-server", "sealfs-meta -> libc"]
        );
    }
}
