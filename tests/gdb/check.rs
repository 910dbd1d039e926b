//! What a text must have.

/// Fails unless `text` has all of `parts`, in this order.
pub fn check(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some(at) = rest.find(part) else { panic!("no {part:?} where it is due in\n{text}") };
        rest = &rest[at + part.len()..];
    }
}
