//! What a kernel's log must not say.

/// `KERN_WARNING`, `<linux/kern_levels.h>`: from here down a line is a complaint.
const WARNING: u32 = 4;

/// Words that make a line of any level a complaint.
const ALARMING: &[&str] = &[
    "ACPI BIOS Error",
    "ACPI Error",
    "ACPI Warning",
    "AMD E400 aware idle",
    "BUG:",
    "Call Trace",
    "Firmware Bug",
    "Oops",
    "WARNING:",
    "could not be reserved",
    "general protection fault",
    "hung task",
    "rcu_sched self-detected stall",
    "segfault",
    "soft lockup",
    "unchecked MSR access",
];

/// Complaints that the same kernel makes on QEMU's and on real machines, and why.
const ACCEPTED: &[(&str, &str)] = &[
    (
        "APIC calibration not consistent with PM-Timer",
        "the host held the guest up while it calibrated; under QEMU it says the same",
    ),
    ("hrtimer: interrupt took", "the host held the guest up while it ran timers"),
];

/// The shell's line that shows those lines of the log that may be complaints: not all of it, for a
/// guest whose console is slow. Of the levels that are none only the kernel's own are left out.
pub fn suspects() -> String {
    let words = ALARMING.join("|");
    format!("dmesg -r | grep -E '^<([0-4]|[0-9][0-9]+)>|{words}' || true")
}

/// Returns the complaints in the output of `dmesg -r`.
pub fn complaints(log: &str) -> Vec<&str> {
    log.lines().filter(|line| is_complaint(line) && !is_accepted(line)).collect()
}

fn is_complaint(line: &str) -> bool {
    let level = line.strip_prefix('<').and_then(|line| line.split_once('>'));
    // Above the three bits of the level is the facility.
    let level = level.and_then(|(number, _)| number.parse::<u32>().ok()).map(|number| number & 7);
    level.is_some_and(|level| level <= WARNING) || ALARMING.iter().any(|word| line.contains(word))
}

fn is_accepted(line: &str) -> bool {
    ACCEPTED.iter().any(|(text, _)| line.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_and_alarming_words_are_complaints() {
        let log = "<6>[    0.1] fine\n<4>[    0.2] a warning\n<12>[    0.3] of a daemon\n\
            <6>[    0.4] [Firmware Bug]: said softly\n<5>[    0.5] a notice\n";
        assert_eq!(
            complaints(log),
            [
                "<4>[    0.2] a warning",
                "<12>[    0.3] of a daemon",
                "<6>[    0.4] [Firmware Bug]: said softly"
            ]
        );
    }
}
