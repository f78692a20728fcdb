"""The first word of the command."""

from __future__ import annotations

import pytest

from recipes.common.errors import UserError
from recipes.convert_hf import main


def test_help_names_every_word(capsys):
    assert main(["--help"]) == 0
    assert "  import  Make an export of weights that others wrote" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"), [([], "the first word is missing"), (["imprt"], "'imprt' is unknown")]
)
def test_another_word_is_refused(words, said):
    with pytest.raises(UserError, match=f"{said}: one of export, import"):
        main(words)


def test_the_options_behind_it_are_those_of_its_settings(tmp_path):
    with pytest.raises(UserError) as error:
        main(["import", "--input", str(tmp_path / "none"), "--output", str(tmp_path)])
    exists, nothing = error.value.faults
    assert exists.startswith(f"--output {tmp_path}: exists") and "no such directory" in nothing
