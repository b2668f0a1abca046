//! Request bodies to records, piece by piece.
#![forbid(unsafe_code)]

use crate::json::{self, Converter};
use crate::schema::Schema;
use crate::{check, Undecided};

/// A piece ends when it has this many records, or when this much of the body was read.
///
/// The event loop runs other work between two pieces.
const PIECE_RECORDS: usize = 1024;
const PIECE_BYTES: usize = 256 * 1024;

/// The body cannot be split into records here; the Python code names the place, or splits it.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One JSON object, or an array of them.
    Json,
    /// A JSON object a line.
    Lines,
    /// Messages, each behind its length.
    Delimited,
}

/// A part of a buffer: start and end.
pub type Range = (usize, usize);

/// A record by its place: in the piece if it was encoded, in the body otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    Encoded { key: Range, value: Range },
    PassedOn { key: Range, value: Range },
    Undecided(Range),
}

/// Records of a part of a body.
#[derive(Default)]
pub struct Piece {
    pub encoded: Vec<u8>,
    pub records: Vec<Record>,
}

/// A position in a body.
pub struct Reader {
    form: Form,
    at: usize,
    /// In an array of JSON, behind its bracket.
    in_array: bool,
    done: bool,
    converter: Converter,
}

impl Reader {
    pub fn new(form: Form) -> Reader {
        Reader {
            form,
            at: 0,
            in_array: false,
            done: false,
            converter: Converter::default(),
        }
    }

    /// Return whether the body was read to its end.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Replace `piece` by the next one; return false at the end of the body.
    pub fn next(
        &mut self,
        schema: &Schema,
        body: &[u8],
        latest_ns: i64,
        piece: &mut Piece,
    ) -> Result<bool, Malformed> {
        piece.encoded.clear();
        piece.records.clear();
        let last = self.at.saturating_add(PIECE_BYTES);
        while !self.done && self.at < last && piece.records.len() < PIECE_RECORDS {
            match self.form {
                Form::Json => self.json(schema, body, latest_ns, piece)?,
                Form::Lines => self.line(schema, body, latest_ns, piece),
                Form::Delimited => self.delimited(schema, body, latest_ns, piece)?,
            }
        }
        Ok(!self.done || !piece.records.is_empty())
    }

    fn json(
        &mut self,
        schema: &Schema,
        body: &[u8],
        latest_ns: i64,
        piece: &mut Piece,
    ) -> Result<(), Malformed> {
        json::skip_space(body, &mut self.at);
        if !self.in_array {
            if body.get(self.at) != Some(&b'[') {
                // A body of one record: what is wrong with it is a matter of the whole body.
                self.object(schema, body, latest_ns, piece)
                    .map_err(|_| Malformed)?;
                return self.end(body);
            }
            self.at += 1;
            self.in_array = true;
            json::skip_space(body, &mut self.at);
            if body.get(self.at) == Some(&b']') {
                self.at += 1;
                return self.end(body);
            }
        }
        let start = self.at;
        if self.object(schema, body, latest_ns, piece).is_err() {
            json::skip(body, &mut self.at).map_err(|_| Malformed)?;
            piece.records.push(Record::Undecided((start, self.at)));
        }
        json::skip_space(body, &mut self.at);
        self.at += 1;
        match body.get(self.at - 1) {
            Some(b',') => Ok(()),
            Some(b']') => self.end(body),
            _ => Err(Malformed),
        }
    }

    fn object(
        &mut self,
        schema: &Schema,
        body: &[u8],
        latest_ns: i64,
        piece: &mut Piece,
    ) -> Result<(), Undecided> {
        let start = piece.encoded.len();
        let out = &mut piece.encoded;
        let key = self
            .converter
            .event(schema, body, &mut self.at, latest_ns, out)?;
        let value = (start, out.len());
        piece.records.push(Record::Encoded { key, value });
        Ok(())
    }

    fn end(&mut self, body: &[u8]) -> Result<(), Malformed> {
        json::skip_space(body, &mut self.at);
        self.done = true;
        if self.at == body.len() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    fn line(&mut self, schema: &Schema, body: &[u8], latest_ns: i64, piece: &mut Piece) {
        let start = self.at;
        let end = memchr::memchr(b'\n', &body[start..]).map_or(body.len(), |size| start + size);
        let line = &body[start..end];
        self.at = end + 1;
        self.done = self.at >= body.len();
        let (mut at, before) = (0, piece.encoded.len());
        json::skip_space(line, &mut at);
        let out = &mut piece.encoded;
        if let Ok(key) = self.converter.event(schema, line, &mut at, latest_ns, out) {
            json::skip_space(line, &mut at);
            if at == line.len() {
                let value = (before, out.len());
                piece.records.push(Record::Encoded { key, value });
                return;
            }
            out.truncate(before);
        }
        // As Python's isspace() has it.
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
        if !line.iter().all(blank) {
            piece.records.push(Record::Undecided((start, end)));
        }
    }

    fn delimited(
        &mut self,
        schema: &Schema,
        body: &[u8],
        latest_ns: i64,
        piece: &mut Piece,
    ) -> Result<(), Malformed> {
        if self.at == body.len() {
            self.done = true;
            return Ok(());
        }
        let (message, rest) = check::sized(&body[self.at..]).map_err(|_| Malformed)?;
        self.at = body.len() - rest.len();
        let value = (self.at - message.len(), self.at);
        piece
            .records
            .push(match check::event(schema, message, latest_ns) {
                Ok((start, end)) => Record::PassedOn {
                    key: (value.0 + start, value.0 + end),
                    value,
                },
                Err(Undecided) => Record::Undecided(value),
            });
        self.done = self.at == body.len();
        Ok(())
    }
}
