//! Why a GPU cannot be used, and how to mend it.

use super::kernels::CUDA_VERSION;
use crate::error::{Error, Result};
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use std::path::Path;
use std::sync::Once;

/// Names the GPUs that the driver gives.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
const OR_CPU: &str = ", or use --device cpu";

/// What the system shows of NVIDIA cards, whether or not a program can use them.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// Addresses on the PCI bus.
    cards: Vec<String>,
    /// The driver's part in the kernel is loaded, or a container was given its device.
    kernel_driver: bool,
}

impl Seen {
    /// Looks below `root`, which is `/` but in tests.
    fn below(root: &Path) -> Self {
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let is_card = |device: &Path| {
            // NVIDIA; a display or 3D controller, not the sound beside it.
            read(&device.join("vendor")).trim() == "0x10de" && read(&device.join("class")).starts_with("0x03")
        };
        let devices = std::fs::read_dir(root.join("sys/bus/pci/devices")).into_iter().flatten().flatten();
        let mut cards: Vec<String> = devices
            .filter(|entry| is_card(&entry.path()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        cards.sort();
        let kernel_driver =
            ["proc/driver/nvidia/version", "dev/nvidiactl"].iter().any(|path| root.join(path).exists());
        Self { cards, kernel_driver }
    }

    /// What is found and what mends it, where libcuda cannot be loaded.
    fn without_library(&self) -> (String, String) {
        let container = "in a container, start it with the NVIDIA container toolkit (docker run --gpus all)";
        if self.kernel_driver {
            let found = "the NVIDIA driver is loaded, but its library libcuda.so.1 is not found";
            let remedy = format!(
                "install that library (Debian: libcuda1, Ubuntu: libnvidia-compute-VERSION), or put its folder into \
                 LD_LIBRARY_PATH; {container}{OR_CPU}"
            );
            return (found.into(), remedy);
        }
        if let Some(card) = self.cards.first() {
            let found =
                format!("there is an NVIDIA card (PCI {card}), but no driver: libcuda.so.1 is not found");
            return (found, format!("install the NVIDIA driver; {container}{OR_CPU}"));
        }
        let found =
            "no NVIDIA driver on this machine (libcuda.so.1 is not found), and no NVIDIA card on its PCI bus";
        (found.into(), format!("install the NVIDIA driver if there is a card{OR_CPU}"))
    }

    /// The same where the library is there, and gives no GPU.
    fn without_gpu(&self) -> (String, String) {
        let card = self.cards.first().map_or("", String::as_str);
        let found = format!("there is an NVIDIA card (PCI {card}), but the driver gives no GPU");
        (found, "see what `nvidia-smi` says of it; restart the machine".to_owned())
    }

    /// What to say of a card that a run which leaves the choice open passes over.
    fn idle(&self, driver_present: bool) -> Result<Option<String>> {
        let (found, remedy) = if driver_present { self.without_gpu() } else { self.without_library() };
        if self.kernel_driver && !driver_present {
            return Err(Error::input("--device auto", found, remedy));
        }
        let note = format!("{found}; the CPU computes.\n  To use the card: {remedy}");
        Ok((!self.cards.is_empty()).then_some(note))
    }
}

fn asked(ordinal: usize) -> String {
    format!("--device cuda:{ordinal}")
}

/// libcuda cannot be loaded.
pub(super) fn no_library(ordinal: usize) -> Error {
    let (found, remedy) = Seen::below(Path::new("/")).without_library();
    Error::input(asked(ordinal), found, remedy)
}

/// The GPU asked for is not among the `count` that the driver gives.
pub(super) fn no_such_gpu(ordinal: usize, count: usize) -> Error {
    let hidden = std::env::var(VISIBLE).ok();
    let hidden = hidden.map_or(String::new(), |list| format!(" ({VISIBLE}={list})"));
    let remedy = match count {
        0 if hidden.is_empty() => "see whether `nvidia-smi` lists the card".to_owned(),
        0 => format!("take {VISIBLE} out of the environment"),
        _ => format!("name one from cuda:0 to cuda:{}", count - 1),
    };
    Error::input(asked(ordinal), format!("the driver gives {count} GPUs{hidden}"), remedy + OR_CPU)
}

/// A driver that does not know the CUDA the kernels are made with.
pub(super) fn too_old(ordinal: usize, found: impl ToString) -> Error {
    let (major, minor) = CUDA_VERSION;
    let remedy = format!(
        "update the NVIDIA driver to one for CUDA {major}.{minor} or newer (`nvidia-smi` shows it; for 13.0 it is \
         580){OR_CPU}"
    );
    Error::input(asked(ordinal), found, remedy)
}

/// What the driver says when it, or a GPU, is opened.
pub(super) fn refused(asked: &str, source: DriverError) -> Error {
    use CUresult::*;
    let remedy = match source.0 {
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the library and the kernel's part of the driver are of different versions, as after an update: restart the \
             machine"
        }
        CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "a libcuda of a CUDA compatibility package is found, which is not for this card: take its folder out of \
             LD_LIBRARY_PATH, and update the driver"
        }
        CUDA_ERROR_STUB_LIBRARY => {
            "the libcuda that is found is the CUDA toolkit's stub: take its folder out of LD_LIBRARY_PATH"
        }
        CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process has the GPU for itself (compute mode; `nvidia-smi` shows which): wait for it, or stop it"
        }
        CUDA_ERROR_OUT_OF_MEMORY => {
            "the GPU's memory is taken: stop the programs that `nvidia-smi` lists, or name another GPU"
        }
        CUDA_ERROR_ECC_UNCORRECTABLE => {
            "the GPU's memory is faulty: restart the machine; if it stays, the card is"
        }
        CUDA_ERROR_SYSTEM_NOT_READY => {
            "start the service nvidia-fabricmanager, which GPUs with NVSwitch need"
        }
        CUDA_ERROR_OPERATING_SYSTEM | CUDA_ERROR_NOT_PERMITTED => {
            "see that you may read and write /dev/nvidia*; in a container, that it was given them (--gpus all)"
        }
        CUDA_ERROR_MPS_CONNECTION_FAILED | CUDA_ERROR_MPS_RPC_FAILURE | CUDA_ERROR_MPS_SERVER_NOT_READY => {
            "the multi-process service does not answer: start nvidia-cuda-mps-control again, or stop it"
        }
        _ => {
            "see whether `nvidia-smi` works; if not, load the driver again (modprobe nvidia nvidia_uvm) or restart the \
             machine"
        }
    };
    Error::input(asked, format!("the NVIDIA driver refuses: {source}"), format!("{remedy}{OR_CPU}"))
}

/// For a run that leaves the choice open and finds no GPU to use: refuses where one was meant for it, and says once
/// where a card is idle for want of a driver.
pub(super) fn idle_cards(driver_present: bool) -> Result<()> {
    static SAID: Once = Once::new();
    if driver_present && std::env::var_os(VISIBLE).is_some() {
        return Ok(()); // the user hides them
    }
    if let Some(note) = Seen::below(Path::new("/")).idle(driver_present)? {
        SAID.call_once(|| eprintln!("note: {note}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with these files.
    fn seen(files: &[(&str, &str)]) -> Seen {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        Seen::below(root.path())
    }

    #[test]
    fn cards_are_seen_without_a_driver() {
        let (card, sound) = ("sys/bus/pci/devices/0000:01:00.0", "sys/bus/pci/devices/0000:01:00.1");
        let (vendor, class) = (format!("{card}/vendor"), format!("{card}/class"));
        let (sound_vendor, sound_class) = (format!("{sound}/vendor"), format!("{sound}/class"));
        let nvidia = [
            (vendor.as_str(), "0x10de\n"),
            (&class, "0x030200\n"),
            (&sound_vendor, "0x10de\n"),
            (&sound_class, "0x040300\n"),
        ];
        let one = seen(&nvidia);
        assert_eq!(one, Seen { cards: vec!["0000:01:00.0".into()], kernel_driver: false });
        let (found, remedy) = one.without_library();
        assert!(found.contains("PCI 0000:01:00.0") && found.contains("no driver"), "{found}");
        assert!(remedy.contains("install the NVIDIA driver;") && remedy.contains("--gpus all"), "{remedy}");
        assert!(one.without_gpu().0.contains("PCI 0000:01:00.0), but the driver gives no GPU"));

        let loaded = seen(&[("proc/driver/nvidia/version", "NVRM version")]);
        assert!(loaded.kernel_driver && seen(&[("dev/nvidiactl", "")]).kernel_driver);
        let (found, remedy) = loaded.without_library();
        assert!(found.contains("is loaded, but its library"), "{found}");
        assert!(remedy.contains("libnvidia-compute") && remedy.contains("--device cpu"), "{remedy}");

        // A run that leaves the choice open: said, refused as a container was given a GPU, nothing.
        assert!(one.idle(false).unwrap().unwrap().contains("no driver") && one.idle(true).unwrap().is_some());
        assert!(
            loaded
                .idle(false)
                .unwrap_err()
                .to_string()
                .starts_with("--device auto: the NVIDIA driver is loaded")
        );
        assert!(loaded.idle(true).unwrap().is_none());

        let none = seen(&[(&vendor, "0x8086\n"), (&class, "0x030000\n")]);
        assert!(none.idle(false).unwrap().is_none() && none.idle(true).unwrap().is_none());
        assert_eq!(none, Seen::default());
        assert!(none.without_library().0.contains("no NVIDIA card"));
    }
}
