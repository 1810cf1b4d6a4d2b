"""Ready training runs: functions that return a whole TrainConfig, to be read, called and changed.

from pelagos.recipes import RECIPES
config = RECIPES["nano"]()
"""

from collections.abc import Callable, Mapping

from pelagos.recipes.nano import nano
from pelagos.recipes.small import small
from pelagos.recipes.tiny import tiny
from pelagos.training.config import TrainConfig

RECIPES: Mapping[str, Callable[[], TrainConfig]] = {"tiny": tiny, "nano": nano, "small": small}
