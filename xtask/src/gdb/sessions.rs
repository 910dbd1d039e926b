//! What is done with gdb to a Debian, and how the guest shows that it went on well.

/// One thing to do.
#[derive(Clone, Copy)]
pub enum Step {
    /// A gdb connects.
    Attach,
    /// gdb does a line, and says these, in this order.
    Gdb(&'static str, &'static [&'static str]),
    /// gdb does a line that lets the guest run, and is not waited for.
    Go(&'static str),
    /// The guest has stopped, and gdb has said these.
    Stopped(&'static [&'static str]),
    /// gdb lets the guest go, and ends.
    Detach,
    /// The guest goes on on the engine that is tested.
    Engine,
    /// It goes on on the one that it booted on.
    FirstEngine,
    /// Wait until the guest writes this.
    Expect(&'static str),
    /// Type a line at the guest's shell.
    Type(&'static str),
    /// Have the guest's shell, which runs, do a line, and compare its output.
    Shell(&'static str, &'static str),
    /// Read the kernel's log, which must hold no complaint.
    QuietLog,
}

use Step::{Attach, Detach, Engine, Expect, FirstEngine, Gdb, Go, QuietLog, Shell, Stopped, Type};

use crate::boot::console::PROMPT;

/// Symbols of a kernel that boots, which are known once SYSCALL leads into it.
const BOOTING: &[Step] = &[
    Attach,
    Gdb("monitor catch msr 0xc0000082", &["catch msr"]),
    Gdb("continue", &["caught write of MSR 0xc0000082", "SIGTRAP"]),
    Gdb("monitor delete", &[]),
    Gdb("vsymbols", &["vmlinux: ", " symbols"]),
    Gdb("bt", &["in native_write_msr", "in syscall_init", "in cpu_init", "in start_kernel"]),
    Engine,
    Gdb("break sched_init", &["Breakpoint 1 at"]),
    Gdb("continue", &["hit Breakpoint 1", "in sched_init ()"]),
    Gdb("x/i $pc", &["<sched_init>:"]),
    Gdb("up", &["#1", "in start_kernel ()"]),
    FirstEngine,
    Gdb("tbreak run_init_process", &["Temporary breakpoint 2 at"]),
    Gdb("continue", &["hit Temporary breakpoint 2", "in run_init_process ()"]),
    Gdb("x/s $rdi", &["\"/init\""]),
    Gdb("bt", &["in run_init_process", "in kernel_init", "in ret_from_fork"]),
    Detach,
    Expect(PROMPT),
    Shell("echo $((6*7)) $(nproc)", "42 2"),
];

/// A variable of the kernel, which a program writes, and then gdb.
const VARIABLE: &[Step] = &[
    Attach,
    Engine,
    Gdb("vsymbols", &["vmlinux: "]),
    Gdb("watch *(int*)&panic_timeout", &["Hardware watchpoint 1"]),
    Go("continue"),
    Type("echo 7 > /proc/sys/kernel/panic"),
    Stopped(&["Hardware watchpoint 1", "Old value = 0", "New value = 7"]),
    Gdb("bt", &["proc_dointvec", "vfs_write", "in do_syscall_64", "in entry_SYSCALL_64"]),
    Gdb("info symbol &panic_timeout", &["panic_timeout in section .data"]),
    Gdb("set *(int*)&panic_timeout = 42", &[]),
    Detach,
    Expect(PROMPT),
    Shell("cat /proc/sys/kernel/panic", "42"),
];

/// The 1000th hit, the way out of a function, and a register that the guest's program sees.
const SYSTEM_CALLS: &[Step] = &[
    Attach,
    Gdb("vsymbols", &["vmlinux: "]),
    // The argument is in the registers that the kernel has saved.
    Gdb("break __x64_sys_kill if *(long*)($rdi+112) == 1000", &["Breakpoint 1 at"]),
    Go("continue"),
    Type("i=0; while [ $i -lt 1010 ]; do i=$((i+1)); kill -0 $i 2>/dev/null; done"),
    Stopped(&["hit Breakpoint 1", "in __x64_sys_kill ()"]),
    Gdb("p *(long*)($rdi+112)", &["= 1000\n"]),
    Gdb("info breakpoints", &["(target evals)", "already hit 1 time\n"]),
    Gdb("finish", &["in do_syscall_64 ()"]),
    Gdb("p (long)$rax", &["= -3\n"]),
    Gdb("delete", &[]),
    Gdb(
        "monitor break __x64_sys_umask if dword[panic_timeout] == 42",
        &["<__x64_sys_umask> if dword[panic_timeout] == 42"],
    ),
    Go("continue"),
    Expect(PROMPT),
    Type("umask"),
    Stopped(&[": breakpoint ", "SIGTRAP", "in __x64_sys_umask ()"]),
    Gdb("monitor delete", &[]),
    Gdb("finish", &["in do_syscall_64 ()"]),
    Gdb("set $rax = 0731", &[]),
    Detach,
    Expect("0731"),
    Expect(PROMPT),
    Shell("umask 022; umask; echo $i", "0022\n1010"),
];

/// Of two busy processors one stands still while the other goes on.
const TWO_CPUS: &[Step] = &[
    Shell("for n in 1 2; do sh -c 'while :; do :; done' & done", ""),
    Attach,
    Gdb("vsymbols", &["vmlinux: "]),
    Gdb("break update_process_times thread 2", &["Breakpoint 1 at"]),
    Gdb("continue", &["Thread 2 hit Breakpoint 1"]),
    Gdb("delete", &[]),
    Gdb("set $held = $rsp", &[]),
    Gdb("set scheduler-locking on", &[]),
    Gdb("thread 1", &[]),
    Gdb("break update_process_times", &["Breakpoint 2 at"]),
    Gdb("continue", &["Thread 1 hit Breakpoint 2"]),
    Gdb("continue", &["Thread 1 hit Breakpoint 2"]),
    Gdb("thread 2", &["in update_process_times ()"]),
    Gdb("p $rsp == $held", &["= 1\n"]),
    Gdb("set scheduler-locking off", &[]),
    Detach,
    Shell("kill %1 %2; nproc", "2"),
    QuietLog,
];

/// All that is done to one guest, in turn.
pub const SESSIONS: &[(&str, &[Step])] = &[
    ("a kernel that boots", BOOTING),
    ("a variable", VARIABLE),
    ("system calls", SYSTEM_CALLS),
    ("two processors", TWO_CPUS),
];
