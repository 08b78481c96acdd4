"""What every benchmark reports beside its figures: the hardware and the code."""

import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from models.team import TEAM
from training.record import code_commit


def environment() -> dict[str, str]:
    """The processor, the threads, torch and the commit that were measured."""
    return {
        "processor": _processor(),
        "threads": str(max(torch.get_num_threads(), TEAM.threads)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": code_commit() or "unknown",
    }


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def finish(name: str, figures: Mapping[str, Any]) -> None:
    """Print the one line of JSON that every benchmark ends in."""
    print(json.dumps({"benchmark": name, "environment": environment(), "figures": figures}))


def _processor() -> str:
    capabilities = torch.cpu.get_capabilities()
    wanted = ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8")
    present = " ".join(name for name in wanted if capabilities.get(name))
    return f"{platform.machine()} {present}"
