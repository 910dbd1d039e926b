//! Commands on ports: the only ones that touch devices, as the guest's own accesses would.

use memory::Width;

use super::{Answer, Call, Command, reply, word};
use crate::debug::parse::{self, Style};

pub(super) const COMMANDS: &[Command] = &[
    Command::new("i", &[], "[/b|/h|/w] PORT", "read a port; the device takes it as it is", input),
    Command::new("o", &[], "[/b|/h|/w] PORT VALUE", "write a port", output),
];

/// The width that the format asks for: a byte without one.
fn width(name: &str, format: &str) -> Result<Width, String> {
    let refused = || format!("{name}/{format}: take /b, /h or /w");
    if format.is_empty() {
        return Ok(Width::Byte);
    }
    let layout = parse::layout(format)?;
    let is_plain = layout.count == 1 && layout.style == Style::Hexadecimal;
    let width = Width::from_bytes(layout.size).filter(|width| *width <= Width::Dword);
    width.filter(|_| is_plain).ok_or_else(refused)
}

fn port(text: &str) -> Result<u16, String> {
    let port = parse::number(text).and_then(|port| u16::try_from(port).ok());
    port.ok_or_else(|| format!("{text}: ports are 0 to 0xffff"))
}

fn input(call: &mut Call<'_>) -> Answer {
    let width = width("i", call.format)?;
    let port = port(call.arguments)?;
    let value = call.machine.board().pc.ports().read(port, width);
    let digits = 2 + 2 * width.bytes() as usize;
    reply(format!("port {port:#06x} is {value:#0digits$x}\n"))
}

fn output(call: &mut Call<'_>) -> Answer {
    let width = width("o", call.format)?;
    let (at, value) = word(call.arguments);
    let port = port(at)?;
    let value = parse::number(value).filter(|value| *value <= width.mask());
    let value = value.ok_or_else(|| "o: the value does not fit the width".to_owned())?;
    call.machine.board().pc.ports().write(port, width, value as u32);
    reply("")
}
