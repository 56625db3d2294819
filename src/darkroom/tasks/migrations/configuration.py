"""Alembic's settings, without a file: the scripts beside this one, the connection of the caller."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config


def of(connection: sa.Connection) -> Config:
    """Settings under which commands run in the caller's transaction."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
