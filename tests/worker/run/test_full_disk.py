"""What a run leaves whose disk is full: a small file system of its own, really full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from tests.worker.run.manifests import TINY, environment, manifest

from kubequant.api.contract import decode_termination
from kubequant.api.outcome import FailureReason
from kubequant.api.resource import read_manifest
from kubequant_worker.methods.gguf import GGUFQuantizer
from kubequant_worker.report_file import RESERVED_BYTES

if TYPE_CHECKING:
    from pathlib import Path

# Of its own mount namespace, so that nothing is left of it; without root in a user namespace.
NAMESPACE = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.geteuid() else [])]
SMALL = RESERVED_BYTES // 2
FILL = 'dd if=/dev/zero of="$1/{at}" bs=4096 status=none 2>/dev/null || true'
WORKER = f"{sys.executable} -m kubequant_worker"

WRITE = """
import errno, pathlib, sys
from kubequant_worker import report_file
folder = pathlib.Path(sys.argv[1])
path, content = folder / "report.json", b"x" * 300_000
report_file.reserve(path)
try:
    (folder / "model").write_bytes(bytes(32 << 20))
except OSError as error:
    print(errno.errorcode[error.errno])
report_file.write(path, content, make_room=lambda: None)
print(path.read_bytes() == content, sorted(path.name for path in folder.iterdir()))
"""

# A child that saves into the folder that it is told, by each of what engines save with.
SAVING = """
import pathlib, sys
import numpy as np
from safetensors.numpy import save_file
from kubequant_worker.methods.child import serve
ZEROS = np.zeros(8 << 20, np.uint8)
SAVERS = {
    "safetensors": lambda path: save_file({"zeros": ZEROS}, path),
    "numpy": lambda path: np.save(path, ZEROS),
    "Python": lambda path: pathlib.Path(path).write_bytes(ZEROS.tobytes()),
}
serve(sys.argv[1:], lambda _: SAVERS)
"""
TOLD = """
import errno, json, pathlib, sys
from kubequant_worker.methods.child import Child
child = Child("saving_child", engine="the engine", threads=1)
found = {}
for name in ("safetensors", "numpy", "Python"):
    try:
        child.call(name, f"{sys.argv[1]}/{name}.npy")
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
    except Exception as error:
        found[name] = repr(error)
    for path in pathlib.Path(sys.argv[1]).iterdir():
        path.unlink()
child.close()
print(json.dumps(found))
"""


def on_a_small_disk(
    folder: Path, size: int, script: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run shell words with a file system of `size` bytes at `folder`, which is their `$1`."""
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={size} small "$1"'
    return subprocess.run(
        [*NAMESPACE, "sh", "-c", f"{mount} && {script}", "sh", str(folder)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_room_of_a_report_is_kept_whatever_fills_the_disk(tmp_path: Path) -> None:
    (tmp_path / "write.py").write_text(WRITE)
    script = f'{sys.executable} {tmp_path / "write.py"} "$1"'

    done = on_a_small_disk(tmp_path / "disk", 2 * RESERVED_BYTES, script)

    assert done.stdout.splitlines() == ["ENOSPC", "True ['model', 'report.json']"], done.stderr


def test_an_engine_that_fills_the_disk_while_it_saves_says_so(tmp_path: Path) -> None:
    (tmp_path / "saving_child.py").write_text(SAVING)
    (tmp_path / "told.py").write_text(TOLD)
    paths = os.pathsep.join([str(tmp_path), environment().get("PYTHONPATH", "")])
    script = f'{sys.executable} {tmp_path / "told.py"} "$1"'

    done = on_a_small_disk(tmp_path / "disk", 1 << 20, script, PYTHONPATH=paths)

    assert json.loads(done.stdout or "{}") == dict.fromkeys(
        ("safetensors", "numpy", "Python"), "ENOSPC"
    ), done.stderr


@pytest.mark.parametrize("left", ["", "method", "artifact"])
def test_room_is_asked_for_what_will_be_written_and_not_for_what_lies_elsewhere_or_goes(
    tmp_path: Path, left: str
) -> None:
    # There is room for all but the model, which is linked to. After Preflight the text is missing.
    text = {"uri": f"file://{tmp_path}/nowhere.txt"}
    path = manifest(tmp_path, evaluation={"perplexity": {"dataset": text}})
    spec = read_manifest(yaml.safe_load(path.read_text()), local=True).spec
    model = {file.name: file.stat().st_size for file in TINY.iterdir()}
    room = GGUFQuantizer.needs(spec, model).scratch_bytes - sum(model.values())
    fill = 'mkdir -p "$1/{0}" && head -c {1} /dev/zero >"$1/{0}/zeros"'

    done = on_a_small_disk(
        tmp_path / "scratch",
        room + RESERVED_BYTES + 2**20,
        f"{{ {fill.format(left, room) if left else 'true'}; }}; {WORKER}",
        KUBEQUANT_RUN=json.dumps(
            {
                "name": "tiny",
                "digest": "0123abcd",
                "spec": yaml.safe_load(path.read_text())["spec"],
            }
        ),
        KUBEQUANT_SCRATCH=str(tmp_path / "scratch"),
        KUBEQUANT_CREDENTIALS=str(tmp_path / "credentials"),
        KUBEQUANT_TERMINATION_LOG=str(tmp_path / "termination-log"),
    )

    assert done.returncode == 12, done.stderr
    failure = decode_termination((tmp_path / "termination-log").read_text()).failure
    assert failure is not None
    assert failure.reason is FailureReason.DATASET_NOT_FOUND


@pytest.mark.parametrize(
    ("filled", "reason", "said"),
    [
        pytest.param(
            "method", FailureReason.DEVICE_NOT_FOUND, "spec.device: GPU", id="by what may go"
        ),
        pytest.param(
            "model", FailureReason.DISK_FULL, "could not be written", id="by what has to stay"
        ),
    ],
)
def test_a_run_that_finds_its_disk_full_still_says_how_it_ended(
    tmp_path: Path, filled: str, reason: FailureReason, said: str
) -> None:
    spec = yaml.safe_load(manifest(tmp_path, device="GPU").read_text())["spec"]
    scratch, log = tmp_path / "scratch", tmp_path / "termination-log"
    fill = f'mkdir "$1/{filled}" && ' + FILL.format(at=f"{filled}/zeros")

    done = on_a_small_disk(
        scratch,
        SMALL,
        f"{{ {fill}; }}; {WORKER}",
        KUBEQUANT_RUN=json.dumps({"name": "tiny", "digest": "0123abcd", "spec": spec}),
        KUBEQUANT_SCRATCH=str(scratch),
        KUBEQUANT_CREDENTIALS=str(tmp_path / "credentials"),
        KUBEQUANT_TERMINATION_LOG=str(log),
    )

    assert done.returncode == 10, done.stderr
    failure = decode_termination(log.read_text()).failure
    assert failure is not None
    assert failure.reason is reason
    assert said in failure.message
    assert "spec.device: GPU" in failure.message
    assert "Traceback" not in done.stderr


def test_a_command_whose_working_space_is_full_still_prints_its_report(tmp_path: Path) -> None:
    path = manifest(tmp_path, device="GPU")
    command = f'{sys.executable} -m kubequant.cli run {path} --json --work-dir "$1"'

    done = on_a_small_disk(tmp_path / "work", SMALL, f"{{ {FILL.format(at='zeros')}; }}; {command}")

    assert done.returncode == 10, done.stderr
    assert json.loads(done.stdout)["failure"]["reason"] == FailureReason.DISK_FULL
    assert "Traceback" not in done.stderr
