//! The interval that the ratio of two figures lies in, from a few runs of each.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF as _, StudentsT};

/// What a difference comes down to; later ones outweigh earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The second is better.
    Better,
    /// They are the same, within the tolerance.
    Same,
    /// The runs do not tell.
    Unclear,
    /// The second is worse.
    Worse,
}

impl Verdict {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Same => "the same",
            Self::Unclear => "cannot tell",
            Self::Worse => "worse",
        }
    }
}

/// A relative change: 0.1 is 10 % more.
#[derive(Debug, Clone, Copy)]
pub struct Interval {
    /// The best guess.
    pub change: f64,
    /// Where it lies but for the error; none where one side has one run.
    pub bounds: Option<(f64, f64)>,
}

impl Interval {
    /// Of the ratio `after / before`, wrong with probability `error`: Welch's t interval of the
    /// difference of the logarithms.
    pub fn of_ratio(before: &[f64], after: &[f64], error: f64) -> Self {
        let (a, b) = (Sample::of_logarithms(before), Sample::of_logarithms(after));
        let difference = b.mean - a.mean;
        let change = difference.exp() - 1.0;
        let bounds = a.variance.zip(b.variance).map(|(va, vb)| {
            let (va, vb) = (va / a.count, vb / b.count);
            let width = (va + vb).sqrt() * quantile(va, a.count, vb, b.count, error);
            ((difference - width).exp() - 1.0, (difference + width).exp() - 1.0)
        });
        Self { change, bounds }
    }

    /// What it says, where changes up to `tolerance` do not matter.
    pub fn verdict(&self, tolerance: f64, less_is_better: bool) -> Verdict {
        let Some((low, high)) = self.bounds else { return Verdict::Unclear };
        let (more, less) = match less_is_better {
            true => (Verdict::Worse, Verdict::Better),
            false => (Verdict::Better, Verdict::Worse),
        };
        if low > 0.0 && self.change > tolerance {
            more
        } else if high < 0.0 && self.change < -tolerance {
            less
        } else if low >= -tolerance && high <= tolerance {
            Verdict::Same
        } else {
            Verdict::Unclear
        }
    }
}

/// The quantile of Student's t with the degrees of freedom of Welch and Satterthwaite.
fn quantile(va: f64, na: f64, vb: f64, nb: f64, error: f64) -> f64 {
    if va + vb == 0.0 {
        return 0.0;
    }
    let freedom = (va + vb).powi(2) / (va * va / (na - 1.0) + vb * vb / (nb - 1.0));
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::INFINITY, |t| t.inverse_cdf(1.0 - error / 2.0))
}

struct Sample {
    count: f64,
    mean: f64,
    /// None of one value.
    variance: Option<f64>,
}

impl Sample {
    fn of_logarithms(values: &[f64]) -> Self {
        let logarithms: Vec<f64> = values.iter().map(|v| v.max(f64::MIN_POSITIVE).ln()).collect();
        let count = logarithms.len() as f64;
        let mean = logarithms.iter().sum::<f64>() / count;
        let squares: f64 = logarithms.iter().map(|l| (l - mean).powi(2)).sum();
        Self { count, mean, variance: (count > 1.0).then(|| squares / (count - 1.0)) }
    }
}

/// The mean that fits ratios.
pub fn geometric_mean(values: &[f64]) -> f64 {
    Sample::of_logarithms(values).mean.exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_welchs() {
        // By hand: variances of the logarithms are 0.01 and 0.04, 4 and 3 values, so the standard
        // error is sqrt(0.0025 + 0.01333) = 0.12583 with 2.761 degrees of freedom, for which t at
        // 97.5 % is 3.3468.
        let exp = |values: &[f64]| values.iter().map(|v: &f64| v.exp()).collect::<Vec<_>>();
        let side = 0.1 * 3.0_f64.sqrt() / 2.0;
        let before = exp(&[1.0 - side, 1.0 + side, 1.0 - side, 1.0 + side]);
        let after = exp(&[1.3, 1.5, 1.7]);
        let interval = Interval::of_ratio(&before, &after, 0.05);
        let (low, high) = interval.bounds.unwrap();
        assert!(((1.0 + interval.change).ln() - 0.5).abs() < 1e-12, "{interval:?}");
        let half = ((1.0 + high).ln() - (1.0 + low).ln()) / 2.0;
        assert!((half / 0.125_83 - 3.35).abs() < 0.02, "t is {}", half / 0.125_83);
    }

    #[test]
    fn runs_that_agree_to_the_digit_have_no_noise() {
        let interval = Interval::of_ratio(&[2.0, 2.0], &[2.2, 2.2], 0.05);
        let (low, high) = interval.bounds.unwrap();
        assert!((low - 0.1).abs() < 1e-12 && (high - 0.1).abs() < 1e-12, "{interval:?}");
    }

    #[test]
    fn verdicts_follow_the_interval() {
        use Verdict::{Better, Same, Unclear, Worse};
        for (change, bounds, expected) in [
            (0.2, Some((0.1, 0.3)), Worse),
            (-0.2, Some((-0.3, -0.1)), Better),
            (0.01, Some((-0.02, 0.04)), Same),
            (0.02, Some((0.01, 0.03)), Same),
            (0.04, Some((0.01, 0.07)), Unclear),
            (0.2, Some((-0.1, 0.6)), Unclear),
            (0.2, None, Unclear),
        ] {
            let interval = Interval { change, bounds };
            assert_eq!(interval.verdict(0.05, true), expected, "{interval:?}");
            let other_way = match expected {
                Worse => Better,
                Better => Worse,
                same => same,
            };
            assert_eq!(interval.verdict(0.05, false), other_way, "{interval:?}");
        }
    }
}
