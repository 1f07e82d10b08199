//! Whether a series of values grows steadily, how fast, and how sure that is.
//!
//! Theil and Sen's slope with Mann and Kendall's test: neither is led astray by a burst, a plateau that fills up at the start,
//! or a value that is off. Pure numbers; what they are of, `report leaks` knows.

/// How a series grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// The middle of the slopes between all pairs of points, units a second.
    pub slope: f64,
    /// How sure it is that the series goes in the slope's direction, 0 to 1.
    pub confidence: f64,
}

/// Fewer points tell nothing.
const LEAST_POINTS: usize = 4;

/// The trend of points (seconds, value), in order of time; `None` if there are too few.
pub fn trend(points: &[(f64, f64)]) -> Option<Trend> {
    if points.len() < LEAST_POINTS {
        return None;
    }
    let mut slopes = Vec::with_capacity(points.len() * points.len() / 2);
    let mut sum = 0_i64;
    for (index, &(time, value)) in points.iter().enumerate() {
        for &(later, grown) in points.get(index + 1..).unwrap_or_default() {
            if later > time {
                slopes.push((grown - value) / (later - time));
                sum += i64::from(grown > value) - i64::from(grown < value);
            }
        }
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let middle = slopes.len() / 2;
    let slope = if slopes.len().is_multiple_of(2) {
        f64::midpoint(*slopes.get(middle.checked_sub(1)?)?, *slopes.get(middle)?)
    } else {
        *slopes.get(middle)?
    };
    let n = points.len() as f64;
    // Pairs of equal values make the sum vary less.
    let variance = n * (n - 1.0) * (2.0 * n + 5.0) / 18.0 - tied(points);
    let away = (sum.unsigned_abs() as f64 - 1.0).max(0.0);
    let z = if variance > 0.0 {
        away / variance.sqrt()
    } else {
        0.0
    };
    let agrees = slope != 0.0 && (slope > 0.0) == (sum > 0);
    Some(Trend {
        slope,
        confidence: if agrees { within(z) } else { 0.0 },
    })
}

/// The trend of points that keeps up: its slope is the least of the whole, of the second half of the time, and of that half's two
/// halves, as far as they have points enough. A cache that fills up and stays has grown for most pairs of its readings, as there
/// are more of them early in a process's life; and what is only known to be somebody's from some reading on has grown in one part.
pub fn lasting_trend(points: &[(f64, f64)]) -> Option<Trend> {
    let all = trend(points)?;
    let (first, last) = (points.first()?.0, points.last()?.0);
    let part = |from: f64, to: f64| {
        let [from, to] = [from, to].map(|share| first + (last - first) * share);
        let [from, to] = [
            points.partition_point(|&(time, _)| time < from),
            points.partition_point(|&(time, _)| time <= to),
        ];
        points.get(from..to).and_then(trend)
    };
    let parts = [part(0.5, 1.0), part(0.5, 0.75), part(0.75, 1.0)];
    let slopes = parts.into_iter().flatten().map(|part| part.slope);
    Some(Trend {
        slope: slopes.fold(all.slope, f64::min),
        ..all
    })
}

/// What groups of equal values take from the variance.
fn tied(points: &[(f64, f64)]) -> f64 {
    let mut values: Vec<f64> = points.iter().map(|point| point.1).collect();
    values.sort_unstable_by(f64::total_cmp);
    values
        .chunk_by(|a, b| a.total_cmp(b).is_eq())
        .map(|group| {
            let t = group.len() as f64;
            t * (t - 1.0) * (2.0 * t + 5.0) / 18.0
        })
        .sum()
}

/// The part of a normal distribution that is nearer to its middle than `z` deviations.
/// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; off by 1.5e-7 at most.
fn within(z: f64) -> f64 {
    let x = z / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = [
        1.061_405_429,
        -1.453_152_027,
        1.421_413_741,
        -0.284_496_736,
        0.254_829_592,
    ]
    .into_iter()
    .fold(0.0, |sum, factor| (sum + factor) * t);
    1.0 - series * (-x * x).exp()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// Values one second apart; the expected slope, and bounds of the confidence.
    #[track_caller]
    fn check(values: &[f64], slope: f64, confidence: std::ops::RangeInclusive<f64>) {
        let points: Vec<(f64, f64)> = values
            .iter()
            .zip(0..)
            .map(|(&value, at)| (f64::from(at), value))
            .collect();
        let found = trend(&points).unwrap();
        assert!((found.slope - slope).abs() < 1e-9, "{found:?}");
        assert!(confidence.contains(&found.confidence), "{found:?}");
    }

    #[test]
    fn steady_growth_is_sure_and_noise_is_not() {
        check(
            &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
            1.0,
            0.999..=1.0,
        );
        check(
            &[9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0],
            -1.0,
            0.999..=1.0,
        );
        check(&[5.0; 10], 0.0, 0.0..=0.0);
        check(&[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0], 0.0, 0.0..=0.5);
    }

    #[test]
    fn a_step_or_a_wrong_value_does_not_make_a_trend_of_its_own() {
        // Fills up, then stays.
        check(
            &[
                0.0, 50.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0,
            ],
            0.0,
            0.0..=0.0,
        );
        check(&[0.0, 1.0, 2.0, 500.0, 4.0, 5.0, 6.0, 7.0], 1.0, 0.98..=1.0);
    }

    #[test]
    fn what_has_stopped_to_grow_has_no_lasting_trend() {
        // Read often at first, and ten seconds apart then.
        let times = (1..20)
            .map(f64::from)
            .chain((2..18).map(|ten| f64::from(ten) * 10.0));
        let points =
            |value: fn(f64) -> f64| times.clone().map(|time| (time, value(time))).collect::<Vec<_>>();
        let fills = points(|time| time.min(30.0));
        assert!(trend(&fills).unwrap().slope > 0.1);
        assert!(lasting_trend(&fills).unwrap().slope.abs() < 1e-9);
        let leaks = points(|time| time * 3.0);
        assert_eq!(lasting_trend(&leaks), trend(&leaks));
        // A jump in the second half.
        let jumps = points(|time| if time > 140.0 { 50.0 } else { 1.0 });
        assert!(lasting_trend(&jumps).unwrap().slope.abs() < 1e-9);
        // Slower by now.
        let slows = points(|time| 60.0 + time.min(30.0) * 2.0 + time);
        let found = lasting_trend(&slows).unwrap();
        assert!(
            (found.slope - 1.0).abs() < 1e-9 && found.confidence > 0.99,
            "{found:?}"
        );
        assert_eq!(lasting_trend(&leaks[..3]), None);
        assert_eq!(lasting_trend(&leaks[..5]), trend(&leaks[..5]));
    }

    #[test]
    fn few_points_tell_nothing() {
        assert_eq!(trend(&[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]), None);
        assert_eq!(trend(&[]), None);
        assert_eq!(trend(&[(1.0, 1.0); 6]).map(|trend| trend.slope), None);
    }

    #[test]
    fn the_distribution_is_the_normal_one() {
        for (z, expected) in [
            (0.0, 0.0),
            (1.0, 0.682_689_5),
            (1.96, 0.950_004_2),
            (3.0, 0.997_300_2),
        ] {
            assert!((within(z) - expected).abs() < 1e-6, "{z}");
        }
    }
}
