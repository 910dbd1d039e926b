//! The guest's profile: where its CPUs are, many times a second, and what it adds up to.
//!
//! [`sampler`] asks the CPUs that run for their stacks; [`folded`] counts stacks by the names of
//! their functions, and [`flame`] draws the counts as a flame graph. Traces are drawn by the same.
//!
//! A sample is taken where the CPU leaves the guest for it, at a boundary between two instructions:
//! the interpreter's next block or the translator's next safe point, which come a few instructions
//! after the moment, and the same instruction on KVM. So functions are right, and instructions are
//! not.

pub(crate) mod flame;
pub(crate) mod folded;
mod sampler;

pub(crate) use sampler::{Profile, ProfileConfig, Sampling};
