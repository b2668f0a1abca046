//! Checks of encoded messages, which are passed on unchanged.
#![forbid(unsafe_code)]

use crate::schema::{unzigzag, wire_type, Kind, Message, Schema, FIXED32, FIXED64, LENGTH, VARINT};
use crate::Undecided;

const MAX_DEPTH: usize = 50;

/// What was read of an event while it was checked.
#[derive(Default)]
struct Seen {
    key: (usize, usize),
    /// Fields whose last value is not their default.
    present: u64,
}

impl Seen {
    #[inline]
    fn set(&mut self, index: u8, present: bool) {
        self.present = self.present & !(1 << index) | u64::from(present) << index;
    }
}

/// Return the place of the key in `message`, a valid event.
///
/// An event that is not certainly valid is [`Undecided`].
pub fn event(schema: &Schema, message: &[u8], latest_ns: i64) -> Result<(usize, usize), Undecided> {
    let mut seen = Seen::default();
    let mut rest = message;
    while !rest.is_empty() {
        let (tag, after) = short_varint(rest)?;
        rest = after;
        let slot = match schema.messages[0].slot(tag >> 3) {
            Some(slot) => slot,
            None => {
                rest = skip(rest, tag)?;
                continue;
            }
        };
        let wire = (tag & 7) as u8;
        match slot.kind {
            Kind::Text if wire == LENGTH => {
                let (text, after) = sized(rest)?;
                rest = after;
                if !is_utf8(text) {
                    return Err(Undecided);
                }
                seen.set(slot.index, !text.is_empty());
                if usize::from(slot.index) == schema.key {
                    let end = message.len() - rest.len();
                    seen.key = (end - text.len(), end);
                }
            }
            Kind::Double | Kind::Float if wire == slot.wire => {
                let value = rest;
                rest = skip(rest, tag)?;
                let value = &value[..value.len() - rest.len()];
                // As in Python, both zeros count as the default.
                let is_zero =
                    matches!(value, [zeros @ .., 0 | 0x80] if zeros.iter().all(|&b| b == 0));
                seen.set(slot.index, !is_zero);
            }
            Kind::Uint64 | Kind::Uint32 | Kind::Sint64 | Kind::Sint32 | Kind::Bool
                if wire == VARINT =>
            {
                let (value, after) = varint(rest)?;
                rest = after;
                if schema.times >> slot.index & 1 != 0 {
                    let time_ns = unzigzag(value);
                    if value != 0 && (time_ns < schema.earliest_ns || time_ns > latest_ns) {
                        return Err(Undecided);
                    }
                }
                let narrow = matches!(slot.kind, Kind::Uint32 | Kind::Sint32);
                seen.set(
                    slot.index,
                    if narrow {
                        value as u32
                    } else {
                        (value != 0).into()
                    } != 0,
                );
            }
            _ => {
                rest = value(
                    &schema.messages,
                    slot.kind,
                    slot.wire,
                    slot.is_list,
                    rest,
                    tag,
                    0,
                )?
            }
        }
    }
    let key_size = seen.key.1 - seen.key.0;
    if seen.present & schema.required != schema.required
        || key_size == 0
        || key_size + message.len() > schema.max_record_bytes
    {
        return Err(Undecided);
    }
    Ok(seen.key)
}

/// Check a message of any kind; `depth` is the number of messages around it.
pub fn message(
    messages: &[Message],
    of: usize,
    message: &[u8],
    depth: usize,
) -> Result<(), Undecided> {
    if depth > MAX_DEPTH {
        return Err(Undecided);
    }
    let table = &messages[of];
    let mut rest = message;
    while !rest.is_empty() {
        let (tag, after) = short_varint(rest)?;
        rest = match table.slot(tag >> 3) {
            Some(slot) => value(
                messages,
                slot.kind,
                slot.wire,
                slot.is_list,
                after,
                tag,
                depth,
            )?,
            None => skip(after, tag)?,
        };
    }
    Ok(())
}

/// Check the value of a field at the beginning of `rest`; return what follows.
#[inline]
fn value<'a>(
    messages: &[Message],
    kind: Kind,
    expected: u8,
    is_list: bool,
    rest: &'a [u8],
    tag: u64,
    depth: usize,
) -> Result<&'a [u8], Undecided> {
    let wire = (tag & 7) as u8;
    if wire != expected {
        if wire != LENGTH || !is_list {
            return Err(Undecided);
        }
        let (values, after) = sized(rest)?;
        packed(expected, values)?;
        return Ok(after);
    }
    match kind {
        Kind::Text => {
            let (text, after) = sized(rest)?;
            if is_utf8(text) {
                Ok(after)
            } else {
                Err(Undecided)
            }
        }
        Kind::Message(of) => {
            let (inner, after) = sized(rest)?;
            message(messages, of, inner, depth + 1)?;
            Ok(after)
        }
        _ => skip(rest, tag),
    }
}

fn packed(wire: u8, values: &[u8]) -> Result<(), Undecided> {
    let is_whole = match wire {
        FIXED32 => values.len() % 4 == 0,
        FIXED64 => values.len() % 8 == 0,
        _ => {
            let mut rest = values;
            while !rest.is_empty() {
                rest = varint(rest)?.1;
            }
            wire == VARINT
        }
    };
    if is_whole {
        Ok(())
    } else {
        Err(Undecided)
    }
}

fn skip(rest: &[u8], tag: u64) -> Result<&[u8], Undecided> {
    if tag < 8 {
        return Err(Undecided); // no field has the number 0
    }
    match (tag & 7) as u8 {
        VARINT => varint(rest).map(|read| read.1),
        FIXED64 => rest.get(8..).ok_or(Undecided),
        FIXED32 => rest.get(4..).ok_or(Undecided),
        LENGTH => sized(rest).map(|read| read.1),
        _ => Err(Undecided),
    }
}

/// The content of an encoded field.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Content<'a> {
    fn read(wire: u8, rest: &'a [u8]) -> Result<(Content<'a>, &'a [u8]), Undecided> {
        match wire {
            VARINT => varint(rest).map(|(value, after)| (Content::Varint(value), after)),
            LENGTH => sized(rest).map(|(bytes, after)| (Content::Bytes(bytes), after)),
            FIXED64 => {
                let bytes = rest.get(..8).and_then(|bytes| bytes.try_into().ok());
                let value = u64::from_le_bytes(bytes.ok_or(Undecided)?);
                Ok((Content::Fixed64(value), &rest[8..]))
            }
            FIXED32 => {
                let bytes = rest.get(..4).and_then(|bytes| bytes.try_into().ok());
                let value = u32::from_le_bytes(bytes.ok_or(Undecided)?);
                Ok((Content::Fixed32(value), &rest[4..]))
            }
            _ => Err(Undecided),
        }
    }

    /// Return the first of packed values, and the others.
    pub fn packed(kind: Kind, values: &'a [u8]) -> Result<(Content<'a>, &'a [u8]), Undecided> {
        Content::read(wire_type(kind), values)
    }
}

/// Return the number and the content of the first field, and what follows it.
#[inline]
pub fn field(rest: &[u8]) -> Result<(u64, Content<'_>, &[u8]), Undecided> {
    let (tag, rest) = short_varint(rest)?;
    let (content, rest) = Content::read((tag & 7) as u8, rest)?;
    Ok((tag >> 3, content, rest))
}

/// Return the bytes behind their length, and what follows them.
#[inline]
pub fn sized(rest: &[u8]) -> Result<(&[u8], &[u8]), Undecided> {
    let (size, after) = short_varint(rest)?;
    if size > after.len() as u64 {
        return Err(Undecided);
    }
    Ok(after.split_at(size as usize))
}

/// Return a tag or a length, which have at most 32 bits in 5 bytes, and what follows it.
#[inline]
fn short_varint(rest: &[u8]) -> Result<(u64, &[u8]), Undecided> {
    match rest {
        [byte, after @ ..] if *byte < 0x80 => Ok((u64::from(*byte), after)),
        [low, byte, after @ ..] if *byte < 0x80 => {
            Ok((u64::from(low & 0x7F) | u64::from(*byte) << 7, after))
        }
        _ => {
            let (value, after) = long_varint(rest)?;
            if rest.len() - after.len() > 5 || value > u64::from(u32::MAX) {
                return Err(Undecided);
            }
            Ok((value, after))
        }
    }
}

#[inline]
fn varint(rest: &[u8]) -> Result<(u64, &[u8]), Undecided> {
    match rest {
        [byte, after @ ..] if *byte < 0x80 => Ok((u64::from(*byte), after)),
        _ => long_varint(rest),
    }
}

fn long_varint(rest: &[u8]) -> Result<(u64, &[u8]), Undecided> {
    let mut value = 0;
    for (place, &byte) in rest.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * place);
        if byte < 0x80 {
            if place == 9 && byte > 1 {
                break;
            }
            return Ok((value, &rest[place + 1..]));
        }
    }
    Err(Undecided)
}

#[inline]
pub fn is_utf8(text: &[u8]) -> bool {
    is_ascii(text) || std::str::from_utf8(text).is_ok()
}

#[inline]
fn is_ascii(text: &[u8]) -> bool {
    let eight = |at: usize| match text.get(at..at + 8).map(<[u8; 8]>::try_from) {
        Some(Ok(bytes)) => u64::from_le_bytes(bytes),
        _ => 0,
    };
    if text.len() < 8 {
        return text.iter().fold(0, |seen, byte| seen | byte) < 0x80;
    }
    // The last eight may be seen twice.
    let mut seen = eight(text.len() - 8);
    for at in (0..text.len() - 8).step_by(8) {
        seen |= eight(at);
    }
    seen & 0x8080_8080_8080_8080 == 0
}
