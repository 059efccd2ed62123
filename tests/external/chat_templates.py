"""Chat templates in the shapes that published models use, written for these tests, with conversations for them."""

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = (strftime_now("%d %b %Y") | length) ~ " characters" %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The system turn comes first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {{- "These functions can be called:\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One call per turn") }}
        {%- endif %}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate: user, assistant, user, ...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant turns follow the system turn, not " + message["role"] + "!") }}
    {%- endif %}
{%- endfor %}
"""

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

NAMESPACE = """{%- set ns = namespace(system='', turns=0, last_user=-1, done=false) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- set ns.system = ns.system ~ message.content ~ '|' -%}
        {%- continue -%}
    {%- endif -%}
    {%- if message.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif -%}
    {%- set ns.turns = ns.turns + 1 -%}
{%- endfor -%}
[{{ ns.system }}{{ ns.turns }},{{ ns.last_user }}]
{%- for message in messages[::-1] -%}
    {%- set index = (messages|length - 1) - loop.index0 -%}
    {%- if message.role == 'stop' -%}{% break %}{%- endif -%}
    {{ index }}{{ '*' if index == ns.last_user else '' }}{{ message.role[:1] }};
{%- endfor -%}
{%- if not ns.done and add_generation_prompt %}{{ '\\n>' }}{% endif %}
"""

STRING_METHODS = """{%- for message in messages %}
{%- set content = message.content %}
{%- if content.startswith('<think>') and '</think>' in content %}
    {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {{- '(' + reasoning.strip() + ')' }}
{%- endif %}
{{- message.role.upper() }}:{{ message['role'].title() }}:{{ message.role.capitalize() }}:{{ content.strip() }}
{{ content.replace('a', 'AA') }}|{{ content.lower() }}|{{ content.endswith('.') }}|{{ content.split() | length }}|{{ content.find('e') }}
{{ content.splitlines() | join('/') }}|{{ content.count('l') }}|{{ content.rstrip('.!') }}|{{ content.isspace() }}|{{ ', '.join(content.split(' ')) }}
{%- endfor %}
"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}{{- tool_call.name }}{%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""

JSON = """{%- for message in messages -%}
{{ message | tojson }}
{{ message.content | tojson }} {{ [1, 2.5, true, none, 'x', {'k': [message.role, {}], 'n': -3}, []] | tojson }}
{{ {'b': 1, 'a': [message.role, [], {}]} | tojson(indent=2) }}
{%- endfor -%}
"""

MACRO = """{%- macro turn(message, mark='#') -%}
    {{ mark }} {{ message.role }}: {{ caller() if caller is defined else message.content }}{{ '\\n' }}
{%- endmacro -%}
{%- for message in messages -%}
    {{ turn(message, mark='##' if loop.first else '#') }}
{%- else -%}
    nobody
{%- endfor -%}
{%- set all = messages | map(attribute='role') | list -%}
{{ all | join(',') }} {{ all | unique | join('+') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | first | default('none', true) }}
{%- for m in messages if m.role != 'system' %}
[{{ loop.index }}/{{ loop.length }} {{ loop.cycle('odd', 'even') }} {{ loop.revindex0 }} {{ 'first' if loop.first }} {{ loop.previtem.role if loop.previtem is defined else '-' }}]
{%- endfor %}
"""

UNDEFINED = """{{ missing }}|{{ messages[0].name }}|{% if messages[0].name %}yes{% else %}no{% endif %}|{{ messages[0].get('name', 'anonymous') }}|{{ messages[0].name is defined }}|{{ missing is none }}|{{ missing | default('d') }}|{% for x in missing %}x{% endfor %}|{{ tools is none }}|{{ documents is defined }}|{{ 'a' if missing }}|{{ not missing }}|{{ messages | length }}"""

UNDEFINED_ATTRIBUTE = "{{ messages[0].name.first }}"

GENERATION = """{%- for message in messages %}
{%- if message.role == 'assistant' %}
<|a|>{%- generation -%} {{ message.content }}<|end|> {%- endgeneration %}

{% else %}
<|u|>{{ message.content }}
{%- endif %}
{% endfor %}
"""

WHITESPACE = """  {% for message in messages %}
    {# a comment #}
  {{ message.role }}

    {%+ if loop.first %} first {% endif +%}
  tail	{% set x = 1 %}
{%- if not loop.last -%}   ,   {%- endif -%}
{% raw %}{{ not a variable }}{% endraw %}

  {% endfor %}

end

"""

ARITHMETIC = """{%- for message in messages -%}
{{ loop.index0 % 2 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ -loop.index }} {{ 1 + 2 * 3 }} {{ (1 + 2) * 3 }} {{ message.content | length > 5 and message.role in ['user', 'assistant'] }} {{ 'é' in message.content }} {{ message.content[1:4] }}|{{ message.content[-3:] }}|{{ message.content[::-1] }} {{ "%s" | format(message.role) }} {{ none }} {{ true }} {{ False }} {{ 1.0 }} {{ 3 | string + 'x' }} {{ '5' | int + 1 }} {{ message.role == 'user' or 'else' }} {{ 'a' < 'b' }} {{ [1, 2] + [3] }} {{ message.content | upper | trim }} {{ (1, 2)[0] }} {{ range(3) | list | length }}
{% endfor -%}
"""

# name: (template, bos, eos)
TEMPLATES = {
    "llama3": (LLAMA3, "<|im_start|>", "<|im_end|>"),
    "mistral": (MISTRAL, "<|im_start|>", "<|im_end|>"),
    "chatml": (CHATML, "<|im_start|>", "<|im_end|>"),
    "zephyr": (ZEPHYR, "<|endoftext|>", "<|endoftext|>"),
    "namespace": (NAMESPACE, "", "<|im_end|>"),
    "string methods": (STRING_METHODS, "", ""),
    "qwen": (QWEN, "", "<|im_end|>"),
    "gemma": (GEMMA, "<|im_start|>", "<|im_end|>"),
    "json": (JSON, "", ""),
    "macro": (MACRO, "", ""),
    "undefined": (UNDEFINED, "", ""),
    "undefined attribute": (UNDEFINED_ATTRIBUTE, "", ""),
    "no bos": ("{{ bos_token }}|{{ bos_token is defined }}|{{ eos_token }}", "", "<|im_end|>"),
    "generation": (GENERATION, "", ""),
    "whitespace": (WHITESPACE, "", ""),
    "crlf": (WHITESPACE.replace("\n", "\r\n"), "", ""),
    "arithmetic": (ARITHMETIC, "", ""),
}


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


CONVERSATIONS = [
    turns(("user", "Hello, world.")),
    turns(("system", "  Be brief. \n"), ("user", " What is 2 + 2? "), ("assistant", "4")),
    turns(("user", "a"), ("assistant", "<think>\nhm,\nwell\n</think>\n\nAn answer.\n"), ("user", "and\r\nnow?\t")),
    turns(("user", "naïve 日本語 😀 \"quoted\" <b>&amp;</b> 'single' \\ / \u2028 \x7f")),
    turns(("user", ""), ("assistant", "")),
    turns(("user", "one"), ("user", "two")),
    turns(("system", "x"), ("system", "y"), ("user", "{{ not a template }} {% if %}")),
    turns(("tool", "{\"t\": 21.5}"), ("stop", "s"), ("user", "u")),
]
