//! Days and the Gregorian calendar, for a clock chip.
//!
//! The day number of a date is found by counting from 1 March of year 0, so that the leap day is
//! the last of its year and a year's months have the fixed pattern of 153 days to five months.

/// Seconds of a day.
pub(super) const DAY_SECONDS: i64 = 86_400;
/// Days from 1 March of year 0 to 1 January 1970.
const MARCH_0_TO_1970: i64 = 719_468;
/// Days of 400 years.
const ERA_DAYS: i64 = 146_097;

/// A time of day and a date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    /// Years of the common era.
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: i64,
    /// 1 to 31.
    pub(super) day: i64,
    pub(super) hour: i64,
    pub(super) minute: i64,
    pub(super) second: i64,
}

impl DateTime {
    /// The date and time so many seconds after the start of 1970.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let in_day = seconds.rem_euclid(DAY_SECONDS);
        let days = seconds.div_euclid(DAY_SECONDS) + MARCH_0_TO_1970;
        let (era, in_era) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
        // Take out the leap days before dividing: every 4 years, not every 100, every 400.
        let leap_days = in_era / 1460 - in_era / 36_524 + in_era / 146_096;
        let year_of_era = (in_era - leap_days) / 365;
        let in_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * in_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        Self {
            year: 400 * era + year_of_era + i64::from(month <= 2),
            month,
            day: in_year - (153 * from_march + 2) / 5 + 1,
            hour: in_day / 3600,
            minute: in_day / 60 % 60,
            second: in_day % 60,
        }
    }

    /// Seconds from the start of 1970. Fields out of range are brought to the nearest value.
    pub(super) fn to_seconds(self) -> i64 {
        let month = self.month.clamp(1, 12);
        let year = self.year.clamp(0, 9999) - i64::from(month <= 2);
        let from_march = (month + 9) % 12;
        let in_year = (153 * from_march + 2) / 5 + self.day.clamp(1, 31) - 1;
        let year_of_era = year.rem_euclid(400);
        let in_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + in_year;
        let days = year.div_euclid(400) * ERA_DAYS + in_era - MARCH_0_TO_1970;
        let time = self.hour.clamp(0, 23) * 3600 + self.minute.clamp(0, 59) * 60;
        days * DAY_SECONDS + time + self.second.clamp(0, 59)
    }

    /// 1 for Sunday to 7 for Saturday.
    pub(super) fn weekday(self) -> i64 {
        // 1 January 1970 was a Thursday.
        (self.to_seconds().div_euclid(DAY_SECONDS) + 4).rem_euclid(7) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_days() {
        let rows = [
            (0, (1970, 1, 1), 5),
            (951_782_400, (2000, 2, 29), 3),
            (951_868_800, (2000, 3, 1), 4),
            (1_795_392_000, (2026, 11, 23), 2),
            (4_107_456_000, (2100, 2, 28), 1),
            (4_107_542_400, (2100, 3, 1), 2),
            (-1, (1969, 12, 31), 4),
        ];
        for (seconds, (year, month, day), weekday) in rows {
            let date = DateTime::from_seconds(seconds);
            assert_eq!((date.year, date.month, date.day), (year, month, day));
            assert_eq!(date.weekday(), weekday, "{year}-{month}-{day}");
        }
    }

    proptest! {
        #[test]
        fn seconds_survive_the_calendar(seconds in -60_000_000_000i64..250_000_000_000) {
            prop_assert_eq!(DateTime::from_seconds(seconds).to_seconds(), seconds);
        }
    }
}
