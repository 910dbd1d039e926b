//! SIGFPE of a thunk becomes the end of the thunk.
//!
//! Where the guest has unmasked floating-point exceptions, a thunk runs under the guest's own MXCSR
//! and the kernel turns the host's exception into SIGFPE. The handler knows by a thread-local
//! [`Region`] that the signal is a thunk's and continues at the thunk's fault exit; any other
//! SIGFPE gets the action that was there before ours.
// UNSAFETY: installs a signal handler and changes the interrupted context's instruction pointer.
#![expect(unsafe_code, reason = "unsafe island 2: catches the host's exception of a thunk")]

use std::cell::Cell;
use std::sync::{Once, OnceLock};

/// The exception masks of MXCSR.
pub(super) const MXCSR_MASKS: u32 = 0x1f80;

/// Host addresses of a thunk.
#[derive(Clone, Copy)]
pub(super) struct Region {
    pub(super) start: usize,
    pub(super) end: usize,
    /// Where execution goes on.
    pub(super) exit: usize,
}

const NO_REGION: Region = Region { start: 0, end: 0, exit: 0 };

thread_local! {
    /// The thunk that runs guarded on this thread. Without destructor and lazy initialisation, so
    /// that the handler can read it.
    static RUNNING: Cell<Region> = const { Cell::new(NO_REGION) };
}

static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// While it lives, SIGFPE inside the region ends at the region's exit.
pub(super) struct Guard;

impl Guard {
    pub(super) fn new(region: Region) -> Self {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        RUNNING.set(region);
        Self
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        RUNNING.set(NO_REGION);
    }
}

fn install() {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigfpe;
    // SAFETY: 1. all zeroes is a valid sigaction (empty mask, default action); 2. both pointers
    // are to live values; 3. the handler has the signature that SA_SIGINFO asks for and is
    // async-signal-safe: it reads a const-initialised thread-local and writes the context.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut previous: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        if libc::sigaction(libc::SIGFPE, std::ptr::null(), &raw mut previous) == 0 {
            PREVIOUS.get_or_init(|| previous);
        }
        libc::sigaction(libc::SIGFPE, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn on_sigfpe(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let region = RUNNING.get();
    // SAFETY: 1. the kernel passes a valid ucontext_t to an SA_SIGINFO handler; 2. it is ours to
    // change until we return; 3. a thunk's fault exit is an instruction of the same function with
    // the same stack depth as every instruction that can raise SIGFPE, so going there is legal.
    unsafe {
        let context = context.cast::<libc::ucontext_t>();
        let rip = &mut (*context).uc_mcontext.gregs[libc::REG_RIP as usize];
        if (region.start..region.end).contains(&(*rip as usize)) {
            *rip = region.exit as i64;
            return;
        }
        // Not ours: what was there before us gets it when the instruction is repeated.
        match PREVIOUS.get() {
            Some(previous) => libc::sigaction(libc::SIGFPE, previous, std::ptr::null_mut()),
            None => libc::raise(libc::SIGKILL),
        };
    }
}
