//! Figures about a run, printed at its end.

use std::time::Duration;

use cpu::engine::Vcpu;

use super::threads::{SharedCpu, lock};

/// Prints what each CPU did, to standard error.
pub(super) fn print(cpus: &[SharedCpu], elapsed: Duration) {
    let mut total = 0;
    for (index, cpu) in cpus.iter().enumerate() {
        let cpu = lock(cpu);
        total += cpu.retired();
        eprintln!("cpu{index}: {} instructions, trace {:#018x}", cpu.retired(), cpu.trace_digest());
        if std::env::var_os("DUMP").is_some() {
            let s = cpu.state();
            eprintln!("rip {:x} flags {:x} cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x} gpr {:x?}", s.rip, s.rflags, s.cr0, s.cr2, s.cr3, s.cr4, s.gpr);
            eprintln!("{:x?}", s.segments);
            let rd = |a: u64| cpu.env.space.read(memory::GuestPhysical(a), memory::Width::Qword);
            if let Ok(v) = std::env::var("PEEK") { for a in v.split(',') { let a = u64::from_str_radix(a, 16).unwrap_or(0); eprintln!("{a:x}: {:x}", rd(a)); } }
            let mut sp = s.gpr[4];
            for _ in 0..40 { let v = rd(sp); let mut b = [0u8; 60]; let _ = cpu.env.space.dma_read(memory::GuestPhysical(v), &mut b);
                eprintln!("[{sp:x}] {v:x} {}", String::from_utf8_lossy(&b).replace(|c: char| !(' '..='~').contains(&c), ".")); sp += 8; }
            for g in s.gpr {
                if g > 0x1000 && g < 0x1fff_0000 {
                    let mut b = [0u8; 160];
                    let _ = cpu.env.space.dma_read(memory::GuestPhysical(g), &mut b);
                    eprintln!("{g:x}: {}", String::from_utf8_lossy(&b).replace(|c: char| !(' '..='~').contains(&c), "."));
                }
            }
        }
    }
    let seconds = elapsed.as_secs_f64();
    eprintln!("{total} instructions in {seconds:.3} s, {:.1} MIPS", total as f64 / seconds / 1e6);
}
