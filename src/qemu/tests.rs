//! Command lines of those who drive QEMU, and what is made of them.

use super::*;
use crate::config::{
    Accel, Backend, Boot, Config, Endpoint, Form, GdbConfig, JitConfig, ModuleFile, Scheduler,
    StdioMonitor,
};

fn parse_words(words: &[&str]) -> Result<Action, Refusal> {
    parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
}

fn launch(words: &[&str]) -> Launch {
    match parse_words(words) {
        Ok(Action::Run(launch)) => *launch,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn config(line: &str) -> Config {
    launch(&line.split_whitespace().collect::<Vec<_>>()).config
}

fn refusal(line: &str) -> String {
    let refusal = parse_words(&line.split_whitespace().collect::<Vec<_>>()).unwrap_err();
    assert_eq!(refusal.status, exit::FAILED, "{line}");
    refusal.message
}

/// Devices as `driver key=value ...`, sorted as they are attached.
fn devices(config: &Config) -> Vec<String> {
    let describe = |device: &crate::config::DeviceConfig| {
        let properties = device.properties.iter().map(|(key, value)| format!(" {key}={value}"));
        device.driver.clone() + &properties.collect::<String>()
    };
    config.devices.iter().map(describe).collect()
}

#[test]
fn kvm_unit_tests_start_as_their_runner_starts_them() {
    let launch = launch(&[
        "--no-reboot",
        "-nodefaults",
        "-device",
        "pc-testdev",
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=0x4",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-device",
        "pci-testdev",
        "-kernel",
        "x86/apic.flat",
        "-smp",
        "4",
        "-cpu",
        "qemu64,+x2apic",
        "-m",
        "2048",
        "-append",
        "a b",
        "-initrd",
        "/tmp/x.env",
    ]);
    let config = launch.config;
    assert_eq!(launch.dialect, Dialect::Qemu);
    assert_eq!(
        devices(&config),
        [
            "isa-serial chardev=#serial0",
            "pc-testdev",
            "isa-debug-exit iobase=0xf4 iosize=4",
            "pci-testdev",
        ]
    );
    assert_eq!(
        config.boot,
        Boot::Kernel {
            kernel: "x86/apic.flat".into(),
            modules: vec![ModuleFile { path: "/tmp/x.env".into(), arguments: String::new() }],
            append: "a b".into(),
        }
    );
    assert!(config.no_reboot && !config.no_shutdown);
    assert_eq!((config.cpus, config.memory_bytes, config.form), (4, 2 << 30, Form::Pc));
    assert_eq!(config.cpu_model, "qemu64,+x2apic");
}

#[test]
fn modules_are_separated_by_commas_and_have_words() {
    let config = launch(&["-kernel", "k", "-initrd", "one a=b c,two,,too"]).config;
    let Boot::Kernel { modules, .. } = config.boot else { panic!() };
    let modules = modules.iter().map(|m| (m.path.to_str().unwrap(), m.arguments.as_str()));
    assert_eq!(modules.collect::<Vec<_>>(), [("one", "a=b c"), ("two,too", "")]);
}

#[test]
fn boards_and_engines_go_by_their_names() {
    #[rustfmt::skip]
    let rows = [
        ("",                                         Form::Pc,  Accel::Auto,   Scheduler::Parallel),
        ("-machine q35,accel=tcg",                   Form::Q35, Accel::Jit,    Scheduler::Parallel),
        ("-M pc-q35-9.2,accel=kvm:tcg",              Form::Q35, Accel::Auto,   Scheduler::Parallel),
        ("-M type=pc-i440fx-10.0",                   Form::Pc,  Accel::Auto,   Scheduler::Parallel),
        ("-accel tcg",                               Form::Pc,  Accel::Jit,    Scheduler::Parallel),
        ("-accel kvm",                               Form::Pc,  Accel::Kvm,    Scheduler::Parallel),
        ("-enable-kvm -M q35",                       Form::Q35, Accel::Kvm,    Scheduler::Parallel),
        ("-accel auto",                              Form::Pc,  Accel::Auto,   Scheduler::Parallel),
        ("-accel interp",                            Form::Pc,  Accel::Interp, Scheduler::Parallel),
        ("-accel tcg,thread=single,tb-size=64",      Form::Pc,  Accel::Jit,    Scheduler::Serial),
        ("-machine kernel_irqchip=split -M q35",    Form::Q35, Accel::Auto,   Scheduler::Parallel),
        ("-M q35,smm=off,usb=off,hpet=on", Form::Q35, Accel::Auto, Scheduler::Parallel),
    ];
    for (line, form, accel, scheduler) in rows {
        let config = config(line);
        assert_eq!(
            (config.form, config.accel, config.scheduler),
            (form, accel, scheduler),
            "{line}"
        );
    }
}

#[test]
fn the_translator_is_tuned_as_qemus_is() {
    let default = JitConfig::default();
    #[rustfmt::skip]
    let rows = [
        ("-accel tcg",                                      None,            default.block_size),
        ("-accel tcg,tb-size=64",                           Some(64 << 20),  default.block_size),
        ("-accel tcg,tb-size=0",                            None,            default.block_size),
        ("-accel tcg,tb-size=32 -smp 4",                    Some(32 << 20),  default.block_size),
        ("-accel tcg,tb-size=8 -smp 4",                     Some(16 << 20),  default.block_size),
        ("-accel tcg,tb-size=0x1000000000000000",           Some(1 << 30),   default.block_size),
        ("-accel tcg,one-insn-per-tb=on,split-wx=on",       None,            1),
        ("-accel tcg,one-insn-per-tb=off,split-wx=off",     None,            default.block_size),
    ];
    for (line, cache_bytes, block_size) in rows {
        let jit = config(line).jit;
        assert_eq!((jit.cache_bytes, jit.block_size), (cache_bytes, block_size), "{line}");
    }
    let notes = launch(&["-accel", "tcg,tb-size=1"]).notes;
    assert_eq!(notes, ["-accel: tb-size: the nearest that works is 4"]);
}

#[test]
fn sizes_and_counts_are_read_as_qemu_reads_them() {
    for (line, mebibytes) in [
        ("", 128),
        ("-m 512", 512),
        ("-m 1G", 1024),
        ("-m size=4g", 4096),
        ("-m 2560,maxmem=2560M", 2560),
    ] {
        assert_eq!(config(line).memory_bytes, mebibytes << 20, "{line}");
    }
    for (line, cpus) in [
        ("", 1),
        ("-smp 4", 4),
        ("-smp cpus=4,sockets=1", 4),
        ("-smp sockets=2,cores=3,threads=2", 12),
        ("-smp 3,maxcpus=3", 3),
    ] {
        assert_eq!(config(line).cpus, cpus, "{line}");
    }
}

#[test]
fn a_topology_that_is_not_built_is_told() {
    assert_eq!(launch(&["-smp", "4,cores=4"]).notes, Vec::<String>::new());
    let notes = launch(&["-smp", "4,sockets=2,cores=2"]).notes;
    assert_eq!(notes, ["-smp: the guest sees 4 cores of one socket"]);
}

#[test]
fn serial_ports_are_where_they_are_put() {
    #[rustfmt::skip]
    let rows: &[(&str, &[Backend])] = &[
        ("",                                 &[Backend::Null]),
        ("-display none",                    &[Backend::Null]),
        ("-nodefaults",                      &[]),
        ("-nographic",                       &[Backend::Stdio]),
        ("-nographic -nodefaults",           &[]),
        ("-serial none",                     &[]),
        ("-serial none -serial stdio",       &[Backend::Null, Backend::Stdio]),
        ("-serial mon:stdio",                &[Backend::Stdio]),
        ("-serial null -serial file:a",      &[Backend::Null, Backend::File("a".into())]),
        ("-serial unix:/s,server,nowait",    &[Backend::Unix("/s".into())]),
        ("-serial tcp::99,server=on,wait=off", &[Backend::Tcp("0.0.0.0:99".into())]),
    ];
    for (line, backends) in rows {
        let config = config(line);
        let found: Vec<_> = config.backends.iter().map(|b| b.backend.clone()).collect();
        assert_eq!(found, *backends, "{line}");
        assert_eq!(config.devices.len(), backends.len(), "{line}");
    }
}

#[test]
fn devices_are_connected_to_chardevs() {
    let config = config(
        "-nodefaults -chardev stdio,id=a,mux=on,signal=off -chardev file,id=b,path=out \
         -chardev null,id=c -chardev socket,id=d,path=/s,server=on,wait=off -serial chardev:a \
         -device isa-debugcon,iobase=0x402,chardev=b -device isa-serial,id=com2,chardev=c",
    );
    assert_eq!(
        devices(&config),
        ["isa-serial chardev=a", "isa-debugcon chardev=b iobase=0x402", "isa-serial chardev=c",]
    );
    let backends = config.backends.iter().map(|b| (b.id.as_str(), b.backend.clone()));
    assert_eq!(
        backends.collect::<Vec<_>>(),
        [
            ("a", Backend::Stdio),
            ("b", Backend::File("out".into())),
            ("c", Backend::Null),
            ("d", Backend::Unix("/s".into())),
        ]
    );
}

#[test]
fn isa_debug_exit_has_qemus_defaults() {
    assert_eq!(
        devices(&config("-nodefaults -device isa-debug-exit")),
        ["isa-debug-exit iobase=0x501 iosize=2"]
    );
}

#[test]
fn options_that_change_nothing_are_taken() {
    let config = config(
        "-no-user-config -vga none -vnc none -monitor none -parallel none -net none -no-shutdown \
         -rtc base=utc,driftfix=slew -name guest=x,debug-threads=on -debugcon null",
    );
    assert!(config.no_shutdown);
    assert_eq!(config.name.as_deref(), Some("x"));
    assert_eq!(
        devices(&config),
        ["isa-serial chardev=#serial0", "isa-debugcon chardev=#debugcon iobase=0xe9"]
    );
}

#[test]
fn gdb_is_served_where_it_looks() {
    let tcp = |address: &str| Endpoint::Tcp(address.into());
    for (line, endpoint, is_paused) in [
        ("-s", tcp("localhost:1234"), false),
        ("-s -S", tcp("localhost:1234"), true),
        ("-S -gdb tcp:0.0.0.0:5", tcp("0.0.0.0:5"), true),
        ("-gdb tcp::9000,server=on,wait=off", tcp("localhost:9000"), false),
        ("-gdb unix:path=g,server", Endpoint::Unix("g".into()), false),
    ] {
        let config = config(line);
        assert_eq!(config.gdb, Some(GdbConfig { endpoint }), "{line}");
        assert_eq!(config.is_paused, is_paused, "{line}");
    }
    assert_eq!(config("-gdb none").gdb, None);
}

#[test]
fn monitors_are_where_they_are_put() {
    use StdioMonitor::{Always, Never, OnTerminal};
    let (unix, tcp) = (Endpoint::Unix("m".into()), Endpoint::Tcp("localhost:5".into()));
    #[rustfmt::skip]
    let rows: &[(&str, StdioMonitor, &[Endpoint], usize)] = &[
        ("",                                         OnTerminal, &[], 1),
        ("-nographic",                               OnTerminal, &[], 1),
        ("-monitor none",                            Never,      &[], 1),
        ("-monitor stdio",                           Always,     &[], 1),
        ("-serial mon:stdio",                        Always,     &[], 1),
        ("-monitor unix:m,server,nowait",            Never,      std::slice::from_ref(&unix), 1),
        ("-monitor tcp::5,server=on,wait=off",       Never,      std::slice::from_ref(&tcp), 1),
        ("-chardev socket,id=m,path=m,server=on -mon chardev=m,mode=readline",
                                                     Never,      std::slice::from_ref(&unix), 1),
        ("-chardev stdio,id=a,mux=on -serial chardev:a -mon a", Always, &[], 1),
        ("-chardev stdio,id=a -mon a -serial null",  Always,     &[], 1),
        ("-monitor stdio -monitor unix:m,server",    Always,     std::slice::from_ref(&unix), 1),
    ];
    for (line, stdio, sockets, backends) in rows {
        let config = config(line);
        assert_eq!(
            (config.monitor.stdio, &config.monitor.sockets[..]),
            (*stdio, *sockets),
            "{line}"
        );
        assert_eq!(config.backends.len(), *backends, "{line}");
    }
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    #[rustfmt::skip]
    let rows: &[(&str, &[&str])] = &[
        ("-drive file=x",                    &["-drive", "no disks"]),
        ("disk.img",                         &["disk.img", "no disks"]),
        ("-gdb stdio",                       &["-gdb", "stdio", "tcp:"]),
        ("-gdb tcp::70000",                  &["-gdb", "HOST:PORT"]),
        ("-gdb unix:s",                      &["-gdb", "server=on"]),
        ("-gdb tcp::1,server=off",           &["-gdb", "only listen"]),
        ("-d frobnicate",                    &["-d", "frobnicate", "in_asm"]),
        ("-overcommit mem-lock=on",          &["-overcommit", "locked"]),
        ("-frobnicate",                      &["-frobnicate", "no such option"]),
        ("-",                                &["-"]),
        ("-kernel",                          &["-kernel", "value"]),
        ("-append x",                        &["-append", "-kernel"]),
        ("-initrd x",                        &["-initrd", "-kernel"]),
        ("-kernel k -bios b",                &["-bios", "-kernel"]),
        ("-accel hvf",                       &["-accel", "hvf", "tcg"]),
        ("-accel kvm,tb-size=64",            &["-accel", "tb-size=64"]),
        ("-accel kvm,thread=single",         &["-accel", "thread"]),
        ("-accel tcg,tb-size=many",          &["-accel", "tb-size=many"]),
        ("-accel tcg,split-wx=maybe",        &["-accel", "split-wx=maybe"]),
        ("-accel interp,tb-size=64",         &["-accel", "tb-size=64"]),
        ("-accel interp,one-insn-per-tb=on", &["-accel", "one-insn-per-tb=on"]),
        ("-machine isapc",                   &["-machine", "isapc", "q35"]),
        ("-machine pit=none",                &["-machine", "pit=none"]),
        ("-machine vmport=on",               &["-machine", "vmport=on"]),
        ("-M smm=on",                        &["-M", "smm=on"]),
        ("-smp 0",                           &["-smp", "255"]),
        ("-smp 4,maxcpus=8",                 &["-smp", "maxcpus"]),
        ("-smp many",                        &["-smp", "many"]),
        ("-m 1",                             &["-m", "1", "2M"]),
        ("-m 1G,slots=2,maxmem=2G",          &["-m", "slots"]),
        ("-rtc base=localtime",              &["-rtc", "localtime"]),
        ("-display gtk",                     &["-display", "gtk", "none"]),
        ("-monitor vc",                      &["-monitor", "vc", "stdio"]),
        ("-monitor file:x",                  &["-monitor", "file:x", "stdio"]),
        ("-monitor unix:m",                  &["-monitor", "server=on"]),
        ("-serial mon:pty",                  &["-serial", "mon:pty", "stdio"]),
        ("-mon chardev=a",                   &["-mon", "chardev=a", "-chardev"]),
        ("-chardev null,id=a -mon a,mode=control", &["-mon", "mode=control", "readline"]),
        ("-qmp stdio",                       &["-qmp", "no QMP"]),
        ("-serial pty",                      &["-serial", "pty", "stdio"]),
        ("-serial unix:/s",                  &["-serial", "server=on"]),
        ("-serial tcp:99,server",            &["-serial", "HOST:PORT"]),
        ("-serial chardev:x",                &["isa-serial", "chardev=x"]),
        ("-serial stdio -debugcon stdio",    &["stdio"]),
        ("-serial null -serial null -serial null", &["-serial", "2"]),
        ("-chardev pty,id=a",                &["-chardev", "pty"]),
        ("-chardev stdio",                   &["-chardev", "id="]),
        ("-chardev null,id=a -chardev null,id=a", &["-chardev", "id=a"]),
        ("-chardev file,id=a,path=x,append=on", &["-chardev", "append"]),
        ("-device e1000",                    &["-device", "e1000", "-device help"]),
        ("-device pc-testdev,x=1",           &["-device", "pc-testdev", "x=1"]),
        ("-device isa-debugcon",             &["-device", "isa-debugcon", "chardev"]),
        ("-device isa-debug-exit,iobase=0x10000", &["-device", "iobase=0x10000"]),
        ("-device isa-debug-exit,iosize=8",  &["-device", "iosize=8"]),
        ("-device pc-testdev -device pc-testdev", &["pc-testdev", "one"]),
    ];
    for (line, named) in rows {
        let message = refusal(line);
        for name in *named {
            assert!(message.contains(name), "{line}: '{message}' lacks '{name}'");
        }
    }
}

#[test]
fn the_version_can_be_read_by_scripts_and_names_volvelle() {
    let Ok(Action::Print(text)) = parse_words(&["--version"]) else { panic!() };
    let first = text.lines().next().unwrap();
    let (_, number) = first.split_once("QEMU emulator version ").unwrap();
    let numbers: Vec<&str> = number.split(' ').next().unwrap().split('.').collect();
    assert_eq!(numbers.len(), 3);
    assert!(numbers.iter().all(|number| number.parse::<u32>().is_ok()));
    assert!(first.contains("Volvelle"));
}

#[test]
fn lists_are_printed() {
    for (line, named) in [
        ("-machine help", "q35"),
        ("-accel help", "tcg"),
        ("-device help", "isa-debug-exit"),
        ("-cpu help", "qemu64"),
        ("-help", "-kernel FILE"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let Ok(Action::Print(text)) = parse_words(&words) else { panic!("{line}") };
        assert!(text.contains(named), "{text}");
    }
}

#[test]
fn no_option_is_both_taken_and_refused() {
    for name in OPTIONS.iter().flat_map(|option| option.names) {
        assert!(refused::reason(name).contains("no such option"), "-{name}");
    }
}

#[test]
fn the_program_is_known_by_its_name() {
    for (program, is_qemu) in [
        ("qemu-system-x86_64", true),
        ("/usr/bin/qemu-system-x86_64", true),
        ("volvelle", false),
        ("/opt/qemu-system-x86_64/volvelle", false),
    ] {
        assert_eq!(is_called_by(OsStr::new(program)), is_qemu, "{program}");
    }
}

#[test]
fn a_board_without_a_pit_can_be_had() {
    assert!(config("").has_pit);
    assert!(!config("-machine pit=off").has_pit);
}
