//! Entering translated code, being called from it, and the signals that it raises.
// UNSAFETY: calls generated code, gets raw pointers back from it, and changes the registers that an
// interrupted instruction will find.
#![expect(unsafe_code, reason = "unsafe island 3: the border to generated code")]

use std::cell::Cell;
use std::mem::offset_of;
use std::sync::Once;

use cpu::fpu::{FpuState, fxsave};

use crate::context::Context;
use crate::thunks::Helpers;
use crate::vcpu::Inner;
use crate::wanted::Wanted;

/// The helpers' addresses.
pub(crate) fn helpers() -> Helpers {
    Helpers {
        access: access as *const () as usize,
        group: group as *const () as usize,
        handler: handler as *const () as usize,
    }
}

type Enter = unsafe extern "sysv64" fn(*mut Context, usize);

thread_local! {
    /// The vCPU whose code this thread executes, for the signal handler: const-initialised and
    /// without destructor, so that reading it there is safe.
    static RUNNING: Cell<*mut Inner> = const { Cell::new(std::ptr::null_mut()) };
}

/// Runs translated code from host address `code` until it leaves.
pub(crate) fn enter(inner: &mut Inner, code: usize) {
    let enter = inner.enter_address();
    let owner: *mut Inner = inner;
    let context = inner.context_address();
    RUNNING.set(owner);
    // SAFETY: 1. `enter` is the address of the enter thunk in this vCPU's code memory, a function
    // of this type that keeps what the ABI asks for (thunks.rs); 2. `code` is the guarded entry of
    // a block that is not dead, in the same memory; 3. the context is mapped, filled in, and the GS
    // base is set to it below; 4. while the code runs, `inner` is used only by the helpers it
    // calls, through the pointer derived from the same exclusive borrow.
    unsafe {
        (*context).owner = owner.cast();
        set_gs_base(context as u64, (*owner).has_fsgsbase());
        let enter: Enter = std::mem::transmute(enter);
        enter(context, code);
    }
    RUNNING.set(std::ptr::null_mut());
}

/// # Safety
/// The caller's thread uses GS for nothing else.
unsafe fn set_gs_base(base: u64, has_fsgsbase: bool) {
    if has_fsgsbase {
        // SAFETY: the kernel lets user code write the base (checked by the caller's flag).
        unsafe { std::arch::asm!("wrgsbase {}", in(reg) base, options(nostack, preserves_flags)) };
    } else {
        const ARCH_SET_GS: i32 = 0x1001;
        // SAFETY: arch_prctl(2) with this code takes an address by value.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    }
}

/// Called by translated code; see [`Inner::access`].
extern "sysv64" fn access(owner: *mut Inner, address: u64, what: u64, from: u64) -> u64 {
    // SAFETY: `owner` is the vCPU that entered the code which calls (it put the pointer into the
    // context), its thread is this one, and no other reference to it is in use meanwhile.
    let inner = unsafe { &mut *owner };
    inner.access(address, Wanted::of(what), from as usize)
}

/// Called by translated code; see [`Inner::group`].
extern "sysv64" fn group(owner: *mut Inner, address: u64, what: u64, from: u64) -> u64 {
    // SAFETY: as in `access`.
    let inner = unsafe { &mut *owner };
    inner.group(address, Wanted::of(what), from as usize)
}

/// Called by translated code; see [`Inner::run_handler`].
extern "sysv64" fn handler(owner: *mut Inner, _: u64, number: u64, from: u64) -> u64 {
    // SAFETY: as in `access`.
    let inner = unsafe { &mut *owner };
    u64::from(inner.run_handler(number as usize, from as usize))
}

/// Takes the x87 unit's contents over into `fpu`, and leaves the unit as Rust expects it. The
/// pointers are the host's, and those of `fpu` stay.
pub(crate) fn save_x87(fpu: &mut FpuState) -> HostPointers {
    let mut image = Image([0; fxsave::BYTES]);
    let mut environment = [0; ENVIRONMENT_WORDS];
    // SAFETY: 1. the image has the size and alignment that FXSAVE wants; 2. the environment has the
    // size that FNSTENV stores in 64-bit mode; 3. FNSTENV and FNINIT change the x87 unit only,
    // which no Rust code uses.
    unsafe {
        // Before FNSTENV, which masks the exceptions; not all processors store the pointers by it.
        std::arch::x86_64::_fxsave64(image.0.as_mut_ptr());
        std::arch::asm!(
            "fnstenv [{}]", "fninit", in(reg) environment.as_mut_ptr(),
            options(nostack, preserves_flags)
        );
    }
    fpu.read_x87(&image.0);
    HostPointers::of(&environment)
}

/// True if the x87 unit has executed an instruction since [`load_x87`].
pub(crate) fn has_x87_run() -> bool {
    let mut environment = [0; ENVIRONMENT_WORDS];
    // SAFETY: 1. as in `save_x87`; 2. FLDCW puts back the masks, which are the first word of what
    // was stored, and raises nothing: none is pending while all are masked.
    unsafe {
        std::arch::asm!(
            "fnstenv [{0}]", "fldcw [{0}]", in(reg) environment.as_mut_ptr(),
            options(nostack, preserves_flags)
        );
    }
    HostPointers::of(&environment).instruction != 0
}

/// Words of the environment that FNSTENV stores (SDM Vol. 1, "Protected Mode x87 FPU State Image in
/// Memory, 32-Bit Format").
const ENVIRONMENT_WORDS: usize = 7;

/// The low halves of the host addresses of the last x87 instruction and its operand; 0 if there was
/// none since the unit was loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostPointers {
    pub(crate) instruction: u32,
    pub(crate) operand: u32,
}

impl HostPointers {
    fn of(environment: &[u32; ENVIRONMENT_WORDS]) -> Self {
        let [_, _, _, instruction, _, operand, _] = *environment;
        Self { instruction, operand }
    }
}

/// Puts `fpu`'s x87 part into the unit. The XMM registers are whatever the image says: the enter
/// thunk loads them afterwards. The unit's pointers become 0: by the image, or, where FXRSTOR loads
/// none without a pending exception, since FNINIT has left them so.
pub(crate) fn load_x87(fpu: &FpuState) {
    let mut image = Image([0; fxsave::BYTES]);
    // SAFETY: the image has the size and alignment that FXSAVE wants. It is begun by the host's own
    // state so that the XMM registers and MXCSR stay what they are.
    unsafe { std::arch::x86_64::_fxsave64(image.0.as_mut_ptr()) };
    image.0[fxsave::FOP..fxsave::MXCSR].fill(0);
    fpu.write_x87(&mut image.0);
    // SAFETY: 1. as above; 2. MXCSR in the image is the host's own, so it has no reserved bit.
    unsafe { std::arch::x86_64::_fxrstor64(image.0.as_ptr()) };
}

#[repr(align(16))]
struct Image([u8; fxsave::BYTES]);

/// Fills what helpers may change with rubbish, for `--jit-trash-helpers`.
pub(crate) fn trash() {
    // SAFETY: every register is declared as clobbered; upper halves are cleared by VZEROUPPER where
    // there are any, which needs no more than AVX, asked for here.
    unsafe {
        std::arch::asm!(
            "pcmpeqd xmm0, xmm0", "pcmpeqd xmm1, xmm1", "pcmpeqd xmm2, xmm2",
            "pcmpeqd xmm3, xmm3", "pcmpeqd xmm4, xmm4", "pcmpeqd xmm5, xmm5",
            "pcmpeqd xmm6, xmm6", "pcmpeqd xmm7, xmm7", "pcmpeqd xmm8, xmm8",
            "pcmpeqd xmm9, xmm9", "pcmpeqd xmm10, xmm10", "pcmpeqd xmm11, xmm11",
            "pcmpeqd xmm12, xmm12", "pcmpeqd xmm13, xmm13", "pcmpeqd xmm14, xmm14",
            "pcmpeqd xmm15, xmm15",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
            out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _,
            out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _,
            out("xmm15") _, options(nostack)
        );
        if std::arch::is_x86_feature_detected!("avx") {
            std::arch::asm!("vzeroupper", out("xmm0") _, options(nostack));
        }
    }
}

// Signals.

const SIGNALS: [libc::c_int; 3] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE];

/// What was installed before, by position in [`SIGNALS`].
static PREVIOUS: std::sync::OnceLock<[libc::sigaction; 3]> = std::sync::OnceLock::new();

/// Installs the handlers, once a process.
pub(crate) fn install_signal_handlers() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            on_signal;
        // SAFETY: 1. all zeroes is a valid sigaction; 2. all pointers are to live values; 3. the
        // handler has the signature that SA_SIGINFO asks for, and does nothing that is not
        // async-signal-safe: it reads memory of its own thread and writes the context.
        unsafe {
            let mut previous: [libc::sigaction; 3] = std::mem::zeroed();
            for (&signal, previous) in SIGNALS.iter().zip(&mut previous) {
                libc::sigaction(signal, std::ptr::null(), previous);
            }
            PREVIOUS.get_or_init(|| previous);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            for signal in SIGNALS {
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
    });
}

/// Gives the calling thread a signal stack that has room for a frame with all vector state.
pub(crate) fn ensure_signal_stack() {
    thread_local! {
        static STACK: Cell<bool> = const { Cell::new(false) };
    }
    const BYTES: usize = 256 << 10;
    if STACK.replace(true) {
        return;
    }
    // The thread needs it as long as it lives: it is given away.
    let stack = Box::leak(vec![0u8; BYTES].into_boxed_slice());
    let description =
        libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: BYTES };
    // SAFETY: the description is of memory that is never freed.
    unsafe { libc::sigaltstack(&raw const description, std::ptr::null_mut()) };
}

extern "C" fn on_signal(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let running = RUNNING.get();
    // SAFETY: 1. the kernel passes a valid ucontext_t and siginfo_t to an SA_SIGINFO handler; 2.
    // the registers are ours to change until we return; 3. `running` is the vCPU whose code this
    // thread entered and has not left; while the interrupted instruction is one of that code nobody
    // else uses the vCPU, and `on_fault` looks whether it is.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let pc = registers[libc::REG_RIP as usize] as usize;
        if let Some(inner) = running.as_mut()
            && inner.is_code(pc)
        {
            let address = if signal == libc::SIGFPE { 0 } else { (*info).si_addr() as usize };
            let resumed = inner.on_fault(pc, address);
            if let Some(rsp) = resumed.rsp {
                registers[libc::REG_RSP as usize] = rsp as i64;
            }
            registers[libc::REG_RIP as usize] = resumed.rip as i64;
            return;
        }
    }
    pass_on(signal, info, context);
}

/// Where an interrupted vCPU goes on.
pub(crate) struct Resumed {
    pub(crate) rip: usize,
    pub(crate) rsp: Option<u64>,
}

fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    let position = SIGNALS.iter().position(|&known| known == signal);
    let previous = PREVIOUS.get().zip(position).and_then(|(all, position)| all.get(position));
    // SAFETY: 1. an action that the kernel reported with SA_SIGINFO is a function of that type;
    // 2. sigaction(2) and raise(3) are async-signal-safe.
    unsafe {
        match previous {
            Some(previous)
                if previous.sa_flags & libc::SA_SIGINFO != 0
                    && ![libc::SIG_DFL, libc::SIG_IGN].contains(&previous.sa_sigaction) =>
            {
                let handler: Handler = std::mem::transmute(previous.sa_sigaction);
                handler(signal, info, context);
            }
            Some(previous) => {
                libc::sigaction(signal, previous, std::ptr::null_mut());
            }
            None => {
                libc::raise(libc::SIGKILL);
            }
        }
    }
}

/// The context at `address`, one of the contexts of the vCPU whose slots `owner` are.
pub(crate) fn context_at(address: *mut Context, _owner: &mut crate::slots::Slots) -> &mut Context {
    // SAFETY: 1. the address is that of a mapped context (`Contexts::address`), whose every byte
    // pattern is valid for its fields; 2. the exclusive borrow of the slots, of which a vCPU has
    // one, stands for its contexts; other threads reach only the two atomic fields.
    unsafe { &mut *address }
}

const _: () = assert!(offset_of!(FpuState, zmm) == 0);
