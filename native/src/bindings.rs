//! What Python sees: `mev._native`.

use std::sync::{Arc, Mutex};

use pyo3::buffer::PyBuffer;
use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use crate::body::{Form, Malformed, Piece, Range, Reader, Record};
use crate::check;
use crate::filter::{Columns, Condition, Literal, Op, Path, Test};
use crate::records;
use crate::schema::{Field, Kind, Label, Message, Schema, MAX_FIELDS};
use crate::trees::Trees;

create_exception!(
    mev._native,
    MalformedError,
    PyValueError,
    "The body cannot be split into records by the native code."
);

/// A model of the form `.mevt`; thread-safe.
#[pyclass(frozen, module = "mev._native")]
struct TreeModel {
    trees: Trees,
}

#[pymethods]
impl TreeModel {
    /// Read a model; the argument of a ValueError is the number of the reason.
    #[new]
    fn new(data: &[u8]) -> PyResult<TreeModel> {
        match Trees::open(data) {
            Ok(trees) => Ok(TreeModel { trees }),
            Err(reason) => Err(PyValueError::new_err(reason as u8)),
        }
    }

    /// Objective, number of features, trees and nodes.
    #[getter]
    fn shape(&self) -> (u32, u32, u32, u32) {
        let trees = &self.trees;
        (trees.objective, trees.features, trees.trees, trees.nodes)
    }

    /// Write the scores of `rows`, a table of float32 in C order, to `scores`.
    fn predict(
        &self,
        py: Python<'_>,
        rows: PyBuffer<f32>,
        scores: PyBuffer<f32>,
        margin: bool,
    ) -> PyResult<()> {
        let width = self.trees.features as usize;
        if rows.dimensions() != 2 || rows.shape()[1] != width {
            return Err(wrong("the rows have another width than the model"));
        }
        let values = rows.to_vec(py)?;
        let found = py.allow_threads(|| self.trees.predict(&values, margin));
        scores.copy_from_slice(py, &found)
    }
}

/// A field in a table: name, camel-case name, number, kind, label, index of its message.
type FieldRow = (String, String, u32, String, String, usize);

/// The fields of an event type, for filters.
#[pyclass(frozen, module = "mev._native")]
struct EventTables {
    messages: Arc<Vec<Message>>,
}

#[pymethods]
impl EventTables {
    #[new]
    fn new(tables: Vec<Vec<FieldRow>>) -> PyResult<EventTables> {
        Ok(EventTables {
            messages: Arc::new(messages(tables)?),
        })
    }
}

/// A literal of a condition. A bool is tried first: Python takes it for an integer too.
#[derive(FromPyObject)]
enum PyLiteral {
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
}

impl From<PyLiteral> for Literal {
    fn from(value: PyLiteral) -> Literal {
        match value {
            PyLiteral::Bool(value) => Literal::Integer(value.into()),
            PyLiteral::Signed(value) => Literal::Integer(value.into()),
            PyLiteral::Unsigned(value) => Literal::Integer(value.into()),
            PyLiteral::Float(value) => Literal::Float(value),
            PyLiteral::Text(value) => Literal::Text(value.into()),
        }
    }
}

/// Field names from the event on, key of a map, operator, literals.
type ConditionRow = (Vec<String>, Option<String>, String, Vec<PyLiteral>);

/// Conditions on events of one type, all of which must hold.
#[pyclass(frozen, module = "mev._native")]
struct EventFilter {
    conditions: Vec<Condition>,
}

#[pymethods]
impl EventFilter {
    /// A ValueError says that a condition is of a form that the native code does not know.
    #[new]
    fn new(tables: &EventTables, conditions: Vec<ConditionRow>) -> PyResult<EventFilter> {
        let conditions = conditions
            .into_iter()
            .map(|row| condition(&tables.messages, row))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| wrong("a condition is of another form"))?;
        Ok(EventFilter { conditions })
    }
}

fn condition(messages: &[Message], row: ConditionRow) -> Option<Condition> {
    let (names, key, op, literals) = row;
    let path = Path::new(messages, &names, key)?;
    let mut literals = literals.into_iter().map(Literal::from);
    let mut compare = |op| literals.next().map(|literal| Test::Compare(op, literal));
    let test = match op.as_str() {
        "==" => compare(Op::Equal),
        "!=" => compare(Op::NotEqual),
        "<" => compare(Op::Less),
        "<=" => compare(Op::LessOrEqual),
        ">" => compare(Op::Greater),
        ">=" => compare(Op::GreaterOrEqual),
        "in" => Test::contains(literals.collect(), true),
        "not in" => Test::contains(literals.collect(), false),
        _ => None,
    };
    Condition::new(path, test?)
}

/// Encoded events of one type; what filters read of them is kept.
#[pyclass(frozen, module = "mev._native")]
struct EventBlock {
    messages: Arc<Vec<Message>>,
    events: Vec<Py<PyBytes>>,
    columns: Mutex<Columns>,
}

#[pymethods]
impl EventBlock {
    /// A ValueError says that an event is not certainly valid.
    #[new]
    fn new(py: Python<'_>, tables: &EventTables, events: Vec<Py<PyBytes>>) -> PyResult<EventBlock> {
        let values: Vec<&[u8]> = events.iter().map(|event| event.as_bytes(py)).collect();
        let messages = Arc::clone(&tables.messages);
        let valid = py.allow_threads(|| {
            values
                .iter()
                .all(|event| check::message(&messages, 0, event, 0).is_ok())
        });
        if !valid {
            return Err(wrong("an event is not certainly valid"));
        }
        Ok(EventBlock {
            messages,
            events,
            columns: Mutex::default(),
        })
    }

    /// Return the places of the events for which all conditions hold, None if that is all of them.
    fn select(&self, py: Python<'_>, conditions: &EventFilter) -> Option<Vec<usize>> {
        let values: Vec<&[u8]> = self.events.iter().map(|event| event.as_bytes(py)).collect();
        // The interpreter lock is kept: a thread that waited for this one with it would not end.
        let mut columns = match self.columns.lock() {
            Ok(columns) => columns,
            Err(broken) => broken.into_inner(),
        };
        let chosen = columns.select(&self.messages, &values, &conditions.conditions);
        if chosen.iter().all(|&chosen| chosen) {
            return None;
        }
        let places = chosen.iter().enumerate().filter(|(_, &chosen)| chosen);
        Some(places.map(|(place, _)| place).collect())
    }
}

/// Converter of the bodies of one event type.
#[pyclass(frozen, module = "mev._native")]
struct BodyConverter {
    schema: Arc<Schema>,
}

#[pymethods]
impl BodyConverter {
    #[new]
    #[pyo3(signature = (tables, *, key, required, times, max_record_bytes, earliest_ns))]
    fn new(
        tables: Vec<Vec<FieldRow>>,
        key: &str,
        required: Vec<String>,
        times: Vec<String>,
        max_record_bytes: usize,
        earliest_ns: i64,
    ) -> PyResult<BodyConverter> {
        let messages = messages(tables)?;
        let event = messages.first().ok_or_else(|| wrong("no message"))?;
        let key = single(event, key, Kind::Text)?;
        let mut schema = Schema {
            required: 0,
            times: 0,
            key,
            max_record_bytes,
            earliest_ns,
            messages: Vec::new(),
        };
        for name in &required {
            schema.required |= 1 << place(event, name)?;
        }
        for name in &times {
            schema.times |= 1 << single(event, name, Kind::Sint64)?;
        }
        schema.messages = messages;
        Ok(BodyConverter {
            schema: Arc::new(schema),
        })
    }

    /// Return an iterator over the pieces of `body`.
    fn pieces(&self, body: Py<PyBytes>, form: &str, latest_ns: i64) -> PyResult<Pieces> {
        let form = match form {
            "json" => Form::Json,
            "lines" => Form::Lines,
            "delimited" => Form::Delimited,
            _ => return Err(wrong("no such form")),
        };
        Ok(Pieces {
            schema: Arc::clone(&self.schema),
            body,
            latest_ns,
            reader: Reader::new(form),
            piece: Piece::default(),
        })
    }
}

/// Iterator over the pieces of a body: the records, None in the place of an undecided one; and
/// the undecided ones, each with its place; and whether there are more pieces.
#[pyclass(module = "mev._native")]
struct Pieces {
    schema: Arc<Schema>,
    body: Py<PyBytes>,
    latest_ns: i64,
    reader: Reader,
    piece: Piece,
}

type Part<'py> = (Bound<'py, PyList>, Vec<(usize, Bound<'py, PyBytes>)>, bool);

#[pymethods]
impl Pieces {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Part<'py>>> {
        let Pieces {
            schema,
            body,
            latest_ns,
            reader,
            piece,
        } = self;
        let (schema, body, latest_ns) = (&**schema, body.as_bytes(py), *latest_ns);
        let more = py
            .allow_threads(|| reader.next(schema, body, latest_ns, piece))
            .map_err(|Malformed| MalformedError::new_err("the body cannot be split"))?;
        if !more {
            return Ok(None);
        }
        let names = (intern!(py, "key"), intern!(py, "value"));
        let mut undecided = Vec::new();
        let mut records = Vec::with_capacity(piece.records.len());
        for record in &piece.records {
            records.push(match *record {
                Record::Encoded { key, value } => {
                    Some(kafka_record(py, names, &piece.encoded, key, value)?)
                }
                Record::PassedOn { key, value } => Some(kafka_record(py, names, body, key, value)?),
                Record::Undecided(raw) => {
                    undecided.push((records.len(), PyBytes::new(py, &body[raw.0..raw.1])));
                    None
                }
            });
        }
        let records = PyList::new(py, records)?;
        Ok(Some((records, undecided, !reader.is_done())))
    }
}

fn kafka_record<'py>(
    py: Python<'py>,
    names: (&Bound<'py, PyString>, &Bound<'py, PyString>),
    buffer: &[u8],
    key: Range,
    value: Range,
) -> PyResult<Bound<'py, PyDict>> {
    let record = PyDict::new(py);
    record.set_item(names.0, PyBytes::new(py, &buffer[key.0..key.1]))?;
    record.set_item(names.1, PyBytes::new(py, &buffer[value.0..value.1]))?;
    Ok(record)
}

fn messages(tables: Vec<Vec<FieldRow>>) -> PyResult<Vec<Message>> {
    let count = tables.len();
    if count == 0 {
        return Err(wrong("no message"));
    }
    tables
        .into_iter()
        .map(|table| message(table, count))
        .collect()
}

fn message(table: Vec<FieldRow>, messages: usize) -> PyResult<Message> {
    if table.len() > MAX_FIELDS {
        return Err(wrong("a message with more than 64 fields"));
    }
    let fields = table
        .into_iter()
        .map(|(name, camel_case_name, number, kind, label, inner)| {
            let kind = match kind.as_str() {
                "double" => Kind::Double,
                "float" => Kind::Float,
                "uint64" => Kind::Uint64,
                "uint32" => Kind::Uint32,
                "sint64" => Kind::Sint64,
                "sint32" => Kind::Sint32,
                "bool" => Kind::Bool,
                "string" => Kind::Text,
                "message" if inner < messages => Kind::Message(inner),
                _ => return Err(wrong(&format!("{name}: type {kind} is not known"))),
            };
            let label = match label.as_str() {
                "single" => Label::Single,
                "repeated" => Label::Repeated,
                "map" => Label::Map,
                _ => return Err(wrong(&format!("{name}: label {label} is not known"))),
            };
            if !(1..4096).contains(&number) {
                return Err(wrong(&format!("{name}: number {number} is not supported")));
            }
            Ok(Field::new(&name, &camel_case_name, number, kind, label))
        })
        .collect::<PyResult<Vec<_>>>()?;
    Ok(Message::new(fields))
}

fn place(message: &Message, name: &str) -> PyResult<usize> {
    message
        .fields
        .iter()
        .position(|field| field.name == name.as_bytes() && field.label == Label::Single)
        .ok_or_else(|| wrong(&format!("{name}: no single field of that name")))
}

fn single(message: &Message, name: &str, kind: Kind) -> PyResult<usize> {
    let index = place(message, name)?;
    if message.fields[index].kind == kind {
        Ok(index)
    } else {
        Err(wrong(&format!("{name}: a field of another type is needed")))
    }
}

fn wrong(reason: &str) -> PyErr {
    PyValueError::new_err(reason.to_owned())
}

/// Whether `data` from `start` is exactly `count` records of a Kafka record batch.
#[pyfunction]
fn are_complete_records(data: &[u8], start: usize, count: u32) -> bool {
    data.get(start..)
        .map_or(false, |found| records::are_complete(found, count))
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("INTERFACE", 4)?;
    module.add_function(wrap_pyfunction!(are_complete_records, module)?)?;
    module.add_class::<BodyConverter>()?;
    module.add_class::<Pieces>()?;
    module.add_class::<TreeModel>()?;
    module.add_class::<EventTables>()?;
    module.add_class::<EventFilter>()?;
    module.add_class::<EventBlock>()?;
    module.add("MalformedError", module.py().get_type::<MalformedError>())
}
