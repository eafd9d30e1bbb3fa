//! `sealfs mount`, and mount(8)'s helper: `mount.sealfs`, and `mount.fuse.sealfs` for what is mounted already.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealfs_client::{Forked, Mount, MountConfig, MountOptions, Started, daemonize, default_log};
use sealfs_proto::Address;

use crate::Failure;
use crate::log::Log;
use crate::metrics::{Endpoint, Listener, Source};
use crate::notify::{READY, notify};

/// Mounts a cluster. Returns when the mount answers; a daemon serves it from then on.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Some or all nodes: `HOST:PORT,...` or the nodes file.
    nodes: String,
    /// An existing directory.
    mountpoint: PathBuf,
    /// How to reach the nodes: tcp, rdma, or auto (the best that both ends have).
    #[arg(long, value_name = "tcp|rdma|auto")]
    transport: Option<String>,
    /// The RDMA device; else whichever the route to a node goes through.
    #[arg(long, value_name = "DEVICE")]
    rdma_device: Option<String>,
    /// What the client's thread does while it waits: adaptive (the default: looks for a moment if something is likely to
    /// come, then sleeps), spin (never sleeps) or sleep.
    #[arg(long, value_name = "adaptive|spin|sleep")]
    poll: Option<String>,
    /// Memory for data in flight, 64M to 16G (default 256M); all of it is pinned where RDMA is used.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// The cluster's key file.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// When others' writes are seen: close-to-open (the default; within a second without reopening) or strict (at once,
    /// with nothing cached but what is mapped; for all mounts that share files).
    #[arg(long)]
    consistency: Option<String>,
    /// Seconds that an operation waits for a node before it fails with EIO; 0: for ever.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Where Prometheus can scrape this mount: http://ADDR:PORT/metrics. Default: nowhere.
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<String>,
    /// Mount options, as in fstab: ro, nodev, nosuid, noexec, allow_other, key=FILE, consistency=strict, ...
    #[arg(short, value_name = "LIST")]
    options: Vec<String>,
    /// Stay in the foreground.
    #[arg(long, short)]
    foreground: bool,
    /// Where the daemon writes its log. Default: /var/log/sealfs/MOUNTPOINT.log, or ~/.local/state/sealfs.
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Only checks the options (mount(8) -f).
    #[arg(long, hide = true)]
    fake: bool,
    /// Pin the client's thread to this processor.
    #[arg(long, value_name = "CPU")]
    pin: Option<usize>,
}

impl Args {
    /// Whether it stays in the terminal that it was started in.
    pub(crate) const fn foreground(&self) -> bool {
        self.foreground
    }
}

pub(crate) fn run(args: Args, log: Log) -> Result<(), Failure> {
    let mut options = MountOptions::default();
    for list in &args.options {
        options.apply(list)?;
    }
    for (name, value) in [
        ("transport", args.transport),
        ("rdma_device", args.rdma_device),
        ("poll", args.poll),
        ("memory", args.memory),
        ("consistency", args.consistency),
        ("timeout", args.timeout.map(|s| s.to_string())),
        ("metrics", args.metrics),
    ] {
        if let Some(value) = value {
            options.apply(&format!("{name}={value}"))?;
        }
    }
    if args.key.is_some() {
        options.key = args.key;
    }
    if options.remount {
        if args.fake {
            return Ok(());
        }
        return Ok(sealfs_client::remount(&absolute(&args.mountpoint)?, &options)?);
    }
    // A daemon's working directory is the root.
    if let Some(key) = &mut options.key {
        *key = absolute(key)?;
    }
    let config = MountConfig {
        nodes: addresses(&args.nodes)?,
        source: args.nodes,
        mountpoint: absolute(&args.mountpoint)?,
        options,
        pin: args.pin,
        log: Some(Arc::new(log)),
    };
    if args.fake {
        return Ok(());
    }
    if args.foreground {
        let (mount, _endpoint) = start(config)?;
        notify(READY);
        return Ok(mount.wait()?);
    }
    let log_file = match args.log_file.or_else(|| config.options.log.clone()) {
        Some(log_file) => absolute(&log_file)?,
        None => default_log(&config.mountpoint)?,
    };
    match daemonize(&log_file)? {
        Forked::Parent(result) => Ok(result?),
        Forked::Child(started) => serve(config, started),
    }
}

/// Mounts, and offers metrics if it is to.
fn start(config: MountConfig) -> Result<(Mount, Option<Endpoint>), Failure> {
    let metrics = config.options.metrics.as_deref().map(Listener::bind).transpose()?;
    if let Some(metrics) = &metrics {
        tracing::info!("metrics on http://{}/metrics", metrics.address());
    }
    let mount = Mount::start(config)?;
    let of_mount = mount.metrics();
    let source: Source =
        Arc::new(move |page| of_mount.write(page).map_err(|late| late.to_string()));
    let endpoint = metrics.map(|metrics| metrics.serve(source)).transpose();
    if endpoint.is_err() {
        mount.unmount(true)?;
    }
    Ok((mount, endpoint?))
}

fn serve(config: MountConfig, started: Started) -> Result<(), Failure> {
    match start(config) {
        Ok((mount, _endpoint)) => {
            started.report(Ok(()));
            Ok(mount.wait()?)
        }
        Err(error) => {
            started.report(Err(&error.to_string()));
            // The parent prints it.
            std::process::exit(1);
        }
    }
}

/// The addresses in `text`: a list, or the path of a file with one.
pub(crate) fn addresses(text: &str) -> Result<Vec<Address>, Failure> {
    let nodes = sealfs_client::read_nodes(text)?;
    Ok(nodes.nodes.into_iter().flat_map(|node| node.addresses).collect())
}

/// Whether mount(8) has called: by the type that fstab names, or by the one that the kernel lists.
pub(crate) fn is_helper(name: &OsStr) -> bool {
    name == "mount.sealfs" || name == "mount.fuse.sealfs"
}

/// mount(8) calls `mount.sealfs NODES MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o LIST] [-t TYPE]`: the same as `sealfs mount`, but
/// that `-f` is "fake" there.
pub(crate) fn from_helper(words: &[OsString]) -> Vec<OsString> {
    let mut out: Vec<OsString> = vec!["sealfs".into(), "mount".into()];
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        match word.as_encoded_bytes() {
            b"-o" => out.extend([Some(word), words.next()].into_iter().flatten().cloned()),
            // mount(8) has entered the namespace itself.
            b"-t" | b"-N" => drop(words.next()),
            [b'-', flags @ ..] if flags.iter().all(|flag| b"sfnv".contains(flag)) => {
                out.extend(flags.contains(&b'f').then(|| "--fake".into()));
            }
            _ => out.push(word.clone()),
        }
    }
    out
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_helper_convention_becomes_the_verb() {
        let words =
            ["mount.sealfs", "n1:7000", "/mnt", "-n", "-o", "ro,key=/k"].map(OsString::from);
        let expected =
            ["sealfs", "mount", "n1:7000", "/mnt", "-o", "ro,key=/k"].map(OsString::from);
        assert_eq!(from_helper(&words), expected);
        let words = ["mount.sealfs", "n1:7000", "/mnt", "-fv", "-t", "sealfs", "-o", "rw"]
            .map(OsString::from);
        let expected =
            ["sealfs", "mount", "n1:7000", "/mnt", "--fake", "-o", "rw"].map(OsString::from);
        assert_eq!(from_helper(&words), expected, "it is not the foreground");
    }
}
