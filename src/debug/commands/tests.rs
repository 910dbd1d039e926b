//! What commands answer of a machine whose state is known.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::machine::layout;
use ::memory::{GuestPhysical, Width};
use cpu::engine::Vcpu;
use cpu::events::Events;

use super::*;
use crate::config::{
    Accel, Config, DeviceConfig, MonitorConfig, Scheduler, StdioMonitor, TimeBase,
};
use crate::debug::{Kind, Owner, Point};
use crate::vm::Vm;

/// A machine before its first instruction.
fn machine() -> Vm {
    let config = Config { accel: Accel::Interp, cpus: 2, ..Config::default() };
    Vm::new(&config).expect("a machine")
}

fn answer(machine: &Machine, context: &mut Context, line: &str) -> Result<String, String> {
    match run(machine, context, line)? {
        Effect::Reply(view) => Ok(view.to_string()),
        Effect::Quit => Ok("the end".into()),
        Effect::Run(run) => Ok(format!("{run:?}")),
    }
}

#[test]
fn commands_answer_by_data_of_the_machine() {
    let (vm, mut context) = (machine(), Context::default());
    let mut ask = |line: &str| answer(vm.machine(), &mut context, line).expect(line);
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
fn memory_is_saved_to_a_file_or_the_file_left_alone() {
    let (vm, mut context) = (machine(), Context::default());
    let path = std::env::temp_dir().join(format!("volvelle-memsave-{}", std::process::id()));
    let name = path.display();
    let mut ask = |line: &str| answer(vm.machine(), &mut context, line);
    assert_eq!(ask(&format!("memsave 0xfffffff0 5 \"{name}\"")), Ok(String::new()));
    assert_eq!(std::fs::read(&path).expect("a file"), [0xea, 0, 0x10, 0, 0xf0]);
    assert_eq!(ask(&format!("pmemsave 0x1000 0x20001 {name}")), Ok(String::new()));
    assert_eq!(std::fs::read(&path).expect("a file"), vec![0; 0x2_0001]);
    for (line, part) in [
        (format!("pmemsave 0xdfffff00 0x200 {name}"), "nothing is there"),
        (format!("memsave 0 {} {name}", (512u64 << 20) + 1), "the guest's memory"),
        (format!("memsave 0 0 {name}"), "take 1 to"),
        ("pmemsave 0 512".into(), "say what goes where"),
        ("pmemsave 0 512 /nowhere/at/all".into(), "cannot write to '/nowhere/at/all'"),
    ] {
        let error = ask(&line).expect_err(&line);
        assert!(error.contains(part), "{line}: {error}");
    }
    assert_eq!(std::fs::metadata(&path).expect("a file").len(), 0x2_0001);
    std::fs::remove_file(&path).expect("it was there");
}

#[test]
fn what_cannot_be_done_is_said() {
    let (vm, mut context) = (machine(), Context::default());
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
        let error = answer(vm.machine(), &mut context, line).expect_err(line);
        assert!(error.contains(part), "{line}: {error}");
    }
}

/// A machine, and what it answers to a line.
struct Bench {
    vm: Vm,
    context: Context,
}

impl Bench {
    fn new(config: &Config) -> Self {
        Self { vm: Vm::new(config).expect("a machine"), context: Context::default() }
    }

    fn ask(&mut self, line: &str) -> String {
        answer(self.vm.machine(), &mut self.context, line).expect(line)
    }

    /// Fails unless the answer to `line` has `part`.
    fn check(&mut self, line: &str, part: &str) {
        let text = self.ask(line);
        assert!(text.contains(part), "{line}: no {part:?} in\n{text}");
    }

    fn out(&self, port: u16, value: u32) {
        self.vm.machine().board().pc.ports().write(port, Width::Byte, value);
    }

    fn store(&self, address: u64, value: u32) {
        let space = self.vm.machine().board().pc.space();
        space.write(GuestPhysical(address), Width::Dword, u64::from(value));
    }
}

fn counted() -> Config {
    Config {
        accel: Accel::Interp,
        scheduler: Scheduler::Serial,
        time: TimeBase::Counted { ns_per_instruction: 10 },
        monitor: MonitorConfig { stdio: StdioMonitor::Never, sockets: Vec::new() },
        ..Config::default()
    }
}

#[test]
fn the_8259s_are_as_software_programmed_them() {
    let mut bench = Bench::new(&counted());
    for (port, values) in [(0x20, [0x11, 0x30, 4, 1]), (0xa0, [0x11, 0x38, 2, 1])] {
        bench.out(port, values[0]);
        values[1..].iter().for_each(|&value| bench.out(port + 1, value));
    }
    bench.out(0x21, 0xb8);
    bench.out(0xa1, 0x8f);
    bench.out(0x4d1, 0x0c);
    bench.vm.machine().board().pc.interrupt_line(5).set(true);
    let text = bench.ask("info pic");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("pic0: irr=20 imr=b8 isr=00 hprio=0 irq_base=30"), "{text}");
    assert!(lines[0].ends_with("fnm=0 aeoi=0 lines=20"), "{text}");
    assert!(lines[1].contains("imr=8f isr=00 hprio=0 irq_base=38 rr_sel=0 elcr=0c"), "{text}");
    assert_eq!(bench.ask("info irq"), " 5: 1\n");
}

#[test]
fn the_io_apic_is_as_software_programmed_it() {
    let mut bench = Bench::new(&counted());
    for (register, value) in [(0x10 + 2 * 9, 0x0000_a831), (0x11 + 2 * 9, 0x0300_0000)] {
        bench.store(0xfec0_0000, register);
        bench.store(0xfec0_0010, value);
    }
    bench.check("info ioapic", "pin 9  0x030000000000a831 vec=49  dest=0x3 logical Fixed level\n");
    bench.check(
        "info ioapic",
        "pin 8  0x0000000000010000 vec=0   dest=0x0 physical Fixed edge masked",
    );
    bench.vm.machine().board().pc.interrupt_line(9).set(true);
    bench.check("info ioapic", "asserted");
}

#[test]
fn local_apics_are_shown_by_cpu_and_by_id() {
    let mut bench = Bench::new(&Config { cpus: 2, ..counted() });
    let pc = &bench.vm.machine().board().pc;
    let apic = Arc::clone(pc.lapic(1).expect("CPU 1"));
    apic.mmio_write(0xf0, Width::Dword, 0x1ff);
    apic.mmio_write(0x80, Width::Dword, 0x20);
    apic.mmio_write(0x350, Width::Dword, 0x8731);
    // An IPI to itself waits, for its priority is that of the task.
    apic.mmio_write(0x300, Width::Dword, 0x0004_0000 | 0x2f);
    bench.check("info lapic", "base=0xfee00900 id=0x0");
    for line in ["info lapic 1", "cpu 1", "info lapic"] {
        let text = bench.ask(line);
        if line == "cpu 1" {
            continue;
        }
        for part in
            ["base=0xfee00800 id=0x1", "svr=0x1ff", "tpr=0x20 ppr=0x20", "irr 47\n", "isr -\n"]
        {
            assert!(text.contains(part), "{line}: no {part} in\n{text}");
        }
        assert!(text.contains("LVT0      0x00008731"), "{text}");
    }
}

#[test]
fn pci_functions_are_shown_with_what_they_decode() {
    let device = DeviceConfig {
        id: None,
        driver: "pci-testdev".into(),
        bus: None,
        address: None,
        properties: BTreeMap::new(),
    };
    let mut bench = Bench::new(&Config { devices: vec![device], ..counted() });
    bench.check("info pci", "Bus  0, device   0, function 0");
    bench.check("info pci", "PCI device 1b36:0005");
    let before = bench.ask("info pci");
    assert!(before.contains("BAR0: 32 bit memory"), "{before}");
    // Software moves it, and it is there.
    let at = |register: u32| 0x8000_0000 | 4 << 11 | register;
    for (register, value) in [(0x10, 0xd000_0000), (4, 2)] {
        let ports = bench.vm.machine().board().pc.ports();
        ports.write(0xcf8, Width::Dword, at(register));
        ports.write(0xcfc, Width::Dword, value);
    }
    bench.check("info pci", "at 0xd0000000");
    bench.check("info mtree", "  00000000d0000000-");
}

#[test]
fn what_is_where_is_named_by_what_answers() {
    let mut bench = Bench::new(&counted());
    let text = bench.ask("info mtree");
    for part in [
        "  0000000000000000-000000000009ffff RAM",
        "  00000000fec00000-00000000fec00fff IoApic",
        "ports\n",
        "  0020-0021 PicRegisters",
        "  0040-0043 ",
    ] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    bench.check("info qtree", "lapic0\n");
    bench.check("info qtree", "ioapic\n");
}

#[test]
fn ports_are_accessed_as_the_guest_would() {
    let mut bench = Bench::new(&counted());
    assert_eq!(bench.ask("o 0x70 0x0f"), "");
    bench.ask("o 0x71 0xa5");
    assert_eq!(bench.ask("i 0x71"), "port 0x0071 is 0xa5\n");
    assert_eq!(bench.ask("i/w 0x3000"), "port 0x3000 is 0xffffffff\n");
    for (line, part) in [
        ("i/g 0", "/b, /h or /w"),
        ("i 0x10000", "0 to 0xffff"),
        ("o 0x70 0x100", "does not fit"),
        ("o 0x70", "does not fit"),
    ] {
        let error = answer(bench.vm.machine(), &mut bench.context, line).expect_err(line);
        assert!(error.contains(part), "{line}: {error}");
    }
}

#[test]
fn values_and_checksums_are_what_they_are_of() {
    let mut bench = Bench::new(&counted());
    let memory = bench.vm.machine().board().pc.space();
    memory.dma_write(GuestPhysical(0x1ffe), &[1, 2, 3, 0xff]).expect("RAM");
    // 1; 0x8000 + 2; 0x4001 + 3; 0x2002 rotated from 0x4004, and 0xff.
    assert_eq!(bench.ask("sum 0x1ffe 4"), "08449\n");
    assert_eq!(bench.ask("print $rip+0x10"), "0x10000\n");
    assert_eq!(bench.ask("p/d 0-1"), "-1\n");
    assert_eq!(bench.ask("p/t 5"), format!("{:064b}\n", 5));
    let error = answer(bench.vm.machine(), &mut bench.context, "sum 0xe0000000 1");
    assert!(error.expect_err("no RAM").contains("nothing is there"));
    assert_eq!(bench.ask("info tlb"), "no page is mapped\n");
}

#[test]
fn pages_are_shown_one_by_one() {
    let mut bench = Bench::new(&counted());
    let machine = Arc::clone(bench.vm.machine());
    let memory = machine.board().pc.space();
    // Two pages at 0x40_0000 and one of 4 MiB at 0x80_0000.
    memory.dma_write(GuestPhysical(0x1004), &0x2003u32.to_le_bytes()).expect("RAM");
    memory.dma_write(GuestPhysical(0x1008), &0x0080_0083u32.to_le_bytes()).expect("RAM");
    memory.dma_write(GuestPhysical(0x2000), &0x0000_5067u32.to_le_bytes()).expect("RAM");
    memory.dma_write(GuestPhysical(0x2004), &0x0000_9003u32.to_le_bytes()).expect("RAM");
    machine.with(0, |cpu| {
        cpu.set_control_register(3, 0x1000).expect("CR3");
        cpu.set_control_register(4, 0x10).expect("CR4");
        cpu.set_control_register(0, 0x8000_0011).expect("CR0");
    });
    assert_eq!(
        bench.ask("info tlb"),
        "0000000000400000: 0000000000005000       4 KiB D A U W P\n\
         0000000000401000: 0000000000009000       4 KiB W P\n\
         0000000000800000: 0000000000800000    4096 KiB PS/PAT W P\n"
    );
    assert_eq!(bench.ask("info tlb 0x401000").lines().count(), 2);
    bench.check("info mem", "0x0000000000400000-0x0000000000401fff -rwx");
    bench.check("translate 0x401234", "0x401234 is at 0x9234");
}

#[test]
fn the_clock_is_guest_time() {
    let mut bench = Bench::new(&counted());
    let clock = Arc::clone(bench.vm.machine().board().timers.clock());
    clock.advance_to(1_500_000_002);
    bench.check("info clock", "guest time 1.500000002 s, counted by instructions");
    bench.check("info clock", "wall clock 1767225601 s");
    bench.check("info clock", "TSC 1000000000 Hz");
}

#[test]
fn the_power_button_sets_its_status_and_raises_the_sci() {
    let mut bench = Bench::new(&counted());
    let port = u64::from(layout::PM_BASE);
    assert_eq!(bench.ask(&format!("i/h {port}")), format!("port {port:#06x} is 0x0000\n"));
    // PWRBTN_EN, and SCI_EN.
    bench.ask(&format!("o/h {} 0x100", port + 2));
    bench.ask(&format!("o/h {} 1", port + 4));
    let before = bench.ask("info irq");
    bench.ask("system_powerdown");
    assert_eq!(bench.ask(&format!("i/h {port}")), format!("port {port:#06x} is 0x0100\n"));
    assert_ne!(bench.ask("info irq"), before);
    bench.check("info irq", " 9: 1\n");
}

#[test]
fn an_nmi_goes_where_lint1_says() {
    let mut bench = Bench::new(&counted());
    let waits = |bench: &Bench| {
        let peek = |cpu: &mut Cpu| cpu.events().peek() & Events::NMI != 0;
        bench.vm.machine().with(0, peek).expect("a CPU")
    };
    let lapic = Arc::clone(bench.vm.machine().board().pc.lapic(0).expect("a CPU"));
    lapic.mmio_write(0x360, Width::Dword, 0x1_0400);
    bench.ask("nmi");
    assert!(!waits(&bench), "it is masked");
    lapic.mmio_write(0xf0, Width::Dword, 0x1ff);
    lapic.mmio_write(0x360, Width::Dword, 0x0_0400);
    bench.ask("nmi");
    assert!(waits(&bench));
}

#[test]
fn run_control_asks_for_what_it_says() {
    let mut bench = Bench::new(&counted());
    for (line, effect) in [
        ("stop", "Stop(None)"),
        ("c", "Continue(None)"),
        ("step", "Step(1)"),
        ("si 0x10", "Step(16)"),
        ("stop 0", "Stop(Some(0))"),
        ("cont 0", "Continue(Some(0))"),
    ] {
        assert_eq!(bench.ask(line), effect);
    }
    for line in ["step 0", "step 1048577", "step x", "cont 9", "stop x"] {
        answer(bench.vm.machine(), &mut bench.context, line).expect_err(line);
    }
    bench.check("info status", "running");
    bench.check("info kvm", "disabled");
    bench.check("info version", env!("CARGO_PKG_VERSION"));
    bench.check("accel", "interp");
}

#[test]
fn points_have_numbers_and_owners() {
    let mut bench = Bench::new(&counted());
    assert_eq!(bench.ask("break 0x1000"), "1   break 0x1000\n");
    assert_eq!(bench.ask("b 0x1000"), "1   break 0x1000\n");
    assert_eq!(bench.ask("watch/a $rsp+8 16"), "2   watch 0x8, 16 bytes, Access\n");
    assert_eq!(bench.ask("watch/r 0x2000"), "3   watch 0x2000, 8 bytes, Read\n");
    let machine = Arc::clone(bench.vm.machine());
    let point = Point::Breakpoint(cpu::debugger::CodeAddress::Linear(0x3000), Kind::Software);
    machine.add_point(Owner::Gdb, point).expect("room");
    bench.check("info b", "gdb break 0x3000");
    bench.check("info b", "2   watch 0x8, 16 bytes, Access");
    bench.ask("delete 2");
    machine.detach(Owner::Gdb);
    assert_eq!(bench.ask("info b"), "1   break 0x1000\n3   watch 0x2000, 8 bytes, Read\n");
    bench.ask("delete");
    assert_eq!(bench.ask("info b"), "it stops nowhere\n");
    for (line, part) in [
        ("watch 0 0", "no end"),
        ("watch 0-1 2", "no end"),
        ("watch/x 0", "/r, /w or /a"),
        ("watch 0 y", "no length"),
        ("delete 1", "no such point"),
        ("break", "say where"),
    ] {
        let error = answer(&machine, &mut bench.context, line).expect_err(line);
        assert!(error.contains(part), "{line}: {error}");
    }
}

#[test]
fn help_is_the_table() {
    let mut bench = Bench::new(&counted());
    let text = bench.ask("help");
    let names: Vec<_> = all().map(|command| command.name).collect();
    assert!(names.iter().all(|name| text.lines().any(|line| line.starts_with(name))), "{text}");
    let words: Vec<_> = all().flat_map(|c| c.aliases.iter().chain([&c.name])).collect();
    let unique: std::collections::BTreeSet<_> = words.iter().collect();
    assert_eq!(unique.len(), words.len());
    bench.check("help x", "[/COUNT FORMAT SIZE] [ADDRESS]");
    bench.check("help nmi", "runs on meanwhile");
    assert!(
        bench.ask("info").lines().all(|line| line.starts_with("info ") || line.contains("ADDRESS"))
    );
}

/// Whatever is typed is answered, and at once.
#[test]
fn random_lines_are_answered() {
    let mut bench = Bench::new(&counted());
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    const PIECES: &[&str] = &[
        "0",
        "1",
        "-",
        "+",
        "/",
        "$rip",
        "$cr3",
        "$xmm0",
        "0xffffffffffffffff",
        "4096",
        "i",
        "xg",
        "\u{e9}",
        " ",
        "0x1000",
        "all",
        "$",
        "é/",
        "18446744073709551616",
        "kvm",
        "none",
        "trace=",
    ];
    let commands: Vec<_> = all().map(|command| command.name).collect();
    for _ in 0..20_000 {
        let mut line = commands[next(commands.len())].to_owned();
        // What is logged is the whole process's, and files are the host's.
        if line.starts_with("log") || line.ends_with("memsave") {
            continue;
        }
        for _ in 0..next(6) {
            line.push_str(if next(3) == 0 { "" } else { " " });
            line.push_str(PIECES[next(PIECES.len())]);
        }
        if let Ok(Effect::Reply(view)) = run(bench.vm.machine(), &mut bench.context, &line) {
            assert!(view.to_string().len() < 1 << 20, "{line}");
        }
    }
}
