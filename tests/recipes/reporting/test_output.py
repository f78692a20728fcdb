"""The directory of a report."""

from __future__ import annotations

import pytest
from lock_scenarios import held

from recipes.common import locks
from recipes.common.errors import UserError
from recipes.reporting.output import REPORT_LOCK, make_directory


def test_two_reports_do_not_share_a_directory_but_a_run_may_train_in_it(tmp_path):
    with held(tmp_path, locks.LOCK):
        make_directory(tmp_path)
    (tmp_path / "other").mkdir()
    with held(tmp_path / "other", REPORT_LOCK):
        with pytest.raises(UserError, match="another process is writing a report into it"):
            make_directory(tmp_path / "other")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file; name a directory"):
        make_directory(tmp_path / "file")
