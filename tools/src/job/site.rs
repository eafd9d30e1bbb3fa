//! What a site, or a user, has settled for all jobs: `/etc/sealfs/job.toml` and the flags of the same names, flags first.
//!
//! A job of root's has its things in directories of root's, a user's own (`--unprivileged`) in directories of that user's,
//! which never mix:
//!
//! | | root | a user |
//! |---|---|---|
//! | settings | /etc/sealfs/job.toml, if it is there | none but flags and `--config` |
//! | site key | /etc/sealfs/site.key | `--key FILE` |
//! | state | /run/sealfs/jobs/ID | /tmp/sealfs-UID/jobs/ID |
//! | mountpoint | /mnt/sealfs/ID | /tmp/sealfs-UID/mnt/ID |
//! | data | /var/lib/sealfs-jobs/ID | /tmp/sealfs-UID/data/ID, in memory /dev/shm/sealfs-UID/ID |
//!
//! A user's place is the same in a login, a batch script and a step of a job; $XDG_RUNTIME_DIR is not, and is removed with
//! the user's last login under jobs that run.
//!
//! 1. Root makes a directory for data only in the default place. One that an administrator has named and that is not there
//!    tells of a drive that is not mounted.

use std::fs;
use std::path::{Path, PathBuf};

use sealfs_proto::nodes::bytes;
use serde::Deserialize;

use super::data;
use super::meeting::{Fault, Whose};
use crate::Failure;
use crate::place::trusted;

/// What may be said, on the command line or in the file. Nothing is required and nothing is checked yet.
#[derive(clap::Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Settings {
    /// Where a job's data lies: a directory, in which each job gets its own, a block device, or `memory`.
    #[arg(long, value_name = "DIR|DEVICE|memory")]
    pub(crate) data: Option<PathBuf>,
    /// Size of a node's part of the file system. Default: half of what is free, or the rest of a device.
    #[arg(long)]
    pub(crate) size: Option<String>,
    /// Size of the chunks that a file is cut into, 64K to 1M.
    #[arg(long, value_name = "SIZE")]
    pub(crate) chunk: Option<String>,
    /// The directory in which each job's mountpoint is made.
    #[arg(long, value_name = "DIR")]
    pub(crate) mount: Option<PathBuf>,
    /// tcp, rdma, or auto.
    #[arg(long, value_name = "tcp|rdma|auto")]
    pub(crate) transport: Option<String>,
    /// process, power or scratch (see `sealfs serve`).
    #[arg(long)]
    pub(crate) durability: Option<String>,
    /// Processors for the node: `0-3`, `0,2`.
    #[arg(long, value_name = "LIST")]
    pub(crate) cores: Option<String>,
    /// The node's buffers per core: `128M`.
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// The most memory that the server may use, its caches in the kernel included; needs cgroup v2.
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_max: Option<String>,
    /// Seconds until all nodes must be there.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) deadline: Option<u64>,
    /// Seconds that staging may take.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) stage_deadline: Option<u64>,
    /// Keeps everything of a job whose files could not be staged out, until `down --force` or a reboot.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) keep_failed: Option<bool>,
    /// The site's secret, the same on all nodes.
    #[arg(long = "key", alias = "site-key", value_name = "FILE")]
    pub(crate) site_key: Option<PathBuf>,
    /// The directory in which what is known of each job is kept.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// The first of the ports that jobs use: two for each slot.
    #[arg(long, value_name = "PORT")]
    pub(crate) port_base: Option<u16>,
    /// How many slots there are; a job begins to look for a free one at its number modulo this.
    #[arg(long, value_name = "N")]
    pub(crate) slots: Option<u16>,
    /// How nodes reach one another, `%h` being a name of the host list: `%h-ib`.
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) address: Option<String>,
    /// Where logs are appended to `ID.server.log` and `ID.mount.log` when a job ends. Default: they go with it.
    #[arg(long, value_name = "DIR")]
    pub(crate) log_dir: Option<PathBuf>,
}

impl Settings {
    /// These where they say something, else those of `below`.
    fn over(self, below: Self) -> Self {
        Self {
            data: self.data.or(below.data),
            size: self.size.or(below.size),
            chunk: self.chunk.or(below.chunk),
            mount: self.mount.or(below.mount),
            transport: self.transport.or(below.transport),
            durability: self.durability.or(below.durability),
            cores: self.cores.or(below.cores),
            memory: self.memory.or(below.memory),
            memory_max: self.memory_max.or(below.memory_max),
            deadline: self.deadline.or(below.deadline),
            stage_deadline: self.stage_deadline.or(below.stage_deadline),
            keep_failed: self.keep_failed.or(below.keep_failed),
            site_key: self.site_key.or(below.site_key),
            state: self.state.or(below.state),
            port_base: self.port_base.or(below.port_base),
            slots: self.slots.or(below.slots),
            address: self.address.or(below.address),
            log_dir: self.log_dir.or(below.log_dir),
        }
    }

    /// With the file's settings below these: `config`, or the site's own file if there is one and this is root's job.
    fn with_file(self, config: Option<&Path>, is_user: bool) -> Result<Self, Failure> {
        let (path, is_named) = match config {
            Some(path) => (path, true),
            None if is_user => return Ok(self),
            None => (Path::new(SETTINGS_FILE), false),
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if !is_named && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(self);
            }
            Err(error) => {
                return Err(format!("cannot read settings {}: {error}", path.display()).into());
            }
        };
        let below = toml::from_str(&text)
            .map_err(|error| format!("settings {}: {error}", path.display()))?;
        Ok(self.over(below))
    }
}

/// Where a job's data lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Store {
    /// In a directory of its own below this one.
    Below(PathBuf),
    /// On this block device.
    Device(PathBuf),
    /// In memory.
    Memory,
}

/// Checked settings.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) is_user: bool,
    pub(super) site_key: PathBuf,
    pub(super) state: PathBuf,
    pub(super) mount: PathBuf,
    pub(super) store: Store,
    /// Where the jobs' directories with data lie, and notes of the devices that they use.
    pub(super) data: PathBuf,
    pub(super) address: String,
    pub(super) log_dir: Option<PathBuf>,
    pub(super) deadline_s: u64,
    pub(super) stage_deadline_s: u64,
    pub(super) keep_failed: bool,
    pub(super) memory_max: Option<u64>,
    port_base: u16,
    slots: u16,
    /// For `sealfs serve` and `sealfs mount`, checked by them.
    pub(super) words: Settings,
}

impl Site {
    /// What flags and file say.
    pub(super) fn new(
        flags: Settings,
        config: Option<&Path>,
        is_user: bool,
    ) -> Result<Self, Failure> {
        let me = rustix::process::geteuid();
        if !is_user && !me.is_root() {
            return Err(
                "this needs root, as Slurm's prologue and epilogue are; without an administrator, use --unprivileged".into()
            );
        }
        let words = flags.with_file(config, is_user)?;
        let base = PathBuf::from(format!("/tmp/sealfs-{}", me.as_raw()));
        let default = |roots: &str, users: PathBuf| if is_user { users } else { roots.into() };
        let (slots, port_base) =
            (words.slots.unwrap_or(SLOTS), words.port_base.unwrap_or(PORT_BASE));
        if slots == 0 || u32::from(port_base) + 2 * u32::from(slots) > 65_536 || port_base == 0 {
            return Err(format!(
                "port-base {port_base} and slots {slots}: ports from {port_base} on, two for each slot, must be from 1 to \
                 65535"
            )
            .into());
        }
        if let Some(chunk) = words.chunk.as_deref().filter(|chunk| bytes(chunk).is_none()) {
            return Err(format!("chunk {chunk}: write a size, as --chunk 1M").into());
        }
        let seconds = [("deadline", words.deadline), ("stage-deadline", words.stage_deadline)];
        for (name, value) in seconds {
            if value.is_some_and(|value| value > SECONDS_MAX) {
                return Err(format!("{name}: more than {SECONDS_MAX} seconds").into());
            }
        }
        let memory_max = words.memory_max.as_deref().map(|size| {
            bytes(size)
                .ok_or_else(|| format!("memory-max {size}: write a size, as --memory-max 8G"))
        });
        let memory_max = memory_max.transpose()?;
        let address = words.address.clone().unwrap_or_else(|| "%h".into());
        if !address.contains("%h") {
            return Err(format!("address {address}: write %h where a node's name stands").into());
        }
        let mut data = default("/var/lib/sealfs-jobs", base.join("data"));
        let store = match &words.data {
            None => Store::Below(data.clone()),
            Some(word) if word == Path::new("memory") => Store::Memory,
            Some(path) if is_device(path) => Store::Device(path.clone()),
            Some(path) => Store::Below(path.clone()),
        };
        if let Store::Below(path) = &store {
            data.clone_from(path);
        }
        Ok(Self {
            is_user,
            site_key: words.site_key.clone().unwrap_or_else(|| "/etc/sealfs/site.key".into()),
            state: words
                .state
                .clone()
                .unwrap_or_else(|| default("/run/sealfs/jobs", base.join("jobs"))),
            mount: words.mount.clone().unwrap_or_else(|| default("/mnt/sealfs", base.join("mnt"))),
            store,
            data,
            address,
            log_dir: words.log_dir.clone(),
            deadline_s: words.deadline.unwrap_or(DEADLINE_S),
            stage_deadline_s: words.stage_deadline.unwrap_or(STAGE_DEADLINE_S),
            keep_failed: words.keep_failed.unwrap_or(false),
            memory_max,
            port_base,
            slots,
            words,
        })
    }

    /// The directory `data`, which may be safely worked in.
    pub(super) fn data_root(&self) -> Result<PathBuf, Failure> {
        if self.lacks_data_root() {
            let shown = self.data.display();
            return Err(format!(
                "data {shown}: there is no such directory; is its drive mounted? Make it once, on the drive: mkdir -m 700 {shown}"
            )
            .into());
        }
        trusted(&self.data, 0o700)
    }

    /// Whether the directory `data` is not there, and will not be made.
    pub(super) fn lacks_data_root(&self) -> bool {
        let is_named = matches!(self.store, Store::Below(_)) && self.words.data.is_some();
        is_named && !self.is_user && fs::symlink_metadata(&self.data).is_err()
    }

    /// Refuses data that does not fit into memory together with its server, as whose it counts. The size may be a job's own wish.
    pub(super) fn check_memory(&self) -> Result<(), Fault> {
        let size = self.words.size.as_deref().filter(|_| self.store == Store::Memory);
        let (Some(needed), Some(most)) = (size.and_then(bytes), self.memory_max) else {
            return Ok(());
        };
        let needed = data::memory_len(needed);
        if needed < most {
            return Ok(());
        }
        let text = format!(
            "size {}: in memory it takes up to {} MiB beside the server's buffers, and memory-max is {} MiB",
            size.unwrap_or_default(),
            needed >> 20,
            most >> 20
        );
        Err(Fault { whose: Whose::Jobs, absent: Vec::new(), text })
    }

    /// Where a user's jobs have data in memory, for a user cannot mount any.
    pub(super) fn shared_memory(&self) -> PathBuf {
        format!("/dev/shm/sealfs-{}", rustix::process::geteuid().as_raw()).into()
    }

    /// How `host` is reached, without port.
    pub(super) fn address_of(&self, host: &str) -> String {
        self.address.replace("%h", host)
    }

    /// Where the first node of the job may listen for the others.
    pub(super) fn meeting_ports(&self, id: &str) -> Vec<u16> {
        self.ports(id, 0).take(MEETING_PORTS).collect()
    }

    /// Where this node's server may listen.
    pub(super) fn server_ports(&self, id: &str) -> impl Iterator<Item = u16> {
        self.ports(id, self.slots)
    }

    fn ports(&self, id: &str, behind: u16) -> impl Iterator<Item = u16> {
        let (slots, base) = (u64::from(self.slots), self.port_base + behind);
        let slot = number(id) % slots;
        (0..slots).map(move |step| base + ((slot + step) % slots) as u16)
    }
}

/// A job's id as a number: what its digits say, as of `4711` and `4711_3` of an array.
fn number(id: &str) -> u64 {
    id.bytes().fold(0_u64, |number, byte| match byte {
        b'0'..=b'9' => number.wrapping_mul(10).wrapping_add(u64::from(byte - b'0')),
        _ => number.wrapping_mul(31).wrapping_add(u64::from(byte)),
    })
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

const SETTINGS_FILE: &str = "/etc/sealfs/job.toml";
const DEADLINE_S: u64 = 60;
/// A week; beyond that somebody has mistaken the unit.
const SECONDS_MAX: u64 = 7 * 86_400;
const STAGE_DEADLINE_S: u64 = 600;
/// Below Linux's ephemeral ports, which begin at 32,768, together with [`SLOTS`].
const PORT_BASE: u16 = 21_000;
const SLOTS: u16 = 1_000;
/// So many jobs with the same slot may start on one first node at a time, or foreign programs listen there.
const MEETING_PORTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_a_mistyped_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("job.toml");
        fs::write(&file, "site-key = '/k'\nport-base = 30000\nsize = '1G'\n").unwrap();
        let flags = Settings { size: Some("2G".into()), ..Settings::default() };
        let site = Site::new(flags.clone(), Some(&file), true).unwrap();
        assert_eq!(
            (site.words.size.as_deref(), site.site_key.as_path()),
            (Some("2G"), Path::new("/k"))
        );
        assert_eq!(site.meeting_ports("7")[..2], [30_007, 30_008]);
        fs::write(&file, "sitekey = '/k'\n").unwrap();
        let error = Site::new(flags, Some(&file), true).unwrap_err().to_string();
        assert!(error.contains("job.toml") && error.contains("unknown field `sitekey`"), "{error}");
    }

    #[test]
    fn ports_stay_in_their_range_and_begin_at_the_jobs_slot() {
        let flags = Settings { port_base: Some(65_516), slots: Some(10), ..Settings::default() };
        let site = Site::new(flags.clone(), None, true).unwrap();
        let ports: Vec<u16> = site.server_ports("1008").collect();
        assert_eq!(ports[..3], [65_534, 65_535, 65_526]);
        assert_eq!(ports.len(), 10);
        assert_eq!(site.meeting_ports("8")[..3], [65_524, 65_525, 65_516]);
        assert_ne!(number("4711_3"), number("4711_4"));
        let over = Settings { slots: Some(11), ..flags };
        assert!(Site::new(over, None, true).unwrap_err().to_string().contains("port-base"));
    }

    #[test]
    fn data_in_memory_leaves_room_for_its_server() {
        let with = |size: &str, data: &str| {
            let text = |text: &str| Some(text.to_string());
            let (data, memory_max) = (Some(data.into()), text("4G"));
            let flags = Settings { size: text(size), data, memory_max, ..Settings::default() };
            Site::new(flags, None, true).unwrap().check_memory()
        };
        assert!(with("2G", "memory").is_ok() && with("3G", "/var/tmp").is_ok());
        let fault = with("3G", "memory").unwrap_err();
        assert_eq!(fault.whose, Whose::Jobs);
        assert!(fault.text.starts_with("size 3G: ") && fault.text.contains("4480 MiB"), "{fault}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (change, part) in [
            (Settings { chunk: Some("x".into()), ..Settings::default() }, "chunk x"),
            (Settings { address: Some("ib".into()), ..Settings::default() }, "address ib"),
            (Settings { slots: Some(0), ..Settings::default() }, "slots 0"),
        ] {
            let error = Site::new(change, None, true).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
