//! One line out of an error and all its causes, as a user or a log meets it.

use std::error::Error;
use std::fmt::{self, Display, Formatter};

/// Shows an error and its sources, `a: b: c`, leaving out a source whose text the line already ends with.
#[derive(Debug, Clone, Copy)]
pub struct ErrorChain<'error>(pub &'error (dyn Error + 'static));

impl Display for ErrorChain<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let mut line = one_line(self.0);
        let mut source = self.0.source();
        while let Some(error) = source {
            let text = one_line(error);
            if !line.ends_with(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            source = error.source();
        }
        formatter.write_str(&line)
    }
}

fn one_line(error: &dyn Error) -> String {
    error.to_string().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::ErrorChain;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the store")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn joins_causes_in_one_line() {
        let error = Outer(std::io::Error::other("disk on\nfire"));
        assert_eq!(ErrorChain(&error).to_string(), "cannot open the store: disk on fire");
    }
}
