"""The three ways to decode, behind one protocol."""

from policies.vocabulary import Mode
from replicas.torch_engine.modes.ar import AutoRegressive
from replicas.torch_engine.modes.base import DecodeMode, Group
from replicas.torch_engine.modes.diffusion import Diffusion
from replicas.torch_engine.modes.self_speculation import SelfSpeculation

MODES: dict[Mode, type[DecodeMode]] = {
    Mode.AR: AutoRegressive,
    Mode.DIFFUSION: Diffusion,
    Mode.SELF_SPECULATION: SelfSpeculation,
}

__all__ = ["MODES", "DecodeMode", "Group"]
