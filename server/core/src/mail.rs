//! What the cores of a node send to each other.

/// A message between two cores of a node; opaque to whoever carries it.
#[derive(Debug)]
pub struct Mail(Letter);

#[derive(Debug)]
enum Letter {}
