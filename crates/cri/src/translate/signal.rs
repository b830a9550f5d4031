//! Signals by name: the interface's, an image's, the kernel's.

use crate::proto::v1::Signal;

const SIGTERM: i32 = 15;
const RT_FIRST: i32 = 34;
const RT_LAST: i32 = 64;

/// Names and numbers of Linux on every architecture that this service runs on (signal(7)).
const SIGNALS: [(&str, i32); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", SIGTERM),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", RT_FIRST),
];

/// The number of `SIGTERM`, `TERM`, `15`, `RTMIN+3`, `SIGRTMAXMINUS1`.
pub(crate) fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=RT_LAST).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let after = |prefix: &str, signs: [&str; 2]| {
        let rest = name.strip_prefix(prefix)?;
        signs.iter().find_map(|sign| rest.strip_prefix(sign))?.parse::<i32>().ok()
    };
    let number = match (name, after("RTMIN", ["PLUS", "+"]), after("RTMAX", ["MINUS", "-"])) {
        ("RTMAX", ..) => RT_LAST,
        (_, Some(up), _) => RT_FIRST.checked_add(up)?,
        (_, _, Some(down)) => RT_LAST.checked_sub(down)?,
        _ => return None,
    };
    (RT_FIRST..=RT_LAST).contains(&number).then_some(number)
}

/// The interface's name for an image's or a container's stop signal; SIGTERM for none.
pub(crate) fn signal_name(text: &str) -> Signal {
    let wanted = signal_number(text).unwrap_or(SIGTERM);
    let all = (1..=i32::from(u8::MAX)).map_while(|value| Signal::try_from(value).ok());
    all.into_iter().find(|signal| signal_number(signal.as_str_name()) == Some(wanted)).unwrap_or(Signal::Sigterm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_interface_is_a_signal() {
        let all: Vec<Signal> = (1..=65).map(|value| Signal::try_from(value).unwrap()).collect();
        for signal in &all {
            assert!(signal_number(signal.as_str_name()).is_some(), "{signal:?}");
        }
        assert!(Signal::try_from(66).is_err());
        assert_eq!(signal_number("SIGRTMINPLUS15"), Some(49));
        assert_eq!(signal_number("RTMAX-14"), Some(50));
        assert_eq!(signal_number("quit"), Some(3));
        assert_eq!(signal_number("0"), None);
        assert_eq!(signal_number("RTMIN+99"), None);
        assert_eq!(signal_number("SIGNAL"), None);
        assert_eq!(signal_name("SIGQUIT"), Signal::Sigquit);
        assert_eq!(signal_name(""), Signal::Sigterm);
    }
}
