//! PAX records: `LENGTH KEY=VALUE\n`, local to one entry or global from there on.

use super::entry::{Segment, Timestamp, Xattr};
use super::error::LayerError;
use super::limits::{SPARSE_SEGMENTS_MAX, XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTRS_MAX};
use super::name::display_name;
use std::collections::BTreeMap;

/// The records that mean something here. An empty value takes an earlier one back, as POSIX has it.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_target: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Timestamp>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of their names and values.
    xattr_bytes: usize,
    pub(super) sparse: SparseRecords,
}

/// `GNU.sparse.*`: versions 0.0 (`pairs`), 0.1 (`pairs` from one record) and 1.0 (`major`; the map stands before the data).
#[derive(Debug, Clone, Default)]
pub(super) struct SparseRecords {
    pub(super) name: Option<Vec<u8>>,
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) real_size: Option<u64>,
    pub(super) pairs: Vec<Segment>,
    pending_offset: Option<u64>,
}

impl Records {
    /// Adds the records of one header. `offset` is where it stands in the stream, for messages.
    pub(super) fn add(&mut self, mut bytes: &[u8], offset: u64) -> Result<(), LayerError> {
        let bad = |reason| LayerError::Pax { offset, reason };
        while !bytes.is_empty() {
            // Some writers pad with NULs instead of ending with the last record.
            if bytes.iter().all(|byte| *byte == 0) {
                break;
            }
            let space = bytes.iter().position(|byte| *byte == b' ').ok_or(bad("a record has no length"))?;
            let (digits, _) = bytes.split_at_checked(space).ok_or(bad("a record has no length"))?;
            let length = decimal(digits).and_then(|length| usize::try_from(length).ok());
            let length = length.ok_or(bad("a record's length is no number"))?;
            let (record, rest) = bytes.split_at_checked(length).ok_or(bad("a record is longer than the header"))?;
            let body = record.get(space.saturating_add(1)..).ok_or(bad("a record is shorter than its own length"))?;
            let body = body.strip_suffix(b"\n").ok_or(bad("a record does not end with a newline"))?;
            let equals = body.iter().position(|byte| *byte == b'=').ok_or(bad("a record has no value"))?;
            let (key, value) = body.split_at_checked(equals).ok_or(bad("a record has no value"))?;
            self.set(key, value.get(1..).unwrap_or(&[]), &bad)?;
            bytes = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], bad: &impl Fn(&'static str) -> LayerError) -> Result<(), LayerError> {
        let some = (!value.is_empty()).then_some(value);
        let number = |reason| some.map(|digits| decimal(digits).ok_or_else(|| bad(reason))).transpose();
        match key {
            b"path" => self.path = some.map(<[u8]>::to_vec),
            b"linkpath" => self.link_target = some.map(<[u8]>::to_vec),
            b"size" => self.size = number("size is no number")?,
            b"uid" => self.uid = number("uid is no number")?.map(saturating_signed),
            b"gid" => self.gid = number("gid is no number")?.map(saturating_signed),
            b"mtime" => {
                self.mtime = some.map(|text| timestamp(text).ok_or_else(|| bad("mtime is no time"))).transpose()?
            }
            b"GNU.sparse.name" => self.sparse.name = some.map(<[u8]>::to_vec),
            b"GNU.sparse.major" => self.sparse.major = number("GNU.sparse.major is no number")?,
            b"GNU.sparse.minor" => self.sparse.minor = number("GNU.sparse.minor is no number")?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = number("GNU.sparse.realsize is no number")?;
            }
            b"GNU.sparse.offset" => self.sparse.pending_offset = number("GNU.sparse.offset is no number")?,
            b"GNU.sparse.numbytes" => {
                let length = number("GNU.sparse.numbytes is no number")?;
                let pair = self.sparse.pending_offset.take().zip(length);
                let (offset, length) = pair.ok_or_else(|| bad("GNU.sparse.numbytes stands without an offset"))?;
                self.sparse.push(Segment { offset, length }, bad)?;
            }
            b"GNU.sparse.map" => self.sparse.set_map(value, bad)?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name, value, bad)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(
        &mut self,
        name: &[u8],
        value: &[u8],
        bad: &impl Fn(&'static str) -> LayerError,
    ) -> Result<(), LayerError> {
        if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX || name.contains(&0) {
            return Err(bad("the name of an extended attribute is empty, too long or holds a NUL byte"));
        }
        let added = name.len().saturating_add(value.len());
        self.xattr_bytes = self.xattr_bytes.saturating_add(added);
        // What is kept is bounded here, also over many global headers; what one entry has is judged by its name later.
        if self.xattr_bytes > XATTR_BYTES_MAX.saturating_mul(2) {
            return Err(bad("its extended attributes are too large"));
        }
        if let Some(before) = self.xattrs.insert(name.to_vec(), value.to_vec()) {
            self.xattr_bytes = self.xattr_bytes.saturating_sub(name.len()).saturating_sub(before.len());
        }
        if self.xattrs.len() > XATTRS_MAX {
            return Err(bad("there are too many extended attributes"));
        }
        Ok(())
    }

    /// What `local` says, and what `self` says where it is silent. A sparse map is never global.
    pub(super) fn overlaid(&self, local: Records) -> Records {
        let mut xattrs = self.xattrs.clone();
        xattrs.extend(local.xattrs);
        Records {
            path: local.path.or_else(|| self.path.clone()),
            link_target: local.link_target.or_else(|| self.link_target.clone()),
            size: local.size.or(self.size),
            uid: local.uid.or(self.uid),
            gid: local.gid.or(self.gid),
            mtime: local.mtime.or(self.mtime),
            xattrs,
            xattr_bytes: self.xattr_bytes.saturating_add(local.xattr_bytes),
            sparse: local.sparse,
        }
    }

    /// The extended attributes of `entry`, in order of name.
    pub(super) fn take_xattrs(&mut self, entry: &[u8]) -> Result<Vec<Xattr>, LayerError> {
        let xattrs = std::mem::take(&mut self.xattrs);
        let bytes: usize = xattrs
            .iter()
            .fold(0, |sum: usize, (name, value)| sum.saturating_add(name.len()).saturating_add(value.len()));
        if bytes > XATTR_BYTES_MAX {
            return Err(LayerError::TooLarge {
                entry: display_name(entry),
                what: "the size of its extended attributes",
                value: bytes as u64,
                limit: XATTR_BYTES_MAX as u64,
            });
        }
        Ok(xattrs.into_iter().map(|(name, value)| Xattr { name, value }).collect())
    }
}

impl SparseRecords {
    fn push(&mut self, segment: Segment, bad: &impl Fn(&'static str) -> LayerError) -> Result<(), LayerError> {
        if self.pairs.len() >= SPARSE_SEGMENTS_MAX {
            return Err(bad("a sparse map has too many segments"));
        }
        self.pairs.push(segment);
        Ok(())
    }

    fn set_map(&mut self, value: &[u8], bad: &impl Fn(&'static str) -> LayerError) -> Result<(), LayerError> {
        self.pairs.clear();
        if value.is_empty() {
            return Ok(());
        }
        let mut numbers = value.split(|byte| *byte == b',').map(decimal);
        while let Some(offset) = numbers.next() {
            let pair = offset.zip(numbers.next().flatten());
            let (offset, length) = pair.ok_or_else(|| bad("GNU.sparse.map is no list of pairs"))?;
            self.push(Segment { offset, length }, bad)?;
        }
        Ok(())
    }
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut value = 0u64;
    for digit in digits {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit.wrapping_sub(b'0')))?;
        value = value.checked_mul(10)?.checked_add(digit)?;
    }
    Some(value)
}

fn saturating_signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// `[-]SECONDS[.FRACTION]`; digits beyond nanoseconds are cut off, towards the past for times before 1970 as elsewhere.
fn timestamp(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (text.get(..dot)?, text.get(dot.checked_add(1)?..)?),
        None => (text, &[][..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let mut nanoseconds = 0u32;
    for at in 0..9 {
        let digit = fraction.get(at).copied().unwrap_or(b'0');
        nanoseconds = nanoseconds
            .checked_mul(10)?
            .checked_add(u32::from(digit.is_ascii_digit().then(|| digit.wrapping_sub(b'0'))?))?;
    }
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    if !negative {
        return Some(Timestamp { seconds, nanoseconds });
    }
    match nanoseconds {
        0 => Some(Timestamp { seconds: seconds.checked_neg()?, nanoseconds: 0 }),
        _ => Some(Timestamp {
            seconds: seconds.checked_neg()?.checked_sub(1)?,
            nanoseconds: 1_000_000_000u32.checked_sub(nanoseconds)?,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_1970() {
        let at = |text: &str| timestamp(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
        assert_eq!(at("1700000000.123456789"), Some((1_700_000_000, 123_456_789)));
        assert_eq!(at("1.5"), Some((1, 500_000_000)));
        assert_eq!(at("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(at("-3"), Some((-3, 0)));
        assert_eq!(at("1.0000000019"), Some((1, 1)));
        assert_eq!(at("1.x"), None);
        assert_eq!(at(""), None);
    }

    #[test]
    fn values_may_hold_anything() {
        let mut records = Records::default();
        records.add(b"33 SCHILY.xattr.user.a=x\ny=z\0 end\n", 0).expect_err("wrong length");
        let mut records = Records::default();
        records.add(b"34 SCHILY.xattr.user.a=x\ny=z\0 end\n11 path=a\xff\n", 0).expect("valid");
        assert_eq!(records.path.as_deref(), Some(&b"a\xff"[..]));
        let xattrs = records.take_xattrs(b"x").expect("small");
        assert_eq!(xattrs, vec![Xattr { name: b"user.a".to_vec(), value: b"x\ny=z\0 end".to_vec() }]);
    }
}
