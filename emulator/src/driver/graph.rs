//! Graphs: operations with an order, kept to be run again.

use super::abi::{HostFunction, UserData};
use super::context::Context;
use super::copy::{Fill, Transfer};
use super::errors::{Error, Result};
use super::event::Event;
use super::launch::KernelLaunch;
use super::print;
use super::registry::lock;
use super::state::{Driver, driver};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

/// What a stream or a graph does.
pub(super) enum Op {
    Kernel(KernelLaunch),
    Transfer(Transfer),
    Fill(Fill),
    Host {
        function: HostFunction,
        data: UserData,
    },
    Record(Arc<Event>),
    Wait,
    /// Memory the graph allocates; it has its address from the capture on.
    Alloc {
        _memory: GraphMemory,
    },
    Free,
    Graph(Arc<Exec>),
}

/// Memory of an allocation captured in a graph: lives as long as the graph or an executable made of it.
pub(super) struct GraphMemory {
    pub(super) address: u64,
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        if let Ok(driver) = driver() {
            driver.release(self.address);
        }
    }
}

/// A graph as captured.
pub(super) struct Graph {
    pub(super) handle: u64,
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    nodes: Vec<Node>,
    /// Handles of the nodes that were asked for.
    names: HashMap<usize, u64>,
    /// Handles shown last by `cuStreamGetCaptureInfo`.
    shown: Vec<u64>,
}

/// An operation, and the nodes before it that it depends on.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) op: Arc<Op>,
    pub(super) after: Vec<usize>,
}

/// What a node's handle names.
pub(super) struct NodeName {
    pub(super) graph: u64,
    pub(super) index: usize,
}

/// A graph made ready to run: later changes of the graph are not seen.
pub(super) struct Exec {
    pub(super) flags: u64,
    nodes: Vec<Node>,
}

impl Op {
    /// Refuses what could not run, when it is submitted.
    pub(super) fn check(&self, driver: &Driver) -> Result<()> {
        match self {
            Self::Transfer(transfer) => transfer.check(driver),
            Self::Fill(fill) => fill.check(driver),
            _ => Ok(()), // checked where they were made
        }
    }

    /// Runs it to its end.
    pub(super) fn run(&self, driver: &Driver, context: &Context) -> Result<()> {
        match self {
            Self::Kernel(launch) => launch.run(driver, context),
            Self::Transfer(transfer) => transfer.run(driver),
            Self::Fill(fill) => fill.run(driver),
            Self::Host { function, data } => {
                function.run(*data);
                Ok(())
            }
            Self::Record(event) => {
                event.complete();
                Ok(())
            }
            Self::Wait | Self::Alloc { .. } | Self::Free => Ok(()),
            Self::Graph(exec) => exec.run(driver, context),
        }
    }

    /// `CUgraphNodeType`.
    pub(super) fn node_type(&self) -> u32 {
        match self {
            Self::Kernel(_) => 0,
            Self::Transfer(_) => 1,
            Self::Fill(_) => 2,
            Self::Host { .. } => 3,
            Self::Graph(_) => 4,
            Self::Wait => 6,
            Self::Record(_) => 7,
            Self::Alloc { .. } => 10,
            Self::Free => 11,
        }
    }
}

impl Graph {
    pub(super) fn new(handle: u64) -> Self {
        Self { handle, parts: Mutex::default() }
    }

    /// A graph with the same nodes.
    pub(super) fn copy(&self, handle: u64) -> Self {
        let parts = Parts { nodes: self.nodes(), ..Parts::default() };
        Self { handle, parts: Mutex::new(parts) }
    }

    /// Adds a node and gives its index.
    pub(super) fn push(&self, op: Op, after: Vec<usize>) -> usize {
        let mut parts = lock(&self.parts);
        parts.nodes.push(Node { op: Arc::new(op), after });
        parts.nodes.len() - 1
    }

    pub(super) fn nodes(&self) -> Vec<Node> {
        lock(&self.parts).nodes.clone()
    }

    /// Handles of nodes, the same each time.
    pub(super) fn names(&self, driver: &Driver, nodes: &[usize]) -> Vec<u64> {
        let names = &mut lock(&self.parts).names;
        let name = |&index: &usize| {
            *names
                .entry(index)
                .or_insert_with(|| driver.nodes.add(|_| NodeName { graph: self.handle, index }))
        };
        nodes.iter().map(name).collect()
    }

    /// As [`Graph::names`], in memory that stays until the next such call (or the end of the graph).
    pub(super) fn show(&self, driver: &Driver, nodes: &[usize]) -> *const u64 {
        let names = self.names(driver, nodes);
        let shown = &mut lock(&self.parts).shown;
        *shown = names;
        shown.as_ptr()
    }

    /// The nodes with all they depend on.
    pub(super) fn with_ancestors(&self, nodes: &[usize]) -> HashSet<usize> {
        let parts = lock(&self.parts);
        let mut open = nodes.to_vec();
        let mut found = HashSet::new();
        while let Some(node) = open.pop() {
            if found.insert(node) {
                open.extend(&parts.nodes[node].after);
            }
        }
        found
    }

    /// Forgets the handles of its nodes.
    pub(super) fn forget_names(&self, driver: &Driver) {
        for (_, name) in lock(&self.parts).names.drain() {
            let _ = driver.nodes.remove(name);
        }
    }
}

impl Exec {
    pub(super) fn new(flags: u64, graph: &Graph) -> Self {
        Self { flags, nodes: graph.nodes() }
    }

    /// Runs the nodes in the order they were captured in: each comes after those it depends on. Stops at a
    /// fault, which the context keeps; so it does with memory that is gone, as a card would fault on it.
    pub(super) fn run(&self, driver: &Driver, context: &Context) -> Result<()> {
        for node in &self.nodes {
            if context.check().is_err() {
                break;
            }
            let ran = node.op.check(driver).and_then(|()| node.op.run(driver, context));
            if ran.is_err() {
                print("a copy or memset in a graph touches memory that is not allocated (any more)");
                context.fail(Error::ILLEGAL_ADDRESS);
            }
        }
        Ok(())
    }
}
