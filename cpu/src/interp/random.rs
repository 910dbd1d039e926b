//! RDRAND and RDSEED.

use iced_x86::Mnemonic;

use crate::Cpu;
use crate::exception::Exec;
use crate::flags::Word;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::interp::shape::{by_width, for_each_form};
use crate::state::rflags::{CF, STATUS};

/// RDRAND and RDSEED always deliver: CF set, the other status flags clear.
fn random<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.env.platform.entropy();
    cpu.set_reg(insn.dst, T::from_u64(value));
    cpu.set_flags(STATUS, CF);
    Ok(())
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    for_each_form(table, |table, form| {
        let handler = match form.mnemonic {
            Mnemonic::Rdrand | Mnemonic::Rdseed => by_width!(form.width, random),
            _ => return,
        };
        table.both(form.code, handler);
    });
}
