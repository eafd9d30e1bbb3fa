//! What the simulation's clients do, what they must be answered, and the record of it all.
//!
//! ```text
//!     Program --generates--> Operation --+--> Tree (the model)     --> expected outcome
//!                                        +--> Fs, over the network --> outcome       equal, or the seed fails
//!                                                                        |
//!                                                          Trace <-------+  one hash of a whole run
//! ```
//! The world itself (nodes, disks, network, time) is that of the server core's tests; `tests/sim.rs` puts both together.
//!
//! Where nodes lose power a model of outcomes says too much; [`PowerProgram`] follows what may be there instead.
//!
//! 1. Everything follows from the seed: no clock, no other randomness, no unordered iteration.
//! 2. An operation is generated for what the model holds at that moment, so that most of them succeed.

mod moves;
mod operation;
mod power;
mod program;
mod trace;
mod tree;

pub use operation::{Operation, Outcome};
pub use power::PowerProgram;
pub use program::{Program, Races, walk};
pub use trace::Trace;
pub use tree::{Content, Tree};
