//! Models in the form `.mevt` (docs/models.md): reading, and scoring of rows.
//!
//! Everything a file says is checked once, when it is opened: no row can make a walk leave its tree
//! or go round in a circle. Sums are made in `f32`, tree by tree in the order of the file, and the
//! logistic function is written as XGBoost writes it: scores are equal to the last bit.
#![forbid(unsafe_code)]

use std::convert::TryInto;

const VERSION: u32 = 1;
const HEADER: usize = 32;
const NODE: usize = 12;
const LOGISTIC: u32 = 1;
const SQUARED_ERROR: u32 = 2;
const FEATURE: u32 = 0x7FFF_FFFF;
/// A tree stays in the cache while a block of rows goes through it.
const BLOCK: usize = 64;
/// So many walks are made side by side: each waits for memory, and their ends cannot be predicted.
const LANES: usize = 8;

/// The reason why a file is no model, as `mev.scoring.mevt` numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    TooShort = 2,
    Magic = 3,
    Version = 4,
    Objective = 5,
    Shape = 6,
    Length = 7,
    Base = 8,
    Root = 9,
    Child = 10,
    Feature = 11,
    Value = 12,
}

/// A walk goes to `child` where the feature is less than `threshold`, else to `child + 1`.
///
/// A leaf leads to itself: its threshold is NaN, which nothing reaches.
#[derive(Clone, Copy)]
struct Node {
    threshold: f32,
    child: u32,
    feature: u32,
    /// Added to `child` for a missing feature.
    missing: u32,
}

pub struct Trees {
    pub objective: u32,
    pub features: u32,
    pub trees: u32,
    pub nodes: u32,
    base: f32,
    roots: Vec<u32>,
    table: Vec<Node>,
    /// Weights of the leaves, by node.
    weights: Vec<f32>,
}

impl Trees {
    pub fn open(data: &[u8]) -> Result<Trees, Malformed> {
        let mut model = header(data)?;
        let count = model.trees as usize;
        let (roots, nodes) = data[HEADER..].split_at(4 * count);
        model.roots = roots.chunks_exact(4).map(|root| u32_at(root, 0)).collect();
        for tree in 0..count {
            let start = model.roots[tree];
            let end = model.roots.get(tree + 1).copied().unwrap_or(model.nodes);
            if (tree == 0 && start != 0) || start >= end || end > model.nodes {
                return Err(Malformed::Root);
            }
            model.tree(nodes, start, end)?;
        }
        Ok(model)
    }

    fn tree(&mut self, nodes: &[u8], start: u32, end: u32) -> Result<(), Malformed> {
        for index in start..end {
            let node = &nodes[NODE * index as usize..];
            let value = f32_at(node, 0);
            let (child, feature) = (u32_at(node, 4), u32_at(node, 8));
            if !value.is_finite() {
                return Err(Malformed::Value);
            }
            if child == 0 {
                if feature != 0 {
                    return Err(Malformed::Feature);
                }
                self.table.push(Node {
                    threshold: f32::NAN,
                    child: index,
                    feature: 0,
                    missing: 0,
                });
            } else {
                // The node after the child belongs to this tree too.
                if child <= index || child >= end - 1 {
                    return Err(Malformed::Child);
                }
                if feature & FEATURE >= self.features {
                    return Err(Malformed::Feature);
                }
                self.table.push(Node {
                    threshold: value,
                    child,
                    feature: feature & FEATURE,
                    missing: feature >> 31,
                });
            }
            self.weights.push(value);
        }
        Ok(())
    }

    /// Return the scores of `rows`, each of as many features as the model has; NaN is missing.
    pub fn predict(&self, rows: &[f32], margin: bool) -> Vec<f32> {
        let width = self.features as usize;
        let mut scores = vec![self.base; rows.len() / width];
        if let [score] = scores.as_mut_slice() {
            self.add_all(rows, score);
        } else {
            for (scores, rows) in scores.chunks_mut(BLOCK).zip(rows.chunks(BLOCK * width)) {
                for &root in &self.roots {
                    self.add_tree(root, rows, scores);
                }
            }
        }
        if !margin && self.objective == LOGISTIC {
            for score in &mut scores {
                *score = logistic(*score);
            }
        }
        scores
    }

    /// Add all trees to the score of one row.
    fn add_all(&self, row: &[f32], score: &mut f32) {
        for roots in self.roots.chunks(LANES) {
            let mut at = [roots[0]; LANES];
            at[..roots.len()].copy_from_slice(roots);
            self.walk(&mut at, |_, feature| row[feature]);
            for &leaf in &at[..roots.len()] {
                *score += self.weights[leaf as usize];
            }
        }
    }

    /// Add one tree to the scores of some rows.
    fn add_tree(&self, root: u32, rows: &[f32], scores: &mut [f32]) {
        let width = self.features as usize;
        for (scores, rows) in scores.chunks_mut(LANES).zip(rows.chunks(LANES * width)) {
            let last = scores.len() - 1;
            let mut at = [root; LANES];
            // Lanes without a row repeat the last one.
            self.walk(&mut at, |lane, feature| {
                rows[lane.min(last) * width + feature]
            });
            for (score, leaf) in scores.iter_mut().zip(at) {
                *score += self.weights[leaf as usize];
            }
        }
    }

    /// Walk from the nodes `at` to leaves.
    #[inline(always)]
    fn walk(&self, at: &mut [u32; LANES], value: impl Fn(usize, usize) -> f32) {
        loop {
            let mut moved = 0;
            for (lane, at) in at.iter_mut().enumerate() {
                let node = self.table[*at as usize];
                let x = value(lane, node.feature as usize);
                // A comparison with NaN is false.
                let right = u32::from(x >= node.threshold) | u32::from(x.is_nan()) & node.missing;
                moved |= (node.child + right) ^ *at;
                *at = node.child + right;
            }
            if moved == 0 {
                return;
            }
        }
    }
}

fn header(data: &[u8]) -> Result<Trees, Malformed> {
    if data.len() < HEADER {
        return Err(Malformed::TooShort);
    }
    if &data[..4] != b"MEVT" {
        return Err(Malformed::Magic);
    }
    if u32_at(data, 4) != VERSION {
        return Err(Malformed::Version);
    }
    let (objective, features) = (u32_at(data, 8), u32_at(data, 12));
    let (trees, nodes) = (u32_at(data, 16), u32_at(data, 20));
    let mut base = f32_at(data, 24);
    if objective != LOGISTIC && objective != SQUARED_ERROR {
        return Err(Malformed::Objective);
    }
    let is_shape = (1..=FEATURE).contains(&features) && trees > 0 && nodes >= trees;
    if !is_shape || u32_at(data, 28) != 0 {
        return Err(Malformed::Shape);
    }
    let size = HEADER as u64 + 4 * u64::from(trees) + NODE as u64 * u64::from(nodes);
    if data.len() as u64 != size {
        return Err(Malformed::Length);
    }
    if objective == LOGISTIC {
        if !(base > 0.0 && base < 1.0) {
            return Err(Malformed::Base);
        }
        base = -(1.0 / base - 1.0).ln();
    }
    if !base.is_finite() {
        return Err(Malformed::Base);
    }
    Ok(Trees {
        objective,
        features,
        trees,
        nodes,
        base,
        roots: Vec::new(),
        table: Vec::with_capacity(nodes as usize),
        weights: Vec::with_capacity(nodes as usize),
    })
}

fn logistic(margin: f32) -> f32 {
    // Beyond 88.7 the exponential overflows.
    let negated = if -margin < 88.7 { -margin } else { 88.7 };
    1.0 / (negated.exp() + 1.0 + 1e-16)
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    data[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
}

fn f32_at(data: &[u8], at: usize) -> f32 {
    f32::from_bits(u32_at(data, at))
}
