//! A flame graph: counted stacks as a picture in SVG.
//!
//! A function is a box as wide as it counts, on the function that called it. The picture stands
//! alone; in a browser a box that is clicked fills the width, a click on the lowest row shows
//! everything again, and a box under the pointer tells its name and count.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};
use std::io::{self, Write};

use super::folded::Folded;

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 10.0;
const HEAD: f64 = 40.0;
const ROW: f64 = 17.0;
/// What a character of a name takes.
const CHARACTER: f64 = 7.0;
/// Boxes that are narrower are left out.
const NARROWEST: f64 = 0.15;
/// Rows at most.
const DEPTH_MAX: usize = 256;

/// A function called by a function, and what it counts with all that it calls.
#[derive(Default)]
struct Node<'a> {
    count: u64,
    calls: BTreeMap<&'a str, usize>,
}

/// The tree of calls; the first node is what everything is in.
struct Tree<'a>(Vec<Node<'a>>);

impl<'a> Tree<'a> {
    fn of(folded: &'a Folded) -> Self {
        let mut nodes = vec![Node { count: folded.total(), ..Node::default() }];
        for (stack, count) in folded.stacks() {
            let mut at = 0;
            for name in stack.split(';').take(DEPTH_MAX) {
                let next = nodes.len();
                let Some(node) = nodes.get_mut(at) else { break };
                at = *node.calls.entry(name).or_insert(next);
                if at == next {
                    nodes.push(Node::default());
                }
                if let Some(node) = nodes.get_mut(at) {
                    node.count += count;
                }
            }
        }
        Self(nodes)
    }

    /// All boxes that are wide enough to be seen.
    fn boxes(&self) -> Vec<Box<'a>> {
        let total = self.0.first().map_or(0, |node| node.count).max(1);
        let scale = (WIDTH - 2.0 * MARGIN) / total as f64;
        let mut boxes = Vec::new();
        let mut waiting = vec![(0, "all", 0, 0)];
        while let Some((index, name, depth, start)) = waiting.pop() {
            let Some(node) = self.0.get(index) else { continue };
            let (x, width) = (start as f64 * scale, node.count as f64 * scale);
            if width < NARROWEST {
                continue;
            }
            let share = node.count as f64 / total as f64;
            boxes.push(Box { name, depth, x, width, count: node.count, share });
            let mut from = start;
            for (name, &call) in &node.calls {
                waiting.push((call, name, depth + 1, from));
                from += self.0.get(call).map_or(0, |node| node.count);
            }
        }
        boxes
    }
}

struct Box<'a> {
    name: &'a str,
    depth: usize,
    x: f64,
    width: f64,
    count: u64,
    share: f64,
}

/// Text with what means something in XML written otherwise.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '<' => out.write_str("&lt;"),
            '>' => out.write_str("&gt;"),
            '&' => out.write_str("&amp;"),
            '"' => out.write_str("&quot;"),
            c if c.is_control() => out.write_char('?'),
            c => out.write_char(c),
        })
    }
}

/// A warm colour that a name always has; what has no name is grey.
fn colour(name: &str) -> String {
    if name.starts_with('[') || name == "all" {
        return "#c8c4bc".into();
    }
    let hash = name
        .bytes()
        .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("hsl({},{}%,{}%)", hash % 48, 70 + (hash >> 8) % 20, 58 + (hash >> 16) % 12)
}

/// As much of the name as the box has room for.
fn fitting(name: &str, width: f64) -> String {
    let room = (width / CHARACTER) as usize;
    let count = name.chars().count();
    match room {
        _ if count <= room => name.to_owned(),
        ..3 => String::new(),
        room => name.chars().take(room - 2).chain("..".chars()).collect(),
    }
}

/// Draws the stacks. `unit` is what is counted.
pub(crate) fn draw(
    folded: &Folded,
    title: &str,
    unit: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    let boxes = Tree::of(folded).boxes();
    let depth = boxes.iter().map(|it| it.depth).max().unwrap_or(0) + 1;
    let height = HEAD + depth as f64 * ROW + MARGIN;
    write!(
        out,
        "<?xml version=\"1.0\" standalone=\"no\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fdfcf8\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"15\">{}, {} {unit}</text>\n<g id=\"boxes\">\n",
        Escaped(title),
        folded.total(),
    )?;
    for it in &boxes {
        let (x, y) = (MARGIN + it.x, height - MARGIN - (it.depth + 1) as f64 * ROW);
        writeln!(
            out,
            "<g data-x=\"{:.3}\" data-w=\"{:.3}\" data-d=\"{}\" data-n=\"{}\">\
             <title>{} ({} {unit}, {:.2}%)</title>\
             <rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{:.2}\" height=\"{:.1}\" fill=\"{}\" \
             stroke=\"#fdfcf8\" stroke-width=\".6\"/>\
             <text x=\"{:.2}\" y=\"{:.1}\">{}</text></g>",
            it.x,
            it.width,
            it.depth,
            Escaped(it.name),
            Escaped(it.name),
            it.count,
            it.share * 100.0,
            it.width,
            ROW - 1.0,
            colour(it.name),
            x + 3.0,
            y + 12.0,
            Escaped(&fitting(it.name, it.width - 6.0)),
        )?;
    }
    let full = WIDTH - 2.0 * MARGIN;
    write!(
        out,
        "</g>\n<script><![CDATA[\n\
         const full = {full}, margin = {MARGIN}, character = {CHARACTER};\n\
         {SCRIPT}]]></script>\n</svg>\n"
    )
}

/// What a click does: the box and what it calls are stretched to the whole width, what called it is
/// as wide, and the rest goes.
const SCRIPT: &str = "\
const all = Array.from(document.querySelectorAll('#boxes > g'));
function show(x0, w0, d0) {
  for (const g of all) {
    const x = +g.dataset.x, w = +g.dataset.w, d = +g.dataset.d;
    const inside = x >= x0 - .01 && x + w <= x0 + w0 + .01;
    const below = d < d0 && x <= x0 + .01 && x + w >= x0 + w0 - .01;
    g.style.display = (d >= d0 && inside) || below ? '' : 'none';
    const left = below ? 0 : (x - x0) / w0 * full, width = below ? full : w / w0 * full;
    const [rect, text] = [g.querySelector('rect'), g.querySelector('text')];
    rect.setAttribute('x', margin + left);
    rect.setAttribute('width', Math.max(width, 0));
    text.setAttribute('x', margin + left + 3);
    const room = Math.floor((width - 6) / character), name = g.dataset.n;
    text.textContent = name.length <= room ? name : room < 3 ? '' : name.slice(0, room - 2) + '..';
  }
}
for (const g of all)
  g.addEventListener('click', () => show(+g.dataset.x, +g.dataset.w, +g.dataset.d));
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_as_wide_as_they_count_and_stand_on_their_callers() {
        let mut folded = Folded::default();
        folded.add(["main", "read<u8>"].into_iter(), 30);
        folded.add(["main", "write"].into_iter(), 60);
        folded.add(["idle"].into_iter(), 10);
        let tree = Tree::of(&folded);
        let boxes = tree.boxes();
        let find = |name| boxes.iter().find(|it| it.name == name).expect("it is drawn");
        let full = WIDTH - 2.0 * MARGIN;
        for (name, depth, share, x) in [
            ("all", 0, 1.0, 0.0),
            ("idle", 1, 0.1, 0.0),
            ("main", 1, 0.9, 0.1),
            ("read<u8>", 2, 0.3, 0.1),
            ("write", 2, 0.6, 0.4),
        ] {
            let it = find(name);
            assert_eq!(it.depth, depth, "{name}");
            assert!((it.width - share * full).abs() < 0.01, "{name}: {}", it.width);
            assert!((it.x - x * full).abs() < 0.01, "{name}: {}", it.x);
        }
        let mut svg = Vec::new();
        draw(&folded, "a <guest>", "samples", &mut svg).expect("a Vec takes all");
        let svg = String::from_utf8(svg).expect("it is text");
        assert!(svg.contains("a &lt;guest&gt;, 100 samples"));
        assert!(svg.contains("<title>read&lt;u8&gt; (30 samples, 30.00%)</title>"));
        assert_eq!(svg.matches("<g ").count(), boxes.len() + 1);
    }

    #[test]
    fn nothing_at_all_is_a_picture_too() {
        let mut svg = Vec::new();
        draw(&Folded::default(), "nothing", "samples", &mut svg).expect("a Vec takes all");
        assert!(svg.ends_with(b"</svg>\n"));
    }

    #[test]
    fn a_name_is_cut_where_its_box_ends() {
        assert_eq!(fitting("do_sys_open", 100.0), "do_sys_open");
        assert_eq!(fitting("do_sys_open", 50.0), "do_sy..");
        assert_eq!(fitting("do_sys_open", 20.0), "");
    }
}
