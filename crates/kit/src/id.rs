//! Random ids: sandbox ids and Kubernetes UIDs.

use std::io;

/// Fills a buffer with random bytes from the kernel.
fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0_u8; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// Sixteen lowercase hexadecimal characters: 64 random bits.
pub fn short() -> io::Result<String> {
    Ok(format!("{:016x}", u64::from_ne_bytes(random_bytes()?)))
}

/// A random UUID (RFC 9562, version 4), as Kubernetes gives its objects.
pub fn uuid() -> io::Result<String> {
    let bits = u128::from_ne_bytes(random_bytes()?);
    let versioned = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{versioned:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    Ok(format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_have_their_shape() -> std::io::Result<()> {
        let short = super::short()?;
        assert!(short.len() == 16 && short.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let uuid = super::uuid()?;
        assert_eq!(uuid.len(), 36);
        assert_eq!(uuid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uuid.as_bytes()[19]));
        assert_ne!(super::uuid()?, uuid);
        Ok(())
    }
}
