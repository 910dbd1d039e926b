//! `docs/coverage.md` says what the table says. `BLESS=1 cargo test -p decoder` writes it anew.

use decoder::{Class, Executor, Privilege, Row, Unit, rows};
use std::collections::BTreeMap;
use std::path::Path;

const HEADER: &str = "\
# Instructions

Generated from the decoder's table by `BLESS=1 cargo test -p decoder`; do not edit.

*Executed by* says who runs an instruction in the interpreter: `interpreter`, a function of ours, or
`host`, the host's own instruction on the guest's state. *Gate* names the state rules it passes
(`decoder::Unit`), *CPUID* the features without which it is #UD (of several groups, each is a
form's), *privilege* what else it needs. A form is one of iced-x86's encodings.
";

/// iced knows forms that its decoder never makes: data declarations, FSTENV and the like, which are
/// WAIT and FNSTENV, and those of processors that only an option selects (Knights Corner, Cyrix).
fn is_decoded(row: &Row) -> bool {
    let info = row.code.op_code();
    info.is_instruction() && !info.fwait() && info.decoder_option() == 0
}

/// The forms of one mnemonic in one class.
#[derive(Default)]
struct Entry {
    forms: usize,
    executors: Vec<&'static str>,
    units: Vec<String>,
    features: Vec<String>,
    privileges: Vec<String>,
}

fn note<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

impl Entry {
    fn add(&mut self, row: &Row) {
        self.forms += 1;
        let executor = if row.executor == Executor::Native { "host" } else { "interpreter" };
        note(&mut self.executors, executor);
        if row.unit != Unit::General {
            note(&mut self.units, format!("{:?}", row.unit));
        }
        let features: Vec<_> = row.features.iter().map(decoder::Feature::name).collect();
        if !features.is_empty() {
            note(&mut self.features, features.join(" "));
        }
        if row.privilege != Privilege::Any {
            note(&mut self.privileges, format!("{:?}", row.privilege));
        }
    }

    fn line(&self, mnemonic: &str) -> String {
        let [units, features, privileges] =
            [&self.units, &self.features, &self.privileges].map(|list| list.join(", "));
        let executors = self.executors.join(", ");
        let forms = self.forms;
        format!("| {mnemonic} | {forms} | {executors} | {units} | {features} | {privileges} |\n")
    }
}

fn page() -> String {
    let mut classes: BTreeMap<Class, BTreeMap<String, Entry>> = BTreeMap::new();
    for row in rows().filter(|row| is_decoded(row)) {
        let mnemonic = format!("{:?}", row.code.mnemonic()).to_uppercase();
        classes.entry(row.class).or_default().entry(mnemonic).or_default().add(row);
    }
    let undefined = classes.remove(&Class::Undefined).unwrap_or_default();
    let mut page = HEADER.to_owned();
    page += &summary(&classes, &undefined);
    for (class, entries) in &classes {
        page += &format!("\n## {class:?}\n\n");
        page += "| instruction | forms | executed by | gate | CPUID | privilege |\n";
        page += "|---|---|---|---|---|---|\n";
        page.extend(entries.iter().map(|(mnemonic, entry)| entry.line(mnemonic)));
    }
    page += "\n## Undefined\n\nThese raise #UD, as on a processor that does not offer them.\n\n";
    let names: Vec<_> = undefined.keys().map(String::as_str).collect();
    for line in names.chunks(10) {
        page += &(line.join(" ") + "\n");
    }
    page
}

type Entries = BTreeMap<String, Entry>;

fn summary(classes: &BTreeMap<Class, Entries>, undefined: &Entries) -> String {
    let count =
        |wanted: Executor| rows().filter(|row| is_decoded(row) && row.executor == wanted).count();
    let mnemonics: usize = classes.values().map(BTreeMap::len).sum();
    format!(
        "\n{} forms are interpreted and {} run on the host ({mnemonics} entries below); {} forms \
         of {} instructions do not exist here.\n",
        count(Executor::Interpreter),
        count(Executor::Native),
        count(Executor::Undefined),
        undefined.len(),
    )
}

#[test]
fn the_coverage_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/coverage.md");
    let page = page();
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == page, "docs/coverage.md is stale: BLESS=1 cargo test -p decoder");
}
