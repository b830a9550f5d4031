//! What a plugin prints: a result or an error. Both are a foreign program's words and are believed in nothing that is not
//! checked here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use crate::limits::{CNI_ADDRESSES_MAX, CNI_MESSAGE_CHARS_MAX, INTERFACE_NAME_BYTES_MAX};

/// What a chain came to, of what is of use here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// The host's end of what leads to the sandbox, where the plugins name one.
    pub(crate) host_interface: Option<String>,
}

pub(crate) fn is_version(text: &str) -> bool {
    matches!(text, "0.3.0" | "0.3.1" | "0.4.0" | "1.0.0" | "1.1.0")
}

/// Reads the result of `ADD`; the error says what is wrong with it.
pub(crate) fn read(result: &Value) -> Result<Outcome, String> {
    let Value::Object(top) = result else { return Err("it is no object".to_owned()) };
    if !top.get("cniVersion").and_then(Value::as_str).is_some_and(is_version) {
        return Err("its cniVersion is none of 0.3.0 to 1.1.0".to_owned());
    }
    let list = |name: &str| match top.get(name) {
        None | Some(Value::Null) => Ok([].as_slice()),
        Some(Value::Array(list)) if list.len() <= CNI_ADDRESSES_MAX => Ok(list.as_slice()),
        Some(_) => Err(format!("its {name} are no list of at most {CNI_ADDRESSES_MAX}")),
    };
    let interfaces = list("interfaces")?;
    let inside =
        |interface: &Value| interface.get("sandbox").and_then(Value::as_str).is_some_and(|path| !path.is_empty());
    let mut outcome = Outcome::default();
    for entry in list("ips")? {
        let belongs = match entry.get("interface").and_then(Value::as_u64) {
            None => true,
            Some(index) => {
                let interface = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
                inside(interface.ok_or("an address names an interface that is not there")?)
            }
        };
        let text = entry.get("address").and_then(Value::as_str).unwrap_or_default();
        let (address, length) = text.split_once('/').unwrap_or((text, ""));
        let refused = || format!("{:?} is no address", shorten(text));
        let address: IpAddr = address.parse().map_err(|_no_address| refused())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        if !length.parse::<u8>().is_ok_and(|length| length <= width)
            || address.is_unspecified()
            || address.is_multicast()
        {
            return Err(refused());
        }
        match address {
            IpAddr::V4(address) if belongs => drop(outcome.ipv4.get_or_insert(address)),
            IpAddr::V6(address) if belongs => drop(outcome.ipv6.get_or_insert(address)),
            _ => {}
        }
    }
    if outcome.ipv4.is_none() && outcome.ipv6.is_none() {
        return Err("it gives the sandbox no address".to_owned());
    }
    let before = interfaces.iter().take_while(|interface| !inside(interface)).last();
    let name = before.and_then(|interface| interface.get("name")).and_then(Value::as_str);
    outcome.host_interface = name.filter(|name| is_interface(name)).map(str::to_owned);
    Ok(outcome)
}

fn is_interface(name: &str) -> bool {
    let usable = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    (1..=INTERFACE_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(usable)
}

/// What a plugin says when it fails: its own message, in one line and cut short, whatever it printed.
pub(crate) fn complaint(output: &[u8], errors: &[u8]) -> String {
    let parsed = serde_json::from_slice::<Value>(output).ok();
    let part = |name: &str| parsed.as_ref().and_then(|error| error.get(name)?.as_str().map(str::to_owned));
    let text = match (part("msg"), part("details")) {
        (Some(message), Some(details)) if !details.is_empty() => format!("{message}: {details}"),
        (Some(message), _) => message,
        (None, _) => String::from_utf8_lossy(if errors.is_empty() { output } else { errors }).into_owned(),
    };
    shorten(&text)
}

fn shorten(text: &str) -> String {
    let line = text.chars().map(|character| if character.is_control() { ' ' } else { character });
    line.take(CNI_MESSAGE_CHARS_MAX).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bridges_result_is_read() {
        let result = json!({"cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/proc/1/fd/3"}, {"name": "ifb0"}],
            "ips": [{"interface": 2, "address": "10.1.0.5/16", "gateway": "10.1.0.1"}, {"interface": 2, "address": "fd00::5/64"}]});
        let outcome = read(&result).unwrap();
        assert_eq!(outcome.ipv4, Some([10, 1, 0, 5].into()));
        assert_eq!(outcome.ipv6, Some("fd00::5".parse().unwrap()));
        assert_eq!(outcome.host_interface.as_deref(), Some("veth1"));
    }

    #[test]
    fn lies_are_refused() {
        let with =
            |ips: Value, interfaces: Value| read(&json!({"cniVersion": "1.0.0", "ips": ips, "interfaces": interfaces}));
        for (ips, interfaces) in [
            (json!([]), json!([])),
            (json!([{"address": "10.0.0.1"}]), json!([])),
            (json!([{"address": "10.0.0.1/33"}]), json!([])),
            (json!([{"address": "0.0.0.0/0"}]), json!([])),
            (json!([{"address": "10.0.0.1/8", "interface": 7}]), json!([])),
            (json!([{"address": "10.0.0.1/8", "interface": 0}]), json!([{"name": "host"}])),
            (json!("10.0.0.1"), json!([])),
            (json!(vec![json!({"address": "10.0.0.1/8"}); 1000]), json!([])),
        ] {
            assert!(with(ips.clone(), interfaces).is_err(), "{ips}");
        }
        let outcome = with(json!([{"address": "10.0.0.1/8"}]), json!([{"name": "../../etc"}])).unwrap();
        assert_eq!(outcome.host_interface, None);
    }

    #[test]
    fn complaints_are_one_short_line() {
        assert_eq!(complaint(br#"{"code":7,"msg":"no","details":"room\nleft"}"#, b""), "no: room left");
        assert_eq!(complaint(b"", b"panic: x\n"), "panic: x");
        assert!(complaint(&[b'x'; 100_000], b"").len() <= CNI_MESSAGE_CHARS_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Ok(value) = serde_json::from_slice(&bytes) {
                drop(read(&value));
            }
            prop_assert!(!complaint(&bytes, &bytes).contains('\n'));
        }

        #[test]
        fn any_addresses_are_read_or_refused(address in ".{0,50}", index in proptest::option::of(0u64..4), name in ".{0,20}") {
            let result = json!({"cniVersion": "1.0.0", "interfaces": [{"name": name}, {"name": name, "sandbox": "x"}],
                "ips": [{"address": address, "interface": index}]});
            if let Ok(outcome) = read(&result) {
                prop_assert!(outcome.ipv4.is_some() || outcome.ipv6.is_some());
            }
        }
    }
}
