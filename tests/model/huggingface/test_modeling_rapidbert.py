"""The modelling file against the training model, the formulas, and what transformers does to it."""

from __future__ import annotations

import ast
import logging
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_bert import PaddedBatch, PlainRapidBERT, paper_slopes, randomise
from safetensors.torch import load_file
from torch import Tensor, nn

from model.classifier import RapidBertForSequenceClassification as TrainedClassifier
from model.config import ModelConfig
from model.huggingface import modeling_rapidbert as modeling
from model.huggingface.modeling_rapidbert import (
    RapidBertConfig,
    RapidBertForMaskedLM,
    RapidBertForQuestionAnswering,
    RapidBertForSequenceClassification,
    RapidBertForTokenClassification,
    RapidBertModel,
)
from model.masked_lm import RapidBertForMaskedLM as TrainedMaskedLM
from model.span_classifier import RapidBertForQuestionAnswering as TrainedSpans
from model.weights import Head, to_public

V = 64
TINY = ModelConfig("tiny", num_layers=2, hidden_size=48, num_heads=3, ffn_size=64, vocab_size=V)
EMPTY_AND_LONGEST = [5, 0, 17, 1]


def hf_config(config: ModelConfig, **changes: Any) -> RapidBertConfig:
    sizes: dict[str, Any] = dict(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.ffn_size,
        feed_forward=config.feed_forward,
    )
    return RapidBertConfig(**(sizes | changes))


def public(model: nn.Module, config: ModelConfig, head: Head) -> dict[str, Tensor]:
    state = {name: tensor.detach() for name, tensor in model.named_parameters()}
    return to_public(state, config, head)


def masked_lm(config: ModelConfig = TINY) -> tuple[TrainedMaskedLM, RapidBertForMaskedLM]:
    """The training model with weights under which every term matters, and the one that left."""
    trained = TrainedMaskedLM(config)
    randomise(trained)
    left = RapidBertForMaskedLM(hf_config(config))
    missing, unexpected = left.load_state_dict(public(trained, config, "masked_lm"), strict=False)
    assert missing == ["cls.predictions.decoder.weight"] and not unexpected  # tied
    return trained.eval(), left.eval()


@pytest.fixture
def left() -> RapidBertForMaskedLM:
    return masked_lm()[1]


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("feed_forward", ["fused_glu", "glu", "standard"])
@torch.no_grad()
def test_logits_are_the_training_models_padded_and_packed(feed_forward, attention):
    dropout = 0.0 if feed_forward == "standard" else 0.1
    trained, left = masked_lm(replace(TINY, feed_forward=feed_forward, ffn_dropout=dropout))
    left.set_attn_implementation(attention)
    batch = PaddedBatch.random(EMPTY_AND_LONGEST, V)
    logits = left(**batch.padded_inputs).logits
    same(logits, trained.logits(**batch.padded_inputs))
    same(logits[batch.attention_mask.bool()], trained.logits(**batch.packed_inputs))
    assert not logits[batch.attention_mask == 0].any()
    # Nothing is padding: no mask, or one that is all ones; every token is of type 0.
    ids = batch.input_ids
    expected = trained.logits(ids)
    same(left(ids).logits, expected)
    same(left(ids, attention_mask=torch.ones_like(ids)).logits, expected)


@pytest.mark.parametrize("heads", [1, 2, 6, 12])
@torch.no_grad()
def test_any_number_of_heads_and_sequences_far_longer_than_any_trained_on(heads):
    trained, left = masked_lm(replace(TINY, num_heads=heads, num_layers=1))
    ids = torch.randint(V, (2, 700), generator=torch.Generator().manual_seed(heads))
    mask = torch.ones_like(ids)
    mask[1, 650:] = 0
    logits = left(ids, attention_mask=mask).logits
    same(logits, trained.logits(ids, attention_mask=mask))


@torch.no_grad()
def test_the_published_layout_written_by_hand_has_the_same_names_and_logits():
    plain = PlainRapidBERT(layers=2, hidden=48, heads=3, ffn=64, vocab=V)
    randomise(plain)
    left = RapidBertForMaskedLM(hf_config(TINY))
    assert left.state_dict().keys() == plain.state_dict().keys()
    left.load_state_dict(plain.state_dict())
    batch = PaddedBatch.random([5, 17, 1], V)
    real = batch.attention_mask.bool()
    same(left.eval()(**batch.padded_inputs).logits[real], plain(**batch.padded_inputs)[real])


@torch.no_grad()
def test_tokens_may_stand_anywhere_in_their_row(left):
    ids = torch.arange(5, 11)[None]
    expected = left(ids).logits[0]
    for places in ([0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8], [0, 2, 3, 6, 7, 8]):
        padded, mask = torch.zeros(1, 9, dtype=torch.int64), torch.zeros(1, 9)
        padded[0, places], mask[0, places] = ids[0], 1
        logits = left(padded, attention_mask=mask).logits
        same(logits[0, places], expected)
        assert torch.count_nonzero(logits.abs().sum(-1)) == 6


@torch.no_grad()
def test_a_batch_of_nothing_but_padding_is_zero(left):
    ids = torch.zeros(2, 3, dtype=torch.int64)
    assert not left(ids, attention_mask=torch.zeros_like(ids)).logits.any()


@torch.no_grad()
def test_it_comes_back_from_its_own_directory(left, tmp_path):
    """transformers builds models on the meta device: whatever is no weight would be noise."""
    batch = PaddedBatch.random(EMPTY_AND_LONGEST, V)
    expected = left(**batch.padded_inputs).logits
    left.save_pretrained(tmp_path)
    assert "cls.predictions.decoder.weight" not in load_file(tmp_path / "model.safetensors")
    loaded, info = RapidBertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(**batch.padded_inputs).logits, expected)
    assert loaded.cls["predictions"].decoder.weight is loaded.get_input_embeddings().weight
    with torch.device("meta"):
        empty = RapidBertForMaskedLM(left.config)
    empty.load_state_dict(left.state_dict(), assign=True)
    empty.eval().tie_weights()
    assert torch.equal(empty(**batch.padded_inputs).logits, expected)


@torch.no_grad()
def test_slopes_survive_a_cast_of_the_model(tmp_path):
    """Of 12 heads four have slopes that bf16 does not hold. Without queries only they decide."""
    _, left = masked_lm(replace(TINY, num_heads=12, num_layers=1))
    qkv = left.bert.encoder["layer"][0].attention["self"]["Wqkv"]
    qkv.weight.zero_()
    qkv.bias.zero_()
    left.save_pretrained(tmp_path)
    assert not list(left.buffers())
    half = RapidBertForMaskedLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager"
    )
    ids = torch.arange(9)[None]
    (weights,) = half(ids, output_attentions=True).attentions
    assert weights.dtype == torch.bfloat16
    distance = (ids.T - ids).abs()
    exact = torch.stack([(-slope * distance).softmax(-1) for slope in paper_slopes(12)])
    same(weights[0].float(), exact, 4e-3)  # a rounding of the weights themselves
    assert torch.equal(modeling.alibi_slopes(12, ids.device), torch.tensor(paper_slopes(12)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_half_precision_rounds_and_empty_rows_stay_finite(left, attention, dtype):
    batch = PaddedBatch.random(EMPTY_AND_LONGEST, V)
    exact = left(**batch.padded_inputs).logits
    left.set_attn_implementation(attention)
    logits = left.to(dtype)(**batch.padded_inputs).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    same(logits.float(), exact, 0.15 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("lengths", [EMPTY_AND_LONGEST, [7, 7]])
@torch.no_grad()
def test_a_compiled_graph_is_whole_and_computes_the_same(left, lengths):
    batch = PaddedBatch.random(lengths, V)
    expected = left(**batch.padded_inputs).logits
    compiled = torch.compile(left, fullgraph=True, backend="aot_eager")
    same(compiled(**batch.padded_inputs).logits, expected)


@torch.no_grad()
def test_what_inductor_makes_of_it_computes_the_same():
    _, left = masked_lm(replace(TINY, num_layers=1))
    batch = PaddedBatch.random(EMPTY_AND_LONGEST, V)
    expected = left(**batch.padded_inputs).logits
    same(torch.compile(left, fullgraph=True)(**batch.padded_inputs).logits, expected)


@torch.no_grad()
def test_an_exported_graph_takes_other_shapes_than_its_example(left):
    example, other = PaddedBatch.random([5, 3], V), PaddedBatch.random(EMPTY_AND_LONGEST, V)
    sizes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.export.export(
            left,
            (),
            example.padded_inputs,
            dynamic_shapes=dict.fromkeys(example.padded_inputs, sizes),
        ).module()
    same(graph(**other.padded_inputs).logits, left(**other.padded_inputs).logits)


@torch.no_grad()
def test_hidden_states_and_attentions_are_those_of_the_layers(left):
    batch = PaddedBatch.random([5, 3], V)
    left.set_attn_implementation("eager")
    output = left(**batch.padded_inputs, output_hidden_states=True, output_attentions=True)
    states = output.hidden_states
    assert [list(state.shape) for state in states] == [[2, 5, 48]] * 3
    last = left.bert(**batch.padded_inputs).last_hidden_state
    assert torch.equal(states[-1], last) and not last[batch.attention_mask == 0].any()
    first = left.bert.embeddings(
        left.bert.embeddings.word_embeddings(batch.input_ids), batch.token_type_ids
    )
    assert torch.equal(states[0], first * batch.attention_mask[..., None])
    assert [list(weights.shape) for weights in output.attentions] == [[2, 3, 5, 5]] * 2
    same(output.attentions[0][1].sum(-1), torch.ones(3, 5))
    assert not output.attentions[0][1, :, :, 3:].any()
    plain = left(**batch.padded_inputs)
    assert plain.hidden_states is None and plain.attentions is None
    (logits,) = left(**batch.padded_inputs, return_dict=False)
    assert torch.equal(logits, plain.logits)


def test_vectors_may_stand_in_for_ids(left):
    batch = PaddedBatch.random(EMPTY_AND_LONGEST, V)
    vectors = left.get_input_embeddings()(batch.input_ids)
    inputs = batch.padded_inputs
    expected = left(**inputs).logits
    del inputs["input_ids"]
    same(left(inputs_embeds=vectors, **inputs).logits, expected)


def test_what_does_not_fit_together_is_refused(left):
    ids = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
        left()
    with pytest.raises(ValueError, match=r"attention_mask is \[2, 4\], the batch is \[2, 3\]"):
        left(ids, attention_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"\[1, 3\] beside a batch of \[2, 3\]"):
        left(ids, token_type_ids=ids[:1])
    with pytest.raises(ValueError, match="feed_forward 'geglu': RapidBERT has fused_glu, glu"):
        RapidBertModel(hf_config(TINY, feed_forward="geglu"))


def test_only_what_was_asked_for_computes_and_it_says_so(left, tmp_path, caplog, monkeypatch):
    left.save_pretrained(tmp_path)
    ids = torch.ones(1, 3, dtype=torch.int64)
    logging.Logger.warning_once.cache_clear()
    monkeypatch.setattr(modeling.logger, "propagate", True)
    monkeypatch.setattr(modeling.logger, "disabled", False)  # import-linter's doing
    for attention in ("sdpa", "eager"):
        loaded = RapidBertModel.from_pretrained(tmp_path, attn_implementation=attention)
        for _ in range(2):
            loaded(ids)
        assert caplog.text.count(f"RapidBERT computes attention by {attention}\n") == 1
    with pytest.raises(ValueError, match='sdpa returns no attentions: load with attn_implem.*"eag'):
        left(ids, output_attentions=True)
    with pytest.raises(ImportError, match="FlashAttention2 .* cannot be used"):
        RapidBertModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match="flex_attention"):
        RapidBertModel.from_pretrained(tmp_path, attn_implementation="flex_attention")
    left.config._attn_implementation = "flash_attention_3"
    with pytest.raises(ValueError, match="flash_attention_3': RapidBERT has sdpa, eager, flash"):
        left(ids)
    left.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash-attn is not installed"):
        left(ids)
    monkeypatch.setattr(modeling, "flash_attn_varlen_qkvpacked_func", print)
    with pytest.raises(ValueError, match="it needs a GPU, and the batch is on cpu"):
        left(ids)


@pytest.mark.parametrize("lengths", [EMPTY_AND_LONGEST, [7, 7]])
@torch.no_grad()
def test_flash_attention_gets_the_packed_rows_and_the_slopes(left, lengths, monkeypatch):
    """What the package documents of its function, a sequence at a time."""

    def varlen(qkv, offsets, longest, dropout_p, causal, alibi_slopes):
        assert offsets.dtype == torch.int32 and alibi_slopes.dtype == torch.float32
        assert longest == max(lengths) and not dropout_p and not causal
        context = torch.full_like(qkv[:, 0], math.nan)
        for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            q, k, v = qkv[start:end].unbind(1)  # [length, H, D] each
            at = torch.arange(end - start)
            bias = -alibi_slopes[:, None, None] * (at[:, None] - at).abs()
            scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1]) + bias
            context[start:end] = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)
        return context

    batch = PaddedBatch.random(lengths, V)
    expected = left(**batch.padded_inputs).logits
    monkeypatch.setattr(modeling, "flash_attn_varlen_qkvpacked_func", varlen)
    monkeypatch.setattr(modeling, "why_no_flash_attention", lambda device: None)
    left.config._attn_implementation = "flash_attention_2"
    same(left(**batch.padded_inputs).logits, expected)


@torch.no_grad()
def test_a_finetuned_classifier_and_its_encoder_with_the_pooler(tmp_path):
    trained = TrainedClassifier(TINY, 4)
    randomise(trained)
    left = RapidBertForSequenceClassification(hf_config(TINY, num_labels=4)).eval()
    left.load_state_dict(public(trained, TINY, "classifier"))
    for batch in (PaddedBatch.random([5, 17, 1], V), PaddedBatch.random([4, 4], V)):
        same(left(**batch.padded_inputs).logits, trained.eval().logits(**batch.padded_inputs))
    inputs = batch.padded_inputs
    inputs["attention_mask"][0, 0] = 0  # the first token that is real counts
    same(left(**inputs).logits, trained.logits(**inputs))

    left.save_pretrained(tmp_path)
    loaded, info = RapidBertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pooled = loaded(**inputs).pooler_output
    assert torch.equal(left.classifier(pooled), left(**inputs).logits)


@torch.no_grad()
def test_an_encoder_makes_up_no_pooler(left, tmp_path):
    left.save_pretrained(tmp_path)
    loaded, info = RapidBertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    output = loaded(torch.ones(1, 3, dtype=torch.int64))
    assert output.pooler_output is None and list(output.last_hidden_state.shape) == [1, 3, 48]


@torch.no_grad()
def test_a_finetuned_span_classifier():
    trained = TrainedSpans(TINY)
    randomise(trained)
    left = RapidBertForQuestionAnswering(hf_config(TINY)).eval()
    left.load_state_dict(public(trained, TINY, "span_classifier"))
    batch = PaddedBatch.random(EMPTY_AND_LONGEST, V)
    output = left(**batch.padded_inputs)
    found = torch.stack([output.start_logits, output.end_logits], -1)
    real = batch.attention_mask != 0
    same(found[real], trained.eval().logits(**batch.padded_inputs)[real])


@torch.no_grad()
def test_padding_is_no_place_for_an_answer():
    """However low all scores are, loss and best place are those of the sequence without padding."""
    model = RapidBertForQuestionAnswering(hf_config(TINY)).eval()
    model.qa_outputs.bias.fill_(-3.0)
    ids, place = torch.arange(8)[None], torch.tensor([5])
    alone = model(ids, start_positions=place, end_positions=place)
    mask = torch.arange(64)[None] < 8
    padded = torch.nn.functional.pad(ids, (0, 56))
    found = model(padded, mask.long(), start_positions=place, end_positions=place)
    same(found.loss, alone.loss)
    assert found.start_logits.argmax() == alone.start_logits.argmax()
    assert model(padded, torch.zeros(1, 64), start_positions=place, end_positions=place).loss > 0


def test_losses_are_means_over_what_is_labelled(left):
    batch = PaddedBatch.random([5, 9], V)
    inputs, labels = batch.padded_inputs, batch.labels
    counted = labels != -100
    output = left(**inputs, labels=labels)
    chosen = output.logits.log_softmax(-1)[counted].gather(1, labels[counted][:, None])
    same(output.loss, -chosen.mean())

    tokens = RapidBertForTokenClassification(hf_config(TINY, num_labels=V)).eval()
    output = tokens(**inputs, labels=labels)
    chosen = output.logits.log_softmax(-1)[counted].gather(1, labels[counted][:, None])
    same(output.loss, -chosen.mean())
    assert not output.logits[batch.attention_mask == 0].any()

    spans = RapidBertForQuestionAnswering(hf_config(TINY)).eval()
    starts, ends = torch.tensor([1, 2]), torch.tensor([3, 99])  # one is cut off
    output = spans(**inputs, start_positions=starts, end_positions=ends)
    start_loss = -output.start_logits.log_softmax(-1)[[0, 1], [1, 2]].mean()
    end_loss = -output.end_logits.log_softmax(-1)[0, 3]
    same(output.loss, (start_loss + end_loss) / 2)


@pytest.mark.parametrize(
    ("problem", "outputs", "labels"),
    [
        ("single_label_classification", 3, [2, 0]),
        (None, 3, [2, 0]),
        ("regression", 1, [0.5, -1.0]),
        (None, 1, [0.5, -1.0]),
        ("multi_label_classification", 3, [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
        (None, 3, [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
        ("multi_label_classification", 3, [[1, 0, 1], [0, 0, 1]]),
    ],
)
def test_the_problem_decides_what_labels_mean(problem, outputs, labels):
    config = hf_config(TINY, num_labels=outputs, problem_type=problem)
    model = RapidBertForSequenceClassification(config).eval()
    batch, labels = PaddedBatch.random([5, 9], V), torch.tensor(labels)
    output = model(**batch.padded_inputs, labels=labels)
    logits = output.logits
    if outputs == 1:
        expected = (logits[:, 0] - labels).square().mean()
    elif labels.dim() == 1:
        expected = -logits.log_softmax(-1)[[0, 1], labels].mean()
    else:
        right = labels * logits.sigmoid().log() + (1 - labels) * (-logits).sigmoid().log()
        expected = -right.mean()
    same(output.loss, expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_steps_learn_with_finite_gradients_everywhere(checkpointing):
    torch.manual_seed(0)
    model = RapidBertForMaskedLM(hf_config(TINY, attention_probs_dropout_prob=0.1)).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch = PaddedBatch.random(EMPTY_AND_LONGEST, V)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model(**batch.padded_inputs, labels=batch.labels).loss
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_recomputed_layers_have_the_same_gradients(left):
    batch = PaddedBatch.random(EMPTY_AND_LONGEST, V)
    for module in left.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def gradients() -> dict[str, Tensor]:
        left.zero_grad()
        left.train()(**batch.padded_inputs, labels=batch.labels).loss.backward()
        return {n: p.grad.clone() for n, p in left.named_parameters() if p.grad is not None}

    plain = gradients()
    left.gradient_checkpointing_enable()
    calls = []
    for layer in left.bert.encoder["layer"]:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    again = gradients()
    assert len(calls) == 4, "every layer forwards twice"
    for name, gradient in plain.items():
        same(again[name], gradient, 1e-6)


@pytest.mark.parametrize("feed_forward", ["fused_glu", "standard"])
@torch.no_grad()
def test_each_dropout_rate_is_of_its_own_place(feed_forward):
    """At a rate of one, what is dropped is as good as a matrix of zeros."""
    ids = PaddedBatch.random([6, 6], V).input_ids
    rates = dict.fromkeys(
        ("hidden_dropout_prob", "attention_probs_dropout_prob", "feed_forward_dropout_prob"), 0.0
    )

    def built(**changes: float) -> RapidBertModel:
        model = RapidBertModel(hf_config(TINY, feed_forward=feed_forward, **(rates | changes)))
        randomise(model)
        return model.train()

    def zeroed(*names: str) -> Tensor:
        model = built()
        for name, parameter in model.named_parameters():
            if any(part in name for part in names):
                parameter.zero_()
        return model(ids).last_hidden_state

    def dropped(rate: str) -> Tensor:
        return built(**{rate: 1.0})(ids).last_hidden_state

    gated = feed_forward == "fused_glu"
    same(dropped("feed_forward_dropout_prob"), zeroed(*["wo.weight"] if gated else []))
    # What attends to nothing has the bias of the output matrix left.
    same(dropped("attention_probs_dropout_prob"), zeroed("attention.output.dense.weight"))
    # Behind the embedding, attention, and a plain feed-forward, but not a gated one.
    outputs = ["attention.output.dense"] + ([] if gated else ["output.dense"])
    same(dropped("hidden_dropout_prob"), zeroed("embeddings.LayerNorm", *outputs))


def test_it_needs_torch_and_transformers_alone():
    """By its text: so neither DeepSpeed nor Megatron, nor flash-attn, which is only tried."""
    source = Path(modeling.__file__).read_text("utf-8")
    tree = ast.parse(source)
    tried = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
    optional = {child for attempt in tried for child in ast.walk(attempt)}
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {(name.name.split(".")[0], node in optional) for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "nothing beside it is needed"
            modules.add((str(node.module).split(".")[0], node in optional))
    needed = {name for name, is_optional in modules if not is_optional}
    assert needed == {"math", "typing", "torch", "transformers"}
    assert modules - {(name, False) for name in needed} == {("flash_attn", True)}


def test_random_weights_are_berts():
    torch.manual_seed(0)
    model = RapidBertForMaskedLM(hf_config(TINY, initializer_range=0.5, hidden_size=96))
    for name, parameter in model.named_parameters():
        if "norm" in name.lower():
            assert torch.equal(parameter, torch.full_like(parameter, float("weight" in name)))
        elif name.endswith("bias"):
            assert not parameter.any()
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.5, rel=0.1), name
