//! Resolved stacks as a tree: each node is a frame under a caller, so stacks share what they have in common.
//!
//! Apart because reports walk it: from a node to the root is a stack, leaf first. Invariant: a parent's
//! index is smaller than its child's; the tree is bounded, and a stack that does not fit is
//! `[too many frames]`, which callers count.

use rustc_hash::FxHashMap;

use crate::symbolize::{FrameId, FrameTable};

/// Handle of a resolved stack. (The kernel side's ids are `units::StackId`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(u32);

impl StackId {
    /// The place in the table.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Node {
    parent: Option<StackId>,
    frame: FrameId,
}

/// All resolved stacks of a profile.
#[derive(Clone, Debug)]
pub struct StackTable {
    nodes: Vec<Node>,
    ids: FxHashMap<Node, StackId>,
    max: usize,
    overflow: StackId,
}

impl StackTable {
    /// A table of at most `max` nodes.
    pub fn new(max: usize) -> Self {
        let overflow = Node {
            parent: None,
            frame: FrameTable::OVERFLOW,
        };
        Self {
            nodes: vec![overflow],
            ids: [(overflow, StackId(0))].into_iter().collect(),
            max: max.clamp(1, u32::MAX as usize),
            overflow: StackId(0),
        }
    }

    /// The handle of a stack, root first. `None` if it does not fit, or is empty.
    pub fn intern(&mut self, frames: &[FrameId]) -> Option<StackId> {
        let mut parent = None;
        for &frame in frames {
            parent = Some(self.child(parent, frame)?);
        }
        parent
    }

    /// The handle of a frame under a caller; `None` if it does not fit.
    pub fn child(&mut self, parent: Option<StackId>, frame: FrameId) -> Option<StackId> {
        let node = Node { parent, frame };
        match self.ids.get(&node) {
            Some(&id) => Some(id),
            None if self.nodes.len() >= self.max => None,
            None => {
                let id = StackId(u32::try_from(self.nodes.len()).ok()?);
                self.nodes.push(node);
                self.ids.insert(node, id);
                Some(id)
            }
        }
    }

    /// All nodes in order of their places: the caller's, which stands before, and the frame.
    pub fn nodes(&self) -> impl Iterator<Item = (Option<StackId>, FrameId)> + '_ {
        self.nodes.iter().map(|node| (node.parent, node.frame))
    }

    /// What stands for every stack that did not fit.
    pub fn overflow(&self) -> StackId {
        self.overflow
    }

    /// The frames, leaf first.
    pub fn leaf_first(&self, stack: StackId) -> impl Iterator<Item = FrameId> + '_ {
        std::iter::successors(self.node(stack), |node| self.node(node.parent?)).map(|node| node.frame)
    }

    /// The frames, root first.
    pub fn root_first(&self, stack: StackId) -> Vec<FrameId> {
        let mut frames: Vec<FrameId> = self.leaf_first(stack).collect();
        frames.reverse();
        frames
    }

    /// Whether new stacks no longer fit.
    pub fn is_full(&self) -> bool {
        self.nodes.len() >= self.max
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: the overflow stack is always there.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn node(&self, stack: StackId) -> Option<Node> {
        self.nodes.get(stack.0 as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use super::*;

    #[test]
    fn stacks_share_their_callers_and_a_full_table_says_so() {
        let (a, b, c) = (
            FrameTable::NO_PYTHON,
            FrameTable::TRUNCATED,
            FrameTable::UNREADABLE,
        );
        let mut stacks = StackTable::new(4);
        let ab = stacks.intern(&[a, b]).unwrap();
        let ac = stacks.intern(&[a, c]).unwrap();
        assert_eq!(stacks.len(), 4);
        assert_ne!(ab, ac);
        assert_eq!(stacks.intern(&[a, b]), Some(ab));
        assert_eq!(stacks.root_first(ac), [a, c]);
        assert_eq!(stacks.leaf_first(ab).collect::<Vec<_>>(), [b, a]);
        assert_eq!(stacks.intern(&[b]), None);
        assert_eq!(stacks.intern(&[]), None);
        assert_eq!(stacks.root_first(stacks.overflow()), [FrameTable::OVERFLOW]);
    }
}
