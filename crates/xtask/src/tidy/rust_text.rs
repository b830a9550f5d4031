//! Rust source with comments and literals blanked out, so that words can be looked for in code alone.
//!
//! Not a parser: it knows strings, raw strings, characters, lifetimes and comments, nested ones too. Line breaks stay,
//! so line numbers hold.

/// The source with every byte of comments and of literals' contents replaced by a space.
pub(super) fn code_only(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(next) = rest.chars().next() {
        let length = skipped(rest, out.chars().next_back());
        if length == 0 {
            out.push(next);
            rest = &rest[next.len_utf8()..];
        } else {
            out.extend(rest[..length].chars().map(|character| if character == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    out
}

/// Length of the comment or literal at the start of the text, 0 if there is none.
fn skipped(text: &str, before: Option<char>) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    if text.starts_with('\'') {
        return character(text);
    }
    let begins_word = !before.is_some_and(|character| character.is_alphanumeric() || character == '_');
    if begins_word { raw_string(text) } else { 0 }
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut position = 0;
    while position < text.len() {
        let rest = &text.as_bytes()[position..];
        if rest.starts_with(b"/*") {
            depth += 1;
            position += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            position += 2;
            if depth == 0 {
                return position;
            }
        } else {
            position += 1;
        }
    }
    text.len()
}

/// A literal in quotes with backslash escapes.
fn quoted(text: &str, quote: char) -> usize {
    let mut characters = text.char_indices().skip(1);
    while let Some((index, character)) = characters.next() {
        if character == '\\' {
            characters.next();
        } else if character == quote {
            return index + 1;
        }
    }
    text.len()
}

/// A character literal; a lifetime has no second quote right after its first character.
fn character(text: &str) -> usize {
    let mut characters = text.chars().skip(1);
    match (characters.next(), characters.next()) {
        (Some('\\'), _) => quoted(text, '\''),
        (Some(only), Some('\'')) => 2 + only.len_utf8(),
        _ => 0,
    }
}

/// `r"…"`, `r#"…"#`, and the same of bytes and C strings.
fn raw_string(text: &str) -> usize {
    let Some(start) = ["br", "cr", "r"].iter().find(|prefix| text.starts_with(**prefix)).map(|prefix| prefix.len())
    else {
        return 0;
    };
    let hashes = text[start..].bytes().take_while(|&byte| byte == b'#').count();
    let open = start + hashes + 1;
    if !text[start + hashes..].starts_with('"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    text[open..].find(&close).map_or(text.len(), |position| open + position + close.len())
}

#[cfg(test)]
mod tests {
    #[track_caller]
    fn check(source: &str, expected: &str) {
        let got = super::code_only(source);
        assert_eq!(got.split_whitespace().collect::<Vec<_>>().join(" "), expected);
        assert_eq!(got.lines().count(), source.lines().count());
    }

    #[test]
    fn only_code_is_left() {
        check("a // b\nc", "a c");
        check("a /* b /* c */ d */ e", "a e");
        check(r#"f("x \" y", 1)"#, "f( , 1)");
        check("f(r#\"x \" y\"#, br\"z\", 1)", "f( , , 1)");
        check("fn f<'a>(x: &'a str) { 'b' '\\'' '\"' }", "fn f<'a>(x: &'a str) { }");
        check("four\"s\"", "four");
        check("\"open", "");
    }
}
