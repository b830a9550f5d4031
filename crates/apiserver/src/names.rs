//! The forms of names, labels and their like.

use serde_json::Value;

use crate::error::Fault;
use crate::limits::{ANNOTATIONS_BYTES_MAX, CONFIG_BYTES_MAX, DNS_LABEL_MAX, DNS_SUBDOMAIN_MAX};
use crate::schema::{Entries, Format};

const DNS_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";

/// Why a text is not of a format; None when it is.
pub(crate) fn format_fault(format: Format, text: &str) -> Option<String> {
    let fault = match format {
        Format::DnsLabel => return dns_label_fault(text),
        Format::DnsSubdomain => return dns_subdomain_fault(text),
        Format::PortName => {
            let letters = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            let good = letters
                && text.len() <= 15
                && text.bytes().any(|byte| byte.is_ascii_lowercase())
                && !text.starts_with('-')
                && !text.ends_with('-')
                && !text.contains("--");
            (!good).then_some("must be at most 15 lower case letters, digits and single '-', with a letter among them")
        }
        Format::EnvName => {
            let good = !text.is_empty() && text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=');
            (!good).then_some(
                "a valid environment variable name must consist only of printable ASCII characters other than '='",
            )
        }
        Format::Ip => (!text.is_empty() && text.parse::<std::net::IpAddr>().is_err())
            .then_some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        Format::InnerPath => {
            if text.starts_with('/') {
                Some("must be a relative path")
            } else {
                text.split('/').any(|part| part == "..").then_some("must not contain '..'")
            }
        }
    };
    fault.map(str::to_owned)
}

pub(crate) fn dns_label_fault(text: &str) -> Option<String> {
    if text.len() > DNS_LABEL_MAX {
        return Some(format!("must be no more than {DNS_LABEL_MAX} bytes"));
    }
    (!is_dns_label(text)).then(|| DNS_LABEL.to_owned())
}

pub(crate) fn dns_subdomain_fault(text: &str) -> Option<String> {
    if text.len() > DNS_SUBDOMAIN_MAX {
        return Some(format!("must be no more than {DNS_SUBDOMAIN_MAX} bytes"));
    }
    (!text.split('.').all(is_dns_label)).then(|| DNS_SUBDOMAIN.to_owned())
}

fn is_dns_label(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_name_part(text: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= DNS_LABEL_MAX
        && ends(text.bytes().next())
        && ends(text.bytes().last())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Why a text is not a label's or annotation's key.
pub(crate) fn qualified_name_fault(text: &str) -> Option<String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if let Some(prefix) = prefix
        && let Some(fault) = dns_subdomain_fault(prefix)
    {
        return Some(format!("prefix part {fault}"));
    }
    (!is_name_part(name)).then(|| NAME_PART.to_owned())
}

/// Why a text is not a label's value.
pub(crate) fn label_value_fault(text: &str) -> Option<String> {
    if text.len() > DNS_LABEL_MAX {
        return Some(format!("must be no more than {DNS_LABEL_MAX} bytes"));
    }
    (!text.is_empty() && !is_name_part(text)).then(|| LABEL_VALUE.to_owned())
}

/// Checks a map's keys and values.
pub(crate) fn entries_faults(entries: Entries, field: &str, value: &Value, faults: &mut Vec<Fault>) {
    let Some(map) = value.as_object() else { return };
    let mut total = 0;
    for (key, value) in map {
        let text = value.as_str().unwrap_or_default();
        total += key.len() + text.len();
        let key_fault = match entries {
            Entries::Label | Entries::Resource => qualified_name_fault(key),
            Entries::Annotation => qualified_name_fault(&key.to_ascii_lowercase()),
            Entries::ConfigKey => {
                let good = !key.is_empty()
                    && key.len() <= DNS_SUBDOMAIN_MAX
                    && key != "."
                    && !key.starts_with("..")
                    && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
                (!good).then(|| CONFIG_KEY.to_owned())
            }
        };
        if let Some(fault) = key_fault {
            faults.push(Fault::invalid(field, &Value::String(key.clone()), fault));
        }
        if entries == Entries::Label
            && let Some(fault) = label_value_fault(text)
        {
            faults.push(Fault::invalid(field, value, fault));
        }
    }
    let limit = match entries {
        Entries::Annotation => ANNOTATIONS_BYTES_MAX,
        Entries::ConfigKey => CONFIG_BYTES_MAX,
        Entries::Label | Entries::Resource => return,
    };
    if total > limit {
        faults.push(Fault {
            reason: "FieldValueTooLong",
            field: field.to_owned(),
            message: format!("Too long: may not be more than {limit} bytes"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_forms() {
        for (text, good) in
            [("a", true), ("a-b.c9", true), ("", false), ("A", false), ("a..b", false), ("-a", false), ("a_b", false)]
        {
            assert_eq!(dns_subdomain_fault(text).is_none(), good, "{text}");
        }
        assert!(dns_label_fault("a.b").is_some());
        assert!(dns_label_fault(&"a".repeat(64)).is_some());
        for (text, good) in
            [("app", true), ("a.io/App_1", true), ("/x", false), ("a/b/c", false), ("a/", false), ("Ab", true)]
        {
            assert_eq!(qualified_name_fault(text).is_none(), good, "{text}");
        }
        for (text, good) in [("", true), ("v1.2_x", true), ("-x", false), ("a b", false)] {
            assert_eq!(label_value_fault(text).is_none(), good, "{text}");
        }
    }
}
