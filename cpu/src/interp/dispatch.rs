//! Which function executes which instruction form.

use std::sync::LazyLock;

use iced_x86::Code;

use super::insn::Handler;
use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::interp::insn::Insn;

/// The two functions of a form: with a register operand, and with a memory operand.
#[derive(Clone, Copy)]
pub struct Forms {
    /// For ModRM.mod = 3, and for forms without ModRM.
    pub register: Handler,
    /// For a memory operand.
    pub memory: Handler,
}

/// The table under construction: families of instructions add their rows.
pub struct Table(Vec<Forms>);

impl Table {
    /// One function for both forms.
    pub fn both(&mut self, code: Code, handler: Handler) {
        self.forms(code, handler, handler);
    }
    /// One function for the register form and one for the memory form.
    pub fn forms(&mut self, code: Code, register: Handler, memory: Handler) {
        if let Some(forms) = self.0.get_mut(code as usize) {
            *forms = Forms { register, memory };
        }
    }
}

/// Executes what does not exist: #UD.
pub fn undefined(_: &mut Cpu, _: &Insn) -> Exec {
    Err(Exception::UD)
}

static TABLE: LazyLock<Vec<Forms>> = LazyLock::new(|| {
    let none = Forms { register: undefined, memory: undefined };
    let count = Code::values().len();
    let mut table = Table(vec![none; count]);
    // One line a family.
    super::alu::register(&mut table);
    super::bit::register(&mut table);
    super::branch::register(&mut table);
    super::condition::register(&mut table);
    super::cpuid::register(&mut table);
    super::exchange::register(&mut table);
    super::io::register(&mut table);
    super::cache_line::register(&mut table);
    super::flag::register(&mut table);
    super::hint::register(&mut table);
    super::raise::register(&mut table);
    super::random::register(&mut table);
    super::mov::register(&mut table);
    super::msr::register(&mut table);
    super::muldiv::register(&mut table);
    super::shift::register(&mut table);
    super::stack::register(&mut table);
    super::string::register(&mut table);
    super::control_register::register(&mut table);
    super::debug_register::register(&mut table);
    super::descriptor_table::register(&mut table);
    super::far::register(&mut table);
    super::flags_register::register(&mut table);
    super::segment::register(&mut table);
    super::syscall::register(&mut table);
    super::system::register(&mut table);
    super::state_image::register(&mut table);
    super::x87_environment::register(&mut table);
    super::xsave::register(&mut table);
    super::time::register(&mut table);
    table.0
});

/// The functions of `code`.
pub fn forms(code: Code) -> Forms {
    TABLE.get(code as usize).copied().unwrap_or(Forms { register: undefined, memory: undefined })
}

/// True if some family has a row for `code`.
pub fn is_implemented(code: Code) -> bool {
    let forms = forms(code);
    forms.register as usize != undefined as Handler as usize
        || forms.memory as usize != undefined as Handler as usize
}
