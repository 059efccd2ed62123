//! Capture of streams, as C sees it.

use super::abi::Out;
use super::capture::{Mode, Status};
use super::errors::Result;
use super::exports;
use super::state::driver;

/// `CUstreamCaptureStatus`.
const NONE: u32 = 0;
const ACTIVE: u32 = 1;
const INVALIDATED: u32 = 2;

fn number(status: Option<&Status>) -> u32 {
    match status {
        None => NONE,
        Some(status) if status.is_valid => ACTIVE,
        Some(_) => INVALIDATED,
    }
}

fn begin(stream: u64, mode: u32) -> Result<()> {
    let driver = driver()?;
    let mode = Mode::new(mode)?;
    let stream = driver.stream(stream)?;
    stream.context.check()?;
    driver.captures.begin(&driver.graphs, &stream, mode)
}

/// Where the parts of the answer go.
struct Wanted {
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<u64>,
    nodes: Out<*const u64>,
    count: Out<usize>,
}

fn info(stream: u64, wanted: &Wanted) -> Result<()> {
    let driver = driver()?;
    let stream = driver.stream(stream)?;
    let status = driver.captures.status(&stream);
    wanted.status.set(number(status.as_ref()))?;
    let Some(status) = status.filter(|status| status.is_valid) else { return Ok(()) };
    wanted.id.set_if_wanted(status.id);
    wanted.graph.set_if_wanted(status.graph.handle);
    wanted.count.set_if_wanted(status.nodes.len());
    if !wanted.nodes.is_null() {
        wanted.nodes.set(status.graph.show(driver, &status.nodes))?;
    }
    Ok(())
}

exports! {
    10010 fn [cuStreamBeginCapture_v2 cuStreamBeginCapture_v2_ptsz](stream: u64, mode: u32) {
        begin(stream, mode)
    }
    10000 fn [cuStreamEndCapture cuStreamEndCapture_ptsz](stream: u64, out: Out<u64>) {
        let driver = driver()?;
        let out = out.required()?;
        out.set(0)?;
        let stream = driver.stream(stream)?;
        let graph = driver.captures.end(&driver.graphs, &stream)?;
        out.set(graph.handle)
    }
    10000 fn [cuStreamIsCapturing cuStreamIsCapturing_ptsz](stream: u64, out: Out<u32>) {
        let driver = driver()?;
        let stream = driver.stream(stream)?;
        out.set(number(driver.captures.status(&stream).as_ref()))
    }
    10010 fn [cuStreamGetCaptureInfo cuStreamGetCaptureInfo_ptsz](
        stream: u64, status: Out<u32>, id: Out<u64>
    ) {
        let (graph, nodes, count) = (Out::none(), Out::none(), Out::none());
        info(stream, &Wanted { status, id, graph, nodes, count })
    }
    11030 fn [cuStreamGetCaptureInfo_v2 cuStreamGetCaptureInfo_v2_ptsz](
        stream: u64, status: Out<u32>, id: Out<u64>, graph: Out<u64>, nodes: Out<*const u64>,
        count: Out<usize>
    ) {
        info(stream, &Wanted { status, id, graph, nodes, count })
    }
    12030 fn [cuStreamGetCaptureInfo_v3 cuStreamGetCaptureInfo_v3_ptsz](
        stream: u64, status: Out<u32>, id: Out<u64>, graph: Out<u64>, nodes: Out<*const u64>,
        edges: Out<*const u8>, count: Out<usize>
    ) {
        edges.set_if_wanted(std::ptr::null()); // all of the plain kind
        info(stream, &Wanted { status, id, graph, nodes, count })
    }
    10010 fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) {
        driver()?;
        let new = Mode::new(mode.as_in().get()?)?;
        mode.set(new.exchange())
    }
}
