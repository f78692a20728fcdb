"""The paper's tables: what follows from what, and the cells that do not."""

from __future__ import annotations

import pytest

from recipes.planning.published import TABLE_S2, TABLE_S3, inconsistencies


def test_mfu_by_equation_3_is_that_of_table_s2_but_for_one_row():
    wrong = [row for row in TABLE_S2 if row.computed_mfu != pytest.approx(row.mfu, rel=0.02)]
    assert [str(row) for row in wrong] == ["8 x a100-80"]
    (row,) = wrong
    # By hand: 6 x 137e6 x 1.1e6 / (8 x 312e12). The printed 39.97% would take 1.213e6 tokens/s.
    assert row.computed_mfu == pytest.approx(0.36226, rel=1e-4)
    assert row.mfu * 8 * 312e12 / (6 * 137e6) == pytest.approx(1.2137e6, rel=1e-3)


def test_dollars_of_table_s3_follow_from_its_hours_but_for_one_cell():
    wrong = [cell for cell in TABLE_S3 if abs(cell.computed_dollars - cell.dollars) > 0.10]
    assert [(cell.hours, cell.dollars) for cell in wrong] == [(1.28, 20.00)]
    assert wrong[0].computed_dollars == pytest.approx(20.48)


def test_both_are_named_with_the_arithmetic():
    first, second = inconsistencies()
    assert "1.1e6 tokens/s are 36.2% MFU by Eq. 3, the table says 39.97%" in first
    assert "which would be 1.214e6 tokens/s" in first
    assert "1.28 h x 8 x $2.00 = $20.48, the table says $20.00" in second


def test_micro_batches_of_table_s2_make_up_its_global_batch():
    for row in TABLE_S2:
        assert row.gpus * row.micro_batch * row.accumulation == 4096
    # Minutes to the same score are in proportion to tokens/s, within what the table rounds.
    base = [row for row in TABLE_S2 if row.gpu.short_name == "a100-40"]
    tokens = [row.minutes * row.tokens_per_second for row in base]
    assert max(tokens) / min(tokens) < 1.05
