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
mod cache_line;
mod condition;
mod control_register;
mod cpuid;
mod debug_register;
mod descriptor_table;
mod exchange;
mod far;
mod flag;
mod flags_register;
mod gate;
mod hint;
mod io;
mod mov;
mod msr;
mod muldiv;
mod raise;
mod random;
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
