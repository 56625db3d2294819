"""The names a caller may use for a sampler, and what each of them runs: data, nothing else.

The names are those of diffusers' schedulers and of the samplers people know from other tools. On a flow model
several mean the same computation ("Uniform" changes nothing: uniform steps followed by the model's shift are its
default grid), so there are fewer computations than names; docs/samplers.md, made from this table, says which.
"""

from __future__ import annotations

from darkroom.engine.schedule import Grid
from darkroom.engine.solvers import Solver

NAMES: dict[str, tuple[Solver, Grid]] = {
    "DDIM": (Solver.EULER, Grid.DEFAULT),
    "DDIMScheduler": (Solver.EULER, Grid.DEFAULT),
    "DDPMScheduler": (Solver.DPMPP_1M_SDE, Grid.DEFAULT),
    "DEISMultistepScheduler": (Solver.DEIS_2, Grid.DEFAULT),
    "Default": (Solver.EULER, Grid.DEFAULT),
    "DPM++": (Solver.DPMPP_2S, Grid.DEFAULT),
    "DPM++ 2M": (Solver.DPMPP_2M, Grid.DEFAULT),
    "DPM++ 2M Beta": (Solver.DPMPP_2M, Grid.BETA),
    "DPM++ 2M Exponential": (Solver.DPMPP_2M, Grid.EXPONENTIAL),
    "DPM++ 2M Karras": (Solver.DPMPP_2M, Grid.KARRAS),
    "DPM++ 2M SDE": (Solver.DPMPP_2M_SDE, Grid.DEFAULT),
    "DPM++ 2M SDE Beta": (Solver.DPMPP_2M_SDE, Grid.BETA),
    "DPM++ 2M SDE Exponential": (Solver.DPMPP_2M_SDE, Grid.EXPONENTIAL),
    "DPM++ 2M SDE Karras": (Solver.DPMPP_2M_SDE, Grid.KARRAS),
    "DPM++ 2M SDE Uniform": (Solver.DPMPP_2M_SDE, Grid.DEFAULT),
    "DPM++ 2M Uniform": (Solver.DPMPP_2M, Grid.DEFAULT),
    "DPM++ 3M": (Solver.DPMPP_3M, Grid.DEFAULT),
    "DPM++ 3M Beta": (Solver.DPMPP_3M, Grid.BETA),
    "DPM++ 3M Exponential": (Solver.DPMPP_3M, Grid.EXPONENTIAL),
    "DPM++ 3M Karras": (Solver.DPMPP_3M, Grid.KARRAS),
    "DPM++ 3M SDE Uniform": (Solver.DPMPP_3M_SDE, Grid.DEFAULT),
    "DPM++ 3M Uniform": (Solver.DPMPP_3M, Grid.DEFAULT),
    "DPM++ Beta": (Solver.DPMPP_2S, Grid.BETA),
    "DPM++ Exponential": (Solver.DPMPP_2S, Grid.EXPONENTIAL),
    "DPM++ Karras": (Solver.DPMPP_2S, Grid.KARRAS),
    "DPM++ SDE": (Solver.DPMPP_1M_SDE, Grid.DEFAULT),
    "DPM++ SDE Beta": (Solver.DPMPP_1M_SDE, Grid.BETA),
    "DPM++ SDE Exponential": (Solver.DPMPP_1M_SDE, Grid.EXPONENTIAL),
    "DPM++ SDE Karras": (Solver.DPMPP_1M_SDE, Grid.KARRAS),
    "DPM++ Uniform": (Solver.DPMPP_2S, Grid.DEFAULT),
    "DPM++ Uniform Beta": (Solver.DPMPP_2S, Grid.BETA),
    "DPM++ Uniform Exponential": (Solver.DPMPP_2S, Grid.EXPONENTIAL),
    "DPM++ Uniform Karras": (Solver.DPMPP_2S, Grid.KARRAS),
    "DPMSolverMultistepInverse": (Solver.EULER, Grid.DEFAULT),
    "DPMSolverMultistepScheduler": (Solver.DPMPP_2M, Grid.DEFAULT),
    "DPMSolverSinglestepScheduler": (Solver.DPMPP_2S, Grid.DEFAULT),
    "EDMDPMSolverMultistepScheduler": (Solver.DPMPP_2M, Grid.KARRAS),
    "EDMEulerScheduler": (Solver.EULER, Grid.KARRAS),
    "Euler": (Solver.EULER, Grid.DEFAULT),
    "Euler a": (Solver.EULER_ANCESTRAL, Grid.DEFAULT),
    "Euler Beta": (Solver.EULER, Grid.BETA),
    "Euler DiscreteScheduler": (Solver.EULER, Grid.DEFAULT),
    "Euler Exponential": (Solver.EULER, Grid.EXPONENTIAL),
    "Euler Karras": (Solver.EULER, Grid.KARRAS),
    "EulerAncestralDiscreteScheduler": (Solver.EULER_ANCESTRAL, Grid.DEFAULT),
    "FlowMatchEulerDiscreteScheduler": (Solver.EULER, Grid.DEFAULT),
    "Heun": (Solver.HEUN, Grid.DEFAULT),
    "HeunDiscreteScheduler": (Solver.HEUN, Grid.DEFAULT),
    "Heun Karras": (Solver.HEUN, Grid.KARRAS),
    "IPNDMScheduler": (Solver.ADAMS_BASHFORTH_4, Grid.DEFAULT),
    "IPNDM Uniform": (Solver.ADAMS_BASHFORTH_4, Grid.DEFAULT),
    "IPNDM Uniform Beta": (Solver.ADAMS_BASHFORTH_4, Grid.BETA),
    "IPNDM Uniform Exponential": (Solver.ADAMS_BASHFORTH_4, Grid.EXPONENTIAL),
    "IPNDM Uniform Karras": (Solver.ADAMS_BASHFORTH_4, Grid.KARRAS),
    "KDPM2AncestralDiscreteScheduler": (Solver.DPM2_ANCESTRAL, Grid.DEFAULT),
    "KDPM2DiscreteScheduler": (Solver.DPM2, Grid.DEFAULT),
    "LCM": (Solver.LCM, Grid.DEFAULT),
    "LCMScheduler": (Solver.LCM, Grid.DEFAULT),
    "LMS": (Solver.LMS_4, Grid.DEFAULT),
    "LMSDiscreteScheduler": (Solver.LMS_4, Grid.DEFAULT),
    "LMS Karras": (Solver.LMS_4, Grid.KARRAS),
    "PNDMScheduler": (Solver.ADAMS_BASHFORTH_4, Grid.DEFAULT),
    "TCDScheduler": (Solver.TCD, Grid.DEFAULT),
    "UniPC": (Solver.UNIPC_2, Grid.DEFAULT),
    "UniPC 2M": (Solver.UNIPC_2, Grid.DEFAULT),
    "UniPC 2M Karras": (Solver.UNIPC_2, Grid.KARRAS),
    "UniPC 2M Uniform": (Solver.UNIPC_2, Grid.DEFAULT),
    "UniPC 3M": (Solver.UNIPC_3, Grid.DEFAULT),
    "UniPC 3M Karras": (Solver.UNIPC_3, Grid.KARRAS),
    "UniPC 3M Uniform": (Solver.UNIPC_3, Grid.DEFAULT),
    "UniPC Karras": (Solver.UNIPC_2, Grid.KARRAS),
    "UniPC Uniform": (Solver.UNIPC_2, Grid.DEFAULT),
    "UniPC Uniform Beta": (Solver.UNIPC_2, Grid.BETA),
    "UniPC Uniform Exponential": (Solver.UNIPC_2, Grid.EXPONENTIAL),
    "UniPC Uniform Karras": (Solver.UNIPC_2, Grid.KARRAS),
}

SPELLINGS: dict[str, str] = {"EulerDiscreteScheduler": "Euler DiscreteScheduler"}
"""Other ways to write a name: the class is spelled without the blank that the public list has in it."""

WARNINGS: dict[str, str] = {
    "DPMSolverMultistepInverse": (
        "DPMSolverMultistepInverse turns an image into noise and has no meaning for generation; the model's default "
        "sampler was used instead."
    ),
}
"""What a caller is told about a name that cannot do what it says."""
