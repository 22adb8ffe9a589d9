from __future__ import annotations

import hashlib
import importlib
import re
from collections import Counter

import pytest

from edgebert import demo_data
from edgebert.data import read_examples

COUNTS = {"train": (146, 97), "validation": (26, 17), "test": (52, 34)}
ROWS = demo_data.generate_rows()
DATA = demo_data.generate()
# Text that is spelled out in no table: the slots that stand for other templates.
NESTED = {"command", "other", "fact"}


@pytest.fixture(params=["train", "validation", "test"])
def split(request):
    return request.param


@pytest.fixture(params=[demo_data.TRAIN, demo_data.HELD_OUT], ids=["train", "held_out"])
def grammar(request):
    return request.param


def test_generate_sizes():
    assert len(DATA.labels) == 14
    assert DATA.labels == tuple(sorted(DATA.labels))
    assert [len(DATA.train), len(DATA.validation), len(DATA.test)] == [3402, 602, 1204]


def test_generate_every_intent_has_the_same_share_of_easy_and_hard(split):
    examples, difficulties = getattr(DATA, split), getattr(DATA, f"{split}_difficulty")

    counts = Counter((example.label, difficulty) for example, difficulty in zip(examples, difficulties, strict=True))

    easy, hard = COUNTS[split]
    assert counts == {
        (label, difficulty): count for label in DATA.labels for difficulty, count in (("easy", easy), ("hard", hard))
    }


def test_generate_no_text_twice_in_or_across_splits():
    texts = [example.text.casefold() for example in DATA.train + DATA.validation + DATA.test]

    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_generate_same_seed_gives_same_data(seed):
    assert demo_data.generate(seed) == demo_data.generate(seed)


def test_generate_other_seed_gives_other_data():
    assert demo_data.generate(1).train != DATA.train


def test_generate_is_the_same_on_every_python_version():
    text = "\n".join(f"{example.text}\t{example.label}" for example in DATA.train + DATA.validation + DATA.test)

    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "3594231f3ec92f3a"


def test_generate_texts_are_plain(split):
    for example in getattr(DATA, split):
        assert not re.search(r'[{}|"\t\n]|  |^\s|\s$|\b(\w+) \1\b', example.text), example.text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", example.text), example.text


def test_rows_templates_of_train_are_never_used_elsewhere():
    used = {split: {template for row in rows for template in row.templates} for split, rows in ROWS.items()}

    assert not used["train"] & (used["validation"] | used["test"])
    assert not set(demo_data.TRAIN.templates()) & set(demo_data.HELD_OUT.templates())
    assert used["train"] == set(demo_data.TRAIN.templates())
    assert used["validation"] | used["test"] <= set(demo_data.HELD_OUT.templates())


def test_rows_unseen_fillers_are_in_test_only():
    def slots_with_unseen(split):
        texts = "\n".join(row.text for row in ROWS[split])
        return {
            name
            for name, slot in demo_data.SLOTS.items()
            if any(re.search(rf"\b{re.escape(filler)}\b", texts) for filler in slot.unseen)
        }

    assert slots_with_unseen("train") == set()
    assert slots_with_unseen("validation") == set()
    assert slots_with_unseen("test") == set(demo_data.SLOTS)


def test_rows_hard_frames_hold_a_command_of_another_intent():
    row = next(row for row in ROWS["train"] if row.templates[0] == "don't {other}, {command} instead")
    frame, other, command = row.templates

    assert row.difficulty == "hard"
    assert command in demo_data.TRAIN.intents[row.label].commands
    assert other not in demo_data.TRAIN.intents[row.label].commands
    assert "{other}" in frame


def test_grammar_is_consistent(grammar):
    templates = grammar.templates()
    slots = {slot for template in templates for slot in re.findall(r"\{(\w+)\}", template)}

    assert len(set(templates)) == len(templates)
    assert tuple(sorted(grammar.intents)) == DATA.labels
    assert slots - NESTED <= set(demo_data.SLOTS)
    assert all("{command}" in frame for frame in grammar.easy_frames + grammar.hard_frames)
    assert all("{other}" in frame or "{fact}" in frame for frame in grammar.hard_frames)


def test_grammar_commands_and_facts_hold_plain_slots_only(grammar):
    inner = [template for intent in grammar.intents.values() for template in intent.commands + intent.facts]

    assert [template for template in inner if re.search(r"\{(command|other|fact)\}", template)] == []


def test_slots_shared_and_unseen_do_not_overlap():
    assert [name for name, slot in demo_data.SLOTS.items() if set(slot.shared) & set(slot.unseen)] == []


def test_rivals_come_in_pairs():
    assert all(demo_data.RIVALS[rival] == label for label, rival in demo_data.RIVALS.items())
    assert tuple(sorted(demo_data.RIVALS)) == DATA.labels


def test_write_then_read_gives_the_same_examples(tmp_path, split):
    folder = tmp_path / "new" / "demo"

    demo_data.write(DATA, folder)

    assert sorted(path.name for path in folder.iterdir()) == ["test.tsv", "train.tsv", "validation.tsv"]
    assert read_examples(folder, split=split) == getattr(DATA, split)


def test_write_file_format(tmp_path):
    demo_data.write(DATA, tmp_path)

    lines = (tmp_path / "train.tsv").read_bytes().split(b"\n")

    assert lines[0] == b"text\tlabel"
    assert lines[-1] == b""
    assert len(lines) == 3404
    assert lines[1] == f"{DATA.train[0].text}\t{DATA.train[0].label}".encode()


def test_bag_of_words_does_not_solve_it():
    text = importlib.import_module("sklearn.feature_extraction.text")
    linear_model = importlib.import_module("sklearn.linear_model")
    vectorizer = text.TfidfVectorizer()
    features = vectorizer.fit_transform([row.text for row in ROWS["train"]])
    model = linear_model.LogisticRegression(C=10, max_iter=500)
    model.fit(features, [row.label for row in ROWS["train"]])

    predicted = model.predict(vectorizer.transform([row.text for row in ROWS["test"]]))

    right = {"easy": 0, "hard": 0}
    for row, label in zip(ROWS["test"], predicted, strict=True):
        right[row.difficulty] += int(label == row.label)
    assert 0.75 < right["easy"] / 728 < 0.95
    assert 0.40 < right["hard"] / 476 < 0.65
