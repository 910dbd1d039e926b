//! Whether this host's local APICs do what the engine needs of them, by trying it. A KVM without
//! hardware under it, which emulates a processor, may end an interrupt when it delivers it: what is
//! level-triggered then comes again before its handler has looked at the device.

use kvm_bindings::KVM_EXIT_IO;
use kvm_ioctls::{Cap, Kvm};

use crate::apics::{Message, enable};
use crate::small_guest::{CODE, SmallGuest};
use crate::vm::check_extensions;
use crate::{KvmError, lapic};

const NEEDED: [(Cap, &str); 5] = [
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::X2ApicApi, "KVM_CAP_X2APIC_API"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
];

const VECTOR: u8 = 0x55;
const HANDLER: u16 = 0x2000;
/// `STI; MOV CX, 256; LOOP $; CLI; OUT 81h, AL`: an interrupt that waits is delivered in the loop.
const PROGRAM: [u8; 9] = [0xfb, 0xb9, 0x00, 0x01, 0xe2, 0xfe, 0xfa, 0xe6, 0x81];
/// `OUT 80h, AL`, from before the EOI.
const HANDLER_PROGRAM: [u8; 2] = [0xe6, HANDLER_PORT as u8];
const HANDLER_PORT: u16 = 0x80;

/// True if the kernel's local APICs can be had: says so if not.
pub(crate) fn are_good(kvm: &Kvm) -> bool {
    let Err(error) = check(kvm) else { return true };
    log::info!(target: "kvm::apic", "local APICs are the machine's own: {error}");
    false
}

fn check(kvm: &Kvm) -> Result<(), KvmError> {
    check_extensions(kvm, &NEEDED)?;
    let gate = [HANDLER.to_le_bytes(), [0; 2]].concat();
    let pieces =
        [(CODE, &PROGRAM[..]), (HANDLER.into(), &HANDLER_PROGRAM), (4 * u64::from(VECTOR), &gate)];
    let mut guest = SmallGuest::new(kvm, &pieces, enable)?;
    let mut page = get(&guest)?;
    lapic::set_register(&mut page, lapic::SVR, lapic::SVR_ENABLED);
    guest.fd.set_lapic(&page).map_err(KvmError::of("KVM_SET_LAPIC"))?;
    let fixed =
        Message { destination: 0, is_logical: false, delivery: 0, vector: VECTOR, is_level: false };
    if !fixed.send(&guest.vm) || !lapic::is_requested(&get(&guest)?, VECTOR) {
        return Err(KvmError::Lacks("local APICs that show what is requested of them"));
    }
    if guest.run()? != KVM_EXIT_IO || guest.page.port().0.port != HANDLER_PORT {
        return Err(KvmError::Lacks("local APICs that interrupt"));
    }
    if !lapic::is_in_service(&get(&guest)?, VECTOR) {
        return Err(KvmError::Lacks("local APICs whose interrupts last until their EOI"));
    }
    Ok(())
}

fn get(guest: &SmallGuest) -> Result<kvm_bindings::kvm_lapic_state, KvmError> {
    guest.fd.get_lapic().map_err(KvmError::of("KVM_GET_LAPIC"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::vm::open;

    #[test]
    fn every_host_is_asked() {
        let answer = open().map_err(KvmError::from).and_then(|kvm| check(&kvm));
        let _ = writeln!(std::io::stderr(), "\nlocal APICs on this host: {answer:?}");
        if let Err(error) = answer {
            assert!(!error.to_string().is_empty());
        }
    }
}
