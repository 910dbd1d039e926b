//! The machine as `gdbstub` sees it: a thread for each CPU, addresses that are linear ones of that
//! CPU, and points at which all of them stop.

use std::collections::BTreeMap;
use std::sync::Arc;

use cpu::Cpu;
use cpu::debugger::{Breakpoint, CodeAddress, Condition, DebugStop, Resume, WatchKind, Watchpoint};
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume,
    MultiThreadResumeOps, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps,
    MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{
    SingleRegisterAccess, SingleRegisterAccessOps,
};
use gdbstub::target::ext::breakpoints::{self, Breakpoints, BreakpointsOps};
use gdbstub::target::ext::exec_file::ExecFileOps;
use gdbstub::target::ext::memory_map::MemoryMapOps;
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};

use super::arch::{Block, RegisterNumber, X86};
use super::conditions;
use super::guard::PACKET_BYTES;
use crate::debug::commands::{Context, Effect};
use crate::debug::registers::REGISTERS;
use crate::debug::{Kind, Machine, Moved, Owner, Point, PointError, StopReport, commands};
use crate::vm::{Control, Quit, Request};

/// Errors that gdb is told by number: no such thing, busy, bad address, not permitted,
/// no room.
const ENOENT: u8 = 2;
const EBUSY: u8 = 16;
const EFAULT: u8 = 14;
const EINVAL: u8 = 22;
const ENOSPC: u8 = 28;

/// What a client of good faith never asks for, so that its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Misled(&'static str);

impl std::fmt::Display for Misled {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.0)
    }
}

/// gdb's thread for CPU `index`.
pub(super) fn thread_of(index: usize) -> Tid {
    Tid::MIN.saturating_add(index)
}

/// The CPU that is thread `tid`, if there is one.
fn cpu_of(tid: Tid) -> usize {
    tid.get() - 1
}

/// See the head of this file.
pub(super) struct GdbTarget {
    machine: Arc<Machine>,
    /// The condition of the breakpoint that comes next, or that it is refused.
    condition: Result<Option<Arc<dyn Condition>>, ()>,
    /// What gdb's user is to be told.
    messages: Vec<String>,
    /// What the CPUs that were named do next, and what the others do.
    plan: BTreeMap<usize, Resume>,
    others: Resume,
    /// gdb has let the machine go on.
    is_resumed: bool,
    /// The CPU that gdb was told of last.
    reported: usize,
    /// What the monitor's commands keep.
    context: Context,
}

impl GdbTarget {
    pub(super) fn new(machine: Arc<Machine>) -> Self {
        Self {
            machine,
            condition: Ok(None),
            messages: Vec::new(),
            plan: BTreeMap::new(),
            others: Resume::Continue,
            is_resumed: false,
            reported: 0,
            context: Context::default(),
        }
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(super) fn control(&self) -> &Control {
        &self.machine.board().control
    }

    /// A client begins. It is told of the first CPU.
    pub(super) fn begin(&mut self) {
        self.reported = 0;
        self.context = Context::default();
        self.is_resumed = false;
        self.messages.clear();
    }

    /// The CPU that gdb was told of last.
    pub(super) fn reported(&self) -> usize {
        self.reported
    }

    /// The client asked for the machine to go on when it vanishes.
    pub(super) fn goes_on_alone(&self) -> bool {
        self.context.goes_on_alone
    }

    /// True if gdb has let the machine go on since the last call.
    pub(super) fn take_resumed(&mut self) -> bool {
        std::mem::take(&mut self.is_resumed)
    }

    /// Takes all of gdb's points away.
    pub(super) fn detach(&mut self) {
        self.machine.detach(Owner::Gdb);
    }

    /// CPU `cpu` has stopped: the monitor's commands are about it from here on.
    pub(super) fn turn_to(&mut self, cpu: usize) {
        self.reported = cpu;
        self.context.cpu = cpu;
    }

    /// Why CPU `cpu` stopped, in gdb's words.
    pub(super) fn stop_reason(
        &mut self,
        cpu: usize,
        stop: DebugStop,
    ) -> MultiThreadStopReason<u64> {
        self.turn_to(cpu);
        let tid = thread_of(cpu);
        let trap = MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP };
        // gdb goes on from what it did not set, unless it is told of a signal.
        let point = self.machine.point_of(cpu, &stop);
        let is_gdbs = point.is_some_and(|point| self.machine.has_point(Owner::Gdb, point));
        match stop {
            DebugStop::Step => trap,
            DebugStop::Caught(caught) => {
                self.messages.push(format!("caught {caught}\n"));
                trap
            }
            DebugStop::Breakpoint(_) | DebugStop::Watchpoint(_) if !is_gdbs => {
                let report = StopReport::of(&self.machine, cpu, Some(stop));
                self.messages.extend(report.map(|report| report.to_string()));
                trap
            }
            DebugStop::Breakpoint(linear) => {
                // gdb looks for its breakpoint at RIP, and goes on if it finds none there.
                let rip = self.machine.with(cpu, |cpu| cpu.state.rip);
                match point {
                    Some(Point::Breakpoint(_, Kind::Hardware)) if rip == Some(linear) => {
                        MultiThreadStopReason::HwBreak(tid)
                    }
                    _ if rip == Some(linear) => MultiThreadStopReason::SwBreak(tid),
                    _ => trap,
                }
            }
            DebugStop::Watchpoint(hit) => {
                let addr = hit.address.max(hit.watchpoint.start);
                let kind = match hit.watchpoint.kind {
                    WatchKind::Write => breakpoints::WatchKind::Write,
                    WatchKind::Read => breakpoints::WatchKind::Read,
                    WatchKind::Access => breakpoints::WatchKind::ReadWrite,
                };
                MultiThreadStopReason::Watch { tid, kind, addr }
            }
        }
    }

    /// Takes the options of the breakpoint that comes next.
    pub(super) fn take_options(&mut self, options: &[u8]) {
        let condition = conditions::read(options);
        self.condition = condition.map_err(|refusal| log::error!(target: "gdb", "{refusal}"));
    }

    /// Takes what gdb's user is to be told.
    pub(super) fn take_messages(&mut self) -> Vec<String> {
        std::mem::take(&mut self.messages)
    }

    /// That the machine was moved for a point is told when gdb listens.
    fn tell(&mut self, moved: Option<Moved>) {
        self.messages.extend(moved.map(|moved| format!("{moved}\n")));
    }

    fn set_breakpoint(&mut self, linear: u64, kind: Kind) -> TargetResult<bool, Self> {
        let condition = std::mem::replace(&mut self.condition, Ok(None));
        let condition = condition.map_err(|()| TargetError::Errno(EINVAL))?;
        let at = CodeAddress::Linear(linear);
        let breakpoint = Breakpoint { at, number: kind as u32, condition };
        let moved = self.machine.add_breakpoint(Owner::Gdb, &breakpoint, None).map_err(refusal)?;
        self.tell(moved);
        Ok(true)
    }

    fn clear_breakpoint(&mut self, linear: u64, kind: Kind) -> TargetResult<bool, Self> {
        let point = Point::Breakpoint(CodeAddress::Linear(linear), kind);
        Ok(self.machine.remove_point(Owner::Gdb, point))
    }

    /// Does something with the registers of a CPU that stands. Those of one that runs would be old
    /// when they arrive.
    fn with_standing<T>(&self, tid: Tid, act: impl FnOnce(&mut Cpu) -> T) -> TargetResult<T, Self> {
        let cpu = cpu_of(tid);
        if cpu < self.machine.cpu_count() && !self.machine.stands(cpu) {
            return Err(TargetError::Errno(EBUSY));
        }
        self.machine.with(cpu, act).ok_or(TargetError::Errno(ENOENT))
    }

    fn plan(&mut self, tid: Tid, resume: Resume) -> Result<(), Misled> {
        if cpu_of(tid) >= self.machine.cpu_count() {
            return Err(Misled("a CPU is to go on that does not exist"));
        }
        self.plan.insert(cpu_of(tid), resume);
        Ok(())
    }
}

/// A point that cannot be set, for gdb and for the log.
fn refusal(error: PointError) -> TargetError<Misled> {
    match error {
        PointError::Refused => TargetError::Errno(ENOSPC),
        PointError::Engine(reason) => {
            log::error!(target: "gdb", "{reason}");
            TargetError::Errno(ENOSPC)
        }
    }
}

fn watchpoint(start: u64, length: u64, kind: breakpoints::WatchKind) -> Watchpoint {
    let kind = match kind {
        breakpoints::WatchKind::Write => WatchKind::Write,
        breakpoints::WatchKind::Read => WatchKind::Read,
        breakpoints::WatchKind::ReadWrite => WatchKind::Access,
    };
    Watchpoint { start, length, kind }
}

impl Target for GdbTarget {
    type Arch = X86;
    type Error = Misled;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_memory_map(&mut self) -> Option<MemoryMapOps<'_, Self>> {
        Some(self)
    }

    fn support_exec_file(&mut self) -> Option<ExecFileOps<'_, Self>> {
        if self.machine.names().program().is_some() { Some(self) } else { None }
    }
}

impl MultiThreadBase for GdbTarget {
    fn read_registers(&mut self, block: &mut Block, tid: Tid) -> TargetResult<(), Self> {
        block.values = self.with_standing(tid, |cpu| {
            REGISTERS.iter().map(|register| register.read(cpu)).collect()
        })?;
        Ok(())
    }

    fn write_registers(&mut self, block: &Block, tid: Tid) -> TargetResult<(), Self> {
        let written = self.with_standing(tid, |cpu| {
            for (register, value) in REGISTERS.iter().zip(&block.values) {
                // What is as it was is not written: that is not always without effect.
                if let Some(value) = value
                    && register.read(cpu).is_some_and(|old| old != *value)
                {
                    register.write(cpu, value)?;
                }
            }
            Ok::<_, cpu::exception::Exception>(())
        });
        written?.map_err(|_| TargetError::Errno(EINVAL))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        match self.machine.with(cpu_of(tid), |cpu| cpu.inspect_bytes(start, data)) {
            None => Err(TargetError::Errno(ENOENT)),
            Some(0) => Err(TargetError::Errno(EFAULT)),
            Some(count) => Ok(count),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        match self.machine.with(cpu_of(tid), |cpu| cpu.patch_bytes(start, data)) {
            None => Err(TargetError::Errno(ENOENT)),
            Some(false) => Err(TargetError::Errno(EFAULT)),
            Some(true) => Ok(()),
        }
    }

    fn list_active_threads(&mut self, found: &mut dyn FnMut(Tid)) -> Result<(), Misled> {
        (0..self.machine.cpu_count()).map(thread_of).for_each(found);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for GdbTarget {
    fn read_register(
        &mut self,
        tid: Tid,
        RegisterNumber(number): RegisterNumber,
        out: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let register = REGISTERS.get(number).ok_or(TargetError::Errno(ENOENT))?;
        // Nothing: the processor has no such register.
        let Some(value) = self.with_standing(tid, |cpu| register.read(cpu))? else { return Ok(0) };
        let place = out.get_mut(..value.len()).ok_or(TargetError::Errno(EINVAL))?;
        place.copy_from_slice(&value);
        Ok(value.len())
    }

    fn write_register(
        &mut self,
        tid: Tid,
        RegisterNumber(number): RegisterNumber,
        value: &[u8],
    ) -> TargetResult<(), Self> {
        let register = REGISTERS.get(number).ok_or(TargetError::Errno(ENOENT))?;
        let written = self.with_standing(tid, |cpu| register.write(cpu, value))?;
        written.map_err(|_| TargetError::Errno(EINVAL))
    }
}

impl MultiThreadResume for GdbTarget {
    fn resume(&mut self) -> Result<(), Misled> {
        let Self { machine, plan, others, reported, .. } = self;
        machine.resume(*reported, |cpu| plan.get(&cpu).copied().unwrap_or(*others));
        self.is_resumed = true;
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Misled> {
        self.plan.clear();
        self.others = Resume::Continue;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Misled> {
        self.plan(tid, Resume::Continue)
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for GdbTarget {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Misled> {
        self.plan(tid, Resume::Step)
    }
}

impl MultiThreadRangeStepping for GdbTarget {
    fn set_resume_action_range_step(
        &mut self,
        tid: Tid,
        start: u64,
        end: u64,
    ) -> Result<(), Misled> {
        self.plan(tid, Resume::StepInside { start, end })
    }
}

impl MultiThreadSchedulerLocking for GdbTarget {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Misled> {
        self.others = Resume::Hold;
        Ok(())
    }
}

impl Breakpoints for GdbTarget {
    fn support_sw_breakpoint(&mut self) -> Option<breakpoints::SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<breakpoints::HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<breakpoints::HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl breakpoints::SwBreakpoint for GdbTarget {
    fn add_sw_breakpoint(&mut self, linear: u64, _: usize) -> TargetResult<bool, Self> {
        self.set_breakpoint(linear, Kind::Software)
    }

    fn remove_sw_breakpoint(&mut self, linear: u64, _: usize) -> TargetResult<bool, Self> {
        self.clear_breakpoint(linear, Kind::Software)
    }
}

impl breakpoints::HwBreakpoint for GdbTarget {
    fn add_hw_breakpoint(&mut self, linear: u64, _: usize) -> TargetResult<bool, Self> {
        self.set_breakpoint(linear, Kind::Hardware)
    }

    fn remove_hw_breakpoint(&mut self, linear: u64, _: usize) -> TargetResult<bool, Self> {
        self.clear_breakpoint(linear, Kind::Hardware)
    }
}

impl breakpoints::HwWatchpoint for GdbTarget {
    fn add_hw_watchpoint(
        &mut self,
        start: u64,
        length: u64,
        kind: breakpoints::WatchKind,
    ) -> TargetResult<bool, Self> {
        let point = Point::Watchpoint(watchpoint(start, length, kind));
        let moved = self.machine.add_point(Owner::Gdb, point).map_err(refusal)?;
        self.tell(moved);
        Ok(true)
    }

    fn remove_hw_watchpoint(
        &mut self,
        start: u64,
        length: u64,
        kind: breakpoints::WatchKind,
    ) -> TargetResult<bool, Self> {
        let point = Point::Watchpoint(watchpoint(start, length, kind));
        Ok(self.machine.remove_point(Owner::Gdb, point))
    }
}

impl ThreadExtraInfo for GdbTarget {
    fn thread_extra_info(&self, tid: Tid, out: &mut [u8]) -> Result<usize, Misled> {
        let text = commands::cpu_summary(&self.machine, cpu_of(tid)).map(|cpu| cpu.to_string());
        let text = text.unwrap_or_else(|| "no such CPU".into());
        let count = text.len().min(out.len());
        out[..count].copy_from_slice(&text.as_bytes()[..count]);
        Ok(count)
    }
}

/// Sends text in pieces that fit into packets.
fn say(out: &mut ConsoleOutput<'_>, text: &str) {
    for piece in text.as_bytes().chunks(PACKET_BYTES / 4) {
        out.write_raw(piece);
        out.flush();
    }
}

impl MonitorCmd for GdbTarget {
    fn handle_monitor_cmd(
        &mut self,
        line: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), Misled> {
        let line = String::from_utf8_lossy(line);
        match commands::run(&self.machine, &mut self.context, &line) {
            Ok(Effect::Reply(reply)) => say(&mut out, &reply.to_string()),
            Ok(Effect::Quit) => self.control().request(Request::Quit(Quit::User)),
            Ok(Effect::Run(_)) => say(&mut out, "gdb has the machine: take its own commands\n"),
            Err(error) => say(&mut out, &format!("{error}\n")),
        }
        Ok(())
    }
}
