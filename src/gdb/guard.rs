//! What no client of good faith sends, and `gdbstub` would answer without end or wrongly: reads of
//! memory longer than a reply may be.

/// Bytes of a packet at most, as the client is told; its reply may be as long.
pub(super) const PACKET_BYTES: usize = 16 << 10;
/// Bytes of memory that a reply has room for.
const READ_BYTES_MAX: usize = PACKET_BYTES / 2;
/// Enough of a packet to see all of a read: `m`, an address, a comma, a length.
const HEAD_BYTES: usize = 64;

/// Looks at packets as they come, byte by byte.
#[derive(Default)]
pub(super) struct Guard {
    /// The first bytes of the packet that is being received, if one is.
    head: Option<Vec<u8>>,
}

impl Guard {
    /// Takes the next byte. False if the packet that it completes must not be answered.
    pub(super) fn take(&mut self, byte: u8) -> bool {
        match (&mut self.head, byte) {
            (None, b'$') => self.head = Some(Vec::with_capacity(HEAD_BYTES)),
            (Some(_), b'#') => {
                return self.head.take().is_none_or(|head| is_answerable(&head));
            }
            (Some(head), _) if head.len() < HEAD_BYTES => head.push(byte),
            _ => {}
        }
        true
    }
}

fn is_answerable(packet: &[u8]) -> bool {
    let Some(read) = packet.strip_prefix(b"m") else { return true };
    let length = read.split(|&byte| byte == b',').nth(1).and_then(|digits| {
        let digits = std::str::from_utf8(digits).ok()?;
        usize::from_str_radix(digits, 16).ok()
    });
    length.is_some_and(|length| length <= READ_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_as_long_as_a_reply() {
        let passes = |packet: &[u8]| {
            let mut guard = Guard::default();
            packet.iter().all(|&byte| guard.take(byte))
        };
        for packet in [&b"$m0,40#fd"[..], b"$mffffffffffffffff,2000#00", b"$g#67", b"+", b"\x03"] {
            assert!(passes(packet), "{packet:?}");
        }
        #[rustfmt::skip]
        let refused = [
            &b"$m0,2001#00"[..], b"$m0,7fffffffffffffff#00", b"$m0#00", b"$m0,-1#00", b"$m,#00",
            b"+$m0,10000000000000000#00",
            b"$m0000000000000000000000000000000000000000000000000000000000000000000,1#00",
        ];
        for packet in refused {
            assert!(!passes(packet), "{packet:?}");
        }
    }
}
