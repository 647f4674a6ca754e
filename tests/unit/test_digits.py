"""The quick start's task: splits that share nothing, and demonstrations that are often wrong."""

import pytest

from rlpost.config import load
from rlpost.tasks.build import build_source
from rlpost.tasks.digits import largest

SIZES = {"num_digits": 3, "num_train": 700, "num_eval": 300}


def test_the_splits_share_no_question_and_have_no_double():
    questions = [i["question"] for s in ("train", "eval") for i in largest(s, flawed=0.5, **SIZES)]
    assert len(questions) == len(set(questions)) == 1000


def test_the_answer_is_the_largest_digit():
    for item in largest("train", flawed=0.5, **SIZES):
        assert item["answer"] == str(max(int(digit) for digit in item["question"].split()))


@pytest.mark.parametrize("flawed", [0.0, 0.55, 1.0])
def test_the_asked_share_of_worked_answers_names_the_smallest_digit(flawed):
    items = [i for i in largest("train", flawed=flawed, **SIZES) if len(set(i["question"])) > 2]
    wrong = [i for i in items if i["worked_answer"] != i["answer"]]
    assert all(i["worked_answer"] == min(i["question"].split()) for i in wrong)
    assert len(wrong) / len(items) == pytest.approx(flawed, abs=0.06)


def test_the_quick_start_has_held_out_questions_enough():
    config = load("quickstart", ["ray.num_cpus=2"])
    held_out = build_source(config).held_out(config.eval.num_prompts)
    assert len({item.question for item in held_out}) == config.eval.num_prompts >= 200
