//! Graphs, as C sees them. They are made by capture; adding single nodes is not supported.

use super::abi::{In, Out};
use super::errors::{Error, Result};
use super::exports;
use super::graph::{Exec, Graph, NodeName, Op};
use super::state::{Driver, driver};
use std::ffi::c_char;
use std::sync::Arc;

/// Flags of instantiation.
const AUTO_FREE: u64 = 1;
const UPLOAD: u64 = 2;
const DEVICE_LAUNCH: u64 = 4;
const NODE_PRIORITY: u64 = 8;

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[derive(Clone, Copy)]
#[repr(C)]
struct InstantiateParams {
    flags: u64,
    upload_stream: u64,
    error_node: u64,
    result: u32,
}

fn instantiate(out: Out<u64>, graph: u64, flags: u64) -> Result<()> {
    let driver = driver()?;
    driver.current()?;
    let out = out.required()?;
    let graph = driver.graphs.get(graph)?;
    let known = AUTO_FREE | UPLOAD | DEVICE_LAUNCH | NODE_PRIORITY;
    if flags & !known != 0 || flags & DEVICE_LAUNCH != 0 && flags & AUTO_FREE != 0 {
        return Err(Error::INVALID_VALUE);
    }
    if flags & DEVICE_LAUNCH != 0 {
        driver.note("graphs launched from the device are not supported");
        return Err(Error::NOT_SUPPORTED);
    }
    out.set(driver.execs.add(|_| Exec::new(flags, &graph)))
}

fn launch(exec: u64, stream: u64) -> Result<()> {
    let driver = driver()?;
    let exec = driver.execs.get(exec)?;
    driver.submit(stream, Op::Graph(exec))
}

/// The CUDA way to give a list: a count alone without room, else as many as there is room for, the rest null.
fn give(values: &[u64], out: Out<u64>, count: Out<usize>) -> Result<()> {
    if out.is_null() {
        return count.set(values.len());
    }
    let room = count.as_in().get()?;
    let given = values.len().min(room);
    let padding = room.min(1 << 20) - given.min(1 << 20);
    out.set_all(values.iter().copied().chain(std::iter::repeat_n(0, padding)).take(room))?;
    count.set(given)
}

fn node(driver: &Driver, handle: u64) -> Result<(Arc<Graph>, Arc<NodeName>)> {
    let name = driver.nodes.get(handle)?;
    Ok((driver.graphs.get(name.graph)?, name))
}

/// Pairs of nodes, the second of which depends on the first.
fn edges(graph: u64, from: Out<u64>, to: Out<u64>, count: Out<usize>) -> Result<()> {
    let driver = driver()?;
    let graph = driver.graphs.get(graph)?;
    if from.is_null() != to.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    let nodes = graph.nodes();
    let pairs =
        nodes.iter().enumerate().flat_map(|(i, node)| node.after.iter().map(move |&before| (before, i)));
    let (before, after): (Vec<_>, Vec<_>) = pairs.unzip();
    let room = if from.is_null() { 0 } else { count.as_in().get()? };
    give(&graph.names(driver, &before), from, count)?;
    if !to.is_null() {
        count.set(room)?;
        give(&graph.names(driver, &after), to, count)?;
    }
    Ok(())
}

fn relatives(handle: u64, out: Out<u64>, count: Out<usize>, dependents: bool) -> Result<()> {
    let driver = driver()?;
    let (graph, name) = node(driver, handle)?;
    let nodes = graph.nodes();
    let found: Vec<usize> = if dependents {
        (0..nodes.len()).filter(|&i| nodes[i].after.contains(&name.index)).collect()
    } else {
        nodes[name.index].after.clone()
    };
    give(&graph.names(driver, &found), out, count)
}

exports! {
    10000 fn cuGraphCreate(out: Out<u64>, flags: u32) {
        let driver = driver()?;
        let out = out.required()?;
        if flags != 0 {
            return Err(Error::INVALID_VALUE);
        }
        out.set(driver.graphs.add(Graph::new))
    }
    10000 fn cuGraphClone(out: Out<u64>, graph: u64) {
        let driver = driver()?;
        let out = out.required()?;
        let graph = driver.graphs.get(graph)?;
        out.set(driver.graphs.add(|handle| graph.copy(handle)))
    }
    10000 fn cuGraphDestroy(graph: u64) {
        let driver = driver()?;
        driver.graphs.remove(graph)?.forget_names(driver);
        Ok(())
    }
    10000 fn cuGraphInstantiate(
        out: Out<u64>, graph: u64, error_node: Out<u64>, _log: Out<c_char>, _log_bytes: usize
    ) {
        error_node.set_if_wanted(0);
        instantiate(out, graph, 0)
    }
    11000 fn cuGraphInstantiate_v2(
        out: Out<u64>, graph: u64, error_node: Out<u64>, _log: Out<c_char>, _log_bytes: usize
    ) {
        error_node.set_if_wanted(0);
        instantiate(out, graph, 0)
    }
    11040 fn cuGraphInstantiateWithFlags(out: Out<u64>, graph: u64, flags: u64) {
        instantiate(out, graph, flags)
    }
    12000 fn [cuGraphInstantiateWithParams cuGraphInstantiateWithParams_ptsz](
        out: Out<u64>, graph: u64, params: Out<InstantiateParams>
    ) {
        let asked = params.as_in().get()?;
        let outcome = instantiate(out, graph, asked.flags);
        let result = u32::from(outcome.is_err());
        params.set(InstantiateParams { error_node: 0, result, ..asked })?;
        outcome
    }
    12000 fn cuGraphExecGetFlags(exec: u64, out: Out<u64>) { out.set(driver()?.execs.get(exec)?.flags) }
    10000 fn [cuGraphLaunch cuGraphLaunch_ptsz](exec: u64, stream: u64) { launch(exec, stream) }
    11010 fn [cuGraphUpload cuGraphUpload_ptsz](exec: u64, stream: u64) {
        let driver = driver()?;
        driver.execs.get(exec)?;
        driver.stream(stream)?.context.check()
    }
    10000 fn cuGraphExecDestroy(exec: u64) { driver()?.execs.remove(exec).map(|_| ()) }
    10000 fn cuGraphGetNodes(graph: u64, out: Out<u64>, count: Out<usize>) {
        let driver = driver()?;
        let graph = driver.graphs.get(graph)?;
        let all: Vec<usize> = (0..graph.nodes().len()).collect();
        give(&graph.names(driver, &all), out, count)
    }
    10000 fn cuGraphGetRootNodes(graph: u64, out: Out<u64>, count: Out<usize>) {
        let driver = driver()?;
        let graph = driver.graphs.get(graph)?;
        let nodes = graph.nodes();
        let roots: Vec<usize> = (0..nodes.len()).filter(|&i| nodes[i].after.is_empty()).collect();
        give(&graph.names(driver, &roots), out, count)
    }
    10000 fn cuGraphGetEdges(graph: u64, from: Out<u64>, to: Out<u64>, count: Out<usize>) {
        edges(graph, from, to, count)
    }
    12030 fn cuGraphGetEdges_v2(graph: u64, from: Out<u64>, to: Out<u64>, data: Out<u64>, count: Out<usize>) {
        let room = if data.is_null() { 0 } else { count.as_in().get()? };
        edges(graph, from, to, count)?;
        if room > 0 {
            let given = count.as_in().get()?.min(room);
            data.set_all(std::iter::repeat_n(0, given))?; // all of the plain kind
        }
        Ok(())
    }
    10000 fn cuGraphNodeGetType(node_handle: u64, out: Out<u32>) {
        let (graph, name) = node(driver()?, node_handle)?;
        out.set(graph.nodes()[name.index].op.node_type())
    }
    10000 fn cuGraphNodeGetDependencies(node_handle: u64, out: Out<u64>, count: Out<usize>) {
        relatives(node_handle, out, count, false)
    }
    12030 fn cuGraphNodeGetDependencies_v2(
        node_handle: u64, out: Out<u64>, _data: Out<u64>, count: Out<usize>
    ) {
        relatives(node_handle, out, count, false)
    }
    10000 fn cuGraphNodeGetDependentNodes(node_handle: u64, out: Out<u64>, count: Out<usize>) {
        relatives(node_handle, out, count, true)
    }
    12030 fn cuGraphNodeGetDependentNodes_v2(
        node_handle: u64, out: Out<u64>, _data: Out<u64>, count: Out<usize>
    ) {
        relatives(node_handle, out, count, true)
    }
    12000 fn cuGraphExecUpdate_v2(exec: u64, graph: u64, _result: In<u8>) {
        let driver = driver()?;
        driver.execs.get(exec)?;
        driver.graphs.get(graph)?;
        driver.note("cuGraphExecUpdate is not supported; instantiate the graph anew");
        Err(Error::NOT_SUPPORTED)
    }
}
