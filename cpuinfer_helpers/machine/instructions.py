"""Instruction sets: what a precision needs, what environment variables hold back, and which CPUs have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Linux' names of the instruction sets that decide which kernels run, with the names that people use.
# AVX512 asks for the five subsets that PyTorch and oneDNN ask for.
FLAGS = {
    "AVX2": ("avx2", "fma"),
    "AVX512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"),
    "AVX512_VNNI": ("avx512_vnni",),
    "AVX_VNNI": ("avx_vnni",),
    "AVX512_BF16": ("avx512_bf16",),
    "AMX_TILE": ("amx_tile",),
    "AMX_INT8": ("amx_int8",),
    "AMX_BF16": ("amx_bf16",),
    "NEON": ("asimd",),
    "ARM_BF16": ("bf16",),
    "ARM_I8MM": ("i8mm",),
}

# Any one of these is enough for matrix products of the precision.
_NATIVE = {
    "bf16": ("AVX512_BF16", "AMX_BF16", "ARM_BF16"),
    "int8": ("AVX512_VNNI", "AVX_VNNI", "AMX_INT8", "ARM_I8MM"),
}

ATEN_CAP = "ATEN_CPU_CAPABILITY"
OPENVINO_CAP = "OV_CPU_MAX_ISA"
# oneDNN reads the newer name first.
ONEDNN_CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
CAPS = (ATEN_CAP, *ONEDNN_CAPS, OPENVINO_CAP)
# What keeps PyTorch's and IPEX's own loops from AVX512, in exactly this spelling: both ignore any other, and PyTorch
# also the last one. IPEX caps the oneDNN that it brings along at the same level, whatever oneDNN's variable says, and
# takes the cap off it under "default" (csrc/cpu/dyndisp/DispatchStub.cpp).
_ATEN_BELOW_AVX512 = ("default", "avx2", "avx2_vnni")
_IPEX_ONLY = ("avx2_vnni",)

_AVX512 = ("AVX2", "AVX512")
_VNNI = (*_AVX512, "AVX512_VNNI")
_BF16 = (*_VNNI, "AVX512_BF16", "AVX_VNNI")
_AMX = (*_BF16, "AMX_TILE", "AMX_INT8", "AMX_BF16")
# What is left of the sets above under each of oneDNN's caps (its developer guide, "CPU dispatcher control");
# OpenVINO's cap has the same names. A name that is not here caps nothing: oneDNN ignores it.
_LEFT_BY_CAP = {
    "SSE41": (),
    "AVX": (),
    "AVX2": ("AVX2",),
    "AVX2_VNNI": ("AVX2", "AVX_VNNI"),
    "AVX2_VNNI_2": ("AVX2", "AVX_VNNI"),
    "AVX512_CORE": _AVX512,
    "AVX512_CORE_VNNI": _VNNI,
    "AVX512_CORE_BF16": _BF16,
    "AVX512_CORE_FP16": _BF16,
    "AVX10_1_512": _BF16,
    "AVX512_CORE_AMX": _AMX,
    "AVX512_CORE_AMX_FP16": _AMX,
    "AVX10_1_512_AMX": _AMX,
    "AVX10_1_512_AMX_FP16": _AMX,
}

# First processors of each maker; from their own data sheets.
_FIRST_CPUS = {
    "bf16": "Intel Xeon of 2020 (Cooper Lake) and from 2023 on (Sapphire Rapids), AMD from Zen 4 on (2022), "
    "Arm from Neoverse V1 (AWS Graviton3) and Apple M2 on",
    "int8": "Intel Xeon from Cascade Lake (2019) and Core from Alder Lake (2021) on, AMD from Zen 4 on (2022), "
    "Arm from Neoverse V1 (AWS Graviton3) and Apple M2 on",
    "AVX512": "Intel Xeon from Skylake (2017) on, AMD from Zen 4 on (2022)",
}


def is_native(precision: str, isa: Sequence[str]) -> bool:
    """Whether these instruction sets multiply matrices in a precision; FP32 needs none of its own."""
    return precision not in _NATIVE or any(name in isa for name in _NATIVE[precision])


def native_sets(precision: str, architecture: str) -> tuple[str, ...]:
    """Instruction sets of an architecture of which one is enough to multiply matrices in ``bf16`` or ``int8``."""
    is_arm = architecture.lower().startswith(("arm", "aarch"))
    return tuple(name for name in _NATIVE[precision] if name.startswith("ARM_") is is_arm)


def onednn_cap(caps: Mapping[str, str]) -> str | None:
    """Name of the variable that caps oneDNN, among the ``caps`` that are set; None if there is none."""
    return next((name for name in ONEDNN_CAPS if name in caps), None)


def loops_cap(caps: Mapping[str, str]) -> str | None:
    """What holds AVX512 back from IPEX's own loops, and mostly from PyTorch's; None if none of the ``caps`` does."""
    level = caps.get(ATEN_CAP, "")
    if level not in _ATEN_BELOW_AVX512:
        return None
    return f"{ATEN_CAP}={level} holds AVX512 back" + (" in IPEX" if level in _IPEX_ONLY else "")


def ipex_onednn_cap(caps: Mapping[str, str]) -> str | None:
    """The assignment that keeps IPEX's own oneDNN below AVX512 whatever caps PyTorch's; None if there is none."""
    level = caps.get(ATEN_CAP, "")
    return f"{ATEN_CAP}={level}" if level in _ATEN_BELOW_AVX512 and level != "default" else None


def left_by(cap: str, isa: Sequence[str]) -> tuple[str, ...]:
    """What is left of the instruction sets ``isa`` under a cap with oneDNN's names, such as ``AVX2``."""
    left = _LEFT_BY_CAP.get(cap.upper())
    return tuple(isa) if left is None else tuple(name for name in isa if name in left)


def cpus_with(what: str) -> str:
    """CPUs that have instructions for a precision (``bf16``, ``int8``), or for ``AVX512``, in words."""
    return _FIRST_CPUS[what]


def one_of(names: Sequence[str]) -> str:
    """``AVX512_BF16 or AMX_BF16``."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
