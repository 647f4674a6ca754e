"""The character tokenizer and the policy: made, saved, loaded."""

import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlpost.characters import character_tokenizer
from rlpost.config import load
from rlpost.errors import ConfigError, DataError
from rlpost.models import load_policy, load_tokenizer, prepare_model, save_policy
from rlpost.tasks.interface import Item, Renderer

TINY = (
    "model.scratch={num_layers: 2, hidden_size: 64, intermediate_size: 32, "
    "num_heads: 2, num_kv_heads: 1}"
)
TOKENIZER = character_tokenizer()
PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " \n"


@given(st.text(alphabet=PRINTABLE, max_size=60).filter(lambda text: "<" not in text))
def test_characters_round_trip(text):
    ids = TOKENIZER.encode(text)
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == text


def test_other_characters_are_bytes_and_the_end_token_is_not_shown():
    assert len(TOKENIZER.encode("a\u00e9b")) == 4
    assert TOKENIZER.decode(TOKENIZER.encode("a\u00e9b")) == "a\u00e9b"
    ended = [*TOKENIZER.encode("ab"), TOKENIZER.eos_token_id]
    assert TOKENIZER.decode(ended, skip_special_tokens=True) == "ab"


def test_a_scratch_policy_is_an_ordinary_folder_that_the_seed_decides(tmp_path):
    config = load("quickstart", [TINY])
    state = torch.random.get_rng_state()
    folder = prepare_model(config, tmp_path / "model")
    assert torch.equal(torch.random.get_rng_state(), state)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Spell: sun -> nus,\n  {x}"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.architectures == ["Qwen2ForCausalLM"]
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    again = load_policy(config, prepare_model(config, tmp_path / "again"))
    other = load_policy(load("quickstart", [TINY, "seed=1"]), folder)
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, again.get_parameter(name))
    assert other.config.use_cache is False
    different = prepare_model(load("quickstart", [TINY, "seed=1"]), tmp_path / "different")
    assert not torch.equal(load_policy(config, different).lm_head.weight, model.lm_head.weight)


def test_saving_again_replaces_and_gives_the_same_logits(tmp_path):
    config = load("quickstart", [TINY])
    policy = load_policy(config, prepare_model(config, tmp_path / "model"))
    with torch.no_grad():
        policy.model.norm.weight.mul_(1.5)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "stale.bin").write_bytes(b"old")
    save_policy(policy, dict(policy.named_parameters()), TOKENIZER, tmp_path / "export")
    assert not (tmp_path / "export" / "stale.bin").exists()
    ids = torch.tensor([TOKENIZER.encode("abc")])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export", attn_implementation="sdpa")
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, policy(ids).logits)


def test_activation_checkpointing_changes_no_gradient(tmp_path):
    ids = torch.tensor([TOKENIZER.encode("Spell: sun")])
    gradients = []
    for enabled in ("false", "true"):
        config = load("quickstart", [TINY, f"model.activation_checkpointing={enabled}"])
        policy = load_policy(config, prepare_model(config, tmp_path / enabled))
        assert policy.is_gradient_checkpointing == (enabled == "true")
        policy(ids).logits.float().logsumexp(-1).sum().backward()
        gradients.append(policy.model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_nothing_is_dropped_when_activations_are_checkpointed(tmp_path):
    config = load("quickstart", [TINY, "model.activation_checkpointing=true"])
    folder = prepare_model(config, tmp_path / "model")
    settings = folder / "config.json"
    settings.write_text(
        settings.read_text().replace('"attention_dropout": 0.0', '"attention_dropout": 0.5')
    )
    policy = load_policy(config, folder)
    assert policy.config.attention_dropout == 0.5
    ids = torch.tensor([TOKENIZER.encode("abc")])
    assert torch.equal(policy(ids).logits, policy(ids).logits)


def test_a_lora_policy_trains_its_adapter_alone_and_starts_as_the_policy(tmp_path):
    config = load("quickstart", [TINY, "model.lora.rank=2"])
    folder = prepare_model(config, tmp_path / "model")
    policy = load_policy(config, folder)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    ids = torch.tensor([TOKENIZER.encode("abc")])
    base = load_policy(config, folder, trainable=False)
    assert torch.equal(policy(ids).logits, base(ids).logits)


def test_a_missing_tokenizer_is_named():
    config = load("quickstart", ["model.tokenizer_path=/nowhere/at/all"])
    with pytest.raises(ConfigError, match=r"/nowhere/at/all.*model.tokenizer_path"):
        load_tokenizer(config)


def renderer(*overrides):
    plain = "task.prompt_template='{question}'"
    return Renderer(load("quickstart", [plain, *overrides]), TOKENIZER)


def test_a_worked_answer_ends_with_the_end_token():
    item = Item(id="i", question="a", worked_answer="bc")
    render = renderer()
    ids = render.worked_ids(render.prompt(item))
    assert ids == (*TOKENIZER.encode("bc"), TOKENIZER.eos_token_id)
    with pytest.raises(DataError, match="prompt j has no worked answer"):
        render.worked_ids(render.prompt(Item(id="j", question="a")))


def test_braces_around_the_question_stay():
    render = renderer(r"task.prompt_template='\boxed{{question}} {x}'")
    assert render.prompt(Item(id="i", question="{q}")).text == r"\boxed{{q}} {x}"


def test_a_template_takes_fields_of_the_item_too():
    render = renderer("task.prompt_template='{word} of {size}'")
    item = Item(id="i", question="q", metadata={"word": "sun", "size": 3})
    assert render.prompt(item).text == "sun of 3"
    with pytest.raises(ConfigError, match="uses no field of item j; available: question, wort"):
        render.prompt(Item(id="j", question="q", metadata={"wort": "Sonne", "list": []}))


def test_a_chat_prompt_has_the_tokens_of_the_tokenizers_own_rendering():
    render = renderer(
        "task.chat_template=true",
        "task.system_prompt=Be brief.",
        "task.prompt_template='{question}?'",
    )
    prompt = render.prompt(Item(id="i", question="Why"))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]
    expected = TOKENIZER.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert list(prompt.token_ids) == expected
    assert TOKENIZER.decode(prompt.token_ids) == "Be brief.\nWhy?\n"


def test_a_chat_recipe_needs_a_tokenizer_with_a_template():
    plain = character_tokenizer()
    plain.chat_template = None
    with pytest.raises(ConfigError, match=r"task.chat_template=true.*no chat template"):
        Renderer(load("quickstart", ["task.chat_template=true"]), plain)
