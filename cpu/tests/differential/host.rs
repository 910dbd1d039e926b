//! One instruction on the host's CPU.
//!
//! Signals carry the state in and out: an INT3 of ours raises SIGTRAP, whose handler replaces the
//! interrupted context by the instruction's input; the kernel's return from the handler loads it,
//! RSP, flags and code segment included. All code around the instruction is INT3, so whatever
//! happens, a second signal follows, whose handler takes the output and puts our context back. No
//! host register is spare or special that way, and compatibility mode is nothing but another CS.
// UNSAFETY: maps memory at the guest's addresses, installs signal handlers and executes arbitrary
// integer instructions with arbitrary registers.
#![expect(unsafe_code, reason = "unsafe test island: executes the guest's instruction on the host")]

use std::cell::Cell;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{c_int, c_void, greg_t, ucontext_t};

use crate::state::{
    CODE_BYTES, CODE_START, Fault, GS_BASE, Input, LOW, Memory, Mode, Output, PAGE, PAGES,
    Registers,
};
use cpu::testing::random::Random;

const INT3: u8 = 0xcc;
/// Linux's selectors of user code and data, the same for every process.
const USER_CODE32: u64 = 0x23;
const USER_CODE64: u64 = 0x33;
const USER_DATA: u64 = 0x2b;
/// The pages around the data that nothing else may occupy.
const DATA_SPAN: (u64, u64) = (cpu::testing::DATA - 16 * PAGE, 48 * PAGE);
const LOW_SPAN: (u64, u64) = (LOW, 2 * PAGE);
const ALTERNATE_STACK_BYTES: usize = 1 << 16;
const RESUME_FLAG: u64 = 1 << 16;

/// Where the kernel's context has the registers, in the encoding's order.
const GPR: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];
const SIGNALS: [c_int; 5] =
    [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

type Gregs = [greg_t; 23];

/// What the handler does with the next signal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It is not about us.
    Nobody,
    /// Leave our context for the instruction's.
    Enter,
    /// Leave the instruction's context for ours.
    Leave,
}

thread_local! {
    static TURN: Cell<Turn> = const { Cell::new(Turn::Nobody) };
    /// The instruction's context: the input, then the output.
    static INSIDE: Cell<Gregs> = const { Cell::new([0; 23]) };
    static HOME: Cell<Gregs> = const { Cell::new([0; 23]) };
}

/// There is one address space, so one host at a time.
static ONE: Mutex<()> = Mutex::new(());

/// The mapped pages, the handlers and the alternate stack, until it is dropped.
pub struct Host {
    previous: Vec<(c_int, libc::sigaction)>,
    previous_stack: libc::stack_t,
    previous_gs_base: u64,
    has_low_page: bool,
    _stack: Box<[u8]>,
    _one: MutexGuard<'static, ()>,
}

impl Host {
    /// Fails with a reason if the host does not let us.
    pub fn new() -> Result<Self, String> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let has_low_page = map_all()?;
        let mut stack = vec![0; ALTERNATE_STACK_BYTES].into_boxed_slice();
        let previous_stack = use_alternate_stack(&mut stack);
        load_data_segments();
        let previous_gs_base = exchange_gs_base(GS_BASE);
        let previous = SIGNALS.map(|signal| (signal, install(signal))).to_vec();
        Ok(Self {
            previous,
            previous_stack,
            previous_gs_base,
            has_low_page,
            _stack: stack,
            _one: one,
        })
    }

    /// True if the kernel let us map memory that 16-bit addresses reach (`vm.mmap_min_addr`).
    pub fn has_low_page(&self) -> bool {
        self.has_low_page
    }

    /// The numbers and addresses of the pages that are there.
    fn pages(&self) -> impl Iterator<Item = (usize, u64, bool)> + use<> {
        let has_low_page = self.has_low_page;
        let pages = PAGES.iter().enumerate().map(|(index, (page, writes))| (index, *page, *writes));
        pages.filter(move |(_, page, _)| has_low_page || *page != LOW)
    }

    /// Executes the instruction.
    pub fn run(&mut self, input: &Input) -> Output {
        for (index, linear, _) in self.pages().filter(|(_, _, is_writable)| *is_writable) {
            write(linear, input.memory.page(index));
        }
        write(input.registers.rip, &input.code);
        INSIDE.set(context_of(input));
        TURN.set(Turn::Enter);
        visit();
        write(input.registers.rip, &[INT3; 16]);
        let (registers, fault) = outcome(&INSIDE.get());
        let mut memory = input.memory.clone();
        for (index, linear, _) in self.pages() {
            read(linear, memory.page_mut(index));
        }
        Output { registers, fault, memory }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        exchange_gs_base(self.previous_gs_base);
        for (signal, previous) in &self.previous {
            // SAFETY: the action is one that the kernel gave us for this signal.
            unsafe { libc::sigaction(*signal, previous, ptr::null_mut()) };
        }
        // SAFETY: 1. the old stack is the one the thread had; 2. ours is not in use: no handler
        // runs here, so the kernel may forget it before its memory goes.
        unsafe { libc::sigaltstack(&raw const self.previous_stack, ptr::null_mut()) };
        for (start, bytes) in [(CODE_START, CODE_BYTES), DATA_SPAN, LOW_SPAN] {
            // SAFETY: we mapped this range and hold no reference into it.
            unsafe { libc::munmap(start as *mut c_void, bytes as usize) };
        }
    }
}

fn context_of(input: &Input) -> Gregs {
    let mut gregs = [0; 23];
    for (place, value) in GPR.iter().zip(input.registers.gpr) {
        gregs[*place as usize] = value as greg_t;
    }
    gregs[libc::REG_RIP as usize] = input.registers.rip as greg_t;
    gregs[libc::REG_EFL as usize] = input.registers.rflags as greg_t;
    let code = match input.mode {
        Mode::Bits64 => USER_CODE64,
        Mode::Bits32 => USER_CODE32,
    };
    gregs[libc::REG_CSGSFS as usize] = (code | USER_DATA << 48) as greg_t;
    gregs
}

/// Output registers and fault. An INT3 is where the instruction went, one byte back; so is a fetch
/// that faults somewhere else.
fn outcome(gregs: &Gregs) -> (Registers, Option<Fault>) {
    const BREAKPOINT: u8 = 3;
    const PAGE_FAULT: u8 = 14;
    const FETCH: u16 = 1 << 4;
    const TASK_SIZE: u64 = 0x7fff_ffff_f000;
    let greg = |register: c_int| gregs[register as usize] as u64;
    let mut registers = Registers {
        gpr: GPR.map(greg),
        rip: greg(libc::REG_RIP),
        rflags: greg(libc::REG_EFL) & !RESUME_FLAG,
    };
    let vector = greg(libc::REG_TRAPNO) as u8;
    let error_code = greg(libc::REG_ERR) as u16;
    if vector == BREAKPOINT {
        registers.rip = registers.rip.wrapping_sub(1);
        return (registers, None);
    }
    if vector == PAGE_FAULT && error_code & FETCH != 0 {
        return (registers, None);
    }
    if vector != PAGE_FAULT {
        return (registers, Some(Fault { vector, error_code, address: 0 }));
    }
    let address = greg(libc::REG_CR2);
    // Linux tells programs of its own half that every page is there and protected.
    let error_code = if address < TASK_SIZE { error_code } else { error_code & !1 };
    (registers, Some(Fault { vector, error_code, address }))
}

/// Goes through the two signals of [`on_signal`].
#[inline(never)]
fn visit() {
    // SAFETY: 1. the handler is installed and TURN says Enter, so the trap is ours; 2. the second
    // signal comes whatever the instruction does: outside it all code is INT3 or not executable;
    // 3. every register and flag is put back from HOME, and memory of ours is not mapped where the
    // instruction's addresses point, so nothing that the compiler relies on changes.
    unsafe { std::arch::asm!("int3") };
}

extern "C" fn on_signal(signal: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let context = context.cast::<ucontext_t>();
    // SAFETY: 1. the kernel passes a valid ucontext_t to an SA_SIGINFO handler; 2. it is ours to
    // change until we return; 3. TURN, HOME and INSIDE are const-initialised thread-locals without
    // destructors and the FS base, by which they are found, is never the instruction's to change.
    unsafe {
        let gregs = &mut (*context).uc_mcontext.gregs;
        match TURN.get() {
            Turn::Enter => {
                HOME.set(*gregs);
                *gregs = INSIDE.get();
                TURN.set(Turn::Leave);
            }
            Turn::Leave => {
                INSIDE.set(*gregs);
                *gregs = HOME.get();
                TURN.set(Turn::Nobody);
            }
            // A bug of the test's own: die of it as without us.
            Turn::Nobody => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

fn install(signal: c_int) -> libc::sigaction {
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_signal;
    // SAFETY: 1. all zeroes is a valid sigaction; 2. the pointers are to live values; 3. the
    // handler has the signature that SA_SIGINFO asks for and is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut previous: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(signal, &raw const action, &raw mut previous);
        previous
    }
}

fn use_alternate_stack(stack: &mut [u8]) -> libc::stack_t {
    let new = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: 1. all zeroes is a valid stack_t; 2. the memory is kept until the stack is given up
    // in `drop`, and nobody else uses it.
    unsafe {
        let mut previous: libc::stack_t = std::mem::zeroed();
        libc::sigaltstack(&raw const new, &raw mut previous);
        previous
    }
}

/// 64-bit Linux runs with null DS and ES; compatibility mode needs real ones.
fn load_data_segments() {
    // SAFETY: the selector is the flat data segment of every Linux process; in 64-bit mode neither
    // register is looked at.
    unsafe { std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) USER_DATA) };
}

/// Sets the GS base, which neither Rust nor glibc uses, and gives the old one.
fn exchange_gs_base(base: u64) -> u64 {
    const ARCH_SET_GS: u64 = 0x1001;
    const ARCH_GET_GS: u64 = 0x1004;
    let mut previous: u64 = 0;
    // SAFETY: 1. ARCH_GET_GS writes eight bytes to the pointer, which is to a live u64; 2. on
    // x86-64 Linux the GS base is free for programs.
    unsafe {
        libc::syscall(libc::SYS_arch_prctl, ARCH_GET_GS, &raw mut previous);
        libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base);
    }
    previous
}

/// Maps code and data; true if the low page could be mapped too.
fn map_all() -> Result<bool, String> {
    let read_write = libc::PROT_READ | libc::PROT_WRITE;
    map(CODE_START, CODE_BYTES, read_write | libc::PROT_EXEC)?;
    map(DATA_SPAN.0, DATA_SPAN.1, libc::PROT_NONE)?;
    let low = map(LOW_SPAN.0, LOW_SPAN.1, libc::PROT_NONE);
    if let Err(why) = &low {
        eprintln!("SKIPPED 16-bit addresses: {why} (vm.mmap_min_addr)");
    }
    write(CODE_START, &vec![INT3; CODE_BYTES as usize]);
    let initial = Memory::random(&mut Random::new(0));
    for (index, (linear, is_writable)) in PAGES.iter().enumerate() {
        if low.is_err() && *linear == LOW {
            continue;
        }
        protect(*linear, read_write)?;
        write(*linear, initial.page(index));
        if !is_writable {
            protect(*linear, libc::PROT_READ)?;
        }
    }
    Ok(low.is_ok())
}

fn map(start: u64, bytes: u64, protection: c_int) -> Result<(), String> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE replaces no mapping of anybody.
    let at = unsafe { libc::mmap(start as *mut c_void, bytes as usize, protection, flags, -1, 0) };
    let error = std::io::Error::last_os_error();
    if at as u64 == start { Ok(()) } else { Err(format!("mapping {start:#x}: {error}")) }
}

fn protect(linear: u64, protection: c_int) -> Result<(), String> {
    // SAFETY: the page is of our own mapping and nothing refers to it.
    let result = unsafe { libc::mprotect(linear as *mut c_void, PAGE as usize, protection) };
    let error = std::io::Error::last_os_error();
    if result == 0 { Ok(()) } else { Err(format!("protecting {linear:#x}: {error}")) }
}

fn write(linear: u64, bytes: &[u8]) {
    // SAFETY: callers name ranges of our own mappings, which are writable; no reference points
    // into them.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), linear as *mut u8, bytes.len()) };
}

fn read(linear: u64, bytes: &mut [u8]) {
    // SAFETY: callers name ranges of our own mappings, which are readable.
    unsafe { ptr::copy_nonoverlapping(linear as *const u8, bytes.as_mut_ptr(), bytes.len()) };
}
