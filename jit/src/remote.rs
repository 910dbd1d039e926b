//! What other threads want of a vCPU: to stop at a safe point, to forget shortcuts for stores, to
//! forget code.
//!
//! Protocol: a vCPU is *in code* from just before it enters translated code until it has left it; a
//! helper counts as outside. Requests are queued under a lock. A vCPU looks at the queue after it
//! has declared itself in code and before it executes any; so a requester that finds it outside may
//! rely on the queue, and one that finds it in code rings and waits until the queue was served.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cpu::events::Doorbell;
use memory::CodeWatcher;

use crate::code_memory::Contexts;

/// Pages in a queue; more of them become "all".
const QUEUE: usize = 4096;

/// Pages, or all.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pub(crate) pages: Vec<u64>,
    pub(crate) is_all: bool,
}

impl Pages {
    fn add(&mut self, page: u64) {
        if self.pages.len() < QUEUE {
            self.pages.push(page);
        } else {
            self.is_all = true;
        }
    }
}

/// What waits to be done by a vCPU.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Pages of RAM whose stores must be noted.
    pub(crate) noted: Pages,
    /// Pages of RAM whose code has changed.
    pub(crate) written: Pages,
}

/// The part of a vCPU that other threads see.
pub(crate) struct Remote {
    contexts: Arc<Contexts>,
    /// An address that faults.
    trap: usize,
    /// A readable word.
    rest: Box<u64>,
    is_in_code: AtomicBool,
    has_requests: AtomicBool,
    requests: Mutex<Requests>,
    /// Set behind a ring.
    is_ringing: AtomicBool,
}

impl Remote {
    pub(crate) fn new(contexts: Arc<Contexts>, trap: usize) -> Self {
        let remote = Self {
            contexts,
            trap,
            rest: Box::new(0),
            is_in_code: AtomicBool::new(false),
            has_requests: AtomicBool::new(false),
            requests: Mutex::default(),
            is_ringing: AtomicBool::new(false),
        };
        remote.quiet();
        remote
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the bell's ringing back; what rang must be looked at afterwards.
    pub(crate) fn quiet_if_ringing(&self) {
        if self.is_ringing.swap(false, Ordering::SeqCst) {
            self.quiet();
        }
    }

    /// As [`Remote::quiet_if_ringing`], whether or not it seems to ring.
    pub(crate) fn quiet(&self) {
        let rest: *const u64 = &raw const *self.rest;
        self.contexts.set_safepoint(false, rest.cast_mut().cast());
    }

    /// Declares the vCPU in code. False, and not in code, if requests wait.
    pub(crate) fn enter_code(&self) -> bool {
        self.is_in_code.store(true, Ordering::SeqCst);
        if self.has_requests.load(Ordering::SeqCst) {
            self.leave_code();
            return false;
        }
        true
    }

    /// Declares the vCPU out of code.
    pub(crate) fn leave_code(&self) {
        self.is_in_code.store(false, Ordering::Release);
    }

    /// True if requests wait.
    pub(crate) fn has_requests(&self) -> bool {
        self.has_requests.load(Ordering::SeqCst)
    }

    /// Takes what waits. The caller does it before it declares itself in code again.
    pub(crate) fn take(&self) -> Requests {
        let mut requests = self.lock();
        self.has_requests.store(false, Ordering::SeqCst);
        std::mem::take(&mut *requests)
    }

    fn request(&self, add: impl FnOnce(&mut Requests)) {
        let mut requests = self.lock();
        add(&mut requests);
        self.has_requests.store(true, Ordering::SeqCst);
    }
}

#[cfg(feature = "testing")]
impl Remote {
    /// Requests what an overflow of a queue does.
    pub(crate) fn drop_all_code(&self) {
        self.request(|requests| requests.written.is_all = true);
        if self.is_in_code.load(Ordering::SeqCst) {
            self.ring();
        }
    }
}

impl Doorbell for Remote {
    fn ring(&self) {
        self.contexts.set_safepoint(true, self.trap as *mut u8);
        // Behind it: a bell that is quieted in between rings once for nothing.
        self.is_ringing.store(true, Ordering::SeqCst);
    }
}

impl CodeWatcher for Remote {
    fn stores_must_be_noted(&self, page: u64) {
        self.request(|requests| requests.noted.add(page));
        fence(Ordering::SeqCst);
        if !self.is_in_code.load(Ordering::SeqCst) {
            return;
        }
        self.ring();
        let mut tries = 0u32;
        while self.is_in_code.load(Ordering::SeqCst) && self.has_requests() {
            tries += 1;
            // Behind its first moments the wait is for a thread that the host does not run.
            if tries < 2000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }

    fn code_written(&self, page: u64) {
        self.request(|requests| requests.written.add(page));
        if self.is_in_code.load(Ordering::SeqCst) {
            self.ring();
        }
    }
}
