//! What every guest starts from: a Debian kernel and a small root with the tools of RDMA, made once and cached.
//!
//! The machines that run the tests have no RDMA in their kernels; a stock kernel in a VM has. The image lies in
//! `target/vm/<key>`, where the key covers the kernel's version, the versions of the packages that files are taken from,
//! and this file, which says what goes in.
//!
//! 1. An image is complete or absent: it is made beside its place and renamed.
//! 2. Binaries under test and the scripts of `ci/vm` are not in it; they come with each run.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::tree::{Tree, named};
use crate::command::{output, run};
use crate::packages::{self, apt, dpkg, update};

/// Debian packages that make the image and run it.
const PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "busybox-static",
    "cpio",
    "e2fsprogs",
    "kmod",
    "binutils",
    "xz-utils",
    "zstd",
    "iproute2",
    "util-linux",
    "libgcc-s1",
    "libibverbs1",
    "librdmacm1",
    "ibverbs-providers",
    "ibverbs-utils",
    "rdmacm-utils",
];
/// Depends on the current kernel. The flavours called `cloud` have no `rdma_rxe`.
const KERNEL: &str = "linux-image-amd64";
/// Modules that init loads. The checksums must be there before `rdma_rxe` and `ext4` ask for them.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "crc32_pclmul",
    "crc32_generic",
    "crc32c_generic",
    "ext4",
    "dummy",
    "rdma_rxe",
    "ib_uverbs",
    "rdma_ucm",
    "fuse",
];
/// Programs that busybox does not have, or has with fewer abilities.
const PROGRAMS: &[&str] =
    &["ip", "rdma", "flock", "ibv_devices", "ibv_devinfo", "ibv_rc_pingpong", "rping"];
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// A kernel and the first archive of its root.
pub(crate) struct Image {
    /// Uncompressed, started through PVH: that saves the guest from unpacking it under emulation.
    pub(crate) kernel: PathBuf,
    /// Tools and modules.
    pub(crate) root: PathBuf,
}

/// The cached image, or a new one. `cache` is a directory of ours.
pub(crate) fn image(cache: &Path) -> Result<Image, String> {
    packages::install("what the VM needs", PACKAGES)?;
    let kernel = kernel_package()?;
    let place = cache.join(key(&kernel)?);
    if !place.exists() {
        println!("making the image for {kernel}");
        let new = cache.join("new");
        if cache.exists() {
            fs::remove_dir_all(cache).map_err(named(cache))?;
        }
        fs::create_dir_all(&new).map_err(named(&new))?;
        make(&new, &kernel)?;
        fs::rename(&new, &place).map_err(named(&place))?;
    }
    Ok(Image { kernel: place.join("vmlinux"), root: place.join("root.cpio") })
}

/// Name and version of the kernel's package, `linux-image-6.1.0-1-amd64=6.1.1-1`.
fn kernel_package() -> Result<String, String> {
    let candidate = || {
        let depends = output(Command::new("apt-cache").args(["depends", KERNEL]))?;
        let name = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
            .ok_or(format!("{KERNEL} depends on no kernel"))?;
        let name = format!("linux-image-{name}");
        let shown = output(Command::new("apt-cache").args(["show", "--no-all-versions", &name]))?;
        let version = shown
            .lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .ok_or(format!("{name} has no version"))?;
        Ok::<_, String>(format!("{name}={version}"))
    };
    candidate().or_else(|_| update().and_then(|()| candidate()))
}

fn key(kernel: &str) -> Result<String, String> {
    let mut hasher = DefaultHasher::new();
    output(dpkg().args(PACKAGES))?.hash(&mut hasher);
    kernel.hash(&mut hasher);
    include_str!("image.rs").hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

fn make(place: &Path, package: &str) -> Result<(), String> {
    let unpacked = place.join("kernel");
    let release = unpack_kernel(place, package, &unpacked)?;
    extract_kernel(&unpacked.join(format!("boot/vmlinuz-{release}")), &place.join("vmlinux"))?;
    let tree = Tree::new(place.join("root"))?;
    for path in ["dev", "proc", "sys", "run", "tmp", "root", "usr/bin", "usr/lib64"] {
        tree.dir(path)?;
    }
    // As on the host, where the names of directories are resolved before files are copied.
    for (path, target) in
        [("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
    {
        tree.link(path, Path::new(target))?;
    }
    tree.link("usr/sbin", Path::new("bin"))?;
    add_programs(&tree)?;
    add_users(&tree)?;
    add_modules(&tree, &unpacked, &release)?;
    run(Command::new("ldconfig").arg("-r").arg(tree.root()))?;
    tree.pack(&place.join("root.cpio"))?;
    fs::remove_dir_all(&unpacked).map_err(named(&unpacked))
}

/// Downloads and unpacks the kernel's package; returns its release, `6.1.0-1-amd64`.
fn unpack_kernel(place: &Path, package: &str, unpacked: &Path) -> Result<String, String> {
    fs::create_dir_all(unpacked).map_err(named(unpacked))?;
    let download = || run(apt().args(["-qq", "download", package]).current_dir(place));
    download().or_else(|_| update().and_then(|()| download()))?;
    let script = "dpkg-deb --fsys-tarfile ./*.deb | tar -x -C \"$0\" ./boot ./lib; rm ./*.deb";
    run(Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .arg(unpacked)
        .current_dir(place))?;
    let name = package.split('=').next().unwrap_or_default();
    Ok(name.trim_start_matches("linux-image-").to_owned())
}

/// Takes the ELF kernel out of a bzImage, as laid out in Documentation/x86/boot.rst.
fn extract_kernel(bzimage: &Path, vmlinux: &Path) -> Result<(), String> {
    let bytes = fs::read(bzimage).map_err(named(bzimage))?;
    let payload =
        payload(&bytes).ok_or_else(|| format!("{} is not a bzImage", bzimage.display()))?;
    let packed = vmlinux.with_extension("packed");
    fs::write(&packed, payload).map_err(named(&packed))?;
    let program: &[&str] = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => &["xz", "-dc", "--single-stream"],
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["zstd", "-dcq"],
        _ => return Err(format!("{}: neither xz nor zstd", bzimage.display())),
    };
    let file = fs::File::create(vmlinux).map_err(named(vmlinux))?;
    run(Command::new(program[0]).args(&program[1..]).arg(&packed).stdout(Stdio::from(file)))?;
    fs::remove_file(&packed).map_err(named(&packed))
}

/// The compressed kernel without the four bytes of its size behind it.
fn payload(bzimage: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = bzimage.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if bzimage.get(0x202..0x206).is_none() || bzimage.get(0x1fe..0x200)? != [0x55, 0xaa] {
        return None;
    }
    // The real-mode part: its first sector and as many as the header says; 0 means 4.
    let sectors = match bzimage[0x1f1] {
        0 => 4,
        count => usize::from(count),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    bzimage.get(start..start + word(0x24c)?.checked_sub(4)?)
}

fn add_programs(tree: &Tree) -> Result<(), String> {
    tree.copy_to(Path::new("/bin/busybox"), Path::new("usr/bin/busybox"))?;
    for name in PROGRAMS {
        let path = output(Command::new("which").arg(name))?;
        tree.program(Path::new(path.trim()))?;
    }
    for applet in output(Command::new("busybox").arg("--list"))?.lines() {
        tree.link(&format!("usr/bin/{applet}"), Path::new("busybox"))?;
    }
    // Loaded while programs run: by glibc to end threads, by libibverbs as the driver of rxe.
    tree.copy(&Path::new(LIBRARIES).join("libgcc_s.so.1"))?;
    tree.copy(Path::new("/etc/libibverbs.d/rxe.driver"))?;
    let drivers = Path::new(LIBRARIES).join("libibverbs");
    for entry in fs::read_dir(&drivers).map_err(named(&drivers))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("librxe-") {
            tree.copy(&entry.path())?;
        }
    }
    Ok(())
}

fn add_users(tree: &Tree) -> Result<(), String> {
    tree.write(
        "etc/passwd",
        "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )?;
    tree.write("etc/group", "root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n")?;
    tree.write("etc/ld.so.conf", &format!("{LIBRARIES}\n"))?;
    tree.write("etc/hosts", "127.0.0.1 localhost\n")
}

fn add_modules(tree: &Tree, unpacked: &Path, release: &str) -> Result<(), String> {
    run(Command::new("depmod").arg("-b").arg(unpacked).arg(release))?;
    for module in MODULES {
        let mut command = Command::new("modprobe");
        command.arg("-d").arg(unpacked).args(["-S", release, "--show-depends", module]);
        for line in output(&mut command)?.lines() {
            // `insmod PATH [PARAMETERS]`, or `builtin NAME`.
            let Some(path) = line.strip_prefix("insmod ") else { continue };
            let path = Path::new(path.split(' ').next().unwrap_or_default());
            let place = path.strip_prefix(unpacked).map_err(|error| error.to_string())?;
            tree.copy_to(path, &Path::new("usr").join(place))?;
        }
    }
    let list = format!("lib/modules/{release}");
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        let path = unpacked.join(&list).join(name);
        tree.copy_to(&path, &Path::new("usr").join(&list).join(name))?;
    }
    run(Command::new("depmod").arg("-b").arg(tree.root()).arg(release))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_cut_out_of_its_envelope() {
        let mut bytes = vec![0; 0x1000];
        bytes[0x1f1] = 1;
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        bytes[0x24c..0x250].copy_from_slice(&9_u32.to_le_bytes());
        bytes[1040..1045].copy_from_slice(b"hello");
        assert_eq!(payload(&bytes), Some(&b"hello"[..]));
        bytes[0x24c..0x250].copy_from_slice(&5000_u32.to_le_bytes());
        assert_eq!(payload(&bytes), None);
        assert_eq!(payload(b"short"), None);
    }
}
