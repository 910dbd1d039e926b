//! How instructions touch memory.

/// The shape of an instruction's memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryShape {
    /// No memory operand (the stack apart: [`crate::Row::stack`]).
    None,
    /// An address that is not read or written by program semantics: LEA, NOP, PREFETCHh, CLFLUSH,
    /// INVLPG, MONITOR.
    Address,
    /// [`Memory::size`] bytes are read.
    Read,
    /// [`Memory::size`] bytes are written.
    Write,
    /// [`Memory::size`] bytes are read and then written, or at least checked for it.
    ReadWrite,
    /// BT, BTS, BTR, BTC with a register bit offset: the address moves with the offset.
    BitString,
    /// Implicit DS:rSI, ES:rDI operands.
    String,
    /// XLAT: DS:\[rBX+AL\].
    Table,
    /// Elements of [`Memory::element`] bytes are read from indexed addresses, under a mask that is
    /// cleared as they complete.
    Gather,
    /// Elements are written to indexed addresses, under a mask that is cleared as they complete.
    Scatter,
    /// Up to [`Memory::size`] bytes are read; elements that a mask leaves out do not fault. For
    /// EVEX forms only where the instruction names a mask: with k0 it is [`MemoryShape::Read`].
    MaskedRead,
    /// As [`MemoryShape::MaskedRead`], but written.
    MaskedWrite,
    /// Contiguous elements, as many as the mask has bits (VPEXPAND).
    ExpandRead,
    /// Contiguous elements, as many as the mask has bits (VPCOMPRESS).
    CompressWrite,
    /// MASKMOVQ, MASKMOVDQU: bytes at DS:rDI under a mask in a register.
    MaskMove,
    /// A state image whose size the operands or state decide: FXSAVE, XSAVE, FLDENV, FNSAVE.
    StateImage,
    /// MOVDIR64B: 64 bytes read at the operand, written at ES:reg.
    DirectMove,
    /// CLZERO, at DS:rAX: the line is zeroed.
    LineAtRax,
}

/// The memory operand of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// How it is accessed.
    pub shape: MemoryShape,
    /// The bytes of the whole access; 0 where the shape has no fixed size.
    pub size: u16,
    /// The bytes that one mask bit covers and a broadcast loads, or of one element of any other
    /// packed operand; a scalar's own size. 0 above 255.
    pub element: u8,
    /// #GP(0) unless the address is a multiple of [`Memory::size`]. (State images and MOVDIR64B
    /// have rules of their own.)
    pub is_aligned: bool,
}

impl Memory {
    /// No memory operand.
    pub const NONE: Self =
        Self { shape: MemoryShape::None, size: 0, element: 0, is_aligned: false };
}
