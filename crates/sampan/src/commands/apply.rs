//! `sampan apply`: objects from files of YAML or JSON, created or changed to match.
//!
//! A document goes to the service as it stands: as a POST when there is no such object, otherwise as a strategic merge
//! patch. Which path a kind has is asked of the service's discovery, so that every kind it serves works.

use std::collections::HashMap;
use std::io::Read as _;

use clap::Args;
use http::Method;
use serde_json::Value;

use super::Context;
use crate::client::path::encode;
use crate::client::{JSON, STRATEGIC_MERGE_PATCH};
use crate::failure::{Failure, one_line};
use crate::limits::MANIFEST_BYTES_MAX;
use crate::output::print_line;
use crate::pods::{items, list, text};

/// A field that the service does not know is a mistake, not something to leave out in silence; as kubectl does it.
const STRICT: &str = "?fieldValidation=Strict";

const EXAMPLES: &str = "\
Examples:
  sampan apply -f pod.yaml            create what is in the file, or change it to match
  sampan inspect -o yaml web | sed s/web/web2/ | sampan apply -f -";

// What to apply.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ApplyArgs {
    /// A file of YAML or JSON, or - for standard input; several documents may be in it.
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    file: Vec<String>,
}

/// Runs `sampan apply`.
pub(crate) async fn execute(args: &ApplyArgs, context: &Context) -> Result<i32, Failure> {
    // All files are read before anything is sent: a slip in the last one leaves nothing half done.
    let mut objects = Vec::new();
    for file in &args.file {
        let shown = if file == "-" { "stdin" } else { file };
        objects.extend(documents(shown, &read(file)?)?);
    }
    if objects.is_empty() {
        return Err(Failure::explain(
            args.file.join(", "),
            "there is no object in it",
            "write one, or name another file",
        ));
    }
    let mut kinds = Kinds { context, known: HashMap::new() };
    for object in objects {
        let line = apply(context, &mut kinds, object).await?;
        print_line(&line)?;
    }
    Ok(0)
}

fn read(file: &str) -> Result<String, Failure> {
    let mut content = String::new();
    let read = if file == "-" {
        std::io::stdin().lock().take(MANIFEST_BYTES_MAX + 1).read_to_string(&mut content)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(MANIFEST_BYTES_MAX + 1).read_to_string(&mut content))
    };
    read.map_err(|error| Failure::explain(file, error, "name a readable file of YAML or JSON"))?;
    if content.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(Failure::explain(file, "it is larger than 16 MiB", "split it"));
    }
    Ok(content)
}

/// The objects of a file, lists taken apart.
fn documents(file: &str, content: &str) -> Result<Vec<Value>, Failure> {
    let slip = |line: u64, column: u64, reason: &str| {
        Failure::explain(
            format_args!("{file}: line {line}, column {column}"),
            one_line(reason),
            "mend it and try again",
        )
    };
    let documents: Vec<Value> = if content.trim_start().starts_with(['{', '[']) {
        let parsed: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(content).into_iter().collect();
        parsed.map_err(|error| {
            let reason = error.to_string();
            let reason = reason.rsplit_once(" at line").map_or(reason.as_str(), |(reason, _)| reason);
            slip(error.line() as u64, error.column() as u64, reason)
        })?
    } else {
        let parsed = serde_saphyr::from_multiple(content);
        parsed.map_err(|error| {
            let (line, column) = error.location().map_or((0, 0), |location| (location.line(), location.column()));
            slip(line, column, &reason(&error))
        })?
    };
    let mut objects = Vec::new();
    for document in documents {
        match document {
            Value::Null => {}
            list if text(&list, "/kind").ends_with("List") && list.get("items").is_some() => {
                objects.extend(items(&list).iter().cloned());
            }
            object => objects.push(object),
        }
    }
    Ok(objects)
}

/// The parser's words, without the place, which stands in front, and without the excerpt, which takes many lines.
fn reason(error: &serde_saphyr::Error) -> String {
    let rendered = error.without_snippet().to_string();
    let first = rendered.lines().next().unwrap_or_default();
    let first = first.rsplit_once(" at line ").map_or(first, |(reason, _)| reason);
    // Advice to whoever calls the parser is nothing for who wrote the file.
    let first = first.split(", set DuplicateKeyPolicy").next().unwrap_or_default();
    first.trim_end_matches([',', ':', ' ']).to_owned()
}

/// Where a kind is found.
#[derive(Debug, Clone)]
struct Resource {
    plural: String,
    namespaced: bool,
}

/// What discovery says, remembered for the files at hand.
struct Kinds<'context> {
    context: &'context Context,
    known: HashMap<String, Value>,
}

impl Kinds<'_> {
    async fn resource(&mut self, version: &str, kind: &str, thing: &str) -> Result<Resource, Failure> {
        if !self.known.contains_key(version) {
            let resources = self.context.client.get(&root(version)).await.map_err(|error| {
                if error.is_not_found() {
                    return Failure::explain(
                        thing,
                        format_args!("the service has no apiVersion {version}"),
                        "see: sampan version",
                    );
                }
                error.about(thing)
            })?;
            self.known.insert(version.to_owned(), resources);
        }
        let resources = self.known.get(version).map_or(&[][..], |answer| list(answer, "/resources"));
        let found =
            resources.iter().find(|resource| text(resource, "/kind") == kind && !text(resource, "/name").contains('/'));
        let found = found.ok_or_else(|| {
            Failure::explain(
                thing,
                format_args!("the service has no kind {kind} in {version}"),
                "mend kind or apiVersion",
            )
        })?;
        Ok(Resource {
            plural: text(found, "/name").to_owned(),
            namespaced: found.get("namespaced").and_then(Value::as_bool) == Some(true),
        })
    }
}

/// The path of a group and version: the core group's has another form than all others.
fn root(version: &str) -> String {
    match version.split_once('/') {
        None => format!("/api/{}", encode(version)),
        Some((group, version)) => format!("/apis/{}/{}", encode(group), encode(version)),
    }
}

async fn apply(context: &Context, kinds: &mut Kinds<'_>, object: Value) -> Result<String, Failure> {
    let (version, kind, name) = (text(&object, "/apiVersion"), text(&object, "/kind"), text(&object, "/metadata/name"));
    let generated = text(&object, "/metadata/generateName");
    for (field, value) in [("apiVersion", version), ("kind", kind), ("metadata.name", &format!("{name}{generated}"))] {
        if value.is_empty() {
            return Err(Failure::explain("apply", format_args!("an object has no {field}"), "add it"));
        }
    }
    let thing = format!("{} {name}{generated}", kind.to_lowercase());
    let resource = kinds.resource(version, kind, &thing).await?;
    let mut collection = root(version);
    if resource.namespaced {
        let namespace = match text(&object, "/metadata/namespace") {
            "" => &context.namespace,
            namespace => namespace,
        };
        collection += &format!("/namespaces/{}", encode(namespace));
    }
    collection += &format!("/{}", resource.plural);
    let shown =
        |object: &Value, what: &str| format!("{}/{} {what}", kind.to_lowercase(), text(object, "/metadata/name"));
    if !name.is_empty() {
        let address = format!("{collection}/{}", encode(name));
        match context.client.get(&address).await {
            Ok(before) => {
                let patched = context
                    .client
                    .call(Method::PATCH, &(address + STRICT), Some((STRATEGIC_MERGE_PATCH, &object)))
                    .await;
                let after = patched.map_err(|error| error.about(&thing))?;
                let revision = |object: &Value| text(object, "/metadata/resourceVersion").to_owned();
                let changed = revision(&before) != revision(&after);
                return Ok(shown(&after, if changed { "configured" } else { "unchanged" }));
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.about(&thing)),
        }
    }
    let created = context.client.call(Method::POST, &(collection + STRICT), Some((JSON, &object))).await;
    Ok(shown(&created.map_err(|error| error.about(&thing))?, "created"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(content: &str, expected: Expect) {
        let shown = match documents("pod.yaml", content) {
            Ok(objects) => format!("{objects:?}"),
            Err(failure) => failure.line.unwrap(),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn documents_of_every_kind() {
        check(
            "kind: A\n---\n# nothing\n---\nkind: B\n",
            expect![[r#"[Object {"kind": String("A")}, Object {"kind": String("B")}]"#]],
        );
        check(
            "{\"kind\": \"A\"}\n{\"kind\": \"B\"}",
            expect![[r#"[Object {"kind": String("A")}, Object {"kind": String("B")}]"#]],
        );
        check(
            "kind: PodList\nitems:\n- kind: A\n- kind: B\n",
            expect![[r#"[Object {"kind": String("A")}, Object {"kind": String("B")}]"#]],
        );
        check("", expect![[r#"[]"#]]);
    }

    #[test]
    fn slips_are_named_with_their_place() {
        check(
            "kind: Pod\nmetadata:\n  name: [a\nspec: {}\n",
            expect![[r#"pod.yaml: line 4, column 5: illegal placement of ':' indicator; mend it and try again"#]],
        );
        check(
            "kind: Pod\n\tname: x\n",
            expect![[
                r#"pod.yaml: line 1, column 7: while scanning a plain scalar, found a tab; mend it and try again"#
            ]],
        );
        check("a: 1\na: 2\n", expect!["pod.yaml: line 2, column 1: duplicate mapping key: a; mend it and try again"]);
        check(
            "a: *nowhere\n",
            expect![[r#"pod.yaml: line 1, column 4: alias references unknown anchor; mend it and try again"#]],
        );
        check(
            "{\"kind\": \"Pod\",\n  }",
            expect![[r#"pod.yaml: line 2, column 3: trailing comma; mend it and try again"#]],
        );
    }

    #[test]
    fn bombs_are_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let before = level - 1;
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 10].join(","));
        }
        assert!(documents("bomb.yaml", &bomb).is_err());
        assert!(documents("deep.yaml", &"[".repeat(1_000_000)).is_err());
        assert!(documents("deep.yaml", &format!("a: {}", "[".repeat(1_000_000))).is_err());
    }
}
