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
        Level::best().name(),
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
        if list.is_empty() { "none".to_owned() } else { list.join(", ") }
    };
    format!(
        "kernels: machine code for compute capability {}, PTX for {} and newer (CUDA {major}.{minor})",
        list(&code),
        list(&ptx[..ptx.len().min(1)])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_by_compute_capability() {
        let images = Some(Images { code: vec![75, 80, 120], ptx: vec![75, 80], cuda: (13, 0) });
        let want =
            "kernels: machine code for compute capability 7.5, 8.0, 12.0, PTX for 7.5 and newer (CUDA 13.0)";
        assert_eq!(kernels(images), want);
        assert!(
            kernels(Some(Images { code: vec![], ptx: vec![75], cuda: (12, 8) }))
                .contains("compute capability none, PTX for 7.5")
        );
        assert!(kernels(None).starts_with("kernels: none"));
    }
}
