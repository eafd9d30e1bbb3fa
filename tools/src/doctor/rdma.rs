//! What RDMA needs: modules, device files, libraries, a device with an active port, a GID that connections can use, a large
//! MTU.
//!
//! Read from sysfs, so that it also tells what is wrong where the verbs libraries would only say "no device"; but for what
//! [`Verbs`] has. Sources: the kernel's Documentation/ABI/stable/sysfs-class-infiniband;
//! `iboe_get_mtu` of include/rdma/ib_addr.h for the MTU that fits into a network's.

use std::net::{IpAddr, Ipv6Addr};

use sealfs_client::Libraries;

use super::{Finding, Root, Verdict};

/// What a device says of a port: the MTU that it uses, and the largest that it could use.
type PortMtu<'a> = &'a dyn Fn(&str, u8) -> Option<(u32, u32)>;

/// What only the verbs libraries tell.
pub(crate) struct Verbs<'a> {
    /// `None`: this program was built without RDMA.
    pub(crate) libraries: Option<Libraries>,
    pub(crate) port_mtu: PortMtu<'a>,
}

/// Looks at the machine's RDMA; `only`: one device.
pub(crate) fn findings(root: &Root, only: Option<&str>, verbs: &Verbs<'_>) -> Vec<Finding> {
    let modules = modules(root);
    let devices = devices(root, only);
    // Without modules the libraries know no device either.
    let known = if modules.verdict == Verdict::Fine { &devices[..] } else { &[] };
    let libraries = libraries(verbs.libraries.as_ref(), known);
    let mut found = vec![modules, libraries];
    if devices.is_empty() {
        found.push(no_device(root, only));
        return found;
    }
    found.push(device_files(root));
    // A port that is of no use matters less beside one that is.
    let ports = devices.iter().filter(|device| !is_iwarp(root, device));
    let mut ports = ports.flat_map(|device| ports_of(root, device).map(move |port| (device, port)));
    let some_carry = ports.any(|(device, port)| carries(root, device, &port));
    for device in &devices {
        if is_iwarp(root, device) {
            let refused = iwarp(device);
            let other = only.is_none() && is_usable(root);
            found.push(if other { Finding::fine(device, refused.text) } else { refused });
            continue;
        }
        for port in ports_of(root, device) {
            let number = port.parse().ok();
            let mtu = number.and_then(|number| (verbs.port_mtu)(device, number));
            let of_port = port_findings(root, device, &port, mtu).into_iter();
            found.extend(of_port.map(|it| if some_carry { it.at_most_degraded() } else { it }));
        }
    }
    found
}

/// Whether a node that listens at `address` is reached there by RDMA. `wanted`: it must be; else TCP serves it.
pub(crate) fn listen(root: &Root, only: Option<&str>, address: IpAddr, wanted: bool) -> Finding {
    let what = format!("rdma at {address}");
    if address.is_unspecified() {
        return Finding::fine(&what, "every RDMA device's addresses");
    }
    let mut addresses = Vec::new();
    for device in devices(root, only).iter().filter(|device| !is_iwarp(root, device)) {
        for port in ports_of(root, device).filter(|port| state(root, device, port).1) {
            let base = format!("{DEVICES}/{device}/ports/{port}");
            let link = link_layer(root, &base);
            if link != "Ethernet" {
                let text = format!(
                    "not known: {device} is {link}, whose addresses are those of IPoIB (`ip addr`)"
                );
                return Finding::fine(&what, text);
            }
            let gids = gids(root, &base);
            let usable = gids.iter().filter(|gid| rejection(gid, &link).is_none());
            addresses.extend(usable.map(|gid| ip(gid.address)));
        }
    }
    if addresses.contains(&address) {
        return Finding::fine(&what, "an RDMA device has this address");
    }
    let mut addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    addresses.dedup();
    let text = match &addresses[..] {
        [] => "no RDMA device has an address that connections can use".to_owned(),
        _ => format!("no RDMA device has this address; they have {}", addresses.join(", ")),
    };
    if !wanted {
        return Finding::fine(&what, format!("{text}; TCP alone serves it"));
    }
    let next = if addresses.is_empty() {
        "mend what is said of rdma, the devices and their ports"
    } else {
        "listen at one of those, at 0.0.0.0 or at [::]; or give the port's network device this address"
    };
    Finding::unusable(&what, text, next)
}

fn devices(root: &Root, only: Option<&str>) -> Vec<String> {
    let names = root.names(DEVICES).into_iter();
    names.filter(|name| only.is_none_or(|only| only == name)).collect()
}

fn ports_of(root: &Root, device: &str) -> impl Iterator<Item = String> + use<> {
    root.names(&format!("{DEVICES}/{device}/ports")).into_iter()
}

/// Whether connections can go through this port.
fn carries(root: &Root, device: &str, port: &str) -> bool {
    let base = format!("{DEVICES}/{device}/ports/{port}");
    state(root, device, port).1 && choose(&gids(root, &base), &link_layer(root, &base)).is_some()
}

/// `Ethernet`, `InfiniBand`.
fn link_layer(root: &Root, base: &str) -> String {
    root.text(&format!("{base}/link_layer")).unwrap_or_else(|| "?".into())
}

/// Whether a port of a device can carry connections at all.
pub(crate) fn is_usable(root: &Root) -> bool {
    let active = |device: &String| {
        if is_iwarp(root, device) {
            return false;
        }
        ports_of(root, device).any(|port| state(root, device, &port).1)
    };
    root.names(DEVICES).iter().any(active)
}

/// RDMA_NODE_RNIC of the kernel's include/rdma/ib_verbs.h: an adapter that speaks iWARP, or one that is in that mode.
fn is_iwarp(root: &Root, device: &str) -> bool {
    let kind = root.text(&format!("{DEVICES}/{device}/node_type")).unwrap_or_default();
    kind.split(':').next() == Some("4")
}

fn iwarp(device: &str) -> Finding {
    Finding::unusable(
        device,
        "not used, for it speaks iWARP: there, an RDMA READ needs the reader's memory open to the peer, which a node's never is",
        "put the adapter into RoCE mode if it has one, name another device with --rdma-device, or use --transport tcp",
    )
}

fn modules(root: &Root) -> Finding {
    let built_in = built_in(root);
    let is_there = |(module, class): &(&str, &str)| {
        let file = format!("/{module}.ko");
        let is_built_in = built_in.lines().any(|line| line.replace('-', "_").ends_with(&file));
        is_built_in || root.has(&format!("/sys/module/{module}")) || root.has(class)
    };
    let missing = MODULES.iter().filter(|module| !is_there(module));
    let missing: Vec<&str> = missing.map(|(module, _)| *module).collect();
    if missing.is_empty() {
        return Finding::fine("rdma modules", MODULES.map(|(module, _)| module).join(", "));
    }
    Finding::unusable(
        "rdma modules",
        format!("{} not loaded", missing.join(", ")),
        format!(
            "run `modprobe {}`; `apt install rdma-core` loads them at boot",
            missing.join(" && modprobe ")
        ),
    )
}

/// The paths of the modules that are part of the kernel; those without parameters have no directory in /sys/module.
fn built_in(root: &Root) -> String {
    let release = root.text("/proc/sys/kernel/osrelease").unwrap_or_default();
    root.text(&format!("/lib/modules/{release}/modules.builtin")).unwrap_or_default()
}

/// `devices`: those that the kernel has and the libraries should know.
fn libraries(found: Option<&Libraries>, devices: &[String]) -> Finding {
    let what = "rdma libraries";
    let Some(Libraries { missing, devices: known }) = found else {
        return Finding::unusable(
            what,
            "this program was built without RDMA",
            "build it with the cargo feature `rdma`, or use --transport tcp",
        );
    };
    if !missing.is_empty() {
        let text = format!("{} cannot be loaded", missing.join(" and "));
        return Finding::unusable(what, text, LIBRARIES_NEXT);
    }
    let unknown: Vec<&str> =
        devices.iter().filter(|device| !known.contains(device)).map(String::as_str).collect();
    if !unknown.is_empty() {
        let text = format!(
            "libibverbs has no provider for {}: the adapter's library is missing, or is for another version",
            unknown.join(", ")
        );
        // Others may do.
        let found = Finding::unusable(what, text, LIBRARIES_NEXT);
        return if unknown.len() < devices.len() { found.at_most_degraded() } else { found };
    }
    let providers = if devices.is_empty() { "" } else { ", with a provider for every device" };
    Finding::fine(what, format!("libibverbs and librdmacm{providers}"))
}

fn no_device(root: &Root, only: Option<&str>) -> Finding {
    let present = root.names(DEVICES);
    match only {
        Some(only) if !present.is_empty() => Finding::unusable(
            "rdma device",
            format!("there is no {only}, only {}", present.join(", ")),
            "name one of them with --rdma-device",
        ),
        _ => Finding::unusable(
            "rdma device",
            "there is none",
            "load the adapter's driver (mlx5_ib, irdma, bnxt_re, ...); to try without an adapter: ci/rxe-setup.sh",
        ),
    }
}

fn device_files(root: &Root) -> Finding {
    let what = "/dev/infiniband";
    let verbs = root.names("/dev/infiniband");
    let verbs = verbs.iter().find(|name| name.starts_with("uverbs"));
    let files = ["/dev/infiniband/rdma_cm".to_owned()];
    let files = files.into_iter().chain(verbs.map(|name| format!("/dev/infiniband/{name}")));
    for file in files {
        if let Some(error) = root.cannot_open(&file) {
            return Finding::unusable(
                what,
                format!("{file}: {error}"),
                "load rdma_ucm and ib_uverbs; give the files mode 0666, as rdma-core's udev rules do; \
                 in a container allow the devices",
            );
        }
    }
    if verbs.is_none() {
        return Finding::unusable(what, "there is no uverbs device", "run `modprobe ib_uverbs`");
    }
    Finding::fine(what, "rdma_cm and uverbs can be opened")
}

fn port_findings(root: &Root, device: &str, port: &str, mtu: Option<(u32, u32)>) -> Vec<Finding> {
    let what = format!("{device} port {port}");
    let base = format!("{DEVICES}/{device}/ports/{port}");
    let (state, active) = state(root, device, port);
    let link = link_layer(root, &base);
    if !active {
        let next = if link == "Ethernet" {
            "bring its network device up: `ip link set DEV up`, and look at the cable"
        } else {
            "look at the cable and at the subnet manager (`sminfo`)"
        };
        return vec![Finding::unusable(&what, format!("{state}, {link}"), next)];
    }
    let rate = root.text(&format!("{base}/rate")).unwrap_or_else(|| "?".into());
    let mut found = vec![Finding::fine(&what, format!("{state}, {link}, {rate}"))];
    let gids = gids(root, &base);
    let chosen = choose(&gids, &link);
    found.push(gid_finding(&what, &gids, chosen));
    let gid = chosen.and_then(|index| gids.iter().find(|gid| gid.index == index));
    if link == "Ethernet" {
        let network = gid.and_then(|gid| network_mtu(root, &gid.device).map(|mtu| (gid, mtu)));
        found.extend(network.map(|(gid, network)| {
            ethernet_mtu(&what, mtu.map(|(active, _)| active), &gid.device, network)
        }));
    } else {
        found.extend(mtu.map(|(active, max)| fabric_mtu(&what, active, max)));
    }
    found
}

/// The state's word, and whether it is ACTIVE.
fn state(root: &Root, device: &str, port: &str) -> (String, bool) {
    let state = root.text(&format!("{DEVICES}/{device}/ports/{port}/state")).unwrap_or_default();
    let word = state.split(':').nth(1).unwrap_or("state unknown").trim().to_owned();
    let active = word == "ACTIVE";
    (word, active)
}

/// An entry of a port's GID table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gid {
    index: u32,
    address: Ipv6Addr,
    /// `RoCE v2`, `IB/RoCE v1`.
    kind: String,
    /// Its network device; empty if there is none.
    device: String,
    /// Whether that device is up.
    up: bool,
}

/// The entries that are in use.
fn gids(root: &Root, base: &str) -> Vec<Gid> {
    let mut gids: Vec<Gid> = root
        .names(&format!("{base}/gids"))
        .iter()
        .filter_map(|name| {
            let text = |of: &str| root.text(&format!("{base}/{of}/{name}")).unwrap_or_default();
            let address: Ipv6Addr = text("gids").parse().ok()?;
            let device = text("gid_attrs/ndevs");
            let flags = root.text(&format!("/sys/class/net/{device}/flags")).unwrap_or_default();
            let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
            let up = flags & IFF_UP != 0;
            let kind = text("gid_attrs/types");
            let index = name.parse().ok()?;
            (!address.is_unspecified()).then_some(Gid { index, address, kind, device, up })
        })
        .collect();
    gids.sort_by_key(|gid| gid.index);
    gids
}

/// Why connections do not use this one; `None`: they can. Connections take the GID of the address from which they go out.
fn rejection(gid: &Gid, link: &str) -> Option<&'static str> {
    if link != "Ethernet" {
        return None;
    }
    if gid.kind != "RoCE v2" {
        return Some("RoCE v1, which routers do not carry");
    }
    if gid.device.is_empty() {
        return Some("no network device");
    }
    if !gid.up {
        return Some("its network device is down");
    }
    (gid.address.segments()[0] == LINK_LOCAL)
        .then_some("link-local: no address that a nodes' list can name")
}

/// The first that connections can use, those of IPv4 addresses before others.
fn choose(gids: &[Gid], link: &str) -> Option<u32> {
    let mut usable: Vec<&Gid> = gids.iter().filter(|gid| rejection(gid, link).is_none()).collect();
    usable.sort_by_key(|gid| (gid.address.to_ipv4_mapped().is_none(), gid.index));
    usable.first().map(|gid| gid.index)
}

fn gid_finding(what: &str, gids: &[Gid], chosen: Option<u32>) -> Finding {
    let what = format!("{what} GID");
    let link = if gids.iter().any(|gid| gid.kind == "RoCE v2") { "Ethernet" } else { "" };
    let lines: Vec<String> = gids
        .iter()
        .map(|gid| {
            let shown = ip(gid.address);
            let verdict = match rejection(gid, link) {
                _ if chosen == Some(gid.index) => "chosen",
                Some(why) => why,
                None => "usable, by its own address",
            };
            format!("{} {shown} {} {}: {verdict}", gid.index, gid.kind, gid.device)
        })
        .collect();
    match chosen {
        Some(_) => Finding::fine(&what, lines.join("; ")),
        None => Finding::unusable(
            &what,
            format!("none is usable ({})", lines.join("; ")),
            "give the port's network device an address: `ip addr add ADDRESS/LEN dev DEV`",
        ),
    }
}

/// The address that a GID stands for.
fn ip(gid: Ipv6Addr) -> IpAddr {
    gid.to_ipv4_mapped().map_or(IpAddr::V6(gid), IpAddr::V4)
}

fn network_mtu(root: &Root, device: &str) -> Option<u32> {
    root.text(&format!("/sys/class/net/{device}/mtu"))?.parse().ok()
}

/// `active`: what the port uses, if the device could be asked; `network`: the MTU of its network device.
fn ethernet_mtu(what: &str, active: Option<u32>, device: &str, network: u32) -> Finding {
    let what = format!("{what} MTU");
    let fits = [4_096, 2_048, 1_024, 512].into_iter().find(|mtu| mtu + HEADERS <= network);
    let fits = fits.unwrap_or(256);
    let text = match active {
        Some(active) => format!("{active} bytes of payload are active, in packets of {network}"),
        None => format!("{fits} bytes of payload fit into packets of {network}"),
    };
    let used = active.unwrap_or(fits);
    if used < fits {
        let text = format!("{text}, which have room for {fits}");
        let next = format!(
            "the port keeps the MTU that it came up with: `ip link set {device} down && ip link set {device} up`; then see \
             that connections are made anew (`sealfs status`)"
        );
        return Finding::degraded(&what, text, next);
    }
    if used >= 4_096 {
        return Finding::fine(&what, text);
    }
    let wanted = 4_096 + HEADERS;
    let next = format!(
        "4096 needs an MTU of {wanted} on every host and switch of the path: `ip link set {device} mtu {wanted}`"
    );
    Finding::degraded(&what, text, next)
}

/// On InfiniBand the subnet manager says what a port may use.
fn fabric_mtu(what: &str, active: u32, max: u32) -> Finding {
    let what = format!("{what} MTU");
    let text = format!("{active} bytes of payload are active, the port could use {max}");
    if active >= max {
        return Finding::fine(&what, text);
    }
    let next = "look at the switch's ports, and at the MTU that the subnet manager gives the partition (opensm: partitions.conf, mtu=5 \
                is 4096)";
    Finding::degraded(&what, text, next)
}

const DEVICES: &str = "/sys/class/infiniband";
/// And what is there because of each, however it came into the kernel.
const MODULES: [(&str, &str); 3] = [
    ("ib_uverbs", "/sys/class/infiniband_verbs"),
    ("rdma_cm", "/sys/class/misc/rdma_cm"),
    ("rdma_ucm", "/sys/class/misc/rdma_cm"),
];
const LIBRARIES_NEXT: &str = "install them: `apt install rdma-core ibverbs-providers librdmacm1`, elsewhere rdma-core and what \
                              the adapter's maker gives; in a container into the image";
/// GRH, UDP, BTH, the longest extended header and ICRC.
const HEADERS: u32 = 96;
/// netdevice(7).
const IFF_UP: u32 = 1;
/// fe80::/64.
const LINK_LOCAL: u16 = 0xfe80;

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use std::fs;

    const V4: &str = "0000:0000:0000:0000:0000:ffff:c000:0201";
    /// No device can be asked.
    const UNKNOWN: PortMtu<'static> = &|_, _| None;
    const LOCAL: &str = "fe80:0000:0000:0000:0011:22ff:fe33:4455";

    fn machine(state: &str, gids: &[(&str, &str, &str)], mtu: &str) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root(dir.path().to_owned());
        let put = |path: &str, text: &str| {
            let path = root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        MODULES.iter().for_each(|(module, _)| put(&format!("/sys/module/{module}/x"), ""));
        put("/dev/infiniband/rdma_cm", "");
        put("/dev/infiniband/uverbs0", "");
        let base = format!("{DEVICES}/rxe0/ports/1");
        put(&format!("{base}/state"), state);
        put(&format!("{base}/link_layer"), "Ethernet\n");
        put(&format!("{base}/rate"), "100 Gb/sec (4X EDR)\n");
        for (index, (gid, kind, device)) in gids.iter().enumerate() {
            put(&format!("{base}/gids/{index}"), gid);
            put(&format!("{base}/gid_attrs/types/{index}"), kind);
            put(&format!("{base}/gid_attrs/ndevs/{index}"), device);
        }
        put("/sys/class/net/rx0/flags", "0x1003\n");
        put("/sys/class/net/rx1/flags", "0x1002\n");
        put("/sys/class/net/rx0/mtu", mtu);
        (dir, root)
    }

    /// Libraries that know the machine's device.
    fn verbs(port_mtu: PortMtu<'_>) -> Verbs<'_> {
        let libraries = Libraries { missing: vec![], devices: vec!["rxe0".into()] };
        Verbs { libraries: Some(libraries), port_mtu }
    }

    fn worst(found: &[Finding]) -> Verdict {
        found.iter().map(|finding| finding.verdict).max().unwrap()
    }

    #[test]
    fn a_good_port_is_fine_and_says_why_each_other_gid_was_not_taken() {
        let unused = "0000:0000:0000:0000:0000:0000:0000:0000";
        let gids = [
            (LOCAL, "IB/RoCE v1\n", "rx0\n"),
            (LOCAL, "RoCE v2\n", "rx0\n"),
            (V4, "RoCE v2\n", "rx1\n"),
            (V4, "RoCE v2\n", "rx0\n"),
            (unused, "", ""),
        ];
        let (_dir, root) = machine("4: ACTIVE\n", &gids, "4500\n");
        let found = findings(&root, None, &verbs(UNKNOWN));
        assert_eq!(worst(&found), Verdict::Fine, "{found:#?}");
        let text = &found.iter().find(|finding| finding.what.ends_with("GID")).unwrap().text;
        for part in ["RoCE v1, which", "1 fe80", "link-local", "is down", "3 192.0.2.1"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.ends_with("chosen"), "{text}");
        assert!(is_usable(&root));
    }

    #[test]
    fn a_machine_of_which_no_port_carries_connections_is_unusable_for_rdma() {
        let (_dir, root) = machine("1: DOWN\n", &[(V4, "RoCE v2", "rx0")], "4500");
        assert_eq!(worst(&findings(&root, None, &verbs(UNKNOWN))), Verdict::Unusable);
        assert!(!is_usable(&root));
        let (_dir, root) = machine("4: ACTIVE\n", &[(LOCAL, "RoCE v2", "rx0")], "4500");
        let found = findings(&root, None, &verbs(UNKNOWN));
        assert_eq!(worst(&found), Verdict::Unusable);
        assert!(found.iter().any(|finding| finding.next.contains("ip addr add")), "{found:#?}");
    }

    #[test]
    fn a_port_that_is_down_beside_one_that_is_used_is_degraded() {
        let (_dir, root) = machine("4: ACTIVE\n", &[(V4, "RoCE v2", "rx0")], "4500");
        let second = root.path(&format!("{DEVICES}/rxe0/ports/2"));
        fs::create_dir_all(&second).unwrap();
        fs::write(second.join("state"), "1: DOWN\n").unwrap();
        assert_eq!(worst(&findings(&root, None, &verbs(UNKNOWN))), Verdict::Degraded);
    }

    #[test]
    fn missing_libraries_make_a_device_unusable_and_the_packages_are_named() {
        let (_dir, root) = machine("4: ACTIVE\n", &[(V4, "RoCE v2", "rx0")], "4500");
        let missing = Libraries { missing: vec!["librdmacm.so.1"], devices: vec!["rxe0".into()] };
        let no_provider = Libraries { missing: vec![], devices: vec!["other".into()] };
        for (libraries, says) in [(missing, "librdmacm.so.1"), (no_provider, "provider for rxe0")] {
            let verbs = Verbs { libraries: Some(libraries), port_mtu: UNKNOWN };
            let found = findings(&root, None, &verbs);
            let found = found.iter().find(|finding| finding.what == "rdma libraries").unwrap();
            assert_eq!(found.verdict, Verdict::Unusable);
            assert!(found.text.contains(says), "{found:?}");
            for package in ["rdma-core", "ibverbs-providers", "librdmacm1"] {
                assert!(found.next.contains(package), "{found:?}");
            }
        }
        let without = Verbs { libraries: None, port_mtu: UNKNOWN };
        assert!(findings(&root, None, &without)[1].next.contains("cargo feature"));
    }

    #[test]
    fn modules_that_are_part_of_the_kernel_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root(dir.path().to_owned());
        let put = |path: &str, text: &str| {
            let path = root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("/proc/sys/kernel/osrelease", "6.1.0\n");
        let uverbs = "kernel/drivers/infiniband/core/ib_uverbs.ko\n";
        put("/lib/modules/6.1.0/modules.builtin", uverbs);
        let found = modules(&root);
        assert_eq!(found.text, "rdma_cm, rdma_ucm not loaded");
        put("/sys/class/misc/rdma_cm/dev", "10:58\n");
        assert_eq!(modules(&root).verdict, Verdict::Fine);
    }

    #[test]
    fn an_address_that_no_rdma_device_has_is_told_with_those_that_they_have() {
        let (_dir, root) = machine("4: ACTIVE\n", &[(V4, "RoCE v2\n", "rx0\n")], "4500\n");
        let at = |address: &str, wanted| listen(&root, None, address.parse().unwrap(), wanted);
        for fine in ["192.0.2.1", "0.0.0.0", "::"] {
            assert_eq!(at(fine, true).verdict, Verdict::Fine, "{fine}");
        }
        let found = at("127.0.0.1", true);
        assert_eq!(found.verdict, Verdict::Unusable);
        assert!(found.text.ends_with("192.0.2.1") && !found.next.is_empty(), "{found:?}");
        let found = at("127.0.0.1", false);
        assert!(found.verdict == Verdict::Fine && found.text.contains("TCP alone"), "{found:?}");
        fs::write(root.path(&format!("{DEVICES}/rxe0/ports/1/link_layer")), "InfiniBand").unwrap();
        let found = at("10.0.0.1", true);
        assert!(found.verdict == Verdict::Fine && found.text.contains("IPoIB"), "{found:?}");
    }

    #[test]
    fn an_iwarp_device_is_refused_by_name_and_another_is_used_beside_it() {
        let (_dir, root) = machine("4: ACTIVE\n", &[(V4, "RoCE v2\n", "rx0\n")], "4500\n");
        let put = |text: &str| fs::write(root.path(&format!("{DEVICES}/rxe0/node_type")), text);
        put("1: CA\n").unwrap();
        assert!(
            is_usable(&root) && worst(&findings(&root, None, &verbs(UNKNOWN))) == Verdict::Fine
        );
        put("4: RNIC\n").unwrap();
        assert!(!is_usable(&root), "auto means TCP then");
        let found = findings(&root, Some("rxe0"), &verbs(UNKNOWN));
        let refusal = found.iter().find(|finding| finding.what == "rxe0").unwrap();
        assert_eq!(refusal.verdict, Verdict::Unusable);
        assert!(
            refusal.text.contains("iWARP") && refusal.text.contains("RDMA READ"),
            "{refusal:?}"
        );
        assert!(refusal.next.contains("--transport tcp"), "{refusal:?}");
    }

    fn mtu_of(network: &str, link: &str, port_mtu: PortMtu<'_>) -> Finding {
        let (_dir, root) = machine("4: ACTIVE\n", &[(V4, "RoCE v2", "rx0")], network);
        fs::write(root.path(&format!("{DEVICES}/rxe0/ports/1/link_layer")), link).unwrap();
        let found = findings(&root, None, &verbs(port_mtu));
        found.into_iter().find(|finding| finding.what == "rxe0 port 1 MTU").unwrap()
    }

    #[test]
    fn an_ordinary_ethernet_mtu_is_degraded() {
        for mtu in [mtu_of("1500\n", "Ethernet", UNKNOWN), {
            mtu_of("1500\n", "Ethernet", &|device, port| {
                assert_eq!((device, port), ("rxe0", 1));
                Some((1_024, 4_096))
            })
        }] {
            assert_eq!(mtu.verdict, Verdict::Degraded);
            assert!(mtu.text.starts_with("1024 bytes") && mtu.next.contains("4192"), "{mtu:?}");
        }
    }

    #[test]
    fn a_port_that_uses_less_than_its_network_carries_is_degraded_and_told_apart() {
        let mtu = mtu_of("9000\n", "Ethernet", &|_, _| Some((1_024, 4_096)));
        assert_eq!(mtu.verdict, Verdict::Degraded);
        let says = mtu.text.starts_with("1024 bytes") && mtu.text.ends_with("room for 4096");
        assert!(says && mtu.next.contains("ip link set rx0 down"), "{mtu:?}");
        let mtu = mtu_of("9000\n", "Ethernet", &|_, _| Some((4_096, 4_096)));
        assert_eq!(mtu.verdict, Verdict::Fine, "{mtu:?}");
    }

    #[test]
    fn on_infiniband_a_port_is_compared_with_what_it_could_use() {
        let mtu = mtu_of("2044", "InfiniBand", &|_, _| Some((2_048, 4_096)));
        assert_eq!(mtu.verdict, Verdict::Degraded);
        assert!(mtu.next.contains("subnet manager"), "{mtu:?}");
        let mtu = mtu_of("2044", "InfiniBand", &|_, _| Some((4_096, 4_096)));
        assert_eq!(mtu.verdict, Verdict::Fine, "{mtu:?}");
    }

    #[test]
    fn a_machine_without_rdma_is_told_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let found = findings(&Root(dir.path().to_owned()), None, &verbs(UNKNOWN));
        assert_eq!(worst(&found), Verdict::Unusable);
        assert!(found[0].next.contains("modprobe ib_uverbs"), "{found:#?}");
        assert!(found[2].text.contains("there is none"), "{found:#?}");
        let (_dir, root) = machine("4: ACTIVE\n", &[(V4, "RoCE v2", "rx0")], "4500");
        let found = findings(&root, Some("mlx5_0"), &verbs(UNKNOWN));
        assert!(found[2].text.contains("no mlx5_0, only rxe0"), "{found:#?}");
    }
}
