//! Random bytes as guest code, in every mode and on hostile tables.
//!
//! An input is read front to back ([`input::Input`]): first what the guest starts with
//! ([`start`]), then its code. The guest runs in small budgets with an event from outside between
//! them, and [`check`] says after each what no guest may bring about. The engine is the
//! interpreter, or whatever else is a [`Subject`]. Nobody calls this but cargo-fuzz, the random
//! driver in `fuzz/`,
//! and short tests; [`generate`] makes inputs for those that have no coverage to go by.

pub mod generate;
mod input;
mod start;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::cpu::Cpu;
use crate::engine::{Vcpu, VmExit};
use crate::events::Events;
use crate::mode::Mode;
use crate::state::{Activity, State, cr0, efer, rflags};
use crate::testing::random::Random;
use crate::testing::{Bench, FakeLapic, FakePlatform};
use input::Input;

/// Instructions between two events.
const BUDGET: u64 = 64;
/// Events, and so parts, in a run.
const PARTS: u32 = 8;
/// Longer than 64 instructions may take, with room for a loaded host.
const PART_LIMIT: Duration = Duration::from_secs(30);

/// What no guest may bring about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A part took longer than any may.
    Slow,
    /// More instructions were retired than the budget allows.
    OverBudget,
    /// The mode the CPU works with, which is not the one that its registers say.
    StaleMode(Mode, Mode),
    /// RFLAGS that cannot be: a reserved bit, or VM outside protected mode.
    Rflags(u64),
    /// CR0 and EFER that cannot be together.
    ControlRegisters(u64, u64),
    /// A privilege level that the mode excludes.
    Cpl(u8),
    /// MXCSR with a reserved bit.
    Mxcsr(u32),
    /// XCR0 without x87.
    Xcr0(u64),
    /// A register holds an address of the host's.
    HostAddress(u64),
}

/// A vCPU of some engine.
pub trait Subject {
    /// Runs the guest.
    fn run(&mut self, budget: u64) -> VmExit;
    /// The CPU, with the state of the guest.
    fn cpu(&self) -> &Cpu;
    /// Budgets are kept to the instruction.
    fn keeps_budgets(&self) -> bool {
        true
    }
    /// Host addresses that no register may be near, besides the bench's own.
    fn host_addresses(&self) -> Vec<u64> {
        Vec::new()
    }
}

impl Subject for Cpu {
    fn run(&mut self, budget: u64) -> VmExit {
        Vcpu::run(self, budget)
    }
    fn cpu(&self) -> &Cpu {
        self
    }
}

/// For how long [`smoke`] goes on.
const SMOKE_TIME: Duration = Duration::from_secs(10);

/// Runs inputs that `generate` makes of seeds: always the same first, `inputs_min` of them however
/// slow the host is, and as many as come about in ten seconds. Panics with the first that fails.
pub fn smoke<E: std::fmt::Debug>(
    inputs_min: u64,
    generate: impl Fn(&mut Random) -> Vec<u8>,
    run: impl Fn(&[u8]) -> Result<(), E> + std::panic::RefUnwindSafe,
) {
    let started = Instant::now();
    let mut seed = 0;
    while seed < inputs_min || started.elapsed() < SMOKE_TIME {
        let input = generate(&mut Random::new(seed));
        let outcome = std::panic::catch_unwind(|| run(&input));
        assert!(matches!(outcome, Ok(Ok(()))), "seed {seed}: {outcome:?}\n{input:02x?}");
        seed += 1;
    }
    println!("{seed} inputs");
}

/// Runs `input` as a guest.
pub fn guest_code(input: &[u8]) -> Result<(), Failure> {
    guest_code_on(input, |cpu| cpu)
}

/// Runs `input` as a guest on what `make` puts in the place of the interpreter's CPU.
pub fn guest_code_on<S: Subject>(input: &[u8], make: impl FnOnce(Cpu) -> S) -> Result<(), Failure> {
    let mut input = Input::new(input);
    let Bench { cpu, platform, lapic } = start::bench(&mut input);
    let mut subject = make(cpu);
    let mut own = vec![
        std::ptr::from_ref(&subject).addr() as u64,
        std::ptr::from_ref(platform.as_ref()).addr() as u64,
        check_host_addresses as *const () as u64,
    ];
    own.extend(subject.host_addresses());
    for _ in 0..PARTS {
        let (event, argument) = (input.byte(), input.byte());
        let (started, retired) = (Instant::now(), subject.cpu().retired());
        let exit = subject.run(BUDGET);
        if started.elapsed() > PART_LIMIT {
            return Err(Failure::Slow);
        }
        if subject.keeps_budgets() && subject.cpu().retired() - retired > BUDGET {
            return Err(Failure::OverBudget);
        }
        check(subject.cpu(), &own)?;
        if exit == VmExit::Shutdown {
            break;
        }
        happen(&subject.cpu().env.events, &platform, &lapic, (event, argument));
    }
    Ok(())
}

/// Something comes from outside.
fn happen(
    events: &Events,
    platform: &FakePlatform,
    lapic: &FakeLapic,
    (event, argument): (u8, u8),
) {
    match event & 15 {
        0..=5 => {
            lapic.vector.store(argument, Ordering::SeqCst);
            events.post(Events::INTERRUPT);
        }
        6 => events.post(Events::NMI),
        7 => events.post(Events::INIT),
        8 => events.post_sipi(argument),
        9 => events.post(Events::INIT | Events::SIPI | Events::NMI),
        10 => events.request_exit(),
        11 => {
            platform.now_ns.fetch_add(u64::from(argument) << 20, Ordering::SeqCst);
        }
        _ => events.post(Events::KICK),
    }
}

fn check(cpu: &Cpu, own: &[u64]) -> Result<(), Failure> {
    let state = &cpu.state;
    let (mode, registers_say) = (cpu.mode, Mode::of(state));
    if mode != registers_say {
        return Err(Failure::StaleMode(mode, registers_say));
    }
    check_flags(state)?;
    let is_paged = state.cr0 & cr0::PG != 0;
    let is_long = is_paged && state.msrs.efer & efer::LME != 0;
    if is_paged && state.cr0 & cr0::PE == 0
        || state.cr0 & (cr0::NW | cr0::CD) == cr0::NW
        || (state.msrs.efer & efer::LMA != 0) != is_long
    {
        return Err(Failure::ControlRegisters(state.cr0, state.msrs.efer));
    }
    if state.fpu.mxcsr & !cpu.native.mxcsr_mask() != 0 {
        return Err(Failure::Mxcsr(state.fpu.mxcsr));
    }
    if state.xcr0 & 1 == 0 {
        return Err(Failure::Xcr0(state.xcr0));
    }
    check_host_addresses(state, own)
}

fn check_flags(state: &State) -> Result<(), Failure> {
    let is_real = state.cr0 & cr0::PE == 0;
    let is_v86 = state.rflags & rflags::VM != 0;
    let is_reserved = state.rflags & !rflags::ALL != 0 || state.rflags & rflags::FIXED == 0;
    if is_reserved || is_v86 && is_real {
        return Err(Failure::Rflags(state.rflags));
    }
    let is_excluded = match state.cpl {
        0 => is_v86,
        3 => is_real,
        cpl => cpl > 3 || is_v86 || is_real,
    };
    // A shut-down CPU is stopped in the middle of what failed.
    if is_excluded && state.activity != Activity::Shutdown {
        return Err(Failure::Cpl(state.cpl));
    }
    Ok(())
}

/// Registers near the host's stack, heap or code are the host's addresses: nothing that a guest
/// starts with is within 4 GiB of them, but for one random number in a hundred million.
fn check_host_addresses(state: &State, own: &[u64]) -> Result<(), Failure> {
    let pointers = [state.rip, state.cr2, state.fpu.fip, state.fpu.fdp];
    // Guests start with the end of the lower half, and a stack may be there.
    let is_own = |value: u64| own.iter().any(|host| host >> 32 == value >> 32);
    let is_host = |value: &&u64| **value >> 32 != 0x7fff && is_own(**value);
    match state.gpr.iter().chain(&pointers).find(is_host) {
        Some(&value) => Err(Failure::HostAddress(value)),
        None => Ok(()),
    }
}
