//! FUSE: the kernel's words for what programs do.
//!
//! ```text
//! kernel (bytes) -> decode (abi) -> session -> files -> Fs
//!                <- reply  (abi) <-         <-       <-
//! ```

mod abi;
mod counts;
mod decode;
mod fate;
mod files;
mod groups;
mod init;
mod kernel;
mod memory;
#[cfg(test)]
mod null;
mod reply;
mod session;
mod words;

pub(crate) use counts::Counts;
pub(crate) use decode::is_message;
pub(crate) use files::{Files, Tells};
pub(crate) use init::MAX_WRITE;
pub(crate) use kernel::Kernel;
pub(crate) use session::{RETRY_MS, Session, Turn};
