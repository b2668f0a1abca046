//! The parts of mev whose speed Python limits.
//!
//! What is not certainly valid, or rare, is left to the Python code, which then names the problem:
//! so there is one wording of every error, and the results of both are equal.

mod bindings;
pub mod body;
pub mod check;
pub mod filter;
pub mod json;
pub mod records;
pub mod schema;
pub mod trees;

/// The record needs the Python code: it is refused, or converted by a rule that is not here.
#[derive(Debug, PartialEq, Eq)]
pub struct Undecided;
