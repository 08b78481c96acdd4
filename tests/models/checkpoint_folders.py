"""What tests do to checkpoint folders."""

import hashlib
import json
from pathlib import Path


def sign(folder: Path) -> None:
    """Make the checksums right, so that what lies behind them is what is tested."""
    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in config["sha256"]
    }
    (folder / "config.json").write_text(json.dumps(config))
