//! Names that say nothing.

use crate::assert_none;
use crate::sources;

/// A module of one of these names collects what has no place.
const GRAB_BAGS: &[&str] =
    &["util", "utils", "common", "base", "misc", "helper", "helpers", "shared", "stuff"];

#[test]
fn no_module_is_a_grab_bag() {
    let mut complaints = Vec::new();
    for source in sources::all() {
        let stem = source.path.trim_end_matches(".rs");
        if let Some(part) = stem.split('/').find(|part| GRAB_BAGS.contains(part)) {
            complaints.push(format!("{}: `{part}` says nothing", source.path));
        }
    }
    assert_none(&complaints);
}

#[test]
fn crate_and_module_names_have_no_dashes() {
    let sources = sources::all();
    let dashed = sources.iter().filter(|source| source.path.contains('-'));
    assert_none(&dashed.map(|source| format!("{}: a dash", source.path)).collect::<Vec<_>>());
}
