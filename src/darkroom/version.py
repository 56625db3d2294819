"""Which Darkroom this is. Read once: the version stands in a file with the whole README, and looking it up there takes
most of a millisecond, which every picture's metadata used to pay."""

from importlib.metadata import version
from typing import Final

VERSION: Final = version("darkroom")
