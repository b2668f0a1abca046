//! Conditions on encoded events: only the fields asked for are read, once for all filters.
#![forbid(unsafe_code)]

use std::collections::HashSet;

use crate::check::{field, Content};
use crate::schema::{unzigzag, Kind, Label, Message};
use crate::Undecided;

/// The way from an event to the values of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Indices of fields, each in the message of the one before.
    steps: Vec<usize>,
    /// Key of the map that the last step is.
    key: Option<Vec<u8>>,
    kind: Kind,
}

impl Path {
    /// Return the path along the fields `names`, None if it is of a form that is not known here.
    pub fn new(messages: &[Message], names: &[String], key: Option<String>) -> Option<Path> {
        let (mut of, mut steps) = (0, Vec::new());
        for (n, name) in names.iter().enumerate() {
            let index = messages[of]
                .fields
                .iter()
                .position(|field| field.name == name.as_bytes())?;
            steps.push(index);
            let field = &messages[of].fields[index];
            if n + 1 < names.len() {
                match (field.kind, field.label) {
                    (Kind::Message(inner), Label::Repeated) => of = inner,
                    _ => return None,
                }
                continue;
            }
            let kind = match (field.kind, field.label, &key) {
                (Kind::Message(entry), Label::Map, Some(_)) => {
                    match messages[entry].fields.as_slice() {
                        [key, value] if key.kind == Kind::Text => value.kind,
                        _ => return None,
                    }
                }
                (Kind::Message(_), _, _) | (_, _, Some(_)) => return None,
                (kind, _, None) => kind,
            };
            if let Kind::Message(_) = kind {
                return None;
            }
            let key = key.map(String::into_bytes);
            return Some(Path { steps, key, kind });
        }
        None
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Op {
    #[inline]
    fn holds<T: PartialOrd + ?Sized>(self, value: &T, literal: &T) -> bool {
        match self {
            Op::Equal => value == literal,
            Op::NotEqual => value != literal,
            Op::Less => value < literal,
            Op::LessOrEqual => value <= literal,
            Op::Greater => value > literal,
            Op::GreaterOrEqual => value >= literal,
        }
    }
}

/// A value as conditions have it; a `bool` is 0 or 1.
#[derive(Clone, Debug)]
pub enum Literal {
    Integer(i128),
    Float(f64),
    Text(Vec<u8>),
}

pub enum Test {
    Compare(Op, Literal),
    /// The value is in the set, or with false it is not.
    Integers(HashSet<i128>, bool),
    Floats(HashSet<u64>, bool),
    Texts(HashSet<Vec<u8>>, bool),
}

impl Test {
    /// Return the test for membership in `values`, None if they are of several types.
    pub fn contains(values: Vec<Literal>, wanted: bool) -> Option<Test> {
        let (mut integers, mut floats, mut texts) =
            (HashSet::new(), HashSet::new(), HashSet::new());
        let count = values.len();
        for value in values {
            match value {
                Literal::Integer(value) => drop(integers.insert(value)),
                Literal::Float(value) => drop(floats.insert(float_bits(value))),
                Literal::Text(value) => drop(texts.insert(value)),
            }
        }
        match (integers.is_empty(), floats.is_empty(), texts.is_empty()) {
            (false, true, true) => Some(Test::Integers(integers, wanted)),
            (true, false, true) => Some(Test::Floats(floats, wanted)),
            (true, true, false) if count > 0 => Some(Test::Texts(texts, wanted)),
            _ => None,
        }
    }
}

/// Return the bits of a float, the same for both zeros.
fn float_bits(value: f64) -> u64 {
    (value + 0.0).to_bits()
}

pub struct Condition {
    path: Path,
    test: Test,
}

impl Condition {
    /// Return the condition, None if the test does not fit the field.
    pub fn new(path: Path, test: Test) -> Option<Condition> {
        let fits = match (path.kind, &test) {
            (Kind::Text, Test::Texts(..) | Test::Compare(_, Literal::Text(_))) => true,
            (Kind::Text | Kind::Message(_), _) => false,
            (
                Kind::Double | Kind::Float,
                Test::Floats(..) | Test::Compare(_, Literal::Float(_)),
            ) => true,
            (Kind::Double | Kind::Float, _) => false,
            (_, Test::Integers(..) | Test::Compare(_, Literal::Integer(_))) => true,
            _ => false,
        };
        if fits {
            Some(Condition { path, test })
        } else {
            None
        }
    }
}

/// The values of one field: `values[i]` is of the event `rows[i]`, or `i` if each has one.
struct Column {
    rows: Option<Vec<usize>>,
    values: Values,
}

enum Values {
    Integers(Vec<i128>),
    Floats(Vec<f64>),
    /// Places in the events.
    Texts(Vec<(usize, usize, usize)>),
}

/// The columns of a block of events that were read already.
#[derive(Default)]
pub struct Columns {
    known: Vec<(Path, Column)>,
}

impl Columns {
    /// Return for each of `events`, which are valid, whether all conditions hold.
    pub fn select(
        &mut self,
        messages: &[Message],
        events: &[&[u8]],
        conditions: &[Condition],
    ) -> Vec<bool> {
        let mut chosen = vec![true; events.len()];
        for Condition { path, test } in conditions {
            let place = match self.known.iter().position(|(known, _)| known == path) {
                Some(place) => place,
                None => {
                    self.known
                        .push((path.clone(), Column::read(messages, path, events)));
                    self.known.len() - 1
                }
            };
            let mut holds = vec![false; events.len()];
            self.known[place].1.mark(test, events, &mut holds);
            for (chosen, holds) in chosen.iter_mut().zip(holds) {
                *chosen &= holds;
            }
        }
        chosen
    }
}

impl Column {
    fn read(messages: &[Message], path: &Path, events: &[&[u8]]) -> Column {
        let mut column = Column {
            rows: Some(Vec::with_capacity(events.len())),
            values: match path.kind {
                Kind::Text => Values::Texts(Vec::new()),
                Kind::Double | Kind::Float => Values::Floats(Vec::new()),
                _ => Values::Integers(Vec::new()),
            },
        };
        for (row, event) in events.iter().enumerate() {
            let at = Position { row, event };
            // The events are valid: there is no other outcome than success.
            let _ = column.visit(messages, 0, path, 0, event, at);
        }
        let is_one_each =
            matches!(&column.rows, Some(rows) if rows.iter().copied().eq(0..events.len()));
        if is_one_each {
            column.rows = None;
        }
        column
    }

    /// Add the values in `bytes`, a message in the event at `at`.
    fn visit(
        &mut self,
        messages: &[Message],
        of: usize,
        path: &Path,
        depth: usize,
        bytes: &[u8],
        at: Position<'_>,
    ) -> Result<(), Undecided> {
        let wanted = &messages[of].fields[path.steps[depth]];
        let (mut rest, mut last) = (bytes, None);
        while !rest.is_empty() {
            let (number, content, after) = field(rest)?;
            rest = after;
            if number != u64::from(wanted.number) {
                continue;
            }
            match (wanted.label, wanted.kind, content) {
                (Label::Single, _, content) => last = Some(content),
                (Label::Map, Kind::Message(entry), Content::Bytes(bytes)) => {
                    let (key, value) = read_entry(&messages[entry], path.kind, bytes)?;
                    if path.key.as_deref() == Some(key) {
                        last = Some(value);
                    }
                }
                (Label::Repeated, Kind::Message(inner), Content::Bytes(bytes)) => {
                    self.visit(messages, inner, path, depth + 1, bytes, at)?;
                }
                (Label::Repeated, Kind::Text, content) => self.push(path.kind, content, at),
                (Label::Repeated, kind, Content::Bytes(values)) => {
                    let mut values = values;
                    while !values.is_empty() {
                        let (content, after) = Content::packed(kind, values)?;
                        self.push(path.kind, content, at);
                        values = after;
                    }
                }
                (Label::Repeated, _, content) => self.push(path.kind, content, at),
                _ => return Err(Undecided),
            }
        }
        match (wanted.label, last) {
            (Label::Single, None) => self.push(path.kind, absent(path.kind), at),
            (_, Some(content)) => self.push(path.kind, content, at),
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, kind: Kind, content: Content<'_>, at: Position<'_>) {
        match (&mut self.values, content) {
            (Values::Texts(values), Content::Bytes(text)) => {
                // A part of the event, or nothing.
                let start = (text.as_ptr() as usize).wrapping_sub(at.event.as_ptr() as usize);
                let start = if text.is_empty() { 0 } else { start };
                values.push((at.row, start, start + text.len()));
            }
            (Values::Floats(values), Content::Fixed64(bits)) => values.push(f64::from_bits(bits)),
            (Values::Floats(values), Content::Fixed32(bits)) => {
                values.push(f64::from(f32::from_bits(bits)));
            }
            (Values::Integers(values), Content::Varint(value)) => values.push(match kind {
                Kind::Uint64 => i128::from(value),
                Kind::Uint32 => i128::from(value as u32),
                Kind::Sint64 => i128::from(unzigzag(value)),
                Kind::Sint32 => i128::from(unzigzag(u64::from(value as u32))),
                _ => i128::from(value != 0),
            }),
            _ => return,
        }
        if let Some(rows) = &mut self.rows {
            rows.push(at.row);
        }
    }

    /// Mark the events of which a value passes the test.
    fn mark(&self, test: &Test, events: &[&[u8]], marks: &mut [bool]) {
        match (&self.values, test) {
            (Values::Integers(values), Test::Compare(op, Literal::Integer(literal))) => {
                self.each(values, marks, |value| op.holds(value, literal));
            }
            (Values::Floats(values), Test::Compare(op, Literal::Float(literal))) => {
                self.each(values, marks, |value| op.holds(value, literal));
            }
            (Values::Texts(values), Test::Compare(op, Literal::Text(literal))) => {
                self.each(values, marks, |&(row, start, end)| {
                    op.holds(&events[row][start..end], literal.as_slice())
                });
            }
            (Values::Integers(values), Test::Integers(set, wanted)) => {
                self.each(values, marks, |value| set.contains(value) == *wanted);
            }
            (Values::Floats(values), Test::Floats(set, wanted)) => {
                let contains = |value: &f64| set.contains(&float_bits(*value));
                self.each(values, marks, |value| contains(value) == *wanted);
            }
            (Values::Texts(values), Test::Texts(set, wanted)) => {
                self.each(values, marks, |&(row, start, end)| {
                    set.contains(&events[row][start..end]) == *wanted
                });
            }
            _ => {}
        }
    }

    fn each<T>(&self, values: &[T], marks: &mut [bool], passes: impl Fn(&T) -> bool) {
        match &self.rows {
            None => {
                for (mark, value) in marks.iter_mut().zip(values) {
                    *mark = passes(value);
                }
            }
            Some(rows) => {
                for (&row, value) in rows.iter().zip(values) {
                    marks[row] |= passes(value);
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Position<'a> {
    row: usize,
    event: &'a [u8],
}

fn read_entry<'a>(
    entry: &Message,
    kind: Kind,
    bytes: &'a [u8],
) -> Result<(&'a [u8], Content<'a>), Undecided> {
    let (mut key, mut value): (&[u8], _) = (&[], absent(kind));
    let mut rest = bytes;
    while !rest.is_empty() {
        let (number, content, after) = field(rest)?;
        rest = after;
        if number == u64::from(entry.fields[0].number) {
            if let Content::Bytes(text) = content {
                key = text;
            }
        } else if number == u64::from(entry.fields[1].number) {
            value = content;
        }
    }
    Ok((key, value))
}

/// Return the value of a field that is not there.
fn absent(kind: Kind) -> Content<'static> {
    match kind {
        Kind::Text | Kind::Message(_) => Content::Bytes(&[]),
        Kind::Double => Content::Fixed64(0),
        Kind::Float => Content::Fixed32(0),
        _ => Content::Varint(0),
    }
}
