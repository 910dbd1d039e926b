//! Packets as they come, before the `gdbstub` crate sees their ends: what it would answer without
//! end or wrongly is kept away from it, and what it leaves out is read.

/// Bytes of a packet at most, as the client is told; its reply may be as long.
pub(super) const PACKET_BYTES: usize = 16 << 10;
/// Bytes of memory that a reply has room for.
const READ_BYTES_MAX: usize = PACKET_BYTES / 2;
/// Bytes of a frame behind the body: `#` and two digits.
const FRAME_END_BYTES: usize = 3;

/// A piece of what a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A byte outside of packets.
    Loose(u8),
    /// A packet with its frame.
    Packet(Vec<u8>),
    /// A packet that is longer than the client was told.
    TooLong,
}

/// Takes what a client sends apart.
#[derive(Default)]
pub(super) struct Guard {
    /// What there is of the packet that is being received; empty between packets.
    packet: Vec<u8>,
    /// Where its body ends, when that is known.
    end: Option<usize>,
}

impl Guard {
    /// Takes the next byte: the piece that it ends, if it does.
    pub(super) fn take(&mut self, byte: u8) -> Option<Piece> {
        if self.packet.is_empty() && byte != b'$' {
            return Some(Piece::Loose(byte));
        }
        if self.packet.len() == PACKET_BYTES {
            *self = Self::default();
            return Some(Piece::TooLong);
        }
        if byte == b'#' {
            self.end.get_or_insert(self.packet.len());
        }
        self.packet.push(byte);
        let is_whole = self.end.is_some_and(|end| self.packet.len() == end + FRAME_END_BYTES);
        is_whole.then(|| Piece::Packet(std::mem::take(self).packet))
    }
}

/// The body of a packet, if its checksum is right.
pub(super) fn body(packet: &[u8]) -> Option<&[u8]> {
    let (body, end) = packet.split_at_checked(packet.len().checked_sub(FRAME_END_BYTES)?)?;
    let body = body.strip_prefix(b"$")?;
    let digits = std::str::from_utf8(end.strip_prefix(b"#")?).ok()?;
    (u8::from_str_radix(digits, 16) == Ok(sum(body))).then_some(body)
}

/// What is to be done about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict<'a> {
    /// It is handed on.
    Pass,
    /// It must not be answered.
    Refuse,
    /// It sets a breakpoint, with these options, and is handed on.
    Breakpoint(&'a [u8]),
}

/// What is to be done about the packet `body`.
pub(super) fn judge(body: &[u8]) -> Verdict<'_> {
    if let [b'Z', b'0' | b'1', ..] = body {
        let options = body.iter().position(|&byte| byte == b';').unwrap_or(body.len());
        return Verdict::Breakpoint(body.get(options..).unwrap_or_default());
    }
    if is_answerable(body) { Verdict::Pass } else { Verdict::Refuse }
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
const OFFERED: &[u8] = b";ConditionalBreakpoints+;QNonStop+";

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
    framed('$', &body)
}

/// A packet with the text `body`.
pub(super) fn packet(body: &str) -> Vec<u8> {
    framed('$', body)
}

/// A notification with the text `body`.
pub(super) fn notification(body: &str) -> Vec<u8> {
    framed('%', body)
}

fn framed(mark: char, body: &str) -> Vec<u8> {
    format!("{mark}{body}#{:02x}", sum(body.as_bytes())).into_bytes()
}

fn sum(body: &[u8]) -> u8 {
    body.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of `bytes`.
    fn pieces(bytes: &[u8]) -> Vec<Piece> {
        let mut guard = Guard::default();
        bytes.iter().filter_map(|&byte| guard.take(byte)).collect()
    }

    #[test]
    fn packets_are_taken_whole_and_what_is_between_them_by_bytes() {
        let packet = |bytes: &[u8]| Piece::Packet(bytes.to_vec());
        let loose = Piece::Loose;
        assert_eq!(pieces(b"+$g#67-\x03"), [loose(b'+'), packet(b"$g#67"), loose(b'-'), loose(3),]);
        assert_eq!(pieces(b"$$a###$#"), [packet(b"$$a###")]);
        assert_eq!(pieces(b"$#00$m#"), [packet(b"$#00")]);
        let long = [&b"$"[..], &[b'0'; PACKET_BYTES - 4], b"#00"].concat();
        assert_eq!(pieces(&long), [packet(&long)]);
        let longer = [&b"$"[..], &[b'0'; PACKET_BYTES], b"#00"].concat();
        assert_eq!(pieces(&longer)[..1], [Piece::TooLong]);
    }

    #[test]
    fn a_body_has_its_checksum() {
        assert_eq!(body(b"$g#67"), Some(&b"g"[..]));
        assert_eq!(body(b"$#00"), Some(&b""[..]));
        for packet in [&b"$g#68"[..], b"$g#6g", b"$g#+7", b"", b"#00", b"g#67", b"$\xff#\xff\xff"] {
            assert_eq!(body(packet), None, "{packet:?}");
        }
    }

    #[test]
    fn reads_are_as_long_as_a_reply() {
        for packet in [&b"m0,40"[..], b"mffffffffffffffff,2000", b"g"] {
            assert_eq!(judge(packet), Verdict::Pass, "{packet:?}");
        }
        #[rustfmt::skip]
        let refused = [
            &b"m0,2001"[..], b"m0,7fffffffffffffff", b"m0", b"m0,-1", b"m,",
            b"m0,10000000000000000",
        ];
        for packet in refused {
            assert_eq!(judge(packet), Verdict::Refuse, "{packet:?}");
        }
    }

    #[test]
    fn breakpoints_have_their_options_however_long() {
        for options in [&b""[..], b";X3,220127", &b";X3,220127".repeat(1000)] {
            let packet = [b"Z0,1000,1", options].concat();
            assert_eq!(judge(&packet), Verdict::Breakpoint(options));
        }
        assert_eq!(judge(b"Z2,1000,4;X3,220127"), Verdict::Pass);
    }

    #[test]
    fn what_is_offered_is_added_once_and_the_sum_is_right() {
        let reply = complete(b"+$PacketSize=4000;swbreak+#00".to_vec());
        assert_eq!(reply, b"+$PacketSize=4000;swbreak+;ConditionalBreakpoints+;QNonStop+#2d");
        assert_eq!(console_packet("a\n"), b"$O610a#47");
        assert_eq!(complete(b"$OK#9a".to_vec()), b"$OK#9a");
        assert_eq!(complete(b"$PacketSize=".to_vec()), b"$PacketSize=");
    }
}
