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
mod control_register;
mod cpuid;
mod debug_register;
mod descriptor_table;
mod exchange;
mod far;
mod flags_register;
mod gate;
mod io;
mod misc;
mod mov;
mod msr;
mod muldiv;
mod run;
mod segment;
mod shape;
mod shift;
mod stack;
mod state_image;
mod string;
mod syscall;
mod system;
mod time;
mod x87_environment;
mod xsave;
