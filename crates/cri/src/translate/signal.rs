//! The interface's names of signals.

use sampan_runtime::container::signal_number;

use crate::proto::v1::Signal;

/// The interface's name for a signal; SIGTERM for one that it has no name for.
pub(crate) fn signal_name(number: i32) -> Signal {
    let mut all = (1..=i32::from(u8::MAX)).map_while(|value| Signal::try_from(value).ok());
    all.find(|signal| signal_number(signal.as_str_name()) == Some(number)).unwrap_or(Signal::Sigterm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_interface_is_a_signal() {
        for value in 1..=65 {
            let signal = Signal::try_from(value).unwrap();
            let number = signal_number(signal.as_str_name()).unwrap();
            assert_eq!(signal_number(signal_name(number).as_str_name()), Some(number), "{signal:?}");
        }
        assert!(Signal::try_from(66).is_err());
        assert_eq!(signal_name(3), Signal::Sigquit);
        assert_eq!(signal_name(49), Signal::Sigrtminplus15);
        assert_eq!(signal_name(0), Signal::Sigterm);
    }
}
