//! The query part of a request.

use crate::error::ApiError;

/// Parameters in order; a name may occur several times (`command`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name, true), decode(value, true))
        });
        Self(pairs.collect())
    }

    /// The first value of a parameter; empty when it is not there.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
    }

    /// `true` or `1`; a bare name is true too.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        Ok(self.optional_flag(name)?.unwrap_or(false))
    }

    pub(crate) fn optional_flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        let Some((_, value)) = self.0.iter().find(|(known, _)| known == name) else { return Ok(None) };
        match value.as_str() {
            "true" | "1" | "True" | "TRUE" | "t" | "T" | "" => Ok(Some(true)),
            "false" | "0" | "False" | "FALSE" | "f" | "F" => Ok(Some(false)),
            other => Err(ApiError::bad_request(format!("parameter {name}: {other:?} is not true or false"))),
        }
    }

    /// A whole number that is not negative.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.text(name) {
            "" => Ok(None),
            text => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(ApiError::bad_request(format!("parameter {name}: {text:?} is not a whole number"))),
            },
        }
    }
}

/// Undoes percent-encoding; what is not valid UTF-8 afterwards is replaced.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> String {
    let digit = |byte: Option<&u8>| {
        byte.and_then(|byte| char::from(*byte).to_digit(16)).and_then(|digit| u8::try_from(digit).ok())
    };
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(high << 4 | low);
                at += 2;
            }
            (b'+', ..) if plus_is_space => decoded.push(b' '),
            _ => decoded.push(*byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("command=sh&command=-c&command=echo+%22a%26b%22&tty&x=%zz&n=5");
        assert_eq!(query.all("command"), ["sh", "-c", "echo \"a&b\""]);
        assert_eq!(query.flag("tty"), Ok(true));
        assert_eq!(query.flag("stdin"), Ok(false));
        assert_eq!(query.text("x"), "%zz");
        assert_eq!(query.number("n"), Ok(Some(5)));
        assert!(query.number("x").is_err());
    }
}
