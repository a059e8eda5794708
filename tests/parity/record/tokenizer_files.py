"""Records how transformers reads a vocabulary by what the files beside it say, and how it renders
chat templates.

pip install transformers==5.24.0 sentencepiece==0.2.3 protobuf jinja2 && pip install --no-deps mistral-common==1.13.1
python tests/parity/record/tokenizer_files.py

Texts are read with `split_special_tokens`: the letters of a special token are text, as in vlx.
"""

import importlib.util
import json
import pathlib
import shutil
import tempfile

import transformers

MODEL = "data/tokenizer.model.v1"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "café", "Café", "中", "文", "中文"]
WORDS += ["a", "<", "img", ">", "##img"]
BERT_TEXTS = ["Café café", "中文", "a <img> a", "a<IMG>", "[SEP] a", "a [MASK]"]
BERT_OPTIONS = [
  dict(do_lower_case=True),
  dict(do_lower_case=True, strip_accents=False),
  dict(do_lower_case=False),
  dict(do_lower_case=False, strip_accents=True),
  dict(do_lower_case=True, tokenize_chinese_chars=False),
]
LLAMA_TEXTS = ["Hello world", "a\n b", "<s> hi</s>", "<|im_end|> x", "a<tool>b <tool> c"]
LLAMA_OPTIONS = [
  dict(legacy=False, add_bos_token=True),
  dict(legacy=False, add_bos_token=False),
  dict(legacy=False, add_bos_token=True, add_eos_token=True),
  dict(legacy=False, add_bos_token=True, add_prefix_space=False),
]
CHAT = (
  "{% for m in messages %}{{ bos_token }}[INST] {{ m.content }} [/INST]{{ eos_token }}\n"
  "ok <|im_end|> yes<tool> no{% endfor %}"
)
MESSAGES = [
  {"role": "system", "content": "be brief & <kind>"},
  {"role": "user", "content": " hi é"},
  {"role": "assistant", "content": "ho"},
]
TEMPLATES = [
  "{% for m in messages %}\n    {% if m.role == 'user' %}\n[{{ m.content }}]\n    {% endif %}\n{% endfor %}",
  "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}",
  "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
  "{{ messages | tojson(ensure_ascii=True, sort_keys=True, separators=(',', ':')) }}",
  "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
  "{% if tools is none and documents is none %}no tools{% endif %}{{ add_generation_prompt }}",
  "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}|{{ sep_token is defined }}",
  "{% set ns = namespace(x=1) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}",
  "{{ strftime_now('%Y') | length }} {{ messages[0]['content'].split('&')[-1].strip() }}",
  "{%- for m in messages -%}\n  {{- m['content'] | trim }}\n{%- endfor %}\n",
]


def added(number, text, special):
  flags = dict(lstrip=False, rstrip=False, single_word=False, normalized=not special)
  return {str(number): dict(content=text, special=special, **flags)}


def read(cls, vocabulary, name, config):
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    shutil.copy(vocabulary, folder / name)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return cls.from_pretrained(folder)


def ids(tokenizer, texts):
  return [tokenizer(text, split_special_tokens=True)["input_ids"] for text in texts]


if __name__ == "__main__":
  package = pathlib.Path(importlib.util.find_spec("mistral_common").origin).parent
  recorded = dict(transformers=transformers.__version__, model=MODEL, words=WORDS)
  recorded |= dict(bert_texts=BERT_TEXTS, llama_texts=LLAMA_TEXTS, messages=MESSAGES)
  with tempfile.NamedTemporaryFile("w") as words:
    words.write("\n".join(WORDS) + "\n")
    words.flush()
    recorded["bert"] = []
    for options in BERT_OPTIONS:
      config = dict(tokenizer_class="BertTokenizer", **options)
      config |= dict(added_tokens_decoder=added(16, "<img>", False))
      found = read(transformers.BertTokenizer, words.name, "vocab.txt", config)
      recorded["bert"].append(dict(config=config, ids=ids(found, BERT_TEXTS)))
  special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
  recorded["llama"] = []
  for options in LLAMA_OPTIONS:
    decoder = added(32000, "<|im_end|>", True) | added(32001, "<tool>", False)
    decoder["32001"]["normalized"] = False
    decoder |= added(32002, "<pad>", True)
    config = dict(tokenizer_class="LlamaTokenizer", chat_template=CHAT, **options, **special)
    config |= dict(added_tokens_decoder=decoder)
    found = read(transformers.LlamaTokenizer, package / MODEL, "tokenizer.model", config)
    # from_pretrained loses what the file says of these
    found.add_bos_token, found.add_eos_token = (
      options["add_bos_token"],
      options.get("add_eos_token", False),
    )
    found.update_post_processor()
    chat = found.apply_chat_template(
      [{"role": "user", "content": "hi"}], add_generation_prompt=True
    )
    recorded["llama"].append(
      dict(config=config, ids=ids(found, LLAMA_TEXTS), chat=chat["input_ids"])
    )
  recorded["templates"] = [
    [
      template,
      found.apply_chat_template(
        MESSAGES, chat_template=template, tokenize=False, add_generation_prompt=True
      ),
    ]
    for template in TEMPLATES
  ]
  file = pathlib.Path(__file__).resolve().parents[1] / "tokenizer_files.json"
  file.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
