//! Packets of gdb's protocol, for clients that are no gdb.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// A packet around `body`, with its checksum.
pub fn packet(body: &[u8]) -> Vec<u8> {
    let sum = body.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    [b"$", body, format!("#{sum:02x}").as_bytes()].concat()
}

/// The reply to `body`, without its frame; none if the connection ends.
pub fn ask(stream: &mut UnixStream, body: &[u8]) -> Option<String> {
    stream.write_all(&packet(body)).ok()?;
    reply(stream)
}

/// The next packet that comes.
pub fn reply(stream: &mut UnixStream) -> Option<String> {
    let mut reply = Vec::new();
    let mut byte = [0];
    while !reply.contains(&b'$') || reply.iter().rev().nth(2) != Some(&b'#') {
        match stream.read(&mut byte) {
            Ok(1) => reply.push(byte[0]),
            _ => return None,
        }
    }
    let text = String::from_utf8_lossy(&reply).into_owned();
    let (_, body) = text.split_once('$')?;
    Some(unfolded(body.split('#').next()?))
}

/// `a*X` stands for as many more `a` as X's code is above 29.
fn unfolded(reply: &str) -> String {
    let mut text = String::new();
    let mut rest = reply.chars();
    while let Some(letter) = rest.next() {
        match letter {
            '*' => {
                let last = text.chars().last().unwrap_or_default();
                let more = rest.next().map_or(0, |count| u32::from(count).saturating_sub(29));
                text.extend(std::iter::repeat_n(last, more as usize));
            }
            _ => text.push(letter),
        }
    }
    text
}
