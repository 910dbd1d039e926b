//! What commands answer of a machine whose state is known.

use super::*;
use crate::config::{Accel, Config};
use crate::vm::Vm;

/// A machine, and the one whose CPUs are in it.
fn machine() -> (Vm, Machine) {
    let config = Config { accel: Accel::Interp, cpus: 2, ..Config::default() };
    let vm = Vm::new(&config).expect("a machine");
    let machine = Machine::new(vm.cpus());
    (vm, machine)
}

fn answer(machine: &Machine, context: &mut Context, line: &str) -> Result<String, String> {
    match run(machine, context, line)? {
        Effect::Reply(view) => Ok(view.to_string()),
        Effect::Quit => Ok("the end".into()),
    }
}

#[test]
fn commands_answer_by_data_of_the_machine() {
    let ((_vm, machine), mut context) = (machine(), Context::default());
    let mut ask = |line: &str| answer(&machine, &mut context, line).expect(line);
    assert!(ask("help").contains("translate"));
    let cpus = ask("info cpus");
    assert!(cpus.contains("CPU 0: active, real mode"), "{cpus}");
    assert!(cpus.contains("CPU 1: waits for a start-up IPI"), "{cpus}");
    assert!(ask("info registers").contains("cs_base"));
    assert!(ask("x/i").contains("jmp 0xf000:0x1000"));
    assert_eq!(ask("x/2xb $cs_base+$rip"), "0xfffffff0: 0xea 0x00\n");
    assert!(ask("translate 0x1234").contains("without paging"));
    assert_eq!(ask("info mem"), "there is no paging\n");
    assert_eq!(ask("info jit"), "the machine was made without the translator\n");
    assert!(ask("xp/4dw 0x1000").contains("0x1000: 0 0 0 0"));
    assert!(ask("x 0xe0000000").contains("nothing is mapped"));
    assert!(ask("cpu 1").starts_with("CPU 1"));
    assert_eq!(ask("info breakpoints"), "it stops nowhere\n");
    assert_eq!(ask("quit"), "the end");
    assert_eq!(context.cpu, 1);
}

#[test]
fn what_cannot_be_done_is_said() {
    let ((_vm, machine), mut context) = (machine(), Context::default());
    for (line, part) in [
        ("fly", "no such command"),
        ("cpu 2", "0 to 1"),
        ("info weather", "`help info`"),
        ("x/4097i", "1 to 4096"),
        ("x/q 0", "formats are"),
        ("x 12z", "give a number"),
        ("x $nothing", "no such register"),
        ("x $xmm0", "is no number"),
        ("xp/i 0", "take x/i"),
        ("translate", "give a number"),
        ("vanish", "continue or stay"),
        ("quit now", "nothing may stand"),
        ("cpu/x 1", "no format"),
        ("help fly", "no such command"),
    ] {
        let error = answer(&machine, &mut context, line).expect_err(line);
        assert!(error.contains(part), "{line}: {error}");
    }
}
