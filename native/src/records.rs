//! Records of an uncompressed Kafka record batch of format 2.

/// Return whether `data` is exactly `count` complete records with offset deltas 0 to `count` - 1.
pub fn are_complete(data: &[u8], count: u32) -> bool {
    let mut rest = Rest(data);
    (0..count).all(|number| rest.record(number).is_some()) && rest.0.is_empty()
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn record(&mut self, number: u32) -> Option<()> {
        let length = self.varint()?;
        let mut record = Rest(self.take(usize::try_from(length).ok()?)?);
        record.take(1)?; // attributes, unused
        record.varlong()?; // timestamp delta
        if i64::from(record.varint()?) != i64::from(number) {
            return None;
        }
        record.nullable()?; // key
        record.nullable()?; // value
        let headers = u32::try_from(record.varint()?).ok()?;
        for _ in 0..headers {
            let name = record.varint()?;
            record.take(usize::try_from(name).ok()?)?;
            record.nullable()?;
        }
        record.0.is_empty().then_some(())
    }

    /// Skip bytes after their length; the length -1 is a null.
    fn nullable(&mut self) -> Option<()> {
        let length = self.varint()?;
        if length != -1 {
            self.take(usize::try_from(length).ok()?)?;
        }
        Some(())
    }

    fn take(&mut self, size: usize) -> Option<&'a [u8]> {
        if size > self.0.len() {
            return None;
        }
        let (taken, rest) = self.0.split_at(size);
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<i32> {
        i32::try_from(self.varlong()?).ok()
    }

    /// Read a zigzag-encoded number.
    fn varlong(&mut self) -> Option<i64> {
        let mut value = 0u64;
        for (at, &byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                if at == 9 && byte > 1 {
                    return None;
                }
                self.0 = &self.0[at + 1..];
                return Some((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::are_complete;

    /// Offset delta 0, no key, value "x", no headers.
    const RECORD: &[u8] = &[14, 0, 0, 0, 1, 2, b'x', 0];

    #[test]
    fn whole_records_are_complete() {
        assert!(are_complete(b"", 0));
        assert!(are_complete(RECORD, 1));
        let second = [14, 0, 0, 2, 1, 2, b'y', 0];
        assert!(are_complete(&[RECORD, &second].concat(), 2));
    }

    #[test]
    fn other_counts_and_offsets_are_not() {
        assert!(!are_complete(RECORD, 0));
        assert!(!are_complete(RECORD, 2));
        assert!(!are_complete(RECORD, u32::MAX));
        assert!(!are_complete(&[RECORD, RECORD].concat(), 2));
        for cut in 0..RECORD.len() {
            assert!(!are_complete(&RECORD[..cut], 1));
        }
        assert!(!are_complete(&[0xff; 40], 1));
    }
}
