//! AML as owned pieces of byte code, so that definitions nest as they do in ASL.
//!
//! The encoding is `acpi_tables`'s; added are the resource descriptors it lacks (ACPI 6.5,
//! "Resource Data Types for ACPI"). Names and values are constants of this crate, never the
//! guest's.

use acpi_tables::aml::{self, Path};
use acpi_tables::{Aml, AmlSink};

/// A piece of AML.
pub(super) struct Code(Vec<u8>);

impl Aml for Code {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

impl Code {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Encodes one term.
pub(super) fn code(term: &dyn Aml) -> Code {
    let mut bytes = Vec::new();
    term.to_aml_bytes(&mut bytes);
    Code(bytes)
}

/// Several terms after each other.
pub(super) fn list(terms: impl IntoIterator<Item = Code>) -> Code {
    Code(terms.into_iter().flat_map(|term| term.0).collect())
}

/// `Name (name, value)`.
pub(super) fn name(name: &str, value: impl Aml) -> Code {
    code(&aml::Name::new(name.into(), &value))
}

/// `Name (name, EisaId (id))`.
pub(super) fn eisa(name_of: &str, id: &str) -> Code {
    name(name_of, aml::EISAName::new(id))
}

/// `Device (name) { body }`.
pub(super) fn device(name: &str, body: impl IntoIterator<Item = Code>) -> Code {
    code(&aml::Device::new(name.into(), vec![&list(body)]))
}

/// `Scope (name) { body }`.
pub(super) fn scope(name: &str, body: impl IntoIterator<Item = Code>) -> Code {
    code(&aml::Scope::new(name.into(), vec![&list(body)]))
}

/// `Method (name, arguments, Serialized) { body }`.
pub(super) fn method(name: &str, arguments: u8, body: impl IntoIterator<Item = Code>) -> Code {
    code(&aml::Method::new(name.into(), arguments, true, vec![&list(body)]))
}

/// `If (condition) { body }`.
pub(super) fn if_then(condition: &dyn Aml, body: impl IntoIterator<Item = Code>) -> Code {
    code(&aml::If::new(condition, vec![&list(body)]))
}

/// `Else { body }`.
pub(super) fn otherwise(body: impl IntoIterator<Item = Code>) -> Code {
    code(&aml::Else::new(vec![&list(body)]))
}

/// `Return (value)`.
pub(super) fn give(value: impl Aml) -> Code {
    code(&aml::Return::new(&value))
}

/// `Store (value, to)`.
pub(super) fn store(value: impl Aml, to: impl Aml) -> Code {
    code(&aml::Store::new(&to, &value))
}

/// A reference to an object.
pub(super) fn path(name: &str) -> Path {
    name.into()
}

/// `Package { elements }`.
pub(super) fn package(elements: impl IntoIterator<Item = Code>) -> aml::PackageBuilder {
    let mut builder = aml::PackageBuilder::new();
    elements.into_iter().for_each(|element| builder.add_element(&element));
    builder
}

/// `Name (_CRS, ResourceTemplate { resources })`, or another name of the kind.
pub(super) fn resources(of: &str, resources: impl IntoIterator<Item = Code>) -> Code {
    name(of, aml::ResourceTemplate::new(vec![&list(resources)]))
}

/// `IO (Decode16, first, first, 1, count)`.
pub(super) fn io(first: u16, count: u8) -> Code {
    code(&aml::IO::new(first, first, 1, count))
}

/// `Memory32Fixed (ReadWrite, base, bytes)`.
pub(super) fn memory32(base: u64, bytes: u64) -> Code {
    code(&aml::Memory32Fixed::new(true, base as u32, bytes as u32))
}

/// `IRQNoFlags () { irq }`: edge-triggered, active high, not shared.
pub(super) fn irq(irq: u32) -> Code {
    let [low, high] = (1u16 << (irq & 15)).to_le_bytes();
    Code(vec![0x22, low, high])
}

/// `DMA (Compatibility, NotBusMaster, Transfer8) { channel }`.
pub(super) fn dma(channel: u8) -> Code {
    Code(vec![0x2a, 1 << (channel & 7), 0])
}

/// `Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { numbers }`.
pub(super) fn level_interrupts(numbers: &[u32]) -> Code {
    const CONSUMER_LEVEL_HIGH_SHARED: u8 = 0b1001;
    let body = (2 + 4 * numbers.len()) as u16;
    let mut bytes = vec![0x89];
    bytes.extend(body.to_le_bytes());
    bytes.extend([CONSUMER_LEVEL_HIGH_SHARED, numbers.len() as u8]);
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    Code(bytes)
}

/// Where [`level_interrupts`] has its first number, in a resource template that begins with it.
pub(super) const INTERRUPT_NUMBER_OFFSET: u8 = 5;
