//! The guest's steps: what each checks, and the line it prints when it passes.

use Finding::{AnyText, Exactly, OneOf, Processors};

/// What stands behind the name in the line of a step that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// This text.
    Exactly(&'static str),
    /// One of these texts, as the processor's features decide.
    OneOf([&'static str; 2]),
    /// Whatever CPUID says.
    AnyText,
    /// The number of processors, and a thousand increments for each.
    Processors,
}

impl Finding {
    fn accepts(self, text: &str, processors: u32) -> bool {
        match self {
            Exactly(finding) => text == finding,
            OneOf(findings) => findings.contains(&text),
            AnyText => !text.is_empty(),
            Processors => {
                let total = u64::from(processors) * 1000;
                text == format!("{processors} in long mode, the shared counter is {total}")
            }
        }
    }
}

/// A step of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The name in brackets at the head of its line.
    pub name: &'static str,
    /// What it checks.
    pub checks: &'static str,
    /// What its line says.
    pub finding: Finding,
}

/// The steps in the order in which they run.
pub const STEPS: &[Step] = &[
    step(
        "real mode",
        "the far jump at the reset vector, RAM, and that A20 is open",
        Exactly("started at the reset vector, A20 open"),
    ),
    step(
        "INT 60h",
        "an interrupt through the IVT; IRET restores FLAGS and SP",
        Exactly("called through the IVT, IRET restored FLAGS and SP"),
    ),
    step(
        "real-mode #DE",
        "a divide error through vector 0, with the DIV's own IP",
        Exactly("DIV by zero went through vector 0 with its own IP"),
    ),
    step(
        "string",
        "REP MOVSB upwards and downwards over overlapping ranges, REPE SCASB",
        Exactly("REP MOVSB up and down over itself, REPE SCASB stopped in place"),
    ),
    step(
        "segment wrap",
        "16-bit effective addresses and DI wrap at 64 KiB",
        Exactly("[BX+SI] and DI wrap at 64 KiB"),
    ),
    step(
        "16-bit protected mode",
        "CR0.PE, a far return to a new CS, a segment base",
        Exactly("CS=8 runs the ROM, ES=28 has its descriptor's base"),
    ),
    step(
        "protected mode",
        "flat 32-bit segments; the ROM's two copies are the same",
        Exactly("flat 4 GiB segments, the ROM is below 1 MiB and below 4 GiB"),
    ),
    step(
        "segment limit",
        "#GP(0) one byte past a data segment's limit",
        Exactly("byte FF of a 256-byte segment is in, byte 100 is #GP(0)"),
    ),
    step(
        "selectors",
        "#NP and #GP with the selector as error code",
        Exactly("not present is #NP(68), beyond the GDT #GP(70)"),
    ),
    step(
        "32-bit paging",
        "two pages of one frame; accessed and dirty bits",
        Exactly("alias page written, accessed and dirty bits set as they should"),
    ),
    step(
        "long mode",
        "EFER.LMA, RIP-relative data, zero extension of 32-bit results",
        Exactly("EFER.LMA set, 4-level paging, TSS loaded"),
    ),
    step(
        "LSL and VERR",
        "descriptors read and judged by LSL, LAR, VERR and VERW",
        Exactly("limit and rights read; code is not writable, beyond the GDT is nothing"),
    ),
    step("cpuid", "the features every x86-64 has; prints vendor, brand, hypervisor", AnyText),
    step(
        "rdtsc",
        "the time-stamp counter never goes back, and moves",
        Exactly("1000 readings, none below the one before, and time moved"),
    ),
    step(
        "integer",
        "128-bit MUL and DIV, RCR and ROL",
        Exactly("128-bit MUL and DIV, RCR through carry"),
    ),
    step(
        "x87",
        "FILD, FMUL, FDIVP, FISTP, and the status word after them",
        Exactly("355/113 is 3.141593"),
    ),
    step(
        "SSE2",
        "scalar doubles, packed integers, conversions",
        Exactly("355/113 is 3.141593, PADDD and PMULUDQ agree"),
    ),
    step(
        "AVX",
        "XCR0 and 256-bit arithmetic, if CPUID offers them",
        OneOf(["VADDPS adds 8 floats, VZEROUPPER clears 4", "not offered"]),
    ),
    step("#UD", "UD2, and LOCK on a register", Exactly("UD2 and LOCK ADD EAX,EAX refused")),
    step(
        "#DE",
        "division by zero, and a quotient that does not fit",
        Exactly("division by zero and quotient overflow"),
    ),
    step(
        "#BP",
        "INT3 saves the next instruction's RIP",
        Exactly("INT3 is a trap: RIP is the next instruction's"),
    ),
    step(
        "#GP",
        "a non-canonical address; a vector beyond the IDT's limit",
        Exactly("non-canonical address refused, INT C0h names vector C0h beyond the IDT"),
    ),
    step(
        "page fault",
        "CR2 and error code; the handler maps the page, the write is retried",
        Exactly("CR2=140000128 error=2, mapped and retried"),
    ),
    step(
        "write protection",
        "CR0.WP holds ring 0 back, and nothing is written",
        Exactly("CR2=140000128 error=3, and nothing was written"),
    ),
    step(
        "no execute",
        "EFER.NXE and an instruction fetch",
        Exactly("CR2=140000000 error=11, on a jump into the page"),
    ),
    step(
        "timer",
        "a one-shot interrupt of the local APIC's timer",
        Exactly("local APIC one-shot interrupt taken"),
    ),
    step(
        "CR8",
        "the task priority holds an interrupt back in IRR",
        Exactly("priority 15 held the interrupt in IRR, 0 let it go"),
    ),
    step("hlt", "STI's shadow and HLT, woken by the timer", Exactly("woken by the timer")),
    step(
        "ring 3",
        "IRETQ to CPL 3; OUT is #GP(0), the supervisor's page #PF(5)",
        Exactly("entered by IRETQ, OUT is #GP(0), the supervisor's page #PF(5)"),
    ),
    step(
        "syscall",
        "SYSCALL's RCX, R11, FMASK, CS and SS; SYSRET",
        Exactly("RCX, R11 and FMASK as they should, SYSRET back to ring 3"),
    ),
    step(
        "INT 80h",
        "a gate of DPL 3 and the stack from the TSS",
        Exactly("left ring 3 by a gate of DPL 3, on the TSS's stack"),
    ),
    step("processors", "INIT and SIPI; all processors count at once with LOCK", Processors),
];

const fn step(name: &'static str, checks: &'static str, finding: Finding) -> Step {
    Step { name, checks, finding }
}

/// Compares what the guest printed on COM1 with what it should have printed on a machine of so many
/// `processors`, line by line; empty when all is well. Text before the guest's own, such as a
/// firmware's, and carriage returns do not matter.
pub fn deviations(output: &str, processors: u32) -> Vec<String> {
    let mut lines = output
        .lines()
        .filter_map(|line| line.trim_end_matches('\r').strip_prefix("volvelle: "))
        .skip_while(|line| *line != "the built-in guest")
        .skip(1);
    let mut deviations = Vec::new();
    for step in STEPS {
        let line = lines.next().unwrap_or("(nothing)");
        let finding = line.strip_prefix(&format!("[{}] ", step.name));
        if !finding.is_some_and(|text| step.finding.accepts(text, processors)) {
            deviations.push(format!("[{}]: {line}", step.name));
        }
    }
    let end = lines.next().unwrap_or("(nothing)");
    if end != format!("all {} steps passed", STEPS.len()) {
        deviations.push(format!("end: {end}"));
    }
    deviations
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a sound machine of two processors prints.
    fn transcript() -> String {
        let mut text = String::from("SeaBIOS\r\n\r\nvolvelle: the built-in guest\r\n");
        for step in STEPS {
            let finding = match step.finding {
                Exactly(finding) | OneOf([_, finding]) => finding,
                AnyText => "GenuineIntel",
                Processors => "2 in long mode, the shared counter is 2000",
            };
            text += &format!("volvelle: [{}] {finding}\r\n", step.name);
        }
        text + &format!("volvelle: all {} steps passed\r\n", STEPS.len())
    }

    #[test]
    fn a_sound_transcript_has_no_deviations() {
        assert_eq!(deviations(&transcript(), 2), Vec::<String>::new());
    }

    #[test]
    fn a_wrong_processor_count_is_named() {
        let found = deviations(&transcript(), 1);
        assert_eq!(found.len(), 1);
        assert!(found.iter().all(|line| line.starts_with("[processors]: ")), "{found:?}");
    }

    #[test]
    fn every_line_counts() {
        let text = transcript();
        let guest_lines = text.lines().filter(|line| line.starts_with("volvelle: ")).count();
        for missing in 0..guest_lines {
            let mut at = 0;
            let kept: String = text
                .lines()
                .filter(|line| {
                    let is_guest = line.starts_with("volvelle: ");
                    at += usize::from(is_guest);
                    !is_guest || at - 1 != missing
                })
                .flat_map(|line| [line, "\n"])
                .collect();
            assert!(!deviations(&kept, 2).is_empty(), "line {missing} may be missing");
        }
    }

    #[test]
    fn silence_deviates_everywhere() {
        assert_eq!(deviations("", 1).len(), STEPS.len() + 1);
    }
}
