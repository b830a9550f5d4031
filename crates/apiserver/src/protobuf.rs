//! Objects in Kubernetes' protobuf form, which kubectl's `create namespace` and its like send: decoded to JSON at the door.
//!
//! A body is the four bytes `k8s\0` and a `runtime.Unknown` message: type, raw object, encoding, content type. The field
//! numbers are data (`data/protobuf.json`). Answers are always JSON, which these clients accept too.
//!
//! Go writes fields that are not pointers even when they are empty, and the wire does not tell them from those that were
//! set to zero. So empty texts and 32-bit zeros are taken as absent, as `omitempty` would have it in JSON; 64-bit zeros
//! (`terminationGracePeriodSeconds`, `runAsUser`) and booleans are kept. Unknown numbers are skipped, as protobuf has it.
//!
//! Total: any bytes give an object or an error; depth and size are bounded by those of the body.

use std::collections::HashMap;

use base64::Engine as _;
use serde_json::{Map, Value};

use crate::catalog::CatalogError;
use crate::limits::NESTING_MAX;

const MAGIC: &[u8; 4] = b"k8s\0";

/// All messages by their OpenAPI names.
#[derive(Debug)]
pub(crate) struct Messages(HashMap<String, HashMap<u64, FieldCode>>);

#[derive(Debug)]
struct FieldCode {
    name: String,
    many: Many,
    code: Code,
    /// Nested on the wire, not in JSON.
    inline: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Many {
    One,
    List,
    Map,
}

#[derive(Debug)]
enum Code {
    Text,
    Bytes,
    Boolean,
    Small,
    Large,
    Double,
    Message(String),
}

/// Why bytes are not an object.
type Fault = &'static str;

/// A field's value on the wire.
enum Wire<'a> {
    Number(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

impl Messages {
    pub(crate) fn load(json: &str) -> Result<Self, CatalogError> {
        let table: HashMap<String, Vec<(u64, String, String)>> =
            serde_json::from_str(json).map_err(|source| CatalogError::Data { file: "protobuf.json", source })?;
        let field = |(number, name, kind): (u64, String, String)| {
            let inline = kind.starts_with('^');
            let kind = kind.trim_start_matches('^');
            let many = match kind.as_bytes().first() {
                Some(b'*') => Many::List,
                Some(b'%') => Many::Map,
                _ => Many::One,
            };
            let code = match kind.trim_start_matches(['*', '%']) {
                "string" => Code::Text,
                "bytes" => Code::Bytes,
                "bool" => Code::Boolean,
                "int32" => Code::Small,
                "int64" => Code::Large,
                "double" => Code::Double,
                message => Code::Message(message.to_owned()),
            };
            (number, FieldCode { name, many, code, inline })
        };
        Ok(Self(table.into_iter().map(|(name, fields)| (name, fields.into_iter().map(field).collect())).collect()))
    }

    /// The object in a body; `kind` is the schema's name.
    pub(crate) fn decode(&self, kind: &str, body: &[u8]) -> Result<Value, Fault> {
        let envelope = body.strip_prefix(MAGIC).ok_or("it does not begin with k8s\\0")?;
        let mut object = Value::Object(Map::new());
        let mut types = Map::new();
        let mut reader = Reader(envelope);
        while let Some((number, wire)) = reader.next()? {
            match (number, wire) {
                (1, Wire::Bytes(bytes)) => {
                    let mut reader = Reader(bytes);
                    while let Some((number, wire)) = reader.next()? {
                        if let (1 | 2, Wire::Bytes(bytes)) = (number, wire) {
                            let name = if number == 1 { "apiVersion" } else { "kind" };
                            types.insert(name.to_owned(), Value::String(text(bytes)?));
                        }
                    }
                }
                (2, Wire::Bytes(bytes)) => object = self.message(kind, bytes, 0)?,
                (3, Wire::Bytes(encoding)) if !encoding.is_empty() => return Err("its encoding is unknown"),
                _ => {}
            }
        }
        if let Some(object) = object.as_object_mut() {
            object.extend(types.into_iter().filter(|(_, value)| *value != ""));
        }
        Ok(object)
    }

    fn message(&self, kind: &str, bytes: &[u8], depth: usize) -> Result<Value, Fault> {
        if depth > NESTING_MAX {
            return Err("it is nested too deep");
        }
        match kind.rsplit('.').next().unwrap_or_default() {
            "Quantity" => return Ok(first_text(bytes)?.map_or(Value::Null, Value::String)),
            "IntOrString" => return int_or_string(bytes),
            "Time" | "MicroTime" => return time(bytes, kind.ends_with("MicroTime")),
            "FieldsV1" | "RawExtension" => return raw_json(bytes),
            _ => {}
        }
        // A message without fields is not in the table.
        let Some(fields) = self.0.get(kind) else { return Ok(Value::Object(Map::new())) };
        let mut object = Map::new();
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            let Some(field) = fields.get(&number) else { continue };
            match field.many {
                Many::Map => self.entry(field, &wire, &mut object, depth)?,
                Many::List => {
                    let list = object.entry(field.name.clone()).or_insert_with(|| Value::Array(Vec::new()));
                    let items = self.items(field, wire, depth)?;
                    list.as_array_mut().ok_or("a list is no list")?.extend(items);
                }
                Many::One => {
                    let value = self.value(field, &wire, depth)?;
                    if field.inline
                        && let Value::Object(inner) = value
                    {
                        object.extend(inner);
                    } else if !is_absent(field, &value) {
                        object.insert(field.name.clone(), value);
                    }
                }
            }
        }
        Ok(Value::Object(object))
    }

    fn value(&self, field: &FieldCode, wire: &Wire<'_>, depth: usize) -> Result<Value, Fault> {
        Ok(match (&field.code, wire) {
            (Code::Text, Wire::Bytes(bytes)) => Value::String(text(bytes)?),
            (Code::Bytes, Wire::Bytes(bytes)) => Value::String(base64::engine::general_purpose::STANDARD.encode(bytes)),
            (Code::Boolean, Wire::Number(number)) => Value::Bool(*number != 0),
            // Negative numbers are ten bytes long, sign-extended, whatever their size.
            (Code::Small | Code::Large, Wire::Number(number)) => Value::from(number.cast_signed()),
            (Code::Double, Wire::Fixed(bits)) => {
                serde_json::Number::from_f64(f64::from_bits(*bits)).map_or(Value::Null, Value::Number)
            }
            (Code::Message(kind), Wire::Bytes(bytes)) => self.message(kind, bytes, depth + 1)?,
            _ => return Err("a field has another wire type than it should"),
        })
    }

    /// One element, or several numbers packed into one field.
    fn items(&self, field: &FieldCode, wire: Wire<'_>, depth: usize) -> Result<Vec<Value>, Fault> {
        let Wire::Bytes(bytes) = wire else { return Ok(vec![self.value(field, &wire, depth)?]) };
        if !matches!(field.code, Code::Boolean | Code::Small | Code::Large) {
            return Ok(vec![self.value(field, &wire, depth)?]);
        }
        let mut reader = Reader(bytes);
        let mut items = Vec::new();
        while !reader.0.is_empty() {
            let number = reader.varint()?;
            items.push(self.value(field, &Wire::Number(number), depth)?);
        }
        Ok(items)
    }

    fn entry(
        &self,
        field: &FieldCode,
        wire: &Wire<'_>,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Fault> {
        let Wire::Bytes(bytes) = wire else { return Err("a map's entry is no message") };
        let mut key = String::new();
        let mut value = match field.code {
            Code::Text | Code::Bytes => Value::String(String::new()),
            _ => Value::Null,
        };
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            match (number, wire) {
                (1, Wire::Bytes(bytes)) => key = text(bytes)?,
                (2, wire) => value = self.value(field, &wire, depth)?,
                _ => {}
            }
        }
        let map = object.entry(field.name.clone()).or_insert_with(|| Value::Object(Map::new()));
        map.as_object_mut().ok_or("a map is no map")?.insert(key, value);
        Ok(())
    }
}

fn is_absent(field: &FieldCode, value: &Value) -> bool {
    match (&field.code, value) {
        (_, Value::Null) => true,
        (Code::Text | Code::Bytes, Value::String(text)) => text.is_empty(),
        (Code::Small, Value::Number(number)) => number.as_i64() == Some(0),
        _ => false,
    }
}

fn text(bytes: &[u8]) -> Result<String, Fault> {
    String::from_utf8(bytes.to_vec()).map_err(|_invalid| "a text is not UTF-8")
}

fn first_text(bytes: &[u8]) -> Result<Option<String>, Fault> {
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        if let (1, Wire::Bytes(bytes)) = (number, wire) {
            return text(bytes).map(Some);
        }
    }
    Ok(None)
}

/// Field 1 says which of 2 (a number) and 3 (a text) counts.
fn int_or_string(bytes: &[u8]) -> Result<Value, Fault> {
    let (mut is_text, mut number_value, mut text_value) = (false, 0, String::new());
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Number(kind)) => is_text = kind == 1,
            (2, Wire::Number(value)) => number_value = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => text_value = text(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { Value::String(text_value) } else { Value::from(number_value) })
}

/// Nothing at all is the zero time, which is no time.
fn time(bytes: &[u8], micro: bool) -> Result<Value, Fault> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Number(value)) => seconds = value.cast_signed(),
            (2, Wire::Number(value)) => {
                nanos = i32::try_from(value.cast_signed()).map_err(|_large| "a time is out of range")?
            }
            _ => {}
        }
    }
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_range| "a time is out of range")?;
    let format = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(Value::String(time.strftime(format).to_string()))
}

fn raw_json(bytes: &[u8]) -> Result<Value, Fault> {
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        if let (1, Wire::Bytes(bytes)) = (number, wire) {
            return serde_json::from_slice(bytes).map_err(|_invalid| "an embedded document is not JSON");
        }
    }
    Ok(Value::Null)
}

/// Takes fields off the front of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, Fault> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Fixed(u64::from_le_bytes(self.take(8)?.try_into().unwrap_or_default())),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_large| "a length is too large")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed(0)
            }
            _ => return Err("a field has an unknown wire type"),
        };
        Ok(Some((tag >> 3, wire)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("it ends in the middle of a field")?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.take(1)? else { return Err("it ends in the middle of a number") };
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too long")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn messages() -> &'static Messages {
        &crate::catalog::for_tests().messages
    }

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).expect("short");
        [&[number << 3 | 2, length], bytes].concat()
    }

    #[test]
    fn an_object_is_decoded_field_by_field() {
        let port = [field(1, b""), vec![0x18, 80]].concat();
        let container = [field(1, b"main"), field(2, b"image"), field(6, &port), field(14, b"")].concat();
        let volume = [field(1, b"v"), field(2, &field(1, &field(1, b"/path")))].concat();
        let spec = [field(1, &volume), field(2, &container), vec![0x20, 0]].concat();
        let pod = [
            field(1, &[field(1, b"a"), field(8, b""), field(11, &[field(1, b"k"), field(2, b"v")].concat())].concat()),
            field(2, &spec),
        ]
        .concat();
        let types = [field(1, b"v1"), field(2, b"Pod")].concat();
        let body = [MAGIC.to_vec(), field(1, &types), field(2, &pod), field(3, b""), field(4, b"")].concat();
        let decoded = messages().decode("io.k8s.api.core.v1.Pod", &body).expect("a pod");
        assert_eq!(
            decoded,
            serde_json::json!({
                "metadata": {"name": "a", "labels": {"k": "v"}},
                "spec": {
                    "volumes": [{"name": "v", "hostPath": {"path": "/path"}}],
                    "containers": [{"name": "main", "image": "image", "ports": [{"containerPort": 80}]}],
                    "terminationGracePeriodSeconds": 0,
                },
                "apiVersion": "v1",
                "kind": "Pod",
            })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let body = [MAGIC.to_vec(), field(2, &bytes)].concat();
            drop(messages().decode("io.k8s.api.core.v1.Pod", &body));
            drop(messages().decode("io.k8s.api.core.v1.Pod", &bytes));
        }
    }
}
