"""Tasks on digits: splits that share nothing, right answers, demonstrations that give up."""

from collections import Counter
from itertools import pairwise

import pytest

from rlpost.config import load
from rlpost.tasks.build import build_source
from rlpost.tasks.digits import GIVEN_UP, ascending, largest

SIZES = {"num_digits": 4, "num_train": 700, "num_eval": 300}


def test_the_splits_share_no_question_and_have_no_double():
    questions = [
        item["question"]
        for split in ("train", "eval")
        for item in largest(split, given_up=0.5, **SIZES)
    ]
    assert len(questions) == len(set(questions)) == 1000


def test_ascending_digits_are_right_and_its_splits_share_no_question():
    train, held_out = (list(ascending(split, **SIZES)) for split in ("train", "eval"))
    assert (len(train), len(held_out)) == (700, 300)
    assert len({item["question"] for item in train + held_out}) == 1000
    for item in train + held_out:
        assert item["worked_answer"] == item["answer"]
        assert Counter(item["answer"]) == Counter(item["question"])
        assert all(one <= other for one, other in pairwise(item["answer"]))


@pytest.mark.parametrize("given_up", [0.0, 0.55, 1.0])
def test_worked_answers_are_the_largest_digit_or_give_up_as_often_as_asked(given_up):
    items = list(largest("train", given_up=given_up, **SIZES))
    for item in items:
        assert item["answer"] == str(max(int(digit) for digit in item["question"]))
        assert item["worked_answer"] in (item["answer"], GIVEN_UP)
    share = sum(item["worked_answer"] == GIVEN_UP for item in items) / len(items)
    assert share == pytest.approx(given_up, abs=0.06)


def test_more_questions_than_there_are_is_refused():
    with pytest.raises(ValueError, match="raise num_digits"):
        list(largest("train", num_digits=2, num_train=700, num_eval=300, given_up=0.5))
    with pytest.raises(ValueError, match=r"at most 500 .* raise num_digits"):
        list(ascending("train", num_digits=3, num_train=700, num_eval=300))


def test_no_answer_is_much_more_common_than_another():
    counts = Counter(item["answer"] for item in largest("train", given_up=0.5, **SIZES))
    assert set(counts) == set("123456789")
    assert max(counts.values()) / 700 < 0.2


def test_rare_answers_are_as_rare_in_both_splits():
    shares = []
    for split in ("train", "eval"):
        answers = [item["answer"] for item in largest(split, given_up=0.5, **SIZES)]
        shares.append(sum(answer in "12" for answer in answers) / len(answers))
    assert max(shares) < 2 * min(shares)


def test_the_quick_start_has_held_out_questions_enough():
    config = load("quickstart", ["ray.num_cpus=2"])
    held_out = build_source(config).held_out(config.eval.num_prompts)
    assert len({item.question for item in held_out}) == config.eval.num_prompts >= 200
