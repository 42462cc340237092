"""What do the chat templates of the families of models do? One of each shape, written for these tests.

Each says in its comment what makes it awkward: what it does to contents, or asks of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Shape:
    """A template, the control tokens that it writes, and those that its vocabulary calls words (user-defined).

    `system`: whether it accepts a system message. `roles`: whether it renders roles that it does not know.
    """

    source: str
    control: tuple[str, ...]
    words: tuple[str, ...] = ()
    system: bool = True
    roles: bool = False


# Cuts thoughts out of answers, keeps those behind the last question, compares positions.
QWEN3 = Shape(
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' and not "
    "(m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- set content = message.content %}{%- if message.role == 'assistant' %}"
    "{%- set thought = '' %}{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<|im_start|>' + message.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), ("<think>", "</think>", "<tool_response>", "</tool_response>"),
    roles=True,
)  # fmt: skip

# Makes tokens of roles, and strips each content.
GLM = Shape(
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{% set c = m.content %}{% if m.role == 'assistant' and "
    "'</think>' in c %}{% set c = c.split('</think>')|last %}<think></think>\n{% endif %}{{ c.strip() }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
    ("<think>", "</think>"), roles=True,
)  # fmt: skip

# Renames a role, trims, prefixes the first question with the system message, insists on alternation.
GEMMA = Shape(
    "{{ bos_token }}{% set prefix = '' %}{% set rest = messages %}{% if messages[0]['role'] == 'system' %}"
    "{% set prefix = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}{{ m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    ("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"),
)

# Builds a text of header and trimmed content, then puts the begin token before the first.
LLAMA3 = Shape(
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"), roles=True,
)

# Control tokens in square brackets; the last question gets the system message.
MISTRAL = Shape(
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set loop_messages = messages[1:]"
    " %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}"
    "{%- for m in loop_messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('after the system message roles must alternate user/assistant') }}{%- endif %}"
    "{%- if m.role == 'user' %}{%- if loop.last and system is defined %}"
    "{{- '[INST] ' ~ system ~ '\\n\\n' ~ m.content ~ '[/INST]' }}{%- else %}{{- '[INST] ' ~ m.content ~ '[/INST]' }}"
    "{%- endif %}{%- else %}{{- ' ' + m.content|trim + eos_token }}{%- endif %}{%- endfor %}",
    ("[INST]", "[/INST]", "<s>", "</s>", "[TOOL_CALLS]"),
)

# A token and a newline in a constant each.
PHI = Shape(
    "{% for m in messages %}{% if m['role'] in ['system', 'user', 'assistant'] %}"
    "{{ '<|' + m['role'] + '|>' + '\n' + m['content'] + '<|end|>' + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
)

# Collects the system messages first, and keeps of an answer what follows its thoughts.
DEEPSEEK = Shape(
    "{% set ns = namespace(is_first=true, system='') %}{%- for m in messages %}{%- if m['role'] == 'system' %}"
    "{%- if ns.is_first %}{% set ns.system = ns.system + m['content'] %}{% set ns.is_first = false %}"
    "{%- else %}{% set ns.system = ns.system + '\\n\\n' + m['content'] %}{%- endif %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system }}{%- for m in messages %}{%- if m['role'] == 'user' %}"
    "{{ '<｜User｜>' + m['content'] }}{%- endif %}{%- if m['role'] == 'assistant' %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}",
    ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"), ("<think>", "</think>"),
)

# Channels; a macro; refuses answers that bring channel tokens themselves.
GPT_OSS = Shape(
    "{%- macro turn(role, channel, text) %}{{ '<|start|>' ~ role }}{% if channel %}{{ '<|channel|>' ~ channel }}"
    "{% endif %}{{ '<|message|>' ~ text }}{% endmacro %}"
    "{{- turn('system', '', 'You are a model.\\nReasoning: medium') + '<|end|>' }}"
    "{%- for m in messages %}{%- if m.role == 'system' or m.role == 'developer' %}"
    "{{- turn('developer', '', '# Instructions\\n\\n' + m.content) + '<|end|>' }}"
    "{%- elif m.role == 'assistant' %}{%- if '<|channel|>analysis<|message|>' in m.content %}"
    "{{- raise_exception('put thoughts into their own field') }}{%- endif %}"
    "{{- turn('assistant', 'final', m.content) + '<|end|>' }}"
    "{%- else %}{{- turn(m.role, '', m.content) + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|start|>assistant{%- endif %}",
    ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>", "<|endoftext|>"),
    roles=True,
)

# Long constants around contents, some of which are replaced in.
COMMAND_R = Shape(
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = "
    "messages[0]['content'] %}{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% if system != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{system}<|END_OF_TURN_TOKEN|>'"
    "|replace('{system}', system) }}{% endif %}{% for m in rest %}{% set content = m['content'] %}"
    "{% if m['role'] == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + "
    "'<|END_OF_TURN_TOKEN|>' }}{% elif m['role'] == 'assistant' %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + "
    "content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
    ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
)

CHATML = Shape(
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), roles=True,
)

# Rewrites tabs and runs of blanks, character by character and word by word.
BLANKS = Shape(
    "{% for m in messages %}<|turn|>{{ m.role }}\n{% set ns = namespace(out='') %}"
    "{% for line in m.content.replace('\t', '    ').splitlines() %}"
    "{% set ns.out = ns.out + (line.split()|join(' ')) + '\n' %}{% endfor %}"
    "{{ ns.out.replace('  ', ' ').replace('\n\n', '\n')|trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}",
    ("<|turn|>", "<|end|>", "<|endoftext|>"), roles=True,
)

# Puts the last message first, joins the others, quotes the system message as JSON and in capitals.
REORDERED = Shape(
    "<|last|>{{ (messages|last).content }}<|stop|>{% for m in messages[:-1]|reverse %}"
    "{% if m.role == 'system' %}<|json|>{{ m.content|tojson }}{{ m.content|upper }}{{ m.content[:7] }}<|stop|>"
    "{% endif %}{% endfor %}<|all|>{{ messages|map(attribute='content')|join('<|part|>') }}<|stop|>"
    "{% if add_generation_prompt %}<|answer|>{% endif %}",
    ("<|last|>", "<|stop|>", "<|json|>", "<|all|>", "<|part|>", "<|answer|>", "<|STOP|>"), roles=True,
)

SHAPES: Final = {
    "qwen3": QWEN3, "glm": GLM, "gemma": GEMMA, "llama 3": LLAMA3, "mistral": MISTRAL, "phi": PHI,
    "deepseek": DEEPSEEK, "gpt-oss": GPT_OSS, "command-r": COMMAND_R, "chatml": CHATML, "blanks": BLANKS,
    "reordered": REORDERED,
}  # fmt: skip
