//! The interpreter: fetch, decode, cache, execute.
//!
//! [`run`] is the loop; [`block`] the cache of decoded code; [`gate`] decides at decode time which
//! instructions raise #UD, #NM or #GP in the current mode; [`dispatch`] maps the rest to the
//! handlers, one file a family.

pub mod block;
pub mod dispatch;
pub mod insn;

mod alu;
mod bit;
mod branch;
mod condition;
mod exchange;
mod gate;
mod io;
mod misc;
mod mov;
mod muldiv;
mod run;
mod shape;
mod shift;
mod stack;
mod string;
