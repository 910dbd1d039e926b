//! `-machine`, `-accel`, `-smp`, `-m`, `-rtc`: the board and what drives it.

use super::Stop;
use super::draft::Draft;
use super::key_values::KeyValues;
use crate::cli::values;
use crate::config::{Accel, Form, JitConfig, Scheduler};

const CPUS_MAX: u64 = 255;

/// Properties of `-machine` that may be given as long as they ask for what is so anyway.
///
/// `kernel_irqchip` concerns KVM only. Memory merging and core dumps are the host's business and
/// change nothing a guest sees.
#[rustfmt::skip]
const HARMLESS: &[(&str, &[&str])] = &[
    ("kernel-irqchip",  &["on", "off", "split"]),
    ("mem-merge",       &["on", "off"]),
    ("dump-guest-core", &["on", "off"]),
    ("acpi",            &["on", "auto"]),
    ("hpet",            &["on"]),
    ("pic",             &["on", "auto"]),
    ("i8042",           &["on"]),
    ("smm",             &["off", "auto"]),
    ("vmport",          &["off", "auto"]),
    ("usb",             &["off"]),
    ("graphics",        &["on", "off"]),
    ("nvdimm",          &["off"]),
    ("hmat",            &["off"]),
    ("sata",            &["off"]),
    ("smbus",           &["off"]),
];

/// `-machine [type=]q35|pc[,accel=...][,property=value...]`.
pub(super) fn machine(draft: &mut Draft, text: &str) -> Result<(), Stop> {
    let mut keys = KeyValues::parse(text, "type");
    if let Some(name) = keys.take("type") {
        draft.config.form = form(&name)?;
    }
    if let Some(names) = keys.take("accel") {
        set_accel(draft, &names)?;
    }
    if let Some(has_pit) = keys.take_switch("pit")? {
        draft.config.has_pit = has_pit;
    }
    for (key, value) in keys.into_rest() {
        let name = key.replace('_', "-");
        let row = HARMLESS.iter().find(|(harmless, _)| *harmless == name);
        let values = row.map(|(_, values)| *values).unwrap_or_default();
        if !values.contains(&value.as_str()) {
            return Err(format!("{key}={value}: not supported yet").into());
        }
    }
    Ok(())
}

/// A machine's name, with or without the version that QEMU's carry.
fn form(name: &str) -> Result<Form, Stop> {
    match name {
        "q35" => Ok(Form::Q35),
        "pc" => Ok(Form::Pc),
        _ if name.starts_with("pc-q35-") => Ok(Form::Q35),
        _ if name.starts_with("pc-i440fx-") => Ok(Form::Pc),
        "help" | "?" => Err(Stop::Print(
            "Supported machines are:\n\
             pc                   Standard PC (i440FX + PIIX) (default)\n\
             q35                  Standard PC (Q35 + ICH9)\n"
                .into(),
        )),
        _ => Err(format!("{name}: no such machine; take q35 or pc").into()),
    }
}

/// `-accel NAME[,thread=single|multi][,tb-size=MIB][,one-insn-per-tb=on|off][,split-wx=on|off]`.
pub(super) fn accel(draft: &mut Draft, text: &str) -> Result<(), Stop> {
    let mut keys = KeyValues::parse(text, "accel");
    let name = keys.take("accel").unwrap_or_default();
    if matches!(name.as_str(), "help" | "?") {
        return Err(Stop::Print("Accelerators supported:\ntcg\nkvm\nauto\ninterp\n".into()));
    }
    set_accel(draft, &name)?;
    match keys.take("thread").as_deref() {
        None => {}
        Some(_) if draft.config.accel == Accel::Kvm => {
            return Err("thread: KVM has a thread for each processor".into());
        }
        Some("single") => draft.config.scheduler = Scheduler::Serial,
        Some("multi") => draft.config.scheduler = Scheduler::Parallel,
        Some(how) => return Err(format!("thread={how}: take single or multi").into()),
    }
    if matches!(draft.config.accel, Accel::Auto | Accel::Jit) {
        translator(draft, &mut keys)?;
    }
    Ok(keys.finish()?)
}

/// What only a translator has.
fn translator(draft: &mut Draft, keys: &mut KeyValues) -> Result<(), Stop> {
    if let Some(mebibytes) = keys.take_number("tb-size")? {
        // As QEMU has it, 0 stands for the default.
        let bytes = mebibytes.saturating_mul(1 << 20);
        draft.config.jit.cache_bytes = Some(bytes).filter(|&bytes| bytes != 0);
    }
    if let Some(is_one) = keys.take_switch("one-insn-per-tb")? {
        draft.config.jit.block_size = if is_one { 1 } else { JitConfig::default().block_size };
    }
    // Code is never writable where it is executed, whatever is asked for.
    keys.take_switch("split-wx")?;
    Ok(())
}

/// The first name that can be had, of `kvm:tcg` and its like. Whether KVM can is found out when the
/// machine is made.
fn set_accel(draft: &mut Draft, names: &str) -> Result<(), Stop> {
    let has_tcg = names.split(':').any(|name| name == "tcg");
    let accel = names.split(':').find_map(|name| match name {
        "kvm" if has_tcg => Some(Accel::Auto),
        "kvm" if name == names => Some(Accel::Kvm),
        "tcg" => Some(Accel::Jit),
        "auto" => Some(Accel::Auto),
        "interp" => Some(Accel::Interp),
        _ => None,
    });
    draft.config.accel = accel.ok_or_else(|| format!("{names}: not supported yet; take tcg"))?;
    Ok(())
}

/// `-smp [cpus=]N[,sockets=N][,cores=N][,threads=N][,maxcpus=N]...`.
pub(super) fn smp(draft: &mut Draft, text: &str) -> Result<(), Stop> {
    const LEVELS: [&str; 6] = ["sockets", "dies", "clusters", "modules", "cores", "threads"];
    let mut keys = KeyValues::parse(text, "cpus");
    let cpus = keys.take_number("cpus")?;
    let maxcpus = keys.take_number("maxcpus")?;
    let mut product = None;
    let mut is_flat = true;
    for level in LEVELS {
        let Some(count) = keys.take_number(level)? else { continue };
        is_flat &= count == 1 || level == "cores";
        product = Some(product.unwrap_or(1u64).saturating_mul(count));
    }
    keys.finish()?;
    let count = cpus.or(maxcpus).or(product).unwrap_or(1);
    if !(1..=CPUS_MAX).contains(&count) {
        return Err(format!("{count} CPUs: take 1 to {CPUS_MAX}").into());
    }
    if maxcpus.is_some_and(|max| max != count) {
        return Err("maxcpus: CPUs cannot be added later; make it the number of CPUs".into());
    }
    if !is_flat {
        draft.notes.push(format!("-smp: the guest sees {count} cores of one socket"));
    }
    draft.config.cpus = count as u32;
    Ok(())
}

/// `-m [size=]SIZE[,slots=0][,maxmem=SIZE]`; without a unit in MiB.
pub(super) fn memory(draft: &mut Draft, text: &str) -> Result<(), Stop> {
    let mut keys = KeyValues::parse(text, "size");
    let size = keys.take("size").ok_or("needs a size")?;
    let bytes = memory_bytes(&size)?;
    if keys.take_number("slots")?.is_some_and(|slots| slots != 0) {
        return Err("slots: memory cannot be added later".into());
    }
    if let Some(max) = keys.take("maxmem")
        && memory_bytes(&max)? != bytes
    {
        return Err(format!("maxmem={max}: memory cannot be added later").into());
    }
    keys.finish()?;
    draft.config.memory_bytes = bytes;
    Ok(())
}

fn memory_bytes(size: &str) -> Result<u64, Stop> {
    let is_bare = size.ends_with(|last: char| last.is_ascii_digit());
    let with_unit = if is_bare { format!("{size}M") } else { size.to_owned() };
    let bytes =
        values::bytes(&with_unit).ok_or_else(|| format!("{size}: no size, such as 512M"))?;
    values::check_memory(bytes).map_err(|reason| format!("{size}: {reason}").into())
}

/// `-rtc base=utc[,clock=host][,driftfix=none|slew]`.
pub(super) fn rtc(_: &mut Draft, text: &str) -> Result<(), Stop> {
    let mut keys = KeyValues::parse(text, "base");
    for (key, harmless) in
        [("base", &["utc"][..]), ("clock", &["host"][..]), ("driftfix", &["none", "slew"][..])]
    {
        if let Some(value) = keys.take(key).filter(|value| !harmless.contains(&value.as_str())) {
            return Err(format!("{key}={value}: not supported yet").into());
        }
    }
    Ok(keys.finish()?)
}
