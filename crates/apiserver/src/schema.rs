//! The published schemas, as compact types that validation, defaulting and patching walk along.
//!
//! From OpenAPI come types, required fields, defaults and merge strategies; from `data/rules.json` what Kubernetes
//! keeps in code: more defaults, permitted values, ranges, formats. Types refer to each other by number.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::Value;

use crate::catalog::CatalogError;

/// A type's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TypeId(usize);

/// What a value may look like.
#[derive(Debug)]
pub(crate) enum Type {
    Object(ObjectType),
    /// Free keys, values of one type.
    Map(TypeId),
    List(TypeId),
    Text,
    /// Base64.
    Bytes,
    Time,
    Integer {
        bits: u8,
    },
    Number,
    Boolean,
    IntOrString,
    Quantity,
    /// Anything at all.
    Any,
}

#[derive(Debug, Default)]
pub(crate) struct ObjectType {
    pub(crate) fields: BTreeMap<String, Field>,
}

/// One field of an object.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) value: TypeId,
    pub(crate) required: bool,
    /// How the specification completes it where it must be there: often a zero value.
    pub(crate) published_default: Option<Value>,
    pub(crate) merge: Merge,
    pub(crate) rule: Rule,
}

/// How strategic merge patch treats a field.
#[derive(Debug, Default, Clone)]
pub(crate) struct Merge {
    /// Elements of a list are merged rather than the list replaced.
    pub(crate) lists: bool,
    /// By this key; None merges values of scalars.
    pub(crate) key: Option<String>,
    /// Maps are replaced, not merged.
    pub(crate) replace: bool,
}

/// What code, not schema, says of a field.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Rule {
    pub(crate) default: Option<Value>,
    #[serde(rename = "enum", default)]
    pub(crate) permitted: Vec<String>,
    pub(crate) minimum: Option<i64>,
    pub(crate) maximum: Option<i64>,
    #[serde(default)]
    pub(crate) non_empty: bool,
    /// Elements of the list differ in this field.
    pub(crate) unique: Option<String>,
    pub(crate) format: Option<Format>,
    pub(crate) entries: Option<Entries>,
}

/// The form of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    DnsLabel,
    DnsSubdomain,
    PortName,
    EnvName,
    Ip,
    /// Relative and without `..`.
    InnerPath,
}

/// The form of a map's keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Entries {
    Label,
    Annotation,
    Resource,
    ConfigKey,
}

/// All types.
#[derive(Debug)]
pub(crate) struct Schemas {
    types: Vec<Type>,
    names: HashMap<String, TypeId>,
}

impl Schemas {
    /// Reads OpenAPI v3 documents and the rules.
    pub(crate) fn load(documents: &[&[u8]], rules: &str) -> Result<Self, CatalogError> {
        let mut rules: HashMap<String, HashMap<String, Rule>> =
            serde_json::from_str(rules).map_err(|source| CatalogError::Data { file: "rules.json", source })?;
        let mut schemas = Self { types: vec![Type::Any], names: HashMap::new() };
        for document in documents {
            let document: Value = serde_json::from_slice(document)
                .map_err(|source| CatalogError::Data { file: "OpenAPI specification", source })?;
            let Some(components) = document["components"]["schemas"].as_object() else { continue };
            for name in components.keys() {
                if !schemas.names.contains_key(name) {
                    schemas.names.insert(name.clone(), TypeId(schemas.types.len()));
                    schemas.types.push(Type::Any);
                }
            }
            for (name, schema) in components {
                let built = schemas.build(name, schema, &mut rules)?;
                let place = schemas.names.get(name).copied().unwrap_or_default();
                schemas.types[place.0] = built;
            }
        }
        if let Some((name, fields)) = rules.into_iter().find(|(_, fields)| !fields.is_empty()) {
            let field = fields.into_keys().next().unwrap_or_default();
            return Err(CatalogError::NoField(format!("{name}.{field}")));
        }
        Ok(schemas)
    }

    pub(crate) fn named(&self, name: &str) -> Option<TypeId> {
        self.names.get(name).copied()
    }

    pub(crate) fn get(&self, id: TypeId) -> &Type {
        self.types.get(id.0).unwrap_or(&Type::Any)
    }

    /// The field of an object type; None for any other type.
    pub(crate) fn field(&self, id: TypeId, name: &str) -> Option<&Field> {
        match self.get(id) {
            Type::Object(object) => object.fields.get(name),
            _ => None,
        }
    }

    fn add(&mut self, built: Type) -> TypeId {
        self.types.push(built);
        TypeId(self.types.len() - 1)
    }

    fn build(&mut self, name: &str, schema: &Value, rules: &mut Rules) -> Result<Type, CatalogError> {
        match name.rsplit('.').next() {
            Some("Quantity") => return Ok(Type::Quantity),
            Some("IntOrString") => return Ok(Type::IntOrString),
            _ => {}
        }
        if let Some(properties) = schema["properties"].as_object() {
            let mut own = rules.remove(name.rsplit('.').next().unwrap_or(name)).unwrap_or_default();
            let required = schema["required"].as_array();
            let mut object = ObjectType::default();
            for (field, schema) in properties {
                let built = Field {
                    value: self.reference(schema, rules)?,
                    required: required.is_some_and(|all| all.iter().any(|one| one == field)),
                    published_default: schema.get("default").cloned(),
                    merge: merge_of(schema),
                    rule: own.remove(field).unwrap_or_default(),
                };
                object.fields.insert(field.clone(), built);
            }
            if let Some(field) = own.into_keys().next() {
                return Err(CatalogError::NoField(format!("{name}.{field}")));
            }
            return Ok(Type::Object(object));
        }
        if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
            return Ok(Type::Map(self.reference(values, rules)?));
        }
        Ok(match (schema["type"].as_str(), schema["format"].as_str()) {
            (Some("array"), _) => Type::List(self.reference(&schema["items"], rules)?),
            (Some("string"), Some("byte")) => Type::Bytes,
            (Some("string"), Some("date-time")) => Type::Time,
            (Some("string"), _) => Type::Text,
            (Some("integer"), Some("int32")) => Type::Integer { bits: 32 },
            (Some("integer"), _) => Type::Integer { bits: 64 },
            (Some("number"), _) => Type::Number,
            (Some("boolean"), _) => Type::Boolean,
            _ => Type::Any,
        })
    }

    /// The type of a place that either refers to a named schema or describes one itself.
    fn reference(&mut self, schema: &Value, rules: &mut Rules) -> Result<TypeId, CatalogError> {
        let target = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
        match target.and_then(|path| path.rsplit('/').next()) {
            Some(name) => self.named(name).ok_or_else(|| CatalogError::NoSchema(name.to_owned())),
            None => {
                let built = self.build("", schema, rules)?;
                Ok(self.add(built))
            }
        }
    }
}

type Rules = HashMap<String, HashMap<String, Rule>>;

fn merge_of(schema: &Value) -> Merge {
    let strategies = schema["x-kubernetes-patch-strategy"].as_str().unwrap_or_default();
    let has = |strategy| strategies.split(',').any(|one| one == strategy);
    Merge {
        lists: has("merge"),
        key: schema["x-kubernetes-patch-merge-key"].as_str().map(str::to_owned),
        replace: has("replace"),
    }
}
