//! Layers, defaults, checks and schedules of a recipe.

use smolten::config::LoraTarget;
use smolten::dtype::DType;
use smolten::recipe::Scheduler;
use smolten::recipe::{
    Compat, Device, EmbeddingState, Finding, KEYS, LossOn, OptimizerKind, Precision, Recipe, RecipeOverrides,
    Recompute,
};

const BASE: &str = "model = \"m\"\ndata = \"d\"\n";

/// Resolves a recipe file of that text, called `run.toml`.
fn resolve(text: &str, sets: &[&str], flags: &RecipeOverrides) -> smolten::error::Result<Recipe> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Recipe::resolve(path.to_str(), &sets, flags)
}

fn ok(lines: &str) -> Recipe {
    resolve(&format!("{BASE}{lines}"), &[], &RecipeOverrides::default()).unwrap()
}

/// The message about a third line of a recipe.
fn error(line: &str) -> String {
    text(resolve(&format!("{BASE}{line}"), &[], &RecipeOverrides::default()))
}

fn text(result: smolten::error::Result<Recipe>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn every_key_can_be_set_and_is_in_the_json() {
    let all = r#"
        model = "some/model"
        data = "rows.jsonl"
        eval_data = "held-out.jsonl"
        out = "runs/a"
        steps = 7
        epochs = 2.5
        batch_size = 3
        grad_accum = 5
        max_length = 1024
        lr = 1
        warmup = 0.1
        scheduler = "cosine"
        optimizer = "adamw_8bit"
        betas = [0.8, 0]
        eps = 1e-6
        weight_decay = 0
        clip = 0
        loss_on = "all"
        packing = true
        shuffle = false
        seed = 9223372036854775807
        eval_share = 0.5
        eval_every = 0
        sample_every = 3
        sample_prompt = "Hi?"
        save_every = 4
        keep_checkpoints = 1
        allow = ["duplicates", "no_turn_end"]
        compat = "off"
        precision = "bf16"
        device = "cuda:3"
        device_name = "RTX 4090"
        threads = 2
        save_dtype = "fp32"
        prompt_field = "Frage"
        response_field = "Antwort"
        system = "Be brief."
        embedding_state = "8bit"
        recompute = "none"
        cuda_graph = false
        lora_rank = 8
        lora_alpha = 32
        lora_dropout = 0.05
        lora_rslora = true
        lora_targets = ["v_proj", "q_proj", "v_proj"]
        neftune_alpha = 5
    "#;
    let want = Recipe {
        model: "some/model".into(),
        data: "rows.jsonl".into(),
        eval_data: Some("held-out.jsonl".into()),
        out: Some("runs/a".into()),
        steps: Some(7),
        epochs: 2.5,
        batch_size: 3,
        grad_accum: 5,
        max_length: 1024,
        lr: 1.0,
        warmup: 0.1,
        scheduler: Scheduler::Cosine,
        optimizer: OptimizerKind::AdamW8bit,
        betas: [0.8, 0.0],
        eps: 1e-6,
        weight_decay: 0.0,
        clip: 0.0,
        loss_on: LossOn::All,
        packing: true,
        shuffle: false,
        seed: i64::MAX.unsigned_abs(),
        eval_share: 0.5,
        eval_every: 0,
        sample_every: 3,
        sample_prompt: "Hi?".into(),
        save_every: 4,
        keep_checkpoints: 1,
        allow: vec![Finding::Duplicates, Finding::NoTurnEnd],
        compat: Compat::Off,
        precision: Precision::Bf16,
        device: Device::Cuda(3),
        device_name: Some("RTX 4090".into()),
        threads: Some(2),
        save_dtype: DType::F32, // as adapters are saved
        prompt_field: Some("Frage".into()),
        response_field: Some("Antwort".into()),
        system: Some("Be brief.".into()),
        embedding_state: EmbeddingState::EightBit,
        recompute: Recompute::None,
        cuda_graph: false,
        lora_rank: 8,
        lora_alpha: Some(32.0),
        lora_dropout: 0.05,
        lora_rslora: true,
        lora_targets: vec![LoraTarget::Q, LoraTarget::V],
        neftune_alpha: 5.0,
    };
    let got = resolve(all, &[], &RecipeOverrides::default()).unwrap();
    assert_eq!(got, want);

    let json = serde_json::to_value(&got).unwrap();
    let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, KEYS);
    for (key, value) in [
        ("device", "cuda:3"),
        ("save_dtype", "fp32"),
        ("optimizer", "adamw_8bit"),
        ("embedding_state", "8bit"),
        ("out", "runs/a"),
    ] {
        assert_eq!(json[key], value);
    }
    // What run.json holds is a recipe again.
    let object = json.as_object().unwrap();
    let again: String = object.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    assert_eq!(resolve(&again, &[], &RecipeOverrides::default()).unwrap(), want);
}

#[test]
fn layers_win_in_their_order() {
    let sets = [
        "lr=3",
        "save_dtype=fp16",
        "seed=3",
        "scheduler=constant",
        "betas=[0.5, 0.6]",
        "system=a=b",
        "prompt_field=7x",
    ];
    let flags = RecipeOverrides {
        lr: Some(4.0),
        optimizer: Some("adamw".into()),
        shuffle: Some(false),
        device: Some("cpu".into()),
        batch_size: Some(9),
        ..RecipeOverrides::default()
    };
    let recipe = resolve(&format!("{BASE}lr = 2\nseed = 2\nclip = 2"), &sets, &flags).unwrap();
    assert_eq!((recipe.lr, recipe.seed, recipe.clip, recipe.eps), (4.0, 3, 2.0, 1e-8));
    assert_eq!((recipe.scheduler, recipe.betas), (Scheduler::Constant, [0.5, 0.6]));
    assert_eq!(recipe.save_dtype, DType::F16);
    assert_eq!((recipe.system.as_deref(), recipe.prompt_field.as_deref()), (Some("a=b"), Some("7x")));
    assert_eq!((recipe.optimizer, recipe.shuffle), (OptimizerKind::AdamW, false));
    assert_eq!((recipe.device, recipe.batch_size), (Device::Cpu, 9));
}

#[test]
fn steps_win_over_epochs_unless_epochs_come_later() {
    let epochs = RecipeOverrides { epochs: Some(2.0), ..RecipeOverrides::default() };
    let both = RecipeOverrides { steps: Some(5), ..epochs.clone() };
    let steps = |text: &str, sets: &[&str], flags: &RecipeOverrides| {
        resolve(&format!("{BASE}{text}"), sets, flags).unwrap().total_steps(10)
    };
    assert_eq!(steps("epochs = 3\nsteps = 4", &[], &RecipeOverrides::default()), 4);
    assert_eq!(steps("steps = 4", &[], &epochs), 20);
    assert_eq!(steps("steps = 4", &["epochs=0.25"], &RecipeOverrides::default()), 3);
    assert_eq!(steps("steps = 4", &[], &both), 5);
    assert_eq!(steps("", &[], &RecipeOverrides::default()), 10);
    assert_eq!(steps("epochs = 1e-9", &[], &RecipeOverrides::default()), 1);
}

#[test]
fn unknown_keys_name_the_nearest() {
    assert_says(
        &error("batchsize = 3"),
        &["run.toml:3, key \"batchsize\"", "`batch_size`", "the keys are model,"],
    );
    assert_says(&error("\n\nweight-decay = 3"), &["run.toml:5", "`weight_decay`"]);
    assert_says(&error("[train]\nlr = 1"), &["run.toml:3, key \"train\"", "nearest known one"]);
    let set = resolve(BASE, &["Lr=1"], &RecipeOverrides::default());
    assert_says(&text(set), &["--set Lr=1", "`Lr`", "`lr`"]);
}

#[test]
fn values_out_of_range_or_of_another_type_are_refused() {
    for (line, found, allowed) in [
        ("eval_data = 3", "3 (a whole number)", "text"),
        ("out = \"\"", "\"\" (text)", "not empty"),
        ("steps = 0", "0 (", "from 1"),
        ("steps = 1.5", "1.5 (a fraction)", "a whole number"),
        ("steps = \"7\"", "\"7\" (text)", "a whole number"),
        ("epochs = 0", "0 (", "above 0"),
        ("epochs = inf", "inf (", "above 0"),
        ("batch_size = -1", "-1 (", "from 1"),
        ("batch_size = 4294967296", "4294967296 (", "to 4294967295"),
        ("grad_accum = 0", "0 (", "from 1"),
        ("max_length = 1", "1 (", "from 2"),
        ("lr = nan", "nan (", "0 or more"),
        ("lr = inf", "inf (", "0 or more"),
        ("lr = -0.5", "-0.5 (", "0 or more"),
        ("lr = \"fast\"", "\"fast\" (text)", "a number"),
        ("warmup = 2.5", "2.5 (", "a whole number of steps, or a share"),
        ("warmup = -1", "-1 (", "a share"),
        ("warmup = nan", "nan (", "a share"),
        ("scheduler = \"step\"", "\"step\" (", "linear, cosine, constant"),
        ("optimizer = \"sgd\"", "\"sgd\" (", "adamw, adamw_8bit"),
        ("betas = 0.9", "0.9 (", "two numbers"),
        ("betas = [0.9]", "[0.9] (an array)", "two numbers"),
        ("betas = [0.9, 1.0]", "[0.9, 1.0] (an array)", "not including, 1"),
        ("betas = [nan, 0.9]", "[nan, 0.9] (an array)", "not including, 1"),
        ("eps = 0", "0 (", "above 0"),
        ("weight_decay = -1", "-1 (", "0 or more"),
        ("clip = -1", "-1 (", "0 turns clipping off"),
        ("loss_on = \"prompt\"", "\"prompt\" (", "completion, all"),
        ("packing = \"yes\"", "\"yes\" (", "true or false"),
        ("shuffle = 1", "1 (", "true or false"),
        ("seed = -1", "-1 (", "from 0"),
        ("eval_share = 0.6", "0.6 (", "from 0 to 0.5"),
        ("eval_every = -1", "-1 (", "from 0"),
        ("precision = \"int8\"", "\"int8\" (", "auto, fp32, bf16, fp16"),
        ("device = \"gpu\"", "\"gpu\" (", "auto, cpu, cuda or cuda:N"),
        ("device = \"cuda:-1\"", "\"cuda:-1\" (", "cuda:N"),
        ("threads = 0", "0 (", "from 1"),
        ("save_dtype = \"auto\"", "\"auto\" (", "fp32, bf16, fp16"),
        ("system = 1979-05-27", "1979-05-27 (a date)", "text"),
        ("system = { a = 1 }", "a table", "text"),
        ("embedding_state = 8", "8 (", "fp32, 8bit"),
        ("recompute = true", "true (", "norm_swiglu, none"),
        ("cuda_graph = \"on\"", "\"on\" (", "true or false"),
        ("lora_rank = -1", "-1 (", "from 0"),
        ("lora_alpha = 0", "0 (", "above 0"),
        ("lora_dropout = 1", "1 (", "not including, 1"),
        ("lora_rslora = 1", "1 (", "true or false"),
        (
            "lora_targets = \"q_proj\"",
            "\"q_proj\" (",
            "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        ),
        ("lora_targets = [\"lm_head\"]", "[\"lm_head\"] (", "q_proj, k_proj"),
        ("lora_targets = []", "[] (", "at least one"),
        ("neftune_alpha = -1", "-1 (", "0 or more"),
    ] {
        let key = line.split(' ').next().unwrap();
        let message = error(line);
        assert_says(&message, &[&format!("run.toml:3, key \"{key}\""), found, "allowed: ", allowed]);
    }
}

#[test]
fn adapters_are_as_peft_has_them() {
    let lora =
        |text: &str| resolve(&format!("{BASE}{text}"), &[], &RecipeOverrides::default()).unwrap().lora();
    assert_eq!(lora(""), None);
    let scale = |text: &str| lora(text).unwrap().scale();
    assert_eq!(scale("lora_rank = 16"), 1.0);
    assert_eq!(scale("lora_rank = 16\nlora_alpha = 32"), 2.0);
    assert_eq!(scale("lora_rank = 16\nlora_alpha = 32\nlora_rslora = true"), 8.0);
    assert_eq!(lora("lora_rank = 1").unwrap().targets, LoraTarget::ALL);
    for line in ["lora_alpha = 8", "lora_dropout = 0.1", "lora_rslora = true", "lora_targets = [\"v_proj\"]"]
    {
        let key = line.split(' ').next().unwrap();
        assert_says(&error(line), &[&format!("key `{key}`"), "lora_rank is 0", "set lora_rank too"]);
    }
    assert_says(&error("compat = \"trl-0.17\"\nlora_rank = 8"), &["key \"lora_rank\"", "lora_rank = 0"]);
}

#[test]
fn sets_and_flags_are_checked_alike() {
    let none = RecipeOverrides::default();
    assert_says(&text(resolve(BASE, &["lr=fast"], &none)), &["--set lr=fast", "\"fast\"", "a number"]);
    assert_says(&text(resolve(BASE, &["lr=1\nx=2"], &none)), &["--set lr=1", "a number"]);
    assert_says(&text(resolve(BASE, &["lr"], &none)), &["--set lr", "no `=`"]);
    let flags = RecipeOverrides { max_length: Some(0), ..none.clone() };
    assert_says(&text(resolve(BASE, &[], &flags)), &["--max-length", "0 (", "from 2"]);
    let flags = RecipeOverrides { lr: Some(f64::NAN), ..none.clone() };
    assert_says(&text(resolve(BASE, &[], &flags)), &["--lr", "nan", "0 or more"]);
    let flags = RecipeOverrides { seed: Some(u64::MAX), ..none.clone() };
    assert_says(&text(resolve(BASE, &[], &flags)), &["--seed", "18446744073709551615", "from 0 to"]);
}

#[test]
fn files_that_are_no_recipes_are_refused() {
    assert_says(&error("lr = 1\nlr = 2"), &["run.toml:4", "duplicate", "`lr = 2`"]);
    assert_says(&error("lr 1"), &["run.toml:3", "`lr 1`", "key = value"]);
    let missing = Recipe::resolve(Some("no/such.toml"), &[], &RecipeOverrides::default());
    assert_says(&text(missing), &["no/such.toml", "no such file", "quickstart"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bytes.toml");
    std::fs::write(&path, b"model = \"\xff\"").unwrap();
    let bytes = Recipe::resolve(path.to_str(), &[], &RecipeOverrides::default());
    assert_says(&text(bytes), &["bytes.toml", "byte 9", "UTF-8"]);
}

#[test]
fn what_single_keys_do_not_show_is_checked() {
    let none = RecipeOverrides::default();
    assert_says(&text(resolve("data = \"d\"", &[], &none)), &["`model`", "not set", "--model"]);
    let model_only = RecipeOverrides { model: Some("m".into()), ..none.clone() };
    assert_says(&text(Recipe::resolve(None, &[], &model_only)), &["`data`", "not set", "--data"]);
    let clash = error("optimizer = \"adamw\"\nembedding_state = \"8bit\"");
    assert_says(&clash, &["`embedding_state`", "adamw", "fp32"]);
}

#[test]
fn embedded_recipes_are_found_by_name() {
    let none = RecipeOverrides::default();
    let default = Recipe::resolve(None, &[], &none).unwrap();
    let named = Recipe::resolve(Some("smollm2-360m-deepthink"), &[], &none).unwrap();
    assert_eq!(default, named);
    assert_eq!(default.model, "HuggingFaceTB/SmolLM2-360M");
    // The table of recipe.md §1.
    assert_eq!((default.steps, default.batch_size, default.grad_accum), (Some(60), 2, 4));
    assert_eq!((default.lr, default.warmup, default.scheduler), (2e-4, 5.0, Scheduler::Linear));
    assert_eq!((default.betas, default.eps), ([0.9, 0.999], 1e-8));
    assert_eq!((default.weight_decay, default.clip, default.seed), (0.01, 1.0, 3407));
    assert_eq!((default.optimizer, default.max_length), (OptimizerKind::AdamW8bit, 512));
    for name in ["quickstart", "quickstart.toml", "recipes/quickstart.toml"] {
        assert_eq!(Recipe::resolve(Some(name), &[], &none).unwrap().data, "builtin:reasoning");
    }
}

#[test]
fn schedules_are_those_of_transformers() {
    let recipe = ok("lr = 2e-4\nwarmup = 5");
    // recipe.md §1: 2e-4·k/5 for k = 0..4, then 2e-4·(60−k)/55. Two roundings each, so 2 ulp: 2·2^-52·2e-4.
    for k in 0..60 {
        let x = f64::from(u32::try_from(k).unwrap());
        let want = if k < 5 { 2e-4 * x / 5.0 } else { 2e-4 * (60.0 - x) / 55.0 };
        let got = recipe.learning_rate(k, 60);
        assert!((got - want).abs() <= 2e-4 * 2.0 * f64::EPSILON, "step {k}: {got} {want}");
    }
    assert_eq!((recipe.learning_rate(0, 60), recipe.learning_rate(5, 60)), (0.0, 2e-4));
    assert_eq!((recipe.learning_rate(60, 60), recipe.learning_rate(61, 60)), (0.0, 0.0));

    let cosine = ok("lr = 8\nwarmup = 2\nscheduler = \"cosine\"");
    let got: Vec<f64> = [0, 1, 2, 4, 6, 8, 10, 11].map(|k| cosine.learning_rate(k, 10)).to_vec();
    let half = std::f64::consts::FRAC_1_SQRT_2;
    let want = [0.0, 4.0, 8.0, 4.0 * (1.0 + half), 4.0, 4.0 * (1.0 - half), 0.0, 0.0];
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 8.0 * 4.0 * f64::EPSILON, "{got} {want}");
    }
    let constant = ok("lr = 8\nwarmup = 4\nscheduler = \"constant\"");
    assert_eq!([0, 1, 4, 99].map(|k| constant.learning_rate(k, 10)), [0.0, 2.0, 8.0, 8.0]);
}

#[test]
fn a_warmup_below_one_is_a_share() {
    assert_eq!(ok("warmup = 0.1").warmup_steps(61), 7); // rounded up
    assert_eq!(ok("warmup = 0").warmup_steps(61), 0);
    assert_eq!(ok("warmup = 1").warmup_steps(61), 1);
    assert_eq!(ok("warmup = 0").learning_rate(0, 10), 2e-4);
    // A warm-up longer than the run never reaches the peak.
    assert_eq!(ok("warmup = 20\nlr = 1").learning_rate(9, 10), 0.45);
}

#[test]
fn compat_fixes_its_keys_and_refuses_flags_that_contradict_it() {
    let compat = ["compat=trl-0.17"];
    let none = RecipeOverrides::default();
    let got =
        resolve(&format!("{BASE}loss_on = \"completion\"\neval_share = 0.1\n"), &compat, &none).unwrap();
    assert_eq!((got.loss_on, got.eval_share), (LossOn::All, 0.0));
    assert_eq!(got.embedding_state, EmbeddingState::EightBit);
    for (set, word) in
        [("loss_on=completion", "loss_on"), ("eval_share=0.1", "eval_share"), ("system=Hi", "system")]
    {
        let message = text(resolve(BASE, &["compat=trl-0.17", set], &none));
        assert_says(&message, &[word, "contradicts", "trl-0.17"]);
    }
    assert!(resolve(BASE, &["compat=trl-0.17", "eval_share=0.0", "loss_on=all"], &none).is_ok());
    let flags = RecipeOverrides { packing: Some(true), ..none.clone() };
    assert_says(&text(resolve(BASE, &compat, &flags)), &["--packing", "packing = false"]);
    let message = error("compat = \"trl-0.17\"\nshuffle = false");
    assert_says(&message, &["run.toml:4", "shuffle = true"]);
}

#[test]
fn a_recorded_recipe_comes_back_and_resuming_may_not_change_what_is_computed() {
    let recipe =
        ok("lr = 1.2345678901234567e-4\nallow = [\"duplicates\"]\nthreads = 3\nsystem = \"Be brief.\"\n");
    let record: serde_json::Value = serde_json::from_str(&serde_json::to_string(&recipe).unwrap()).unwrap();
    let back = Recipe::from_record(&record, "run.json").unwrap();
    assert_eq!(back, recipe);
    let flags =
        RecipeOverrides { threads: Some(1), lr: Some(1.2345678901234567e-4), ..RecipeOverrides::default() };
    let resumed = back.clone().resume(None, &["keep_checkpoints=5".to_owned()], &flags).unwrap();
    assert_eq!(resumed, Recipe { threads: Some(1), keep_checkpoints: 5, ..recipe.clone() });
    let flags = RecipeOverrides { lr: Some(1e-3), ..RecipeOverrides::default() };
    assert_says(
        &text(back.resume(None, &[], &flags)),
        &["--resume with lr = 0.001", "0.00012345678901234567"],
    );
    let mut damaged = record;
    damaged["betas"] = serde_json::json!({});
    assert_says(&text(Recipe::from_record(&damaged, "run.json")), &["run.json", "betas"]);
}
