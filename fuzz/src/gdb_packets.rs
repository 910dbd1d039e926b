//! What a gdb that lies sends, up to where the `gdbstub` crate takes over: the packet layer, the
//! packets of non-stop mode and the bytecode of conditions.
//!
//! The command is no library, so its files are compiled here once more; none knows a CPU.

#[path = "../../src/gdb/agent.rs"]
mod agent;
#[path = "../../src/gdb/guard.rs"]
#[expect(dead_code, reason = "replies are not looked at")]
mod guard;
#[path = "../../src/gdb/notices.rs"]
mod notices;

use std::collections::BTreeSet;

use agent::{AgentExpression, World};
use cpu::testing::random::Random;
use guard::{Guard, PACKET_BYTES, Piece, Verdict};
use notices::{Notices, Request};

/// Registers are their numbers, and memory ends.
struct Fake;

impl World for Fake {
    fn register(&mut self, number: u16) -> Option<u64> {
        (number < 200).then_some(number.into())
    }

    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        bytes.fill(address as u8);
        address < 1 << 32
    }
}

/// The CPUs of a machine whose client is in non-stop mode, as far as telling of stops goes.
#[derive(Default)]
struct Cpus {
    notices: Notices,
    /// CPUs that stand and whose stop the client knows.
    known: BTreeSet<usize>,
    /// CPUs that stand.
    standing: BTreeSet<usize>,
    /// The CPU that was told of and not acknowledged.
    told: Option<usize>,
}

const CPUS: usize = 3;

impl Cpus {
    /// Does what `request` asks for; each stop is to be told once, and none is to be lost.
    fn take(&mut self, request: &Request) -> Result<(), &'static str> {
        match request {
            Request::Known => {
                self.known.extend(self.told.take());
                self.notices.acknowledge();
            }
            Request::Stopped => {
                self.known.clear();
                let stops = self.standing.iter().map(|&cpu| (cpu, cpu.to_string()));
                let next = self.notices.begin(stops).map(str::to_owned);
                self.note(next.as_deref())?;
            }
            Request::Resume(plan) if plan.is_within(CPUS) => {
                for cpu in 0..CPUS {
                    match plan.action(cpu) {
                        Some(cpu::debugger::Resume::Hold) if self.standing.insert(cpu) => {
                            self.notices.put(cpu, cpu.to_string());
                        }
                        Some(cpu::debugger::Resume::Hold) | None => {}
                        Some(_) if self.notices.has(cpu) => {}
                        Some(_) => {
                            self.standing.remove(&cpu);
                            self.known.remove(&cpu);
                        }
                    }
                }
            }
            _ => {}
        }
        if let Some(due) = self.notices.take_due().map(str::to_owned) {
            if self.told.is_some() {
                return Err("a second notification before the first is acknowledged");
            }
            self.note(Some(&due))?;
        }
        let is_told_or_known = |cpu| self.known.contains(cpu) != self.notices.has(*cpu);
        if self.standing.iter().all(is_told_or_known) { Ok(()) } else { Err("a stop is lost") }
    }

    fn note(&mut self, told: Option<&str>) -> Result<(), &'static str> {
        self.told = told.and_then(|told| told.parse().ok());
        if self.told.is_none_or(|cpu| self.standing.contains(&cpu)) {
            return Ok(());
        }
        Err("a stop is told of a CPU that runs")
    }
}

/// Takes `input` as a client's bytes, and as an expression.
pub fn run(input: &[u8]) -> Result<(), &'static str> {
    let mut guard = Guard::default();
    let mut cpus = Cpus::default();
    for &byte in input {
        let Some(Piece::Packet(packet)) = guard.take(byte) else { continue };
        if packet.len() > PACKET_BYTES {
            return Err("a packet grows without bound");
        }
        // Checksums are seldom right by chance.
        let whole = packet.get(1..packet.len() - 3).unwrap_or_default();
        let body = guard::body(&packet).unwrap_or(whole);
        if let Some(request) = Request::read(body, true) {
            cpus.take(&request)?;
        }
        if let Verdict::Breakpoint(options) = guard::judge(body)
            && options.len() > body.len()
        {
            return Err("options of nowhere");
        }
    }
    if let Ok(expression) = AgentExpression::check(input, |number| number < 256) {
        // Whatever comes of it comes soon.
        let _ = expression.evaluate(&mut Fake);
    }
    Ok(())
}

/// Bytes that are operators, or the beginning of packets, as often as not.
pub fn generate(random: &mut Random) -> Vec<u8> {
    if random.below(4) == 0 {
        return packets(random);
    }
    let heads: [&[u8]; 5] = [b"$Z0,1000,1;X", b"$m0,", b"$Z1,", b"$", b""];
    let mut bytes = random.pick(&heads).to_vec();
    let count = random.below(100);
    bytes.extend((0..count).map(|_| match random.below(4) {
        0 => random.byte(),
        1 => random.pick(b"#$,;X0123456789abcdef"),
        _ => random.byte() % 0x35,
    }));
    bytes.push(0x27);
    bytes
}

/// Packets of non-stop mode in any order.
fn packets(random: &mut Random) -> Vec<u8> {
    let bodies: [&[u8]; 12] = [
        b"vStopped",
        b"vStopped",
        b"?",
        b"vCtrlC",
        b"vCont;t",
        b"vCont;c",
        b"vCont;t:1",
        b"vCont;t:p1.2",
        b"vCont;s:3;c",
        b"vCont;r1,2:2",
        b"QNonStop:1",
        b"vCont;",
    ];
    let count = random.below(40);
    (0..count)
        .flat_map(|_| {
            let mut body = random.pick(&bodies).to_vec();
            if random.below(8) == 0 {
                body.push(random.byte());
            }
            [&b"$"[..], &body, b"#00"].concat()
        })
        .collect()
}
