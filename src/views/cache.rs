//! What a view has made of a block, kept while the block goes on being executed.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use trace::Block;

/// Blocks that are kept; when there are more, all are dropped.
const BLOCKS_MAX: usize = 32 << 10;

/// Things made of blocks, by block.
pub(super) struct Cache<T> {
    /// By address of the block, which stays where it is as long as it is held here.
    made: FxHashMap<usize, (Arc<Block>, Arc<T>)>,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self { made: FxHashMap::default() }
    }
}

impl<T> Cache<T> {
    /// What `make` makes of the block, or has made.
    pub(super) fn get(&mut self, block: &Arc<Block>, make: impl FnOnce(&Block) -> T) -> Arc<T> {
        if self.made.len() >= BLOCKS_MAX {
            self.made.clear();
        }
        let key = Arc::as_ptr(block) as usize;
        let made = self.made.entry(key);
        let (_, thing) = made.or_insert_with(|| (Arc::clone(block), Arc::new(make(block))));
        Arc::clone(thing)
    }
}
