//! The `checkpoints` folder of a run: `step-N/` each, whole or not there.

use super::sync_folder;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// What a checkpoint's folder is called while it is written or removed.
const PART: &str = ".part";

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// Those of the run in `run_folder`; nothing is created yet.
    pub fn of(run_folder: &Path) -> Self {
        Self { folder: run_folder.join("checkpoints") }
    }

    /// Where the checkpoint after `step` steps is, or would be.
    pub fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// The steps there are checkpoints of, ascending.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<usize>> {
        let names = self.names()?;
        let mut steps: Vec<usize> =
            names.iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("read", &self.folder)(e)),
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<std::io::Result<_>>().map_err(Error::io("read", &self.folder))
    }

    /// Writes one checkpoint: `fill` writes its files into a folder beside, which then takes its name. A checkpoint of
    /// that step that is there already is replaced. On failure nothing is left of it.
    ///
    /// # Errors
    /// [`Error::Io`], and those of `fill`.
    pub fn write(&self, step: usize, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        self.remove_remains()?;
        let (beside, path) = (self.folder.join(format!("step-{step}{PART}")), self.path(step));
        let written = std::fs::create_dir(&beside)
            .map_err(Error::io("create", &beside))
            .and_then(|()| fill(&beside))
            .and_then(|()| sync_folder(&beside))
            .and_then(|()| if path.exists() { self.remove(step) } else { Ok(()) })
            .and_then(|()| std::fs::rename(&beside, &path).map_err(Error::io("write", &path)))
            .and_then(|()| sync_folder(&self.folder));
        if written.is_err() {
            // What failed is reported; that the remains cannot be removed either adds nothing to it.
            let _ = std::fs::remove_dir_all(&beside);
        }
        written.map(|()| path)
    }

    /// Removes all checkpoints but those that `keep` says.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn retain(&self, keep: impl Fn(usize) -> bool) -> Result<()> {
        self.steps()?.into_iter().filter(|&step| !keep(step)).try_for_each(|step| self.remove(step))
    }

    /// Takes the name away first, so that no half-removed folder passes for a checkpoint.
    fn remove(&self, step: usize) -> Result<()> {
        let (path, going) = (self.path(step), self.folder.join(format!("step-{step}.old{PART}")));
        std::fs::rename(&path, &going).map_err(Error::io("remove", &path))?;
        std::fs::remove_dir_all(&going).map_err(Error::io("remove", &going))
    }

    /// What a run that was cut off left half written or half removed.
    fn remove_remains(&self) -> Result<()> {
        for name in self.names()?.iter().filter(|name| name.starts_with("step-") && name.ends_with(PART)) {
            let path = self.folder.join(name);
            std::fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_whole_or_not_there() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(run.path());
        assert!(checkpoints.steps().unwrap().is_empty());
        let fill = |folder: &Path| std::fs::write(folder.join("a"), "a").map_err(Error::io("write", folder));
        for step in [9, 10, 11] {
            checkpoints.write(step, fill).unwrap();
        }
        let failing = |folder: &Path| fill(folder).and_then(|()| Err(Error::run("disk full", "")));
        assert!(checkpoints.write(12, failing).is_err());
        assert!(
            !checkpoints.names().unwrap().iter().any(|name| name.contains("12")),
            "its remains take up room"
        );
        // What a kill leaves.
        std::fs::create_dir(run.path().join("checkpoints/step-13.part")).unwrap();
        assert_eq!(checkpoints.steps().unwrap(), [9, 10, 11]);
        checkpoints.write(11, fill).unwrap();
        checkpoints.retain(|step| step > 9).unwrap();
        let mut names = checkpoints.names().unwrap();
        names.sort();
        assert_eq!(names, ["step-10", "step-11"]);
    }
}
