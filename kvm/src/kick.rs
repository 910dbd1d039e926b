//! How other threads get a CPU out of the guest.
// UNSAFETY: sends a signal to a thread that may have ended, and handles it on the thread by a
// pointer to the CPU's shared page.
#![expect(unsafe_code, reason = "unsafe island 4: signals that end KVM_RUN")]

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use cpu::events::Doorbell;

thread_local! {
    /// `immediate_exit` of the CPU that the thread runs, or null.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(std::ptr::null()) };
}

/// The doorbell of one CPU.
#[derive(Default)]
pub(crate) struct Kick {
    /// The thread that runs the CPU, while it does.
    thread: Mutex<Option<libc::pthread_t>>,
    /// The thread is in KVM_RUN, or about to be.
    is_inside: AtomicBool,
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// The thread is between its last look at the mailbox and KVM_RUN, or in it: the kernel then does
/// not enter the guest, or has left it.
extern "C" fn on_signal(_: libc::c_int) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    // SAFETY: the pointer is null, or set by the thread that handles the signal for as long as the
    // page that it points into is mapped (see `Kick::begin`).
    if let Some(flag) = unsafe { immediate_exit.as_ref() } {
        flag.store(1, Ordering::Relaxed);
    }
}

fn install() {
    static INSTALLED: Once = Once::new();
    // SAFETY: 1. all zeroes is a valid sigaction (no flags, empty mask); 2. the handler does
    // nothing but an atomic store, which is async-signal-safe.
    INSTALLED.call_once(|| unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        libc::sigaction(signal(), &raw const action, std::ptr::null_mut());
    });
}

impl Kick {
    /// The calling thread starts to run the CPU with this `immediate_exit`, until [`Kick::end`].
    pub(crate) fn begin(&self, immediate_exit: *const AtomicU8) {
        install();
        IMMEDIATE_EXIT.set(immediate_exit);
        // SAFETY: asks for the calling thread's own name.
        let me = unsafe { libc::pthread_self() };
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(me);
    }

    /// The calling thread runs the CPU no longer.
    pub(crate) fn end(&self) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
        IMMEDIATE_EXIT.set(std::ptr::null());
    }

    /// The CPU is about to enter the guest: whoever posts from now on gets it out. The mailbox must
    /// be looked at once more behind this.
    pub(crate) fn enter(&self) {
        self.is_inside.store(true, Ordering::SeqCst);
    }

    /// The CPU has left the guest.
    pub(crate) fn leave(&self) {
        self.is_inside.store(false, Ordering::SeqCst);
    }
}

impl Doorbell for Kick {
    fn ring(&self) {
        if !self.is_inside.load(Ordering::SeqCst) {
            return;
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = *thread {
            // SAFETY: the thread has not ended: it takes its name out under this lock before.
            unsafe { libc::pthread_kill(thread, signal()) };
        }
    }
}
