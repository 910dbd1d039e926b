//! Packets as they come, before the `gdbstub` crate sees their ends: what it would answer without
//! end or wrongly is kept away from it, and what it leaves out is read.

/// Bytes of a packet at most, as the client is told; its reply may be as long.
pub(super) const PACKET_BYTES: usize = 16 << 10;
/// Bytes of memory that a reply has room for.
const READ_BYTES_MAX: usize = PACKET_BYTES / 2;
/// Enough of a packet to see all of a read: `m`, an address, a comma, a length.
const HEAD_BYTES: usize = 64;

/// What is to be done about a byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is handed on.
    Pass,
    /// The packet that it ends must not be answered.
    Refuse,
    /// It ends a packet that sets a breakpoint, with these options.
    Breakpoint(Vec<u8>),
}

/// Looks at packets byte by byte.
#[derive(Default)]
pub(super) struct Guard {
    /// The first bytes of the packet that is being received, if one is.
    head: Option<Vec<u8>>,
}

impl Guard {
    /// Takes the next byte.
    pub(super) fn take(&mut self, byte: u8) -> Verdict {
        match (&mut self.head, byte) {
            (None, b'$') => self.head = Some(Vec::with_capacity(HEAD_BYTES)),
            (Some(_), b'#') => {
                return self.head.take().map_or(Verdict::Pass, |head| judge(&head));
            }
            (Some(head), _) if head.len() < limit(head) => head.push(byte),
            _ => {}
        }
        Verdict::Pass
    }
}

/// How much of a packet that begins so is kept.
fn limit(head: &[u8]) -> usize {
    if is_breakpoint(head) { PACKET_BYTES } else { HEAD_BYTES }
}

fn is_breakpoint(packet: &[u8]) -> bool {
    matches!(packet, [b'Z', b'0' | b'1', ..])
}

fn judge(packet: &[u8]) -> Verdict {
    if is_breakpoint(packet) {
        let options = packet.iter().position(|&byte| byte == b';').unwrap_or(packet.len());
        return Verdict::Breakpoint(packet.get(options..).unwrap_or_default().to_vec());
    }
    if is_answerable(packet) { Verdict::Pass } else { Verdict::Refuse }
}

fn is_answerable(packet: &[u8]) -> bool {
    let Some(read) = packet.strip_prefix(b"m") else { return true };
    let length = read.split(|&byte| byte == b',').nth(1).and_then(|digits| {
        let digits = std::str::from_utf8(digits).ok()?;
        usize::from_str_radix(digits, 16).ok()
    });
    length.is_some_and(|length| length <= READ_BYTES_MAX)
}

/// What the machine offers beyond what the `gdbstub` crate does.
const OFFERED: &[u8] = b";ConditionalBreakpoints+";

/// Adds to a reply what is offered, if it is the one that says so.
pub(super) fn complete(reply: Vec<u8>) -> Vec<u8> {
    const HEAD: &[u8] = b"$PacketSize=";
    let start = reply.windows(HEAD.len()).position(|bytes| bytes == HEAD);
    let end = reply.iter().rposition(|&byte| byte == b'#');
    let (Some(start), Some(end)) = (start, end) else { return reply };
    let Some(body) = reply.get(start + 1..end) else { return reply };
    let body = [body, OFFERED].concat();
    let before = reply.get(..=start).unwrap_or_default();
    [before, &body, format!("#{:02x}", sum(&body)).as_bytes()].concat()
}

/// A packet that has the client print `text` on its console.
pub(super) fn console_packet(text: &str) -> Vec<u8> {
    let digits = text.bytes().map(|byte| format!("{byte:02x}"));
    let body: String = std::iter::once("O".to_owned()).chain(digits).collect();
    format!("${body}#{:02x}", sum(body.as_bytes())).into_bytes()
}

fn sum(body: &[u8]) -> u8 {
    body.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the last byte of `packet` leads to.
    fn verdict(packet: &[u8]) -> Verdict {
        let mut guard = Guard::default();
        let verdicts = packet.iter().map(|&byte| guard.take(byte));
        verdicts.filter(|verdict| *verdict != Verdict::Pass).last().unwrap_or(Verdict::Pass)
    }

    #[test]
    fn reads_are_as_long_as_a_reply() {
        for packet in [&b"$m0,40#fd"[..], b"$mffffffffffffffff,2000#00", b"$g#67", b"+", b"\x03"] {
            assert_eq!(verdict(packet), Verdict::Pass, "{packet:?}");
        }
        #[rustfmt::skip]
        let refused = [
            &b"$m0,2001#00"[..], b"$m0,7fffffffffffffff#00", b"$m0#00", b"$m0,-1#00", b"$m,#00",
            b"+$m0,10000000000000000#00",
            b"$m0000000000000000000000000000000000000000000000000000000000000000000,1#00",
        ];
        for packet in refused {
            assert_eq!(verdict(packet), Verdict::Refuse, "{packet:?}");
        }
    }

    #[test]
    fn breakpoints_have_their_options_however_long() {
        let with = |options: &[u8]| verdict(&[b"$Z0,1000,1", options, b"#00"].concat());
        for options in [&b""[..], b";X3,220127", &b";X3,220127".repeat(1000)] {
            assert_eq!(with(options), Verdict::Breakpoint(options.to_vec()));
        }
        let Verdict::Breakpoint(cut) = with(&[&b";"[..], &[b'0'; 100_000]].concat()) else {
            panic!("a breakpoint")
        };
        assert!(cut.len() <= PACKET_BYTES);
        assert_eq!(verdict(b"$Z2,1000,4;X3,220127#00"), Verdict::Pass);
    }

    #[test]
    fn what_is_offered_is_added_once_and_the_sum_is_right() {
        let reply = complete(b"+$PacketSize=4000;swbreak+#00".to_vec());
        assert_eq!(reply, b"+$PacketSize=4000;swbreak+;ConditionalBreakpoints+#a5");
        assert_eq!(console_packet("a\n"), b"$O610a#47");
        assert_eq!(complete(b"$OK#9a".to_vec()), b"$OK#9a");
        assert_eq!(complete(b"$PacketSize=".to_vec()), b"$PacketSize=");
    }
}
