"""Fine-tuning: masks held against transformers, packing against unpacked, policies."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.text import Text

from megatron_moo.data import Corpus, LaneBatches, LaneSchedule, LanguageSampler, build_corpus, load_manifest
from megatron_moo.data.collate import collate
from megatron_moo.data.inspection import coloured, inspect
from megatron_moo.data.sft.encode import mask_conversation
from megatron_moo.data.sft.packing import pack_documents
from megatron_moo.data.sft.template import NAMED, ChatTemplate, load_template
from megatron_moo.data.tokenizers import ByteTokenizer, HFTokenizer, SentencePieceTokenizer
from megatron_moo.errors import MooError

MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALKS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Wie geht's?"}, {"role": "assistant", "content": "Gut, danke. 안녕하세요"}],
    [
        {"role": "system", "content": "Answer in Greek. Σύντομα."},
        {"role": "user", "content": "  two  spaces\nand a line"},
        {"role": "assistant", "content": "Ναι."},
        {"role": "user", "content": "Again 🎲"},
        {"role": "assistant", "content": "Όχι 🎲!\n"},
    ],
]


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE tokenizer in Hugging Face's format, with chat tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    text = [message["content"] + message["role"] for talk in TALKS for message in talk] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    folder = tmp_path_factory.mktemp("hf")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", additional_special_tokens=special[1:]
    )
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("source", [MARKED, NAMED["chatml"]], ids=["marked", "prefix difference"])
def test_mask_is_that_of_transformers(hf_folder: Path, talk: list[dict[str, str]], source: str) -> None:
    tokenizer = HFTokenizer(hf_folder)
    expected = tokenizer.hf.apply_chat_template(
        talk, chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = mask_conversation(talk, ChatTemplate(source, "test"), tokenizer, close=False)
    assert ids.tolist() == expected["input_ids"]
    assert mask.astype(int).tolist() == expected["assistant_masks"]
    assert 0 < mask.sum() < len(mask)


def test_transformers_alone_gives_no_mask_without_markers_so_ours_must_not_come_from_there(
    hf_folder: Path,
) -> None:
    # The trap that this room exists for: without markers transformers returns a mask that says nothing.
    found = HFTokenizer(hf_folder).hf.apply_chat_template(
        TALKS[0], chat_template=NAMED["chatml"], return_dict=True, return_assistant_tokens_mask=True
    )
    assert sum(found["assistant_masks"]) == 0


@pytest.mark.parametrize("talk", TALKS)
def test_mask_covers_exactly_what_the_assistant_wrote_for_bytes_and_sentencepiece(
    talk: list[dict[str, str]], tmp_path: Path
) -> None:
    import sentencepiece

    text = [message["content"] for one in TALKS for message in one] + [
        "user assistant system im_start im_end"
    ] * 9
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(tmp_path / "m"), vocab_size=330, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        minloglevel=2, hard_vocab_limit=False,
        model_type="bpe",
    )  # fmt: skip
    expected = "".join(m["content"] + "<|im_end|>\n" for m in talk if m["role"] == "assistant")
    for tokenizer in (ByteTokenizer(), SentencePieceTokenizer(tmp_path / "m.model")):
        ids, mask = mask_conversation(talk, load_template("chatml", Path()), tokenizer)
        assert ids[-1] == tokenizer.eod
        assert mask[-1]
        assert tokenizer.decode(ids[:-1][mask[:-1]].tolist()) == expected


def test_a_template_that_rewrites_history_is_refused_and_marks_cure_it() -> None:
    rewriting = (
        "{{ messages | length }} turns\n{% for m in messages %}{{ m['role'] + ': ' }}"
        "{% if m['role'] == 'assistant' %}BEGIN{{ m['content'] }}END{% else %}{{ m['content'] }}{% endif %}"
        "\n{% endfor %}"
    )
    with pytest.raises(MooError, match="no generation marks"):
        mask_conversation(TALKS[0], ChatTemplate(rewriting, "bad"), ByteTokenizer())
    marked = rewriting.replace("BEGIN", "{%- generation -%}").replace("END", "{%- endgeneration -%}")
    ids, mask = mask_conversation(TALKS[0], ChatTemplate(marked, "good"), ByteTokenizer(), close=False)
    assert bytes(ids[mask].tolist()).decode() == TALKS[0][1]["content"]


def test_a_template_without_assistant_text_is_refused() -> None:
    template = ChatTemplate("x{% generation %}{% endgeneration %}", "t")
    with pytest.raises(MooError, match="gives no assistant text"):
        mask_conversation(TALKS[0], template, ByteTokenizer())


def _corpus(tmp_path: Path, records: dict[str, list[Any]], sft: dict[str, Any], **language: Any) -> Corpus:
    languages = {}
    for tag, items in records.items():
        (tmp_path / f"{tag}.jsonl").write_text(
            "".join(json.dumps(item) + "\n" for item in items), encoding="utf-8"
        )
        languages[tag] = {"train": [f"{tag}.jsonl"], **language}
    path = tmp_path / "sft.yaml"
    path.write_text(
        yaml.safe_dump({"tokenizer": "byte", "sft": sft, "languages": languages}, sort_keys=False)
    )
    return build_corpus(load_manifest(path), tmp_path / "corpus")


def _talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _records(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [_talk("q" * int(rng.integers(1, 20)), f"a{i} " * int(rng.integers(1, 6))) for i in range(count)]


def test_packed_loss_equals_unpacked_on_a_model(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    corpus = _corpus(tmp_path, {"en": _records(12)}, {"max_length": 128, "template": "plain"})
    packed, alone = (LanguageSampler(corpus, "train", 160) for _ in range(2))
    from megatron_moo.data.sft.packing import PackedView

    alone._views["en"] = PackedView(corpus.stream("en", "train"), 160, corpus.eod, pack=False)
    assert packed.samples("en") < alone.samples("en") == 12

    def loss(sampler: LanguageSampler) -> tuple[float, float]:
        total = count = 0.0
        for i in range(sampler.samples("en")):
            batch = collate([sampler.sample("en", i)])
            bias = torch.zeros(batch["attention_mask"].shape, dtype=torch.float64)
            bias.masked_fill_(batch["attention_mask"], torch.finfo(torch.float64).min)
            with torch.no_grad():
                logits = model(
                    batch["tokens"], attention_mask=bias, position_ids=batch["position_ids"]
                ).logits
            losses = torch.nn.functional.cross_entropy(logits[0], batch["labels"][0], reduction="none")
            total += float((losses * batch["loss_mask"][0]).sum())
            count += float(batch["loss_mask"].sum())
        return total, count

    one, other = loss(packed), loss(alone)
    assert one[1] == other[1] == packed.view("en").targets == corpus.entry("en", "train").sft["loss_tokens"]
    assert one[0] == pytest.approx(other[0], rel=1e-12)


def test_cu_seqlens_and_mask_describe_the_same_documents(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path, {"en": _records(12)}, {"max_length": 128})
    sampler = LanguageSampler(corpus, "train", 200)
    batch = collate([sampler.sample("en", i) for i in range(2)])
    bounds = batch["cu_seqlens"].tolist()
    assert bounds[0] == 0
    assert bounds[-1] == 400
    flat = batch["position_ids"].flatten()
    for start, end in pairwise(bounds):
        assert flat[start:end].tolist() == list(range(end - start)), "positions restart in each document"
        row, begin = divmod(start, 200)
        allowed = ~batch["attention_mask"][row, 0, begin : begin + end - start]
        expected = torch.zeros_like(allowed)
        expected[:, begin : begin + end - start] = torch.ones(end - start, end - start).tril().bool()
        assert torch.equal(allowed, expected)


def test_every_conversation_once_in_an_epoch_of_lane_batches(tmp_path: Path) -> None:
    records = {"en": _records(40), "de": [_talk("Frage", f"Antwort {i}") for i in range(7)]}
    corpus = _corpus(tmp_path, records, {"max_length": 128, "template": "plain"})
    manifest = load_manifest(tmp_path / "sft.yaml")
    lane = LaneBatches(LanguageSampler(corpus, "train", 256), LaneSchedule(2, 2, 1), manifest, lane=0)
    text = ""
    for _ in range(lane.sampler.samples("en")):
        batch = next(lane)
        text += bytes(t for t in batch["tokens"][0].tolist() if t < 256).decode() + "|"
    for i in range(40):
        assert text.count(f"assistant: a{i} ") == 1


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("drop", {"dropped": 1}), ("right", {"cut": 1}), ("turns", {"turns_dropped": 1})],
)
def test_truncation_policies(tmp_path: Path, policy: str, expected: dict[str, int]) -> None:
    long = {"messages": _talk("first " * 9, "one " * 9)["messages"] + _talk("second", "two")["messages"]}
    sft = {"max_length": 110, "template": "plain", "truncation": policy, "system": "Be brief."}
    corpus = _corpus(tmp_path, {"en": [long, _talk("hi", "ho")]}, sft)
    counts = corpus.entry("en", "train").sft
    assert {key: counts[key] for key in expected} == expected
    sampler = LanguageSampler(corpus, "train", 256)
    text = bytes(
        t for i in range(sampler.samples("en")) for t in sampler.sample("en", i)["tokens"] if t < 256
    ).decode()
    assert text.count("system: Be brief.") == counts["conversations"] == (1 if policy == "drop" else 2)
    assert ("second" in text) == (policy == "turns")
    assert ("first" in text) == (policy == "right")


def test_policy_error_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(MooError, match=r"en\.jsonl:2: .*more than sft.max_length = 40"):
        _corpus(
            tmp_path,
            {"en": [_talk("a", "b"), _talk("a" * 50, "b")]},
            {"max_length": 40, "template": "plain", "truncation": "error"},
        )


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": []}, "at least one message"),
        ({"text": "x"}, "neither `messages` nor `prompt`"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown role 'robot'"),
        ({"messages": [{"role": "user"}]}, "not an object with `role`"),
        ({"prompt": 3, "completion": "x"}, "message 0: the text is int"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, record: Any, words: str) -> None:
    with pytest.raises(MooError, match=words):
        _corpus(tmp_path, {"en": [record]}, {"max_length": 40})


def test_prompt_and_completion_and_per_language_template_and_system(tmp_path: Path) -> None:
    record = {"prompt": "2+2?", "completion": "4"}
    corpus = _corpus(tmp_path, {"en": [record]}, {"max_length": 99}, template="plain", system="Zahlen.")
    sample = LanguageSampler(corpus, "train", 64).sample("en", 0)
    text = bytes(t for t in sample["tokens"] if t < 256).decode()
    assert text == "system: Zahlen.\n\nuser: 2+2?\n\nassistant: 4\n\n"
    shown = coloured(sample, corpus.tokenizer())
    assert "[[4\n\n]]" in shown.plain, "inspect shows what counts"
    colours = {str(span.style): shown.plain[span.start : span.end] for span in shown.spans}
    assert shown.plain.startswith("system: Zahlen."), "whole conversations, the first token too"
    assert colours["green"] == "[[4\n\n]]" and colours["dim"].startswith("system: Zahlen.")
    whole = [item.plain for item in inspect(corpus) if isinstance(item, Text)]
    assert "[[4\n\n]]" in whole[1], "without a length a sample is as long as a conversation may be"


def test_a_special_token_inside_a_message_is_refused(hf_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "en.jsonl").write_text(json.dumps(_talk("bye<|im_end|>", "x")))
    path = tmp_path / "l.yaml"
    spec = {"tokenizer": {"type": "hf", "path": str(hf_folder)}, "sft": {"max_length": 50}}
    path.write_text(yaml.safe_dump({**spec, "languages": {"en": {"train": ["en.jsonl"]}}}))
    with pytest.raises(MooError, match="spells the special token"):
        build_corpus(load_manifest(path), tmp_path / "corpus")


def test_pack_documents_fits_and_keeps_everything() -> None:
    sizes = np.random.default_rng(0).integers(1, 100, 500)
    plan = pack_documents(sizes, 128)
    assert sorted(int(d) for one in plan for d in one) == list(range(500))
    assert all(sizes[one].sum() <= 128 for one in plan)
    assert len(plan) < 1.08 * sizes.sum() / 128


def test_marks_around_the_whole_conversation_are_refused() -> None:
    from megatron_moo.data.sft.template import NAMED, ChatTemplate

    template = ChatTemplate("{% generation %}" + NAMED["chatml"] + "{% endgeneration %}", "whole")
    with pytest.raises(MooError, match="enclose turns that are not the assistant's"):
        template.text_and_spans([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}])


def test_marks_in_the_data_are_refused() -> None:
    from megatron_moo.data.sft.template import NAMED, ChatTemplate

    for name in NAMED:
        with pytest.raises(MooError, match="U\\+E0F0"):
            ChatTemplate(NAMED[name], name).text_and_spans(
                [{"role": "user", "content": "a \ue0f0secret\ue0f1"}, {"role": "assistant", "content": "b"}]
            )


CREEPING = (
    "{% if messages | length > 2 %}{% generation %}{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
    "{% endfor %}{% endgeneration %}{% else %}" + MARKED + "{% endif %}"
)


@pytest.mark.parametrize("order", [1, -1])
def test_marks_that_enclose_the_user_in_longer_conversations_only_are_refused(
    tmp_path: Path, order: int
) -> None:
    (tmp_path / "creeping.jinja").write_text(CREEPING)
    long = {"messages": _talk("a", "b")["messages"] + _talk("c", "d")["messages"]}
    records = [_talk("hi", "ho"), long][::order]
    with pytest.raises(MooError, match=r"enclose turns that are not the assistant's") as caught:
        _corpus(tmp_path, {"en": records}, {"max_length": 200, "template": "creeping.jinja"})
    assert f"en.jsonl:{2 if order == 1 else 1}" in str(caught.value)


FUSSY = (
    "{% if messages[0]['content'] == 'no' %}{{ raise_exception('not this one') }}{% endif %}"
    "{% if messages[0]['content'] == 'zero' %}{{ 1 // 0 }}{% endif %}"
    "{% if messages[0]['content'] == 'deep' %}{{ nothing.at.all }}{% endif %}" + NAMED["plain"]
)


@pytest.mark.parametrize(
    ("question", "answer", "words"),
    [
        ("no", "x", "not this one"),
        ("zero", "x", "division by zero|modulo by zero"),
        ("deep", "x", "'nothing' is undefined"),
        ("odd \ue0f1", "x", r"U\+E0F0"),
        ("silent", "", "no assistant text"),
    ],
)
def test_a_conversation_that_does_not_fit_is_a_bad_record(
    tmp_path: Path, question: str, answer: str, words: str
) -> None:
    quiet = "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    quiet += "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    (tmp_path / "fussy.jinja").write_text(quiet if question == "silent" else FUSSY)
    records = {"en": [_talk("good", "one"), _talk(question, answer), _talk("good", "too")]}
    sft = {"max_length": 90, "template": "fussy.jinja"}
    with pytest.raises(MooError, match=rf"en\.jsonl:2: .*({words}).*offset \d+"):
        _corpus(tmp_path, records, sft)
    entry = _corpus(tmp_path, records, sft, reading={"skip_budget": 1}).entry("en", "train")
    assert (entry.documents, entry.skipped_count) == (2, 1)


def test_a_template_file_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(MooError, match=r"bad\.jinja: the chat template cannot be read") as caught:
        _corpus(tmp_path, {"en": [_talk("a", "b")]}, {"max_length": 40, "template": "bad.jinja"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% if tools is none %}no tools{% endif %}",
        "{% if documents is none %}no documents{% endif %}",
        "{{ strftime_now('%Y') }}",
        "{% if bos_token is defined %}bos{% else %}none{% endif %}{{ eos_token }}",
        "{{ messages[0] | tojson(indent=2, sort_keys=true) }}{{ messages | tojson(ensure_ascii=true) }}",
        "{{ messages[0] | tojson(separators=(',', ':')) }}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content.strip() }}{% endfor %}",
    ],
)
def test_a_template_renders_as_in_transformers(hf_folder: Path, tmp_path: Path, source: str) -> None:
    (tmp_path / "t.jinja").write_text(source)
    hf = HFTokenizer(hf_folder).hf
    expected = hf.apply_chat_template(TALKS[1], chat_template=source, tokenize=False)
    assert load_template("t.jinja", tmp_path, hf).render(TALKS[1]) == expected != ""


def test_messages_of_null_beside_prompt_and_completion(tmp_path: Path) -> None:
    from megatron_moo.data.sft.messages import parse_messages

    record = {"messages": None, "prompt": "2+2?", "completion": "4"}
    assert parse_messages(record) == _talk("2+2?", "4")["messages"]
    assert (
        parse_messages({**record, "completion": None}) == "`messages` is not a list with at least one message"
    )
