//! HTTP as a scraper speaks it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// GETs a path; status and body.
pub(crate) fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if is_chunked { unchunked(body) } else { body.to_owned() }))
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((len, rest)) = body.split_once("\r\n") {
        let len = usize::from_str_radix(len.trim(), 16).unwrap_or(0);
        if len == 0 {
            break;
        }
        whole.push_str(&rest[..len]);
        body = rest[len..].trim_start_matches("\r\n");
    }
    whole
}

/// The page of metrics at `address`.
pub(crate) fn page(address: &str) -> String {
    let (status, body) = get(address, "/metrics").expect("metrics are offered");
    assert_eq!(status, 200, "{body}");
    body
}

/// A port that was free a moment ago.
pub(crate) fn free_address() -> String {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port");
    port.local_addr().expect("it is bound").to_string()
}

/// The address in a line that says `metrics on http://ADDRESS/metrics`.
pub(crate) fn address_in(text: &str) -> String {
    let start = "metrics on http://";
    let at = text.find(start).unwrap_or_else(|| panic!("no metrics in {text:?}")) + start.len();
    text[at..].split('/').next().expect("there is a part before").to_owned()
}

/// The value of a line of a page, by its name with labels.
pub(crate) fn value(page: &str, name: &str) -> Option<f64> {
    let line = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    page.lines().find_map(line)
}

/// Looks until there is something to be found; nothing tells when.
pub(crate) fn await_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited a minute until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
