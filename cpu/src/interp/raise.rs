//! Instructions that raise exceptions on purpose: BOUND and UD.

use decoder::Vendor;
use iced_x86::Mnemonic;

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::flags::Word;
use crate::interp::dispatch::{Table, undefined};
use crate::interp::insn::Insn;
use crate::interp::shape::{by_width, for_each_form};

/// BOUND: a signed index against a pair of signed bounds in memory.
fn bound<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let segment = usize::from(insn.mem.segment);
    let offset = cpu.effective_address(&insn.mem);
    let index = cpu.reg::<T>(insn.dst).sign_extend() as i64;
    let lower = cpu.read::<T>(segment, offset)?.sign_extend() as i64;
    // It shows where the second bound cannot be read.
    if index < lower && cpu.env.cpuid.vendor() == Vendor::Intel {
        return Err(Exception::BR);
    }
    let upper = cpu.read::<T>(segment, offset.wrapping_add(T::BYTES))?.sign_extend() as i64;
    if index < lower || index > upper { Err(Exception::BR) } else { Ok(()) }
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    for_each_form(table, |table, form| {
        let handler = match form.mnemonic {
            Mnemonic::Bound => by_width!(form.width, bound),
            Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => undefined,
            _ => return,
        };
        table.both(form.code, handler);
    });
}
