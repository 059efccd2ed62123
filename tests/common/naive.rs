//! The whole model once more, in f64, written for being obviously right: a loop per formula, nothing shared with
//! the engine but its configuration.

use smolten::batch::{MicroBatch, NO_TARGET};
use smolten::config::ModelConfig;

/// Weights by the order of `ModelConfig::parameters`.
#[derive(Clone)]
pub struct Naive {
    pub config: ModelConfig,
    pub weights: Vec<Vec<f64>>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `w·x`, w row-major.
fn matrix(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks(x.len()).map(|row| dot(row, x)).collect()
}

fn add(a: &mut [f64], b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
}

impl Naive {
    pub fn new(config: &ModelConfig, read: impl Fn(&str) -> Vec<f32>) -> Self {
        let wide = |name: &str| read(name).into_iter().map(f64::from).collect();
        let weights = config.parameters().iter().map(|p| wide(&p.name)).collect();
        Self { config: config.clone(), weights }
    }

    fn weight(&self, name: &str) -> &[f64] {
        let i = self.config.parameters().iter().position(|p| p.name == name);
        &self.weights[i.unwrap_or_else(|| panic!("no weight {name}"))]
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let root = (dot(x, x) / x.len() as f64 + f64::from(self.config.rms_norm_eps)).sqrt();
        x.iter().zip(self.weight(name)).map(|(x, w)| x / root * w).collect()
    }

    /// Heads of one token turned by its position: coordinate i is paired with i + D/2.
    fn rotate(&self, x: &mut [f64], position: usize) {
        let half = self.config.head_dim / 2;
        for head in x.chunks_mut(2 * half) {
            for (i, frequency) in self.config.rope_frequencies().into_iter().enumerate() {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let (a, b) = (head[i], head[i + half]);
                (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }

    /// Causal attention of one sequence, `[tokens][H·D]`.
    fn attention(&self, q: &[Vec<f64>], k: &[Vec<f64>], v: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (d, heads) = (self.config.head_dim, self.config.num_attention_heads);
        let group = heads / self.config.num_key_value_heads;
        let mut out = vec![vec![0.0; heads * d]; q.len()];
        for t in 0..q.len() {
            for h in 0..heads {
                let of = |x: &[f64], h: usize| x[h * d..(h + 1) * d].to_vec();
                let scores: Vec<f64> =
                    (0..=t).map(|j| dot(&of(&q[t], h), &of(&k[j], h / group)) / (d as f64).sqrt()).collect();
                let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
                for (j, s) in scores.iter().enumerate() {
                    let p = (s - highest).exp() / total;
                    let value = of(&v[j], h / group).iter().map(|v| p * v).collect::<Vec<_>>();
                    add(&mut out[t][h * d..(h + 1) * d], &value);
                }
            }
        }
        out
    }

    fn block(&self, l: usize, x: &mut [Vec<f64>]) {
        let name = |rest: &str| format!("model.layers.{l}.{rest}.weight");
        let linear = |which: &str, x: &[f64]| {
            let mut y = matrix(self.weight(&name(which)), x);
            let n = &self.config;
            let biased = if which.starts_with("mlp") { n.mlp_bias } else { n.attention_bias };
            if biased {
                add(&mut y, self.weight(&format!("model.layers.{l}.{which}.bias")));
            }
            y
        };
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for (position, x) in x.iter().enumerate() {
            let n = self.norm(&name("input_layernorm"), x);
            q.push(linear("self_attn.q_proj", &n));
            k.push(linear("self_attn.k_proj", &n));
            v.push(linear("self_attn.v_proj", &n));
            self.rotate(&mut q[position], position);
            self.rotate(&mut k[position], position);
        }
        for (x, a) in x.iter_mut().zip(self.attention(&q, &k, &v)) {
            add(x, &linear("self_attn.o_proj", &a));
            let n = self.norm(&name("post_attention_layernorm"), x);
            let (gate, up) = (linear("mlp.gate_proj", &n), linear("mlp.up_proj", &n));
            let act: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            add(x, &linear("mlp.down_proj", &act));
        }
    }

    /// Logits of one sequence, `[tokens][V]`.
    fn sequence(&self, ids: &[u32]) -> Vec<Vec<f64>> {
        let c = self.config.hidden_size;
        let embedding = self.weight("model.embed_tokens.weight");
        let mut x: Vec<Vec<f64>> = ids.iter().map(|&id| embedding[id as usize * c..][..c].to_vec()).collect();
        (0..self.config.num_hidden_layers).for_each(|l| self.block(l, &mut x));
        let head = if self.config.tie_word_embeddings { embedding } else { self.weight("lm_head.weight") };
        x.iter().map(|x| matrix(head, &self.norm("model.norm.weight", x))).collect()
    }

    /// Logits of every token of a micro-batch, `[T][V]`, each sequence alone.
    pub fn logits(&self, batch: &MicroBatch) -> Vec<Vec<f64>> {
        let bounds = batch.cu_seqlens.windows(2).map(|w| w[0] as usize..w[1] as usize);
        bounds.flat_map(|tokens| self.sequence(&batch.ids[tokens])).collect()
    }

    /// Sum of the losses of all positions that have a target.
    pub fn loss_sum(&self, batch: &MicroBatch) -> f64 {
        let rows = self.logits(batch);
        let in_loss = rows.iter().zip(&batch.targets).filter(|(_, t)| **t != NO_TARGET);
        in_loss
            .map(|(row, &target)| {
                let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                highest + row.iter().map(|l| (l - highest).exp()).sum::<f64>().ln() - row[target as usize]
            })
            .sum()
    }
}
