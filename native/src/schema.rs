//! Tables of an event type's fields, made from its descriptor.
#![forbid(unsafe_code)]

/// Messages have at most this many fields: sets of fields are bits of a `u64`.
pub const MAX_FIELDS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Double,
    Float,
    Uint64,
    Uint32,
    Sint64,
    Sint32,
    Bool,
    Text,
    /// The message with this index in the schema.
    Message(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    Single,
    Repeated,
    /// The kind is the message of an entry, with the fields 1 (key) and 2 (value).
    Map,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: Vec<u8>,
    pub camel_case_name: Vec<u8>,
    /// The name as a member of a JSON object begins: in quotes, with the colon.
    pub member: Vec<u8>,
    /// The first 16 bytes of `member`, zeros behind a shorter one, and the bits that they use.
    pub start: (u128, u128),
    pub number: u32,
    pub kind: Kind,
    pub label: Label,
    /// The encoded tag: of packed values if the field is repeated and numeric.
    pub tag: Vec<u8>,
}

impl Field {
    pub fn new(name: &str, camel_case_name: &str, number: u32, kind: Kind, label: Label) -> Field {
        let wire_type = match kind {
            Kind::Text | Kind::Message(_) => LENGTH,
            _ if label == Label::Repeated => LENGTH,
            _ => wire_type(kind),
        };
        let mut tag = Vec::new();
        put_varint(&mut tag, u64::from(number) << 3 | u64::from(wire_type));
        let member: Vec<u8> = format!("\"{}\":", name).into();
        let (mut start, mut used) = ([0; 16], [0; 16]);
        for (n, &byte) in member.iter().take(16).enumerate() {
            start[n] = byte;
            used[n] = 0xFF;
        }
        Field {
            name: name.into(),
            camel_case_name: camel_case_name.into(),
            member,
            start: (u128::from_le_bytes(start), u128::from_le_bytes(used)),
            number,
            kind,
            label,
            tag,
        }
    }
}

impl Field {
    /// Return what follows this member at the beginning of `json`, None if another one is there.
    #[inline]
    pub fn after<'a>(&self, json: &'a [u8]) -> Option<&'a [u8]> {
        let size = self.member.len();
        match json.get(..16).map(<[u8; 16]>::try_from) {
            Some(Ok(start)) if u128::from_le_bytes(start) & self.start.1 != self.start.0 => None,
            Some(Ok(_)) if size <= 16 => Some(&json[size..]),
            _ => json.strip_prefix(self.member.as_slice()),
        }
    }

    #[inline]
    pub fn put_tag(&self, out: &mut Vec<u8>) {
        match *self.tag.as_slice() {
            [tag] => out.push(tag),
            _ => out.extend_from_slice(&self.tag),
        }
    }
}

/// What the check of encoded messages needs to know of a field.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub kind: Kind,
    /// Index of the field in its message.
    pub index: u8,
    /// Wire type of a single value.
    pub wire: u8,
    pub is_list: bool,
}

/// Fields in ascending order of their numbers, as they are encoded.
#[derive(Clone, Debug)]
pub struct Message {
    pub fields: Vec<Field>,
    /// The fields by number; larger numbers are unknown.
    slots: Vec<Option<Slot>>,
}

impl Message {
    pub fn new(mut fields: Vec<Field>) -> Message {
        fields.sort_by_key(|field| field.number);
        let largest = fields.last().map_or(0, |field| field.number as usize);
        let mut slots = vec![None; largest + 1];
        for (index, field) in fields.iter().enumerate() {
            slots[field.number as usize] = Some(Slot {
                kind: field.kind,
                index: index as u8,
                wire: wire_type(field.kind),
                is_list: field.label == Label::Repeated,
            });
        }
        Message { fields, slots }
    }

    #[inline]
    pub fn slot(&self, number: u64) -> Option<Slot> {
        self.slots.get(number as usize).copied().flatten()
    }
}

/// An event type: what a record must have to be accepted without a closer look.
#[derive(Clone, Debug)]
pub struct Schema {
    /// The first one is the event.
    pub messages: Vec<Message>,
    /// Index of the field that is the Kafka key, a text.
    pub key: usize,
    /// Fields that must not have their default.
    pub required: u64,
    /// Fields of type sint64 that are points in time.
    pub times: u64,
    pub max_record_bytes: usize,
    pub earliest_ns: i64,
}

pub const VARINT: u8 = 0;
pub const FIXED64: u8 = 1;
pub const LENGTH: u8 = 2;
pub const FIXED32: u8 = 5;

/// Return the wire type of a single value.
pub fn wire_type(kind: Kind) -> u8 {
    match kind {
        Kind::Double => FIXED64,
        Kind::Float => FIXED32,
        Kind::Text | Kind::Message(_) => LENGTH,
        _ => VARINT,
    }
}

#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    if value < 0x80 {
        out.push(value as u8);
        return;
    }
    if value >> 56 != 0 {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
        return;
    }
    // Spread groups of seven bits over eight bytes: how many there are cannot be predicted.
    let size = (70 - value.leading_zeros() as usize) / 7;
    value = value & 0x0FFF_FFFF | (value & 0x00FF_FFFF_F000_0000) << 4;
    value = value & 0x0000_3FFF_0000_3FFF | (value & 0x0FFF_C000_0FFF_C000) << 2;
    value = value & 0x007F_007F_007F_007F | (value & 0x3F80_3F80_3F80_3F80) << 1;
    let more = 0x8080_8080_8080_8080 & !(u64::MAX << (8 * (size - 1)));
    let end = out.len() + size;
    out.extend_from_slice(&(value | more).to_le_bytes());
    out.truncate(end);
}

pub fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

pub fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
