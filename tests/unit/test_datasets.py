"""Tasks from files, generators and users' functions: what is read, and what is refused."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlpost.characters import character_tokenizer
from rlpost.config import load
from rlpost.errors import ConfigError, DataError
from rlpost.tasks.build import build_source
from rlpost.tasks.interface import PromptStream, Renderer
from rlpost.tasks.verifiers import reasoning_gym

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"


def row(index, **more):
    return {"question": f"q{index}", "answer": f"#### {index}", **more}


def write(folder, train, test=None):
    for split, rows in (("train", train), ("test", test or [row(99)])):
        lines = (each if isinstance(each, str) else json.dumps(each) for each in rows)
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def source(folder, *overrides):
    return build_source(load("gsm8k", [f"data.path={folder}", *overrides]))


@pytest.mark.parametrize("ending", ["json", "parquet"])
def test_json_and_parquet_give_the_items_of_jsonl(tmp_path, ending):
    train = [row(i, level=i) for i in range(3)]
    write(tmp_path, train)
    expected = source(tmp_path).training()
    (tmp_path / "train.jsonl").unlink()
    if ending == "json":
        (tmp_path / "train.json").write_text(json.dumps(train))
    else:
        pq.write_table(pa.Table.from_pylist(train), tmp_path / "train.parquet")
    assert source(tmp_path).training() == expected
    assert [item.metadata for item in expected] == [{"level": i} for i in range(3)]


def test_numbers_and_lists_of_one_are_answers_too(tmp_path):
    write(tmp_path, [{"question": "q", "answer": 27.0}, {"question": "r", "answer": ["$2$"]}])
    items = source(tmp_path, "data.answer_pattern=null").training()
    assert [item.answer for item in items] == ["27.0", "$2$"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([row(0), {"question": "q1"}], r"data.answer_column=answer: row 1 of split train"),
        ([row(0), {"question": None, "answer": "#### 1"}], r"data.question_column=.*row 1"),
        ([row(0), {"question": "q", "answer": ["1", "2"]}], r"row 1 .*got \"\['1', '2'\]\""),
        ([row(0), "{broken"], r"train.jsonl, line 2: not JSON"),
        ([row(0), "[1]"], r"train.jsonl, line 2: must be a JSON object"),
        ([row(0), row(1) | {"answer": "unmarked"}], r"data.answer_pattern=.* row 1"),
        ([row(99)], r"every question is held out"),
    ],
)
def test_a_bad_row_is_named(tmp_path, train, message):
    write(tmp_path, train)
    with pytest.raises(DataError, match=message):
        source(tmp_path).training()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.json", b'[{"question": "q"},\n{', r"train.json, line 2: not JSON"),
        ("train.json", b'{"question": "q"}', r"train.json: must be a JSON list"),
        ("train.jsonl", b'{"question": "\xff"}', r"train.jsonl: not UTF-8"),
        ("train.jsonl", b"\n\n", r"split train is empty"),
        ("train.parquet", b"PAR1 and no more", r"train.parquet: not a Parquet file"),
    ],
)
def test_a_broken_file_is_refused_when_the_recipe_is_loaded(tmp_path, name, content, message):
    write(tmp_path, [])
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ConfigError, DataError), match=message):
        load("gsm8k", [f"data.path={tmp_path}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.answer_column=reply", r"data.answer_column=reply.*question, answer"),
        ("data.split=dev", r"no file for split dev.*test.jsonl, train.jsonl"),
        ("data.answer_pattern='####'", r"must have a group"),
        ("data.answer_pattern='('", r"no regular expression"),
        ("task.prompt_template=Solve", r"task.prompt_template='Solve' must contain \{question\}"),
        ("task.system_prompt=Think", r"task.system_prompt has no place"),
    ],
)
def test_a_wrong_setting_is_refused_when_the_recipe_is_loaded(tmp_path, override, message):
    write(tmp_path, [row(0)])
    with pytest.raises(ConfigError, match=message):
        load("gsm8k", [f"data.path={tmp_path}", override])


def test_gsm8k_as_published():
    if not GSM8K.is_dir():
        pytest.skip(f"{GSM8K} is absent")
    config = load("gsm8k", [f"data.path={GSM8K}", "eval.num_prompts=50"])
    task = build_source(config)
    items = task.training()
    assert len(items) == 7473
    assert items[0].answer == "72"
    assert items[0].worked_answer.endswith("#### 72")
    assert not {i.question for i in items} & {i.question for i in task.held_out(50)}


def test_prompts_keep_the_files_order_when_not_shuffled(tmp_path):
    write(tmp_path, [row(i) for i in range(6)])
    config = load("gsm8k", [f"data.path={tmp_path}"])
    renderer = Renderer(config, character_tokenizer())
    stream = PromptStream(build_source(config).training(), renderer, 0, shuffle=False)
    assert [p.answer for p in stream.draw(8)] == ["0", "1", "2", "3", "4", "5", "0", "1"]
    assert stream.draw(0) == []


def test_a_prompt_that_is_too_long_is_left_out_counted_and_logged(tmp_path, caplog):
    write(tmp_path, [row(0), row(1) | {"question": "q" * 40}])
    config = load("gsm8k", [f"data.path={tmp_path}", "sampling.max_prompt_tokens=10"])
    renderer = Renderer(config, character_tokenizer())
    stream = PromptStream(build_source(config).training(), renderer, 0)
    assert [p.answer for p in stream.draw(4)] == ["0"] * 4
    assert renderer.too_long >= 3
    assert "gsm8k/train/1 has 41 tokens" in caplog.text
    write(tmp_path, [row(1) | {"question": "q" * 40}])
    stream = PromptStream(build_source(config).training(), renderer, 0)
    with pytest.raises(DataError, match=r"none of 1 prompts fits sampling.max_prompt_tokens=10"):
        stream.draw(1)


def test_two_seeds_share_no_training_questions_but_all_held_out_ones():
    overrides = ["data.num_train=200", "eval.num_prompts=20", "task=reasoning_gym"]
    overrides += ["task.name=products", "+task.parameters={min_digits: 6, max_digits: 6}"]
    tasks = [build_source(load("quickstart", [*overrides, f"seed={seed}"])) for seed in (0, 1)]
    first, second = ({item.question for item in task.training()} for task in tasks)
    assert len(first) == 200
    assert not first & second
    assert tasks[0].held_out(20) == tasks[1].held_out(20)
    assert len(tasks[0].held_out(30)) == 30


def test_a_generator_with_too_few_questions_is_refused():
    overrides = ["task=reasoning_gym", "task.name=products"]
    overrides += ["+task.parameters={min_digits: 1, max_digits: 1}"]
    with pytest.raises(ConfigError, match=r"eval.num_prompts=150.*different questions"):
        build_source(load("quickstart", overrides)).held_out(150)


def test_a_score_knows_the_parameters_of_its_task():
    """In `puzzle24` a number above `max_value` is worth nothing."""
    overrides = ["task=reasoning_gym", "task.name=puzzle24", "+task.parameters={max_value: 6}"]
    item = build_source(load("quickstart", overrides)).held_out(1)[0]
    with_default = {**item.metadata, "task_parameters": {}}
    assert reasoning_gym("8 * 3 * 1 * 1", item.answer, with_default) == 1.0
    assert reasoning_gym("8 * 3 * 1 * 1", item.answer, item.metadata) < 1.0


CUSTOM = """
def items(split, number=2):
    return [{"question": f"{split} {i}", "answer": str(i)} for i in range(number)]

def shared(split):
    return [{"question": "same"}]

def raising(split):
    raise KeyError("no such table")

def wordy(split):
    return [{"question": "q", "hint": "h"}]

def numeric(split):
    return [{"question": "q", "answer": 5}]

def texts(split):
    return ["q"]
"""


@pytest.fixture
def custom(tmp_path, monkeypatch):
    (tmp_path / "my_custom_task.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda path, *more: build_source(
        load("quickstart", ["task=custom", "task.verifier=exact", f"task.path={path}", *more])
    )


def test_a_users_function_makes_a_task(custom):
    task = custom("my_custom_task:items", "+task.parameters={number: 3}")
    assert [item.question for item in task.training()] == ["train 0", "train 1", "train 2"]
    assert [item.answer for item in task.held_out(2)] == ["0", "1"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_custom_task", "package.module:function"),
        ("my_custom_task:absent", "has no function absent"),
        ("no_such_module_here:items", "cannot import no_such_module_here"),
        ("my_custom_task:shared", "every question .* held out"),
        ("my_custom_task:raising", "split 'eval'.*no such table"),
        ("my_custom_task:wordy", "item 0 .*hint"),
        ("my_custom_task:numeric", "item 0 .*text `answer`"),
        ("my_custom_task:texts", "item 0 must be a mapping"),
    ],
)
def test_a_users_mistake_is_named(custom, path, message):
    with pytest.raises((ConfigError, DataError), match=message):
        custom(path).training()
