//! The ELF kernel inside a bzImage.
//!
//! Format: Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header". The payload is
//! compressed with what the kernel was configured for: Debian takes LZ4 for its cloud kernel and
//! XZ for the general one.

use std::io::Read;

use anyhow::{Context, Result, anyhow, bail};

/// Sectors of the real-mode part after the boot sector, one byte; 0 stands for 4.
const SETUP_SECTS: usize = 0x1f1;
/// `HdrS`.
const HEADER: usize = 0x202;
/// Offset of the payload from the protected-mode part, u32.
const PAYLOAD_OFFSET: usize = 0x248;
/// Size of the payload in bytes, u32.
const PAYLOAD_LENGTH: usize = 0x24c;

const LZ4_LEGACY_MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const XZ_MAGIC: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
/// A chunk of LZ4's legacy frame holds at most this many bytes.
const LZ4_CHUNK: usize = 8 << 20;

/// Returns the ELF file that the image unpacks when it starts.
pub fn kernel(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image)?;
    let elf = if payload.starts_with(LZ4_LEGACY_MAGIC) {
        unpack_lz4_legacy(&payload[LZ4_LEGACY_MAGIC.len()..])?
    } else if payload.starts_with(XZ_MAGIC) {
        unpack_xz(payload)?
    } else {
        bail!("the payload is neither LZ4 nor XZ");
    };
    if !elf.starts_with(b"\x7fELF") {
        bail!("the payload holds no ELF file");
    }
    Ok(elf)
}

fn payload(image: &[u8]) -> Result<&[u8]> {
    if image.get(HEADER..HEADER + 4) != Some(b"HdrS") {
        bail!("not a bzImage");
    }
    let setup_sects = match image.get(SETUP_SECTS) {
        None | Some(0) => 4,
        Some(&count) => usize::from(count),
    };
    let start = (setup_sects + 1) * 512 + read_u32(image, PAYLOAD_OFFSET)?;
    let length = read_u32(image, PAYLOAD_LENGTH)?;
    image.get(start..start + length).context("the payload ends after the image")
}

/// Legacy frame: chunks of a u32 size and an LZ4 block. The kernel's build appends the unpacked
/// size, so the last four bytes are no chunk.
fn unpack_lz4_legacy(mut data: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    while data.len() > 4 {
        let size = read_u32(data, 0)?;
        let block = data.get(4..4 + size).context("an LZ4 chunk ends after the payload")?;
        let chunk =
            lz4_flex::block::decompress(block, LZ4_CHUNK).map_err(|error| anyhow!(error))?;
        out.extend_from_slice(&chunk);
        data = &data[4 + size..];
    }
    Ok(out)
}

/// The kernel's build filters the ELF file with BCJ before LZMA2 and appends the unpacked size.
fn unpack_xz(data: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let single_stream = false;
    lzma_rust2::XzReader::new(data, single_stream).read_to_end(&mut out).context("bad XZ data")?;
    Ok(out)
}

fn read_u32(bytes: &[u8], offset: usize) -> Result<usize> {
    let field = bytes.get(offset..offset + 4).and_then(|field| <[u8; 4]>::try_from(field).ok());
    let value = u32::from_le_bytes(field.context("the image is cut off")?);
    Ok(usize::try_from(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image whose payload is one legacy LZ4 chunk that holds `contents` as literals.
    fn image(contents: &[u8]) -> Vec<u8> {
        assert!(contents.len() < 15, "longer literals need length bytes");
        let mut image = vec![0; 5 * 512];
        image[HEADER..HEADER + 4].copy_from_slice(b"HdrS");
        let mut payload = LZ4_LEGACY_MAGIC.to_vec();
        payload.extend_from_slice(&u32::try_from(contents.len() + 1).unwrap().to_le_bytes());
        payload.push(u8::try_from(contents.len() << 4).unwrap());
        payload.extend_from_slice(contents);
        payload.extend_from_slice(&u32::try_from(contents.len()).unwrap().to_le_bytes());
        image[PAYLOAD_LENGTH..][..4]
            .copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(&payload);
        image
    }

    #[test]
    fn an_lz4_payload_is_unpacked() {
        assert_eq!(kernel(&image(b"\x7fELF and more")).unwrap(), b"\x7fELF and more");
    }

    #[test]
    fn every_truncation_is_an_error_and_no_panic() {
        let whole = image(b"\x7fELF and more");
        for length in 0..whole.len() {
            assert!(kernel(&whole[..length]).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(kernel(&image(b"no kernel")).is_err());
    }
}
