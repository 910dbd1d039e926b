//! Memory of a guest as it is read here.

/// Reads at a linear address into the buffer, and tells how many bytes could be read: it ends where
/// nothing is mapped.
pub type Reader<'a> = dyn FnMut(u64, &mut [u8]) -> usize + 'a;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;

/// Reads what is mapped from `start` on, up to `limit` bytes.
pub(crate) fn read_up(read: &mut Reader<'_>, start: u64, limit: usize) -> Vec<u8> {
    let mut bytes = vec![0; limit];
    let count = read(start, &mut bytes).min(limit);
    bytes.truncate(count);
    bytes
}

/// Reads what is mapped in one piece below `end`, down to `limit` bytes; where it starts, and the
/// bytes.
pub(crate) fn read_down(read: &mut Reader<'_>, end: u64, limit: u64) -> (u64, Vec<u8>) {
    let mut pages = Vec::new();
    let mut start = end;
    while end - start < limit {
        let size = if start.is_multiple_of(PAGE) { PAGE } else { start % PAGE };
        let Some(next) = start.checked_sub(size) else { break };
        let mut page = vec![0; size as usize];
        if read(next, &mut page) < page.len() {
            break;
        }
        pages.push(page);
        start = next;
    }
    pages.reverse();
    (start, pages.concat())
}

/// The little-endian number at `offset`.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The little-endian number at `offset`.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let bytes = bytes.get(offset..offset.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}
