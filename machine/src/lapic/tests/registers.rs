//! Reset values, IA32_APIC_BASE, and what either register interface refuses.

use super::*;

#[test]
fn registers_after_power_up_are_the_manuals() {
    let rig = Rig::at_power_up(&[0, 1]);
    assert_eq!(rig.apic(0).apic_base(), 0xFEE0_0900);
    assert_eq!(rig.apic(1).apic_base(), 0xFEE0_0800);
    for (number, value) in [
        (r::ID, 0x0100_0000),
        (r::VERSION, access::VERSION | access::VERSION_EOI_SUPPRESSION),
        (r::TPR, 0),
        (r::LDR, 0),
        (r::DFR, u32::MAX),
        (r::SVR, 0xFF),
        (r::ESR, 0),
        (r::LVT_TIMER, 0x1_0000),
        (r::LVT_LINT0, 0x1_0000),
        (r::LVT_LINT1, 0x1_0000),
        (r::LVT_ERROR, 0x1_0000),
        (r::DIVIDE, 0),
        (r::CURRENT_COUNT, 0),
    ] {
        assert_eq!(rig.read(1, number), value, "register {number:#x}");
    }
}

#[test]
fn a_globally_disabled_apic_leaves_intr_and_nmi_pins() {
    let rig = Rig::new(&[0]);
    let pair: Arc<dyn ExtIntSource> = Arc::new(Pair(0x77));
    rig.bus.connect_extint(Arc::downgrade(&pair));
    rig.send(Destination::Physical(0), DeliveryMode::Fixed, 0x41);
    rig.apic(0).set_apic_base(0xFEE0_0100).unwrap();
    assert_eq!((rig.apic(0).mmio_base(), rig.read(0, r::SVR)), (None, u32::MAX));
    assert!(!rig.send(Destination::All, DeliveryMode::Fixed, 0x42));
    assert!(!rig.apic(0).has_interrupt());
    rig.bus.set_line(LINT0_PIN, true);
    assert_eq!(rig.apic(0).acknowledge(), Some(0x77));
    rig.signals.take();
    rig.bus.set_line(LINT1_PIN, true);
    assert_eq!(rig.signals.take(), [Signal::Nmi(0)]);
    rig.apic(0).set_tpr(0xA0);
    assert_eq!(rig.apic(0).tpr(), 0xA0, "CR8 works without the APIC");
    rig.apic(0).set_apic_base(0xFEE0_0900).unwrap();
    assert_eq!(rig.read(0, r::SVR), 0xFF, "as after power-up");
}

#[test]
fn apic_base_changes_by_the_state_diagram() {
    let (off, xapic, x2apic, invalid) = (0x100, 0x900, 0xD00, 0x500);
    for (from, to, is_legal) in [
        (off, xapic, true),
        (off, x2apic, false),
        (off, invalid, false),
        (xapic, off, true),
        (xapic, x2apic, true),
        (xapic, invalid, false),
        (x2apic, off, true),
        (x2apic, xapic, false),
        (x2apic, invalid, false),
    ] {
        let rig = Rig::new(&[0]);
        let apic = rig.apic(0);
        apic.set_apic_base(0xFEE0_0900).unwrap();
        apic.set_apic_base(0xFEE0_0000 | from).unwrap();
        let is_ok = apic.set_apic_base(0xFEE0_0000 | to).is_ok();
        assert_eq!(is_ok, is_legal, "{from:#x} to {to:#x}");
        let mode = if is_legal { to } else { from };
        assert_eq!(apic.apic_base(), 0xFEE0_0000 | mode);
    }
    let rig = Rig::new(&[0]);
    for reserved in [1, 1 << 9, 1 << 40] {
        assert!(rig.apic(0).set_apic_base(0xFEE0_0900 | reserved).is_err());
    }
    rig.apic(0).set_apic_base(0x12_3456_7900).unwrap();
    assert_eq!(rig.apic(0).mmio_base().map(|base| base.0), Some(0x12_3456_7000));
}

#[test]
fn the_id_is_writable_in_xapic_mode_and_the_hardwares_in_x2apic_mode() {
    let rig = Rig::new(&[3]);
    rig.write(0, r::ID, 7 << 24);
    assert_eq!((rig.read(0, r::ID), rig.apic(0).id()), (7 << 24, 7));
    rig.apic(0).reset(ResetKind::Init);
    assert_eq!(rig.apic(0).id(), 7, "INIT keeps it");
    rig.to_x2apic(0);
    assert_eq!(rig.apic(0).msr_read(0x802), Some(3));
    assert_eq!(rig.apic(0).msr_write(0x802, 9), Err(GeneralProtection));
    rig.apic(0).reset(ResetKind::Init);
    assert_eq!(rig.apic(0).msr_read(0x802), Some(3), "INIT keeps the mode");
    rig.apic(0).reset(ResetKind::PowerUp);
    assert_eq!((rig.apic(0).msr_read(0x802), rig.apic(0).id()), (None, 3));
}

#[test]
fn x2apic_msrs_fault_as_the_manual_says() {
    let rig = Rig::new(&[0]);
    let apic = rig.apic(0);
    assert_eq!((apic.msr_read(0x803), apic.msr_write(0x808, 0)), (None, Err(GeneralProtection)));
    rig.to_x2apic(0);
    assert_eq!(rig.read(0, r::VERSION), u32::MAX, "no memory-mapped registers now");
    for msr in 0x800..0x900 {
        let number = msr - 0x800;
        let is_readable =
            matches!(number, 2 | 3 | 8 | 0xA | 0xD | 0xF..=0x28 | 0x30 | 0x32..=0x39 | 0x3E);
        assert_eq!(apic.msr_read(msr).is_some(), is_readable, "read of {msr:#x}");
    }
    // Number, a value that is taken, one that is not
    for (number, good, bad) in [
        (r::TPR, 0xFF, 0x100),
        (r::EOI, 0, 1),
        (r::SVR, 0x13FF, 0x400),
        (r::ESR, 0, 1),
        (r::LVT_TIMER, 0x4_00EE, 0x100),
        (r::LVT_LINT0, 0x1_A7FF, 0x2_0000),
        (r::LVT_ERROR, 0x1_00FF, 0x700),
        (r::ICR_LOW, 0xFFFF_FFFF_000C_CFFF, 1 << 13),
        (r::ICR_LOW, 0x4_0041, 1 << 16),
        (r::SELF_IPI, 0x41, 0x141),
        (r::INITIAL_COUNT, 0xFFFF_FFFF, 1 << 32),
        (r::DIVIDE, 0xB, 4),
    ] {
        assert_eq!(apic.msr_write(0x800 + number, good), Ok(()), "{number:#x}");
        assert_eq!(apic.msr_write(0x800 + number, bad), Err(GeneralProtection), "{number:#x}");
    }
    for read_only in [r::VERSION, r::PPR, r::LDR, r::ISR, r::TMR, r::IRR, r::CURRENT_COUNT, r::DFR]
    {
        assert_eq!(apic.msr_write(0x800 + read_only, 0), Err(GeneralProtection), "{read_only:#x}");
    }
}

#[test]
fn accesses_other_than_aligned_dwords_do_nothing_or_see_parts() {
    let rig = Rig::new(&[0]);
    let apic = rig.apic(0);
    apic.mmio_write(0x80, Width::Byte, 0x20);
    apic.mmio_write(0x84, Width::Dword, 0x20);
    apic.mmio_write(0x80, Width::Qword, 0x20);
    assert_eq!(apic.tpr(), 0);
    assert_eq!(apic.mmio_read(0x30, Width::Byte), 0x14);
    assert_eq!(apic.mmio_read(0x32, Width::Word), 0x0105);
    assert_eq!(apic.mmio_read(0x34, Width::Dword), 0xFFFF_FFFF);
}
