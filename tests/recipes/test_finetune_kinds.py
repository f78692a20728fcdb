"""Question answering and sentence vectors end to end at toy size, on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_scenarios import BAD, FILLER, GOOD, sentence
from pretrain_scenarios import run_world, values
from scipy import stats

from model.parallel import initialize_parallel
from model.sentence_encoder import RapidBertForSentenceEmbedding
from model.span_classifier import RapidBertForQuestionAnswering
from recipes import finetune
from recipes.common.errors import Faults, UserError
from recipes.common.settings import parse
from recipes.corpus.tokenizer import open_tokenizer
from recipes.engine.world import initialize_world, shut_down
from recipes.tasks.answer_metrics import answer_metrics
from recipes.tasks.finetune_result import is_done
from recipes.tasks.finetune_settings import Settings
from recipes.tasks.finetuning import resolve

FAST = ["--learning-rate", "5e-3", "--log-every", "1"]


def finetunings(calls: list[list[str]]) -> list[str]:
    """Several, one after the other, in one process; returns which were done already."""
    world = initialize_world()
    done = []
    for call in calls:
        work = resolve(parse(Settings, call), world.world_size)
        if is_done(work):
            done.append(work.name)
        else:
            finetune.finetune(work, world)
    shut_down()
    return done


def losses(directory: Path) -> list[float]:
    lines = (directory / "log.jsonl").read_text().splitlines()
    return [record["loss/train"] for record in map(json.loads, lines) if "loss/train" in record]


def write_questions(path: Path, count: int, seed: int) -> None:
    """What is good? It is the one word of GOOD in the text; a third of the texts has none."""
    rng = np.random.default_rng(seed)
    paragraphs = []
    for number in range(count):
        words = [str(word) for word in rng.choice(FILLER, int(rng.integers(8, 40)))]
        question = {"id": f"{seed}-{number}", "question": "what was fine", "answers": []}
        question["is_impossible"] = bool(rng.integers(3) == 0)
        if not question["is_impossible"]:
            at = int(rng.integers(len(words)))
            words[at] = str(rng.choice(GOOD)).upper()
            start = len(" ".join([*words[:at], ""]))
            question["answers"] = [{"text": words[at], "answer_start": start}]
        paragraphs.append({"context": " ".join(words), "qas": [question]})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"paragraphs": paragraphs}]}))


def write_pairs(path: Path, count: int, seed: int, *, scored: bool) -> None:
    """A word of GOOD goes with that of BAD at its place; the other words say nothing."""
    rng = np.random.default_rng(seed)
    rows = ["query,found,score"]
    for _ in range(count):
        good, bad = rng.integers(len(GOOD), size=2)
        bad = bad if scored and rng.integers(2) else good
        texts = sentence(rng, GOOD[good]), sentence(rng, BAD[bad])
        rows.append(f"{texts[0]},{texts[1]},{5 if good == bad else 0}")
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    write_questions(folder / "train.json", 160, 0)
    write_questions(folder / "dev.json", 45, 1)
    write_pairs(folder / "train.csv", 160, 0, scored=False)
    write_pairs(folder / "dev.csv", 45, 1, scored=True)
    return folder


def questions(place: Path, out: Path, output: str, *more: str, start: str = "run") -> list[str]:
    files = ["--train-file", str(out / "train.json"), "--dev-file", str(out / "dev.json")]
    named = ["--kind", "question-answering", "--task", "squad", "--max-length", "24", *files]
    where = ["--checkpoint", str(place / start), "--output", str(out / output)]
    return [*named, *where, "--batch-size", "16", *FAST, *more]


def pairs(place: Path, out: Path, output: str, *more: str, start: str = "run") -> list[str]:
    files = ["--train-file", str(out / "train.csv"), "--dev-file", str(out / "dev.csv")]
    columns = ["--text-columns", "query", "found", "--label-column", "score"]
    named = ["--kind", "sentence-embedding", "--task", "pairs", *files, *columns]
    where = ["--checkpoint", str(place / start), "--output", str(out / output)]
    return [*named, *where, "--batch-size", "8", *FAST, *more]


@pytest.fixture(scope="module")
def results(finetune_place, out) -> dict[str, Any]:
    calls = [
        questions(finetune_place, out, "one", "--epochs", "6"),
        pairs(finetune_place, out, "one", "--epochs", "6"),
    ]
    (done,) = values(run_world(1, finetunings, calls + calls))
    assert done == ["squad-seed17", "pairs-seed17"]
    return {path.stem: json.loads(path.read_text()) for path in out.glob("one/*.json")}


def test_questions_are_learnt_to_be_answered_and_to_be_refused(results, out):
    """The better of always refusing and of always giving the commonest answer is the baseline."""
    record = results["squad-seed17"]
    [*paragraphs] = json.loads((out / "dev.json").read_text())["data"][0]["paragraphs"]
    asked = {p["qas"][0]["id"]: [a["text"] for a in p["qas"][0]["answers"]] for p in paragraphs}
    constant = [answer_metrics(dict.fromkeys(asked, text), asked) for text in ["", *GOOD]]
    baseline = max(metrics["f1"] for metrics in constant)
    assert 0.2 < baseline < 0.5 and record["score"] > baseline + 0.3
    assert record["metrics"]["answerable_f1"] > 0.5
    assert record["score_metric"] == "f1" and record["settings"]["kind"] == "question-answering"
    assert any("160 questions in " in note for note in record["notes"])


def test_predictions_are_cut_out_of_the_texts_and_score_what_the_record_says(results, out):
    folder = out / "one" / "squad-seed17" / "predictions"
    given = json.loads((folder / "predictions.json").read_text())
    paragraphs = json.loads((out / "dev.json").read_text())["data"][0]["paragraphs"]
    golds = {}
    for paragraph in paragraphs:
        (question,) = paragraph["qas"]
        assert given[question["id"]] in paragraph["context"]
        golds[question["id"]] = [answer["text"] for answer in question["answers"]]
    assert answer_metrics(given, golds) == pytest.approx(results["squad-seed17"]["metrics"])
    assert json.loads((folder / "null_odds.json").read_text()).keys() == golds.keys()


def test_the_exported_model_answers_in_transformers(results, out):
    from transformers import AutoModelForQuestionAnswering

    initialize_parallel()
    export = out / "one" / "squad-seed17" / "export"
    tokenizer = open_tokenizer(export)
    text = "the report said that WARM was quite"
    ids, spans = tokenizer.encode_with_offsets(text)
    question = [tokenizer.cls_id, *tokenizer.encode("what was fine"), tokenizer.sep_id]
    row = torch.tensor([[*question, *ids, tokenizer.sep_id]])
    types = (torch.arange(row.shape[1]) >= len(question)).long().unsqueeze(0)
    ours = RapidBertForQuestionAnswering.from_pretrained(export)
    theirs = AutoModelForQuestionAnswering.from_pretrained(export, trust_remote_code=True).eval()
    with torch.no_grad():
        scores = ours.logits(row, token_type_ids=types)
        found = theirs(row, token_type_ids=types)
    torch.testing.assert_close(found.start_logits, scores[..., 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.end_logits, scores[..., 1], atol=1e-5, rtol=1e-5)
    starts, ends = scores[0, len(question) : -1].argmax(0).tolist()
    assert text[spans[starts][0] : spans[ends][1]].strip() == "WARM"
    card = (export / "README.md").read_text()
    assert "AutoModelForQuestionAnswering" in card and "pipeline(" not in card


def correlation(export: Path, file: Path) -> float:
    """Spearman of scores and cosines of mean vectors, by an export and a file alone."""
    initialize_parallel()
    model = RapidBertForSentenceEmbedding.from_pretrained(export)
    tokenizer = open_tokenizer(export)
    cosines, scores = [], []
    for line in file.read_text().splitlines()[1:]:
        *texts, score = line.split(",")
        vectors = []
        for text in texts:
            ids = [tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]
            with torch.no_grad():
                vectors.append(model.embed(torch.tensor([ids]))[0])
        cosines.append(torch.cosine_similarity(*vectors, dim=0).item())
        scores.append(float(score))
    return float(stats.spearmanr(cosines, scores)[0])


def test_vectors_learn_what_belongs_together(results, finetune_place, out):
    """The vectors of the start are the baseline."""
    record = results["pairs-seed17"]
    export = out / "one" / "pairs-seed17" / "export"
    assert correlation(export, out / "dev.csv") == pytest.approx(record["score"], abs=1e-4)
    before = correlation(finetune_place / "run" / "export", out / "dev.csv")
    assert before < 0.4 and record["score"] > before + 0.3
    assert set(record["metrics"]) == {"spearman", "pearson"}
    assert (export / "modules.json").is_file(), "sentence-transformers opens it"
    assert json.loads((export / "config.json").read_text())["architectures"] == ["RapidBertModel"]


def test_two_ranks_compute_what_one_does(finetune_place, out):
    """Batches of 15 of 49 and of 25 records: two ranks divide none, and share all negatives."""

    def calls(output: str) -> list[list[str]]:
        more = ["--epochs", "2", "--batch-size", "15", "--max-train"]
        place = finetune_place
        return [
            questions(place, out, output, *more, "25", start="calm"),
            pairs(place, out, output, *more, "49", start="calm"),
        ]

    for ranks in (1, 2):
        values(run_world(ranks, finetunings, calls(f"ranks-{ranks}")))
    for name in ("squad-seed17", "pairs-seed17"):
        one, two = (losses(out / f"ranks-{ranks}" / name) for ranks in (1, 2))
        assert len(one) > 4
        np.testing.assert_allclose(two, one, rtol=1e-3)
        records = [json.loads((out / f"ranks-{r}" / f"{name}.json").read_text()) for r in (1, 2)]
        assert [record["world_size"] for record in records] == [1, 2]
        assert records[1]["metrics"] == pytest.approx(records[0]["metrics"], abs=2e-2)


def refused(call: list[str]) -> list[str]:
    faults = Faults()
    with pytest.raises(UserError) as error:
        resolve(parse(Settings, call, faults=faults), 1, faults)
    return list(error.value.faults)


def test_a_lone_pair_is_refused_with_the_arithmetic(finetune_place, out):
    (fault,) = refused(pairs(finetune_place, out, "refused", "--batch-size", "1"))
    assert fault == (
        "a batch of 1 pair has 1 x 1 = 1 text to choose from, its own positive: the loss would be "
        "0 whatever the model computes; --batch-size 2 is the smallest"
    )
    (fault,) = refused(pairs(finetune_place, out, "refused", "--max-train", "1"))
    assert fault.endswith("the training set needs another")
    assert not (out / "refused").exists()


def test_columns_that_do_not_fit_the_kind_are_refused(finetune_place, out):
    more = ["--text-columns", "a", "--label-column", "b", "--regression"]
    faults = refused(questions(finetune_place, out, "refused", *more))
    fixed = "question-answering has fixed names: id, question, context, answers"
    assert faults == [
        "--regression is for --kind classification, not question-answering",
        f"--text-columns: --kind {fixed}",
        f"--label-column: --kind {fixed}",
    ]
    named = ["--kind", "sentence-embedding", "--train-file", str(out / "train.csv")]
    named += ["--dev-file", str(out / "dev.csv"), "--text-columns", "query"]
    where = ["--checkpoint", str(finetune_place / "run"), "--output", str(out / "refused")]
    (fault,) = refused([*named, *where])
    assert fault.startswith("--text-columns: 1 given; name those of anchor and positive")
    (fault,) = refused(["--kind", "sentence-embedding", "--task", "rte", *where])
    assert fault.startswith("--kind sentence-embedding is for your own data")
