//! What `--version` says: which source, and what of this machine it would use.

use smolten::cuda::Images;
use smolten::metrics::processor;
use smolten::ops::tile::Level;
use std::sync::LazyLock;

/// Version and commit, on one line.
pub const SHORT: &str = env!("SMOLTEN_VERSION");

/// And processor, kernels and GPU.
pub static LONG: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{SHORT}\nprocessor: {}, computes with {}\n{}",
        processor(),
        Level::of_processor().name(),
        kernels(Images::of_this_binary())
    )
});

fn kernels(images: Option<Images>) -> String {
    let Some(Images { code, ptx, cuda: (major, minor) }) = images else {
        return "kernels: none, as no nvcc was there at build time: this binary computes on CPUs only"
            .to_owned();
    };
    let list = |list: &[u32]| {
        let list: Vec<String> = list.iter().map(|c| format!("{}.{}", c / 10, c % 10)).collect();
        list.join(", ")
    };
    let code = if code.is_empty() {
        "no machine code".to_owned()
    } else {
        format!("machine code for {}", list(&code))
    };
    let ptx = list(&ptx[..ptx.len().min(1)]);
    format!("kernels: {code}, PTX for compute capability {ptx} and newer (CUDA {major}.{minor})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_by_compute_capability() {
        let images = Some(Images { code: vec![75, 80, 120], ptx: vec![75, 80], cuda: (13, 0) });
        let want =
            "kernels: machine code for 7.5, 8.0, 12.0, PTX for compute capability 7.5 and newer (CUDA 13.0)";
        assert_eq!(kernels(images), want);
        assert!(
            kernels(Some(Images { code: vec![], ptx: vec![75], cuda: (12, 8) }))
                .contains("no machine code, PTX for")
        );
        assert!(kernels(None).starts_with("kernels: none"));
    }
}
