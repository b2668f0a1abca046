//! Conversion of JSON objects to encoded messages.
#![forbid(unsafe_code)]

use crate::schema::{put_varint, zigzag, Field, Kind, Label, Message, Schema};
use crate::Undecided;

/// Values of this size or larger are infinite in a `float` field: 2**128 - 2**103.
const FLOAT_LIMIT: f64 = 3.4028235677973366e38;
const MAX_DEPTH: usize = 50;
/// Deeper values are left to the parser in Python, which has a limit of its own.
const MAX_SKIPPED_DEPTH: usize = 500;
/// Numbers of so many digits fit into 64 bits.
const MAX_DIGITS: usize = 19;
const NO_FIELD: usize = usize::MAX;

/// Converter of the records of one body, with buffers that are used again.
#[derive(Default)]
pub struct Converter {
    /// Fields of the messages being converted: index in the message, start in the output.
    segments: Vec<(usize, usize)>,
    /// Encoded entries of the map being converted.
    entries: Vec<u8>,
    reordered: Vec<u8>,
    unescaped: Vec<u8>,
}

/// What was seen of the event while it was converted.
struct Seen {
    key: (usize, usize),
    present: u64,
}

impl Converter {
    /// Append the message of the object at `at` to `out`; return the place of its key in `out`.
    ///
    /// `at` is then behind the object. On failure `out` is as before.
    pub fn event(
        &mut self,
        schema: &Schema,
        json: &[u8],
        at: &mut usize,
        latest_ns: i64,
        out: &mut Vec<u8>,
    ) -> Result<(usize, usize), Undecided> {
        let start = out.len();
        let mut work = Work {
            schema,
            rest: &json[*at..],
            latest_ns,
            buffers: self,
        };
        let mut seen = Seen {
            key: (0, 0),
            present: 0,
        };
        let found = work.message(0, 0, out, Some(&mut seen));
        let end = json.len() - work.rest.len();
        let key_size = seen.key.1 - seen.key.0;
        if found.is_err()
            || seen.present & schema.required != schema.required
            || key_size == 0
            || key_size + out.len() - start > schema.max_record_bytes
        {
            self.segments.clear();
            out.truncate(start);
            return Err(Undecided);
        }
        *at = end;
        Ok(seen.key)
    }
}

struct Work<'a> {
    schema: &'a Schema,
    /// What was not read yet.
    rest: &'a [u8],
    latest_ns: i64,
    buffers: &'a mut Converter,
}

impl<'a> Work<'a> {
    fn message(
        &mut self,
        of: usize,
        depth: usize,
        out: &mut Vec<u8>,
        mut seen: Option<&mut Seen>,
    ) -> Result<(), Undecided> {
        if depth > MAX_DEPTH {
            return Err(Undecided);
        }
        let message = &self.schema.messages[of];
        let (first_segment, start) = (self.buffers.segments.len(), out.len());
        let (mut given, mut last, mut ordered) = (0_u64, NO_FIELD, true);
        self.expect(b'{')?;
        if !self.next_is(b'}') {
            loop {
                let index = self.member(message, last.wrapping_add(1))?;
                if given >> index & 1 != 0 {
                    return Err(Undecided); // given twice
                }
                given |= 1 << index;
                ordered &= last == NO_FIELD || index > last;
                last = index;
                self.buffers.segments.push((index, out.len()));
                self.field(&message.fields[index], index, depth, out, &mut seen)?;
                if !self.comma() {
                    break;
                }
            }
            self.expect(b'}')?;
        }
        if !ordered {
            self.reorder(first_segment, start, out, seen);
        }
        self.buffers.segments.truncate(first_segment);
        Ok(())
    }

    /// Put the fields from `start` on into the order of their numbers.
    fn reorder(&mut self, first: usize, start: usize, out: &mut Vec<u8>, seen: Option<&mut Seen>) {
        let Converter {
            segments,
            reordered,
            ..
        } = &mut *self.buffers;
        let ends = segments[first..].iter().skip(1).map(|segment| segment.1);
        let mut parts: Vec<(usize, usize, usize)> = segments[first..]
            .iter()
            .zip(ends.chain([out.len()]))
            .map(|(&(index, from), to)| (index, from, to))
            .collect();
        parts.sort_unstable();
        reordered.clear();
        let mut key = None;
        for &(index, from, to) in &parts {
            if index == self.schema.key {
                key = Some((from, start + reordered.len()));
            }
            reordered.extend_from_slice(&out[from..to]);
        }
        out.truncate(start);
        out.extend_from_slice(reordered);
        if let (Some(seen), Some((from, to))) = (seen, key) {
            if seen.key.1 > 0 {
                seen.key = (seen.key.0 - from + to, seen.key.1 - from + to);
            }
        }
    }

    /// Read a member's name and colon; return the index of its field, `likely` if it is that one.
    fn member(&mut self, message: &Message, likely: usize) -> Result<usize, Undecided> {
        let fields = &message.fields;
        for (index, field) in fields.iter().enumerate().skip(likely) {
            if let Some(rest) = field.after(self.rest) {
                self.rest = rest;
                self.skip_space();
                return Ok(index);
            }
        }
        self.expect(b'"')?;
        let size = memchr::memchr(b'"', self.rest).ok_or(Undecided)?;
        let name = &self.rest[..size];
        self.rest = &self.rest[size + 1..];
        self.skip_space();
        self.expect(b':')?;
        self.skip_space();
        fields
            .iter()
            .position(|field| field.name == name)
            .or_else(|| fields.iter().position(|f| f.camel_case_name == name))
            .ok_or(Undecided)
    }

    fn field(
        &mut self,
        field: &'a Field,
        index: usize,
        depth: usize,
        out: &mut Vec<u8>,
        seen: &mut Option<&mut Seen>,
    ) -> Result<(), Undecided> {
        if self.peek() == Some(b'n') {
            return self.literal(b"null");
        }
        match field.label {
            Label::Repeated => self.list(field, depth, out),
            Label::Map => self.map(field, depth, out),
            Label::Single => {
                let start = out.len();
                field.put_tag(out);
                let value = out.len();
                let present = self.single(field.kind, depth, out)?;
                if !present {
                    out.truncate(start);
                } else if let Some(seen) = seen {
                    seen.present |= 1 << index;
                    if index == self.schema.key {
                        let size = varint_size(&out[value..]);
                        seen.key = (value + size, out.len());
                    }
                    if self.schema.times >> index & 1 != 0 {
                        self.check_time(&out[value..])?;
                    }
                }
                Ok(())
            }
        }
    }

    fn check_time(&self, encoded: &[u8]) -> Result<(), Undecided> {
        let mut value = 0;
        for (place, byte) in encoded.iter().enumerate() {
            value |= u64::from(byte & 0x7F) << (7 * place);
        }
        let time_ns = crate::schema::unzigzag(value);
        if time_ns < self.schema.earliest_ns || time_ns > self.latest_ns {
            return Err(Undecided);
        }
        Ok(())
    }

    /// Append one value without its tag; return whether it differs from its default.
    fn single(&mut self, kind: Kind, depth: usize, out: &mut Vec<u8>) -> Result<bool, Undecided> {
        match kind {
            Kind::Text => self.text(out),
            Kind::Double => {
                let value = self.number()?;
                out.extend_from_slice(&value.to_le_bytes());
                Ok(value.to_bits() != 0)
            }
            Kind::Float => {
                let value = self.float()?;
                out.extend_from_slice(&value.to_le_bytes());
                Ok(value.to_bits() != 0)
            }
            Kind::Bool => {
                let value = self.peek() == Some(b't');
                self.literal(if value { b"true" } else { b"false" })?;
                out.push(u8::from(value));
                Ok(value)
            }
            Kind::Message(inner) => {
                self.sized(out, |work, out| work.message(inner, depth + 1, out, None))?;
                Ok(true)
            }
            _ => {
                let value = self.integer(kind)?;
                put_varint(out, value);
                Ok(value != 0)
            }
        }
    }

    fn list(&mut self, field: &'a Field, depth: usize, out: &mut Vec<u8>) -> Result<(), Undecided> {
        self.expect(b'[')?;
        if self.next_is(b']') {
            return Ok(());
        }
        match field.kind {
            Kind::Text | Kind::Message(_) => loop {
                field.put_tag(out);
                self.single(field.kind, depth, out)?;
                if !self.comma() {
                    break;
                }
            },
            _ => {
                field.put_tag(out);
                self.sized(out, |work, out| loop {
                    work.single(field.kind, depth, out)?;
                    if !work.comma() {
                        return Ok(());
                    }
                })?;
            }
        }
        self.expect(b']')
    }

    /// Append the entries in the order of their keys, as Protobuf's deterministic encoding has them.
    fn map(&mut self, field: &'a Field, depth: usize, out: &mut Vec<u8>) -> Result<(), Undecided> {
        let (key, value) = match field.kind {
            Kind::Message(entry) => match self.schema.messages[entry].fields.as_slice() {
                [key, value] if key.kind == Kind::Text => (key, value),
                _ => return Err(Undecided),
            },
            _ => return Err(Undecided),
        };
        self.expect(b'{')?;
        if self.next_is(b'}') {
            return Ok(());
        }
        let mut encoded = std::mem::take(&mut self.buffers.entries);
        encoded.clear();
        let mut entries = Vec::new();
        loop {
            let start = encoded.len();
            key.put_tag(&mut encoded);
            let text = encoded.len();
            self.text(&mut encoded)?;
            let key_start = text + varint_size(&encoded[text..]);
            let key_end = encoded.len();
            self.skip_space();
            self.expect(b':')?;
            self.skip_space();
            value.put_tag(&mut encoded);
            self.single(value.kind, depth, &mut encoded)?;
            entries.push(Entry {
                whole: (start, encoded.len()),
                key: (key_start, key_end),
            });
            if !self.comma() {
                break;
            }
        }
        self.expect(b'}')?;
        entries
            .sort_unstable_by(|one, other| key_order(one.key_in(&encoded), other.key_in(&encoded)));
        let twice = entries
            .windows(2)
            .any(|pair| pair[0].key_in(&encoded) == pair[1].key_in(&encoded));
        for Entry { whole, .. } in &entries {
            field.put_tag(out);
            put_varint(out, (whole.1 - whole.0) as u64);
            out.extend_from_slice(&encoded[whole.0..whole.1]);
        }
        self.buffers.entries = encoded;
        if twice {
            Err(Undecided)
        } else {
            Ok(())
        }
    }

    /// Append what `write` appends behind its size.
    fn sized(
        &mut self,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut Self, &mut Vec<u8>) -> Result<(), Undecided>,
    ) -> Result<(), Undecided> {
        let at = out.len();
        out.push(0);
        write(self, out)?;
        let mut size = out.len() - at - 1;
        if size >= 0x80 {
            // The place left was for a size of one byte.
            let (end, more) = (out.len(), varint_length(size) - 1);
            out.resize(end + more, 0);
            out.copy_within(at + 1..end, at + 1 + more);
            for byte in &mut out[at..at + more] {
                *byte = size as u8 | 0x80;
                size >>= 7;
            }
            out[at + more] = size as u8;
        } else {
            out[at] = size as u8;
        }
        Ok(())
    }

    /// Append a string behind its size; return whether it has any text.
    fn text(&mut self, out: &mut Vec<u8>) -> Result<bool, Undecided> {
        self.expect(b'"')?;
        let (end, ascii) = plain_end(self.rest);
        let (text, rest) = self.rest.split_at(end);
        if let [b'"', rest @ ..] = rest {
            if !ascii && std::str::from_utf8(text).is_err() {
                return Err(Undecided);
            }
            put_varint(out, text.len() as u64);
            out.extend_from_slice(text);
            self.rest = rest;
            return Ok(!text.is_empty());
        }
        let mut unescaped = std::mem::take(&mut self.buffers.unescaped);
        unescaped.clear();
        self.unescape(&mut unescaped)?;
        if std::str::from_utf8(&unescaped).is_err() {
            return Err(Undecided);
        }
        put_varint(out, unescaped.len() as u64);
        out.extend_from_slice(&unescaped);
        let present = !unescaped.is_empty();
        self.buffers.unescaped = unescaped;
        Ok(present)
    }

    fn unescape(&mut self, text: &mut Vec<u8>) -> Result<(), Undecided> {
        loop {
            let (end, _) = plain_end(self.rest);
            let (plain, rest) = self.rest.split_at(end);
            text.extend_from_slice(plain);
            let escaped = match rest {
                [b'"', rest @ ..] => {
                    self.rest = rest;
                    return Ok(());
                }
                [b'\\', escaped, rest @ ..] => {
                    self.rest = rest;
                    *escaped
                }
                _ => return Err(Undecided),
            };
            text.push(match escaped {
                b'"' | b'\\' | b'/' => escaped,
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'u' => {
                    let character = self.unicode()?;
                    text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
                _ => return Err(Undecided),
            });
        }
    }

    /// Return the character of an escape, or of the two that are a surrogate pair.
    fn unicode(&mut self) -> Result<char, Undecided> {
        let unit = self.hexadecimal()?;
        if !(0xD800..0xDC00).contains(&unit) {
            return char::from_u32(unit).ok_or(Undecided);
        }
        self.expect(b'\\')?;
        self.expect(b'u')?;
        let low = self.hexadecimal()?;
        if !(0xDC00..0xE000).contains(&low) {
            return Err(Undecided);
        }
        char::from_u32(0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00)).ok_or(Undecided)
    }

    fn hexadecimal(&mut self) -> Result<u32, Undecided> {
        let digits = self.rest.get(..4).ok_or(Undecided)?;
        self.rest = &self.rest[4..];
        digits.iter().try_fold(0, |value, &digit| {
            let digit = char::from(digit).to_digit(16).ok_or(Undecided)?;
            Ok(value << 4 | digit)
        })
    }

    /// Return an integer as it is encoded; one with a point or an exponent is undecided.
    fn integer(&mut self, kind: Kind) -> Result<u64, Undecided> {
        let quoted = self.take(b'"');
        let negative = self.take(b'-');
        let start = self.rest;
        let mut value = self.digits(0);
        let digits = start.len() - self.rest.len();
        if digits > MAX_DIGITS {
            // One digit more may overflow.
            let text = std::str::from_utf8(&start[..digits]).map_err(|_| Undecided)?;
            value = text.parse().map_err(|_| Undecided)?;
        }
        if digits == 0 {
            return Err(Undecided);
        }
        if quoted {
            self.expect(b'"')?;
        } else if digits > 1 && start[0] == b'0' {
            return Err(Undecided);
        } else if let Some(b'.' | b'e' | b'E') = self.peek() {
            return Err(Undecided);
        }
        let (signed, most) = match kind {
            Kind::Uint64 => (false, u64::MAX),
            Kind::Uint32 => (false, u64::from(u32::MAX)),
            Kind::Sint64 => (true, i64::MAX as u64),
            Kind::Sint32 => (true, i32::MAX as u64),
            _ => return Err(Undecided),
        };
        if !signed {
            let fits = value <= most && !(negative && value > 0);
            return if fits { Ok(value) } else { Err(Undecided) };
        }
        if value > most + u64::from(negative) {
            return Err(Undecided);
        }
        let value = value as i64;
        Ok(zigzag(if negative {
            value.wrapping_neg()
        } else {
            value
        }))
    }

    fn float(&mut self) -> Result<f32, Undecided> {
        let value = if self.peek() == Some(b'"') {
            self.word()?
        } else {
            let start = self.rest;
            let decimal = self.decimal()?;
            if let Some(value) = decimal.float() {
                return Ok(value);
            }
            self.value(&decimal, start)?
        };
        if value.is_finite() && value.abs() >= FLOAT_LIMIT {
            return Err(Undecided);
        }
        if value.is_nan() {
            return Ok(f32::from_bits(0x7FC0_0000));
        }
        Ok(value as f32)
    }

    /// Return a number, finite unless it is one of the words for those that are not.
    fn number(&mut self) -> Result<f64, Undecided> {
        if self.peek() == Some(b'"') {
            return self.word();
        }
        let start = self.rest;
        let decimal = self.decimal()?;
        self.value(&decimal, start)
    }

    #[inline(always)]
    fn decimal(&mut self) -> Result<Decimal, Undecided> {
        let negative = self.take(b'-');
        let first = self.rest;
        // Most numbers have few digits before the point.
        let mut digits = self.digit().ok_or(Undecided)?;
        while let Some(digit) = self.digit() {
            digits = digits.wrapping_mul(10).wrapping_add(digit);
        }
        let mut count = first.len() - self.rest.len();
        if count > 1 && first[0] == b'0' {
            return Err(Undecided);
        }
        let (mut scale, mut is_integer) = (0_i64, true);
        if self.take(b'.') {
            is_integer = false;
            let point = self.rest.len();
            digits = self.digits(digits);
            let places = point - self.rest.len();
            if places == 0 {
                return Err(Undecided);
            }
            count += places;
            scale = -(places as i64);
        }
        if let Some(b'e' | b'E') = self.peek() {
            is_integer = false;
            self.rest = &self.rest[1..];
            let down = self.take(b'-');
            if !down {
                self.take(b'+');
            }
            let (from, mut exponent) = (self.rest.len(), 0_i64);
            while let Some(digit) = self.digit() {
                exponent = (exponent * 10 + digit as i64).min(100_000);
            }
            if self.rest.len() == from {
                return Err(Undecided);
            }
            scale += if down { -exponent } else { exponent };
        }
        Ok(Decimal {
            negative,
            digits,
            exact: count <= MAX_DIGITS,
            scale,
            is_integer,
        })
    }

    /// Return the number that was read from `start` on.
    fn value(&self, decimal: &Decimal, start: &[u8]) -> Result<f64, Undecided> {
        if let Some(value) = decimal.value() {
            return Ok(value);
        }
        let text = &start[..start.len() - self.rest.len()];
        let text = std::str::from_utf8(text).map_err(|_| Undecided)?;
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(Undecided),
        }
    }

    fn word(&mut self) -> Result<f64, Undecided> {
        for (word, value) in [
            (&b"\"NaN\""[..], f64::from_bits(0x7FF8_0000_0000_0000)),
            (b"\"Infinity\"", f64::INFINITY),
            (b"\"-Infinity\"", f64::NEG_INFINITY),
        ] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(Undecided)
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), Undecided> {
        self.rest = self.rest.strip_prefix(word).ok_or(Undecided)?;
        Ok(())
    }

    /// Read digits behind those of `value`; return the number, which may overflow.
    #[inline(always)]
    fn digits(&mut self, mut value: u64) -> u64 {
        while let Some(eight) = eight(self.rest) {
            let (number, count) = leading_digits(eight);
            value = value
                .wrapping_mul(SMALL_POWERS_OF_TEN[count])
                .wrapping_add(number);
            self.rest = &self.rest[count..];
            if count < 8 {
                return value;
            }
        }
        while let Some(digit) = self.digit() {
            value = value.wrapping_mul(10).wrapping_add(digit);
        }
        value
    }

    #[inline]
    fn digit(&mut self) -> Option<u64> {
        match self.rest {
            [byte @ b'0'..=b'9', rest @ ..] => {
                self.rest = rest;
                Some(u64::from(byte - b'0'))
            }
            _ => None,
        }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    #[inline]
    fn take(&mut self, byte: u8) -> bool {
        match self.rest {
            [first, rest @ ..] if *first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), Undecided> {
        if self.take(byte) {
            Ok(())
        } else {
            Err(Undecided)
        }
    }

    /// Skip a comma with the white space around it; return whether there was one.
    #[inline]
    fn comma(&mut self) -> bool {
        let found = self.next_is(b',');
        if found {
            self.skip_space();
        }
        found
    }

    /// Skip white space, and `byte` too if it is next; return whether it was.
    #[inline]
    fn next_is(&mut self, byte: u8) -> bool {
        self.skip_space();
        self.take(byte)
    }

    #[inline]
    fn skip_space(&mut self) {
        while let [b' ' | b'\n' | b'\r' | b'\t', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }
}

/// A number as it is written: `digits` times ten to the power of `scale`.
struct Decimal {
    negative: bool,
    digits: u64,
    /// The digits did not overflow.
    exact: bool,
    scale: i64,
    is_integer: bool,
}

impl Decimal {
    /// Return the number if one rounding, or none, gives it.
    fn value(&self) -> Option<f64> {
        if !self.exact {
            return None;
        }
        if self.is_integer {
            // The integer -0 is 0, the number -0.0 is not.
            let value = self.digits as f64;
            return Some(if self.negative && self.digits > 0 {
                -value
            } else {
                value
            });
        }
        if self.digits > 1 << 53 || self.scale.abs() > 22 {
            return None;
        }
        // Digits and power are exact, so that only the result is rounded.
        let power = POWERS_OF_TEN[self.scale.unsigned_abs() as usize];
        let digits = self.digits as f64;
        let value = if self.scale < 0 {
            digits / power
        } else {
            digits * power
        };
        Some(if self.negative { -value } else { value })
    }

    /// Return the number rounded to 64 bits and then to 32, if a cheap calculation is certain.
    #[inline(always)]
    fn float(&self) -> Option<f32> {
        if !self.exact || !(-22..=0).contains(&self.scale) || self.digits == 0 {
            return None;
        }
        // Three roundings: at most 3 units of the last place from the right number.
        let near = self.digits as f64 * NEGATIVE_POWERS_OF_TEN[-self.scale as usize];
        const MIDDLE: u64 = 1 << 28;
        let beyond = near.to_bits() & ((1 << 29) - 1);
        if beyond > MIDDLE - 8 && beyond < MIDDLE + 8 {
            return None; // between two floats
        }
        let value = near as f32;
        Some(if self.negative { -value } else { value })
    }
}

/// Return the number that the first ASCII digits of eight bytes stand for, and how many they are.
#[inline(always)]
fn leading_digits(word: u64) -> (u64, usize) {
    let values = word ^ (ONES * 0x30);
    // Below the first byte that is no digit there is no carry.
    let others = (values.wrapping_add(ONES * 0x76) | values) & HIGH;
    let count = (others.trailing_zeros() / 8) as usize;
    if count == 0 {
        return (0, 0);
    }
    // Zeros in front: the first digit is in the lowest byte.
    let values = values << (8 * (8 - count));
    let pairs = values.wrapping_mul(10).wrapping_add(values >> 8);
    let mask = 0x0000_00FF_0000_00FF;
    let high = (pairs & mask).wrapping_mul(0x000F_4240_0000_0064);
    let low = (pairs >> 16 & mask).wrapping_mul(0x0000_2710_0000_0001);
    (high.wrapping_add(low) >> 32, count)
}

/// An entry of a map, as places in the encoded entries.
struct Entry {
    whole: (usize, usize),
    key: (usize, usize),
}

impl Entry {
    fn key_in<'a>(&self, encoded: &'a [u8]) -> &'a [u8] {
        &encoded[self.key.0..self.key.1]
    }
}

/// Compare as Protobuf's deterministic encoding does: a key comes before its own beginning.
fn key_order(one: &[u8], other: &[u8]) -> std::cmp::Ordering {
    let common = one.len().min(other.len());
    one[..common]
        .cmp(&other[..common])
        .then(other.len().cmp(&one.len()))
}

fn varint_size(bytes: &[u8]) -> usize {
    1 + bytes.iter().take_while(|&&byte| byte >= 0x80).count()
}

fn varint_length(mut value: usize) -> usize {
    let mut length = 1;
    while value >= 0x80 {
        value >>= 7;
        length += 1;
    }
    length
}

#[inline]
pub fn skip_space(json: &[u8], at: &mut usize) {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = json.get(*at) {
        *at += 1;
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Return the first eight bytes.
#[inline]
fn eight(bytes: &[u8]) -> Option<u64> {
    bytes.get(..8)?.try_into().ok().map(u64::from_le_bytes)
}

/// Return the place of the first quote, backslash or control character, and whether all before it
/// is ASCII.
#[inline]
fn plain_end(json: &[u8]) -> (usize, bool) {
    let (mut rest, mut seen) = (json, 0_u64);
    while let Some(word) = eight(rest) {
        let quote = word ^ (ONES * 0x22);
        let backslash = word ^ (ONES * 0x5C);
        // A bit above the first match may be wrong, none below it is.
        let found = (quote.wrapping_sub(ONES) & !quote
            | backslash.wrapping_sub(ONES) & !backslash
            | word.wrapping_sub(ONES * 0x20) & !word)
            & HIGH;
        if found != 0 {
            let place = found.trailing_zeros() & !7;
            seen |= word & !(u64::MAX << place);
            let end = json.len() - rest.len() + (place / 8) as usize;
            return (end, seen & HIGH == 0);
        }
        seen |= word;
        rest = &rest[8..];
    }
    while let [byte, others @ ..] = rest {
        if matches!(byte, b'"' | b'\\' | 0..=0x1F) {
            break;
        }
        seen |= u64::from(*byte);
        rest = others;
    }
    (json.len() - rest.len(), seen & HIGH == 0)
}

/// Skip the value at `at`: all of a valid one; what follows an invalid one is not defined.
///
/// A value that cannot be skipped is no JSON, or too deep.
pub fn skip(json: &[u8], at: &mut usize) -> Result<(), Undecided> {
    let mut open: Vec<u8> = Vec::new();
    loop {
        skip_space(json, at);
        let byte = *json.get(*at).ok_or(Undecided)?;
        match byte {
            b'{' | b'[' => {
                if open.len() == MAX_SKIPPED_DEPTH {
                    return Err(Undecided);
                }
                *at += 1;
                skip_space(json, at);
                if json.get(*at) == Some(&(byte + 2)) {
                    *at += 1;
                } else {
                    open.push(byte);
                    if byte == b'{' {
                        skip_name(json, at)?;
                    }
                    continue;
                }
            }
            b'"' => skip_string(json, at)?,
            b't' | b'f' | b'n' => {
                let size = json[*at..]
                    .iter()
                    .take_while(|b| b.is_ascii_lowercase())
                    .count();
                *at += size;
            }
            b'-' | b'0'..=b'9' => {
                let number = |b: &&u8| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                *at += json[*at..].iter().take_while(number).count();
            }
            _ => return Err(Undecided),
        }
        loop {
            let container = match open.last() {
                Some(&container) => container,
                None => return Ok(()),
            };
            skip_space(json, at);
            let byte = *json.get(*at).ok_or(Undecided)?;
            *at += 1;
            if byte == b',' {
                if container == b'{' {
                    skip_space(json, at);
                    skip_name(json, at)?;
                }
                break;
            }
            if byte != container + 2 {
                return Err(Undecided);
            }
            open.pop();
        }
    }
}

fn skip_name(json: &[u8], at: &mut usize) -> Result<(), Undecided> {
    skip_string(json, at)?;
    skip_space(json, at);
    if json.get(*at) != Some(&b':') {
        return Err(Undecided);
    }
    *at += 1;
    Ok(())
}

fn skip_string(json: &[u8], at: &mut usize) -> Result<(), Undecided> {
    if json.get(*at) != Some(&b'"') {
        return Err(Undecided);
    }
    *at += 1;
    loop {
        // An escape at the end leads beyond it.
        let (end, _) = plain_end(json.get(*at..).ok_or(Undecided)?);
        *at += end + 1;
        match json.get(*at - 1) {
            Some(b'"') => return Ok(()),
            Some(b'\\') => *at += 1,
            _ => return Err(Undecided),
        }
    }
}

const SMALL_POWERS_OF_TEN: [u64; 9] = [
    1,
    10,
    100,
    1_000,
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
];
const NEGATIVE_POWERS_OF_TEN: [f64; 23] = [
    1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14,
    1e-15, 1e-16, 1e-17, 1e-18, 1e-19, 1e-20, 1e-21, 1e-22,
];
const POWERS_OF_TEN: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];
