//! How a request to the service fails, and the line that a user gets of it.

use std::io;
use std::path::PathBuf;

use http::StatusCode;
use serde_json::Value;

use crate::failure::Failure;

/// Why a request brought no answer, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nothing listens there, or this user may not talk to it.
    #[error("cannot reach the service at {}", socket.display())]
    Absent { socket: PathBuf, source: io::Error },
    /// The connection ended in the middle.
    #[error("the service went away: {0}")]
    Lost(String),
    /// No answer within the deadline.
    #[error("the service does not answer")]
    Silent,
    /// A Kubernetes `Status`, or an HTTP error of another shape.
    #[error("{message}")]
    Refused { status: StatusCode, reason: String, message: String },
    /// An answer that breaks the protocol.
    #[error("the service's answer is not understood: {0}")]
    Unexpected(String),
}

impl ClientError {
    pub(crate) fn lost(error: hyper::Error) -> Self {
        Self::Lost(error.to_string())
    }

    /// An error out of an answer's status and body.
    pub(crate) fn refused(status: StatusCode, body: &[u8]) -> Self {
        let object: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let message = match text("message") {
            message if !message.is_empty() => message,
            _ if object.is_null() && !body.is_empty() => String::from_utf8_lossy(body).into_owned(),
            _ => format!("the service answers {status}"),
        };
        Self::Refused { status, reason: text("reason"), message }
    }

    /// The HTTP status of a refusal.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether what was asked for does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status() == Some(StatusCode::NOT_FOUND)
    }

    /// Whether the same request may succeed once the service is back.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Absent { source, .. } => {
                matches!(source.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
            }
            Self::Lost(_) | Self::Silent => true,
            Self::Refused { status, .. } => {
                matches!(*status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
            }
            Self::Unexpected(_) => false,
        }
    }

    /// The user's line about this error, which happened to `thing`.
    pub(crate) fn about(self, thing: &str) -> Failure {
        match self {
            Self::Absent { socket, source } => {
                let socket = socket.display().to_string();
                match source.kind() {
                    io::ErrorKind::PermissionDenied => {
                        Failure::explain(socket, "this user may not use the service", "run the command as root")
                    }
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::explain(
                        socket,
                        "no service is running there",
                        "start one as root with: sampan serve (or say where it is: --socket PATH)",
                    ),
                    _ => Failure::explain(socket, source, "is it the service's socket? say which: --socket PATH"),
                }
            }
            Self::Lost(reason) => Failure::explain(
                thing,
                format_args!("the service went away in the middle ({reason})"),
                "look at its log, then try again",
            ),
            Self::Silent => {
                Failure::explain(thing, "the service does not answer in time", "look at its log, then try again")
            }
            Self::Refused { message, .. } if message.contains(thing) => Failure::new(message),
            Self::Refused { message, .. } => Failure::new(format_args!("{thing}: {message}")),
            Self::Unexpected(reason) => Failure::explain(
                thing,
                format_args!("the service's answer is not understood ({reason})"),
                "compare both versions with: sampan version",
            ),
        }
    }

    /// As [`Self::about`], for a pod that may not exist.
    pub(crate) fn about_pod(self, namespace: &str, name: &str) -> Failure {
        if self.is_not_found() {
            return Failure::explain(
                name,
                format_args!("there is no such instance in namespace {namespace}"),
                "see what there is with: sampan ps -a -A",
            );
        }
        self.about(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_of_refusal_gives_a_line() {
        let line = |body: &str| ClientError::refused(StatusCode::CONFLICT, body.as_bytes()).about("web").line;
        assert_eq!(
            line(r#"{"message":"pods \"web\" already exists"}"#).as_deref(),
            Some("pods \"web\" already exists")
        );
        assert_eq!(line(r#"{"message":"port taken"}"#).as_deref(), Some("web: port taken"));
        assert_eq!(line("plain\ntext").as_deref(), Some("web: plain text"));
        assert_eq!(line("").as_deref(), Some("web: the service answers 409 Conflict"));
    }
}
