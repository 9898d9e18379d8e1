"""How plans look: one colour per mode, a shade per block length, and a code for each.

The codes are what `rules/trimode.recording.yml` records; a state timeline maps them back to names.
"""

from __future__ import annotations

from policies.vocabulary import AR, BLOCK_LENGTHS, Mode, Plan, all_plans

MODE_COLOURS = {
    Mode.AR: "#5794F2",
    Mode.SELF_SPECULATION: "#73BF69",
    Mode.DIFFUSION: "#B877D9",
}
MODE_NAMES = {
    Mode.AR: "AR",
    Mode.SELF_SPECULATION: "Self-speculation",
    Mode.DIFFUSION: "Diffusion",
}
SWITCH_COLOUR = "#FF9830"
"""Orange means a switch, and nothing else does."""
_SHADES = {
    Mode.SELF_SPECULATION: ("#C8F2C2", "#96D98D", "#73BF69", "#37872D"),
    Mode.DIFFUSION: ("#DEB6F2", "#CA95E5", "#B877D9", "#8F3BB8"),
}

PLAN_CODES = {plan: code for code, plan in enumerate(all_plans(), 1)}


def plan_colour(plan: Plan) -> str:
    """The mode's colour, darker the longer the block."""
    if plan == AR:
        return MODE_COLOURS[Mode.AR]
    return _SHADES[plan.mode][BLOCK_LENGTHS.index(plan.block_length)]
