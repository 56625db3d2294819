"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Examples may take as long as a busy machine needs: how long is no property of what they check.
settings.register_profile("darkroom", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("darkroom")
