//! Which form of an answer a client wants.

use http::HeaderMap;

use crate::error::ApiError;

/// The encoding of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Format {
    #[default]
    Json,
    Yaml,
}

/// The shape of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Shape {
    /// As it is stored.
    #[default]
    Object,
    /// Columns and rows, for people.
    Table,
    /// Only the metadata.
    Metadata,
}

/// One offer of an `Accept` header.
#[derive(Debug, Default)]
pub(crate) struct Offer<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl Offer<'_> {
    pub(crate) fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    fn format(&self) -> Option<Format> {
        match self.media {
            "application/json" | "*/*" | "application/*" | "text/plain" | "text/*" | "text/html" => Some(Format::Json),
            "application/yaml" | "application/x-yaml" | "text/yaml" => Some(Format::Yaml),
            _ => None,
        }
    }
}

/// The offers of all `Accept` headers, in order. Quality values are not weighed: Kubernetes clients list what they prefer first.
pub(crate) fn offers(headers: &HeaderMap) -> Vec<Offer<'_>> {
    let texts = headers.get_all(http::header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    texts
        .flat_map(|text| text.split(','))
        .take(32)
        .map(|offer| {
            let mut parts = offer.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            Offer { media, parameters: parts.filter_map(|part| part.split_once('=')).collect() }
        })
        .collect()
}

impl Format {
    /// For errors: never fails, JSON unless only YAML is wanted.
    pub(crate) fn of_errors(headers: &HeaderMap) -> Self {
        offers(headers).iter().find_map(Offer::format).unwrap_or_default()
    }
}

/// The first offer that can be made good.
pub(crate) fn negotiate(headers: &HeaderMap) -> Result<(Format, Shape), ApiError> {
    let offers = offers(headers);
    if offers.is_empty() {
        return Ok((Format::Json, Shape::Object));
    }
    for offer in &offers {
        let Some(format) = offer.format() else { continue };
        let shape = match offer.parameter("as") {
            "" => Shape::Object,
            "Table" if offer.parameter("g") == "meta.k8s.io" => Shape::Table,
            "PartialObjectMetadata" | "PartialObjectMetadataList" if offer.parameter("g") == "meta.k8s.io" => {
                Shape::Metadata
            }
            _ => continue,
        };
        return Ok((format, shape));
    }
    let why = "only the following media types are accepted: application/json, application/yaml";
    Err(ApiError::new(http::StatusCode::NOT_ACCEPTABLE, "NotAcceptable", why))
}
