//! Doorbells: rung by the kernel without an exit, as often as by the bus.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cpu::engine::{Vcpu, VmExit};
use cpu::testing::{Bench, CODE, DATA, PT};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory::{Device, Doorbell, GuestPhysical, IoError, RegionKind, Ringing, Width};

use super::{bench, on_kvm};

const ROUNDS: i32 = 1000;
/// Where the device is, and the linear address of that page.
const DEVICE: u64 = 0xd000_0000;
const LINEAR: u64 = DATA;
const PORT: u16 = 0xc000;

/// Counts the writes that reach it.
struct Chip {
    bells: Vec<Doorbell>,
    writes: AtomicU64,
}

impl Chip {
    fn new() -> Arc<Self> {
        let bells = [
            (0, Ringing::Any),
            (8, Ringing::Width(Width::Word)),
            (16, Ringing::Value(Width::Dword, 7)),
        ];
        let bells = bells.map(|(offset, ringing)| Doorbell::new(offset, ringing).expect("room"));
        Arc::new(Self { bells: bells.into(), writes: AtomicU64::new(0) })
    }

    fn counts(&self) -> (Vec<u64>, u64) {
        let rung = self.bells.iter().map(Doorbell::take).collect();
        (rung, self.writes.swap(0, Ordering::SeqCst))
    }
}

impl Device for Chip {
    fn read(&self, _: u64, _: Width) -> Result<u64, IoError> {
        Ok(0)
    }
    fn write(&self, _: u64, _: Width, _: u64) -> Result<(), IoError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn doorbells(&self) -> Vec<Doorbell> {
        self.bells.clone()
    }
}

/// Rings each bell [`ROUNDS`] times at the device in memory and at the one at ports, and misses
/// twice.
fn program() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut again = a.create_label();
    a.mov(rbx, LINEAR)?;
    a.mov(ecx, ROUNDS)?;
    a.set_label(&mut again)?;
    a.mov(dword_ptr(rbx), ecx)?;
    a.mov(word_ptr(rbx + 8), cx)?;
    a.mov(dword_ptr(rbx + 16), 7)?;
    a.mov(dx, i32::from(PORT))?;
    a.out(dx, al)?;
    a.mov(dx, i32::from(PORT) + 8)?;
    a.out(dx, ax)?;
    a.mov(dx, i32::from(PORT) + 16)?;
    a.mov(eax, 7)?;
    a.out(dx, eax)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.mov(dword_ptr(rbx + 16), 8)?;
    a.mov(byte_ptr(rbx + 8), 1)?;
    a.mov(eax, 8)?;
    a.out(dx, eax)?;
    a.mov(dx, i32::from(PORT) + 8)?;
    a.out(dx, al)?;
    a.hlt()?;
    a.assemble(CODE)
}

/// A bench with a chip in memory and one at ports.
fn bench_with_chips() -> (Bench, [Arc<Chip>; 2]) {
    let mut bench = bench();
    bench.put_code_at(CODE, &program().expect("a program"));
    bench.poke(PT + 8 * (LINEAR >> 12), &(DEVICE | 0b11).to_le_bytes());
    bench.control_changed();
    let chips = [Chip::new(), Chip::new()];
    let device = RegionKind::Device(Arc::clone(&chips[0]) as _);
    bench.cpu.env.space.map(GuestPhysical(DEVICE), 0x1000, device).expect("an empty page");
    bench.cpu.env.ports.map(PORT, 32, Arc::clone(&chips[1]) as _).expect("empty ports");
    (bench, chips)
}

fn check(chips: &[Arc<Chip>; 2]) {
    for chip in chips {
        assert_eq!(chip.counts(), (vec![ROUNDS as u64; 3], 2));
    }
}

#[test]
fn the_kernel_rings_without_an_exit() {
    let (mut bench, chips) = bench_with_chips();
    let exit = bench.cpu.run(1_000_000);
    assert!(matches!(exit, VmExit::Halt { .. }), "the interpreter: {exit:?}");
    check(&chips);

    let (bench, chips) = bench_with_chips();
    let Some(mut cpu) = on_kvm(&bench) else { return };
    let exit = cpu.run(u64::MAX);
    assert!(matches!(exit, VmExit::Halt { .. }), "KVM: {exit:?}");
    check(&chips);
    let found = cpu.statistics();
    assert_eq!((found.devices, found.ports), (2, 2), "{found}");
}

#[test]
fn a_device_that_goes_takes_its_doorbells_along() {
    let (bench, chips) = bench_with_chips();
    let Some(mut cpu) = on_kvm(&bench) else { return };
    assert!(matches!(cpu.run(u64::MAX), VmExit::Halt { .. }));
    check(&chips);
    bench.cpu.env.space.unmap(GuestPhysical(DEVICE));
    bench.cpu.env.ports.unmap(PORT);
    cpu.events().request_exit();
    assert_eq!(cpu.run(u64::MAX), VmExit::Requested);
    cpu.set_state(bench.cpu.state.clone());
    assert!(matches!(cpu.run(u64::MAX), VmExit::Halt { .. }));
    for chip in &chips {
        assert_eq!(chip.counts(), (vec![0; 3], 0));
    }
}
