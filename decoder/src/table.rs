//! The table itself, built at first use.

use crate::derive::derive;
use crate::{Code, Row};
use std::sync::LazyLock;

static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| Code::values().map(derive).collect());

/// The row of `code`.
#[inline]
pub fn row(code: Code) -> &'static Row {
    // `Code::values` yields every value in order from 0, so the index is the discriminant.
    &ROWS[code as usize]
}

/// Every row, in iced's order.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    ROWS.iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_finds_its_own_row() {
        assert_eq!(rows().count(), Code::values().count());
        for code in Code::values() {
            assert_eq!(row(code).code, code);
        }
    }
}
