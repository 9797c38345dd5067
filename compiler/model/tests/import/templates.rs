//! Chat templates: what transformers offers them, and what they may not do.

use moa_model::{Message, ModelError};

use crate::making::{Meta, add_byte_level_tokenizer};
use crate::tokenizers::{from_gguf, tokenizer};

fn render(template: &str, messages: &[(&str, &str)]) -> moa_model::Result<String> {
    let checkpoint = from_gguf(|file| {
        add_byte_level_tokenizer(file, "smollm");
        file.set("tokenizer.chat_template", Meta::Text(template.into()));
    })?;
    let messages: Vec<Message> = messages
        .iter()
        .map(|(role, content)| Message::new(*role, *content))
        .collect();
    tokenizer(&checkpoint).apply_chat_template_at(&messages, true, 1_721_994_245)
}

#[test]
fn templates_run_as_in_transformers() {
    let talk = [
        ("system", " Be <brief> & \"kind\". "),
        ("user", "h\u{e9}llo"),
        ("assistant", "x</think>y"),
    ];
    for (template, expected) in [
        // Blocks take their line with them.
        (
            "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n",
            "h\u{e9}llo\n",
        ),
        (
            "{{ messages[0]['content'].strip().upper() }}",
            "BE <BRIEF> & \"KIND\".",
        ),
        ("{{ messages[2].content.split('</think>')[-1] }}", "y"),
        (
            "{{ messages[1] | tojson }}",
            "{\"role\": \"user\", \"content\": \"h\u{e9}llo\"}",
        ),
        (
            "{{ messages[0].content | tojson }}",
            "\" Be <brief> & \\\"kind\\\". \"",
        ),
        ("{{ [1, 'a'] | tojson(indent=2) }}", "[\n  1,\n  \"a\"\n]"),
        (
            "{{ strftime_now('%d %b %Y, %A %H:%M:%S %j') }}",
            "26 Jul 2024, Friday 11:44:05 %j",
        ),
        (
            "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m.role[0] }}{% endfor %}",
            "sa",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        (
            "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}",
            "TrueTrueTrue",
        ),
        (
            "{{ bos_token + eos_token }}|{{ no_such_token }}",
            "<s></s>|",
        ),
        ("{% if strftime_now is defined %}yes{% endif %}", "yes"),
        (
            "{%- for m in messages[1:] -%} {{ m['role'] ~ ',' }} {%- endfor -%}",
            "user,assistant,",
        ),
    ] {
        assert_eq!(render(template, &talk).unwrap(), expected, "{template}");
    }
}

#[test]
fn templates_that_refuse_loop_or_fail_are_errors() {
    let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "chat template: roles must alternate (line 1)"
    );
    assert!(error.hint().is_some());
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(matches!(
        render(endless, &[]),
        Err(ModelError::ChatTemplate { .. })
    ));
    assert!(render("{{ messages[0].role.nothing.more }}", &[("user", "x")]).is_err());
    assert!(render("{% include '/etc/passwd' %}", &[]).is_err());
}
