"""Where things are in the repository, which the commands run from."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
DS_CONFIGS = ROOT / "ds_configs"
RESULTS = ROOT / "docs" / "results"
"""Records of what was measured, which the planner and the report read."""
