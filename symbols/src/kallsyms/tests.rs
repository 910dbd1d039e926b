use super::sample::{BASE, Form, Written, forms, reader, symbols, tables};
use super::*;

#[test]
fn every_form_of_the_tables_is_read_in_full() {
    for form in forms() {
        let tables = tables(form);
        let kernel = find(BASE + 0x1000, &mut reader(&tables));
        let kernel = kernel.unwrap_or_else(|error| panic!("{form:?}: {error}"));
        let found: Vec<_> = kernel
            .symbols
            .symbols()
            .map(|symbol| (symbol.address, format!("{}{}", symbol.letter, symbol.name)))
            .collect();
        assert_eq!(found, symbols(form.addresses == Written::RelativeWithAbsolute), "{form:?}");
    }
}

#[test]
fn a_table_with_something_missing_is_refused_by_name() {
    let form =
        Form { is_newer: true, has_order: true, addresses: Written::RelativeWithAbsolute, mark: 4 };
    let whole = tables(form);
    let outcome =
        |bytes: &[u8]| find(BASE, &mut reader(bytes)).map(|_| ()).map_err(|e| e.to_string());
    assert_eq!(outcome(&whole), Ok(()));
    let digits = tokens::digits(&whole).next().expect("they are there");
    // Nothing behind the index; then nothing that has names.
    let short = outcome(&whole[..digits + 3000]).expect_err("no addresses");
    assert!(short.ends_with("no addresses"), "{short}");
    let mut damaged = whole.clone();
    // The length of the first name.
    damaged[4096 + 8] += 1;
    let damaged = outcome(&damaged).expect_err("a name is longer");
    assert!(damaged.ends_with("no names"), "{damaged}");
    assert!(matches!(find(BASE, &mut |_, _| 0), Err(SymbolError::NoKernel)));
    assert!(matches!(find(0x1000, &mut reader(&whole)), Err(SymbolError::NoKernel)));
}

#[test]
fn memory_that_is_all_candidates_takes_bounded_time() {
    // The same page everywhere, with digits; and names that each walk could be about.
    let mut page = tokens::DIGITS.repeat(4096 / tokens::DIGITS.len() + 1);
    page.truncate(4096);
    let mut read = |at: u64, out: &mut [u8]| {
        for (index, byte) in out.iter_mut().enumerate() {
            *byte = page[(at as usize).wrapping_add(index) % 4096];
        }
        out.len()
    };
    assert!(find(BASE, &mut read).is_err());
}
