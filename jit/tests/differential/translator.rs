//! The translator's run of a case.

use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use cpu::engine::{Vcpu, VmExit};
use cpu::events::Events;
use cpu::testing::random::Random;
use jit::{JitCpu, Options};

use crate::case::{Case, Ready};
use crate::compare::{Differences, differences};
use crate::reference::{Outcome, Run, again};
use crate::world::{Mode, Rights, World};

/// How the translator is told to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As it does unless told.
    Plain,
    /// Blocks of one instruction.
    OneByOne,
    /// Instructions are counted, and run in parts.
    Counting,
    /// Helpers leave rubbish in registers, and there is little room for code.
    Trashing,
    /// Every loop becomes a superblock at its second turn.
    Superblocks,
}

/// All of them.
pub const KINDS: [Kind; 5] =
    [Kind::Plain, Kind::OneByOne, Kind::Counting, Kind::Trashing, Kind::Superblocks];

impl Kind {
    fn options(self) -> Options {
        let plain = Options { cache_bytes: 4 << 20, ..Options::default() };
        match self {
            Self::Plain => plain,
            Self::OneByOne => Options { block_size: 1, ..plain },
            Self::Counting => Options { counting: true, ..plain },
            Self::Superblocks => Options { superblock_after: 1, ..plain },
            Self::Trashing => Options { trash_helpers: true, cache_bytes: 48 << 10, ..plain },
        }
    }
}

/// A world with translators.
pub struct Translator {
    world: World,
    cpus: Vec<(Kind, JitCpu)>,
}

impl Translator {
    /// Translators of `kinds`.
    pub fn new(mode: Mode, kinds: &[Kind]) -> Self {
        let world = World::new(mode);
        let make = |kind: &Kind| {
            let mut env = world.bench.cpu.env.clone();
            env.events = Arc::default();
            (*kind, JitCpu::new(env, &kind.options()).expect("a translator"))
        };
        let cpus = kinds.iter().map(make).collect();
        Self { world, cpus }
    }

    /// The world, for looks at its memory.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Puts `pages` into the world's memory.
    pub fn restore(&mut self, pages: &[u8]) {
        self.world.restore(pages, Rights::default());
    }

    /// Runs `case` as `kind`; what is different from the interpreter's runs.
    pub fn run(&mut self, kind: Kind, case: &Case, ready: &Ready, runs: &[Run]) -> Vec<String> {
        let Self { world, cpus } = self;
        let Some((_, jit)) = cpus.iter_mut().find(|(k, _)| *k == kind) else { return Vec::new() };
        world.restore(&ready.pages, case.start.rights);
        jit.set_state(ready.state.clone());
        let mut random = Random::new(case.seed ^ 0xb0d6e7);
        for (number, run) in runs.iter().enumerate() {
            if number > 0 {
                again(jit.cpu_mut(), &ready.state);
                world.reset_counter(case.start.turns);
            }
            let guard = Guard::new(format!("{:?} {:#x} {kind:?}", case.mode, case.seed), jit);
            let started = jit.retired();
            let mut list = Differences::default();
            let exit = match kind {
                Kind::Counting => run_in_parts(jit, run, &mut random, &mut list),
                _ => jit.run(u64::MAX),
            };
            drop(guard);
            let outcome = Outcome {
                exit,
                state: jit.state().clone(),
                contents: world.contents(),
                retired: jit.retired() - started,
            };
            let mut found = list.0;
            found.extend(differences(&outcome, run, kind == Kind::Counting));
            if !found.is_empty() {
                found.insert(0, format!("run {} of {kind:?}:", number + 1));
                return found;
            }
        }
        Vec::new()
    }
}

/// Runs with random budgets, and compares where each ends.
fn run_in_parts(
    jit: &mut JitCpu,
    run: &Run,
    random: &mut Random,
    list: &mut Differences,
) -> VmExit {
    let mut done = 0;
    loop {
        let budget = 1 + if random.chance(50) { random.below(4) } else { random.below(40) };
        let before = jit.retired();
        let exit = jit.run(budget);
        let retired = jit.retired() - before;
        done += retired as usize;
        if exit != VmExit::Budget {
            return exit;
        }
        list.number("retired of a budget", retired, budget);
        let Some(point) = run.points.get(done) else {
            list.0.push(format!("goes on after {done} instructions"));
            return exit;
        };
        list.number("rip after a budget", jit.state().rip, point.rip);
        list.number("rflags after a budget", jit.state().rflags, point.rflags);
        list.general(&jit.state().gpr, &point.gpr);
        if !list.0.is_empty() {
            list.0.push(format!("(after {done} instructions, with a budget of {budget})"));
            return exit;
        }
    }
}

/// Longer than any run may take: without paging a REP may go over 4 GiB, which takes seconds, and
/// many times that on a busy host.
const LIMIT: Duration = Duration::from_secs(120);

type Watched = (u64, Instant, String, Arc<Events>);
static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

/// Stops a run that does not end, and says which.
struct Guard(u64);

impl Guard {
    fn new(name: String, jit: &JitCpu) -> Self {
        static WATCHER: Once = Once::new();
        static NEXT: Mutex<u64> = Mutex::new(0);
        WATCHER.call_once(|| {
            std::thread::spawn(watch);
        });
        let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        *next += 1;
        let watched = (*next, Instant::now(), name, Arc::clone(jit.events()));
        WATCHED.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
        Self(*next)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        WATCHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|w| w.0 != self.0);
    }
}

fn watch() {
    loop {
        std::thread::sleep(Duration::from_millis(500));
        for (_, since, name, events) in
            WATCHED.lock().unwrap_or_else(PoisonError::into_inner).iter()
        {
            if since.elapsed() > 3 * LIMIT {
                eprintln!("{name} cannot be stopped");
                std::process::abort();
            }
            if since.elapsed() > LIMIT {
                eprintln!("{name} does not end");
                events.request_exit();
            }
        }
    }
}
