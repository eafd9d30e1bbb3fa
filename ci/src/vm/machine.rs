//! One guest under QEMU: boot, console, verdict, artefacts.
//!
//! 1. Emulation in software (TCG) only: a machine of CI may have a /dev/kvm that cannot run a stock kernel.
//! 2. The guest's verdict is the number of its jobs that failed, through isa-debug-exit, which makes QEMU's exit status
//!    odd. Anything else (a panic, a reset, `timeout`'s 124 and 137) means that there was no verdict: a failure.
//! 3. QEMU runs under timeout(1), which ends it even if this process is killed, and is waited for on every path.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use super::tree::named;
use crate::command::run;

/// What a guest is started with.
pub(crate) struct Machine<'a> {
    /// Its job list (`ci/vm/NAME.jobs`), log (`NAME.log`) and artefacts (`NAME/`).
    pub(crate) name: &'a str,
    /// The uncompressed kernel.
    pub(crate) kernel: &'a Path,
    /// All archives of its root, one after the other in one file.
    pub(crate) root: &'a Path,
    /// Where log and artefacts go.
    pub(crate) out: &'a Path,
    /// `NAME=VALUE` for the guest's init.
    pub(crate) variables: Vec<String>,
    /// More arguments for QEMU.
    pub(crate) devices: Vec<String>,
    /// Seconds until it is ended.
    pub(crate) seconds_max: u32,
}

/// A guest that runs. Ended and waited for when dropped.
pub(crate) struct Guest {
    child: Child,
    name: String,
    log: PathBuf,
    disk: PathBuf,
    scratch: PathBuf,
    artefacts: PathBuf,
}

/// Bytes of the disk that artefacts are written to; sparse.
const DISK_LEN: u64 = 256 << 20;
/// Bytes of the disk that jobs work on; sparse. A disk, for space that a node reserves there costs nothing; in the guest's
/// memory every page of it would be cleared, under emulation.
const SCRATCH_LEN: u64 = 16 << 30;
/// Statuses above are those of ended programs, not of a verdict.
const VERDICT_MAX: i32 = 61;
/// Lines of the console that are shown when a guest fails.
const TAIL_LINES: usize = 80;
/// No clock check: its calibration fails under emulation on a loaded machine. Stalls are the host's.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check \
    rcupdate.rcu_cpu_stall_suppress=1 rdinit=/vm/init";

impl Machine<'_> {
    /// Starts it.
    pub(crate) fn boot(&self) -> Result<Guest, String> {
        let [disk, scratch] =
            [("disk", DISK_LEN), ("scratch", SCRATCH_LEN)].map(|(ending, len)| {
                let path = self.out.join(format!("{}.{ending}", self.name));
                let made = File::create(&path).and_then(|file| file.set_len(len));
                made.map_err(named(&path)).map(|()| path)
            });
        let (disk, scratch) = (disk?, scratch?);
        run(Command::new("mkfs.ext4").args(["-qF", "-O", "^has_journal"]).arg(&scratch))?;
        let append = format!("{KERNEL_ARGUMENTS} run={} {}", self.name, self.variables.join(" "));
        let mut command = Command::new("timeout");
        command.args(["--foreground", "-k", "5", &self.seconds_max.to_string()]);
        command.args(["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"]);
        // Two processors: threads that poll would keep a single one from everything else.
        command.args(["-smp", "2", "-m", "4096", "-M", "q35", "-nodefaults", "-no-reboot"]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.root);
        command.args(["-append", &append]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        for (path, id) in [(&disk, "out"), (&scratch, "scratch")] {
            let drive = format!("file={},format=raw,cache=unsafe,if=none,id={id}", path.display());
            command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive={id}")]);
        }
        command.args(&self.devices);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.spawn().map_err(|error| format!("cannot start QEMU: {error}"))?;
        Ok(Guest {
            child,
            name: self.name.to_owned(),
            log: self.out.join(format!("{}.log", self.name)),
            disk,
            scratch,
            artefacts: self.out.join(self.name),
        })
    }
}

impl Guest {
    /// For [`end`].
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Follows it to its end; `on_line` sees each line of the console. Fails unless every job succeeded.
    pub(crate) fn wait(mut self, on_line: impl FnMut(&str)) -> Result<(), String> {
        let tail = self.follow(on_line).map_err(named(&self.log))?;
        let status = self.child.wait().map_err(|error| format!("QEMU: {error}"))?;
        self.unpack()?;
        let cause = match verdict(status) {
            Some(0) => return Ok(()),
            Some(failed) => format!("{failed} of its jobs failed"),
            None => format!("no verdict (QEMU ended with {status})"),
        };
        let log = self.log.display();
        Err(format!("{tail}\nguest {}: {cause}; the whole console is in {log}", self.name))
    }

    /// Copies the console to the log until QEMU closes it; returns its last lines.
    fn follow(&mut self, mut on_line: impl FnMut(&str)) -> std::io::Result<String> {
        let mut log = File::create(&self.log)?;
        let console = self.child.stdout.take().expect("it is a pipe");
        let mut tail = std::collections::VecDeque::new();
        for bytes in BufReader::new(console).split(b'\n') {
            let bytes = bytes?;
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end_matches('\r');
            writeln!(log, "{line}")?;
            on_line(line);
            tail.push_back(line.to_owned());
            if tail.len() > TAIL_LINES {
                tail.pop_front();
            }
        }
        Ok(Vec::from(tail).join("\n"))
    }

    /// The guest writes one tar to its disk; without one, there is nothing to unpack.
    fn unpack(&self) -> Result<(), String> {
        if self.artefacts.exists() {
            fs::remove_dir_all(&self.artefacts).map_err(named(&self.artefacts))?;
        }
        fs::create_dir_all(&self.artefacts).map_err(named(&self.artefacts))?;
        run(Command::new("tar").arg("-xf").arg(&self.disk).arg("-C").arg(&self.artefacts))?;
        fs::remove_file(&self.disk).map_err(named(&self.disk))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            end(self.child.id());
            let _ = self.child.wait();
        }
        let _ = fs::remove_file(&self.scratch);
    }
}

/// Asks timeout(1) to end a guest that has not been waited for.
pub(crate) fn end(pid: u32) {
    let _ = Command::new("kill").arg(pid.to_string()).status();
}

/// How many jobs failed, if the guest said so.
fn verdict(status: ExitStatus) -> Option<i32> {
    let code = status.code()?;
    (code % 2 == 1 && code / 2 <= VERDICT_MAX).then_some(code / 2)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn only_an_odd_status_of_qemu_itself_is_a_verdict() {
        let verdict_of = |code: i32| verdict(ExitStatus::from_raw(code << 8));
        assert_eq!(verdict_of(1), Some(0));
        assert_eq!(verdict_of(7), Some(3));
        // QEMU ended by itself; timeout ended it; timeout killed it; it was ended by a signal.
        assert_eq!(verdict_of(0), None);
        assert_eq!(verdict_of(124), None);
        assert_eq!(verdict_of(137), None);
        assert_eq!(verdict(ExitStatus::from_raw(9)), None);
    }
}
