//! Single flags: CLC, STC, CMC, CLD, STD, and SALC, which stores one.

use iced_x86::Mnemonic;

use crate::Cpu;
use crate::exception::Exec;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::interp::shape::for_each_form;
use crate::state::gpr::RAX;
use crate::state::rflags::{CF, DF};

fn clc(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.set_flags(CF, 0);
    Ok(())
}

fn stc(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.set_flags(CF, CF);
    Ok(())
}

fn cmc(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.state.rflags ^= CF;
    Ok(())
}

fn cld(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.set_flags(DF, 0);
    Ok(())
}

fn std(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.set_flags(DF, DF);
    Ok(())
}

fn salc(cpu: &mut Cpu, _: &Insn) -> Exec {
    let value: u8 = if cpu.flag(CF) { 0xff } else { 0 };
    cpu.set_reg(RAX as u8, value);
    Ok(())
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    for_each_form(table, |table, form| {
        let handler = match form.mnemonic {
            Mnemonic::Clc => clc,
            Mnemonic::Stc => stc,
            Mnemonic::Cmc => cmc,
            Mnemonic::Cld => cld,
            Mnemonic::Std => std,
            Mnemonic::Salc => salc,
            _ => return,
        };
        table.both(form.code, handler);
    });
}
