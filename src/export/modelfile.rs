//! The Modelfile by which Ollama takes a GGUF file in.

use crate::pretrained::Pretrained;
use crate::template::{ChatTemplate, Message};

/// ChatML in Ollama's own template language; its system turn is what `SYSTEM` says where a conversation has none.
const CHATML: &str = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}\
                      <|im_start|>assistant\n";

/// The text of a Modelfile beside the GGUF file named `file`.
///
/// Where the model's template is seen to do what ChatML does, it says so in Ollama's language; elsewhere it leaves the
/// template to Ollama, which reads the file's own.
pub fn modelfile(model: &Pretrained, file: &str) -> String {
    let mut text = format!("FROM ./{file}\n");
    match default_system_turn(&model.template) {
        Some(system) => {
            text += &format!("TEMPLATE \"\"\"{CHATML}\"\"\"\n");
            if let Some(system) = system {
                text += &format!("SYSTEM \"\"\"{system}\"\"\"\n");
            }
        }
        None => {
            text += "# No TEMPLATE: the model's is not ChatML, and Ollama reads the one in the file.\n";
        }
    }
    for token in model.stop_ids.iter().filter_map(|&id| model.tokenizer.token(id)) {
        text += &format!("PARAMETER stop \"{token}\"\n");
    }
    text
}

/// For a template that is seen to be ChatML: the system turn it puts before a conversation that has none, if it does.
fn default_system_turn(template: &ChatTemplate) -> Option<Option<String>> {
    // One that names the date has no fixed text.
    if template.source().contains("strftime_now") {
        return None;
    }
    let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
    let plain = |messages: &[Message]| -> String {
        messages.iter().map(|m| turn(&m.role, &m.content)).collect::<String>() + "<|im_start|>assistant\n"
    };
    let user = [Message::new("user", "x")];
    let alone = template.render(&user, true).ok()?;
    let before = alone.strip_suffix(&plain(&user))?;
    let system = match before {
        "" => None,
        _ => Some(before.strip_prefix("<|im_start|>system\n")?.strip_suffix("<|im_end|>\n")?),
    };
    if system.is_some_and(|s| s.contains("\"\"\"") || s.contains("<|im_")) {
        return None;
    }
    // Conversations on which templates that only look like ChatML part from it: they trim, fold or number turns.
    let contents = ["", " x \n", "a\n\nb", "{{ .Role }} {% x %} \"\"\" é😀", "<think>no</think> yes", "user"];
    let kinds: [&[&str]; 5] = [
        &["user"],
        &["system", "user"],
        &["user", "assistant", "user"],
        &["system", "user", "assistant", "user", "assistant", "user"],
        &["user", "assistant"],
    ];
    let same =
        kinds.iter().enumerate().flat_map(|k| contents.iter().map(move |c| (k, c))).all(|((k, roles), c)| {
            let message = |(i, role): (usize, &&str)| {
                let content = if i % 2 == k % 2 { (*c).to_owned() } else { format!("turn {i}") };
                Message::new(*role, content)
            };
            let messages: Vec<Message> = roles.iter().enumerate().map(message).collect();
            let default = if roles[0] == "system" { "" } else { before };
            template
                .render(&messages, true)
                .is_ok_and(|text| text == format!("{default}{}", plain(&messages)))
        });
    same.then(|| system.map(str::to_owned))
}
