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

extern "C" fn on_sigfpe(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let region = RUNNING.get();
    // SAFETY: 1. the kernel passes a valid ucontext_t to an SA_SIGINFO handler; 2. it is ours to
    // change until we return; 3. a thunk's fault exit is an instruction of the same function with
    // the same stack depth as every instruction that can raise SIGFPE, so going there is legal.
    unsafe {
        let machine = context.cast::<libc::ucontext_t>();
        let rip = &mut (*machine).uc_mcontext.gregs[libc::REG_RIP as usize];
        if (region.start..region.end).contains(&(*rip as usize)) {
            *rip = region.exit as i64;
            return;
        }
    }
    pass_on(signal, info, context);
}

/// A signal that is not a thunk's: it belongs to the handler that was there before ours (the
/// translator's, say, which must stay callable), or gets its action when the instruction is
/// repeated.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    let Some(previous) = PREVIOUS.get() else {
        // SAFETY: raise(3) is async-signal-safe and takes an integer.
        unsafe { libc::raise(libc::SIGKILL) };
        return;
    };
    let is_function = previous.sa_flags & libc::SA_SIGINFO != 0
        && ![libc::SIG_DFL, libc::SIG_IGN].contains(&previous.sa_sigaction);
    // SAFETY: 1. the kernel reported this action as installed with SA_SIGINFO, so the word is a
    // function of that signature; 2. the arguments are those the kernel gave us; 3. sigaction(2) is
    // async-signal-safe, and `previous` lives for ever.
    unsafe {
        if is_function {
            let handler: Handler = std::mem::transmute(previous.sa_sigaction);
            handler(signal, info, context);
        } else {
            libc::sigaction(libc::SIGFPE, previous, std::ptr::null_mut());
        }
    }
}
