//! What the values of options may look like.
//!
//! Everything that can be judged without the service is judged here, before anything is sent, so that a slip leaves
//! nothing behind. Each error says what to write instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use sampan_kit::quantity::Quantity;

/// A Kubernetes name within one host name label (RFC 1123), as instances, namespaces and services have.
pub(crate) fn label(text: &str) -> Result<String, String> {
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    let inner = bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-');
    if inner && edge(bytes.first()) && edge(bytes.last()) && bytes.len() <= 63 {
        return Ok(text.to_owned());
    }
    Err("at most 63 of a-z, 0-9 and -, with a letter or digit at both ends".to_owned())
}

/// Where published indexes lie: an absolute path, or the address of a web server.
pub(crate) fn index_cache(text: &str) -> Result<String, String> {
    text.parse::<sampan_image::publish::CacheLocation>().map(|location| location.to_string())
}

/// A namespace's name.
pub(crate) fn namespace(text: &str) -> Result<String, String> {
    label(text)
}

/// CPUs: `0.5`, `500m`, `2`.
pub(crate) fn cpu(text: &str) -> Result<String, String> {
    let quantity = quantity(text, "0.5, 2 or 500m")?;
    if quantity.millis() <= 0 {
        return Err("less than a thousandth of a CPU; write it like 0.5, 2 or 500m".to_owned());
    }
    Ok(text.to_owned())
}

/// Bytes of memory or disk: `512Mi`, `2Gi`, `1.5G`.
pub(crate) fn size(text: &str) -> Result<String, String> {
    let quantity = quantity(text, "512Mi or 2Gi")?;
    if quantity.units() < 1 << 20 {
        let hint = if text.ends_with('m') { " (m means a thousandth of a byte)" } else { "" };
        return Err(format!("less than one mebibyte{hint}; write it like 512Mi or 2Gi"));
    }
    Ok(text.to_owned())
}

fn quantity(text: &str, like: &str) -> Result<Quantity, String> {
    Quantity::parse(text).map_err(|error| format!("{}; write it like {like}", error.reason))
}

/// A registry and a host that is asked in its place: `docker.io=mirror.example:5000`.
pub(crate) fn mirror(text: &str) -> Result<String, String> {
    let host = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.:[]_".contains(&byte))
    };
    match text.split_once('=') {
        Some((registry, mirror)) if host(registry) && host(mirror) => Ok(text.to_owned()),
        _ => Err("write it like docker.io=mirror.example:5000, hosts without a scheme or a path".to_owned()),
    }
}

/// A network of IPv4 addresses.
pub(crate) fn cidr4(text: &str) -> Result<String, String> {
    cidr::<Ipv4Addr>(text, 30).ok_or_else(|| "write it like 10.88.0.0/16".to_owned())
}

/// A network of IPv6 addresses.
pub(crate) fn cidr6(text: &str) -> Result<String, String> {
    cidr::<Ipv6Addr>(text, 126).ok_or_else(|| "write it like fd88::/64".to_owned())
}

fn cidr<Address: FromStr>(text: &str, prefix_max: u8) -> Option<String> {
    let (address, prefix) = text.split_once('/')?;
    address.parse::<Address>().ok()?;
    (1..=prefix_max).contains(&prefix.parse::<u8>().ok()?).then(|| text.to_owned())
}

/// A published port: `[IP:]HOST:CONTAINER[/udp]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) host_ip: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
    pub(crate) protocol: &'static str,
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const LIKE: &str = "write it like 8080:80, 127.0.0.1:8080:80 or 5353:53/udp";
        let (ports, protocol) = match text.split_once('/') {
            None => (text, "TCP"),
            Some((ports, "tcp")) => (ports, "TCP"),
            Some((ports, "udp")) => (ports, "UDP"),
            Some((_, other)) => return Err(format!("{other} is neither tcp nor udp; {LIKE}")),
        };
        let number = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("{text:?} is no port from 1 to 65535; {LIKE}")),
        };
        let (rest, container) =
            ports.rsplit_once(':').ok_or_else(|| format!("the port on this machine is missing; {LIKE}"))?;
        let (address, host) = rest.rsplit_once(':').map_or((None, rest), |(address, host)| (Some(address), host));
        let host_ip = address
            .map(|address| address.trim_start_matches('[').trim_end_matches(']').parse())
            .transpose()
            .map_err(|_error: std::net::AddrParseError| format!("the address is not one; {LIKE}"))?;
        Ok(Self { host_ip, host_port: number(host)?, container_port: number(container)?, protocol })
    }
}

/// A directory or file of this machine inside an instance: `SRC:DST[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) read_only: bool,
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const LIKE: &str = "write it like ./data:/data or /srv:/srv:ro";
        let mut parts = text.split(':');
        let (Some(source), Some(destination), mode, None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(format!("it has not two or three parts; {LIKE}"));
        };
        let read_only = match mode {
            None | Some("rw") => false,
            Some("ro") => true,
            Some(other) => return Err(format!("{other} is neither ro nor rw; {LIKE}")),
        };
        if !source.contains('/') && !matches!(source, "." | "..") {
            return Err(match source {
                "" => format!("the source is missing; {LIKE}"),
                name => format!("there are no named volumes; write ./{name} for the directory of that name"),
            });
        }
        if !destination.starts_with('/') || destination.trim_matches('/').is_empty() {
            return Err(format!("{destination:?} is no absolute path inside the instance; {LIKE}"));
        }
        if destination.split('/').any(|part| part == "..") {
            return Err(format!("the destination goes upwards; {LIKE}"));
        }
        Ok(Self { source: source.to_owned(), destination: destination.to_owned(), read_only })
    }
}

/// A variable of the environment: `NAME=VALUE`, or `NAME` for this process's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

impl FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        if name.is_empty() || name.contains(|character: char| character.is_control() || character == ' ') {
            return Err("the variable has no proper name; write it like NAME=VALUE".to_owned());
        }
        if value.is_some_and(|value| value.contains('\0')) {
            return Err("a value cannot contain a NUL".to_owned());
        }
        Ok(Self { name: name.to_owned(), value: value.map(ToOwned::to_owned) })
    }
}

/// A label: `KEY=VALUE`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it like app=web".to_owned()),
    }
}

/// Since when logs are wanted: a span like `10m` before now, or a moment in RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Since {
    /// So many seconds before now.
    Seconds(u64),
    /// This moment.
    Moment(String),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.parse::<jiff::Timestamp>().is_ok() {
            return Ok(Self::Moment(text.to_owned()));
        }
        span(text)
            .map(Self::Seconds)
            .ok_or_else(|| "write a span like 90s, 10m, 1h30m or 2d, or a moment like 2026-01-31T12:00:00Z".to_owned())
    }
}

/// Seconds of `1h30m`; a bare number is seconds.
fn span(text: &str) -> Option<u64> {
    let (mut total, mut number) = (0_u64, String::new());
    for character in text.chars() {
        if character.is_ascii_digit() {
            number.push(character);
            continue;
        }
        let unit = match character {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    if number.is_empty() {
        return (!text.is_empty()).then_some(total);
    }
    if total > 0 { None } else { number.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ports_in_every_form() {
        let port = |text: &str| {
            text.parse::<Port>()
                .map(|port| format!("{:?} {} {} {}", port.host_ip, port.host_port, port.container_port, port.protocol))
        };
        assert_eq!(port("8080:80").unwrap(), "None 8080 80 TCP");
        assert_eq!(port("127.0.0.1:53:5353/udp").unwrap(), "Some(127.0.0.1) 53 5353 UDP");
        assert_eq!(port("[::1]:8080:80/tcp").unwrap(), "Some(::1) 8080 80 TCP");
        for wrong in ["", ":", "80", "0:80", "80:0", "80:65536", "x:80:80", "80:80/sctp", "1.2.3.4::80"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn spans_and_moments() {
        assert_eq!("1h30m".parse(), Ok(Since::Seconds(5400)));
        assert_eq!("90".parse(), Ok(Since::Seconds(90)));
        assert!(matches!("2026-01-31T12:00:00Z".parse(), Ok(Since::Moment(_))));
        for wrong in ["", "m", "1h30", "5x", "-5m", "99999999999999999999d"] {
            assert!(wrong.parse::<Since>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") {
            prop_assert!(text.parse::<Port>().is_ok() || !text.is_empty() || text.is_empty());
            let _ = (text.parse::<Volume>().is_ok(), text.parse::<Variable>().is_ok(), text.parse::<Since>().is_ok());
            let _ = (cpu(&text).is_ok(), size(&text).is_ok(), label(&text).is_ok(), cidr4(&text).is_ok(), cidr6(&text).is_ok());
        }
    }
}
