//! The embedded data, read once: resources, schemas, rules.

use crate::protobuf::Messages;
use crate::resources::Resource;
use crate::schema::Schemas;

const RESOURCES: &str = include_str!("../data/resources.json");
pub(crate) const PROTOBUF: &str = include_str!("../data/protobuf.json");
const RULES: &str = include_str!("../data/rules.json");

/// The published specification of core/v1, as it is served to clients too.
pub(crate) const OPENAPI_CORE: &[u8] = include_bytes!("../data/openapi/api__v1.json");

/// The embedded data is not what the code expects. A fault of the build, found by the first test.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A file is not of the expected form.
    #[error("the embedded {file} is damaged")]
    Data {
        /// Which file.
        file: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A schema is referred to and missing.
    #[error("the embedded schemas lack {0}")]
    NoSchema(String),
    /// A rule names a type or field that the schemas lack.
    #[error("the embedded rules name {0}, which the schemas lack")]
    NoField(String),
}

/// Resources, and the schemas they are made of.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) resources: Vec<Resource>,
    pub(crate) schemas: Schemas,
    pub(crate) messages: Messages,
}

impl Catalog {
    pub(crate) fn load() -> Result<Self, CatalogError> {
        let schemas = Schemas::load(&[OPENAPI_CORE], RULES)?;
        let mut resources = Resource::table(RESOURCES)?;
        for resource in &mut resources {
            resource.object_type =
                schemas.named(&resource.schema).ok_or_else(|| CatalogError::NoSchema(resource.schema.clone()))?;
        }
        Ok(Self { resources, schemas, messages: Messages::load(PROTOBUF)? })
    }

    /// By group and plural, as in a request's path.
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Resource> {
        self.resources.iter().find(|one| one.group == group && one.version == version && one.plural == plural)
    }

    /// By the store's name: `pods`.
    pub(crate) fn stored(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|one| match name.split_once('/') {
            None => one.group.is_empty() && one.plural == name,
            Some((group, plural)) => one.group == group && one.plural == plural,
        })
    }
}

/// One for all tests of this crate: reading half a megabyte of schemas for every case of a property takes its time.
#[cfg(test)]
pub(crate) fn for_tests() -> &'static Catalog {
    static CATALOG: std::sync::LazyLock<Catalog> = std::sync::LazyLock::new(|| Catalog::load().expect("embedded data"));
    &CATALOG
}
