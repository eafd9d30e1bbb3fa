//! The operations, by what they are about. Each is one function from its request to its reply, above `crate::net`.

mod data;
mod inode;
mod lock;
mod names;
mod open;
mod settle;
mod space;
