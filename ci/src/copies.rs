//! The rule that payload is copied by one counted function, `sealfs_transport::copy_payload`, in few known places.
//!
//! What copies bytes has one of few names in Rust. In the files that payload passes each line with such a name is counted, and
//! the number must be the one of [`KNOWN`], which says for each file what it is that is copied there: headers, names, bodies
//! of requests, or payload by the counted function. A `Slice` is shared by `clone`, so that this is no copy.
//!
//! Not seen: a loop over single bytes, and copies in what these files call; the counters of the tests over RDMA see those.

/// Files and folders that payload passes.
const DATA_PATH: &[&str] = &[
    "client/core/src/net.rs",
    "client/core/src/ops/data.rs",
    "client/core/src/share.rs",
    "client/src/fuse/",
    "server/core/src/chunk/",
    "server/core/src/connections.rs",
    "server/core/src/flow/data.rs",
    "server/core/src/net.rs",
    "server/src/core_thread.rs",
    "server/src/disk/",
    "server/src/mailbox.rs",
    "transport/net/src/",
    "transport/rdma/src/",
    "transport/ring/src/",
    "transport/src/calls/",
    "transport/src/faulty.rs",
    "transport/src/mem/",
    "transport/src/payload.rs",
    "transport/src/region.rs",
    "transport/tcp/src/",
];

/// Lines that copy, by file, and what they copy.
const KNOWN: &[(&str, usize, &str)] = &[
    ("client/src/fuse/decode.rs", 1, "a request's structure"),
    ("client/src/fuse/files.rs", 4, "names and values of extended attributes"),
    ("client/src/fuse/kernel.rs", 1, "a notice"),
    (
        "client/src/fuse/memory.rs",
        1,
        "counted: a write of at most a block, or beyond its share of the arena",
    ),
    ("client/src/fuse/null.rs", 1, "a test's file system"),
    ("client/src/fuse/reply.rs", 6, "structures and listings; a read's data is referred to"),
    ("server/core/src/chunk/map.rs", 3, "a shard's snapshot, checksums"),
    ("server/core/src/flow/data.rs", 2, "where on the volume to read, no bytes of it"),
    ("transport/rdma/src/bounce.rs", 2, "counted: payload in memory that is not registered"),
    ("transport/rdma/src/connection/receive.rs", 3, "headers and bodies"),
    ("transport/rdma/src/connection/send.rs", 1, "a header"),
    ("transport/rdma/src/message.rs", 1, "private data of a connection"),
    ("transport/rdma/src/soft/fabric.rs", 5, "private data; what a device does, in software"),
    ("transport/rdma/src/verbs/ibv/cm.rs", 1, "private data of a connection"),
    ("transport/rdma/src/verbs/ibv/device.rs", 1, "a message that has come"),
    ("transport/rdma/src/verbs/ibv/queue.rs", 1, "a message too long to go inline"),
    ("transport/ring/src/sys.rs", 6, "socket addresses"),
    (
        "transport/src/mem/endpoint.rs",
        4,
        "headers and bodies; counted: payload, as if it crossed a wire",
    ),
    ("transport/src/mem/mod.rs", 1, "what a test sends byte by byte"),
    ("transport/src/payload.rs", 1, "the counted copy itself"),
    (
        "transport/tcp/src/connection.rs",
        2,
        "a body; counted: payload that came along with a header",
    ),
    (
        "transport/tcp/src/inbox.rs",
        2,
        "an unfinished head or body: payload leaves the buffer first",
    ),
    ("transport/tcp/src/outbox.rs", 1, "headers and bodies"),
];
/// Names of what copies.
const COPIES: &[&str] = &[
    "clone_from_slice(",
    ".concat()",
    "copy_from_slice(",
    "copy_nonoverlapping(",
    "copy_payload(",
    "copy_to(",
    "copy_within(",
    "extend_from_slice(",
    "ptr::copy",
    ".to_vec()",
];
/// Names of what copies if it is given bytes.
const COPIES_OF_BYTES: &[&str] = &[".collect", "extend(", "from(", ".into()", ".to_owned()"];

/// What is wrong with the copies of the file `name`, whose text without tests is `code`.
pub(crate) fn broken_rule(name: &str, code: &str) -> Option<String> {
    if !DATA_PATH.iter().any(|path| name.starts_with(path)) || is_test(name) {
        return None;
    }
    let found = code.lines().filter(|line| copies(line)).count();
    let known = KNOWN.iter().find(|(file, ..)| *file == name).map_or(0, |(_, count, _)| *count);
    (found != known).then(|| {
        format!(
            "{found} lines copy bytes and {known} are known; payload is copied by copy_payload only, and what is no payload is \
             listed with its reason in ci/src/copies.rs"
        )
    })
}

fn copies(line: &str) -> bool {
    let line = line.split("//").next().unwrap_or_default();
    let any = |names: &[&str]| names.iter().any(|name| line.contains(name));
    !line.contains("fn copy_payload(")
        && (any(COPIES) || (line.contains(".bytes()") && any(COPIES_OF_BYTES)))
}

fn is_test(name: &str) -> bool {
    name.ends_with("/tests.rs") || name.contains("/tests/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_copy_is_found() {
        let name = "server/core/src/chunk/read.rs";
        assert_eq!(broken_rule(name, "fn f() { reply.push(slice.clone()); } // to_vec()"), None);
        for copy in [
            "region.bytes_mut()[..len].copy_from_slice(slice.bytes());",
            "let bytes = slice.bytes().to_vec();",
            "let bytes: Vec<u8> = Vec::from(slice.bytes());",
            "out.extend(slice.bytes());",
            "out.extend_from_slice(&bytes);",
            "copy_payload(region.bytes_mut(), slice.bytes());",
            "unsafe { std::ptr::copy_nonoverlapping(from, to, len) };",
        ] {
            let said = broken_rule(name, copy).unwrap_or_default();
            assert!(said.contains("1 lines copy bytes and 0 are known"), "{copy}: {said}");
        }
    }

    #[test]
    fn a_known_copy_that_is_gone_is_known_no_more() {
        let (name, count, _) = KNOWN[0];
        let said = broken_rule(name, "").unwrap_or_default();
        assert!(said.contains(&format!("0 lines copy bytes and {count} are known")), "{said}");
    }

    #[test]
    fn other_files_may_copy() {
        let copy = "let name = name.to_vec();";
        for name in ["meta/src/state.rs", "server/core/src/chunk/tests.rs"] {
            assert_eq!(broken_rule(name, copy), None);
        }
    }
}
