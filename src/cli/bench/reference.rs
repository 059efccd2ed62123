//! The published run.

use super::losses::RunLosses;
use serde::Deserialize;
use serde_json::Value;

const TRL_0_17: &str = include_str!("../../../benches/reference/trl-0.17-smollm2-360m.json");

/// Settings and losses of a run that others made.
#[derive(Deserialize)]
pub struct Reference {
    /// Of the file.
    pub name: String,
    /// Where the figures come from.
    pub source: String,
    /// Versions of its software.
    pub stack: String,
    /// Hub id of the model.
    pub model: String,
    /// Parameters of the model.
    parameters: u64,
    /// Hub id of the data.
    pub data: String,
    /// Rows of the data.
    rows: u64,
    /// Recipe keys that a comparable run shares.
    recipe: serde_json::Map<String, Value>,
    /// Mean loss of each step.
    pub losses: Vec<f64>,
}

impl Reference {
    /// The run in the design's recipe: SmolLM2-360M with TRL 0.17.
    pub fn trl_0_17() -> Self {
        serde_json::from_str(TRL_0_17).expect("the file is tested")
    }

    /// Learning rate of a step, counted from 1: linear up to the peak, then linear down to zero.
    fn learning_rate(&self, step: usize) -> f64 {
        let setting = |key: &str| self.recipe[key].as_f64().expect("a number of the file");
        let (peak, warmup, total, k) =
            (setting("lr"), setting("warmup"), setting("steps"), (step - 1) as f64);
        if k < warmup { peak * k / warmup } else { peak * (total - k) / (total - warmup) }
    }

    /// What keeps a run from being comparable, a sentence each.
    pub fn contradictions(&self, ours: &RunLosses) -> Vec<String> {
        let mut found = Vec::new();
        let mut differ = |what: &str, ours: &Value, theirs: &Value| {
            let same = match (ours.as_f64(), theirs.as_f64()) {
                (Some(a), Some(b)) => a == b,
                _ => ours == theirs,
            };
            if !same {
                let ours = if ours.is_null() { "not on record".to_owned() } else { ours.to_string() };
                found.push(format!("{what} is {ours}, the reference's {theirs}"));
            }
        };
        let record = &ours.record;
        for (key, theirs) in self.recipe.iter().filter(|(key, _)| *key != "steps") {
            differ(key, &record["recipe"][key], theirs);
        }
        differ("total steps", &record["total_steps"], &self.recipe["steps"]);
        differ("rows of the data", &record["data"]["encoded"]["rows"], &self.rows.into());
        differ("parameters of the model", &record["model"]["parameters"], &self.parameters.into());
        let steps = 1..=self.losses.len();
        let missing: Vec<usize> = steps.clone().filter(|&step| ours.step(step).is_none()).collect();
        if let Some(first) = missing.first() {
            let n = self.losses.len();
            found.push(format!("{} of the {n} steps are not on record, step {first} first", missing.len()));
        } else if ours.len() > self.losses.len() {
            found.push(format!(
                "{} steps are on record, the reference has {}",
                ours.len(),
                self.losses.len()
            ));
        }
        let other_rate = |&step: &usize| {
            let (ours, theirs) = (ours.step(step)?.learning_rate, self.learning_rate(step));
            // Two ways to write one formula: a few roundings of f64.
            let same = (ours - theirs).abs() <= 1e-12 * theirs;
            (!same).then(|| format!("learning rate of step {step} is {ours:e}, the reference's {theirs:e}"))
        };
        found.extend(steps.filter_map(|step| other_rate(&step)).next());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_whole() {
        let reference = Reference::trl_0_17();
        assert_eq!(reference.losses.len(), 60);
        // The source gives the mean with six digits, of losses with more than the four it prints.
        let mean = reference.losses.iter().sum::<f64>() / 60.0;
        assert!((mean - 0.753155).abs() < 5e-5, "{mean}");
        let rates: Vec<f64> = [1, 2, 6, 60].map(|step| reference.learning_rate(step)).to_vec();
        assert_eq!(rates, [0.0, 4e-5, 2e-4, 2e-4 / 55.0]);
    }
}
