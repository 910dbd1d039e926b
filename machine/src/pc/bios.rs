//! The interrupt vectors of real mode, as a BIOS leaves them.
//!
//! Programs that are started without firmware and go back to real mode, or enable interrupts there,
//! rely on them: every vector returns, and the 8254's tick, which runs from the start, is counted
//! and acknowledged. No other service exists.
//!
//! Source: IBM PC AT Technical Reference, "System BIOS Usage" (entry points that stayed where they
//! were ever since, interrupt 08h and the data area's tick count).

/// The segment of the handlers.
const SEGMENT: u16 = 0xf000;
/// The handler of every vector that has none of its own.
const DUMMY_RETURN: u16 = 0xff53;
/// The handler of the timer's tick.
const TIMER_TICK: u16 = 0xfea5;
/// Vector of the 8254's tick.
const TIMER_VECTOR: u64 = 0x08;
const VECTORS: u64 = 256;

/// `iret`
const DUMMY_RETURN_CODE: &[u8] = &[0xcf];
/// Counts the tick in the BIOS data area (0040:006C) and ends the interrupt.
#[rustfmt::skip]
const TIMER_TICK_CODE: &[u8] = &[
    0x1e,                               // push ds
    0x66, 0x50,                         // push eax
    0x31, 0xc0,                         // xor ax, ax
    0x8e, 0xd8,                         // mov ds, ax
    0x66, 0xff, 0x06, 0x6c, 0x04,       // inc dword [46Ch]
    0xb0, 0x20,                         // mov al, 20h (non-specific EOI)
    0xe6, 0x20,                         // out 20h, al
    0x66, 0x58,                         // pop eax
    0x1f,                               // pop ds
    0xcf,                               // iret
];

/// What to write, and where.
pub(super) fn contents() -> [(u64, Vec<u8>); 3] {
    let vectors = (0..VECTORS).flat_map(|vector| {
        let offset = if vector == TIMER_VECTOR { TIMER_TICK } else { DUMMY_RETURN };
        let [low, high] = offset.to_le_bytes();
        let [segment_low, segment_high] = SEGMENT.to_le_bytes();
        [low, high, segment_low, segment_high]
    });
    let at = |offset: u16| u64::from(SEGMENT) * 16 + u64::from(offset);
    [
        (0, vectors.collect()),
        (at(DUMMY_RETURN), DUMMY_RETURN_CODE.to_vec()),
        (at(TIMER_TICK), TIMER_TICK_CODE.to_vec()),
    ]
}
