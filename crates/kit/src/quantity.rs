//! Kubernetes quantities: `500m`, `0.5`, `512Mi`, `1e3`.
//!
//! Grammar: `staging/src/k8s.io/apimachinery/pkg/api/resource/quantity.go`. A quantity is kept as a whole number of
//! thousandths, rounded up as Kubernetes rounds; amounts beyond 2^63 thousandths are refused rather than rounded.

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid quantity {text:?}: {reason}; write a number with an optional suffix, such as 500m, 0.5, 512Mi or 2Gi")]
pub struct QuantityError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// An amount of CPU, memory or anything else, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Quantity {
    thousandths: i64,
}

impl Quantity {
    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let fail = |reason| QuantityError { text: text.chars().take(64).collect(), reason };
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, text.get(1..).unwrap_or_default()),
            Some(b'+') => (false, text.get(1..).unwrap_or_default()),
            _ => (false, text),
        };
        let number_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return Err(fail("there is no number"));
        }
        if fraction.contains('.') {
            return Err(fail("there is more than one decimal point"));
        }
        let (multiplier, divisor) = scale(suffix).ok_or_else(|| fail("the suffix is unknown"))?;
        let thousandths =
            exact_thousandths(whole, fraction, multiplier, divisor).ok_or_else(|| fail("it is too large"))?;
        Ok(Self { thousandths: if negative { -thousandths } else { thousandths } })
    }

    /// A quantity of whole units.
    #[must_use]
    pub const fn from_units(units: i64) -> Self {
        Self { thousandths: units.saturating_mul(1000) }
    }

    /// In thousandths: millicores when it is CPU.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.thousandths
    }

    /// In whole units, rounded up: bytes when it is memory or disk.
    #[must_use]
    pub const fn units(self) -> i64 {
        let whole = self.thousandths / 1000;
        if self.thousandths % 1000 > 0 { whole + 1 } else { whole }
    }
}

/// Multiplier and divisor of a suffix, so that one of them is 1.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let binary = |power: u32| (1_u128 << (10 * power), 1);
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => return exponent(suffix),
    })
}

/// A decimal exponent, `e3` or `E-2`.
fn exponent(suffix: &str) -> Option<(u128, u128)> {
    let digits = suffix.strip_prefix(['e', 'E'])?;
    let power: i32 = digits.parse().ok().filter(|power: &i32| power.abs() <= 18)?;
    let factor = 10_u128.checked_pow(power.unsigned_abs())?;
    Some(if power < 0 { (1, factor) } else { (factor, 1) })
}

/// `whole.fraction × multiplier ÷ divisor` in thousandths, rounded up; `None` when it does not fit.
fn exact_thousandths(whole: &str, fraction: &str, multiplier: u128, divisor: u128) -> Option<i64> {
    /// More decimals than this cannot change the result but for rounding up.
    const DECIMALS_MAX: usize = 12;
    let kept = fraction.get(..fraction.len().min(DECIMALS_MAX))?;
    let dropped = fraction.get(kept.len()..)?.bytes().any(|digit| digit != b'0');
    let decimals = u32::try_from(kept.len()).ok()?;
    let digits: u128 = if whole.is_empty() && kept.is_empty() { 0 } else { format!("{whole}{kept}").parse().ok()? };
    let scaled = digits.checked_add(u128::from(dropped))?.checked_mul(multiplier)?.checked_mul(1000)?;
    let denominator = divisor.checked_mul(10_u128.checked_pow(decimals)?)?;
    i64::try_from(scaled.div_ceil(denominator)).ok()
}

#[cfg(test)]
mod tests {
    use super::Quantity;
    use proptest::prelude::*;

    #[test]
    fn reads_what_kubernetes_reads() {
        let cases = [
            ("0.5", 500),
            ("500m", 500),
            ("1", 1000),
            ("2e3", 2_000_000),
            ("1E-1", 100),
            ("512Mi", 512 * 1024 * 1024 * 1000),
            (".5", 500),
            ("5.", 5000),
            ("1n", 1),
            ("-1", -1000),
            ("+1k", 1_000_000),
            ("0.0005", 1),
        ];
        for (text, millis) in cases {
            assert_eq!(Quantity::parse(text).map(Quantity::millis), Ok(millis), "{text}");
        }
        assert_eq!(Quantity::parse("1001m").map(Quantity::units), Ok(2));
    }

    #[test]
    fn refuses_the_rest_in_one_line() {
        for text in ["", "lots", "1.2.3", "12Mb", "1e99", "9Ei9", "99999999Ei", "--1", "0x10", "1 Gi", "½"] {
            let error = Quantity::parse(text).expect_err(text).to_string();
            assert!(error.contains("invalid quantity") && !error.contains('\n'), "{error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                prop_assert!(quantity.units().checked_mul(1000).is_none_or(|m| m >= quantity.millis() - 999));
            }
        }

        #[test]
        fn milli_text_round_trips(millis in 0_i64..1_000_000_000_000) {
            prop_assert_eq!(Quantity::parse(&format!("{millis}m")).map(Quantity::millis), Ok(millis));
        }
    }
}
