//! Call stacks with the instructions executed in them: folded, or as a flame graph.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use symbols::Symbols;
use trace::{Block, Event};

use super::calls::{Calls, Name, Sink};
use super::{Moment, View};
use crate::profile::flame;
use crate::profile::folded::Folded;

/// Different stacks at most; what would be deeper counts for the function that called it.
const NODES_MAX: usize = 4 << 20;

/// How stacks are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A line each.
    Folded,
    /// As a flame graph.
    Picture,
}

/// The stacks of a trace.
pub(super) struct Stacks<W> {
    out: W,
    form: Form,
    calls: Calls,
    tree: Tree,
}

/// A function called by functions.
struct Node {
    name: Name,
    parent: u32,
    instructions: u64,
}

/// All stacks as one tree, of which node 0 is the root.
struct Tree {
    nodes: Vec<Node>,
    children: HashMap<(u32, Name), u32>,
    /// The nodes of the frames of each CPU.
    stacks: FxHashMap<u16, Vec<u32>>,
}

impl Sink for Tree {
    fn enter(&mut self, at: &Moment, name: Name, _: &str) -> io::Result<()> {
        let stack = self.stacks.entry(at.cpu).or_default();
        let parent = stack.last().copied().unwrap_or(0);
        let next = self.nodes.len();
        let node = match self.children.get(&(parent, name)) {
            Some(node) => *node,
            None if next >= NODES_MAX => parent,
            None => {
                self.nodes.push(Node { name, parent, instructions: 0 });
                self.children.insert((parent, name), next as u32);
                next as u32
            }
        };
        stack.push(node);
        Ok(())
    }

    fn leave(&mut self, at: &Moment) -> io::Result<()> {
        self.stacks.entry(at.cpu).or_default().pop();
        Ok(())
    }

    fn spend(&mut self, at: &Moment, instructions: u64) -> io::Result<()> {
        let top = self.stacks.get(&at.cpu).and_then(|stack| stack.last()).copied().unwrap_or(0);
        if let Some(node) = self.nodes.get_mut(top as usize) {
            node.instructions = node.instructions.saturating_add(instructions);
        }
        Ok(())
    }
}

impl Tree {
    /// The names on the way to a node, the outermost first.
    fn path(&self, mut node: u32) -> Vec<Name> {
        let mut path = Vec::new();
        while node != 0
            && let Some(Node { name, parent, .. }) = self.nodes.get(node as usize)
        {
            path.push(*name);
            node = *parent;
        }
        path.reverse();
        path
    }
}

impl<W: Write> Stacks<W> {
    pub(super) fn new(out: W, symbols: Arc<Symbols>, form: Form) -> Self {
        let root = Node { name: Name(0), parent: 0, instructions: 0 };
        let tree =
            Tree { nodes: vec![root], children: HashMap::new(), stacks: FxHashMap::default() };
        Self { out, form, calls: Calls::new(symbols), tree }
    }
}

impl<W: Write> View for Stacks<W> {
    fn block(&mut self, at: &Moment, block: &Arc<Block>) -> io::Result<()> {
        self.calls.block(at, block, &mut self.tree)
    }

    fn event(&mut self, at: &Moment, event: &Event) -> io::Result<()> {
        self.calls.event(at, event, &mut self.tree)
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut folded = Folded::default();
        // Only so many are kept apart: those that count most.
        let mut order: Vec<(u64, u32)> =
            (0..).zip(&self.tree.nodes).map(|(index, node)| (node.instructions, index)).collect();
        order.retain(|&(instructions, index)| instructions != 0 && index != 0);
        order.sort_unstable_by(|a, b| b.cmp(a));
        for (instructions, index) in order {
            let path = self.tree.path(index).into_iter().map(|name| self.calls.text(name));
            let path: Vec<_> = path.collect();
            folded.add(path.iter().map(|name| &**name), instructions);
        }
        match self.form {
            Form::Folded => folded.write(&mut self.out)?,
            Form::Picture => flame::draw(&folded, "Trace", "instructions", &mut self.out)?,
        }
        self.out.flush()
    }
}
