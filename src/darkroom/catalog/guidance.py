"""What a request's two guidance scales mean for a card.

    card           CFGScale                                     trueCFGScale
    undistilled    two-pass scale, when the other is absent     two-pass scale, wins; 1 or less switches it off
    embedded       the scalar the network reads                 above 1: two-pass guidance on top of it
    distilled      accepted, changes nothing                    accepted, changes nothing

The two-pass scale is v = v_negative + scale·(v_prompt − v_negative).
"""

from __future__ import annotations

from darkroom.catalog.card import Card
from darkroom.types import GuidanceKind


def resolve_guidance(card: Card, cfg_scale: float | None, true_cfg_scale: float | None) -> tuple[float, float]:
    """(guidance, cfg_scale) of an ImageRequest. None: not given, the card's default counts. Raises nothing."""
    scale = card.defaults.cfg_scale if cfg_scale is None else cfg_scale
    match card.guidance:
        case GuidanceKind.CFG:
            return 1.0, float(scale if true_cfg_scale is None else true_cfg_scale)
        case GuidanceKind.EMBEDDED:
            return float(scale), float(true_cfg_scale or 1.0)
        case GuidanceKind.NONE:
            return 1.0, 1.0


def scales_of(card: Card, guidance: float, cfg_scale: float) -> tuple[float | None, float | None]:
    """resolve_guidance backwards: (CFGScale, trueCFGScale) that give these two, None for what need not be said.

    In the steps and above the least that a card takes: the runs API takes finer ones, and 0 for off.
    """
    match card.guidance:
        case GuidanceKind.CFG:
            return max(round(cfg_scale, 2), 1.0), None
        case GuidanceKind.EMBEDDED:
            return max(round(guidance, 2), 1.0), round(cfg_scale, 2) if cfg_scale > 1 else None
        case GuidanceKind.NONE:
            return None, None
