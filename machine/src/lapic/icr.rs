//! The interrupt command register (SDM Vol. 3A, "Interrupt Command Register (ICR)").

use super::message::{DeliveryMode, Destination, Message, TriggerMode};

const ICR_LEVEL_ASSERT: u32 = 1 << 14;
const ICR_TRIGGER_LEVEL: u32 = 1 << 15;

/// What a write of the ICR asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InterprocessorInterrupt {
    Send(Message),
    /// A fixed interrupt with a vector below 16.
    IllegalVector,
    /// A combination that sends nothing.
    Nothing,
}

/// Decodes the ICR's low half `low`, written by CPU `sender`; `named` is what the destination
/// field and bit 11 say.
///
/// Every IPI is edge-triggered, as on all processors since the Pentium 4; the "INIT level
/// de-assert" form that older ones needed is accepted and does nothing there.
pub(super) fn decode_icr(low: u32, named: Destination, sender: u32) -> InterprocessorInterrupt {
    use InterprocessorInterrupt::{IllegalVector, Nothing, Send};
    let vector = low as u8;
    let Some(delivery) = DeliveryMode::from_bits(low) else { return Nothing };
    let destination = match low >> 18 & 3 {
        0 => named,
        1 => Destination::Only { sender },
        2 => Destination::All,
        _ => Destination::AllBut { sender },
    };
    let is_init_deassert = delivery == DeliveryMode::Init
        && low & (ICR_LEVEL_ASSERT | ICR_TRIGGER_LEVEL) == ICR_TRIGGER_LEVEL;
    // SDM Vol. 3A, "Valid Combinations for the ... ICR": neither shorthand that includes the
    // sender may reset it.
    let is_own_reset = matches!(low >> 18 & 3, 1 | 2)
        && matches!(delivery, DeliveryMode::Init | DeliveryMode::StartUp);
    match delivery {
        DeliveryMode::ExtInt => Nothing,
        _ if is_init_deassert || is_own_reset => Nothing,
        _ if delivery.has_vector() && vector < 16 => IllegalVector,
        _ => Send(Message { destination, delivery, vector, trigger: TriggerMode::Edge }),
    }
}
